//! A whole datacenter below a scratch directory, run by the `neso` binary beside this one, and a tenant's client for it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use cloudapi::{
    client::{Client, Profile, Signer},
    types::{Audit, CreateMachine, Machine, NetworkChoice},
};
use headnode::Settings;
use model::id::{InstanceId, NetworkId};

/// An instance gets this long to reach a state.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often we look. Times come from the records, so that looking rarely costs no precision.
const POLL: Duration = Duration::from_millis(50);

/// A running datacenter; gone with everything in it when dropped.
pub(crate) struct Datacenter {
    root: PathBuf,
    neso: PathBuf,
    /// Its settings.
    pub(crate) settings: Settings,
    /// Speaks as the tenant.
    pub(crate) client: Client,
    image: String,
    network: NetworkId,
}

/// One create, measured by the clock of the record itself.
pub(crate) struct Created {
    /// Which.
    pub(crate) id: InstanceId,
    /// From before the request was signed until init ran, milliseconds.
    pub(crate) running_ms: f64,
    /// Phases of the timeline: name and milliseconds.
    pub(crate) phases: Vec<(String, u64)>,
}

impl Datacenter {
    /// Starts one without throttling, with the minimal image and no first instance.
    pub(crate) async fn start(name: &str) -> Result<Self, String> {
        let root = PathBuf::from(format!("/tmp/neso-bench-{name}-{}", std::process::id()));
        let neso = sibling("neso")?;
        let text = Settings::generate(Some(&root)).map_err(|error| error.to_string())?;
        // A rooted datacenter has 256 user id ranges; a benchmark may fill a whole machine's.
        let text: Vec<&str> = text
            .lines()
            .map(|line| match line.split(' ').next() {
                Some("id_base") => "id_base = 268435456",
                Some("id_ranges") => "id_ranges = 1000",
                _ => line,
            })
            .collect();
        let text = text
            .join("\n")
            .replace("images = [\"minimal\", \"debian-12\"]", "images = [\"minimal\"]")
            .replace("instance_image = \"debian-12\"", "instance_image = \"\"")
            .replace("throttle_rate = 50", "throttle_rate = 0")
            .replace("memory_percent = 100", "memory_percent = 10000")
            .replace("cpu_percent = 400", "cpu_percent = 100000")
            .replace("disk_percent = 400", "disk_percent = 100000")
            .replace("throttle_rate = 50", "throttle_rate = 0");
        let file = root.join("etc/neso/neso.toml");
        write(&file, &text)?;
        let settings = Settings::load(&file).map_err(|error| error.to_string())?;
        run(&neso, &root, &["up"])?;
        let client = client(&settings, &root)?;
        let images = client.images(&[("state", "active")]).await.map_err(|error| error.to_string())?;
        let image = images.first().ok_or("the datacenter has no image")?.id.to_string();
        let networks = client.networks().await.map_err(|error| error.to_string())?;
        let network = networks.iter().find(|network| network.name == "external").ok_or("no network `external`")?.id;
        Ok(Self { root, neso, settings, client, image, network })
    }

    /// Creates an instance of the smallest package and waits until it runs.
    pub(crate) async fn create(&self) -> Result<Created, String> {
        self.create_as(CreateMachine::default()).await
    }

    /// The same with more wishes.
    pub(crate) async fn create_as(&self, wishes: CreateMachine) -> Result<Created, String> {
        let wanted = CreateMachine {
            package: "g1-nano".to_owned(),
            image: self.image.clone(),
            networks: vec![NetworkChoice::Id(self.network)],
            ..wishes
        };
        let began = now_ms();
        let made = self.client.machine_create(&wanted).await.map_err(|error| error.to_string())?;
        let id = made.id;
        self.wait(id, "running").await?;
        let entry = self.provision_entry(id).await?;
        let ended = entry.timeline.iter().map(|phase| phase.at.0 as f64 + phase.ms as f64).fold(0.0, f64::max);
        let phases = entry.timeline.iter().map(|phase| (phase.name.clone(), phase.ms)).collect();
        Ok(Created { id, running_ms: ended - began, phases })
    }

    /// The audit entry of the provision, which the flow writes a moment after the instance runs.
    async fn provision_entry(&self, id: InstanceId) -> Result<Audit<'static>, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let audit = self.client.machine_audit(id).await.map_err(|error| error.to_string())?;
            if let Some(entry) = audit.into_iter().find(|entry| entry.action == "provision") {
                return Ok(entry);
            }
            if Instant::now() > deadline {
                return Err(format!("instance {id} has no audit entry of its provision"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for a state of an instance.
    pub(crate) async fn wait(&self, id: InstanceId, state: &str) -> Result<Machine<'static>, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let machine = self.client.machine(id).await.map_err(|error| error.to_string())?;
            if machine.state == state {
                return Ok(machine);
            }
            if machine.state == "failed" || Instant::now() > deadline {
                return Err(format!("instance {id} is {} instead of {state}", machine.state));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Deletes an instance and waits until it is gone.
    pub(crate) async fn delete(&self, id: InstanceId) -> Result<(), String> {
        self.client.machine_delete(id).await.map_err(|error| error.to_string())?;
        self.wait(id, "deleted").await.map(drop)
    }

    /// Runs one of our commands as the tenant.
    pub(crate) fn as_tenant(&self, arguments: &[&str]) -> Result<(), String> {
        let signer = self.signer()?;
        let mut command = Command::new(&self.neso);
        command
            .arg("--root")
            .arg(&self.root)
            .args(arguments)
            .env("HOME", self.root.join("home"))
            .env("TRITON_URL", self.settings.cloudapi_url())
            .env("TRITON_ACCOUNT", &self.settings.first_run.tenant)
            .env("TRITON_KEY_ID", &signer.fingerprint_md5)
            .env("TRITON_TLS_INSECURE", "1");
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().map_err(|error| error.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("`neso {}` ended with {status}", arguments.join(" "))) }
    }

    /// A directory for a benchmark's own files.
    pub(crate) fn scratch(&self) -> &Path {
        &self.root
    }

    fn signer(&self) -> Result<Signer, String> {
        signer(&self.settings, &self.root)
    }

    /// Process id of the headnode or the node.
    pub(crate) fn pid(&self, process: &str) -> Result<u32, String> {
        let file = self.settings.paths.run.join(format!("{process}.pid"));
        let text = fs::read_to_string(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        text.split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok())
            .ok_or_else(|| format!("no pid in {}", file.display()))
    }
}

impl Drop for Datacenter {
    fn drop(&mut self) {
        for command in [&["down"][..], &["clean-data", "--yes"]] {
            if let Err(why) = run(&self.neso, &self.root, command) {
                eprintln!("bench: cleaning up: {why}");
            }
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> f64 {
    #[expect(clippy::disallowed_methods, reason = "a benchmark compares the machine's clock with the records")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1000.0)
}

/// Resident and private memory of a process in bytes, from the kernel's own sum.
pub(crate) fn memory(pid: u32) -> Option<(f64, f64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let sum = |names: &[&str]| -> f64 {
        let lines = text.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).sum::<f64>() * 1024.0
    };
    Some((sum(&["Rss:"]), sum(&["Private_Clean:", "Private_Dirty:"])))
}

/// A new Ed25519 key made by OpenSSH: what signs, and the public line.
pub(crate) fn fresh_key() -> Result<(Signer, String), String> {
    let directory = PathBuf::from(format!("/tmp/neso-bench-key-{}", std::process::id()));
    let path = directory.join("id");
    fs::create_dir_all(&directory).map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status();
    let key = match made {
        Ok(status) if status.success() => Signer::from_file(&path).map_err(|error| error.to_string()),
        Ok(status) => Err(format!("ssh-keygen ended with {status}")),
        Err(error) => Err(format!("cannot run ssh-keygen: {error}")),
    };
    let public = fs::read_to_string(path.with_extension("pub")).unwrap_or_default();
    let _ = fs::remove_dir_all(&directory);
    Ok((key?, public.trim().to_owned()))
}

pub(crate) fn sibling(name: &str) -> Result<PathBuf, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let path = program.with_file_name(name);
    if path.exists() { Ok(path) } else { Err(format!("{} does not exist: build it first", path.display())) }
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), String> {
    let parent = path.parent().ok_or("a settings file lies in a directory")?;
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(path, text))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn run(neso: &Path, root: &Path, arguments: &[&str]) -> Result<(), String> {
    let status = Command::new(neso)
        .arg("--root")
        .arg(root)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(|error| format!("cannot run {}: {error}", neso.display()))?;
    if status.success() { Ok(()) } else { Err(format!("`neso {}` ended with {status}", arguments.join(" "))) }
}

fn signer(settings: &Settings, root: &Path) -> Result<Signer, String> {
    let directory = settings.first_run.key_directory.clone().unwrap_or_else(|| root.join("ssh"));
    Signer::from_file(&directory.join("id_neso")).map_err(|error| error.to_string())
}

fn client(settings: &Settings, root: &Path) -> Result<Client, String> {
    let signer = signer(settings, root)?;
    let profile = Profile {
        name: "bench".to_owned(),
        url: settings.cloudapi_url(),
        account: settings.first_run.tenant.clone(),
        act_as: None,
        key_id: signer.fingerprint_md5.clone(),
        insecure: true,
        ca_file: None,
    };
    Client::new(&profile, signer, || (now_ms() / 1000.0) as i64).map_err(|error| error.to_string())
}
