//! One member of three: what it holds is read, and all goes on when another one is there.

use std::{sync::Arc, time::Duration};

use etcd::{Admin, Config, Etcd, local::Member};
use store::{CommitError, Engine, Revision, Store, Transaction};

use crate::bed::{AMPLE, Bed, COUNTERS, all, batch, committed, counter, put, schema, until};

/// More than one page of a mirror, and of a member's.
const RECORDS: usize = 1_200;

/// A store of many records, some changed and some deleted, all of them known to all members.
async fn filled(bed: &Bed) -> Revision {
    let engine = bed.open("one").await;
    engine.raise(Revision(7_000)).await.unwrap();
    let keys: Vec<String> = (0..RECORDS).map(|number| format!("counters/c{number:04}")).collect();
    for some in keys.chunks(40) {
        let writes = some.iter().map(|key| put(key, r#"{"v":1,"d":{"name":"NAME","count":1}}"#)).collect();
        committed(&engine, batch(&[], writes)).await;
    }
    for key in keys.iter().take(10) {
        committed(&engine, batch(&[], vec![(key.clone(), None)])).await;
    }
    // Members hear of a commit with what comes next, at the latest.
    let last = committed(&engine, batch(&[], vec![put("counters/last", "x")])).await;
    committed(&engine, batch(&[], vec![("counters/last".to_owned(), None)])).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    last
}

fn data(bed: &Bed, name: &str) -> Config {
    Config { data: Some(bed.path().join(name)), ..bed.config("one") }
}

/// What is held, loaded as a mirror does.
async fn held(engine: &Etcd) -> Vec<(String, Revision, String)> {
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let page = engine.load(&after, 500).await.unwrap();
        let text = |value: &bytes::Bytes| String::from_utf8(value.to_vec()).unwrap();
        found.extend(page.records.iter().map(|record| (record.key.clone(), record.revision, text(&record.value))));
        match page.records.last() {
            Some(last) if page.more => after.clone_from(&last.key),
            _ => return found,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_has_just_started_alone_is_read_from_its_file() {
    let Some(mut bed) = Bed::three().await else { return };
    let last = filled(&bed).await;
    let before = held(&bed.open("two").await).await;
    assert_eq!(before.len(), RECORDS - 10);
    tokio::time::sleep(Duration::from_millis(500)).await;
    for member in &mut bed.members {
        member.kill().await.unwrap();
    }
    bed.members[0].start().unwrap();

    let engine = Arc::new(Etcd::open(data(&bed, "m1")).await.unwrap());
    assert!(engine.is_waiting() && !engine.has_majority().await && !engine.settle().await.unwrap());
    let page = engine.load("", 1).await.unwrap();
    assert!(page.revision >= last && page.more, "{} {last}", page.revision);
    assert_eq!(held(&engine).await, before, "keys, revisions and values are those of before");
    let config = data(&bed, "m1");
    let survived = etcd::survived(config.data.as_deref().unwrap(), &config.prefix).unwrap();
    let of_file = survived.records.iter().map(|(key, value)| (key.clone(), String::from_utf8(value.to_vec()).unwrap()));
    let of_majority = before.iter().map(|(key, _, value)| (key.clone(), value.clone()));
    assert!(of_file.eq(of_majority), "what a new member is filled with is all there was");
    assert!(survived.revision >= last, "{survived:?}");
    assert!(etcd::survived(config.data.as_deref().unwrap(), "somebody/else").is_err());
    assert!(engine.newest().unwrap().await.is_err());
    let refused = engine.commit(batch(&[], vec![put("counters/n", "1")])).await.unwrap_err();
    assert!(base::errors::chain(&refused).contains("no majority"), "{}", base::errors::chain(&refused));

    // At its door for members it says whom it knows.
    let endpoints: Vec<String> = bed.members.iter().map(Member::endpoint).collect();
    let admin = Admin::new(&endpoints, bed.tls.clone()).unwrap();
    let told = tokio::time::timeout(AMPLE, async {
        loop {
            match admin.members_of(&bed.members[0].peer()).await {
                Ok(told) => return told,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    let told = told.await.unwrap();
    assert!(["m1", "m2", "m3"].iter().all(|name| told.contains(&format!("\"name\":\"{name}\""))), "{told}");
    assert!(admin.members_of(&bed.members[1].peer()).await.is_err());

    // Another one comes, and what was opened alone goes on.
    let mut changes = engine.watch(page.revision).await.unwrap();
    bed.members[1].start().unwrap();
    let engine = &engine;
    let settled = tokio::time::timeout(AMPLE, async {
        while !engine.settle().await.unwrap() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    settled.await.unwrap();
    assert!(!engine.is_waiting() && engine.has_majority().await);
    let revision = committed(engine, batch(&[], vec![put("counters/n", "1")])).await;
    assert!(revision > page.revision);
    let told = tokio::time::timeout(AMPLE, async {
        loop {
            let delivery = changes.next().await.unwrap();
            if let Some(event) = delivery.events.into_iter().find(|event| event.key == "counters/n") {
                return event.revision;
            }
        }
    });
    assert_eq!(told.await.unwrap(), revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_has_lost_the_others_is_asked() {
    let Some(mut bed) = Bed::three().await else { return };
    let engine = Arc::new(bed.open("one").await);
    let store = Store::open(engine.clone(), schema()).await.unwrap();
    store.commit(Transaction::new().create(&COUNTERS, counter("a", 1))).await.unwrap();
    let shown = store.snapshot().revision();
    drop(store);
    for member in &mut bed.members[1..] {
        member.kill().await.unwrap();
    }
    // There is no file to read: it is the member that answers, and knows what it was told last.
    let engine = Arc::new(bed.open("two").await);
    assert!(engine.is_waiting());
    assert_eq!(all(&engine).await.len(), 1);
    let store = Store::open(engine.clone(), schema()).await.unwrap();
    store.opened_old(Duration::from_secs(5_000));
    assert_eq!((store.snapshot().revision(), store.snapshot().get(&COUNTERS, "a").unwrap().count), (shown, 1));
    let stale = store.fresh().await.unwrap_err();
    assert!(stale.age >= Duration::from_secs(5_000), "{stale}");
    let refused = store.commit(Transaction::new().create(&COUNTERS, counter("b", 1))).await.unwrap_err();
    assert!(matches!(refused, CommitError::Engine(_)), "{refused}");

    bed.members[2].start().unwrap();
    let asked = engine.clone();
    let settled = tokio::time::timeout(AMPLE, async move {
        while !asked.settle().await.unwrap() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    settled.await.unwrap();
    store.commit(Transaction::new().create(&COUNTERS, counter("b", 1))).await.unwrap();
    let other = Store::open(Arc::new(bed.open("three").await), schema()).await.unwrap();
    other.commit(Transaction::new().create(&COUNTERS, counter("c", 1))).await.unwrap();
    until("what the other one made", || store.snapshot().get(&COUNTERS, "c").is_some()).await;
    // Whoever asks while it was not known is told so for a moment more.
    let known = tokio::time::timeout(AMPLE, async {
        while store.fresh().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    known.await.unwrap();
}
