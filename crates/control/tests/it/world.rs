//! A datacenter of one machine: store, control plane, flow engine, and a machine whose every word a test can choose.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use base::{
    clock::{Clock, SystemClock},
    shutdown::{Shutdown, Trigger},
};
use control::{
    Control, ControlConfig, Result, Scope,
    accounts::{self, NewAccount},
    fabrics::{FirstFabric, NewFabricNetwork},
    images,
    instances::{self, CreateInstance, InstanceView, NetworkChoice},
    names::NamesConfig,
    networks::{self, NewNetwork},
    packages::{self, NewPackage},
    servers::{self, NewServer},
};
use model::{
    delta::{ReportNews, Said},
    id::{AccountId, ImageId, InstanceId, NetworkId, ServerId},
    instance::{Caller, Wanted},
    layout::Layout,
    network::VNIS,
    role::{HeadnodeFact, HeadnodeRole, HeadnodeState, HeadnodeWanted},
    server::Hardware,
    state::PublicState,
    target::{Phase, Report, Target, ZoneFact, ZoneState, ZoneTarget},
    time::Timestamp,
    unit::{CpuCap, CpuShares, Mib},
};
use store::{Store, memory::Memory, sqlite::Sqlite};

/// Real time anything may take here.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who asks in tests.
pub(crate) fn caller() -> Caller {
    Caller::Signature { ip: Some("127.0.0.1".to_owned()), key_id: "/demo/keys/aa:bb".to_owned() }
}

/// The datacenter.
pub(crate) struct World {
    pub(crate) control: Control,
    pub(crate) owner: AccountId,
    pub(crate) scope: Scope,
    pub(crate) image: ImageId,
    pub(crate) network: NetworkId,
    pub(crate) server: ServerId,
    pub(crate) dir: Arc<tempfile::TempDir>,
    pub(crate) trigger: Arc<Trigger>,
}

/// What a test may choose.
pub(crate) struct Choices {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) last_address: u8,
    pub(crate) flows: bool,
    pub(crate) engine: Kind,
    /// An engine that others use too, in place of one of that kind.
    pub(crate) over: Option<Arc<dyn store::Engine>>,
    pub(crate) vnis: std::ops::RangeInclusive<u32>,
    pub(crate) first: Option<FirstFabric>,
    /// Which headnode the control plane is.
    pub(crate) headnode: Option<ServerId>,
    /// Names of instances.
    pub(crate) names: NamesConfig,
    /// See [`ControlConfig::asks_for_rules`].
    pub(crate) asks_for_rules: bool,
}

/// Where records are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In memory only.
    Memory,
    /// In a file.
    Sqlite,
}

pub(crate) async fn open(kind: Kind, dir: &tempfile::TempDir) -> Store {
    let engine: Arc<dyn store::Engine> = match kind {
        Kind::Memory => Arc::new(Memory::new()),
        Kind::Sqlite => {
            let path = dir.path().join("store.db");
            // Small: tests on a small disk need no reserve worth speaking of.
            Arc::new(Sqlite::open_with_reserve(&path, 64 << 10).await.expect("the file opens"))
        }
    };
    Store::open(engine, control::schema()).await.expect("the store opens")
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            last_address: 250,
            flows: true,
            engine: Kind::Memory,
            over: None,
            vnis: VNIS,
            first: None,
            headnode: None,
            names: NamesConfig::default(),
            asks_for_rules: false,
        }
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Choices::default()).await
    }

    pub(crate) async fn with(choices: Choices) -> Self {
        let dir = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        let store = match choices.over {
            Some(engine) => Store::open(engine, control::schema()).await.expect("the store opens"),
            None => open(choices.engine, &dir).await,
        };
        let (trigger, shutdown) = Shutdown::new();
        let mut config = config(&dir);
        (config.fabric.vnis, config.fabric.first) = (choices.vnis.clone(), choices.first.clone());
        config.headnode = choices.headnode;
        config.asks_for_rules = choices.asks_for_rules;
        config.names = choices.names.clone();
        let control = Control::start(store, choices.clock.clone(), config, shutdown.clone());
        if choices.flows {
            run_flows(&control, shutdown);
        }
        let new = NewAccount { login: "demo".to_owned(), ..NewAccount::default() };
        let owner = accounts::create(&control, new).await.expect("an account").id;
        for (name, memory) in [("small", 256), ("large", 512)] {
            packages::create(&control, package(name, memory)).await.expect("a package");
        }
        let last = Ipv4Addr::new(10, 9, 0, choices.last_address);
        let network = networks::create(&control, network("external", last)).await.expect("a network").id;
        let image = image(&control, owner).await;
        let server = ServerId::random();
        servers::register(&control, server, NewServer { hostname: "one".to_owned(), ..NewServer::default() })
            .await
            .expect("a machine");
        let scope = Scope::Account(owner);
        let world = Self { control, owner, scope, image, network, server, dir, trigger: Arc::new(trigger) };
        // The first report says what the machine has to offer.
        Machine::new(&world).report(&world).await;
        world
    }

    pub(crate) fn request(&self, name: &str) -> CreateInstance {
        CreateInstance {
            alias: Some(name.to_owned()),
            package: "small".to_owned(),
            image: self.image.to_string(),
            networks: vec![NetworkChoice { primary: true, ..NetworkChoice::any(self.network) }],
            ..CreateInstance::default()
        }
    }

    pub(crate) async fn create(&self, name: &str) -> Result<InstanceView> {
        instances::create(&self.control, &caller(), self.owner, self.request(name)).await
    }

    /// Makes an instance and sees it run, its flow ended.
    pub(crate) async fn running(&self, machine: &mut Machine, name: &str) -> InstanceId {
        let id = self.create(name).await.expect("it is asked for").instance.id;
        machine.obey(self, id).await;
        self.until(id, |view| view.state == PublicState::Running && view.instance.flow.is_none()).await;
        id
    }

    pub(crate) fn view(&self, id: InstanceId) -> InstanceView {
        instances::get_even_deleted(&self.control, self.scope, id).expect("it is recorded")
    }

    /// Waits until the instance is as `wanted`.
    pub(crate) async fn until(&self, id: InstanceId, wanted: impl Fn(&InstanceView) -> bool) -> InstanceView {
        let mut changes = self.control.store.changes();
        let waiting = async {
            loop {
                let view = self.view(id);
                if wanted(&view) {
                    return view;
                }
                changes.next().await;
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, waiting).await;
        outcome.unwrap_or_else(|_| panic!("it did not come to be: {:#?}", self.view(id).instance.value))
    }

    /// What the machine promised, and addresses, Ethernet addresses and names in use.
    pub(crate) fn held(&self) -> (u32, u64, usize, usize, usize) {
        let snapshot = self.control.snapshot();
        let server = snapshot.get(&control::tables::SERVERS, &self.server.to_string()).expect("the machine");
        let names =
            |kind: &str| snapshot.scan(&control::tables::CLAIMS).filter(|claim| claim.name.starts_with(kind)).count();
        let addresses = snapshot.count(&control::tables::ADDRESSES);
        (server.reserved.instances, server.reserved.memory.0, addresses, names("mac/"), names("alias/"))
    }
}

/// A control plane over `store`.
pub(crate) fn start(store: Store, clock: Arc<dyn Clock>, dir: &tempfile::TempDir, shutdown: Shutdown) -> Control {
    Control::start(store, clock, config(dir), shutdown)
}

pub(crate) fn config(dir: &tempfile::TempDir) -> ControlConfig {
    let mut config = ControlConfig::new("test-1", dir.path().join("images"));
    config.archive_dir = Some(dir.path().join("archive"));
    config.default_networks = vec!["external".to_owned()];
    config
}

pub(crate) fn run_flows(control: &Control, shutdown: Shutdown) {
    let engine = flow::Engine::new(control.store.clone(), control.clock.clone(), control.clone())
        .sharing(control.headnodes.share());
    base::task::spawn("flows", control::flows::register(engine).run(shutdown));
}

pub(crate) fn package(name: &str, memory: u64) -> NewPackage {
    NewPackage {
        id: None,
        name: name.to_owned(),
        version: "1.0.0".to_owned(),
        group: None,
        description: None,
        memory: Mib(memory),
        swap: None,
        disk: Mib(1024),
        max_processes: 500,
        vcpus: 0,
        cpu_cap: Some(CpuCap(100)),
        cpu_shares: CpuShares(100),
        traits: std::collections::BTreeMap::new(),
        brand: None,
    }
}

pub(crate) fn network(name: &str, range_end: Ipv4Addr) -> NewNetwork {
    NewNetwork {
        name: name.to_owned(),
        nic_tag: "ext".to_owned(),
        host_gateway: true,
        layout: Layout {
            subnet: Some("10.9.0.0/24".parse().expect("a subnet")),
            range_start: Some(Ipv4Addr::new(10, 9, 0, 2)),
            range_end: Some(range_end),
            gateway: Some(Ipv4Addr::new(10, 9, 0, 1)),
            resolvers: vec![Ipv4Addr::new(9, 9, 9, 9).into()],
            ..Layout::default()
        },
        ..NewNetwork::default()
    }
}

/// A wish for a network, laid out a little differently.
pub(crate) trait Laid: Sized {
    fn laid(self, change: impl FnOnce(&mut Layout)) -> Self;
}

impl Laid for NewNetwork {
    fn laid(mut self, change: impl FnOnce(&mut Layout)) -> Self {
        change(&mut self.layout);
        self
    }
}

impl Laid for NewFabricNetwork {
    fn laid(mut self, change: impl FnOnce(&mut Layout)) -> Self {
        change(&mut self.layout);
        self
    }
}

/// Bytes of the test image.
pub(crate) const CONTENT: &[u8] = b"a root file system";

pub(crate) fn manifest(id: ImageId, content: &[u8]) -> model::image::manifest::Manifest {
    use sha2::Digest as _;
    let sum: String = sha2::Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    let json = serde_json::json!({
        "v": 2, "uuid": id, "name": "minimal", "version": "1", "os": "linux", "type": "lx-dataset", "public": true,
        "files": [{"sha256": sum, "size": content.len(), "compression": "none"}],
    });
    model::image::manifest::parse(json.to_string().as_bytes()).expect("a good manifest")
}

/// `content` as it comes over the network: in pieces.
pub(crate) fn pieces(content: &[u8]) -> impl futures_util::Stream<Item = std::io::Result<bytes::Bytes>> + Unpin {
    let pieces: Vec<_> = content.chunks(7).map(|piece| Ok(bytes::Bytes::copy_from_slice(piece))).collect();
    futures_util::stream::iter(pieces)
}

async fn image(control: &Control, owner: AccountId) -> ImageId {
    let id = ImageId::random();
    images::create(control, owner, manifest(id, CONTENT)).await.expect("an image");
    images::add_file(control, id, pieces(CONTENT)).await.expect("its file");
    id
}

/// A machine that does as it is told, when the test says so.
pub(crate) struct Machine {
    pub(crate) id: ServerId,
    pub(crate) hostname: String,
    pub(crate) target: Option<Target>,
    pub(crate) zones: BTreeMap<InstanceId, ZoneFact>,
    /// Addresses of instances the target does not speak of.
    pub(crate) untold: BTreeMap<InstanceId, Vec<(NetworkId, IpAddr)>>,
    /// Instances it cannot make.
    pub(crate) broken: BTreeSet<InstanceId>,
    sequence: u64,
    said: Said,
}

impl Machine {
    pub(crate) fn new(world: &World) -> Self {
        let (zones, untold, broken) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        let hostname = "one".to_owned();
        Self { id: world.server, hostname, target: None, zones, untold, broken, sequence: 0, said: Said::default() }
    }

    /// Fetches the newest target if there is a newer one than it has.
    pub(crate) async fn fetch(&mut self, world: &World) {
        let have = self.target.as_ref().map_or(0, |target| target.generation);
        let newer = servers::watch_target(&world.control, self.id, have);
        let newer = tokio::time::timeout(PATIENCE, newer).await.expect("a newer target in time");
        let target = newer.expect("the machine is known").expect("a target");
        assert!(target.generation > have, "generations only rise");
        self.target = Some(target);
    }

    /// Fetches until the target says of `id` what the records say, then does it and reports.
    pub(crate) async fn obey(&mut self, world: &World, id: InstanceId) {
        let wanted = world.view(id).instance.intent;
        while self.told(id).is_none_or(|zone| {
            (zone.wanted, zone.starts, zone.reboots) != (wanted.wanted, wanted.starts, wanted.reboots)
        }) {
            self.fetch(world).await;
        }
        self.converge();
        self.report(world).await;
    }

    pub(crate) fn told(&self, id: InstanceId) -> Option<&ZoneTarget> {
        self.target.as_ref()?.zones.get(&id).map(|zone| &**zone)
    }

    /// Becomes what the target says.
    pub(crate) fn converge(&mut self) {
        let Some(target) = self.target.clone() else { return };
        for (id, zone) in &target.zones {
            let fact = self.zones.entry(*id).or_insert_with(blank);
            if self.broken.contains(id) && zone.wanted != Wanted::Absent {
                fact.state = ZoneState::Failed;
                fact.error = Some("the pool is full".to_owned());
                continue;
            }
            obey(fact, zone);
        }
        self.zones.retain(|id, fact| fact.state != ZoneState::Absent || target.zones.contains_key(id));
    }

    pub(crate) async fn report(&mut self, world: &World) {
        self.report_to(&world.control).await;
    }

    /// Says what is new since the last report, or everything when that is not known any more: as an agent does.
    async fn report_to(&mut self, control: &Control) {
        let report = self.compose();
        let news = self.said.news(&report);
        let answer = servers::apply_news(control, self.id, &news).await.expect("the report is taken");
        if !self.said.answered(report.clone(), answer.held) {
            assert!(matches!(news, ReportNews::Delta(_)), "a whole report is held afterwards");
            let whole = ReportNews::Whole(Box::new(report.clone()));
            let answer = servers::apply_news(control, self.id, &whole).await.expect("the report is taken");
            assert!(self.said.answered(report, answer.held), "it is held now");
        }
    }

    pub(crate) fn compose(&mut self) -> Report {
        self.sequence += 1;
        let generation = self.target.as_ref().map_or(0, |target| target.generation);
        Report {
            sequence: self.sequence,
            boot_id: "boot-1".to_owned(),
            target_seen: generation,
            firewall_seen: generation,
            hardware: Hardware { memory: Mib(1 << 20), cpus: 1_000, pool_size: Mib(1 << 30), ..Hardware::default() },
            zones: self.zones.iter().map(|(id, fact)| (*id, fact.clone().into())).collect(),
            untold_addresses: self.untold.clone(),
            headnode: self.target.as_ref().and_then(|target| target.headnode.as_deref()).map(as_told),
            ..Report::bare(self.id, self.hostname.clone())
        }
    }

    /// Does everything it is told until the test is over.
    pub(crate) fn runs_by_itself(mut self, control: Control) {
        base::task::spawn("machine", async move {
            loop {
                let have = self.target.as_ref().map_or(0, |target| target.generation);
                let Ok(Some(target)) = servers::watch_target(&control, self.id, have).await else { return };
                self.target = Some(target);
                self.converge();
                self.report_to(&control).await;
            }
        });
    }
}

/// A machine that takes on and gives up its role at once.
fn as_told(role: &HeadnodeRole) -> HeadnodeFact {
    let state = match role.wanted {
        HeadnodeWanted::Running => HeadnodeState::Ready,
        HeadnodeWanted::Absent => HeadnodeState::Absent,
    };
    HeadnodeFact { since: role.since, state, error: None }
}

pub(crate) fn blank() -> ZoneFact {
    ZoneFact {
        state: ZoneState::Absent,
        starts_done: 0,
        reboots_done: 0,
        started_at: None,
        exit: None,
        error: None,
        timeline: Vec::new(),
        limits: None,
        nics: Vec::new(),
        addresses6: BTreeMap::new(),
        gave_up: false,
        oom_kills: 0,
        guest_metadata: Vec::new(),
    }
}

fn obey(fact: &mut ZoneFact, zone: &ZoneTarget) {
    if zone.wanted == Wanted::Absent {
        *fact = blank();
        return;
    }
    let first = fact.starts_done == 0;
    let due = fact.starts_done < zone.starts || fact.reboots_done < zone.reboots;
    fact.error = None;
    if zone.wanted == Wanted::Stopped {
        fact.state = ZoneState::Stopped;
    } else if due {
        fact.state = ZoneState::Running;
        fact.started_at = Some(Timestamp(1));
    }
    fact.starts_done = zone.starts;
    fact.reboots_done = zone.reboots;
    fact.limits = Some(zone.limits.clone());
    fact.nics = zone.nics.iter().map(|nic| nic.mac).collect();
    fact.addresses6 = zone.nics.iter().filter_map(model::target::NicTarget::held6).collect();
    fact.guest_metadata.retain(|change| change.sequence > zone.guest_metadata_seen);
    if first {
        let phase = |name: &str, ms| Phase { name: name.to_owned(), at: zone.created_at, ms };
        fact.timeline = vec![phase("image", 0), phase("dataset", 1), phase("network", 2), phase("zone start", 3)];
    }
}
