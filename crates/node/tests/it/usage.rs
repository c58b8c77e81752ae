//! What instances use: told and written down for each that can be read, whatever is wrong with another or with the files.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc, time::Duration};

use base::clock::{Clock as _, ManualClock, SystemClock};
use model::{
    id::InstanceId,
    target::ZoneState,
    time::Timestamp,
    usage::{Line, Sample},
};
use nodeapi::inquiry::{Answer, Question};

use crate::world::{DEADLINE, World};

const MINUTE: Duration = Duration::from_secs(60);

/// Samples in all files of open hours, in no order.
fn samples(directory: &Path) -> Vec<Sample> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let open = paths.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    let text: String = open.filter_map(|path| fs::read_to_string(path).ok()).collect();
    let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    lines.filter_map(|line| if let Line::Usage(sample) = line { Some(*sample) } else { None }).collect()
}

/// Lets minutes pass until something is so.
async fn pass(clock: &ManualClock, what: &str, holds: impl Fn() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !holds() {
            clock.advance(MINUTE);
            // The agent looks once more in the last moment of each minute.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("it does not happen: {what}"));
}

/// A clock just before a minute is over, which is how it stays while whole minutes pass.
fn clock() -> Arc<ManualClock> {
    let now = SystemClock.now_ms();
    Arc::new(ManualClock::new(now - now % 60_000 + 59_900))
}

#[tokio::test]
async fn one_that_cannot_be_read_costs_no_other_its_line() {
    let mut world = World::new();
    let directory = world.directory().join("usage");
    world.config.usage_dir = Some(directory.clone());
    let clock = clock();
    world.machine.set_now(Timestamp(clock.now_ms()));
    let (damaged, ending, well) = (world.create(0), world.create(0), world.create(0));
    // One whose papers are damaged, and one that is read just while it is started anew.
    world.machine.faults.arm_for("zones.meters", &damaged.to_string(), u32::MAX, "its papers are damaged");
    world.machine.faults.arm_for("zones.meters", &ending.to_string(), 1, "it is between two runs");
    let agent = world.start_by(clock.clone());
    for id in [damaged, ending, well] {
        world.headnode.wait_state(id, ZoneState::Running).await;
    }
    let running = || -> BTreeSet<InstanceId> {
        samples(&directory).iter().filter(|sample| sample.status == "running").map(|sample| sample.uuid).collect()
    };
    pass(&clock, "both to be written", || running().contains(&well) && running().contains(&ending)).await;
    let written = samples(&directory);
    assert!(written.iter().all(|sample| sample.uuid != damaged), "nothing is made up");
    for sample in written.iter().filter(|sample| sample.status == "running") {
        let since = sample.started.map(|started| sample.timestamp.0 - started.0);
        assert_eq!(sample.age_ms, since, "by the same clock as long as nobody sets it");
    }
    let Answer::Meters(meters) = world.headnode.ask(Question::Meters).await else { panic!("meters") };
    assert_eq!(meters.instances.keys().copied().collect::<BTreeSet<_>>(), BTreeSet::from([ending, well]));
    agent.end().await;
}

#[tokio::test]
async fn files_that_are_in_trouble_are_told_of_and_made_again() {
    let mut world = World::new();
    let directory = world.directory().join("usage");
    world.config.usage_dir = Some(directory.clone());
    fs::write(&directory, "in the way").unwrap();
    let clock = clock();
    let id = world.create(0);
    let agent = world.start_by(clock.clone());
    world.headnode.wait_state(id, ZoneState::Running).await;
    let refused = || world.headnode.ask(Question::Usage { after: None });
    let Answer::Refused { why } = refused().await else { panic!("it has nothing to tell") };
    assert!(why.contains("usage is not written: ") && why.contains(&directory.display().to_string()), "{why}");
    fs::remove_file(&directory).unwrap();
    let is_written = || samples(&directory).iter().any(|sample| sample.uuid == id);
    pass(&clock, "lines to be written", is_written).await;
    fs::remove_dir_all(&directory).unwrap();
    pass(&clock, "lines to be written again", is_written).await;
    let Answer::Usage(_) = refused().await else { panic!("it tells again") };
    agent.end().await;
}
