//! A machine that says what was used, and a headnode that counts it.

use std::sync::Arc;

use base::{
    clock::ManualClock,
    shutdown::{Shutdown, Trigger},
};
use control::{ControlConfig, servers};
use model::{
    id::{AccountId, InstanceId},
    target::Report,
    usage::{Row, SEVERAL, Sums},
};
use nodeapi::inquiry::UsagePage;
use store::{Store, memory::Memory};

use super::*;

struct Place {
    count: CountUsage,
    clock: Arc<ManualClock>,
    server: ServerId,
    account: AccountId,
    _trigger: Trigger,
    _images: tempfile::TempDir,
}

impl Place {
    async fn at(hour: &str) -> Self {
        let images = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(hour.parse::<Hour>().unwrap().begins().0));
        let (trigger, shutdown) = Shutdown::new();
        let store = Store::open(Arc::new(Memory::new()), control::schema()).await.unwrap();
        let control = Control::start(store, clock.clone(), ControlConfig::new("dc-1", images.path()), shutdown);
        let server = ServerId::random();
        let new = servers::NewServer { hostname: "one".into(), headnode: true, comments: String::new() };
        servers::register(&control, server, new).await.unwrap();
        let count = CountUsage::new(&control, &Inquiries::default());
        Self { count, clock, server, account: AccountId::random(), _trigger: trigger, _images: images }
    }

    fn hour(&self, hour: &str) -> HourUsage {
        let row = Row {
            instance: InstanceId::from_random(1),
            owner: self.account,
            alias: "web".into(),
            package: "small".into(),
            sums: Sums { minutes: 60, ..Sums::default() },
        };
        HourUsage { hour: hour.parse().unwrap(), rows: vec![row] }
    }

    /// A pass, in which the machine answers from `hours`, two at a time, whatever was asked for when `is_deaf`.
    async fn pass(&self, hours: &[HourUsage], is_deaf: bool) -> String {
        let answering = async {
            loop {
                let inquiry = self.count.inquiries.next(self.server).await;
                let Question::Usage { after } = inquiry.question else { panic!("{:?}", inquiry.question) };
                let wanted = |usage: &&HourUsage| is_deaf || after.is_none_or(|after| usage.hour > after);
                let behind: Vec<_> = hours.iter().filter(wanted).cloned().collect();
                let page = UsagePage { more: behind.len() > 2, hours: behind.into_iter().take(2).collect() };
                self.count.inquiries.answered(self.server, inquiry.id, Answer::Usage(page));
            }
        };
        tokio::select! {
            said = self.count.run() => said.unwrap(),
            () = answering => String::new(),
        }
    }

    /// A pass in which machines answer what they have for `hours`, the others only when the first has.
    async fn pass_of(&self, machines: &[(ServerId, HourUsage)]) -> Result<String, control::Error> {
        let first = tokio::sync::watch::Sender::new(false);
        let answering = machines.iter().enumerate().map(async |(number, (server, hour))| {
            loop {
                let inquiry = self.count.inquiries.next(*server).await;
                if number > 0 {
                    first.subscribe().wait_for(|first| *first).await.unwrap();
                }
                let page = UsagePage { hours: vec![hour.clone()], more: false };
                self.count.inquiries.answered(*server, inquiry.id, Answer::Usage(page));
                first.send_replace(true);
            }
        });
        tokio::select! {
            said = self.count.run() => said,
            _ = futures_util::future::join_all(answering) => Ok(String::new()),
        }
    }

    fn minutes(&self) -> u64 {
        let rows = usage::of_account(&self.count.control, "2026-11".parse().unwrap(), self.account);
        rows.first().map_or(0, |row| row.sums.minutes)
    }
}

#[tokio::test]
async fn hours_are_asked_for_until_there_are_no_more_and_counted_once() {
    let place = Place::at("2026-11-28T15").await;
    let hours: Vec<_> = (10..15).map(|hour| place.hour(&format!("2026-11-28T{hour}"))).collect();
    assert_eq!(place.pass(&hours, false).await, "counted 5 hours of machines");
    assert_eq!(place.minutes(), 300);
    assert_eq!(place.pass(&hours, false).await, "", "nobody is asked who is not behind");
    place.clock.advance(Duration::from_secs(3_600));
    let report = Report::bare(place.server, "one");
    servers::apply_report(&place.count.control, place.server, &report).await.unwrap();
    let more = [hours, vec![place.hour("2026-11-28T15")]].concat();
    assert_eq!(place.pass(&more, false).await, "counted 1 hours of machines");
    assert_eq!(place.minutes(), 360);
}

#[tokio::test]
async fn a_machine_that_says_an_old_hour_again_is_not_believed() {
    let place = Place::at("2026-11-28T15").await;
    let hours = [place.hour("2026-11-28T12")];
    assert_eq!(place.pass(&hours, false).await, "counted 1 hours of machines");
    assert_eq!(place.pass(&hours, true).await, "");
    let failing = place.count.failing.lock().unwrap().clone();
    assert!(failing[&place.server].contains("out of order"), "{failing:?}");
    assert_eq!(place.minutes(), 60);
}

/// Its clock is ahead: what it tells is counted when it is over here too, and its hours before that at once.
#[tokio::test]
async fn an_hour_that_is_to_come_is_not_counted() {
    let place = Place::at("2026-11-28T15").await;
    let hours = [place.hour("2026-11-28T14"), place.hour("2026-11-29T09")];
    assert_eq!(place.pass(&hours, false).await, "");
    let failing = place.count.failing.lock().unwrap().clone();
    assert!(failing[&place.server].contains("2026-11-29T09, which is yet to come"), "{failing:?}");
    assert_eq!(place.minutes(), 60);
}

/// One that was taken over tells what no store takes, or more than an hour has: the others are counted all the same.
#[tokio::test]
async fn a_machine_whose_hours_are_not_taken_stops_no_other() {
    let long = |row: &Row| vec![Row { alias: "x".repeat(2 << 20), ..row.clone() }];
    let many = |row: &Row| vec![row.clone(); 8_001];
    // Within what an hour may be, and more than one record has room for.
    let heavy = |row: &Row| -> Vec<Row> {
        let several = |number: usize| Row { instance: SEVERAL, package: format!("{number:0>256}"), ..row.clone() };
        (0..8_000).map(several).collect()
    };
    let row = Place::at("2026-11-28T15").await.hour("2026-11-28T14").rows.remove(0);
    let tells = [
        (long(&row), "`alias` of 2097152 bytes", false),
        (many(&row), "has 8001 rows", false),
        (heavy(&row), "too large", true),
    ];
    for (rows, why, is_failure) in tells {
        let place = Place::at("2026-11-28T15").await;
        let hour = place.hour("2026-11-28T14");
        let bad = ServerId::from_random(0);
        let mut machines = vec![(bad, HourUsage { rows, ..hour.clone() })];
        // More than are asked at once, most of them behind the bad one.
        let others = (1..=12u128).map(|number| ServerId::from_random(number << 64)).chain([place.server]);
        machines.extend(others.map(|server| (server, hour.clone())));
        for (number, (server, _)) in machines.iter().enumerate() {
            let new = servers::NewServer { hostname: format!("m{number}"), headnode: false, comments: String::new() };
            servers::register(&place.count.control, *server, new).await.unwrap();
        }
        let said = place.pass_of(&machines).await;
        assert_eq!(place.minutes(), 13 * 60, "{why}: {said:?}");
        assert_eq!(said.is_err(), is_failure, "{why}: {said:?}");
        let failing = place.count.failing.lock().unwrap().clone();
        assert!(failing.len() == 1 && failing[&bad].contains(why), "{failing:?}");
    }
}
