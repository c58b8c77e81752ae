//! A machine whose clock is not the headnode's: it finds out by how much, and tells the headnode's time.

use base::clock::{Clock as _, SystemClock};
use model::{clock::ClockReading, target::ZoneState, time::Timestamp};

use crate::world::World;

const HOUR_MS: i64 = 3_600_000;

#[tokio::test]
async fn what_is_told_is_told_in_the_headnodes_time() {
    let world = World::new();
    let agent = world.start();
    let report = world.headnode.wait("a report", |_| true).await;
    assert_eq!(report.clock, None, "nobody told the time");

    world.headnode.set_clock(HOUR_MS);
    let off = |reading: &ClockReading| reading.is_off() && reading.ahead_ms.abs_diff(-HOUR_MS) <= reading.within_ms;
    let told =
        world.headnode.wait("the clock to be found wrong", |report| report.clock.as_ref().is_some_and(off)).await;
    assert!(told.clock.is_some_and(|clock| clock.within_ms < 30_000), "{:?}", told.clock);

    let before = SystemClock.now_ms();
    let id = world.create(1);
    let fact = world.headnode.wait_state(id, ZoneState::Running).await;
    let after = SystemClock.now_ms();
    let slack = told.clock.map_or(0, |clock| clock.within_ms.cast_signed());
    let in_headnodes = |at: i64| (before - slack..=after + slack).contains(&(at - HOUR_MS));
    assert!(fact.timeline.iter().all(|phase| in_headnodes(phase.at.0)), "{before} {after} {:?}", fact.timeline);

    world.machine.set_now(Timestamp(SystemClock.now_ms()));
    world.headnode.zone(id, |zone| zone.wanted = model::instance::Wanted::Stopped);
    let fact = world.headnode.wait_state(id, ZoneState::Stopped).await;
    let ended = fact.exit.expect("it ended").at.0;
    let now = SystemClock.now_ms();
    assert!((before - slack..=now + slack).contains(&(ended - HOUR_MS)), "{before} {ended} {now}");

    // Somebody sets it.
    world.headnode.set_clock(0);
    world.headnode.wait("the clock to be right", |report| report.clock.is_some_and(ClockReading::is_right)).await;
    agent.end().await;
}
