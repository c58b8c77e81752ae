//! What keeps the bytes: an ordered keyspace with a revision per key and one for the whole.
//!
//! The shape is etcd's: a commit is `if every key's modification revision is as expected, then
//! these puts and deletes`, at most [`Limits::records`] of them, and the whole gets one new revision; a watch starts after a revision
//! and may answer that history that old is gone ([`EngineError::Compacted`]), upon which the mirror loads everything again.
//!
//! Pages of [`Engine::load`] may be of different revisions. That is harmless: the mirror watches from the first page's revision, and
//! a change is ignored where the loaded record is already newer.

use std::{collections::VecDeque, future::Future, pin::Pin, sync::Mutex, sync::PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::table::Revision;

/// A boxed future that can move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Revisions of history kept by engines in this process. A mirror that falls further behind loads everything again.
pub(crate) const HISTORY_REVISIONS: usize = 4096;
/// Bytes of keys and values in that history: some ten thousand records.
const HISTORY_BYTES: usize = 16 << 20;

/// Bytes on disk or elsewhere, under revisions.
pub trait Engine: Send + Sync + 'static {
    /// What one commit may hold.
    fn limits(&self) -> Limits;

    /// Up to `limit` records with keys greater than `after`, in the order of keys.
    fn load<'a>(&'a self, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Page, EngineError>>;

    /// Apply `batch` if its checks hold. When this returns [`Outcome::Committed`] it is durable, and its revision is that of whatever changed the
    /// keyspace before it plus one, or more: never the same, and with one more nothing was between.
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Outcome, EngineError>>;

    /// Revision of the newest commit: at least that of every commit that was acknowledged to anybody, by any process, before this was called.
    /// `None`: nobody else commits to it, so that this process knows by itself.
    fn newest(&self) -> Option<BoxFuture<'_, Result<Revision, EngineError>>>;

    /// Every change after `revision`, in order.
    fn watch(&self, after: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, EngineError>>;
}

/// A stream of changes.
pub trait Watch: Send {
    /// What came next; all changes of one revision come together.
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, EngineError>>;
}

/// Some of what a watch tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delivery {
    /// In the order of revisions. There may be none: then it is only said that nothing changed up to `through`.
    pub events: Vec<Event>,
    /// Every change up to this revision has been told.
    pub through: Revision,
}

/// What one commit may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Records that it names: one that is checked and written counts once.
    pub records: usize,
    /// Bytes of all keys and values.
    pub bytes: usize,
}

/// Some records.
#[derive(Debug)]
pub struct Page {
    /// The keyspace's revision when this page was read.
    pub revision: Revision,
    /// In the order of keys.
    pub records: Vec<Record>,
    /// Whether there are more.
    pub more: bool,
}

/// A stored record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// `<table>/<key>`.
    pub key: String,
    /// Revision of its last change.
    pub revision: Revision,
    /// Its value.
    pub value: Bytes,
}

/// A compare-and-commit.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Each key's expected modification revision; `None`: the key must not exist.
    pub checks: Vec<(String, Option<Revision>)>,
    /// Each key's new value; `None` deletes it, and deleting what is not there is fine. No key twice.
    pub writes: Vec<(String, Option<Bytes>)>,
    /// Whether it may use the space kept back for a full disk.
    pub may_use_reserve: bool,
}

/// How a commit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Durable, as this revision.
    Committed(Revision),
    /// A check failed; nothing was written. The keyspace was at this revision.
    Conflict(Revision),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The commit's revision.
    pub revision: Revision,
    /// `<table>/<key>`.
    pub key: String,
    /// Its new value; `None`: deleted.
    pub value: Option<Bytes>,
}

/// Why an engine did not do it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No space. Reads and deletes still work.
    #[error("no space is left for the store")]
    Full,
    /// History that old is no longer kept.
    #[error("history after revision {0} is no longer kept")]
    Compacted(Revision),
    /// The engine has been shut.
    #[error("the store's engine is closed")]
    Closed,
    /// Everything else: whether a commit took effect is not known.
    #[error("{doing}")]
    Failed {
        /// What was being done.
        doing: String,
        /// Why it did not work.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The recent changes of an engine in this process, and those who wait for the next.
pub(crate) struct History {
    // Leaf data: pushed by the engine's writer, copied by watchers.
    ring: Mutex<Ring>,
    latest: watch::Sender<Revision>,
}

struct Ring {
    /// Revision before the oldest kept one.
    before: Revision,
    commits: VecDeque<(Revision, Vec<Event>)>,
    /// Of all of them.
    bytes: usize,
}

fn weight(events: &[Event]) -> usize {
    events.iter().map(|event| event.key.len() + event.value.as_ref().map_or(0, Bytes::len)).sum()
}

impl History {
    pub(crate) fn new(now: Revision) -> Self {
        Self {
            ring: Mutex::new(Ring { before: now, commits: VecDeque::new(), bytes: 0 }),
            latest: watch::Sender::new(now),
        }
    }

    /// Add commits, oldest first.
    pub(crate) fn push(&self, commits: impl IntoIterator<Item = (Revision, Vec<Event>)>) {
        let mut newest = None;
        {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            for commit in commits {
                newest = Some(commit.0);
                ring.bytes += weight(&commit.1);
                ring.commits.push_back(commit);
            }
            // The newest one stays, however large.
            while ring.commits.len() > 1 && (ring.commits.len() > HISTORY_REVISIONS || ring.bytes > HISTORY_BYTES) {
                if let Some((revision, events)) = ring.commits.pop_front() {
                    ring.before = revision;
                    ring.bytes -= weight(&events);
                }
            }
        }
        if let Some(newest) = newest {
            self.latest.send_replace(newest);
        }
    }

    /// Forget everything: the keyspace's revision is another one.
    pub(crate) fn begin_again(&self, now: Revision) {
        {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            *ring = Ring { before: now, commits: VecDeque::new(), bytes: 0 };
        }
        self.latest.send_replace(now);
    }

    pub(crate) fn watch(self: &std::sync::Arc<Self>, after: Revision) -> Result<Box<dyn Watch>, EngineError> {
        let watch = HistoryWatch { latest: self.latest.subscribe(), history: self.clone(), after };
        watch.take()?;
        Ok(Box::new(watch))
    }
}

struct HistoryWatch {
    history: std::sync::Arc<History>,
    latest: watch::Receiver<Revision>,
    after: Revision,
}

impl HistoryWatch {
    fn take(&self) -> Result<Vec<Event>, EngineError> {
        let ring = self.history.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if self.after < ring.before {
            return Err(EngineError::Compacted(self.after));
        }
        let first = ring.commits.partition_point(|(revision, _)| *revision <= self.after);
        Ok(ring.commits.range(first..).flat_map(|(_, events)| events.iter().cloned()).collect())
    }
}

impl Watch for HistoryWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, EngineError>> {
        Box::pin(async move {
            loop {
                self.latest.borrow_and_update();
                let events = self.take()?;
                if let Some(last) = events.last() {
                    self.after = last.revision;
                    return Ok(Delivery { events, through: self.after });
                }
                self.latest.changed().await.map_err(|_| EngineError::Closed)?;
            }
        })
    }
}
