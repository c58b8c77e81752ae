//! One suite for every engine.

use bytes::Bytes;
use store::{
    Revision,
    engine::{Batch, Engine, EngineError, Event, Outcome},
    sqlite::Sqlite,
};

use crate::records::{beds, embedded_beds};

fn put(key: &str, value: &str) -> (String, Option<Bytes>) {
    (key.to_owned(), Some(Bytes::copy_from_slice(value.as_bytes())))
}

fn batch(checks: &[(&str, Option<u64>)], writes: Vec<(String, Option<Bytes>)>) -> Batch {
    let checks = checks.iter().map(|(key, expected)| ((*key).to_owned(), expected.map(Revision))).collect();
    Batch { checks, writes, may_use_reserve: false }
}

async fn all(engine: &dyn Engine) -> Vec<(String, u64, String)> {
    let page = engine.load("", 10_000).await.unwrap();
    assert!(!page.more);
    let text = |value: &Bytes| String::from_utf8(value.to_vec()).unwrap();
    page.records.iter().map(|record| (record.key.clone(), record.revision.0, text(&record.value))).collect()
}

/// The revision of what must be committed.
async fn committed(engine: &dyn Engine, batch: Batch) -> u64 {
    match engine.commit(batch).await.unwrap() {
        Outcome::Committed(revision) => revision.0,
        Outcome::Conflict(revision) => panic!("a conflict at revision {revision}"),
    }
}

/// The revision of the keyspace as a conflict tells it.
async fn refused(engine: &dyn Engine, batch: Batch) -> u64 {
    match engine.commit(batch).await.unwrap() {
        Outcome::Conflict(revision) => revision.0,
        Outcome::Committed(revision) => panic!("committed as revision {revision}"),
    }
}

#[tokio::test]
async fn commits_are_checked_and_whole() {
    for bed in beds().await {
        let engine = bed.engine.as_ref();
        let first = committed(engine, batch(&[("a", None), ("b", None)], vec![put("a", "1"), put("b", "1")])).await;
        // One check of two fails: nothing is written.
        let conflict =
            refused(engine, batch(&[("a", Some(first)), ("b", None)], vec![put("a", "2"), put("c", "2")])).await;
        assert!(conflict >= first, "{}", bed.name);
        let batch_of_both = batch(&[("a", Some(first)), ("z", None)], vec![put("a", "3"), ("b".to_owned(), None)]);
        let second = committed(engine, batch_of_both).await;
        assert!(second > conflict, "{}", bed.name);
        // Deleting what is not there is fine, and makes a revision.
        let third = committed(engine, batch(&[], vec![("nothing".to_owned(), None)])).await;
        assert_eq!(third, second + 1, "{}", bed.name);
        assert_eq!(all(engine).await, [("a".to_owned(), second, "3".to_owned())], "{}", bed.name);
        // A deleted key is absent, not at an old revision.
        let conflict = refused(engine, batch(&[("b", Some(first))], vec![put("b", "4")])).await;
        assert!(conflict >= third, "{}", bed.name);
    }
}

#[tokio::test]
async fn a_revision_that_was_named_is_one_the_watch_shows() {
    for bed in beds().await {
        let engine = bed.engine.as_ref();
        let start = committed(engine, batch(&[], vec![put("a", "1")])).await;
        let mut watch = engine.watch(Revision(start)).await.unwrap();
        let other = bed.other_engine().await;
        let theirs = committed(other.as_ref(), batch(&[("a", Some(start))], vec![put("a", "2")])).await;
        // Whoever loses against it waits for the revision the conflict names, and then sees why.
        let conflict = refused(engine, batch(&[("a", Some(start))], vec![put("a", "3")])).await;
        assert!(conflict >= theirs, "{}", bed.name);
        let (mut through, mut told) = (start, Vec::new());
        while through < conflict {
            let delivery = watch.next().await.unwrap();
            through = delivery.through.0;
            told.extend(delivery.events);
        }
        let events: Vec<(u64, &str)> = told.iter().map(|event| (event.revision.0, event.key.as_str())).collect();
        assert_eq!(events, [(theirs, "a")], "{}", bed.name);
        let nothing = committed(engine, batch(&[], vec![("nothing".to_owned(), None)])).await;
        while through < nothing {
            through = watch.next().await.unwrap().through.0;
        }
    }
}

#[tokio::test]
async fn pages_follow_the_order_of_keys() {
    for bed in beds().await {
        let engine = bed.engine.as_ref();
        let keys: Vec<String> = (0..25).map(|number| format!("t/{number:02}")).collect();
        engine.commit(batch(&[], keys.iter().rev().map(|key| put(key, "x")).collect())).await.unwrap();
        let (mut after, mut seen, mut pages) = (String::new(), Vec::new(), 0);
        loop {
            let page = engine.load(&after, 10).await.unwrap();
            seen.extend(page.records.iter().map(|record| record.key.clone()));
            pages += 1;
            if !page.more {
                break;
            }
            after = page.records.last().unwrap().key.clone();
        }
        assert_eq!((seen, pages), (keys, 3), "{}", bed.name);
    }
}

#[tokio::test]
async fn a_watch_tells_every_change_after_its_revision_in_order() {
    for bed in beds().await {
        let engine = bed.engine.as_ref();
        let first = committed(engine, batch(&[], vec![put("a", "1")])).await;
        let second = committed(engine, batch(&[], vec![put("a", "2"), put("b", "2")])).await;
        let mut watch = engine.watch(Revision(first)).await.unwrap();
        let third = committed(engine, batch(&[], vec![("a".to_owned(), None)])).await;
        let mut events = Vec::new();
        while events.len() < 3 {
            let delivery = watch.next().await.unwrap();
            assert_eq!(delivery.through, delivery.events.last().unwrap().revision, "{}", bed.name);
            events.extend(delivery.events);
        }
        let event = |revision, key: &str, value: Option<&'static str>| Event {
            revision: Revision(revision),
            key: key.to_owned(),
            value: value.map(|value| Bytes::from_static(value.as_bytes())),
        };
        let expected = [event(second, "a", Some("2")), event(second, "b", Some("2")), event(third, "a", None)];
        assert_eq!(events, expected, "{}", bed.name);
    }
}

#[tokio::test]
async fn history_is_bounded_and_says_so() {
    for bed in embedded_beds().await {
        if bed.name == "sqlite" {
            // The same ring; filling it here would only measure the disk. etcd's history ends where it is told, see its own tests.
            continue;
        }
        let engine = bed.engine.as_ref();
        for _ in 0..5000 {
            engine.commit(batch(&[], vec![put("a", "1")])).await.unwrap();
        }
        assert!(matches!(engine.watch(Revision(1)).await, Err(EngineError::Compacted(_))), "{}", bed.name);
        assert!(engine.watch(Revision(4990)).await.is_ok(), "{}", bed.name);
    }
}

#[tokio::test]
async fn racing_commits_on_one_key_have_one_winner_each() {
    for bed in beds().await {
        let mut tasks = Vec::new();
        for racer in 0..16 {
            let engine = bed.engine.clone();
            tasks.push(base::task::spawn("racer", async move {
                let mut won = Vec::new();
                let mut expected = None;
                while won.len() < 10 {
                    let checks = vec![("k".to_owned(), expected)];
                    let writes = vec![put("k", &racer.to_string())];
                    match engine.commit(Batch { checks, writes, may_use_reserve: false }).await.unwrap() {
                        Outcome::Committed(revision) => {
                            won.push(revision.0);
                            expected = Some(revision);
                        }
                        Outcome::Conflict(_) => {
                            let page = engine.load("", 1).await.unwrap();
                            expected = page.records.first().map(|record| record.revision);
                        }
                    }
                }
                won
            }));
        }
        let mut won = std::collections::BTreeSet::new();
        for task in tasks {
            won.extend(task.await.unwrap());
        }
        assert_eq!(won.len(), 160, "{}", bed.name);
        assert_eq!(Some(&all(bed.engine.as_ref()).await[0].1), won.last(), "{}", bed.name);
    }
}

#[tokio::test]
async fn a_file_is_there_again_and_belongs_to_one_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let engine = Sqlite::open_with_reserve(&path, 4096).await.unwrap();
    engine.commit(batch(&[], vec![put("a", "1")])).await.unwrap();
    assert!(Sqlite::open_with_reserve(&path, 4096).await.is_err(), "a second opening must be refused");
    drop(engine);
    let engine = reopen(&path).await;
    assert_eq!(all(&engine).await, [("a".to_owned(), 1, "1".to_owned())]);
    let outcome = engine.commit(batch(&[("a", Some(1))], vec![put("a", "2")])).await.unwrap();
    assert_eq!(outcome, Outcome::Committed(Revision(2)));
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    std::fs::write(&path, "these are not the bytes of a database, however long one looks".repeat(100)).unwrap();
    assert!(Sqlite::open_with_reserve(&path, 4096).await.is_err());
}

/// The writer thread closes the file a moment after the last handle is dropped.
pub(crate) async fn reopen(path: &std::path::Path) -> Sqlite {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        match Sqlite::open_with_reserve(path, 4096).await {
            Ok(engine) => return engine,
            Err(error) => {
                assert!(std::time::Instant::now() < deadline, "{}", base::errors::chain(&error));
                tokio::task::yield_now().await;
            }
        }
    }
}
