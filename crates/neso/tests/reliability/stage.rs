//! Three headnodes on three machines of a fleet, and what can be done to them.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
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
/// Size of the disk of a headnode and its member, bytes.
const DISK_BYTES: u64 = 768 << 20;
/// Our processes on a machine, children of the supervisor last.
const PROCESSES: [&str; 4] = ["supervisor", "headnode", "member", "node"];

pub(crate) struct Stage {
    fleet: Fleet,
    clients: Space,
    instances: Vec<String>,
    make: [String; 3],
    frozen: Vec<u32>,
    tracers: Vec<Child>,
    broken_disk: Option<usize>,
}

impl Stage {
    /// Three machines, the first of which had the only headnode; `None`, with a line that says why, where that is impossible.
    pub(crate) fn start() -> Option<Self> {
        if !etcd::local::is_installed() {
            println!("skipped: faults under load, because etcd is not installed (Debian's package etcd-server)");
            return None;
        }
        // All clients are one tenant, who would be told to be slower.
        let edit = |text: String| text.replace("throttle_rate = 50", "throttle_rate = 0");
        let fleet = Fleet::start_prepared(COUNT as u32 - 1, edit, mount_disk)?;
        let clients = fleet.client();
        let mut stage = Self {
            fleet,
            clients,
            instances: Vec::new(),
            make: Default::default(),
            frozen: Vec::new(),
            tracers: Vec::new(),
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

    pub(crate) fn lose_majority(&mut self) {
        let leader = self.leader();
        self.down(leader);
        self.down((leader + 1) % COUNT);
    }

    /// Every machine loses its power at once and is switched on again; nothing is started.
    pub(crate) fn lose_power(&mut self) {
        self.fleet.power_cycle();
        for number in 0..COUNT {
            mount_disk(self.fleet.machine(number));
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

    /// Every fsync of a machine's member takes `longer`.
    pub(crate) fn slow_disk(&mut self, number: usize, longer: Duration) {
        let pid = self.fleet.machine(number).pid("member").expect("a member runs");
        let inject = format!("inject=fsync,fdatasync:delay_enter={}", longer.as_micros());
        let tracer = Command::new("strace")
            .args(["-f", "-q", "-e", "trace=fsync,fdatasync", "-e", &inject, "-o", "/dev/null", "-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("`strace` (Debian's package strace) runs");
        self.tracers.push(tracer);
    }

    /// The disk of a machine's headnode and member is full.
    pub(crate) fn fill_disk(&mut self, number: usize) {
        let filler = self.disk(number).join("filler");
        self.fleet.machine(number).space.output(&format!("dd if=/dev/zero of={} bs=1M", filler.display()));
    }

    /// The disk of a machine's headnode and member reports an error that makes the kernel turn it read-only.
    pub(crate) fn break_disk(&mut self, number: usize) {
        self.fleet.machine(number).space.run(&format!("mount -o remount,abort {}", self.disk(number).display()));
        self.broken_disk = Some(number);
    }

    pub(crate) fn mend_disks(&mut self) {
        for mut tracer in std::mem::take(&mut self.tracers) {
            signal(tracer.id(), nix::sys::signal::Signal::SIGINT);
            let _ = tracer.wait();
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
            let _ = machine.space.output(&format!("e2fsck -p {}", image(machine).display()));
            mount_disk(machine);
            self.start_all();
        }
    }

    pub(crate) fn delete_member_data(&mut self, number: usize) {
        let directory = self.disk(number).join("member");
        assert!(directory.is_dir(), "{} holds a member's data", directory.display());
        self.kill(number, "member");
        let _ = fs::remove_dir_all(directory);
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
        self.join_links();
        for number in 0..COUNT {
            // `neso clean-data` removes what is below.
            let _ = self.fleet.machine(number).space.output(&format!("umount -l {}", self.disk(number).display()));
        }
    }
}

/// Gives the headnode and the member of a machine a disk of their own, which can be filled.
fn mount_disk(machine: &Machine) {
    let (image, directory) = (image(machine), machine.settings().headnode_dir());
    fs::create_dir_all(&directory).expect("a directory");
    if !image.exists() {
        let file = fs::File::create(&image).expect("an image file");
        file.set_len(DISK_BYTES).expect("an image file");
        machine.space.run(&format!("mkfs.ext4 -q -F {}", image.display()));
    }
    machine.space.run(&format!("mount -o loop {} {}", image.display(), directory.display()));
}

/// What that disk is.
fn image(machine: &Machine) -> PathBuf {
    machine.root.join("headnode.img")
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
