//! A call with a name, whose headnode is killed at every moment between the request and the answer: one instance, one answer.

use std::fs;

use serde_json::Value;

use crate::datacenter::Datacenter;

/// Where the headnode dies: before the commit, after it, when the verb has returned, and when the answer is recorded but not sent.
const POINTS: [&str; 4] = ["store.commit.before", "store.commit.after", "repeat.committed", "repeat.answered"];

#[test]
fn killed_between_commit_and_answer_it_is_made_once() {
    let Some(datacenter) = Datacenter::start() else { return };
    let create = |name: &'static str| ["instance", "-j", "create", "--idempotency-key", name, "minimal", "g1-nano"];
    let mut ids = Vec::new();
    for (number, point) in POINTS.into_iter().enumerate() {
        datacenter.wait_idle();
        let before = datacenter.pid("headnode");
        fs::write(datacenter.crash_file(), point).expect("a crash point is armed");
        // The client's connection is lost with the headnode, and it asks again by itself. Only when the headnode died of another
        // commit just before is there nobody to ask in the first place.
        let mut first = None;
        datacenter.wait(&format!("the call to be answered after {point}"), || {
            first = datacenter.ask(&create(point));
            first.is_some()
        });
        let first = first.expect("that was waited for");
        assert!(!datacenter.crash_file().exists(), "nobody passed {point}");
        assert_ne!(datacenter.pid("headnode"), before, "another headnode answers after {point}");
        // Sent again by hand, the name chosen by the client means the same call, also for another headnode.
        assert_eq!(datacenter.json(&create(point)), first, "the same answer after {point}");
        datacenter.kill("headnode");
        datacenter.wait("another headnode", || datacenter.ask(&["adm", "-j", "server", "list"]).is_some());
        assert_eq!(datacenter.json(&create(point)), first, "the same answer from another process after {point}");
        assert_eq!(datacenter.instances().len(), number + 1, "one instance more after {point}");
        ids.push(first["id"].clone());
    }
    datacenter.wait_idle();
    let found: Vec<Value> = datacenter.instances().iter().map(|one| one["id"].clone()).collect();
    assert!(ids.iter().all(|id| found.contains(id)), "{ids:?} were answered, {found:?} are there");

    let other =
        datacenter.run(&["instance", "create", "--idempotency-key", POINTS[0], "--name", "x", "minimal", "g1-nano"]);
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(!other.status.success() && said.contains("Idempotency-Key"), "{said}");

    for id in ids {
        datacenter.good(&["instance", "delete", "-w", id.as_str().expect("an id")]);
    }
    datacenter.wait_idle();
    datacenter.assert_clean();
}
