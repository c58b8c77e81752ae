//! The headnode's files with everybody in them, and the processes: one headnode with its store in a file, or several with a member of the
//! store beside each, as the product runs them.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child as Process, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use base::{
    clock::{Clock as _, SystemClock},
    shutdown::{Shutdown, Trigger},
};
use bytes::Bytes;
use cloudapi::client::{Client, Profile, Signer};
use control::{Control, ControlConfig, accounts, images, networks, packages, servers};
use headnode::{
    Settings,
    members::{
        file::{ClusterFile, MemberFile},
        open_store, process,
    },
    pki,
};
use model::{
    id::{AccountId, ImageId, NetworkId, ServerId},
    image::{Compression, ImageKind, Requirements, manifest},
    layout::Layout,
    time::Timestamp,
    unit::{CpuShares, Mib},
};
use store::Store;

use super::{FLOOR, NODES, watch::Watched};
use crate::datacenter::{fresh_key, now_ms, sibling, write};

/// Tenants.
pub(crate) const TENANTS: usize = 20;
/// An empty archive, and its SHA-256.
const ARCHIVE: [u8; 1024] = [0; 1024];
const ARCHIVE_SHA256: &str = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
/// The settings' file below a root.
const SETTINGS: &str = "etc/neso/neso.toml";
/// A process has this long to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the head of this file.
pub(crate) struct Stage {
    root: PathBuf,
    /// The first headnode's.
    pub(crate) settings: Settings,
    /// The other headnodes': where, and their settings.
    others: Vec<(PathBuf, Settings)>,
    /// The members of the store, as long as they run.
    members: Vec<Child>,
    pub(crate) image: ImageId,
    pub(crate) network: NetworkId,
    /// The first tenant.
    pub(crate) owner: AccountId,
    /// One client per tenant.
    pub(crate) clients: Vec<Client>,
    /// The first tenant's at each headnode.
    pub(crate) doors: Vec<Client>,
}

/// A process of ours; gone when dropped.
pub(crate) struct Child(Process);

impl Stage {
    /// Makes the files of a headnode that knows `machines` machines and the tenants.
    pub(crate) async fn new(machines: usize) -> Result<Self, String> {
        Self::of(machines, 1).await
    }

    /// The same of so many headnodes. Where there are several, the members of their store run when this returns.
    pub(crate) async fn of(machines: usize, headnodes: usize) -> Result<Self, String> {
        let root = PathBuf::from(format!("/tmp/neso-bench-fleet-{}", std::process::id()));
        let settings = settings_at(&root)?;
        let mut others = Vec::new();
        for number in 1..headnodes {
            let beside = root.join(format!("headnode{number}"));
            let settings = settings_like(&root, &settings, &beside)?;
            others.push((beside, settings));
        }
        pki::ensure(&settings, Timestamp(SystemClock.now_ms())).map_err(|error| error.to_string())?;
        let mut stage = Self {
            root,
            settings,
            others,
            members: Vec::new(),
            image: ImageId::random(),
            network: NetworkId::random(),
            owner: AccountId::random(),
            clients: Vec::new(),
            doors: Vec::new(),
        };
        if headnodes > 1 {
            stage.join()?;
            stage.start_members()?;
        }
        let mut keys: Vec<_> = (0..TENANTS).map(|_| fresh_key()).collect::<Result<_, _>>()?;
        let mut lines: Vec<(usize, String)> =
            keys.iter().enumerate().map(|(tenant, (_, line))| (tenant, line.clone())).collect();
        for settings in stage.everybody().map(|(_, settings)| settings.clone()).collect::<Vec<_>>() {
            let (signer, line) = fresh_key()?;
            lines.push((0, line));
            stage.doors.push(client(&settings, 0, signer)?);
        }
        stage.furnish(machines, &lines).await.map_err(|error| base::errors::chain(&error))?;
        for (tenant, (signer, _)) in keys.drain(..).enumerate() {
            stage.clients.push(client(&stage.settings, tenant, signer)?);
        }
        Ok(stage)
    }

    /// Every headnode's directory and settings, the first one's first.
    fn everybody(&self) -> impl Iterator<Item = (&PathBuf, &Settings)> {
        std::iter::once((&self.root, &self.settings)).chain(self.others.iter().map(|(root, settings)| (root, settings)))
    }

    /// Makes the others headnodes of one datacenter with the first, whose store is in a new cluster of as many members.
    fn join(&self) -> Result<(), String> {
        let now = Timestamp(SystemClock.now_ms());
        pki::make_store_authority(&self.settings, now).map_err(|error| base::errors::chain(&error))?;
        for (_, settings) in &self.others {
            for name in ["ca.pem", "ca.key", "store-ca.pem", "store-ca.key"] {
                let (from, to) = (self.settings.pki_dir(), settings.pki_dir());
                fs::create_dir_all(&to)
                    .and_then(|()| fs::copy(from.join(name), to.join(name)))
                    .map_err(|error| format!("cannot hand over {name}: {error}"))?;
            }
            pki::ensure(settings, now).map_err(|error| base::errors::chain(&error))?;
        }
        let ids: Vec<ServerId> = self
            .everybody()
            .map(|(_, settings)| pki::ensure(settings, now).map(|(pki, _)| pki.server_id))
            .collect::<Result<_, _>>()
            .map_err(|error| base::errors::chain(&error))?;
        let addresses: Vec<(String, String)> =
            self.everybody().map(|(_, settings)| process::addresses(settings, None)).collect();
        let peers: Vec<String> =
            ids.iter().zip(&addresses).map(|(id, (_, peer))| format!("{id}=https://{peer}")).collect();
        let endpoints: Vec<String> = addresses.iter().map(|(client, _)| format!("https://{client}")).collect();
        for ((_, settings), (id, (client, peer))) in self.everybody().zip(ids.iter().zip(&addresses)) {
            let member = MemberFile {
                name: id.to_string(),
                client: client.clone(),
                peer: peer.clone(),
                token: format!("bench-{}", std::process::id()),
                initial_cluster: peers.join(","),
                first: true,
                started: false,
            };
            ClusterFile::in_members(Some(member), endpoints.clone())
                .save(settings)
                .map_err(|error| base::errors::chain(&error))?;
        }
        Ok(())
    }

    /// Starts the members, without waiting for anything.
    pub(crate) fn start_members(&mut self) -> Result<(), String> {
        let roots: Vec<PathBuf> = self.everybody().map(|(root, _)| root.clone()).collect();
        for root in roots {
            let member = self.start(Command::new(sibling("neso")?).arg("--root").arg(root).arg("member"))?;
            self.members.push(member);
        }
        Ok(())
    }

    /// Kills them where they stand.
    pub(crate) fn kill_members(&mut self) {
        self.members.drain(..).for_each(Child::kill);
    }

    /// They.
    pub(crate) fn members(&self) -> &[Child] {
        &self.members
    }

    /// Starts headnode `number` without waiting for anything.
    pub(crate) fn start_headnode(&self, number: usize) -> Result<Child, String> {
        let (root, _) = self.everybody().nth(number).ok_or("there is no such headnode")?;
        self.start(Command::new(sibling("neso")?).arg("--root").arg(root).arg("headnode"))
    }

    /// What the program says to a question asked at headnode `number`.
    pub(crate) fn asked(&self, number: usize, question: &[&str]) -> Result<serde_json::Value, String> {
        let (root, _) = self.everybody().nth(number).ok_or("there is no such headnode")?;
        let output = Command::new(sibling("neso")?).arg("--root").arg(root).args(question).output();
        let output = output.map_err(|error| format!("cannot run neso: {error}"))?;
        match output.status.success() {
            true => serde_json::from_slice(&output.stdout).map_err(|error| format!("{question:?} answers: {error}")),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    /// The datacenter's records, as a headnode opens them. No headnode may run over a file meanwhile.
    pub(crate) async fn store(&self) -> Result<Store, String> {
        let begun = Instant::now();
        loop {
            // Not one of the headnodes' ids: that would take their mark.
            let opened = open_store(&self.settings, ServerId::random(), Arc::new(SystemClock)).await;
            match opened {
                Ok((engine, _)) => {
                    let store = Store::open(engine, control::schema()).await;
                    return store.map_err(|error| base::errors::chain(&error));
                }
                Err(error) if begun.elapsed() > PATIENCE => return Err(base::errors::chain(&error)),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// A control plane over them, which ends with what else is returned.
    pub(crate) async fn control(&self) -> Result<(Control, Trigger), String> {
        let directory = self.settings.headnode_dir();
        let (trigger, shutdown) = Shutdown::new();
        let config = ControlConfig::new("bench", directory.join("images"));
        Ok((Control::start(self.store().await?, Arc::new(SystemClock), config, shutdown), trigger))
    }

    /// Starts the headnode and waits until it listens.
    pub(crate) fn headnode(&self) -> Result<Child, String> {
        self.headnode_number(0)
    }

    /// The same with another one.
    pub(crate) fn headnode_number(&self, number: usize) -> Result<Child, String> {
        let (_, settings) = self.everybody().nth(number).ok_or("there is no such headnode")?;
        self.listening(settings, self.start_headnode(number)?)
    }

    /// Starts the floor in its place.
    pub(crate) fn floor(&self) -> Result<Child, String> {
        let child = self.start(Command::new(sibling("bench")?).arg(FLOOR).arg(&self.root))?;
        self.listening(&self.settings, child)
    }

    /// Starts the agents.
    pub(crate) fn agents(&self) -> Result<Watched, String> {
        let mut command = Command::new(sibling("bench")?);
        Watched::start(command.arg(NODES).arg(&self.root))
    }

    /// Bytes of all connections of machines that are open, both ways, as TCP counts them.
    pub(crate) fn bytes(&self) -> f64 {
        let port = self.settings.listen.node_link.port();
        let listed = Command::new("ss").args(["-tinH", &format!("sport = :{port}")]).output();
        let text = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let count = |word: &str| {
            ["bytes_sent:", "bytes_received:"].iter().find_map(|name| word.strip_prefix(name)?.parse::<f64>().ok())
        };
        text.split_whitespace().filter_map(count).sum()
    }

    fn start(&self, command: &mut Command) -> Result<Child, String> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.root.join("log"));
        let log = log.map_err(|error| format!("cannot open the log: {error}"))?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        child.map(Child).map_err(|error| format!("cannot start {command:?}: {error}"))
    }

    fn listening(&self, settings: &Settings, mut child: Child) -> Result<Child, String> {
        let begun = Instant::now();
        while TcpStream::connect(settings.listen.node_link).is_err() {
            if let Ok(Some(status)) = child.0.try_wait() {
                let log = fs::read_to_string(self.root.join("log")).unwrap_or_default();
                return Err(format!("the server ended with {status}: {log}"));
            }
            if begun.elapsed() > PATIENCE {
                return Err("the server does not listen".to_owned());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(child)
    }

    async fn furnish(&mut self, machines: usize, keys: &[(usize, String)]) -> Result<(), control::Error> {
        let images_dir = self.settings.headnode_dir().join("images");
        let file = |source| control::Error::File { operation: format!("make {}", images_dir.display()), source };
        fs::create_dir_all(&images_dir).map_err(file)?;
        let (control, trigger) = self.control().await.map_err(control::Error::Unavailable)?;
        let mut tenants = Vec::new();
        for number in 0..TENANTS {
            let new = accounts::NewAccount { login: format!("tenant{number}"), ..accounts::NewAccount::default() };
            tenants.push(accounts::create(&control, new).await?.id);
        }
        for (tenant, key) in keys {
            accounts::keys::add(&control, tenants[*tenant], None, key).await?;
        }
        self.owner = tenants[0];
        packages::create(&control, package()).await?;
        self.network = networks::create(&control, network()).await?.id;
        images::create(&control, self.owner, manifest_of(self.image)).await?;
        let content = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(&ARCHIVE))]);
        images::add_file(&control, self.image, content).await?;
        let mut known = String::new();
        for number in 0..machines {
            let id = ServerId::random();
            let new = servers::NewServer { hostname: format!("node{number}"), ..Default::default() };
            servers::register(&control, id, new).await?;
            known.push_str(&format!("{id}\n"));
        }
        fs::write(self.root.join("servers"), known).map_err(file)?;
        let links: Vec<String> = self.everybody().map(|(_, settings)| settings.listen.node_link.to_string()).collect();
        fs::write(self.root.join("links"), links.join("\n")).map_err(file)?;
        trigger.fire();
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.kill_members();
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Child {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends it as a loss of power does.
    pub(crate) fn kill(mut self) {
        // It is ours and was not waited for, so that can only fail where it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Processor time so far.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.pid())
    }
}

/// Processor time of a process so far.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    /// Of the kernel's clock, on every architecture we know.
    const TICKS_PER_SECOND: f64 = 100.0;
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything, in brackets.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = Command::new("kill").arg(self.0.id().to_string()).status();
            let _ = self.0.wait();
        }
    }
}

fn settings_at(root: &Path) -> Result<Settings, String> {
    let text = Settings::generate(Some(root)).map_err(|error| error.to_string())?;
    let file = root.join(SETTINGS);
    write(&file, &text.replace("throttle_rate = 50", "throttle_rate = 0"))?;
    Settings::load(&file).map_err(|error| error.to_string())
}

/// Another headnode's: where it listens and lies is its own, all else must be the same.
fn settings_like(first: &Path, of_first: &Settings, root: &Path) -> Result<Settings, String> {
    let own = settings_at(root)?;
    let text = fs::read_to_string(first.join(SETTINGS)).map_err(|error| format!("cannot read settings: {error}"))?;
    let mut text = text.replace(&first.display().to_string(), &root.display().to_string());
    let (theirs, ours) = (&of_first.listen, &own.listen);
    for (from, to) in [(theirs.cloudapi, ours.cloudapi), (theirs.node_link, ours.node_link), (theirs.ops, ours.ops)] {
        text = text.replace(&format!("\"{from}\""), &format!("\"{to}\""));
    }
    write(&root.join(SETTINGS), &text)?;
    Settings::load(&root.join(SETTINGS)).map_err(|error| error.to_string())
}

fn client(settings: &Settings, tenant: usize, signer: Signer) -> Result<Client, String> {
    let profile = Profile {
        name: "bench".to_owned(),
        url: settings.cloudapi_url(),
        account: format!("tenant{tenant}"),
        act_as: None,
        key_id: signer.fingerprint_md5.clone(),
        insecure: true,
        ca_file: None,
    };
    Client::new(&profile, signer, || (now_ms() / 1000.0) as i64).map_err(|error| error.to_string())
}

fn package() -> packages::NewPackage {
    packages::NewPackage {
        id: None,
        name: "tiny".to_owned(),
        version: "1.0.0".to_owned(),
        group: None,
        description: None,
        memory: Mib(128),
        swap: None,
        disk: Mib(1024),
        max_processes: 500,
        vcpus: 0,
        cpu_cap: None,
        cpu_shares: CpuShares(100),
        traits: std::collections::BTreeMap::new(),
        brand: None,
    }
}

fn network() -> networks::NewNetwork {
    networks::NewNetwork {
        name: "wide".to_owned(),
        nic_tag: "wide".to_owned(),
        layout: Layout {
            subnet: Some("10.0.0.0/12".parse().expect("the constant is a subnet")),
            gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
            ..Layout::default()
        },
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
