//! Another process is faster: who has to decide again, and who has not.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use store::{
    BoxFuture, CommitError, Engine, EngineError, Revision, Snapshot, Store, Transaction,
    engine::{Batch, Limits, Outcome, Page, Watch},
    memory::Memory,
};

use crate::records::{COUNTERS, Counter, counter, schema};

/// Somebody else writes the counter `shared` in the moment before the next commit that is to change it.
struct Raced {
    inner: Memory,
    armed: AtomicBool,
}

impl Engine for Raced {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    fn load<'a>(&'a self, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Page, EngineError>> {
        self.inner.load(after, limit)
    }
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Outcome, EngineError>> {
        Box::pin(async move {
            if self.armed.swap(false, Ordering::SeqCst) {
                let value = serde_json::json!({ "v": 1, "d": counter("shared", 100) }).to_string();
                let writes = vec![("counters/shared".to_owned(), Some(value.into()))];
                self.inner.commit(Batch { writes, ..Batch::default() }).await?;
            }
            self.inner.commit(batch).await
        })
    }
    fn newest(&self) -> Option<BoxFuture<'_, Result<Revision, EngineError>>> {
        self.inner.newest()
    }
    fn watch(&self, after: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, EngineError>> {
        self.inner.watch(after)
    }
}

/// Makes counter `name`, counting how often that is decided; `looks`: whether `shared` is looked at for it.
async fn make(store: &Store, name: &str, looks: bool, rests: bool) -> (u64, u64) {
    let decisions = AtomicU64::new(0);
    let decide = |newest: &Snapshot| {
        decisions.fetch_add(1, Ordering::SeqCst);
        let seen = if looks { newest.get(&COUNTERS, "shared").expect("it was made first").count } else { 0 };
        let made = Transaction::new().create(&COUNTERS, counter(name, seen));
        Ok::<_, CommitError>((if rests { made.rests_on_checks() } else { made }, seen))
    };
    let (_, seen) = store.update(decide).await.unwrap();
    (decisions.into_inner(), seen)
}

#[tokio::test]
async fn only_what_was_overtaken_or_may_rest_on_it_is_decided_again() {
    let engine = Arc::new(Raced { inner: Memory::new(), armed: AtomicBool::new(false) });
    let store = Store::open(engine.clone(), schema()).await.unwrap();
    store.commit(Transaction::new().create(&COUNTERS, counter("shared", 0))).await.unwrap();
    engine.armed.store(true, Ordering::SeqCst);
    let add = |newest: &Snapshot| {
        let shared = newest.get(&COUNTERS, "shared").expect("it was made first");
        let next = Counter { count: shared.count + 1, ..shared.value.clone() };
        Ok::<_, CommitError>((Transaction::new().replace(&COUNTERS, &shared, next), ()))
    };
    // In this order, and before anything flies: there is one thread.
    let (before, shared, looked, elsewhere, anything) = tokio::join!(
        make(&store, "before", false, false),
        store.update(add),
        make(&store, "looked", true, true),
        make(&store, "elsewhere", false, true),
        make(&store, "anything", false, false),
    );
    shared.unwrap();
    assert_eq!(before.0, 1, "decided before what is lost");
    assert_eq!(looked, (2, 101), "what it looked at never was");
    assert_eq!(elsewhere.0, 1, "rests on its checks, and they hold");
    assert_eq!(anything.0, 2, "may rest on anything");
    assert_eq!(store.decided_again(), 3, "those two, and who was overtaken");
    let snapshot = store.snapshot();
    assert_eq!(snapshot.get(&COUNTERS, "shared").unwrap().count, 101);
    let page = engine.load("", 100).await.unwrap();
    for record in &page.records {
        let key = record.key.strip_prefix("counters/").unwrap();
        assert_eq!(snapshot.get(&COUNTERS, key).unwrap().revision(), record.revision, "{key}");
    }
    assert_eq!(page.records.len(), snapshot.count(&COUNTERS));
}
