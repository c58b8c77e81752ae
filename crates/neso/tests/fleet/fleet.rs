//! A datacenter of several machines, each a pair of namespaces on one switch:
//!
//! ```text
//!  head 10.77.0.1     m1 10.77.0.11     m2 10.77.0.12     m3 10.77.0.13
//!      eth0               eth0              eth0              eth0        MTU 1500
//!       └────────────── bridge in a namespace of its own ──────┘
//! ```
//! The head runs `neso up` (headnode and node) and takes no instances; the others joined with `neso node join` and run a node
//! from a root of their own: own pool, control groups, id ranges. Nothing of it is visible outside but files below one directory
//! and control groups; commands of operators and tenants run on the head.

use std::{
    fs,
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use model::quorum::PEER_PORT;
use serde_json::Value;

use crate::space::Space;

/// The binary under test.
const NESO: &str = env!("CARGO_BIN_EXE_neso");
/// Anything we wait for: generous, because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// How often we look.
const POLL: Duration = Duration::from_millis(50);
/// Host ids of one zone times the zones of one machine.
const IDS_PER_MACHINE: u32 = 65_536 * 64;
/// First host id: above what other datacenters of tests use.
const ID_BASE: u32 = 0xe000_0000;

/// Address of a machine of clients.
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 201);
/// Address of the world outside on the switch.
const GATE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 200);
/// Its address behind that, which no machine has a network with.
pub(crate) const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// One machine.
pub(crate) struct Machine {
    /// `head`, `m1` …
    pub(crate) name: String,
    /// Everything it keeps.
    pub(crate) root: PathBuf,
    /// Its address on the switch.
    pub(crate) address: String,
    /// Its namespaces.
    pub(crate) space: Space,
    /// The program that is installed on it.
    pub(crate) program: PathBuf,
    /// What its programs find in their environment.
    pub(crate) environment: Vec<(String, String)>,
    number: u32,
    /// What `neso up` told tenants to export.
    pub(crate) tenant: Vec<(String, String)>,
}

/// See the head of this file. Destroyed when dropped.
pub(crate) struct Fleet {
    /// The headnode's machine.
    pub(crate) head: Machine,
    /// Those that joined.
    pub(crate) machines: Vec<Machine>,
    /// Where the bridge `switch` is; machine `m1` hangs on its port `p1`.
    pub(crate) switch: Space,
    base: PathBuf,
}

impl Fleet {
    /// Starts a headnode that takes no instances and `count` machines; `None`, with a line that says why, where that is
    /// impossible.
    pub(crate) fn start(count: u32) -> Option<Self> {
        let takes_none =
            |text: String| text.replace("headnode_takes_instances = true", "headnode_takes_instances = false");
        Self::start_with(count, takes_none)
    }

    /// The same, with other settings of the headnode's machine.
    pub(crate) fn start_with(count: u32, edit: impl FnOnce(String) -> String) -> Option<Self> {
        Self::start_prepared(count, edit, |_| ())
    }

    /// The same; `prepare` is shown each machine when it has settings and nothing runs on it.
    pub(crate) fn start_prepared(
        count: u32,
        edit: impl FnOnce(String) -> String,
        prepare: impl Fn(&Machine),
    ) -> Option<Self> {
        if !is_root() {
            println!("skipped: a fleet of machines, because it needs root");
            return None;
        }
        let base = tempfile::Builder::new().prefix("neso-fleet-").tempdir().expect("a directory").keep();
        let switch = Space::new(&base.join("switch"), &machine_id(999));
        switch.run("ip link add switch type bridge");
        switch.run("ip link set switch up");
        let head = Machine::new(&base, &switch, 0);
        let mut fleet = Self { head, machines: Vec::new(), switch, base };
        fleet.head.settle(|text| edit(reachable(text)));
        prepare(&fleet.head);
        let text = fleet.head.good(&["up"]);
        let exports = text.lines().filter_map(|line| line.trim().strip_prefix("export ")?.split_once('='));
        fleet.head.tenant = exports.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        // It has one address, so nobody had to say which.
        fleet.wait("the headnode's machine to say where it is met", || {
            let servers = fleet.ask(&["adm", "-j", "server", "list"]).unwrap_or_default();
            servers[0]["underlay"] == fleet.head.address.as_str()
        });
        for number in 1..=count {
            let machine = fleet.new_machine(number);
            prepare(&machine);
            fleet.machines.push(machine);
        }
        let invitations: Vec<Vec<String>> = fleet.machines.iter().map(|_| fleet.invite(&[])).collect();
        std::thread::scope(|scope| {
            for (machine, invitation) in fleet.machines.iter().zip(&invitations) {
                scope.spawn(move || machine.join(invitation));
            }
        });
        fleet.wait("every machine to be running", || {
            let servers = fleet.ask(&["adm", "-j", "server", "list"]).unwrap_or_default();
            let running = |server: &&Value| server["condition"]["state"] == "running";
            servers.as_array().is_some_and(|all| all.iter().filter(running).count() == fleet.machines.len() + 1)
        });
        Some(fleet)
    }

    /// The headnode's machine, or the `number`th of the others.
    pub(crate) fn machine(&self, number: usize) -> &Machine {
        number.checked_sub(1).map_or(&self.head, |at| &self.machines[at])
    }

    /// The world outside, on the switch: [`WORLD`], which every machine has its default route to.
    pub(crate) fn world(&self) -> Space {
        let world = Space::new(&self.base.join("world"), &machine_id(998));
        self.switch.run(&format!("ip link add world type veth peer name eth0 netns {}", world.pid()));
        self.switch.run("ip link set world master switch up");
        world.run(&format!("ip address add {GATE}/24 dev eth0"));
        world.run(&format!("ip address add {WORLD}/32 dev lo"));
        world.run("ip link set eth0 up");
        let machines = std::iter::once(&self.head).chain(&self.machines);
        machines.for_each(Machine::look_outside);
        world
    }

    /// A machine of clients on the switch, without anything of ours.
    pub(crate) fn client(&self) -> Space {
        let client = Space::new(&self.base.join("client"), &machine_id(997));
        self.switch.run(&format!("ip link add client type veth peer name eth0 netns {}", client.pid()));
        self.switch.run("ip link set client master switch up");
        client.run(&format!("ip address add {CLIENT}/24 dev eth0"));
        client.run("ip link set eth0 up");
        client
    }

    /// All machines lose power at once and are switched on again; nothing is started yet.
    pub(crate) fn power_cycle(&mut self) {
        let (switch, head) = (&self.switch, &mut self.head);
        std::thread::scope(|scope| {
            for machine in self.machines.iter_mut().chain([head]) {
                scope.spawn(move || machine.power_cycle(switch));
            }
        });
    }

    /// A machine on the switch with settings and nothing else.
    pub(crate) fn new_machine(&self, number: u32) -> Machine {
        let machine = Machine::new(&self.base, &self.switch, number);
        machine.settle(reachable);
        machine
    }

    /// Makes an invitation; what `neso node join` is told: token, address, fingerprint.
    #[track_caller]
    pub(crate) fn invite(&self, options: &[&str]) -> Vec<String> {
        let made = self.json(&[&["adm", "-j", "node", "invite"], options].concat());
        ["token", "address", "fingerprint"].map(|field| made[field].as_str().expect("a text").to_owned()).into()
    }

    /// Runs a command on the head; it must succeed.
    #[track_caller]
    pub(crate) fn good(&self, arguments: &[&str]) -> String {
        self.head.good(arguments)
    }

    /// Runs a command on the head that prints JSON.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let out = self.good(arguments);
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?} printed no JSON ({error}): {out}"))
    }

    /// The same, or nothing while the headnode is down.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Option<Value> {
        let output = self.head.run(arguments);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).ok()).flatten()
    }

    /// An instance as operators see it.
    pub(crate) fn instance(&self, name: &str) -> Option<Value> {
        self.ask(&["adm", "-j", "instance", "get", name])
    }

    /// The machine an instance is on, by its host's server record.
    #[track_caller]
    pub(crate) fn machine_of(&self, name: &str) -> &Machine {
        let server = self.instance(name).expect("an instance")["server"].as_str().expect("a server").to_owned();
        let found = self.machines.iter().find(|machine| machine.server_id() == server);
        found.unwrap_or_else(|| panic!("{name} is on {server}, which is none of ours"))
    }

    /// A machine's server record as operators see it.
    #[track_caller]
    pub(crate) fn server(&self, machine: &Machine) -> Value {
        self.json(&["adm", "-j", "server", "get", &machine.server_id()])
    }

    /// Pulls a machine's cable, or puts it in again.
    pub(crate) fn plug(&self, machine: &Machine, is_in: bool) {
        let state = if is_in { "up" } else { "down" };
        self.switch.run(&format!("ip link set p{} {state}", machine.number));
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

    fn logs(&self) -> String {
        let all = std::iter::once(&self.head).chain(&self.machines);
        all.map(|machine| format!("=== {}\n{}", machine.name, machine.logs())).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for machine in self.machines.iter_mut().chain([&mut self.head]) {
            machine.remove();
        }
        let _ = fs::remove_dir_all(&self.base);
    }
}

impl Machine {
    fn new(base: &Path, switch: &Space, number: u32) -> Self {
        let name = if number == 0 { "head".to_owned() } else { format!("m{number}") };
        let address = format!("10.77.0.{}", if number == 0 { 1 } else { number + 10 });
        let directory = base.join(format!("{name}.space"));
        let space = Space::new(&directory, &machine_id(number));
        let (environment, tenant) = (Vec::new(), Vec::new());
        let (root, program) = (base.join(&name), PathBuf::from(NESO));
        let machine = Self { root, name, address, space, program, environment, number, tenant };
        machine.cable(switch);
        machine
    }

    /// Connects it to the switch.
    fn cable(&self, switch: &Space) {
        let (number, pid) = (self.number, self.space.pid());
        // A port of a machine that lost its power goes with its other end, a little later.
        let _ = switch.output(&format!("ip link delete p{number}"));
        // A machine that was off has the same card as before: its neighbours remember it.
        let mac = format!("02:77:00:00:{:02x}:{:02x}", number >> 8, number & 0xff);
        switch.run(&format!("ip link add p{number} type veth peer name eth0 address {mac} netns {pid}"));
        switch.run(&format!("ip link set p{number} master switch up"));
        self.space.run(&format!("ip address add {}/24 dev eth0", self.address));
        self.space.run("ip link set eth0 up");
    }

    /// Gives it the way to [`WORLD`].
    pub(crate) fn look_outside(&self) {
        self.space.run(&format!("ip route replace default via {GATE}"));
    }

    /// Writes its settings: the small image, a small pool, no first instance, ids of its own.
    pub(crate) fn settle(&self, edit: impl FnOnce(String) -> String) {
        let text = headnode::Settings::generate(Some(&self.root)).expect("settings");
        let text = text
            .replace("images = [\"minimal\", \"debian-12\"]", "images = [\"minimal\"]")
            .replace("instance_image = \"debian-12\"", "instance_image = \"\"")
            .replace("size_gib = 4", "size_gib = 1")
            .replace("memory_kept_mib = 1024", "memory_kept_mib = 0")
            .replace("disk_percent = 400", "disk_percent = 40000");
        let is_ids = |line: &&str| line.starts_with("id_base = ") || line.starts_with("id_ranges = ");
        let text: Vec<&str> = text.lines().filter(|line| !is_ids(line)).collect();
        let ids = format!("id_base = {}\nid_ranges = 64", ID_BASE + self.number * IDS_PER_MACHINE);
        let text = edit(text.join("\n").replace("[pool]", &format!("{ids}\n\n[pool]")) + "\n");
        headnode::Settings::parse(&text).expect("settings that are right");
        let path = self.settings_path();
        fs::create_dir_all(path.parent().expect("a file in a directory")).expect("a directory for settings");
        fs::write(path, text).expect("settings are written");
    }

    /// Changes the text of its settings; who has read them already is not told.
    pub(crate) fn change_settings(&self, edit: impl FnOnce(String) -> String) {
        let text = fs::read_to_string(self.settings_path()).expect("its settings");
        fs::write(self.settings_path(), edit(text)).expect("settings are written");
    }

    fn settings_path(&self) -> PathBuf {
        self.root.join(headnode::settings::DEFAULT_FILE)
    }

    /// Its settings.
    pub(crate) fn settings(&self) -> headnode::Settings {
        headnode::Settings::load(&self.settings_path()).expect("the settings it runs with")
    }

    /// Who it is since it joined.
    #[track_caller]
    pub(crate) fn server_id(&self) -> String {
        let path = self.settings().pki_dir().join("server-id");
        fs::read_to_string(path).expect("it has joined").trim().to_owned()
    }

    /// A command of ours on this machine, not yet run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.space.command(&self.program);
        command.arg("--root").arg(&self.root).args(arguments).env("HOME", self.root.join("home"));
        command.env("NESO_CRASH_FILE", self.crash_dir());
        command.env_remove("SSH_AUTH_SOCK").env_remove("NESO_ROOT").env_remove("NESO_CONFIG").envs(self.tenant.clone());
        command.envs(self.environment.clone());
        command
    }

    /// Where crash points are armed: a file named as the point.
    pub(crate) fn crash_dir(&self) -> PathBuf {
        self.root.join("crash")
    }

    /// Runs a command of ours.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the binary under test runs")
    }

    /// Runs a command of ours that must succeed; what it printed.
    #[track_caller]
    pub(crate) fn good(&self, arguments: &[&str]) -> String {
        self.judge(arguments, &self.run(arguments))
    }

    /// Runs a command of ours that must fail; what it complained of.
    #[track_caller]
    pub(crate) fn bad(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?} succeeded: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// What a command of ours printed, whether it succeeded or not.
    pub(crate) fn bad_or_good(&self, arguments: &[&str]) -> String {
        String::from_utf8_lossy(&self.run(arguments).stdout).into_owned()
    }

    fn judge(&self, what: &[&str], output: &Output) -> String {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let logs = if output.status.success() { String::new() } else { self.logs() };
        assert!(output.status.success(), "{}: {what:?} failed\n--- out\n{out}\n--- err\n{err}\n{logs}", self.name);
        out.into_owned()
    }

    /// Runs `neso node join` with an invitation.
    pub(crate) fn try_join(&self, invitation: &[String]) -> Output {
        self.try_join_with(invitation, &[])
    }

    /// The same, with options.
    pub(crate) fn try_join_with(&self, invitation: &[String], options: &[&str]) -> Output {
        let [token, address, fingerprint] = invitation else { panic!("an invitation has three parts") };
        let mut command = self.command(&[&["node", "join", address, "--fingerprint", fingerprint], options].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary under test runs");
        let mut input = child.stdin.take().expect("its input is a pipe");
        // It may have refused before it read.
        let _ = writeln!(input, "{token}");
        drop(input);
        child.wait_with_output().expect("it ends")
    }

    /// The same; it must succeed.
    #[track_caller]
    pub(crate) fn join(&self, invitation: &[String]) {
        self.judge(&["node", "join"], &self.try_join(invitation));
    }

    /// Pid of `headnode`, `node` or `supervisor`, from its locked file.
    pub(crate) fn pid(&self, name: &str) -> Option<u32> {
        base::daemon::PidFile::holder(&self.settings().paths.run.join(format!("{name}.pid")))
    }

    /// The first process of an instance that runs here.
    pub(crate) fn init(&self, id: &str) -> Option<u64> {
        let status = self.settings().paths.run.join("zones").join(id).join("status.json");
        let status: Value = serde_json::from_str(&fs::read_to_string(status).ok()?).ok()?;
        let pid = status["init"]["pid"].as_u64()?;
        Path::new("/proc").join(pid.to_string()).exists().then_some(pid)
    }

    /// Loses power and is switched on again; nothing is started yet. What the disk holds stays.
    pub(crate) fn power_cycle(&mut self, switch: &Space) {
        self.end_groups();
        self.space.end();
        self.end_groups();
        let settings = self.settings();
        let _ = fs::remove_dir_all(&settings.paths.run);
        let directory = self.root.with_file_name(format!("{}.space", self.name));
        self.space = Space::new(&directory, &machine_id(self.number));
        self.cable(switch);
        // The kernel's own id does not change, so say that this is another boot.
        fs::create_dir_all(&settings.paths.run).expect("a runtime directory");
        let kernel = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
        let boot = format!("{}.{}\n", kernel.trim(), self.space.pid());
        fs::write(settings.paths.run.join("boot-id"), boot).expect("another boot's id");
    }

    /// Is met by other machines at an IPv6 address from now on.
    pub(crate) fn meet_at_six(&self, address: &str) {
        self.space.run(&format!("ip -6 address add {address}/64 dev eth0 nodad"));
        let line = format!("\n[fabric]\nunderlay_address = \"{address}\"\n");
        self.change_settings(|text| text.replacen("\n[fabric]\n", &line, 1));
        assert!(self.settings().fabric.underlay_address.is_some(), "its settings say where it is met");
        self.good(&["down", "--keep-instances"]);
        self.good(&["up"]);
    }

    /// Cuts its member of the store off from the other members, and from nobody else, until the table of rules is deleted.
    pub(crate) fn part_member(&self) {
        let chain = |hook: &str| {
            let rule = |way: &str| format!("add rule inet cut {hook} tcp {way} {PEER_PORT} drop\n");
            let begin = format!("add chain inet cut {hook} {{ type filter hook {hook} priority -300; }}\n");
            [begin, rule("sport"), rule("dport")].concat()
        };
        let rules = ["add table inet cut\n".to_owned(), chain("input"), chain("output")].concat();
        self.space.feed("nft -f -", &rules);
    }

    /// Shows other hardware from now on.
    pub(crate) fn replace_hardware(&self) {
        let path = self.root.with_file_name(format!("{}.space", self.name)).join("machine-id");
        fs::write(path, format!("{}\n", machine_id(self.number + 500))).expect("another id");
    }

    /// Kills what runs in our control groups, and removes them.
    fn end_groups(&self) {
        let group = self.settings().kernel.cgroup;
        let find = format!("find /sys/fs/cgroup -depth -type d -path '*/{group}*'");
        let list = format!("{find} -exec cat {{}}/cgroup.procs \\; 2>/dev/null");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = Command::new("sh").args(["-c", &list]).output().expect("a shell");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let pids: Vec<u32> =
                text.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 0).collect();
            if pids.is_empty() {
                break;
            }
            for pid in pids {
                // It may go with another.
                let _ = base::daemon::kill(pid);
            }
            assert!(Instant::now() < deadline, "what runs in {group} does not end");
            std::thread::sleep(POLL);
        }
        let _ = Command::new("sh").args(["-c", &format!("{find} -exec rmdir {{}} \\; 2>/dev/null")]).output();
    }

    fn remove(&mut self) {
        if self.settings_path().exists() {
            let output = self.run(&["clean-data", "--yes"]);
            if !output.status.success() {
                eprintln!("{}: `neso clean-data` failed: {}", self.name, String::from_utf8_lossy(&output.stderr));
                self.end_groups();
            }
        }
        self.space.end();
    }

    /// The end of a log.
    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.root.join("var/log/neso").join(format!("{name}.log"))).unwrap_or_default()
    }

    fn logs(&self) -> String {
        let tail = |name: &str| {
            let text = self.log(name);
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {name}\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
        };
        ["supervisor", "headnode", "member", "node"].map(tail).join("\n")
    }
}

/// Whether namespaces can be made.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Settings whose node link and CloudAPI other machines reach, should a headnode run there.
pub(crate) fn reachable(text: String) -> String {
    ["node_link", "cloudapi"]
        .iter()
        .fold(text, |text, door| text.replace(&format!("{door} = \"127.0.0.1:"), &format!("{door} = \"0.0.0.0:")))
}

fn machine_id(number: u32) -> String {
    format!("{:032x}", 0x5eed_0000_0000_0000_0000_u128 + u128::from(number) + u128::from(std::process::id()) * 1_000)
}
