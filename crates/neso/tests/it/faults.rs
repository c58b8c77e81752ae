//! kill -9 at every point where it may matter, while instances are made, stopped, started, rebooted and deleted.
//!
//! A point is armed by writing its name into a file; the process that passes it dies, and its supervisor starts another.
//! Afterwards every flow has ended, every instance is what was asked for, and nothing is left once all are deleted.

use std::fs;

use crate::datacenter::Datacenter;

/// Points every verb passes: in the agent, in the store and in the target's way down.
const EVERYWHERE: [&str; 5] =
    ["store.commit.before", "store.commit.after", "node.target.written", "node.step.before", "node.step.after"];

/// A verb of a tenant, its flow's points, and the state it leads to.
const VERBS: [(&str, &str, &str, Option<&str>); 5] = [
    ("create", "provision", "await_running", Some("running")),
    ("stop", "stop", "await_stopped", Some("stopped")),
    ("start", "start", "await_running", Some("running")),
    ("reboot", "reboot", "await_rebooted", Some("running")),
    ("delete", "destroy", "await_gone", None),
];

/// Each verb once per point, one process killed each time.
#[test]
fn every_point_may_be_the_last() {
    let Some(datacenter) = Datacenter::start() else { return };
    let moments = ["before", "after", "committed"];
    for (round, everywhere) in EVERYWHERE.iter().enumerate() {
        let name = format!("kill-{round}");
        for (verb, flow, step, state) in VERBS {
            let own = moments.get(round).map(|moment| format!("flow.{flow}.{step}.{moment}"));
            // The flow's own points in the first rounds, those of agent and store in all of them.
            for point in own.into_iter().take(usize::from(verb != "create")).chain([(*everywhere).to_owned()]) {
                attempt(&datacenter, verb, &name, &point);
                settle(&datacenter, verb, &name, state);
            }
        }
    }
    datacenter.assert_clean();
}

/// Creates killed at the flow's own points: these need a fresh instance each.
#[test]
fn a_create_survives_the_end_of_its_flow() {
    let Some(datacenter) = Datacenter::start() else { return };
    for moment in ["before", "after", "committed"] {
        attempt(&datacenter, "create", moment, &format!("flow.provision.await_running.{moment}"));
        settle(&datacenter, "create", moment, Some("running"));
        datacenter.good(&["instance", "delete", "-w", moment]);
    }
    datacenter.wait_idle();
    datacenter.assert_clean();
}

/// Asks for `verb` with `point` armed. The request itself may be lost with the headnode: then nothing was acknowledged.
fn attempt(datacenter: &Datacenter, verb: &str, name: &str, point: &str) {
    fs::write(datacenter.crash_file(), point).expect("a crash point is armed");
    let _ = ask(datacenter, verb, name);
}

fn ask(datacenter: &Datacenter, verb: &str, name: &str) -> bool {
    let create = ["instance", "create", "--name", name, "minimal", "g1-nano"];
    let other = ["instance", verb, name];
    let arguments: &[&str] = if verb == "create" { &create } else { &other };
    datacenter.run(arguments).status.success()
}

/// Waits until what was asked for is so. A request that was lost is made again, as a tenant would.
#[track_caller]
fn settle(datacenter: &Datacenter, verb: &str, name: &str, state: Option<&str>) {
    datacenter.wait("both processes", || datacenter.pid("headnode").is_some() && datacenter.pid("node").is_some());
    datacenter.wait(&format!("{name} to be {state:?} after {verb}"), || {
        if datacenter.ask(&["adm", "-j", "instance", "list"]).is_none() {
            return false;
        }
        let found = datacenter.state(name);
        if found.as_deref() == state {
            return true;
        }
        let under_way =
            datacenter.ask(&["adm", "-j", "flow", "list", "--unfinished"]).is_none_or(|flows| flows[0].is_object());
        if !under_way {
            let _ = ask(datacenter, verb, name);
        }
        false
    });
    let _ = fs::remove_file(datacenter.crash_file());
    datacenter.wait_idle();
}
