//! Headnodes whose store is in a real etcd: one of them, whose member dies and comes back, and two over the same records.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use etcd::local::Member;
use headnode::Settings;
use serde_json::Value;

use crate::datacenter::{Datacenter, PATIENCE, small_settings};

/// Members, and the runtime their processes are watched by.
pub(crate) struct Cluster {
    runtime: tokio::runtime::Runtime,
    members: Vec<Member>,
    _directory: tempfile::TempDir,
}

impl Cluster {
    /// `None`, with a line that says why, where etcd is not installed.
    pub(crate) fn start(count: usize) -> Option<Self> {
        if !etcd::local::is_installed() {
            println!("skipped: a datacenter over etcd, because etcd is not installed (Debian's package etcd-server)");
            return None;
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let directory = tempfile::Builder::new().prefix("neso-it-etcd-").tempdir().expect("a directory");
        let members = runtime.block_on(Member::cluster(directory.path(), count, None, &[])).expect("a cluster");
        Some(Self { runtime, members, _directory: directory })
    }

    /// The section of the settings that names it.
    pub(crate) fn section(&self) -> String {
        let endpoints: Vec<String> = self.members.iter().map(|member| format!("\"{}\"", member.endpoint())).collect();
        format!("engine = \"etcd\"\nendpoints = [{}]", endpoints.join(", "))
    }

    /// Puts the store of a datacenter that does not run yet into it.
    pub(crate) fn keep(&self, datacenter: &Datacenter) {
        let path = datacenter.root().join(headnode::settings::DEFAULT_FILE);
        let text = fs::read_to_string(&path).expect("settings");
        fs::write(&path, text.replace("engine = \"sqlite\"", &self.section())).expect("settings are written");
    }

    /// Where a member is reached, `HOST:PORT`.
    pub(crate) fn address(&self, number: usize) -> String {
        self.members[number].endpoint().trim_start_matches("http://").to_owned()
    }

    pub(crate) fn kill(&mut self, number: usize) {
        self.runtime.block_on(self.members[number].kill()).expect("our own process can be killed");
    }

    /// Starts a member that others may be missing to: it is not waited for.
    pub(crate) fn start_alone(&mut self, number: usize) {
        let member = &mut self.members[number];
        self.runtime.block_on(async { member.start() }).expect("a member starts");
    }

    fn start_again(&mut self, number: usize) {
        let member = &mut self.members[number];
        self.runtime
            .block_on(async {
                member.start()?;
                member.ready().await
            })
            .expect("a member comes back");
    }
}

#[test]
fn a_datacenter_lives_in_etcd() {
    let Some(mut cluster) = Cluster::start(3) else { return };
    let Some(datacenter) = Datacenter::start_after(|datacenter| cluster.keep(datacenter)) else { return };
    assert!(!datacenter.settings().headnode_dir().join("store.db").exists(), "nothing is in SQLite");
    datacenter.good(&["instance", "create", "-w", "--name", "one", "minimal", "g1-nano"]);
    // A headnode that is killed has lost nothing.
    datacenter.kill("headnode");
    datacenter.wait("another headnode", || datacenter.state("one").as_deref() == Some("running"));
    // Neither has one whose member is killed; the first is the one it talks to.
    cluster.kill(0);
    for (verb, state) in [("stop", "stopped"), ("start", "running")] {
        datacenter.good(&["instance", verb, "-w", "one"]);
        datacenter.wait(state, || datacenter.state("one").as_deref() == Some(state));
    }
    cluster.start_again(0);
    // Without a majority it reads.
    cluster.kill(1);
    cluster.kill(2);
    assert_eq!(datacenter.state("one").as_deref(), Some("running"), "reading goes on");
    for reading in [&["adm", "instance", "list"][..], &["instance", "list"]] {
        let said = String::from_utf8_lossy(&datacenter.run(reading).stderr).into_owned();
        assert!(said.contains("may be old"), "{reading:?} says that it may be old: {said}");
    }
    cluster.start_two_again();
    datacenter.wait("a stop to be taken again", || datacenter.run(&["instance", "stop", "-w", "one"]).status.success());
    datacenter.wait_idle();
    datacenter.assert_agreed();
    datacenter.good(&["instance", "delete", "-w", "one"]);
    datacenter.wait_idle();
    datacenter.assert_clean();
}

impl Cluster {
    /// The second and the third at once: each needs the other to be ready.
    pub(crate) fn start_two_again(&mut self) {
        let members = &mut self.members[1..];
        self.runtime
            .block_on(async {
                for member in members.iter_mut() {
                    member.start()?;
                }
                for member in members {
                    member.ready().await?;
                }
                Ok::<_, std::io::Error>(())
            })
            .expect("members come back");
    }
}

/// A headnode without a node, beside a datacenter's own: another root, the same authority, the same store.
pub(crate) struct Second {
    root: PathBuf,
    child: Child,
    url: String,
}

impl Second {
    pub(crate) fn start(datacenter: &Datacenter, cluster: &Cluster) -> Self {
        let root = tempfile::Builder::new().prefix("neso-it-second-").tempdir().expect("a root").keep();
        let text = small_settings(&root).replace("engine = \"sqlite\"", &cluster.section());
        let settings = Settings::parse(&text).expect("settings");
        let path = root.join(headnode::settings::DEFAULT_FILE);
        fs::create_dir_all(path.parent().expect("a file in a directory")).expect("a directory for settings");
        fs::write(path, text).expect("settings are written");
        fs::create_dir_all(settings.pki_dir()).expect("a directory for certificates");
        for name in ["ca.pem", "ca.key"] {
            let from = datacenter.settings().pki_dir().join(name);
            fs::copy(from, settings.pki_dir().join(name)).expect("the authority is handed over");
        }
        let child = Self::spawn(datacenter, &root);
        let second = Self { root, child, url: settings.cloudapi_url() };
        second.wait_up(datacenter);
        second
    }

    fn spawn(datacenter: &Datacenter, root: &std::path::Path) -> Child {
        let log = fs::File::options().create(true).append(true).open(root.join("headnode.log")).expect("a log");
        let mut command = base_command(datacenter, root);
        command.arg("headnode").stdout(Stdio::null()).stderr(log).spawn().expect("a second headnode runs")
    }

    fn wait_up(&self, datacenter: &Datacenter) {
        datacenter
            .wait("the second headnode", || self.run(datacenter, &["adm", "-j", "server", "list"]).status.success());
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings::load(&self.root.join(headnode::settings::DEFAULT_FILE)).expect("settings")
    }

    /// Ends it, changes its settings, and starts it again.
    pub(crate) fn change_settings(&mut self, datacenter: &Datacenter, edit: impl FnOnce(String) -> String) {
        self.kill();
        let path = self.root.join(headnode::settings::DEFAULT_FILE);
        let text = edit(fs::read_to_string(&path).expect("settings"));
        fs::write(path, text).expect("settings are written");
        self.start_again(datacenter);
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A command of ours that asks this headnode.
    pub(crate) fn run(&self, datacenter: &Datacenter, arguments: &[&str]) -> Output {
        base_command(datacenter, &self.root)
            .args(arguments)
            .env("TRITON_URL", &self.url)
            .output()
            .expect("the binary under test runs")
    }

    pub(crate) fn good(&self, datacenter: &Datacenter, arguments: &[&str]) -> Value {
        let output = self.run(datacenter, arguments);
        let err = String::from_utf8_lossy(&output.stderr);
        let log = || fs::read_to_string(self.root.join("headnode.log")).unwrap_or_default();
        assert!(output.status.success(), "{arguments:?} failed at the second headnode: {err}\n{}", log());
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("our own process can be killed");
        self.child.wait().expect("and it ends");
    }

    pub(crate) fn start_again(&mut self, datacenter: &Datacenter) {
        self.child = Self::spawn(datacenter, &self.root);
        self.wait_up(datacenter);
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// A command below another root, as the tenant and operator of this datacenter.
fn base_command(datacenter: &Datacenter, root: &std::path::Path) -> Command {
    let ours = datacenter.command(&[]);
    let mut command = Command::new(ours.get_program());
    command.arg("--root").arg(root).stdin(Stdio::null());
    for (name, value) in ours.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

#[test]
fn two_headnodes_serve_one_datacenter() {
    let Some(cluster) = Cluster::start(1) else { return };
    let Some(datacenter) = Datacenter::start_after(|datacenter| cluster.keep(datacenter)) else { return };
    let mut second = Second::start(&datacenter, &cluster);

    // What the one made, the other shows, and the other way round.
    datacenter.good(&["instance", "create", "-w", "--name", "first", "minimal", "g1-nano"]);
    second.good(&datacenter, &["instance", "-j", "get", "first"]);
    for number in 0..20 {
        // At once: nobody waits until the other has heard of it.
        let name = format!("count={number}");
        datacenter.good(&["instance", "tags", "first", &name]);
        let seen = second.good(&datacenter, &["instance", "-j", "get", "first"]);
        assert_eq!(seen["tags"]["count"], number, "one headnode shows what the other said yes to");
    }
    second.good(&datacenter, &["instance", "create", "-w", "--name", "second", "minimal", "g1-nano"]);
    assert_eq!(datacenter.state("second").as_deref(), Some("running"));

    // The second says yes and dies at once; the first carries it out.
    second.good(&datacenter, &["instance", "-j", "create", "--name", "orphan", "minimal", "g1-nano"]);
    second.kill();
    datacenter.wait("what a dead headnode began", || datacenter.state("orphan").as_deref() == Some("running"));

    // Both at once on one machine: no address twice, nothing lost.
    second.start_again(&datacenter);
    let names: Vec<String> = (0..6).map(|number| format!("both-{number}")).collect();
    std::thread::scope(|scope| {
        for (number, name) in names.iter().enumerate() {
            let (datacenter, second) = (&datacenter, &second);
            scope.spawn(move || {
                let create = ["instance", "-j", "create", "-w", "--name", name, "minimal", "g1-nano"];
                match number % 2 {
                    0 => drop(datacenter.good(&create)),
                    _ => drop(second.good(datacenter, &create)),
                }
            });
        }
    });
    datacenter.wait_idle();
    datacenter.assert_agreed();
    assert_eq!(datacenter.instances().len(), 3 + names.len());

    // The first one's end does not end the API: what the second is told is done when the node has somebody to talk to again.
    let before = datacenter.pid("headnode").expect("it runs");
    datacenter.kill("headnode");
    second.good(&datacenter, &["instance", "-j", "delete", "first"]);
    datacenter.wait("the first headnode to be back", || datacenter.pid("headnode").is_some_and(|pid| pid != before));
    let deadline = Instant::now() + PATIENCE;
    for name in names.iter().map(String::as_str).chain(["second", "orphan"]) {
        second.good(&datacenter, &["instance", "delete", "-w", name]);
    }
    while !datacenter.instances().is_empty() {
        assert!(Instant::now() < deadline + PATIENCE, "instances are left: {:?}", datacenter.instances());
        std::thread::sleep(Duration::from_millis(100));
    }
    datacenter.wait_idle();
    datacenter.assert_clean();
}
