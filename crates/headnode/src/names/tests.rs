//! Zones that follow changes are those that are read anew.

use std::sync::Arc;

use base::random;
use model::{
    id::InstanceId,
    names::{Data as Answer, Group, Zone as Record, ZoneKind},
    time::Timestamp,
};
use store::{Store, Transaction, memory::Memory};

use super::*;

const APEXES: [&str; 2] = ["dc.example", "0.9.10.in-addr.arpa"];

fn head(ttl_seconds: u32) -> ZoneHead {
    ZoneHead {
        kind: ZoneKind::Forward,
        networks: None,
        name_servers: vec!["ns.dc.example".to_owned()],
        hostmaster: "hostmaster.dc.example".to_owned(),
        glue: vec![Group { names: vec!["ns".to_owned()], shared: false, data: vec![Answer::A([10, 0, 0, 1].into())] }],
        ttl_seconds,
        ns_ttl_seconds: 3_600,
        clients: Vec::new(),
        signed: false,
    }
}

async fn store() -> Store {
    let store = Store::open(Arc::new(Memory::new()), control::schema()).await.expect("the store opens");
    let records = APEXES.into_iter().fold(Transaction::new(), |all, apex| {
        all.create(
            &ZONES,
            Record { apex: apex.to_owned(), serial: 100, changed_at: Timestamp(0), head: Some(head(30)) },
        )
    });
    store.commit(records).await.expect("zones");
    store
}

/// Small numbers by chance.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn published(&mut self, id: InstanceId) -> Published {
        let mut parts = BTreeMap::new();
        for apex in APEXES {
            let mut groups = Vec::new();
            if self.below(3) > 0 {
                let data = vec![Answer::A([10, 0, 0, self.below(4) as u8].into()), Answer::Txt(id.to_string())];
                groups.push(Group { names: vec![format!("{id}.inst.o"), format!("{id}.inst.l")], shared: false, data });
            }
            for service in 0..3 {
                if self.below(2) == 0 {
                    let mut data = vec![Answer::Aaaa([0, 0, 0, 0, 0, 0, 0, self.below(3) as u16].into())];
                    if self.below(2) == 0 {
                        let target = format!("{id}.inst.o.{apex}");
                        data.push(Answer::Srv { priority: 0, weight: 10, port: 80, target });
                    }
                    groups.push(Group { names: vec![format!("s{service}.svc.o")], shared: true, data });
                }
            }
            if !groups.is_empty() {
                parts.insert(apex.to_owned(), groups);
            }
        }
        Published { instance: id, parts: parts.into_iter().collect() }
    }
}

fn read(feed: &Feed) -> BTreeMap<String, (u32, BTreeMap<String, Vec<Rrset>>)> {
    let zones = feed.served.iter().map(|(apex, served)| {
        let names = served.zone.names().map(|(name, rrsets)| (name.to_string(), rrsets.to_vec()));
        (apex.clone(), (served.zone.serial(), names.collect()))
    });
    zones.collect()
}

#[tokio::test]
async fn a_feed_that_follows_is_one_made_anew() {
    let store = store().await;
    let mut chance = Chance(random::bits());
    println!("chance begins at {}", chance.0);
    let ids: Vec<InstanceId> = (1..=6).map(InstanceId::from_random).collect();
    let mut changes = store.changes();
    let mut feed = Feed::new(None, store.snapshot());
    let first = feed.served[APEXES[0]].zone.clone();
    for step in 0..200_u32 {
        let snapshot = store.snapshot();
        let mut transaction = Transaction::new();
        for id in &ids {
            if chance.below(3) > 0 {
                continue;
            }
            let (entry, next) = (snapshot.get(&NAMES, &id.to_string()), chance.published(*id));
            transaction = match (entry, chance.below(4)) {
                (Some(entry), 0) => transaction.delete(&NAMES, &entry),
                (Some(entry), _) => transaction.replace(&NAMES, &entry, next),
                (None, _) => transaction.create(&NAMES, next),
            };
        }
        for apex in APEXES {
            let entry = snapshot.get(&ZONES, apex).expect("a zone");
            let mut next = Record { serial: 101 + step, ..entry.value.clone() };
            if chance.below(30) == 0 {
                next.head = Some(head(step));
            }
            transaction = transaction.replace(&ZONES, &entry, next);
        }
        store.commit(transaction).await.expect("a change");
        let change = changes.next().await;
        let keys = (chance.below(10) > 0).then_some(change.keys.as_slice());
        feed.follow(&change.snapshot, keys);
        assert_eq!(read(&feed), read(&Feed::new(None, store.snapshot())), "step {step}");
    }
    assert_eq!(first.serial(), 100, "a zone that is held stays as it was");
}

#[tokio::test]
async fn differences_lead_from_serial_to_serial() {
    let store = store().await;
    let mut changes = store.changes();
    let mut feed = Feed::new(None, store.snapshot());
    let id = InstanceId::from_random(1);
    for step in 1..=3_u8 {
        let snapshot = store.snapshot();
        let data = vec![Answer::A([10, 0, 0, step].into())];
        let group = Group { names: vec!["a.svc.o".to_owned()], shared: true, data };
        let next = Published { instance: id, parts: [(APEXES[0].to_owned(), vec![group])].into() };
        let transaction = match snapshot.get(&NAMES, &id.to_string()) {
            Some(entry) => Transaction::new().replace(&NAMES, &entry, next),
            None => Transaction::new().create(&NAMES, next),
        };
        let zone = snapshot.get(&ZONES, APEXES[0]).expect("a zone");
        let record = Record { serial: zone.serial + 1, ..zone.value.clone() };
        store.commit(transaction.replace(&ZONES, &zone, record)).await.expect("a change");
        let change = changes.next().await;
        feed.follow(&change.snapshot, Some(&change.keys));
    }
    let zone = &feed.served[APEXES[0]].zone;
    let steps: Vec<(u32, u32, usize)> =
        zone.since(100).expect("they are known").map(|step| (step.from, step.to, step.changes.len())).collect();
    assert_eq!(steps, [(100, 101, 1), (101, 102, 1), (102, 103, 1)]);
    assert_eq!(feed.served[APEXES[1]].zone.serial(), 100, "the other zone had no part in it");
}

#[tokio::test]
async fn clients_see_their_zones_and_a_zone_that_ends_is_gone() {
    let store = store().await;
    let mut feed = Feed::new(None, store.snapshot());
    let seen = |feed: &Feed, client: &str| {
        let apex: Name = APEXES[0].parse().expect("a name");
        feed.zones().get(&apex, client.parse().expect("an address")).is_some()
    };
    assert!(seen(&feed, "192.0.2.1"));
    for (clients, here, elsewhere) in
        [(vec!["10.0.0.0/8".parse().expect("a network")], true, false), (vec![], true, true)]
    {
        let entry = store.snapshot().get(&ZONES, APEXES[0]).expect("a zone");
        let serial = entry.serial + 1;
        let next = Record { serial, head: Some(ZoneHead { clients, ..head(30) }), ..entry.value.clone() };
        store.commit(Transaction::new().replace(&ZONES, &entry, next)).await.expect("a change");
        feed.follow(&store.snapshot(), None);
        assert_eq!((seen(&feed, "10.1.2.3"), seen(&feed, "192.0.2.1")), (here, elsewhere));
    }
    let entry = store.snapshot().get(&ZONES, APEXES[0]).expect("a zone");
    let ended = Record { serial: entry.serial + 1, head: None, ..entry.value.clone() };
    store.commit(Transaction::new().replace(&ZONES, &entry, ended)).await.expect("a change");
    feed.follow(&store.snapshot(), None);
    assert!(!seen(&feed, "10.1.2.3"));
}
