//! A commit is shown when the engine has answered, and once only, however late the engine's watch tells of it.

use std::{sync::Arc, time::Duration};

use store::{
    BoxFuture, Engine, EngineError, Revision, Store, Transaction,
    engine::{Batch, Delivery, Limits, Outcome, Page, Watch},
    memory::Memory,
};

use crate::records::{COUNTERS, counter, schema};

/// Nothing here takes that long.
const LONG: Duration = Duration::from_secs(60);

/// An engine whose watch tells nothing until it may.
struct Mute {
    inner: Memory,
    may_tell: base::watch::Sender<bool>,
}

struct MuteWatch {
    inner: Box<dyn Watch>,
    may_tell: base::watch::Receiver<bool>,
}

impl Engine for Mute {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    fn load<'a>(&'a self, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Page, EngineError>> {
        self.inner.load(after, limit)
    }
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Outcome, EngineError>> {
        self.inner.commit(batch)
    }
    fn newest(&self) -> Option<BoxFuture<'_, Result<Revision, EngineError>>> {
        self.inner.newest()
    }
    fn watch(&self, after: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, EngineError>> {
        Box::pin(async move {
            let inner = self.inner.watch(after).await?;
            Ok(Box::new(MuteWatch { inner, may_tell: self.may_tell.subscribe() }) as Box<dyn Watch>)
        })
    }
}

impl Watch for MuteWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, EngineError>> {
        Box::pin(async move {
            self.may_tell.wait_for(|may_tell| *may_tell).await.map_err(|_| EngineError::Closed)?;
            self.inner.next().await
        })
    }
}

#[tokio::test]
async fn what_nobody_was_before_is_shown_without_the_watch_and_told_once() {
    let engine = Arc::new(Mute { inner: Memory::new(), may_tell: base::watch::Sender::new(false) });
    let store = Store::open(engine.clone(), schema()).await.unwrap();
    let mut changes = store.changes();
    for name in ["a", "b"] {
        let commit = store.commit(Transaction::new().create(&COUNTERS, counter(name, 1)));
        let revision = tokio::time::timeout(LONG, commit).await.expect("nobody waits for the watch").unwrap();
        assert_eq!(store.snapshot().revision(), revision);
        assert_eq!(store.snapshot().get(&COUNTERS, name).unwrap().revision(), revision);
    }

    // Somebody else writes, and the watch tells of everything from the beginning: only what they wrote is new, and is not lost.
    let value = serde_json::json!({ "v": 1, "d": counter("theirs", 5) }).to_string();
    let writes = vec![("counters/theirs".to_owned(), Some(value.into()))];
    engine.inner.commit(Batch { writes, ..Batch::default() }).await.unwrap();
    let (own, ()) = tokio::join!(store.commit(Transaction::new().create(&COUNTERS, counter("c", 1))), async {
        tokio::task::yield_now().await;
        assert!(!store.snapshot().contains(&COUNTERS, "c"), "what came before it is not known here yet");
        engine.may_tell.send_replace(true);
    });
    let shown = store.snapshot();
    assert_eq!((shown.revision(), shown.get(&COUNTERS, "theirs").unwrap().count), (own.unwrap(), 5));

    store.commit(Transaction::new().create(&COUNTERS, counter("last", 1))).await.unwrap();
    let mut told = Vec::new();
    while told.last().is_none_or(|key| key != "last") {
        let change = changes.next().await;
        assert!(!change.lagged);
        told.extend(change.keys.iter().map(|(_, key)| key.to_string()));
    }
    assert_eq!(told, ["a", "b", "theirs", "c", "last"]);
}
