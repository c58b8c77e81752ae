//! Hours of machines are counted once, whatever comes in between.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use base::clock::ManualClock;
use control::{tables::USAGE, usage};
use model::{
    id::{AccountId, InstanceId, ServerId},
    usage::{Hour, HourUsage, Month, Row, Sums},
};

use crate::world::{Choices, World};

const DAY: Duration = Duration::from_secs(86_400);

fn hour(text: &str) -> Hour {
    text.parse().expect("an hour")
}

fn month(text: &str) -> Month {
    text.parse().expect("a month")
}

/// An hour in which each of `accounts` has an instance that ran.
fn used(at: Hour, accounts: &[AccountId]) -> HourUsage {
    let row = |account: &AccountId| Row {
        instance: InstanceId::new(account.uuid()),
        owner: *account,
        alias: format!("at {at}"),
        package: "small".into(),
        sums: Sums { minutes: 60, running_minutes: 60, cpu_ns: 5, ..Sums::default() },
    };
    HourUsage { hour: at, rows: accounts.iter().map(row).collect() }
}

/// A datacenter in which it is that hour.
async fn at(text: &str) -> (World, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(hour(text).begins().0));
    (World::with(Choices { clock: clock.clone(), ..Choices::default() }).await, clock)
}

#[tokio::test]
async fn an_hour_that_comes_twice_or_from_two_headnodes_counts_once() {
    let (world, _) = at("2026-12-01T00").await;
    let control = &world.control;
    // More than go into one commit.
    let accounts: Vec<_> = (0..23).map(|_| AccountId::random()).collect();
    let (first, second) = (used(hour("2026-11-30T22"), &accounts), used(hour("2026-11-30T23"), &accounts));
    assert_eq!(usage::count(control, world.server, &first).await.unwrap(), 0);
    let both = tokio::join!(usage::count(control, world.server, &second), usage::count(control, world.server, &second));
    both.0.unwrap();
    both.1.unwrap();
    usage::count(control, world.server, &first).await.unwrap();
    assert_eq!(usage::behind(control, control.now()), []);
    // Page by page.
    let (mut seen, mut after) = (BTreeSet::new(), None);
    loop {
        let (page, more) = usage::of_month(control, month("2026-11"), after, 7);
        assert!(page.len() <= 7 && (!more || page.len() == 7));
        for (account, sums) in &page {
            assert_eq!((sums.running_minutes, sums.cpu_ns), (120, 10));
            assert!(seen.insert(*account), "{account} stands on two pages");
        }
        after = page.last().map(|(account, _)| *account);
        if !more {
            break;
        }
    }
    assert_eq!(seen, accounts.iter().copied().collect());
    let rows = usage::of_account(control, month("2026-11"), accounts[3]);
    assert_eq!((rows.len(), &*rows[0].alias, rows[0].sums.cpu_ns), (1, "at 2026-11-30T23", 10));
}

/// Whoever counted a part of an hour and died: the rest is counted by whoever comes next, and the part is not counted again.
#[tokio::test]
async fn what_was_begun_is_ended_by_the_next() {
    let (world, _) = at("2026-11-28T11").await;
    let (ana, bob) = (AccountId::random(), AccountId::random());
    let at = hour("2026-11-28T10");
    usage::count(&world.control, world.server, &used(at, &[ana])).await.unwrap();
    usage::count(&world.control, world.server, &used(at, &[ana, bob])).await.unwrap();
    for account in [ana, bob] {
        let rows = usage::of_account(&world.control, at.month(), account);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].sums.minutes, 60, "{account}");
    }
}

#[tokio::test]
async fn machines_and_months_are_kept_apart_and_billed_together() {
    let (world, _) = at("2026-12-01T01").await;
    let (account, other) = (AccountId::random(), ServerId::random());
    for (server, at) in [(world.server, "2026-11-30T23"), (other, "2026-11-30T23"), (world.server, "2026-12-01T00")] {
        usage::count(&world.control, server, &used(hour(at), &[account])).await.unwrap();
    }
    let minutes = |text: &str| {
        let rows = usage::of_account(&world.control, month(text), account);
        let (all, more) = usage::of_month(&world.control, month(text), None, 10);
        assert_eq!(
            (all.first().map(|(_, sums)| sums.minutes), more),
            (rows.first().map(|row| row.sums.minutes), false)
        );
        rows.first().map(|row| (rows.len(), row.sums.minutes))
    };
    assert_eq!((minutes("2026-11"), minutes("2026-12"), minutes("2026-10")), (Some((1, 120)), Some((1, 60)), None));
}

/// A machine that was taken over bills nobody for what another has.
#[tokio::test]
async fn nobody_pays_for_the_instance_of_another() {
    let world = World::new().await;
    let control = &world.control;
    let instance = world.create("web").await.unwrap().instance;
    let (id, owner) = (instance.id, instance.owner);
    let at = Hour::of(control.now()).earlier(1);
    let row = |owner| Row {
        instance: id,
        owner,
        alias: "web".into(),
        package: "small".into(),
        sums: Sums { minutes: 60, ..Sums::default() },
    };
    let victim = AccountId::random();
    let hour = HourUsage { hour: at, rows: vec![row(victim), row(owner)] };
    assert_eq!(usage::count(control, world.server, &hour).await.unwrap(), 1);
    assert_eq!(usage::of_account(control, at.month(), victim), []);
    assert_eq!(usage::of_account(control, at.month(), owner).len(), 1);
}

/// A headnode's clock was years ahead for a while: hours are asked for and counted again when it is right.
#[tokio::test]
async fn hours_that_are_to_come_stop_nobody() {
    let (world, _) = at("2026-11-28T10").await;
    let now = world.control.now();
    let account = AccountId::random();
    usage::count(&world.control, world.server, &used(hour("2036-01-01T00"), &[account])).await.unwrap();
    assert_eq!(usage::behind(&world.control, now), [(world.server, None)]);
    usage::count(&world.control, world.server, &used(hour("2026-11-28T09"), &[account])).await.unwrap();
    assert_eq!(usage::behind(&world.control, now), []);
    assert_eq!(usage::of_account(&world.control, month("2026-11"), account)[0].sums.minutes, 60);
}

#[tokio::test]
async fn old_months_are_forgotten_and_machines_that_lag_are_named() {
    let (world, clock) = at("2026-11-28T10").await;
    let begin = hour("2026-11-28T10").begins();
    let account = AccountId::random();
    assert_eq!(usage::behind(&world.control, begin), [(world.server, None)]);
    usage::count(&world.control, world.server, &used(hour("2026-11-28T09"), &[account])).await.unwrap();
    assert_eq!(usage::behind(&world.control, begin), []);
    assert_eq!(usage::trim(&world.control).await.unwrap(), 0);
    clock.advance(DAY * 90);
    assert_eq!(usage::trim(&world.control).await.unwrap(), 0, "three months are kept");
    clock.advance(DAY * 5);
    assert_eq!(usage::trim(&world.control).await.unwrap(), 1);
    assert_eq!(world.control.snapshot().count(&USAGE), 0);
    let last = Some(hour("2026-11-28T09"));
    assert_eq!(usage::behind(&world.control, world.control.now()), [(world.server, last)]);
    // What is brought so late is not kept for a moment either.
    usage::count(&world.control, world.server, &used(hour("2026-11-28T10"), &[account])).await.unwrap();
    assert_eq!(world.control.snapshot().count(&USAGE), 0);
    let last = Some(hour("2026-11-28T10"));
    assert_eq!(usage::behind(&world.control, world.control.now()), [(world.server, last)]);
}
