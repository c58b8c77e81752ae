//! A datacenter below a temporary root.

use std::{
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
/// How often we look.
const POLL: Duration = Duration::from_millis(50);

/// A running datacenter with the small image and no instance; destroyed when dropped.
pub(crate) struct Datacenter {
    root: PathBuf,
    tenant: Vec<(String, String)>,
}

impl Datacenter {
    /// Starts one; `None`, with a line that says why, where that is impossible.
    pub(crate) fn start() -> Option<Self> {
        let uid = Command::new("id").arg("-u").output().expect("`id` runs");
        if uid.stdout.trim_ascii() != b"0" {
            println!("skipped: a whole datacenter, because it needs root");
            return None;
        }
        let root = tempfile::Builder::new().prefix("neso-it-").tempdir().expect("a root").keep();
        let mut datacenter = Self { root, tenant: Vec::new() };
        datacenter.settle();
        let text = datacenter.good(&["up"]);
        let exports = text.lines().filter_map(|line| line.trim().strip_prefix("export ")?.split_once('='));
        datacenter.tenant = exports.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        assert!(datacenter.tenant.len() >= 4, "`neso up` says how a tenant gets in:\n{text}");
        Some(datacenter)
    }

    /// Writes the settings before the first start: the small image, a small pool, no first instance.
    fn settle(&self) {
        let text = headnode::Settings::generate(Some(&self.root)).expect("settings");
        let text = text
            .replace("images = [\"minimal\", \"debian-12\"]", "images = [\"minimal\"]")
            .replace("instance_image = \"debian-12\"", "instance_image = \"\"")
            .replace("size_gib = 4", "size_gib = 1")
            .replace("memory_kept_mib = 1024", "memory_kept_mib = 0");
        let path = self.root.join(headnode::settings::DEFAULT_FILE);
        fs::create_dir_all(path.parent().expect("a file in a directory")).expect("a directory for settings");
        fs::write(path, text).expect("settings are written");
    }

    /// The settings.
    pub(crate) fn settings(&self) -> headnode::Settings {
        headnode::Settings::load(&self.root.join(headnode::settings::DEFAULT_FILE)).expect("the settings it runs with")
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
        let left: Vec<String> =
            entries(Path::new("/sys/class/net")).into_iter().filter(|name| name.starts_with(&nics)).collect();
        assert_eq!(left, Vec::<String>::new(), "interfaces are left");
        for hierarchy in ["", "unified", "memory", "pids", "cpu"] {
            let parent = Path::new("/sys/fs/cgroup").join(hierarchy).join(&settings.kernel.cgroup);
            self.wait(&format!("control groups in {} to go", parent.display()), || {
                !entries(&parent).iter().any(|entry| entry.starts_with("zone-"))
            });
        }
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
        let _ = fs::remove_file(self.crash_file());
        let output = self.run(&["clean-data", "--yes"]);
        if output.status.success() {
            let _ = fs::remove_dir_all(&self.root);
        } else {
            eprintln!("`neso clean-data` failed: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// Names in a directory; none when it is not there.
pub(crate) fn entries(path: &Path) -> Vec<String> {
    let Ok(found) = fs::read_dir(path) else { return Vec::new() };
    found.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
