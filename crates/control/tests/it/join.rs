//! Machines come in with a token, are told apart, and are forgotten.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use base::clock::ManualClock;
use control::{
    Error, Result,
    servers::{self, Candidate, NewInvite, ServerChange},
};
use model::{
    clock::ClockReading,
    id::ServerId,
    part::Digest,
    server::{Condition, MachineIdentity, Trait},
    state::PublicState,
    target::Report,
    time::Timestamp,
};

use crate::world::{Choices, Machine, World, caller};

async fn world() -> (World, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(1_000_000));
    (World::with(Choices { clock: clock.clone(), ..Choices::default() }).await, clock)
}

fn identity(number: u128) -> MachineIdentity {
    let id = |number| Some(uuid::Uuid::from_u128(number));
    MachineIdentity { firmware: id(number), macs: BTreeSet::new(), installation: id(number + 1_000) }
}

fn candidate(world: &World, token: &str, number: u128) -> Candidate {
    let (clock, hostname) = (world.control.now(), format!("m{number}"));
    Candidate { token: token.to_owned(), hostname, identity: identity(number), clock, key: key(number), adopt: None }
}

fn key(number: u128) -> Digest {
    Digest::of(&number)
}

async fn token(world: &World) -> String {
    let new = NewInvite { hours: 1, rack: Some("r1".into()), ..NewInvite::default() };
    servers::invite(&world.control, new).await.expect("an invitation").1
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T>, words: &str) {
    let error = answer.expect_err("it is refused").to_string();
    assert!(error.contains(words), "{error}");
}

#[tokio::test]
async fn a_token_lets_one_machine_in_once_and_in_time() {
    let (world, clock) = world().await;
    let control = &world.control;
    let good = token(&world).await;
    assert!(control.snapshot().scan(&control::tables::INVITES).all(|invite| !good.contains(&invite.token_sha256)));
    let admit = async |candidate: Candidate| servers::admit(control, ServerId::random(), &candidate).await;

    refused(admit(candidate(&world, "neso-join-wrong", 1)).await, "none of this datacenter's");
    let day = 86_400_000 + 600_000;
    let late = Candidate { clock: Timestamp(control.now().0 - day), ..candidate(&world, &good, 1) };
    refused(admit(late).await, "clock is 1 d 10 min behind");
    let early = Candidate { clock: control.now().plus_millis(day), ..candidate(&world, &good, 1) };
    refused(admit(early).await, "clock is 1 d 10 min ahead of");

    let server = admit(candidate(&world, &good, 1)).await.expect("it is let in");
    assert_eq!((server.rack.as_deref(), &*server.hostname), (Some("r1"), "m1"));
    assert_eq!(servers::get(control, server.id).expect("a server").condition, Condition::SettingUp);
    refused(admit(candidate(&world, &good, 2)).await, &format!("was used by server {}", server.id));
    refused(admit(candidate(&world, &token(&world).await, 1)).await, &format!("is server {}", server.id));

    let old = token(&world).await;
    clock.advance(Duration::from_secs(3_600));
    refused(admit(candidate(&world, &old, 3)).await, "expired at");
}

#[tokio::test]
async fn two_machines_with_one_token_do_not_both_get_in() {
    let (world, _) = world().await;
    let (control, token) = (&world.control, token(&world).await);
    let admit = async |number| servers::admit(control, ServerId::random(), &candidate(&world, &token, number)).await;
    let (one, other) = tokio::join!(admit(1), admit(2));
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
}

#[tokio::test]
async fn who_lost_the_answer_is_told_again_and_nobody_else() {
    let (world, clock) = world().await;
    let (control, token) = (&world.control, token(&world).await);
    let mine = candidate(&world, &token, 1);
    assert_eq!(servers::returning(control, &mine), None);
    let id = ServerId::random();
    servers::admit(control, id, &mine).await.expect("it is let in");
    assert_eq!(servers::returning(control, &mine), Some(id));
    // Also when the token's hour is over: it came in time.
    clock.advance(Duration::from_secs(7_200));
    let again = Candidate { clock: control.now(), ..mine.clone() };
    let record = servers::admit(control, id, &again).await.expect("it is told again");
    assert_eq!(record.id, id);
    assert_eq!(servers::list(control).len(), 2, "it is one server");
    let thief = Candidate { key: key(2), ..again.clone() };
    let elsewhere = Candidate { identity: identity(2), ..again.clone() };
    for other in [&thief, &elsewhere] {
        assert_eq!(servers::returning(control, other), None);
        refused(servers::admit(control, id, other).await, "was used by");
    }
    refused(servers::admit(control, ServerId::random(), &again).await, "was used by");
    let mut machine = Machine::new(&world);
    machine.id = id;
    machine.report(&world).await;
    assert_eq!(servers::returning(control, &again), None, "it was heard of, so it has its certificate");
    refused(servers::admit(control, id, &again).await, "was used by");
}

#[tokio::test]
async fn a_certificate_is_good_on_its_own_machine_only() {
    let (world, _) = world().await;
    let control = &world.control;
    let id = ServerId::random();
    servers::admit(control, id, &candidate(&world, &token(&world).await, 1)).await.expect("it is let in");
    servers::check_member(control, id, Some(&identity(1))).expect("it is the machine");
    refused(servers::check_member(control, id, Some(&identity(2))), "firmware UUID, machine-id differ");
    let replaced = ServerChange { new_hardware: true, ..ServerChange::default() };
    servers::change(control, id, replaced).await.expect("it is changed");
    servers::check_member(control, id, Some(&identity(2))).expect("it may be another one now");
    refused(servers::check_member(control, ServerId::random(), None), "an operator forgot it");
}

#[tokio::test]
async fn a_lost_machine_is_forgotten_with_what_is_given_up() {
    let (world, _) = world().await;
    let control = &world.control;
    let id = ServerId::random();
    servers::admit(control, id, &candidate(&world, &token(&world).await, 1)).await.expect("it is let in");
    servers::set_accepts_instances(control, world.server, false).await.expect("it is closed");
    let mut machine = Machine::new(&world);
    machine.id = id;
    machine.report(&world).await;
    let instance = world.running(&mut machine, "web").await;
    let forget = async |given: &[_]| servers::forget(control, id, &given.iter().copied().collect(), &caller()).await;
    refused(forget(&[]).await, "delete them first");
    let waiting = servers::forgotten(control, id);
    forget(&[instance]).await.expect("it is forgotten");
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("those who wait are told");
    assert_eq!(world.view(instance).state, PublicState::Deleted);
    assert!(matches!(servers::get(control, id), Err(Error::NotFound { .. })));
    assert!(servers::apply_report(control, id, &machine.compose()).await.is_err(), "it is locked out");
}

#[tokio::test]
async fn a_machine_is_drained_said_to_stop_and_silent() {
    let (world, clock) = world().await;
    let control = &world.control;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    let condition = || servers::get(control, world.server).expect("a server").condition;
    assert_eq!(condition(), Condition::Running);
    let view = servers::drain(control, world.server, "new disks").await.expect("it is drained");
    assert!(!view.server.accepts_instances);
    assert_eq!(condition(), Condition::Running, "something is left");
    control::instances::delete(control, &caller(), world.scope, id).await.expect("it is deleted");
    machine.obey(&world, id).await;
    assert_eq!(condition(), Condition::Drained);

    let mut last = machine.compose();
    last.leaving = true;
    servers::apply_report(control, world.server, &last).await.expect("it is taken");
    let since = control.now();
    clock.advance(Duration::from_secs(20));
    assert_eq!(condition(), Condition::Restarting { since }, "its agent only");
    clock.advance(Duration::from_secs(20));
    assert_eq!(condition(), Condition::Unreachable { since: Some(since) }, "it should be back");
    last.goes_down = true;
    servers::apply_report(control, world.server, &last).await.expect("it is taken");
    let since = control.now();
    clock.advance(Duration::from_secs(60));
    assert_eq!(condition(), Condition::Rebooting { since });
    clock.advance(Duration::from_secs(15 * 60));
    assert_eq!(condition(), Condition::Unreachable { since: Some(since) });
    machine.report(&world).await;
    let open = servers::set_accepts_instances(control, world.server, true).await.expect("it is open");
    assert_eq!((open.server.drain.as_ref(), open.condition), (None, Condition::Running));
}

/// A clock that goes wrong after joining is in the record while it is, and a clock that may be right changes nothing.
#[tokio::test]
async fn a_clock_that_goes_wrong_is_in_the_record() {
    let (world, _) = world().await;
    let control = &world.control;
    let mut machine = Machine::new(&world);
    let mut says = async |ahead_ms, within_ms| {
        let reading = ClockReading { ahead_ms, within_ms };
        let report = Report { clock: Some(reading), ..machine.compose() };
        let answer = servers::apply_report(control, world.server, &report).await.expect("it is taken");
        assert_eq!((answer.received_at, answer.answered_at), (Some(control.now()), Some(control.now())));
        let view = servers::get(control, world.server).expect("a server");
        assert_eq!(view.clock, Some(reading), "as it was said last");
        (view.server.clock_ahead_ms, view.server.revision())
    };
    assert_eq!(says(999, 1).await.0, None);
    assert_eq!(says(5_000, 4_500).await.0, None, "it may be right");
    let (off, revision) = says(-7_000, 3).await;
    assert_eq!(off, Some(-7_000));
    assert_eq!(says(-7_400, 3).await, (Some(-7_000), revision), "not worth a write");
    assert_eq!(says(-90_000_000, 3).await.0, Some(-90_000_000));
    assert_eq!(says(2, 3).await.0, None);
}

#[tokio::test]
async fn what_operators_say_of_a_machine_is_checked() {
    let (world, _) = world().await;
    let change = async |change| servers::change(&world.control, world.server, change).await;
    let nothing = ServerChange::default;
    refused(change(ServerChange { rack: Some("a b".into()), ..nothing() }).await, "rack");
    let bad = [("a=b".to_owned(), Trait::Flag(true))].into();
    refused(change(ServerChange { traits: bad, ..nothing() }).await, "traits");
    refused(change(ServerChange { comments: Some("x".repeat(5_000)), ..nothing() }).await, "comments");
    for hours in [0, 100_000] {
        let new = NewInvite { hours, ..NewInvite::default() };
        refused(servers::invite(&world.control, new).await, "hours");
    }
    let traits = [("ssd".to_owned(), Trait::Flag(true))].into();
    change(ServerChange { traits, rack: Some("r1".into()), ..nothing() }).await.expect("it is right");
    let changed =
        change(ServerChange { no_traits: ["ssd".into()].into(), rack: Some(String::new()), ..nothing() }).await;
    let server = changed.expect("it is right").server;
    assert!(server.traits.is_empty() && server.rack.is_none());
}

#[tokio::test]
async fn a_machine_brings_instances_only_where_it_may() {
    let (world, _) = world().await;
    let control = &world.control;
    let was = ServerId::random();
    let bringing = |token: &str, number| Candidate { adopt: Some(was), ..candidate(&world, token, number) };
    let plain = token(&world).await;
    refused(servers::admit(control, was, &bringing(&plain, 1)).await, "does not allow a machine to bring instances");
    let kind = NewInvite { hours: 1, adopt: true, ..NewInvite::default() };
    let (invite, good) = servers::invite(control, kind.clone()).await.expect("an invitation");
    assert!(invite.adopt);
    let server = servers::admit(control, was, &bringing(&good, 1)).await.expect("it is let in");
    assert_eq!(server.id, was, "it is who it was");
    assert!(server.restored.is_some_and(|restored| restored.brought && !restored.compared), "it is told nothing yet");
    // Its answer was lost: the same again; another with its name is none of ours.
    assert_eq!(servers::returning(control, &bringing(&good, 1)), Some(was));
    assert_eq!(servers::admit(control, was, &bringing(&good, 1)).await.expect("again").id, was);
    let (_, second) = servers::invite(control, kind.clone()).await.expect("an invitation");
    refused(servers::admit(control, was, &bringing(&second, 2)).await, "is known here");
    // An invitation that allows it lets machines in that bring nothing.
    let id = ServerId::random();
    let nothing = servers::admit(control, id, &candidate(&world, &second, 3)).await.expect("it is let in");
    assert_eq!(nothing.restored, None);
}
