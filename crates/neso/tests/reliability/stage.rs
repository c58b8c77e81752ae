//! Three headnodes on three machines of a fleet, and what can be done to them.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use base::clock::{Clock as _, SystemClock};
use headnode::pki;
use model::time::Timestamp;

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    clock::WrongClock,
    disk::Disks,
    faults::Cut,
    fleet::{Fleet, Machine},
    load::Orders,
    space::Space,
};

/// Machines, each with a headnode.
const COUNT: usize = 3;
/// Anything we wait for.
const PATIENCE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(100);
/// Instances whose tags are written and read.
const INSTANCES: usize = 2;
/// How long ago certificates were made that have ended, milliseconds: 500 days; they live 397.
const LONG_AGO_MS: i64 = 500 * 86_400_000;
/// Of a disk that is to be full, what is written until nothing more goes, bytes.
const LAST_BYTES: u64 = 8 << 20;
/// Names a program of another release.
const OTHER_RELEASE: &str = "NESO_OTHER_RELEASE";
/// The release after ours, and the one after that.
const NEXT: &str = "0.2.0";
const AFTER_NEXT: &str = "0.3.0";
/// Our processes on a machine, children of the supervisor last.
const PROCESSES: [&str; 4] = ["supervisor", "headnode", "member", "node"];

pub(crate) struct Stage {
    fleet: Fleet,
    disks: Vec<Disks>,
    /// Where their images are.
    images: TempDir,
    incarnations: usize,
    clients: Space,
    instances: Vec<String>,
    make: [String; 3],
    frozen: Vec<u32>,
    wrong_clocks: Vec<WrongClock>,
    broken_disk: Option<usize>,
}

impl Stage {
    /// Three machines, the first of which had the only headnode; `None`, with a line that says why, where that is impossible.
    pub(crate) fn start() -> Option<Self> {
        if !etcd::local::is_installed() {
            println!("skipped: faults under load, because etcd is not installed (Debian's package etcd-server)");
            return None;
        }
        if !Path::new("/dev/fuse").exists() {
            println!(
                "skipped: faults under load, because this kernel has no FUSE, which the machines' disks are made with"
            );
            return None;
        }
        // All clients are one tenant, who would be told to be slower.
        let edit = |text: String| text.replace("throttle_rate = 50", "throttle_rate = 0");
        let images = tempfile::Builder::new().prefix("neso-disks-").tempdir().expect("a directory");
        let disks = RefCell::new(Vec::new());
        let prepare = |machine: &Machine| {
            let made = Disks::open(machine, images.path(), 0);
            made.mount(machine);
            disks.borrow_mut().push(made);
        };
        let fleet = Fleet::start_prepared(COUNT as u32 - 1, edit, prepare)?;
        let clients = fleet.client();
        let mut stage = Self {
            fleet,
            disks: disks.into_inner(),
            images,
            incarnations: 0,
            clients,
            instances: Vec::new(),
            make: Default::default(),
            frozen: Vec::new(),
            wrong_clocks: Vec::new(),
            broken_disk: None,
        };
        let others: Vec<String> = stage.fleet.machines.iter().map(Machine::server_id).collect();
        let add: Vec<&str> = ["adm", "ha", "add"].into_iter().chain(others.iter().map(String::as_str)).collect();
        println!("{}", stage.fleet.good(&add));
        stage.wait_well();
        for number in 0..INSTANCES {
            let made = stage.fleet.json(&[
                "instance",
                "-j",
                "create",
                "-w",
                "--name",
                &format!("tags-{number}"),
                "minimal",
                "g1-nano",
            ]);
            stage.instances.push(made["id"].as_str().expect("an id").to_owned());
        }
        let of = |list: &[&str], name: &str| {
            let all = stage.fleet.json(list);
            let found =
                all.as_array().expect("a list").iter().find(|one| one["name"] == name).expect("it is there").clone();
            found["id"].as_str().expect("an id").to_owned()
        };
        stage.make = [
            of(&["adm", "-j", "image", "list"], "minimal"),
            of(&["adm", "-j", "package", "list"], "g1-nano"),
            of(&["adm", "-j", "network", "list"], "external"),
        ];
        Some(stage)
    }

    /// Where clients are.
    pub(crate) fn clients(&self) -> &Space {
        &self.clients
    }

    /// What the load is told.
    pub(crate) fn orders(&self, prefix: &str) -> Orders {
        let settings = self.fleet.head.settings();
        let directory =
            settings.first_run.key_directory.clone().expect("a rooted datacenter's keys are below the root");
        let url = |number| {
            let machine = self.fleet.machine(number);
            format!("https://{}:{}", machine.address, machine.settings().listen.cloudapi.port())
        };
        Orders {
            urls: (0..COUNT).map(url).collect(),
            account: settings.first_run.tenant,
            key: directory.join("id_neso"),
            instances: self.instances.clone(),
            prefix: prefix.to_owned(),
            tags: 3,
            clients: 6,
            make: Some(self.make.clone()),
        }
    }

    /// Asks the first machine that answers.
    fn ask(&self, arguments: &[&str]) -> Option<Value> {
        (0..COUNT).find_map(|number| {
            let output = self.fleet.machine(number).run(arguments);
            output.status.success().then(|| serde_json::from_slice(&output.stdout).ok()).flatten()
        })
    }

    fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(
                Instant::now() < deadline,
                "waited in vain for {what}: {:?}",
                self.ask(&["adm", "-j", "ha", "status"])
            );
            std::thread::sleep(POLL);
        }
    }

    /// Waits until every headnode says that all are well, and no flow is under way for lack of one.
    pub(crate) fn wait_well(&self) {
        for number in 0..COUNT {
            self.wait(&format!("headnode {number} to see all headnodes well"), || {
                let output = self.fleet.machine(number).run(&["adm", "-j", "ha", "status"]);
                let status: Option<Value> =
                    output.status.success().then(|| serde_json::from_slice(&output.stdout).ok()).flatten();
                status.is_some_and(|status| is_well(&status))
            });
        }
        self.wait("every node to speak to a headnode", || {
            let running = |server: &Value| server["condition"]["state"] == "running";
            self.ask(&["adm", "-j", "server", "list"])
                .is_some_and(|servers| servers.as_array().is_some_and(|all| all.iter().all(running)))
        });
    }

    /// Position of the machine whose member leads.
    pub(crate) fn leader(&self) -> usize {
        let status = self.ask(&["adm", "-j", "ha", "status"]).expect("a headnode answers");
        let leads = |headnode: &&Value| headnode["member"]["leads"] == true;
        let found =
            status["headnodes"].as_array().expect("a list").iter().find(leads).expect("one leads")["id"].clone();
        (0..COUNT).find(|number| found == self.fleet.machine(*number).server_id().as_str()).expect("it is one of ours")
    }

    pub(crate) fn kill(&mut self, number: usize, process: &str) {
        let pid =
            self.fleet.machine(number).pid(process).unwrap_or_else(|| panic!("{process} runs on machine {number}"));
        base::daemon::kill(pid).expect("our own process can be killed");
    }

    /// Kills every process of ours on a machine; zones run on.
    pub(crate) fn down(&mut self, number: usize) {
        let machine = self.fleet.machine(number);
        // The others end by themselves when the first is gone; they may be quicker than we.
        for pid in PROCESSES.iter().filter_map(|name| machine.pid(name)) {
            let _ = base::daemon::kill(pid);
        }
        self.wait("our processes to be dead", || PROCESSES.iter().all(|name| machine.pid(name).is_none()));
    }

    /// What another machine's headnode makes of a machine that something was done to.
    pub(crate) fn seen(&self, broken: usize) -> Option<Seen> {
        let id = self.fleet.machine(broken).server_id();
        let status = (0..COUNT).filter(|number| *number != broken).find_map(|number| {
            let output = self.fleet.machine(number).run(&["adm", "-j", "ha", "status"]);
            output.status.success().then(|| serde_json::from_slice::<Value>(&output.stdout).ok()).flatten()
        })?;
        let all = status["headnodes"].as_array()?;
        Some(Seen::of(all.iter().find(|headnode| headnode["id"] == id.as_str())?))
    }

    pub(crate) fn lose_majority(&mut self) {
        let leader = self.leader();
        self.down(leader);
        self.down((leader + 1) % COUNT);
    }

    /// Every machine loses its power at once and is switched on again; nothing is started.
    pub(crate) fn lose_power(&mut self) {
        self.fleet.power_cycle();
        for (number, disks) in self.disks.iter().enumerate() {
            disks.mount(self.fleet.machine(number));
        }
    }

    /// All disks lie from now on.
    pub(crate) fn lie(&mut self) {
        for disks in &self.disks {
            disks.headnode.lie();
            disks.node.lie();
        }
    }

    /// The same, and what was not flushed to the disks is lost.
    pub(crate) fn lose_power_and_caches(&mut self) {
        let lost: Vec<usize> = self.disks.iter().map(Disks::lose_power).collect();
        println!("not flushed on the machines' disks, and lost: {lost:?} bytes");
        self.fleet.power_cycle();
        self.disks.clear();
        self.incarnations += 1;
        for number in 0..COUNT {
            let machine = self.fleet.machine(number);
            let disks = Disks::open(machine, self.images.path(), self.incarnations);
            disks.mount(machine);
            self.disks.push(disks);
        }
    }

    /// Starts what does not run, all machines at once.
    pub(crate) fn start_all(&mut self) {
        std::thread::scope(|scope| {
            for number in 0..COUNT {
                let machine = self.fleet.machine(number);
                scope.spawn(move || {
                    if machine.pid("supervisor").is_none() {
                        // It waits for the headnode, which waits for the others; what matters is that it was started.
                        let mut command = machine.command(&["up"]);
                        let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
                    }
                });
            }
        });
    }

    pub(crate) fn freeze(&mut self, number: usize, processes: &[&str]) {
        for process in processes {
            let pid = self.fleet.machine(number).pid(process).unwrap_or_else(|| panic!("{process} runs"));
            signal(pid, nix::sys::signal::Signal::SIGSTOP);
            self.frozen.push(pid);
        }
    }

    pub(crate) fn thaw(&mut self) {
        for pid in std::mem::take(&mut self.frozen) {
            signal(pid, nix::sys::signal::Signal::SIGCONT);
        }
    }

    /// Cuts a machine off from the other headnodes and nodes; clients still reach it.
    pub(crate) fn cut(&mut self, number: usize, cut: Cut) {
        let others: Vec<String> = (0..COUNT)
            .filter(|other| *other != number)
            .map(|other| self.fleet.machine(other).address.clone())
            .collect();
        let others = others.join(", ");
        let mut rules = String::from("add table inet cut\nflush table inet cut\n");
        for (hook, field, is_cut) in [("input", "saddr", cut.inwards), ("output", "daddr", cut.outwards)] {
            if is_cut {
                rules.push_str(&format!(
                    "add chain inet cut {hook} {{ type filter hook {hook} priority -300; }}\nadd rule inet cut {hook} ip {field} {{ {others} }} drop\n"
                ));
            }
        }
        self.fleet.machine(number).space.feed("nft -f -", &rules);
    }

    pub(crate) fn part_member(&mut self, number: usize) {
        self.fleet.machine(number).part_member();
    }

    pub(crate) fn join_links(&mut self) {
        for number in 0..COUNT {
            // Where nothing was cut there is no such table.
            let _ = self.fleet.machine(number).space.output("nft delete table inet cut");
        }
    }

    /// All links between headnodes down and up.
    pub(crate) fn flap(&mut self) {
        for _ in 0..8 {
            for number in 0..COUNT {
                self.cut(number, Cut { inwards: true, outwards: true });
            }
            std::thread::sleep(Duration::from_secs(2));
            self.join_links();
            std::thread::sleep(Duration::from_secs(2));
        }
    }

    /// Every flush of the disk of a machine's headnode and member takes `longer`.
    pub(crate) fn slow_disk(&mut self, number: usize, longer: Duration) {
        self.disks[number].headnode.slow_down(longer);
    }

    /// The disk of a machine's headnode and member is full.
    pub(crate) fn fill_disk(&mut self, number: usize) {
        let (directory, space) = (self.disk(number), &self.fleet.machine(number).space);
        let text = space.run(&format!("df --output=avail -B1 {}", directory.display()));
        let left: u64 = text.lines().last().and_then(|bytes| bytes.trim().parse().ok()).expect("a number of bytes");
        let filler = directory.join("filler").display().to_string();
        // Most of it at once, and the rest until nothing more goes.
        space.run(&format!("fallocate -l {} {filler}", left.saturating_sub(LAST_BYTES)));
        space.output(&format!("dd if=/dev/zero of={filler} bs=64K oflag=append conv=notrunc"));
    }

    /// The disk of a machine's headnode and member reports an error that makes the kernel turn it read-only.
    pub(crate) fn break_disk(&mut self, number: usize) {
        self.fleet.machine(number).space.run(&format!("mount -o remount,abort {}", self.disk(number).display()));
        self.broken_disk = Some(number);
    }

    pub(crate) fn mend_disks(&mut self) {
        for disks in &self.disks {
            disks.headnode.slow_down(Duration::ZERO);
        }
        for number in 0..COUNT {
            // Where it was not filled there is no such file.
            let _ = self.fleet.machine(number).space.output(&format!("rm -f {}/filler", self.disk(number).display()));
        }
        // An operator ends what uses it, checks it, and starts the machine's processes again.
        if let Some(number) = self.broken_disk.take() {
            self.down(number);
            let (machine, directory) = (self.fleet.machine(number), self.disk(number));
            machine.space.run(&format!("umount {}", directory.display()));
            // Its answer says that it mended something.
            let _ = machine.space.output(&format!("e2fsck -p {}", self.disks[number].headnode.device));
            self.disks[number].mount(machine);
            self.start_all();
        }
    }

    /// Installs another release on one machine after the other, each when the one before is well again.
    pub(crate) fn roll_forward(&mut self) {
        let leader = self.leader();
        self.refuse_release_after_next(leader);
        for number in (0..COUNT).map(|number| (leader + number) % COUNT) {
            self.install(number, &Installed::next());
        }
    }

    /// The same with the one before.
    pub(crate) fn roll_back(&mut self) {
        for number in 0..COUNT {
            self.install(number, &Installed::present());
        }
    }

    fn install(&mut self, number: usize, installed: &Installed) {
        self.fleet.machine(number).good(&["down", "--keep-instances"]);
        let machine = match number.checked_sub(1) {
            None => &mut self.fleet.head,
            Some(at) => &mut self.fleet.machines[at],
        };
        machine.program.clone_from(&installed.program);
        machine.environment.retain(|(name, _)| name != base::release::VARIABLE);
        machine
            .environment
            .extend(installed.calls_itself.map(|name| (base::release::VARIABLE.to_owned(), name.to_owned())));
        self.fleet.machine(number).good(&["up"]);
        self.wait_well();
        let id = self.fleet.machine(number).server_id();
        self.wait("its headnode to run what was installed", || {
            let status = self.ask(&["adm", "-j", "ha", "status"]).unwrap_or_default();
            let all = status["headnodes"].as_array().cloned().unwrap_or_default();
            let told = all.iter().find(|headnode| headnode["id"] == id.as_str()).map(|one| one["release"].clone());
            told.is_some_and(|told| installed.calls_itself.is_none_or(|name| told == name))
        });
    }

    /// A program that skips a release says so, and starts no headnode.
    fn refuse_release_after_next(&mut self, number: usize) {
        let machine = self.fleet.machine(number);
        machine.good(&["down", "--keep-instances"]);
        let mut command = machine.command(&["headnode"]);
        let output = command.env(base::release::VARIABLE, AFTER_NEXT).output().expect("the binary under test runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("too new"), "release {AFTER_NEXT} was not refused: {said}");
        machine.good(&["up"]);
        self.wait_well();
    }

    pub(crate) fn delete_member_data(&mut self, number: usize) {
        let directory = self.disk(number).join("member").display().to_string();
        // The disk is mounted on its machine alone.
        let space = &self.fleet.machine(number).space;
        space.run(&format!("test -d {directory}/member/wal"));
        self.kill(number, "member");
        self.fleet.machine(number).space.run(&format!("rm -rf {directory}"));
    }

    /// The clock of every process of ours on a machine is wrong by `seconds`; [`Stage::mend_clocks`] sets it right.
    pub(crate) fn set_clock(&mut self, number: usize, seconds: i64) {
        let machine = self.fleet.machine(number);
        let all = PROCESSES.iter().filter_map(|name| machine.pid(name));
        self.wrong_clocks.extend(all.map(|pid| WrongClock::set(pid, seconds)));
    }

    pub(crate) fn mend_clocks(&mut self) {
        self.wrong_clocks.drain(..).for_each(WrongClock::mend);
    }

    /// A machine is off until all its certificates have ended: those of its headnode, of its node, of its member and of its operator. It is switched on
    /// by [`Stage::start_all`].
    pub(crate) fn expire_certificates(&mut self, number: usize) {
        self.down(number);
        let machine = self.fleet.machine(number);
        let settings = machine.settings();
        let then = Timestamp(SystemClock.now_ms()).plus_millis(-LONG_AGO_MS);
        pki::renew(&settings, then).expect("certificates of long ago");
        let store = pki::StorePki::of(&settings);
        for file in [&store.member.certificate, &store.client.certificate] {
            fs::remove_file(file).expect("a certificate of the store");
        }
        let made =
            pki::store_certificates(&settings, &machine.server_id(), std::slice::from_ref(&machine.address), then);
        let ended = [
            made.expect("certificates of long ago").member,
            pki::Identity {
                certificate: settings.pki_dir().join("node.pem"),
                key: settings.pki_dir().join("node.key"),
            },
        ];
        for identity in ended {
            let ends = identity.expires_at().expect("a certificate");
            assert!(ends.0 < SystemClock.now_ms(), "it has ended");
        }
    }

    /// Where a machine's disk for headnode and member is mounted.
    fn disk(&self, number: usize) -> PathBuf {
        self.fleet.machine(number).settings().headnode_dir()
    }

    /// Checks, once everything has settled, that instances are as their clients were told.
    pub(crate) fn check_instances(&self, there: &[&str], gone: &[&str]) -> Result<(), String> {
        self.wait("every flow to end", || {
            self.ask(&["adm", "-j", "flow", "list", "--unfinished"])
                .is_some_and(|flows| flows == Value::Array(Vec::new()))
        });
        let all = self.ask(&["adm", "-j", "instance", "list"]).ok_or("nobody lists instances")?;
        let states = |name: &str| {
            let all = all.as_array().into_iter().flatten();
            all.filter(|one| one["alias"] == name).map(|one| one["state"].to_string()).collect::<Vec<_>>()
        };
        for name in there {
            if states(name) != ["\"running\""] {
                return Err(format!("{name} was acknowledged, and is {:?}", states(name)));
            }
        }
        match gone.iter().find(|name| states(name).iter().any(|state| state != "\"deleted\"")) {
            Some(name) => Err(format!("the end of {name} was acknowledged, and it is {:?}", states(name))),
            None => Ok(()),
        }
    }

    /// Removes the instances that the load made, so that every fault meets the same datacenter.
    pub(crate) fn clear(&mut self, prefix: &str) {
        let all = self.ask(&["adm", "-j", "instance", "list"]).unwrap_or_default();
        for one in all.as_array().into_iter().flatten() {
            let (name, id) = (one["alias"].as_str().unwrap_or_default(), one["id"].as_str().unwrap_or_default());
            if name.starts_with(prefix) && one["state"] != "deleted" {
                let _ = (0..COUNT)
                    .any(|number| self.fleet.machine(number).run(&["adm", "instance", "delete", id]).status.success());
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.thaw();
        self.mend_disks();
        self.mend_clocks();
        self.join_links();
        for number in 0..COUNT {
            let machine = self.fleet.machine(number);
            // What is there has these as its working directories, or logs to them.
            for pid in PROCESSES.iter().filter_map(|name| machine.pid(name)) {
                let _ = base::daemon::kill(pid);
            }
            let settings = machine.settings();
            for directory in [settings.headnode_dir(), settings.node_dir()] {
                // `neso clean-data` removes what is below.
                let _ = machine.space.output(&format!("umount -l {}", directory.display()));
            }
        }
    }
}

/// A program as it is installed.
struct Installed {
    program: PathBuf,
    /// What a debug build is to call itself.
    calls_itself: Option<&'static str>,
}

impl Installed {
    fn present() -> Self {
        Self { program: env!("CARGO_BIN_EXE_neso").into(), calls_itself: None }
    }

    /// Another build, where one is given; else this one under the next release's name.
    fn next() -> Self {
        match std::env::var_os(OTHER_RELEASE) {
            Some(program) => Self { program: program.into(), calls_itself: None },
            None => Self { calls_itself: Some(NEXT), ..Self::present() },
        }
    }
}

/// A machine as another one's headnode sees it.
pub(crate) struct Seen {
    /// What it says is wrong with it; empty when nothing is.
    pub(crate) told: String,
    /// Its member leads the store.
    pub(crate) leads: bool,
    /// Its headnode has a share of the work.
    pub(crate) works: bool,
}

impl Seen {
    fn of(headnode: &Value) -> Self {
        let beat = headnode["beat_age_ms"].as_u64().unwrap_or(0);
        let silent = (headnode["fresh"] != true).then(|| format!("no beat for {} s", beat / 1_000));
        let sick = headnode["health"]["sick"].as_str().map(str::to_owned);
        let member = headnode["member"]["error"].as_str().map(|_| "its member does not answer".to_owned());
        let told: Vec<String> = [silent, sick, member].into_iter().flatten().collect();
        let (leads, works) = (headnode["member"]["leads"] == true, headnode["works"] == true);
        Self { told: told.join("; "), leads, works }
    }
}

fn is_well(status: &Value) -> bool {
    let headnodes = status["headnodes"].as_array().map_or(&[][..], Vec::as_slice);
    headnodes.len() == COUNT
        && headnodes.iter().all(|headnode| {
            let (health, member) = (&headnode["health"], &headnode["member"]);
            headnode["fresh"] == true
                && headnode["works"] == true
                && health["sick"].is_null()
                && member["voting"] == true
                && member["error"].is_null()
        })
}

fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a process id"));
    // One that has ended needs no signal.
    let _ = nix::sys::signal::kill(pid, signal);
}
