//! Moving a store to another engine while it is used.
//!
//! ```text
//!   copy, while commits go on ─► gate shut: commits wait ─► copy what came since, look that nothing is left
//!                                                        ─► raise ─► load ─► switch ─► exchange ─► gate open
//! ```
//! Copying compares the two engines key by key and writes what differs, so it goes on where an attempt before it ended, and a last pass that finds
//! nothing is the proof that all of it is there. Reads never stop. What had been decided and not committed when the gate was shut is decided again:
//! it names revisions of the old engine.
//!
//! *Switch* is the moment that counts: whoever dies before it finds all that was ever acknowledged in the old engine, and whoever dies after it in the
//! new one. What makes the new one be opened at the next start is therefore the caller's ([`Destination::switch`]), and has to be durable when it returns.
//! *Raise* makes the new engine's revisions greater than any of the old one's: a revision that somebody holds from before never names a record
//! of after by accident.
//!
//! Rejected: writing to both for a while (two orders of commits, and no answer to what a failure of one of them means), and copying once while everybody
//! waits (a large store would stand still for minutes).

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
// Not the system's: a simulation owns the time.
use tokio::time::Instant;

use crate::{
    engine::{Batch, BoxFuture, Engine, EngineError, Limits, Outcome, Record},
    store::Error,
    table::Revision,
};

/// Records asked of an engine at once.
const PAGE_RECORDS: usize = 500;
/// Passes over everything before the gate is shut; each finds what was changed during the one before.
const PASSES_MAX: usize = 5;
/// Fewer differences than this are left for the pause.
const FEW: u64 = 200;
/// How long writes may have to wait: longer, and the move is given up before the switch.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Any reason.
pub type Reason = Box<dyn std::error::Error + Send + Sync>;

/// Where a store moves to.
pub trait Destination: Send + Sync {
    /// What will keep the bytes. It may hold anything: it is made the same as the old one.
    fn engine(&self) -> Arc<dyn Engine>;

    /// Everything is there: from now on all its revisions, those of records that are there included, must be greater than `above`.
    fn raise(&self, above: Revision) -> BoxFuture<'_, Result<(), Reason>>;

    /// From now on it is the one to be opened, also by a process that starts after this one was killed. An error means that it is not.
    fn switch(&self) -> BoxFuture<'_, Result<(), Reason>>;
}

/// What a move has cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Records there are.
    pub records: u64,
    /// How long commits waited.
    pub pause: Duration,
}

/// Why a store stays where it is.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// One of the engines failed.
    #[error("copy the store")]
    Engine(#[from] EngineError),
    /// A record is larger than the new engine takes.
    #[error("record `{key}` of {bytes} bytes is larger than the new store takes")]
    TooLarge {
        /// Its key.
        key: String,
        /// Key and value.
        bytes: usize,
    },
    /// Somebody else writes there.
    #[error("somebody else writes to the store that is moved to: `{0}`")]
    Raced(String),
    /// The last look found a difference.
    #[error("the copy differs from the original in {0} records")]
    Differs(u64),
    /// Its revisions would go back.
    #[error("the new store is at revision {found}, and must be above {above}")]
    Backwards {
        /// Where it is.
        found: Revision,
        /// The old one's.
        above: Revision,
    },
    /// Commits would have had to wait too long.
    #[error("writes would have had to wait for more than {} s", PAUSE_MAX.as_secs())]
    TooLong,
    /// The copy cannot be read, or the mirror has stopped.
    #[error("read the store")]
    Read(#[source] Arc<Error>),
    /// The caller's own part.
    #[error("{doing}")]
    Caller {
        /// Which.
        doing: &'static str,
        /// Why it did not work.
        source: Reason,
    },
}

/// What one pass found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pass {
    pub(crate) records: u64,
    pub(crate) differences: u64,
}

/// Passes until little is left to do.
pub(crate) async fn approach(from: &dyn Engine, to: &dyn Engine) -> Result<(), MoveError> {
    for _ in 0..PASSES_MAX {
        let pass = reconcile(from, to).await?;
        base::crash::point("store.move.pass");
        if pass.differences < FEW {
            break;
        }
    }
    Ok(())
}

/// What is done while commits wait, up to the switch.
pub(crate) async fn within_the_pause<T>(
    work: impl Future<Output = Result<T, MoveError>>,
    since: Instant,
) -> Result<T, MoveError> {
    match tokio::time::timeout_at(since + PAUSE_MAX, work).await {
        Ok(done) => done,
        Err(_) => Err(MoveError::TooLong),
    }
}

/// Makes `to` the same as `from`.
pub(crate) async fn reconcile(from: &dyn Engine, to: &dyn Engine) -> Result<Pass, MoveError> {
    let mut pass = Pass::default();
    let (mut wanted, mut found) = (Cursor::new(from), Cursor::new(to));
    let mut changes = Changes { engine: to, limits: to.limits(), batch: Batch::default(), bytes: 0 };
    loop {
        let key = match (wanted.peek().await?, found.peek().await?) {
            (None, None) => break,
            (Some(one), None) | (None, Some(one)) => one.key.clone(),
            (Some(one), Some(other)) => one.key.clone().min(other.key.clone()),
        };
        let (wanted, found) = (wanted.take(&key), found.take(&key));
        pass.records += u64::from(wanted.is_some());
        let wanted = wanted.map(|record| record.value);
        if wanted.as_ref() != found.as_ref().map(|record| &record.value) {
            pass.differences += 1;
            changes.add(key, found.map(|record| record.revision), wanted).await?;
        }
    }
    changes.commit().await?;
    Ok(pass)
}

/// Goes over an engine in the order of keys.
struct Cursor<'a> {
    engine: &'a dyn Engine,
    records: VecDeque<Record>,
    after: String,
    more: bool,
}

impl<'a> Cursor<'a> {
    fn new(engine: &'a dyn Engine) -> Self {
        Self { engine, records: VecDeque::new(), after: String::new(), more: true }
    }

    async fn peek(&mut self) -> Result<Option<&Record>, EngineError> {
        if self.records.is_empty() && self.more {
            let page = self.engine.load(&self.after, PAGE_RECORDS).await?;
            if let Some(last) = page.records.last() {
                self.after.clone_from(&last.key);
            }
            self.more = page.more && !page.records.is_empty();
            self.records = page.records.into();
        }
        Ok(self.records.front())
    }

    /// The one under `key`, if that is the next.
    fn take(&mut self, key: &str) -> Option<Record> {
        self.records.pop_front_if(|record| record.key == key)
    }
}

/// Changes on their way, as many at once as go.
struct Changes<'a> {
    engine: &'a dyn Engine,
    limits: Limits,
    batch: Batch,
    bytes: usize,
}

impl Changes<'_> {
    async fn add(&mut self, key: String, expected: Option<Revision>, value: Option<Bytes>) -> Result<(), MoveError> {
        // The key stands in the check and in the write.
        let bytes = 2 * key.len() + value.as_ref().map_or(0, Bytes::len);
        if bytes > self.limits.bytes {
            return Err(MoveError::TooLarge { key, bytes });
        }
        if self.batch.checks.len() == self.limits.records || self.bytes + bytes > self.limits.bytes {
            self.commit().await?;
        }
        self.bytes += bytes;
        self.batch.checks.push((key.clone(), expected));
        self.batch.writes.push((key, value));
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), MoveError> {
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        let Some((first, _)) = batch.writes.first().cloned() else { return Ok(()) };
        match self.engine.commit(batch).await? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict(_) => Err(MoveError::Raced(first)),
        }
    }
}
