//! The engine that forgets: for tests, the simulation, and records that are only looked at. Several stores may share one, as several headnodes share etcd.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

use crate::{
    engine::{Batch, BoxFuture, Engine, EngineError, Event, History, Limits, Outcome, Page, Record, Watch},
    table::Revision,
};

/// Those of the engine over etcd with etcd's defaults, so that what passes in tests passes there.
const LIMITS: Limits = Limits { records: 126, bytes: 1 << 20 };

/// A keyspace in this process's memory.
pub struct Memory {
    // Held for the length of one commit or page; never across an await.
    space: Mutex<Space>,
    history: Arc<History>,
    capacity_bytes: usize,
}

#[derive(Default)]
struct Space {
    revision: Revision,
    records: BTreeMap<String, (Revision, Bytes)>,
    used_bytes: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// Empty, as large as the machine allows.
    pub fn new() -> Self {
        Self::with_capacity(usize::MAX)
    }

    /// Empty; holds `capacity_bytes` of keys and values and then is full, except for what may use the reserve.
    pub fn with_capacity(capacity_bytes: usize) -> Self {
        Self { space: Mutex::default(), history: Arc::new(History::new(Revision(0))), capacity_bytes }
    }

    /// Add `above` to every revision there is and will be, as an engine does that a store is moved to.
    pub fn raise(&self, above: Revision) {
        let mut space = self.space.lock().unwrap_or_else(PoisonError::into_inner);
        space.revision.0 += above.0;
        for (revision, _) in space.records.values_mut() {
            revision.0 += above.0;
        }
        self.history.begin_again(space.revision);
    }

    fn apply(&self, batch: Batch) -> Result<Outcome, EngineError> {
        let mut space = self.space.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, expected) in &batch.checks {
            if space.records.get(key).map(|(revision, _)| *revision) != *expected {
                return Ok(Outcome::Conflict(space.revision));
            }
        }
        let size = |key: &String, value: &Bytes| key.len() + value.len();
        let mut used_bytes = space.used_bytes;
        for (key, value) in &batch.writes {
            used_bytes -= space.records.get(key).map_or(0, |(_, old)| size(key, old));
            used_bytes += value.as_ref().map_or(0, |value| size(key, value));
        }
        if used_bytes > self.capacity_bytes && used_bytes > space.used_bytes && !batch.may_use_reserve {
            return Err(EngineError::Full);
        }
        let revision = Revision(space.revision.0 + 1);
        space.revision = revision;
        space.used_bytes = used_bytes;
        let mut events = Vec::with_capacity(batch.writes.len());
        for (key, value) in batch.writes {
            match &value {
                Some(value) => space.records.insert(key.clone(), (revision, value.clone())),
                None => space.records.remove(&key),
            };
            events.push(Event { revision, key, value });
        }
        // Under the lock, so that history has the order of revisions.
        self.history.push([(revision, events)]);
        Ok(Outcome::Committed(revision))
    }

    fn page(&self, after: &str, limit: usize) -> Page {
        let space = self.space.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = space.records.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        let records = rest
            .by_ref()
            .take(limit)
            .map(|(key, (revision, value))| Record { key: key.clone(), revision: *revision, value: value.clone() })
            .collect();
        Page { revision: space.revision, records, more: rest.next().is_some() }
    }
}

impl Engine for Memory {
    fn limits(&self) -> Limits {
        LIMITS
    }

    fn load<'a>(&'a self, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Page, EngineError>> {
        Box::pin(std::future::ready(Ok(self.page(after, limit))))
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Outcome, EngineError>> {
        Box::pin(std::future::ready(self.apply(batch)))
    }

    fn newest(&self) -> Option<BoxFuture<'_, Result<Revision, EngineError>>> {
        let newest = self.space.lock().unwrap_or_else(PoisonError::into_inner).revision;
        Some(Box::pin(std::future::ready(Ok(newest))))
    }

    fn watch(&self, after: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, EngineError>> {
        Box::pin(std::future::ready(self.history.watch(after)))
    }
}
