//! Headnodes are added, replaced and taken out, and whoever does it, or is concerned by it, is killed at every step: it goes on by itself, or when the same
//! command is typed again. Somebody writes all the time, and nothing that was acknowledged is lost.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    fleet::{Fleet, Machine},
    headnodes::{create, etcd_is_here, status},
    recover::await_equal,
};

/// Steps of the flows.
const ADDING: [&str; 8] =
    ["claim", "move_store", "add_member", "tell", "await_files", "await_beat", "promote", "activate"];
const REMOVING: [&str; 5] = ["leave", "remove_member", "tell", "await_gone", "forget"];
/// What happens once: the store leaves its file. Whoever dies at the last of them finds it in the members, and moves nothing any more.
const MOVING: [&str; 7] = [
    "members.move.authority",
    "members.move.noted",
    "members.move.started",
    "store.move.pass",
    "store.move.copied",
    "store.move.raised",
    "store.move.switched",
];
/// Within a step, on the machine that carries it out: a headnode is added.
const ADDING_WITHIN: [&str; 3] = ["control.headnode.learner", "members.add.room", "control.headnode.promoted"];
/// The same on the machine that becomes one: its node, and its headnode.
const JOINING: [&str; 4] = ["neso.kit.fetched", "headnode.kit.files", "neso.kit.taken", "control.headnode.announced"];
/// A headnode is taken out: on the machine that carries it out, and on the one that ceases to be one.
const REMOVING_WITHIN: [&str; 4] =
    ["control.headnode.member-out", "neso.headnode.leaving", "neso.headnode.ended", "neso.headnode.removed"];
/// How long one change may take on a busy machine: somebody dies again and again.
const CHANGE_PATIENCE: Duration = Duration::from_secs(600);
/// Between tries of a command that failed, and between writes.
const PAUSE: Duration = Duration::from_millis(300);

/// Where all machines of a fleet look for crash points: whoever comes by first dies there.
fn shared(machine: &Machine) -> PathBuf {
    machine.root.with_file_name("crash")
}

fn arm(fleet: &Fleet, points: &[String]) {
    for point in points {
        fs::write(shared(&fleet.head).join(point), "").expect("a crash point is armed");
    }
}

/// Points at which nobody died.
fn unspent(fleet: &Fleet) -> Vec<String> {
    let entries = fs::read_dir(shared(&fleet.head)).expect("a directory for crash points");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

fn of_flow(kind: &str, steps: &[&str]) -> Vec<String> {
    let both = |step: &&str| ["before", "after"].map(|word| format!("flow.headnode-{kind}.{step}.{word}"));
    steps.iter().flat_map(both).collect()
}

fn named(points: &[&str]) -> Vec<String> {
    points.iter().map(|point| (*point).to_owned()).collect()
}

/// Makes one package after the other until `over`; names of those that were acknowledged.
fn write_on(fleet: &Fleet, prefix: &str, over: &AtomicBool) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{prefix}-{number}");
        let make = ["adm", "package", "create", &name, "--memory", "64", "--disk", "1024"];
        if fleet.head.run(&make).status.success() {
            acknowledged.push(name);
        }
        std::thread::sleep(PAUSE);
    }
    acknowledged
}

/// Types `arguments` until they succeed or nothing is left to do; how often.
fn insist(fleet: &Fleet, arguments: &[&str], is_done: impl Fn() -> bool) -> usize {
    let deadline = Instant::now() + CHANGE_PATIENCE;
    let mut typed = 1;
    loop {
        let output = fleet.head.run(arguments);
        if output.status.success() || is_done() {
            return typed;
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(Instant::now() < deadline, "{arguments:?}, typed {typed} times: {said}; {:?}", unspent(fleet));
        std::thread::sleep(PAUSE);
        typed += 1;
    }
}

/// Whether `machine` says that exactly `wanted` are headnodes, all well, each with a member that votes, and that nothing is left to do.
fn is_exactly(fleet: &Fleet, machine: &Machine, wanted: &[usize]) -> bool {
    let Some(view) = status(machine) else { return false };
    let ids: BTreeSet<String> = wanted.iter().map(|number| fleet.machine(*number).server_id()).collect();
    let headnodes = view["headnodes"].as_array().map_or(&[][..], Vec::as_slice);
    let is_well = |one: &Value| {
        one["stage"] == "active"
            && one["fresh"] == true
            && one["works"] == true
            && one["health"]["sick"].is_null()
            && one["settings_differ"] == false
            && one["member"]["voting"] == true
            && one["member"]["error"].is_null()
    };
    let known: BTreeSet<String> = headnodes.iter().filter_map(|one| one["id"].as_str().map(str::to_owned)).collect();
    view["store"] == "members"
        && known == ids
        && headnodes.len() == ids.len()
        && headnodes.iter().all(is_well)
        && ["strangers", "changes", "members_error", "waiting"].iter().all(|trouble| view[*trouble].is_null())
        && view["may_be_lost"].as_u64() == Some((wanted.len() as u64 - 1) / 2)
}

/// What was done so far.
struct Story<'a> {
    fleet: &'a Fleet,
    /// Packages.
    acknowledged: Vec<String>,
    /// Flows that it took: a machine that is added or taken out is one.
    flows: usize,
}

impl Story<'_> {
    /// A change of `flows` machines, with somebody killed at each of `points`, after which `wanted` are the headnodes.
    fn change(&mut self, arguments: &[&str], points: &[String], wanted: &[usize], flows: usize) {
        self.flows += flows;
        let written = change(self.fleet, arguments, points, wanted);
        self.acknowledged.extend(written);
        self.check(wanted);
    }

    /// Every change was made once and to its end, and every headnode has all that was acknowledged.
    fn check(&self, headnodes: &[usize]) {
        let flows = self.fleet.json(&["adm", "-j", "flow", "list"]);
        let is_ours = |flow: &&Value| flow["kind"].as_str().is_some_and(|kind| kind.starts_with("headnode-"));
        let flows: Vec<&Value> = flows.as_array().expect("a list").iter().filter(is_ours).collect();
        assert!(flows.iter().all(|flow| flow["state"] == "succeeded"), "no change was given up: {flows:#?}");
        assert_eq!(flows.len(), self.flows, "a command that was typed again made no other change: {flows:#?}");
        for number in headnodes {
            let machine = self.fleet.machine(*number);
            let listed: Value = serde_json::from_str(&machine.good(&["adm", "-j", "package", "list"])).expect("JSON");
            let listed = listed.as_array().expect("a list").iter();
            let there: BTreeSet<&str> = listed.flat_map(|one| one["name"].as_str()).collect();
            let lost: Vec<&String> = self.acknowledged.iter().filter(|name| !there.contains(name.as_str())).collect();
            assert!(lost.is_empty(), "{} lost what was acknowledged: {lost:?}", machine.name);
        }
    }
}

/// Makes the change; packages that were acknowledged meanwhile.
fn change(fleet: &Fleet, arguments: &[&str], points: &[String], wanted: &[usize]) -> Vec<String> {
    let begun = Instant::now();
    arm(fleet, points);
    let over = AtomicBool::new(false);
    let prefix = arguments[2];
    let (typed, written) = std::thread::scope(|scope| {
        let writing = scope.spawn(|| write_on(fleet, prefix, &over));
        // Whoever dies takes nobody along who was to say that it is over.
        let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let typed = insist(fleet, arguments, || is_exactly(fleet, &fleet.head, wanted));
            for number in wanted {
                fleet.wait("exactly those to be headnodes", || is_exactly(fleet, fleet.machine(*number), wanted));
            }
            typed
        }));
        over.store(true, Ordering::Relaxed);
        let written = writing.join().expect("whoever writes goes on");
        (changed.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), written)
    });
    assert_eq!(unspent(fleet), Vec::<String>::new(), "nobody died there");
    println!(
        "{arguments:?}: {} deaths, typed {typed} times, {} writes acknowledged, {:?}",
        points.len(),
        written.len(),
        begun.elapsed()
    );
    assert!(!written.is_empty(), "somebody wrote meanwhile");
    written
}

#[test]
fn growing_and_shrinking_go_on_whoever_is_killed_at_whatever_step() {
    if !etcd_is_here() {
        return;
    }
    let edit = |text: String| text.replace("headnode_takes_instances = true", "headnode_takes_instances = false");
    let share = |machine: &Machine| {
        // It is there already but for the first.
        let _ = fs::create_dir(shared(machine));
        symlink(shared(machine), machine.crash_dir()).expect("a directory for crash points");
    };
    let Some(fleet) = Fleet::start_prepared(3, edit, share) else { return };
    let instance = create(&fleet, "one");
    let init = || fleet.machines.iter().find_map(|machine| machine.init(&instance));
    let before = init();
    assert!(before.is_some(), "it runs");
    let mut story = Story { fleet: &fleet, acknowledged: Vec::new(), flows: 0 };

    let adding = [of_flow("add", &ADDING), named(&ADDING_WITHIN), named(&JOINING)].concat();
    let removing = [of_flow("remove", &REMOVING), named(&REMOVING_WITHIN)].concat();
    let first = [adding.clone(), named(&MOVING)].concat();
    story.change(&["adm", "ha", "add", "m1", "m2"], &first, &[0, 1, 2], 2);
    assert!(!fleet.head.settings().headnode_dir().join("store.db").exists(), "the file is put aside");

    let both = [adding, removing.clone()].concat();
    story.change(&["adm", "ha", "replace", "m1", "m3"], &both, &[0, 2, 3], 2);
    let put_away = !fleet.machines[0].settings().headnode_dir().join("cluster.json").exists();
    assert!(put_away, "nothing of a headnode is left on the first");
    await_equal(&fleet, 3);

    story.change(&["adm", "ha", "remove", "m2", "--even"], &removing, &[0, 3], 1);
    assert_eq!(init(), before, "instances notice nothing");
}
