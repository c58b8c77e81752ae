//! One headnode becomes three, one is lost, another takes its place, one goes: with instances running and tenants asking all the time.

use std::{
    fs,
    net::{Shutdown, TcpListener, TcpStream},
    process::Output,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use etcd::local::Member;
use serde_json::Value;

use crate::{
    fleet::{Fleet, Machine, PATIENCE},
    reach::{self, Moving, Tenant},
};

/// The processes of a machine, the one that starts the others first.
const PROCESSES: [&str; 4] = ["supervisor", "headnode", "member", "node"];

/// Whether etcd is here; says so where it is not.
pub(crate) fn etcd_is_here() -> bool {
    let is_here = etcd::local::is_installed();
    if !is_here {
        println!("skipped: several headnodes, because etcd is not installed (Debian's package etcd-server)");
    }
    is_here
}

pub(crate) fn create(fleet: &Fleet, name: &str) -> String {
    fleet.good(&["instance", "create", "-w", "--name", name, "minimal", "g1-nano"]);
    fleet.instance(name).expect("an instance")["id"].as_str().expect("an id").to_owned()
}

/// What a machine says of all headnodes; nothing while it does not answer.
pub(crate) fn status(machine: &Machine) -> Option<Value> {
    let output = machine.run(&["adm", "-j", "ha", "status"]);
    output.status.success().then(|| serde_json::from_slice(&output.stdout).ok()).flatten()
}

/// Headnodes that are active and beat, by the word of `machine`.
pub(crate) fn active(machine: &Machine) -> usize {
    let is_active = |one: &&Value| one["stage"] == "active" && one["fresh"] == true;
    status(machine).map_or(0, |view| view["headnodes"].as_array().map_or(0, |all| all.iter().filter(is_active).count()))
}

pub(crate) fn kill_all(machine: &Machine) {
    for name in PROCESSES {
        if let Some(pid) = machine.pid(name) {
            // It may have gone with the one before.
            let _ = base::daemon::kill(pid);
        }
    }
}

/// Writes at `machine` until it is taken; how long that was.
pub(crate) fn write(machine: &Machine, server: &str, text: &str) -> Duration {
    let begun = Instant::now();
    while !machine.run(&["adm", "-j", "server", "set", server, "--comments", text]).status.success() {
        assert!(begun.elapsed() < PATIENCE, "nothing can be written: {:?}", status(machine));
        std::thread::sleep(Duration::from_millis(100));
    }
    begun.elapsed()
}

/// What was measured while others worked.
#[derive(Debug, Default)]
struct Asked {
    reads: usize,
    failed: Vec<String>,
    longest_read: Duration,
    writes: usize,
    longest_write: Duration,
}

/// Reads as a tenant and writes as an operator, at the head, until `over`.
fn ask(fleet: &Fleet, server: &str, over: &AtomicBool) -> Asked {
    let mut asked = Asked::default();
    while !over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let output = fleet.head.run(&["instance", "list", "-j"]);
        asked.longest_read = asked.longest_read.max(begun.elapsed());
        asked.reads += 1;
        if !output.status.success() {
            asked.failed.push(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        asked.longest_write = asked.longest_write.max(write(&fleet.head, server, &format!("write {}", asked.writes)));
        asked.writes += 1;
    }
    asked
}

/// A cluster of one member in the test's own network, and a way to it from every machine's loopback device.
struct Kept {
    _runtime: tokio::runtime::Runtime,
    _members: Vec<Member>,
    _directory: tempfile::TempDir,
    port: u16,
}

impl Kept {
    fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let directory = tempfile::Builder::new().prefix("neso-fleet-etcd-").tempdir().expect("a directory");
        let members = runtime.block_on(Member::cluster(directory.path(), 1, None, &[])).expect("a cluster");
        let port = members[0].endpoint().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        Self { _runtime: runtime, _members: members, _directory: directory, port }
    }

    fn section(&self) -> String {
        format!("engine = \"etcd\"\nendpoints = [\"http://127.0.0.1:{}\"]", self.port)
    }

    /// Carries what a machine says to the member, as if it ran there.
    fn reach(&self, machine: &Machine) {
        let port = self.port;
        let listener = machine.space.enter(|| TcpListener::bind(("127.0.0.1", port)).expect("a port nobody has there"));
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                // This thread is in the test's own network.
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for (mut from, mut to) in [(near.try_clone(), far.try_clone()), (far.try_clone(), near.try_clone())]
                    .into_iter()
                    .filter_map(|(from, to)| Some((from.ok()?, to.ok()?)))
                {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
    }
}

/// Three headnodes over a cluster that somebody else keeps.
#[test]
fn headnodes_come_and_go_over_a_cluster_somebody_else_keeps() {
    if !etcd_is_here() {
        return;
    }
    let kept = Kept::start();
    let edit = |text: String| {
        text.replace("engine = \"sqlite\"", &kept.section())
            .replace("headnode_takes_instances = true", "headnode_takes_instances = false")
    };
    let Some(fleet) = Fleet::start_prepared(3, edit, |machine| kept.reach(machine)) else { return };
    headnodes_come_and_go(&fleet);
}

/// From a file to three headnodes whose store is kept by members of their own.
#[test]
fn headnodes_come_and_go_over_members_of_their_own() {
    if !etcd_is_here() {
        return;
    }
    let edit = |text: String| text.replace("headnode_takes_instances = true", "headnode_takes_instances = false");
    let called = |machine: &Machine| machine.change_settings(reach::settle);
    let Some(fleet) = Fleet::start_prepared(3, edit, called) else { return };
    headnodes_come_and_go(&fleet);
    the_loss_is_told(&fleet);
    one_url_is_enough(&fleet);
    assert!(!fleet.head.settings().headnode_dir().join("store.db").exists(), "the file is put aside");
}

fn headnodes_come_and_go(fleet: &Fleet) {
    let ids: Vec<String> = fleet.machines.iter().map(Machine::server_id).collect();
    let instances = [create(fleet, "one"), create(fleet, "two")];
    let running = |machines: &[Machine]| {
        instances.iter().map(|id| machines.iter().find_map(|machine| machine.init(id))).collect::<Vec<_>>()
    };
    let before = running(&fleet.machines);
    assert!(before.iter().all(Option::is_some), "they run");
    let told = fleet.head.bad(&["adm", "ha", "add", &ids[0]]);
    assert!(told.contains("would leave 2 headnodes"), "{told}");
    assert!(!fleet.machines[0].settings().pki_dir().join("ca.key").exists(), "a node has no keys of the datacenter");
    grow(fleet, &ids);

    // The first one is lost: the others go on by themselves.
    kill_all(&fleet.head);
    let silence = write(&fleet.machines[0], &ids[2], "the first is gone");
    println!("after the first headnode was killed with all its processes: a write took {silence:?}");
    fleet.wait("the loss to be seen", || active(&fleet.machines[1]) == 2);
    assert_eq!(running(&fleet.machines), before, "instances notice nothing");
}

/// The first of three is gone, and with it its member. A survivor's metrics say so.
fn the_loss_is_told(fleet: &Fleet) {
    let told = || {
        let output = fleet.machines[0].run(&["adm", "metrics"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let count = |name: &str, value: &str| {
            text.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.ends_with(value)).count()
        };
        let up = (count("neso_member_up", " 1"), count("neso_member_up", " 0"));
        let beating = (count("neso_headnode_beating", " 1"), count("neso_headnode_beating", " 0"));
        let leads = count("neso_member_leads", " 1");
        // Of who beats: by how much its clock differs from the others'.
        let clocks = count("neso_headnode_clock_offset_seconds", "");
        (up, beating, leads, clocks >= 2)
    };
    fleet.wait("the metrics to tell of the loss", || told() == ((2, 1), (2, 1), 1, true));
}

/// The first of three is gone. A tenant with one URL finds the others, by a name with all addresses and by an address that moves.
fn one_url_is_enough(fleet: &Fleet) {
    if let Some(lack) = reach::lack() {
        assert!(std::env::var_os("NESO_REQUIRE_CLIENTS").is_none(), "cannot run the tenants' command: {lack}");
        println!("skipped: one URL for several headnodes, because {lack}");
        return;
    }
    let machines = [&fleet.head, &fleet.machines[0], &fleet.machines[1]];
    let tenant = Tenant::new(fleet);
    let told = |output: &Output| {
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat()
    };
    let listed = || told(&tenant.triton(&["instance", "list", "-H", "-o", "name"]));
    if reach::tries_all_addresses() {
        tenant.finds(machines.map(|machine| machine.address.as_str()));
        let names = listed();
        assert!(names.contains("one") && names.contains("two"), "{names}");
    } else {
        println!("skipped: a name with several addresses, because this Node.js tries only one of them");
    }

    fleet.head.good(&["up"]);
    fleet.wait("three headnodes again", || machines.iter().all(|machine| active(machine) == 3));
    let moving = Moving::start(&machines);
    tenant.finds([Moving::ADDRESS]);
    fleet.wait("the address to be somewhere", || Moving::holders(&machines).len() == 1);
    let names = listed();
    assert!(names.contains("one") && names.contains("two"), "{names}");

    let first = Moving::holders(&machines)[0];
    let holder = *machines.iter().find(|machine| machine.name == first).expect("one of them");
    kill_all(holder);
    let begun = Instant::now();
    loop {
        let done = tenant.triton(&["instance", "tag", "set", "one", "moved=true"]);
        if done.status.success() {
            break;
        }
        let places = Moving::holders(&machines);
        assert!(begun.elapsed() < PATIENCE, "the address is at {places:?}: {}", told(&done));
    }
    println!("the unmodified triton worked again {:?} after the headnode with the address had died", begun.elapsed());
    fleet.wait("the address to be elsewhere alone", || {
        let holders = Moving::holders(&machines);
        holders.len() == 1 && holders[0] != first
    });
    holder.good(&["up"]);
    fleet.wait("three headnodes again", || machines.iter().all(|machine| active(machine) == 3));
    assert_ne!(Moving::holders(&machines), [first], "it stays where it is");
    let got = tenant.triton(&["instance", "get", "one"]);
    assert!(got.status.success(), "and the tenant with it: {}", told(&got));
    drop(moving);
}

/// From one to three, while somebody reads and writes.
fn grow(fleet: &Fleet, ids: &[String]) {
    let over = AtomicBool::new(false);
    let asked = std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(fleet, &ids[2], &over));
        let added = fleet.head.run(&["adm", "ha", "add", &ids[0], &ids[1]]);
        over.store(true, Ordering::Relaxed);
        let asked = asking.join().expect("whoever asks goes on");
        let (out, err) = (String::from_utf8_lossy(&added.stdout), String::from_utf8_lossy(&added.stderr));
        assert!(added.status.success(), "{out}\n{err}");
        println!("{err}\n{out}");
        asked
    });
    assert!(asked.failed.is_empty(), "reads failed: {:#?}", asked.failed);
    println!(
        "growing to three: {} reads, none failed, the longest {:?}; {} writes, the longest {:?}; the store's own pause {} ms",
        asked.reads,
        asked.longest_read,
        asked.writes,
        asked.longest_write,
        pause_ms(&fleet.head)
    );
    for machine in [&fleet.head, &fleet.machines[0], &fleet.machines[1]] {
        fleet.wait("everybody to see three headnodes", || active(machine) == 3);
    }
    let view = status(&fleet.machines[0]).expect("a new one answers");
    assert!(view["may_be_lost"].as_u64() >= Some(1), "{view}");
    let all = view["headnodes"].as_array().expect("a list");
    assert!(all.len() == 3 && all.iter().all(|one| one["settings_differ"] == false), "{view}");
}

/// How long the store says that writes waited, of the flow that moved it.
fn pause_ms(machine: &Machine) -> Value {
    let log = machine.log("headnode");
    let line = log.lines().find(|line| line.contains("the store was moved")).unwrap_or_default().to_owned();
    let found = line.split("pause_ms").nth(1).unwrap_or_default();
    let digits: String = found.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse::<u64>().map_or(Value::Null, Value::from)
}

/// Steps of adding a headnode.
const STEPS: [&str; 8] =
    ["claim", "move_store", "add_member", "tell", "await_files", "await_beat", "promote", "activate"];

/// Whichever headnode carries the change out is killed before and after each of its steps, and it goes on.
#[test]
fn a_change_survives_the_death_of_who_makes_it() {
    if !etcd_is_here() {
        return;
    }
    let kept = Kept::start();
    let edit = |text: String| text.replace("engine = \"sqlite\"", &kept.section());
    let Some(fleet) = Fleet::start_prepared(1, edit, |machine| kept.reach(machine)) else { return };
    let machines = [&fleet.head, &fleet.machines[0]];
    let points: Vec<String> = STEPS
        .iter()
        .flat_map(|step| ["before", "after"].map(|word| format!("flow.headnode-add.{step}.{word}")))
        .collect();
    for machine in machines {
        fs::create_dir(machine.crash_dir()).expect("a directory for crash points");
        for point in &points {
            fs::write(machine.crash_dir().join(point), "").expect("a crash point is armed");
        }
    }
    // The answer may be lost with who gives it.
    let _ = fleet.head.run(&["adm", "-j", "ha", "add", &fleet.machines[0].server_id(), "--even", "--no-wait"]);
    let flow = || {
        let flows = fleet.ask(&["adm", "-j", "flow", "list"])?;
        flows.as_array()?.iter().find(|flow| flow["kind"] == "headnode-add").cloned()
    };
    fleet.wait("the change to be done", || {
        let Some(view) = flow() else { return false };
        let names: Vec<&str> =
            view["steps"].as_array().expect("steps").iter().flat_map(|one| one["name"].as_str()).collect();
        assert_eq!(names, STEPS, "each step is armed");
        assert!(view["state"] == "running" || view["state"] == "succeeded", "{view}");
        view["state"] == "succeeded"
    });
    let is_spent = |point: &&String| machines.iter().any(|machine| !machine.crash_dir().join(point).exists());
    let unspent: Vec<&String> = points.iter().filter(|point| !is_spent(point)).collect();
    assert!(unspent.is_empty(), "nobody died at {unspent:?}");
    for machine in machines {
        let _ = fs::remove_dir_all(machine.crash_dir());
        fleet.wait("both to be headnodes", || active(machine) == 2);
    }
}
