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
    usage::{Row, Sums},
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
