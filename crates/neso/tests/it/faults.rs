//! kill -9 at every point where it may matter, while instances are made, stopped, started, rebooted and deleted.
//!
//! A point is armed by writing its name into a file; the process that passes it removes the file and dies, and its
//! supervisor starts another. Each point is tried under each verb that passes it, in one datacenter, and must have been
//! passed: a point nobody reaches fails the test. Then every flow ends, the instance is what was asked for, and records,
//! disk and kernel tell of the same instances; once all are deleted, nothing is left. Prints how long each recovery took.
//!
//! Points are compiled into the debug binary that `cargo test` builds, so no second build is needed.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::datacenter::Datacenter;

/// Points every verb passes: in the store, in the target's way down and in the agent.
const EVERYWHERE: [&str; 5] =
    ["store.commit.before", "store.commit.after", "node.target.written", "node.step.before", "node.step.after"];

/// The moments of a flow's step.
const MOMENTS: [&str; 3] = ["before", "after", "committed"];

/// A verb of a tenant, its flow's step, and the state it leads to.
const VERBS: [(&str, &str, Option<&str>); 5] = [
    ("create", "provision.await_running", Some("running")),
    ("stop", "stop.await_stopped", Some("stopped")),
    ("start", "start.await_running", Some("running")),
    ("reboot", "reboot.await_rebooted", Some("running")),
    ("delete", "destroy.await_gone", None),
];

/// Each verb once per point, one process killed each time.
#[test]
fn every_point_may_be_the_last() {
    let Some(datacenter) = Datacenter::start() else { return };
    // One that nothing is asked of: it must not notice.
    datacenter.good(&["instance", "create", "-w", "--name", "bystander", "minimal", "g1-nano"]);
    let bystander = datacenter.instances()[0]["id"].as_str().expect("an id").to_owned();
    let first = datacenter.init(&bystander);
    assert!(first.is_some(), "the bystander runs");

    let mut table = Vec::new();
    for round in 0..EVERYWHERE.len() + MOMENTS.len() {
        let name = format!("kill-{round}");
        for (verb, step, state) in VERBS {
            let point = match EVERYWHERE.get(round) {
                Some(point) => (*point).to_owned(),
                None => format!("flow.{step}.{}", MOMENTS[round - EVERYWHERE.len()]),
            };
            let took = survive(&datacenter, verb, &name, &point, state);
            table.push(format!("{verb:<7} {point:<40} {:>6} ms", took.as_millis()));
        }
    }
    let name = "kill-removal";
    datacenter.good(&["instance", "create", "-w", "--name", name, "minimal", "g1-nano"]);
    datacenter.wait_idle();
    let took = survive(&datacenter, "delete", name, "node.remove.before-ledger", None);
    table.push(format!("{:<7} {:<40} {:>6} ms", "delete", "node.remove.before-ledger", took.as_millis()));

    println!("asked for, killed at, and all well again after\n{}", table.join("\n"));
    assert_eq!(datacenter.init(&bystander), first, "the bystander was started again");
    datacenter.good(&["instance", "delete", "-w", "bystander"]);
    datacenter.wait_idle();
    datacenter.assert_clean();
}

/// Asks for `verb` with `point` armed, and waits until what was asked for is so. Returns how long that took.
#[track_caller]
fn survive(datacenter: &Datacenter, verb: &str, name: &str, point: &str, state: Option<&str>) -> Duration {
    fs::write(datacenter.crash_file(), point).expect("a crash point is armed");
    let began = Instant::now();
    // The request may be lost with the headnode: then nothing was acknowledged, and the tenant asks again.
    let _ = ask(datacenter, verb, name);
    datacenter.wait(&format!("somebody to pass {point}"), || !datacenter.crash_file().exists());
    datacenter.wait(&format!("{name} to be {state:?} after {verb} and {point}"), || {
        let Some(flows) = datacenter.ask(&["adm", "-j", "flow", "list", "--unfinished"]) else { return false };
        if flows[0].is_object() {
            return false;
        }
        let Some(all) = datacenter.ask(&["adm", "-j", "instance", "list"]) else { return false };
        let mut found = all.as_array().into_iter().flatten().filter(|one| one["alias"] == name);
        if found.next().and_then(|one| one["state"].as_str()) == state {
            return true;
        }
        let _ = ask(datacenter, verb, name);
        false
    });
    let took = began.elapsed();
    datacenter.assert_agreed();
    took
}

fn ask(datacenter: &Datacenter, verb: &str, name: &str) -> bool {
    let create = ["instance", "create", "--name", name, "minimal", "g1-nano"];
    let other = ["instance", verb, name];
    let arguments: &[&str] = if verb == "create" { &create } else { &other };
    datacenter.run(arguments).status.success()
}
