//! A place of its own for each test: directories, control groups, ids; and roots made of busybox.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use host::{
    linux::zone::{LinuxZones, ZonesConfig},
    zone::{IdRange, ZoneSpec, ZoneStatus, Zones},
};
use model::{
    id::InstanceId,
    target::Limits,
    unit::{CpuShares, Mib},
};

/// How long anything here may take on a loaded machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

static COUNT: AtomicU32 = AtomicU32::new(0);

pub(super) struct Site {
    pub(super) directory: tempfile::TempDir,
    pub(super) zones: Option<LinuxZones>,
    number: u32,
}

impl Site {
    pub(super) fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the kernel tier of these tests needs root");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::Builder::new().prefix("neso-zones-").tempdir_in("/var/tmp").expect("a directory");
        let mut site = Self { directory, zones: None, number };
        site.agent_starts();
        site
    }

    pub(super) fn config(&self) -> ZonesConfig {
        ZonesConfig {
            run_dir: self.directory.path().join("run"),
            log_dir: self.directory.path().join("log"),
            cgroup_parent: format!("nztest-{}-{}", std::process::id(), self.number),
            supervisor: vec![env!("CARGO_BIN_EXE_zone-supervisor").into()],
        }
    }

    /// Drops the agent's handle, as its death would, and opens another.
    pub(super) fn agent_starts(&mut self) {
        self.zones = None;
        self.zones = Some(LinuxZones::new(self.config()).expect("this machine can hold zones"));
    }

    pub(super) fn zones(&self) -> &LinuxZones {
        self.zones.as_ref().expect("an agent runs")
    }

    /// A root of busybox and nothing else.
    pub(super) fn root(&self, name: &str) -> PathBuf {
        let root = self.directory.path().join("roots").join(name);
        for directory in ["bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp", "root"] {
            fs::create_dir_all(root.join(directory)).expect("make a directory");
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        for applet in [
            "sh", "cat", "ls", "id", "sleep", "echo", "mount", "ps", "hostname", "dd", "mkdir", "true", "unshare",
            "kill", "ping", "readlink", "test", "touch", "wc", "grep", "yes", "head", "stat", "mknod", "chown", "ip",
            "halt", "poweroff", "reboot",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
        }
        std::os::unix::fs::symlink("../bin/busybox", root.join("sbin/init")).expect("link init");
        root
    }

    /// A specification that runs `script` as init.
    pub(super) fn spec(&self, name: &str, script: &str) -> ZoneSpec {
        let control_dir = self.directory.path().join("control").join(name);
        fs::create_dir_all(&control_dir).expect("make the control directory");
        ZoneSpec {
            instance: InstanceId::random(),
            hostname: name.to_owned(),
            ids: IdRange { first: IdRange::BASE + (0x1000 + self.number) * IdRange::COUNT, count: IdRange::COUNT },
            root: self.root(name),
            init: vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()],
            limits: limits(),
            control_dir,
            resolv_conf: Some("nameserver 192.0.2.1\n".to_owned()),
            hosts: Some("127.0.0.1 localhost\n".to_owned()),
        }
    }

    /// Prepares and starts.
    pub(super) fn run(&self, spec: &ZoneSpec) -> ZoneStatus {
        self.zones().prepare(spec.instance, spec.ids).expect("prepare");
        self.zones().start(spec).expect("start")
    }

    /// Runs a script as init to its end and returns what it wrote to its console.
    pub(super) fn output(&self, spec: &ZoneSpec) -> String {
        self.run(spec);
        self.until_ended(spec.instance);
        self.console(spec.instance)
    }

    pub(super) fn console(&self, instance: InstanceId) -> String {
        let bytes = self.zones().console_log(instance, 1 << 20).expect("console");
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    pub(super) fn until_ended(&self, instance: InstanceId) -> ZoneStatus {
        until("the zone ends", || self.zones().status(instance).ok().filter(|status| status.exit.is_some()))
    }

    pub(super) fn until_console_says(&self, instance: InstanceId, what: &str) -> String {
        until(&format!("the console says {what}"), || {
            let text = self.console(instance);
            text.contains(what).then_some(text)
        })
    }

    /// The zone's group in each hierarchy that has it.
    pub(super) fn groups(&self, instance: InstanceId) -> Vec<PathBuf> {
        let below = Path::new(&self.config().cgroup_parent).join(format!("zone-{instance}"));
        hierarchies().into_iter().map(|root| root.join(&below)).filter(|group| group.exists()).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(zones) = self.zones.take() {
            for zone in zones.list().unwrap_or_default() {
                if let Err(error) = zones.destroy(zone.instance) {
                    eprintln!("left behind: {error}");
                }
            }
            zones.remove_parent();
        }
    }
}

pub(super) fn limits() -> Limits {
    Limits {
        memory: Mib(64),
        swap: Mib(64),
        disk: Mib(1024),
        max_processes: 100,
        cpu_cap: None,
        cpu_shares: CpuShares(100),
    }
}

/// Mount points of every control group hierarchy.
pub(super) fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let mut found: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
            kind.starts_with("cgroup").then(|| PathBuf::from(at))
        })
        .collect();
    found.dedup();
    found
}

/// Waits for a condition.
pub(super) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
