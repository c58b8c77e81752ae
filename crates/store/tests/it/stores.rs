//! The typed store on every engine.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use store::{
    BoxFuture, CommitError, Engine, EngineError, Error, Schema, Snapshot, Store, Transaction,
    engine::{Batch, Limits, Outcome, Page, Watch},
    memory::Memory,
};

use crate::records::{BOATS, COUNTERS, Counter, beds, boat, counter, schema};

#[tokio::test]
async fn what_was_written_is_read_at_once_and_by_every_index() {
    for bed in beds().await {
        let store = bed.store().await;
        let before = store.snapshot();
        let first = boat("nautilus", "nantes");
        let second = boat("argo", "iolcus");
        store.commit(Transaction::new().create(&BOATS, first.clone()).create(&BOATS, second)).await.unwrap();
        let after = store.snapshot();
        assert_eq!(before.count(&BOATS), 0, "an old snapshot never changes");
        assert_eq!(after.get(&BOATS, "nautilus").unwrap().value, first);
        let names = |found: Vec<_>| {
            found.iter().map(|boat: &Arc<store::Entry<crate::records::Boat>>| boat.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(after.find(&BOATS, "harbour", "nantes").collect()), ["nautilus"]);
        assert_eq!(names(after.find(&BOATS, "crew", "nemo").collect()), ["argo", "nautilus"]);
        assert_eq!(names(after.range(&BOATS, "argo").collect()), ["nautilus"]);

        // Moving harbours moves the index entry; deleting removes it.
        let entry = after.get(&BOATS, "nautilus").unwrap();
        let mut moved = first.clone();
        moved.harbour = "vanikoro".to_owned();
        moved.crew.clear();
        store.commit(Transaction::new().replace(&BOATS, &entry, moved)).await.unwrap();
        let now = store.snapshot();
        assert_eq!(now.find(&BOATS, "harbour", "nantes").count(), 0);
        assert_eq!(now.find(&BOATS, "harbour", "vanikoro").count(), 1);
        assert_eq!(names(now.find(&BOATS, "crew", "nemo").collect()), ["argo"]);
        let entry = now.get(&BOATS, "nautilus").unwrap();
        store.commit(Transaction::new().delete(&BOATS, &entry)).await.unwrap();
        assert_eq!(store.snapshot().find(&BOATS, "harbour", "vanikoro").count(), 0);
        assert!(store.snapshot().get(&BOATS, "nautilus").is_none());

        // A second store over the same engine sees the same: what is on the disk is what the first one showed.
        let other = bed.store().await;
        assert_eq!(other.snapshot().revision(), store.snapshot().revision());
        assert_eq!(names(other.snapshot().scan(&BOATS).collect()), ["argo"], "{}", bed.name);
    }
}

#[tokio::test]
async fn stale_decisions_are_conflicts_that_name_the_record() {
    for bed in beds().await {
        let store = bed.store().await;
        store.commit(Transaction::new().create(&COUNTERS, counter("a", 1))).await.unwrap();
        let stale = store.snapshot().get(&COUNTERS, "a").unwrap();
        store.commit(Transaction::new().replace(&COUNTERS, &stale, counter("a", 2))).await.unwrap();
        for transaction in [
            Transaction::new().replace(&COUNTERS, &stale, counter("a", 3)),
            Transaction::new().delete(&COUNTERS, &stale),
            Transaction::new().require(&COUNTERS, &stale).create(&COUNTERS, counter("b", 1)),
            Transaction::new().create(&COUNTERS, counter("a", 9)).create(&COUNTERS, counter("b", 1)),
            Transaction::new().require_absent(&COUNTERS, "a").create(&COUNTERS, counter("b", 1)),
        ] {
            let refused = store.commit(transaction).await.unwrap_err();
            assert!(matches!(&refused, CommitError::Conflict { table: "counters", key } if key == "a"), "{refused:?}");
        }
        assert!(store.snapshot().get(&COUNTERS, "b").is_none(), "all or nothing");
        assert_eq!(store.snapshot().get(&COUNTERS, "a").unwrap().count, 2);
    }
}

#[tokio::test]
async fn nonsense_is_refused() {
    for bed in beds().await {
        let store = bed.store().await;
        store.commit(Transaction::new().create(&COUNTERS, counter("a", 1))).await.unwrap();
        let entry = store.snapshot().get(&COUNTERS, "a").unwrap();
        for transaction in [
            Transaction::new().create(&COUNTERS, counter("", 1)),
            Transaction::new().create(&COUNTERS, counter("nul\0", 1)),
            Transaction::new().create(&COUNTERS, counter(&"long".repeat(200), 1)),
            Transaction::new().replace(&COUNTERS, &entry, counter("b", 1)),
            Transaction::new().replace(&COUNTERS, &entry, counter("a", 2)).delete(&COUNTERS, &entry),
        ] {
            assert!(matches!(store.commit(transaction).await, Err(CommitError::Invalid(_))));
        }
        let huge = counter("huge", 1);
        let many =
            (0..2000).fold(Transaction::new(), |all, number| all.create(&COUNTERS, counter(&format!("c{number}"), 1)));
        assert!(matches!(store.commit(many).await, Err(CommitError::TooLarge { .. })));
        store.commit(Transaction::new().create(&COUNTERS, huge)).await.unwrap();
    }
}

async fn add_one(store: &Store, name: &str) -> Result<u64, CommitError> {
    let decided = store.update(|newest: &Snapshot| {
        let entry = newest.get(&COUNTERS, name).expect("the counter was made before");
        let next = Counter { count: entry.count + 1, ..entry.value.clone() };
        let count = next.count;
        Ok::<_, CommitError>((Transaction::new().replace(&COUNTERS, &entry, next), count))
    });
    decided.await.map(|(_, count)| count)
}

/// Counts what reaches the engine.
struct Counting {
    inner: Memory,
    commits: AtomicU64,
}

impl Engine for Counting {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    fn load<'a>(&'a self, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Page, EngineError>> {
        self.inner.load(after, limit)
    }
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Outcome, EngineError>> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            // A disk is slow: let the others decide meanwhile.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            self.inner.commit(batch).await
        })
    }
    fn newest(&self) -> Option<BoxFuture<'_, Result<store::Revision, EngineError>>> {
        self.inner.newest()
    }
    fn watch(&self, after: store::Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, EngineError>> {
        self.inner.watch(after)
    }
}

#[tokio::test]
async fn many_who_change_one_record_share_commits() {
    let engine = Arc::new(Counting { inner: Memory::new(), commits: AtomicU64::new(0) });
    let store = Store::open(engine.clone(), schema()).await.unwrap();
    store.commit(Transaction::new().create(&COUNTERS, counter("server", 0))).await.unwrap();
    let before = engine.commits.load(Ordering::SeqCst);
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            base::task::spawn("adder", async move { add_one(&store, "server").await.unwrap() })
        })
        .collect();
    let mut answers = BTreeSet::new();
    for task in tasks {
        answers.insert(task.await.unwrap());
    }
    assert_eq!(answers, (1..=8).collect(), "each decision saw the one before");
    let commits = engine.commits.load(Ordering::SeqCst) - before;
    assert!(commits <= 2, "eight decisions on one record took {commits} commits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_updates_of_several_stores_lose_nothing() {
    for bed in beds().await {
        let other = Store::open(bed.other_engine().await, schema()).await.unwrap();
        let stores = [bed.store().await, other];
        stores[0].commit(Transaction::new().create(&COUNTERS, counter("shared", 0))).await.unwrap();
        // The second store learns of the counter from its watch before it adds.
        let mut told = stores[1].changes();
        while !stores[1].snapshot().contains(&COUNTERS, "shared") {
            told.next().await;
        }
        let mut tasks = Vec::new();
        for worker in 0..8 {
            let store = stores[worker % 2].clone();
            tasks.push(base::task::spawn("adder", async move {
                let mut done = 0;
                while done < 25 {
                    match add_one(&store, "shared").await {
                        Ok(_) => done += 1,
                        Err(CommitError::Conflict { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let revision = stores[0].snapshot().revision().max(stores[1].snapshot().revision());
        for store in &stores {
            let mut changes = store.changes();
            while store.snapshot().revision() < revision {
                changes.next().await;
            }
            assert_eq!(store.snapshot().get(&COUNTERS, "shared").unwrap().count, 200, "{}", bed.name);
        }
    }
}

/// Somebody is told of a commit by one store, and asks another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_told_of_a_commit_sees_it_in_another_store() {
    for bed in beds().await {
        let (store, other) = (bed.store().await, Store::open(bed.other_engine().await, schema()).await.unwrap());
        store.commit(Transaction::new().create(&COUNTERS, counter("a", 0))).await.unwrap();
        // In SQLite's file there is no other.
        let reader = if bed.name == "sqlite" { &store } else { &other };
        for _ in 0..100 {
            let told = add_one(&store, "a").await.unwrap();
            reader.fresh().await.unwrap();
            let seen = reader.snapshot().get(&COUNTERS, "a").unwrap().count;
            assert!(seen >= told, "{}: told of {told}, seen {seen}", bed.name);
        }
    }
}

/// An engine that may be asked how far it is, and says nothing, or says that it does not know.
#[derive(Clone, Copy, Default, PartialEq)]
enum Manner {
    #[default]
    Well,
    Silent,
    Ignorant,
}

struct Moody {
    inner: Memory,
    manner: base::watch::Sender<Manner>,
}

impl Engine for Moody {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    fn load<'a>(&'a self, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Page, EngineError>> {
        self.inner.load(after, limit)
    }
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Outcome, EngineError>> {
        self.inner.commit(batch)
    }
    fn newest(&self) -> Option<BoxFuture<'_, Result<store::Revision, EngineError>>> {
        Some(Box::pin(async {
            let mut manner = self.manner.subscribe();
            let manner = *manner.wait_for(|manner| *manner != Manner::Silent).await.unwrap();
            match (manner, self.inner.newest()) {
                (Manner::Well, Some(newest)) => newest.await,
                _ => Err(EngineError::Closed),
            }
        }))
    }
    fn watch(&self, after: store::Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, EngineError>> {
        self.inner.watch(after)
    }
}

#[tokio::test(start_paused = true)]
async fn who_cannot_know_the_newest_state_is_told_since_when() {
    let engine = Arc::new(Moody { inner: Memory::new(), manner: base::watch::Sender::new(Manner::Well) });
    let store = Store::open(engine.clone(), schema()).await.unwrap();
    store.fresh().await.unwrap();
    for manner in [Manner::Silent, Manner::Ignorant] {
        engine.manner.send_replace(manner);
        let start = tokio::time::Instant::now();
        let first = store.fresh().await.unwrap_err();
        assert!(first.age >= start.elapsed() && start.elapsed() >= Duration::from_secs(1));
        // Who comes when that is known does not wait for it again.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let start = tokio::time::Instant::now();
        let later = store.fresh().await.unwrap_err();
        assert!(later.age >= Duration::from_secs(11), "{later:?}");
        assert_eq!(start.elapsed(), Duration::ZERO);
        engine.manner.send_replace(Manner::Well);
        tokio::time::sleep(Duration::from_secs(2)).await;
        store.fresh().await.unwrap();
    }
}

#[tokio::test]
async fn a_refusal_waits_for_what_it_saw() {
    let engine = Arc::new(Counting { inner: Memory::new(), commits: AtomicU64::new(0) });
    let store = Store::open(engine, schema()).await.unwrap();
    let claim = |store: Store| async move {
        let decided = store.update(|newest: &Snapshot| match newest.get(&COUNTERS, "name") {
            Some(_) => Err(Taken::Already),
            None => Ok((Transaction::new().create(&COUNTERS, counter("name", 1)), ())),
        });
        (decided.await.map(|_| ()), store.snapshot().get(&COUNTERS, "name").is_some())
    };
    let first = base::task::spawn("first", claim(store.clone()));
    let second = base::task::spawn("second", claim(store.clone()));
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert!(first.0.is_ok());
    assert!(matches!(second.0, Err(Taken::Already)));
    assert!(second.1, "who is told that a name is taken can read it");
}

#[derive(Debug)]
enum Taken {
    Already,
    Commit(#[expect(dead_code, reason = "shown when the test fails")] CommitError),
}

impl From<CommitError> for Taken {
    fn from(error: CommitError) -> Self {
        Self::Commit(error)
    }
}

#[tokio::test]
async fn changes_are_told_in_order_and_the_slow_are_told_they_lagged() {
    for bed in beds().await {
        let store = bed.store().await;
        let mut quick = store.changes();
        let mut slow = store.changes();
        let revision = store.commit(Transaction::new().create(&COUNTERS, counter("a", 1))).await.unwrap();
        let change = quick.next().await;
        assert_eq!((change.revision, change.lagged), (revision, false));
        assert_eq!(change.keys, [("counters", Arc::from("a"))]);
        assert!(change.snapshot.get(&COUNTERS, "a").is_some());
        if bed.name == "memory" {
            for _ in 0..400 {
                add_one(&store, "a").await.unwrap();
            }
            let change = slow.next().await;
            assert!(change.lagged);
            assert_eq!(change.snapshot.get(&COUNTERS, "a").unwrap().count, 401);
            let revision = store.commit(Transaction::new().create(&COUNTERS, counter("b", 1))).await.unwrap();
            assert_eq!(slow.next().await.revision, revision, "after a lag the feed goes on");
        }
    }
}

#[tokio::test]
async fn older_records_are_upgraded_and_newer_ones_refused() {
    for bed in beds().await {
        let raw = |text: &'static str| Batch {
            writes: vec![("boats/old".to_owned(), Some(Bytes::from_static(text.as_bytes())))],
            ..Batch::default()
        };
        bed.engine.commit(raw(r#"{"v":1,"d":{"name":"old","harbour":"x","crew":[]}}"#)).await.unwrap();
        let store = bed.store().await;
        let entry = store.snapshot().get(&BOATS, "old").unwrap();
        assert_eq!(entry.voyages, 0);
        store.commit(Transaction::new().replace(&BOATS, &entry, entry.value.clone())).await.unwrap();
        let page = bed.engine.load("", 10).await.unwrap();
        assert!(page.records[0].value.starts_with(br#"{"v":2,"#), "the next write stores the present version");

        for (text, reason) in [
            (r#"{"v":3,"d":{}}"#, "has version 3"),
            (r#"{"v":0,"d":{}}"#, "never written"),
            (r#"{"v":2,"d":{"name":7}}"#, "damaged"),
            ("garbage", "damaged"),
        ] {
            bed.engine.commit(raw(text)).await.unwrap();
            let refused = Store::open(bed.engine.clone(), schema()).await.err().unwrap();
            assert!(base::errors::chain(&refused).contains(reason), "{}", base::errors::chain(&refused));
        }
    }
}

#[tokio::test]
async fn an_unknown_table_stops_the_opening() {
    for bed in beds().await {
        bed.store().await.commit(Transaction::new().create(&COUNTERS, counter("a", 1))).await.unwrap();
        let refused = Store::open(bed.engine.clone(), Schema::new().with(&BOATS)).await.err().unwrap();
        assert!(matches!(refused, Error::Decode(_)));
        assert!(base::errors::chain(&refused).contains("counters/a"));
    }
}

#[tokio::test]
async fn a_value_nobody_can_read_stops_commits_but_not_reads() {
    let engine = Arc::new(Memory::new());
    let store = Store::open(engine.clone(), schema()).await.unwrap();
    store.commit(Transaction::new().create(&COUNTERS, counter("a", 1))).await.unwrap();
    let bad = Batch { writes: vec![("counters/bad".to_owned(), Some(Bytes::from_static(b"{}")))], ..Batch::default() };
    engine.commit(bad).await.unwrap();
    let refused = loop {
        // The watch may not have delivered it yet.
        match store
            .commit(Transaction::new().create(&COUNTERS, counter(&format!("c{}", store.snapshot().revision()), 1)))
            .await
        {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, CommitError::Stopped(_)), "{refused:?}");
    assert_eq!(store.snapshot().get(&COUNTERS, "a").unwrap().count, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_told_of_a_change_can_build_on_it_at_once() {
    for bed in beds().await {
        let store = bed.store().await;
        let mut changes = store.changes();
        store.commit(Transaction::new().create(&COUNTERS, counter("relay", 0))).await.unwrap();
        for expected in 0..200 {
            let change = changes.next().await;
            let entry = change.snapshot.get(&COUNTERS, "relay").unwrap();
            assert_eq!(entry.count, expected, "{}", bed.name);
            let next = counter("relay", entry.count + 1);
            // Not waited for: the next round is woken by the feed alone, while this commit's own landing may still be under way.
            let store = store.clone();
            base::task::spawn("relay", async move {
                store.commit(Transaction::new().replace(&COUNTERS, &entry, next)).await.unwrap();
            });
        }
    }
}
