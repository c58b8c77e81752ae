//! What the machine refuses: tried again, then told in words; never a leak, never a guess.

use std::time::Duration;

use base::shutdown::Shutdown;
use model::{instance::Wanted, target::ZoneState};
use node::Execution;
use nodeapi::inquiry::{Answer, Question};

use crate::world::{World, eventually};

#[tokio::test]
async fn a_passing_failure_is_survived() {
    let world = World::new();
    let agent = world.start();
    for verb in [
        "zones.prepare",
        "zones.start",
        "datasets.clone_image",
        "datasets.import",
        "links.attach",
        "links.ensure_bridge",
        "filters.apply",
    ] {
        world.machine.faults.arm(verb, 1, "not now");
    }
    let id = world.create(1);
    let fact = world.headnode.wait_state(id, ZoneState::Running).await;
    assert_eq!(fact.error, None);
    for verb in ["zones.destroy", "datasets.remove_root", "links.detach", "filters.apply"] {
        world.machine.faults.arm(verb, 1, "not now");
    }
    world.headnode.zone(id, |zone| zone.wanted = Wanted::Absent);
    world.headnode.wait_state(id, ZoneState::Absent).await;
    world.assert_empty();
    agent.end().await;
}

#[tokio::test]
async fn what_the_agent_does_is_counted() {
    let world = World::new();
    let agent = world.start();
    world.machine.faults.arm("zones.start", 2, "not now");
    let id = world.create(1);
    world.headnode.wait_state(id, ZoneState::Running).await;
    let Answer::Meters(meters) = world.headnode.ask(Question::Meters).await else { panic!("meters") };
    let told = meters.machine.agent.expect("it tells of itself");
    let starts = told.verbs["zone start"];
    assert_eq!((starts.done, starts.running), (3, 0), "two that failed and one that did not");
    assert_eq!((told.attempts_failed, told.waiting), (2, 0));
    assert!(told.targets >= 1 && told.reports >= 1, "{told:?}");
    assert_eq!((told.targets_failed, told.reports_failed, told.inquiries), (0, 0, 0));
    assert!(told.resident_bytes.is_some_and(|bytes| bytes > 0), "{told:?}");
    agent.end().await;
}

#[tokio::test]
async fn a_lasting_failure_ends_in_failed_with_the_reason() {
    let world = World::new();
    let agent = world.start();
    world.machine.faults.arm("zones.start", 100, "the kernel is in a bad mood");
    let id = world.create(1);
    let fact = world.headnode.wait_state(id, ZoneState::Failed).await;
    assert!(fact.error.unwrap().contains("failed to start the zone: failed to zones.start"));
    assert_eq!(fact.starts_done, 0);
    // The control plane gives it up; the removal needs no start.
    world.headnode.zone(id, |zone| zone.wanted = Wanted::Absent);
    world.headnode.wait_state(id, ZoneState::Absent).await;
    world.assert_empty();
    // A failed one that is asked for again succeeds once the cause is gone.
    let id = world.create(1);
    world.headnode.wait_state(id, ZoneState::Failed).await;
    world.machine.faults.clear();
    world.headnode.zone(id, |zone| zone.starts += 1);
    let fact = world.headnode.wait_state(id, ZoneState::Running).await;
    assert_eq!((fact.error, fact.starts_done), (None, 2));
    agent.end().await;
}

/// Nobody asks twice for a stop.
#[tokio::test(start_paused = true)]
async fn a_stop_that_failed_for_good_is_tried_again() {
    let world = World::new();
    let agent = world.agent(world.machine.host(), Execution::Inline);
    let (trigger, shutdown) = Shutdown::new();
    let agent = base::task::spawn("agent under test", agent.run(shutdown));
    let id = world.create(1);
    world.headnode.wait_state(id, ZoneState::Running).await;
    world.machine.faults.arm("zones.stop", 8, "the disk hangs");
    world.headnode.zone(id, |zone| zone.wanted = Wanted::Stopped);
    let fact = world.headnode.wait_fact(id, "a reason", |fact| fact.gave_up).await;
    assert!(fact.error.unwrap().contains("the disk hangs"));
    // Two audits later.
    tokio::time::sleep(Duration::from_secs(150)).await;
    let fact = world.headnode.wait_state(id, ZoneState::Stopped).await;
    assert_eq!((fact.error, fact.gave_up), (None, false));
    trigger.fire();
    agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_full_pool_says_so_and_removal_still_works() {
    let world = World::new();
    let agent = world.start();
    let first = world.create(1);
    world.headnode.wait_state(first, ZoneState::Running).await;
    world.machine.datasets.set_size(0);
    let second = world.create(1);
    let fact = world.headnode.wait_state(second, ZoneState::Failed).await;
    assert!(fact.error.unwrap().contains("no space left in the pool"));
    for id in [first, second] {
        world.headnode.zone(id, |zone| zone.wanted = Wanted::Absent);
        world.headnode.wait_state(id, ZoneState::Absent).await;
    }
    world.assert_empty();
    agent.end().await;
}

#[tokio::test]
async fn every_id_range_in_use() {
    let mut world = World::new();
    world.config.id_ranges.count = 1;
    let agent = world.start();
    let first = world.create(0);
    world.headnode.wait_state(first, ZoneState::Running).await;
    let second = world.create(0);
    let fact = world.headnode.wait_state(second, ZoneState::Failed).await;
    assert!(fact.error.unwrap().contains("all 1 id ranges of this machine are in use"));
    world.headnode.zone(first, |zone| zone.wanted = Wanted::Absent);
    world.headnode.wait_state(first, ZoneState::Absent).await;
    world.headnode.zone(second, |zone| zone.starts += 1);
    world.headnode.wait_state(second, ZoneState::Running).await;
    agent.end().await;
}

#[tokio::test]
async fn a_wrong_image_file_is_refused() {
    let world = World::new();
    world.headnode.deliver(vec![7; 1024]);
    let agent = world.start();
    let id = world.create(0);
    let fact = world.headnode.wait_state(id, ZoneState::Failed).await;
    assert!(fact.error.as_ref().unwrap().contains("failed to import image"), "{:?}", fact.error);
    assert_eq!(world.machine.host().datasets.images().unwrap(), []);
    world.headnode.deliver(vec![0; 2000]);
    world.headnode.zone(id, |zone| zone.starts += 1);
    let longer =
        |error: &Option<String>| error.as_ref().is_some_and(|error| error.contains("longer than the 1024 bytes"));
    world.headnode.wait_fact(id, "the reason", |fact| longer(&fact.error)).await;
    world.headnode.deliver(vec![0; 1000]);
    let shorter = |error: &Option<String>| error.as_ref().is_some_and(|error| error.contains("has 1000 bytes"));
    world.headnode.zone(id, |zone| zone.starts += 1);
    world.headnode.wait_fact(id, "the reason", |fact| shorter(&fact.error)).await;
    let left = std::fs::read_dir(world.config.data_dir.join("incoming")).unwrap().count();
    assert_eq!(left, 0);
    agent.end().await;
}

#[tokio::test]
async fn a_headnode_that_is_gone_is_no_reason_to_give_up() {
    let world = World::new();
    let agent = world.start();
    let id = world.create(0);
    world.headnode.wait_state(id, ZoneState::Running).await;
    agent.end().await;
    // The target is on disk, the image is not in the pool, the headnode is away.
    world.machine.reboot();
    world.machine.host().datasets.remove_root(id).unwrap();
    world.machine.host().datasets.remove_image(crate::world::image_id()).unwrap();
    world.headnode.cut(true);
    let agent = world.start();
    eventually("it is tried", || world.ledger_path(id).exists()).await;
    world.headnode.cut(false);
    world.headnode.wait_fact(id, "running", |fact| fact.state == ZoneState::Running && fact.error.is_none()).await;
    assert!(world.directory().exists());
    agent.end().await;
}
