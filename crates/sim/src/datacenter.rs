//! The parts: a machine and a store that survive everything, a headnode and an agent that come and go.

use std::{
    io,
    net::Ipv4Addr,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use base::shutdown::{Shutdown, Trigger};
use bytes::Bytes;
use control::{Control, ControlConfig, accounts, images, networks, packages, servers};
use host::fake::{FakeMachine, Mortal};
use model::{
    id::{AccountId, ImageId, NetworkId, ServerId},
    image::{Compression, ImageKind, Requirements, manifest},
    time::Timestamp,
    unit::{CpuShares, Mib},
};
use node::{Agent, AgentConfig, Execution, IdRanges};
use store::{Store, memory::Memory};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    clock::VirtualClock,
    link::{Cable, SimLink},
};

/// An empty tar archive, and its SHA-256.
const ARCHIVE: [u8; 1024] = [0; 1024];
const ARCHIVE_SHA256: &str = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// Addresses of the network: few, so that they are used again all the time.
const SUBNET: &str = "10.88.0.0/27";

/// Names of the packages, smallest first.
pub const PACKAGES: [&str; 3] = ["small", "medium", "large"];

/// A datacenter with one machine.
pub struct Datacenter {
    /// The machine; survives agents.
    pub machine: FakeMachine,
    /// The tenant.
    pub account: AccountId,
    /// The image there is.
    pub image: ImageId,
    /// The networks there are.
    pub networks: Vec<NetworkId>,
    /// The control plane's newest handle, for looking.
    pub control: Control,
    pub(crate) cable: Arc<Cable>,
    engine: Arc<Memory>,
    clock: Arc<VirtualClock>,
    config: ControlConfig,
    server: ServerId,
    headnode: Option<Headnode>,
    agent: Option<Running>,
    directory: tempfile::TempDir,
}

struct Headnode {
    trigger: Trigger,
    tasks: Vec<JoinHandle<()>>,
}

struct Running {
    mortal: Mortal,
    alive: watch::Sender<bool>,
    _trigger: Trigger,
}

impl Datacenter {
    /// A datacenter ready for tenants: account, packages, networks, image and machine are there, headnode and agent run.
    pub async fn start(seed: u64) -> Result<Self, control::Error> {
        let directory = tempfile::tempdir().map_err(|source| control::Error::File {
            operation: "make a directory for a simulation".to_owned(),
            source,
        })?;
        let config = ControlConfig::new("sim", directory.path().join("images"));
        let clock = Arc::new(VirtualClock::new());
        let engine = Arc::new(Memory::new());
        let (control, headnode) = start_headnode(engine.clone(), clock.clone(), config.clone()).await?;
        let server = ServerId::from_random(base::random::wide_bits());
        let (account, image, networks) = furnish(&control, server).await?;
        let cable = Cable::new(seed);
        cable.headnode.send_replace(Some(control.clone()));
        let mut this = Self {
            machine: FakeMachine::new(),
            account,
            image,
            networks,
            control,
            cable,
            engine,
            clock,
            config,
            server,
            headnode: Some(headnode),
            agent: None,
            directory,
        };
        this.start_agent();
        Ok(this)
    }

    /// Kills the agent on the spot, if one lives, as SIGKILL would.
    pub fn kill_agent(&mut self) {
        if let Some(running) = self.agent.take() {
            running.mortal.kill();
            running.alive.send_replace(false);
        }
    }

    /// Starts an agent, unless one lives.
    pub fn start_agent(&mut self) {
        if self.agent.is_some() {
            return;
        }
        self.tell_time();
        let mortal = Mortal::new(self.machine.host(), None);
        let (alive, living) = watch::channel(true);
        let link = SimLink { cable: self.cable.clone(), alive: living, server: self.server };
        let data = self.node_dir();
        let config = AgentConfig {
            id_ranges: IdRanges { first: 1 << 28, count: 64 },
            execution: Execution::Inline,
            ..AgentConfig::new(self.server, data.join("data"), data.join("control"))
        };
        let agent = Agent::new(mortal.host(), Arc::new(link), config, self.clock.clone());
        let (trigger, shutdown) = Shutdown::new();
        base::task::spawn("simulated agent", agent.run(shutdown));
        self.agent = Some(Running { mortal, alive, _trigger: trigger });
    }

    /// The machine loses power and boots; its agent starts with it.
    pub fn reboot_machine(&mut self) {
        self.kill_agent();
        self.machine.reboot();
        self.start_agent();
    }

    /// Ends the headnode in order and starts it again on the same store.
    pub async fn restart_headnode(&mut self) -> Result<(), control::Error> {
        self.cable.headnode.send_replace(None);
        if let Some(headnode) = self.headnode.take() {
            headnode.trigger.fire();
            for task in headnode.tasks {
                // A task that panicked was told where it happened; the invariants see what it left.
                let _ = task.await;
            }
        }
        let (control, headnode) = start_headnode(self.engine.clone(), self.clock.clone(), self.config.clone()).await?;
        self.control = control.clone();
        self.headnode = Some(headnode);
        self.cable.headnode.send_replace(Some(control));
        Ok(())
    }

    /// Cuts the cable.
    pub fn cut(&self) {
        self.cable.headnode.send_replace(None);
    }

    /// Mends the cable; it may stay bad.
    pub fn mend(&self, bad: bool) {
        self.cable.bad.store(bad, Ordering::Relaxed);
        self.cable.headnode.send_replace(Some(self.control.clone()));
    }

    /// Whether the cable is cut.
    pub fn is_cut(&self) -> bool {
        self.cable.headnode.borrow().is_none()
    }

    /// Whether an agent lives.
    pub fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    /// Sets the machine's clock.
    pub fn tell_time(&self) {
        use base::clock::Clock as _;
        self.machine.set_now(Timestamp(self.clock.now_ms()));
    }

    /// Where the agent keeps its files.
    pub fn node_dir(&self) -> std::path::PathBuf {
        self.directory.path().join("node")
    }
}

/// Opens the store and starts everything a headnode runs.
async fn start_headnode(
    engine: Arc<Memory>,
    clock: Arc<VirtualClock>,
    config: ControlConfig,
) -> Result<(Control, Headnode), control::Error> {
    let store = Store::open(engine, control::schema())
        .await
        .map_err(|error| control::Error::Unavailable(base::errors::chain(&error)))?;
    let (trigger, shutdown) = Shutdown::new();
    let control = Control::start(store.clone(), clock.clone(), config, shutdown.clone());
    let flows = control::flows::register(flow::Engine::new(store, clock.clone(), control.clone()));
    let mut loops = flow::loops::Loops::new(clock);
    control::loops::add_all(&mut loops, &control);
    let tasks = vec![
        base::task::spawn("simulated flows", flows.run(shutdown.clone())),
        base::task::spawn("simulated loops", loops.run(shutdown)),
    ];
    Ok((control, Headnode { trigger, tasks }))
}

/// Makes what tenants need.
async fn furnish(control: &Control, server: ServerId) -> Result<(AccountId, ImageId, Vec<NetworkId>), control::Error> {
    let new = accounts::NewAccount { login: "tenant".to_owned(), ..accounts::NewAccount::default() };
    let account = accounts::create(control, new).await?.id;
    for (name, size) in PACKAGES.into_iter().zip(1u64..) {
        packages::create(control, package(name, size)).await?;
    }
    let mut made = Vec::new();
    for (name, tag) in [("external", "ext"), ("private", "priv")] {
        made.push(networks::create(control, network(name, tag)).await?.id);
    }
    let image = ImageId::from_random(base::random::wide_bits());
    images::create(control, account, manifest_of(image)).await?;
    let content = futures_util::stream::iter([Ok::<_, io::Error>(Bytes::from_static(&ARCHIVE))]);
    images::add_file(control, image, content).await?;
    servers::register(control, server, servers::NewServer { hostname: "sim".to_owned(), ..Default::default() }).await?;
    Ok((account, image, made))
}

fn package(name: &str, size: u64) -> packages::NewPackage {
    packages::NewPackage {
        id: None,
        name: name.to_owned(),
        version: "1.0.0".to_owned(),
        group: None,
        description: None,
        memory: Mib(128 * size),
        swap: None,
        disk: Mib(1024 * size),
        max_processes: 500,
        vcpus: 0,
        cpu_cap: None,
        cpu_shares: CpuShares(100),
        traits: std::collections::BTreeMap::new(),
        brand: None,
    }
}

fn network(name: &str, tag: &str) -> networks::NewNetwork {
    let subnet = SUBNET.parse().expect("the constant is a subnet");
    networks::NewNetwork {
        name: name.to_owned(),
        description: None,
        owners: Vec::new(),
        public: false,
        nic_tag: tag.to_owned(),
        vlan: 0,
        subnet,
        range_start: None,
        range_end: None,
        gateway: Some(Ipv4Addr::new(10, 88, 0, 1)),
        resolvers: Vec::new(),
        routes: std::collections::BTreeMap::new(),
        mtu: 1500,
        host_gateway: tag == "ext",
        nat: tag == "ext",
        ..networks::NewNetwork::default()
    }
}

fn manifest_of(id: ImageId) -> manifest::Manifest {
    manifest::Manifest {
        id,
        name: "empty".to_owned(),
        version: "1".to_owned(),
        description: None,
        homepage: None,
        eula: None,
        os: "linux".to_owned(),
        kind: ImageKind::LxDataset,
        public: true,
        acl: Vec::new(),
        tags: std::collections::BTreeMap::new(),
        requirements: Requirements::default(),
        published_at: None,
        file: manifest::ExpectedFile {
            sha1: None,
            sha256: Some(ARCHIVE_SHA256.to_owned()),
            size: Some(ARCHIVE.len() as u64),
            compression: Compression::None,
        },
    }
}

/// Files left in a directory.
pub(crate) fn files_in(path: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
}
