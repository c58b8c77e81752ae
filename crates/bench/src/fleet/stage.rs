//! The headnode's files with everybody in them, and the processes.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    process::{Child as Process, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use base::{
    clock::{Clock as _, SystemClock},
    shutdown::Shutdown,
};
use bytes::Bytes;
use cloudapi::client::{Client, Profile};
use control::{Control, ControlConfig, accounts, images, networks, packages, servers};
use headnode::{Settings, pki};
use model::{
    id::{ImageId, NetworkId, ServerId},
    image::{Compression, ImageKind, Requirements, manifest},
    layout::Layout,
    time::Timestamp,
    unit::{CpuShares, Mib},
};
use store::{Store, sqlite::Sqlite};

use super::{FLOOR, NODES, watch::Watched};
use crate::datacenter::{fresh_key, now_ms, sibling, write};

/// Tenants.
pub(crate) const TENANTS: usize = 20;
/// An empty archive, and its SHA-256.
const ARCHIVE: [u8; 1024] = [0; 1024];
const ARCHIVE_SHA256: &str = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
/// A process has this long to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the head of this file.
pub(crate) struct Stage {
    root: PathBuf,
    pub(crate) settings: Settings,
    pub(crate) image: ImageId,
    pub(crate) network: NetworkId,
    /// One client per tenant.
    pub(crate) clients: Vec<Client>,
}

/// A process of ours; gone when dropped.
pub(crate) struct Child(Process);

impl Stage {
    /// Makes the files of a headnode that knows `machines` machines and the tenants.
    pub(crate) async fn new(machines: usize) -> Result<Self, String> {
        let root = PathBuf::from(format!("/tmp/neso-bench-fleet-{}", std::process::id()));
        let text = Settings::generate(Some(&root)).map_err(|error| error.to_string())?;
        let text = text.replace("throttle_rate = 50", "throttle_rate = 0");
        let file = root.join("etc/neso/neso.toml");
        write(&file, &text)?;
        let settings = Settings::load(&file).map_err(|error| error.to_string())?;
        pki::ensure(&settings, Timestamp(SystemClock.now_ms())).map_err(|error| error.to_string())?;
        let mut stage =
            Self { root, settings, image: ImageId::random(), network: NetworkId::random(), clients: Vec::new() };
        let keys: Vec<_> = (0..TENANTS).map(|_| fresh_key()).collect::<Result<_, _>>()?;
        let lines: Vec<String> = keys.iter().map(|(_, line)| line.clone()).collect();
        stage.furnish(machines, &lines).await.map_err(|error| base::errors::chain(&error))?;
        for (number, (signer, _)) in keys.into_iter().enumerate() {
            let profile = Profile {
                name: "bench".to_owned(),
                url: stage.settings.cloudapi_url(),
                account: format!("tenant{number}"),
                act_as: None,
                key_id: signer.fingerprint_md5.clone(),
                insecure: true,
                ca_file: None,
            };
            let client = Client::new(&profile, signer, || (now_ms() / 1000.0) as i64);
            stage.clients.push(client.map_err(|error| error.to_string())?);
        }
        Ok(stage)
    }

    /// Starts the headnode and waits until it listens.
    pub(crate) fn headnode(&self) -> Result<Child, String> {
        let child = self.start(Command::new(sibling("neso")?).arg("--root").arg(&self.root).arg("headnode"))?;
        self.listening(child)
    }

    /// Starts the floor in its place.
    pub(crate) fn floor(&self) -> Result<Child, String> {
        let child = self.start(Command::new(sibling("bench")?).arg(FLOOR).arg(&self.root))?;
        self.listening(child)
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

    fn listening(&self, mut child: Child) -> Result<Child, String> {
        let begun = Instant::now();
        while TcpStream::connect(self.settings.listen.node_link).is_err() {
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

    async fn furnish(&mut self, machines: usize, keys: &[String]) -> Result<(), control::Error> {
        let directory = self.settings.headnode_dir();
        let images_dir = directory.join("images");
        let file = |source| control::Error::File { operation: format!("make {}", images_dir.display()), source };
        fs::create_dir_all(&images_dir).map_err(file)?;
        let unavailable = |error: &dyn std::error::Error| control::Error::Unavailable(base::errors::chain(error));
        let engine = Sqlite::open(&directory.join("store.db")).await.map_err(|error| unavailable(&error))?;
        let store = Store::open(Arc::new(engine), control::schema()).await.map_err(|error| unavailable(&error))?;
        let (trigger, shutdown) = Shutdown::new();
        let config = ControlConfig::new("bench", &images_dir);
        let control = Control::start(store, Arc::new(SystemClock), config, shutdown);
        let mut owner = None;
        for (number, key) in keys.iter().enumerate() {
            let new = accounts::NewAccount { login: format!("tenant{number}"), ..accounts::NewAccount::default() };
            let id = accounts::create(&control, new).await?.id;
            accounts::keys::add(&control, id, None, key).await?;
            owner.get_or_insert(id);
        }
        packages::create(&control, package()).await?;
        self.network = networks::create(&control, network()).await?.id;
        if let Some(owner) = owner {
            images::create(&control, owner, manifest_of(self.image)).await?;
        }
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
        trigger.fire();
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Child {
    /// Processor time so far.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        /// Of the kernel's clock, on every architecture we know.
        const TICKS_PER_SECOND: f64 = 100.0;
        let text = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap_or_default();
        // Behind the name, which may hold anything, in brackets.
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(11) + ticks(12)) / TICKS_PER_SECOND
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
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
