//! A datacenter below a temporary root.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

/// The binary under test.
const NESO: &str = env!("CARGO_BIN_EXE_neso");
/// Anything we wait for: generous, because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// How the Ethernet address of every NIC begins.
const MAC_PREFIX: &str = "90:b8:d0:";
/// How often we look.
const POLL: Duration = Duration::from_millis(50);

/// A running datacenter with the small image and no instance; destroyed when dropped.
pub(crate) struct Datacenter {
    root: PathBuf,
    tenant: Vec<(String, String)>,
    mounts: Vec<PathBuf>,
}

impl Datacenter {
    /// Starts one; `None`, with a line that says why, where that is impossible.
    pub(crate) fn start() -> Option<Self> {
        Self::start_after(|_| ())
    }

    /// The same; `before` sees it when its settings are written and nothing runs yet.
    pub(crate) fn start_after(before: impl FnOnce(&mut Self)) -> Option<Self> {
        let uid = Command::new("id").arg("-u").output().expect("`id` runs");
        if uid.stdout.trim_ascii() != b"0" {
            println!("skipped: a whole datacenter, because it needs root");
            return None;
        }
        let root = tempfile::Builder::new().prefix("neso-it-").tempdir().expect("a root").keep();
        let mut datacenter = Self { root, tenant: Vec::new(), mounts: Vec::new() };
        datacenter.settle();
        before(&mut datacenter);
        let text = datacenter.good(&["up"]);
        let exports = text.lines().filter_map(|line| line.trim().strip_prefix("export ")?.split_once('='));
        datacenter.tenant = exports.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        assert!(datacenter.tenant.len() >= 4, "`neso up` says how a tenant gets in:\n{text}");
        Some(datacenter)
    }

    /// Writes the settings before the first start.
    fn settle(&self) {
        let path = self.root.join(headnode::settings::DEFAULT_FILE);
        fs::create_dir_all(path.parent().expect("a file in a directory")).expect("a directory for settings");
        fs::write(path, small_settings(&self.root)).expect("settings are written");
    }

    /// A variable `neso up` told the tenant to set.
    pub(crate) fn said(&self, name: &str) -> &str {
        let found = self.tenant.iter().find(|(key, _)| key == name);
        &found.unwrap_or_else(|| panic!("`neso up` says {name}")).1
    }

    /// The settings.
    pub(crate) fn settings(&self) -> headnode::Settings {
        headnode::Settings::load(&self.root.join(headnode::settings::DEFAULT_FILE)).expect("the settings it runs with")
    }

    /// Gives the headnode's files a file system of their own, of so many MiB.
    pub(crate) fn confine_headnode(&mut self, mib: u64) {
        let directory = self.settings().headnode_dir();
        fs::create_dir_all(&directory).expect("a directory for the headnode");
        let size = format!("size={mib}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "neso-it"]).arg(&directory).status();
        assert!(mount.is_ok_and(|status| status.success()), "a tmpfs can be mounted");
        self.mounts.push(directory);
    }

    /// A command of ours, not yet run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(NESO);
        command.arg("--root").arg(&self.root).args(arguments).stdin(Stdio::null());
        command.env("HOME", self.root.join("home")).env("NESO_CRASH_FILE", self.crash_file());
        command.env_remove("SSH_AUTH_SOCK").env_remove("NESO_ROOT").env_remove("NESO_CONFIG").envs(self.tenant.clone());
        command
    }

    /// Runs a command of ours.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the binary under test runs")
    }

    /// Runs a command that must succeed; what it printed.
    #[track_caller]
    pub(crate) fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success(),
            "{arguments:?} failed\n--- out\n{out}\n--- err\n{err}\n--- logs\n{}",
            self.logs()
        );
        out.into_owned()
    }

    /// Runs a command with `-j`.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let out = self.good(arguments);
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?} printed no JSON ({error}): {out}"))
    }

    /// Asks the operators' API, or nothing while the headnode is down.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Option<Value> {
        let output = self.run(arguments);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).ok()).flatten()
    }

    /// Waits until `done` says so.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "waited in vain for {what}\n{}", self.logs());
            std::thread::sleep(POLL);
        }
    }

    /// State of an instance by name, as operators see it; `None` when there is none.
    pub(crate) fn state(&self, name: &str) -> Option<String> {
        let all = self.ask(&["adm", "-j", "instance", "list"])?;
        let found = all.as_array()?.iter().find(|instance| instance["alias"] == name)?;
        Some(found["state"].as_str()?.to_owned())
    }

    /// Waits until no flow is under way.
    #[track_caller]
    pub(crate) fn wait_idle(&self) {
        self.wait("every flow to end", || {
            self.ask(&["adm", "-j", "flow", "list", "--unfinished"])
                .is_some_and(|flows| flows == Value::Array(Vec::new()))
        });
    }

    /// Everything of this datacenter is below.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Ends supervisor, headnode and node at once; instances run on. `neso up` starts them again.
    pub(crate) fn end_control(&self) {
        let processes = ["supervisor", "headnode", "node"];
        // The other two end by themselves when the first is gone; they may be quicker than we.
        for pid in processes.iter().filter_map(|name| self.pid(name)) {
            let _ = base::daemon::kill(pid);
        }
        self.wait("our own processes to be dead", || processes.iter().all(|name| self.pid(name).is_none()));
    }

    /// Where a crash point is armed.
    pub(crate) fn crash_file(&self) -> PathBuf {
        self.root.join("crash")
    }

    /// Pid of `headnode`, `node` or `supervisor`, from its locked file.
    pub(crate) fn pid(&self, name: &str) -> Option<u32> {
        base::daemon::PidFile::holder(&self.settings().paths.run.join(format!("{name}.pid")))
    }

    /// Kills one of our own processes and does not wait for its successor.
    #[track_caller]
    pub(crate) fn kill(&self, name: &str) {
        let pid = self.pid(name).unwrap_or_else(|| panic!("{name} runs"));
        base::daemon::kill(pid).expect("our own process can be killed");
    }

    /// Checks that no instance left anything, in our records, on the disk and in the kernel.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        let settings = self.settings();
        self.wait("the node to report nothing", || {
            self.ask(&["adm", "-j", "server", "list"]).is_some_and(|servers| servers[0]["reserved"]["instances"] == 0)
        });
        for network in ["external", "private"] {
            let addresses = self.json(&["adm", "-j", "network", "ips", network]);
            let held = addresses.as_array().expect("a list").iter().filter(|address| !address["instance"].is_null());
            assert_eq!(held.count(), 0, "addresses of {network} are still held: {addresses}");
        }
        let empty = |what: &str, path: &Path| {
            self.wait(&format!("{what} in {} to go", path.display()), || entries(path).is_empty());
        };
        empty("zones", &settings.paths.run.join("zones"));
        empty("roots", &settings.pool_dir().join("roots"));
        empty("ledgers", &settings.node_dir().join("zones"));
        let nics = format!("{}v", settings.kernel.link_prefix);
        let rules = self.rules();
        assert!(!rules.contains(MAC_PREFIX), "the rules still name NICs:\n{rules}");
        // The kernel takes down what was in a namespace that ended in its own time.
        let left = || entries(Path::new("/sys/class/net")).into_iter().filter(|name| name.starts_with(&nics));
        self.wait("interfaces to go", || left().next().is_none());
        for hierarchy in ["", "unified", "memory", "pids", "cpu"] {
            let parent = Path::new("/sys/fs/cgroup").join(hierarchy).join(&settings.kernel.cgroup);
            self.wait(&format!("control groups in {} to go", parent.display()), || {
                !entries(&parent).iter().any(|entry| entry.starts_with("zone-"))
            });
        }
    }

    /// Our tables in the kernel's packet filter, as text.
    pub(crate) fn rules(&self) -> String {
        let table = self.settings().kernel.nft_table;
        ["bridge", "inet"]
            .map(|family| Command::new("nft").args(["list", "table", family, &table]).output().expect("`nft` runs"))
            .map(|listed| String::from_utf8_lossy(&listed.stdout).into_owned())
            .concat()
    }

    /// Every instance that is not deleted, as operators see it.
    #[track_caller]
    pub(crate) fn instances(&self) -> Vec<Value> {
        let all = self.json(&["adm", "-j", "instance", "list"]);
        all.as_array().expect("a list").iter().filter(|instance| instance["state"] != "deleted").cloned().collect()
    }

    /// Checks that records, disk and kernel tell of the same instances: none lost, none twice, none that nobody knows.
    /// Every flow must have ended.
    #[track_caller]
    pub(crate) fn assert_agreed(&self) {
        let settings = self.settings();
        let instances = self.instances();
        let names: BTreeSet<&str> = instances.iter().flat_map(|one| one["alias"].as_str()).collect();
        assert_eq!(names.len(), instances.len(), "a name was given twice");
        let ids: BTreeSet<String> = instances.iter().flat_map(|one| one["id"].as_str()).map(str::to_owned).collect();
        let running: BTreeSet<String> = instances
            .iter()
            .filter(|one| one["state"] == "running")
            .flat_map(|one| one["id"].as_str())
            .map(str::to_owned)
            .collect();
        let ips: BTreeSet<&str> = instances.iter().flat_map(|one| one["primary_ip"].as_str()).collect();
        assert_eq!(ips.len(), instances.len(), "instances share addresses, or have none");
        let held = self.json(&["adm", "-j", "network", "ips", "external"]);
        let held = held.as_array().expect("a list").iter().filter(|address| !address["instance"].is_null()).count();
        assert_eq!(held, instances.len(), "addresses are held by instances that are not there");
        let stems = |path: &Path| -> BTreeSet<String> {
            let names = entries(path);
            names.iter().map(|name| name.trim_end_matches(".json").to_owned()).collect()
        };
        let ledgers = settings.node_dir().join("zones");
        assert_eq!(stems(&settings.pool_dir().join("roots")), ids, "roots");
        assert_eq!(
            stems(&ledgers).into_iter().filter(|stem| stem.len() == 36).collect::<BTreeSet<_>>(),
            ids,
            "ledgers"
        );
        let ranges: Vec<String> = ids
            .iter()
            .map(|id| fs::read_to_string(ledgers.join(format!("{id}.json"))).expect("a ledger"))
            .map(|text| serde_json::from_str::<Value>(&text).expect("a ledger is JSON")["ids"].to_string())
            .collect();
        assert_eq!(ranges.iter().collect::<BTreeSet<_>>().len(), ranges.len(), "an id range is used twice: {ranges:?}");
        let alive: BTreeSet<String> = ids.iter().filter(|id| self.init(id).is_some()).cloned().collect();
        assert_eq!(alive, running, "zones that run, and those that should");
        assert!(stems(&settings.paths.run.join("zones")).is_subset(&ids), "a zone nobody knows of");
        let rules = self.rules();
        for mac in instances.iter().filter(|one| one["state"] == "running").map(|one| &one["nics"][0]["mac"]) {
            assert!(rules.contains(mac.as_str().expect("a NIC")), "no rules for {mac}:\n{rules}");
        }
    }

    /// The first process of an instance that runs, and when the kernel says it began.
    pub(crate) fn init(&self, id: &str) -> Option<(u64, String)> {
        let status = self.settings().paths.run.join("zones").join(id).join("status.json");
        let status: Value = serde_json::from_str(&fs::read_to_string(status).ok()?).ok()?;
        let pid = status["init"]["pid"].as_u64()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may hold anything; the start is the 20th field after it.
        let began = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
        (status["init"]["start_ticks"].as_u64() == began.parse().ok()).then(|| (pid, began.to_owned()))
    }

    /// Ends everything of this datacenter at once and clears what a boot clears: processes, mounts, interfaces, rules,
    /// control groups, the runtime directory. What the disk holds stays.
    pub(crate) fn lose_power(&self) {
        let settings = self.settings();
        self.end_control();
        let root = self.root.to_str().expect("a plain path");
        let zones = entries(&settings.paths.run.join("zones"));
        let inits = zones.iter().filter_map(|id| u32::try_from(self.init(id)?.0).ok());
        let ours = entries(Path::new("/proc")).into_iter().filter_map(|name| name.parse::<u32>().ok()).filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("zone-supervisor") && line.contains(root)
        });
        let doomed: Vec<u32> = ours.chain(inits).collect();
        for pid in &doomed {
            // One may have gone with another.
            let _ = base::daemon::kill(*pid);
        }
        self.wait("everything to be dead", || !doomed.iter().any(|pid| alive(*pid)));

        let shell = |line: &str| drop(Command::new("sh").args(["-c", line]).output().expect("a shell"));
        let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
        let below: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        for mount in below.iter().rev().filter(|mount| mount.starts_with(root)) {
            shell(&format!("umount -l '{mount}'"));
        }
        let prefix = &settings.kernel.link_prefix;
        for link in entries(Path::new("/sys/class/net")) {
            let bridge = Path::new("/sys/class/net").join(&link).join("bridge").exists();
            if link.starts_with(&format!("{prefix}v")) || bridge && link.starts_with(prefix.as_str()) {
                shell(&format!("ip link delete {link}"));
            }
        }
        let table = &settings.kernel.nft_table;
        shell(&format!("nft delete table bridge {table}; nft delete table inet {table}"));
        let group = &settings.kernel.cgroup;
        shell(&format!("find /sys/fs/cgroup -depth -type d -path '*/{group}*' -exec rmdir {{}} \\;"));
        fs::remove_dir_all(&settings.paths.run).expect("the runtime directory can go");
        // The kernel's own id does not change, so say that this is another boot.
        fs::create_dir_all(&settings.paths.run).expect("a runtime directory");
        let kernel = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
        fs::write(settings.paths.run.join("boot-id"), format!("{}.7\n", kernel.trim())).expect("another boot's id");
    }

    /// The ends of the logs.
    pub(crate) fn logs(&self) -> String {
        let tail = |name: &str| {
            let text = fs::read_to_string(self.root.join("var/log/neso").join(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {name}\n{}", lines[lines.len().saturating_sub(40)..].join("\n"))
        };
        ["supervisor.log", "headnode.log", "node.log"].map(tail).join("\n")
    }
}

impl Drop for Datacenter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        let _ = fs::remove_file(self.crash_file());
        let _ = fs::remove_dir_all(self.crash_file());
        for mount in &self.mounts {
            let _ = Command::new("umount").arg("-l").arg(mount).status();
        }
        let output = self.run(&["clean-data", "--yes"]);
        if output.status.success() {
            let _ = fs::remove_dir_all(&self.root);
        } else {
            eprintln!("`neso clean-data` failed: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// Settings for a datacenter below `root`: the small image, a small pool, no first instance.
pub(crate) fn small_settings(root: &Path) -> String {
    headnode::Settings::generate(Some(root))
        .expect("settings")
        .replace("images = [\"minimal\", \"debian-12\"]", "images = [\"minimal\"]")
        .replace("instance_image = \"debian-12\"", "instance_image = \"\"")
        .replace("size_gib = 4", "size_gib = 1")
        .replace("memory_kept_mib = 1024", "memory_kept_mib = 0")
        .replace("disk_percent = 400", "disk_percent = 40000")
}

/// Whether a process is there and no zombie.
fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Names in a directory; none when it is not there.
pub(crate) fn entries(path: &Path) -> Vec<String> {
    let Ok(found) = fs::read_dir(path) else { return Vec::new() };
    found.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
