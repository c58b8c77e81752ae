//! The store as its callers see it: snapshots, decisions, commits, changes.

use std::{
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base::{
    histogram::{Histogram, Reading},
    shutdown::{Shutdown, Trigger},
};
use tokio::{
    sync::Notify,
    // Not the system's: a simulation owns the time.
    time::Instant,
};

use crate::{
    change::Changes,
    engine::{Engine, EngineError, Outcome},
    fresh::{Freshness, Stale},
    mirror::Mirror,
    moving::{self, Destination, MoveError, Moved},
    pipeline::{Landing, Pipeline, Ticket},
    snapshot::Snapshot,
    table::{DecodeError, Revision, Schema},
    transaction::Transaction,
    turns::{self, Turn, Turns},
};

/// How often a decision is made anew when what it saw did not come true. Only another headnode, or a group that did not fit on the
/// disk, causes that.
const DECISIONS_MAX: usize = 64;
/// Records of those who may wait for the disk at once, in groups of the largest size, when each has as many as here: a few groups,
/// so that one always fills while another flies. The rest wait for their turn to decide.
const GROUPS_WAITING: usize = 4;
/// See [`GROUPS_WAITING`]: a little less than what making an instance takes.
const TRANSACTION_SIZE: usize = 6;
/// Commits that take less than this are not worth waiting for company; timers are no finer than a millisecond.
const LINGER_FROM: Duration = Duration::from_millis(2);
/// The share of the last commit's time that the next one may wait for company: one part in this many.
const LINGER_SHARE: u32 = 8;

/// Why a store cannot be opened, or its mirror stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine failed.
    #[error("read the store")]
    Engine(#[source] EngineError),
    /// The data are not this program's.
    #[error("understand the store")]
    Decode(#[source] DecodeError),
}

/// Why a commit did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// A record is not as the transaction saw it.
    #[error("record `{table}/{key}` was changed at the same time")]
    Conflict {
        /// Table of the record.
        table: &'static str,
        /// Its key; empty when another process was faster too many times and it is not known where.
        key: String,
    },
    /// More than the engine takes at once.
    #[error("the transaction is too large: {records} records, {bytes} bytes")]
    TooLarge {
        /// Records that are checked, or written, or both.
        records: usize,
        /// Bytes of keys and values.
        bytes: usize,
    },
    /// The disk is full. Reads still work, and so do transactions that may use the reserve.
    #[error("no space is left for the store")]
    Full,
    /// The transaction contradicts itself; the program is wrong.
    #[error("the transaction makes no sense: {0}")]
    Invalid(String),
    /// The engine failed; whether the commit happened is not known.
    #[error("write to the store")]
    Engine(#[source] Arc<EngineError>),
    /// The mirror has stopped; see its reason.
    #[error("the store has stopped")]
    Stopped(#[source] Arc<Error>),
}

/// All records. Cheap to clone; its tasks end with the last clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    /// Where its callers wait for their turn to decide.
    line: Arc<str>,
    _stop: Arc<Trigger>,
}

struct Inner {
    mirror: Arc<Mirror>,
    /// Held while a group is committed and until it has landed, and while the store moves to another engine.
    gate: tokio::sync::Mutex<()>,
    /// Held by whoever moves it.
    moving: tokio::sync::Mutex<()>,
    queued: Notify,
    turns: Turns,
    again: AtomicU64,
    commits: Histogram,
    conflicts: AtomicU64,
    failures: AtomicU64,
    fresh: Arc<Freshness>,
}

/// What a store has done since it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// How long the engine took for each group of decisions, whatever came of it.
    pub commits: Reading,
    /// Groups that were decided anew because somebody else's commit came first.
    pub conflicts: u64,
    /// Groups the engine failed with.
    pub failures: u64,
    /// Decisions that were made anew because what they saw did not come true.
    pub decided_again: u64,
    /// Callers that wait for their own writes now.
    pub waiting: usize,
    /// For how long the engine has not said how far it is, while somebody waits to hear; else nothing.
    pub silent: Duration,
}

enum Decided<R, E> {
    Yes(Ticket, R),
    No(Ticket, E),
}

impl Store {
    /// Load every record of `engine` and keep following it.
    ///
    /// # Errors
    /// When the engine fails, or holds a record that `schema` cannot read.
    pub async fn open(engine: Arc<dyn Engine>, schema: Schema) -> Result<Self, Error> {
        let (mirror, watch) = Mirror::open(engine.clone(), schema).await?;
        let (trigger, shutdown) = Shutdown::new();
        let turns = Turns::new(engine.limits().records / TRANSACTION_SIZE * GROUPS_WAITING);
        let inner = Arc::new(Inner {
            mirror,
            gate: tokio::sync::Mutex::default(),
            moving: tokio::sync::Mutex::default(),
            queued: Notify::new(),
            turns,
            again: AtomicU64::new(0),
            commits: Histogram::default(),
            conflicts: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            fresh: Arc::new(Freshness::new()),
        });
        base::task::spawn("store-mirror", inner.mirror.clone().follow(watch, shutdown.clone()));
        let serving = inner.fresh.clone().serve(inner.mirror.clone(), shutdown.clone());
        base::task::spawn("store-fresh", serving);
        base::task::spawn("store-commit", inner.clone().fly(shutdown));
        Ok(Self { inner, line: turns::OWN.into(), _stop: Arc::new(trigger) })
    }

    /// This store for callers who wait in a line of their own when many want to decide at once: an account's, say. The lines take turns, so that
    /// a thousand calls in one do not hold up a call in another.
    #[must_use]
    pub fn in_line(&self, name: &str) -> Self {
        Self { line: name.into(), ..self.clone() }
    }

    /// The newest durable state.
    pub fn snapshot(&self) -> Snapshot {
        self.inner.mirror.snapshot()
    }

    /// Waits until [`Store::snapshot`] shows every commit that anybody was told of before this was called, also by another headnode.
    ///
    /// # Errors
    /// When the engine does not say how far it is; the snapshot may be an old one then.
    pub async fn fresh(&self) -> Result<(), Stale> {
        match self.inner.mirror.engine().newest() {
            Some(_) => self.inner.fresh.wait().await,
            None => Ok(()),
        }
    }

    /// What was opened was `age` old: an engine without its majority gives what one of its members holds.
    pub fn opened_old(&self, age: Duration) {
        self.inner.fresh.is_older(age);
    }

    /// How many decisions were made anew because what they saw did not come true.
    pub fn decided_again(&self) -> u64 {
        self.inner.again.load(Ordering::Relaxed)
    }

    /// What was done so far, in numbers.
    pub fn counts(&self) -> Counts {
        let inner = &self.inner;
        Counts {
            commits: inner.commits.read(),
            conflicts: inner.conflicts.load(Ordering::Relaxed),
            failures: inner.failures.load(Ordering::Relaxed),
            decided_again: self.decided_again(),
            waiting: inner.mirror.pipeline().writers(),
            silent: inner.fresh.silent_for(),
        }
    }

    /// Every change from now on.
    pub fn changes(&self) -> Changes {
        self.inner.mirror.changes()
    }

    /// Make `transaction` happen, all or nothing. When this returns, it is durable and [`Store::snapshot`] shows it. Prefer
    /// [`Store::update`], which decides on the newest state.
    pub async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        let _turn = self.turn().await;
        // Decided on what is durable: nothing that is lost can have been seen.
        let transaction = transaction.rests_on_checks();
        for _ in 0..DECISIONS_MAX {
            let (admitted, seen) = {
                let mut pipeline = self.pipeline()?;
                let admitted = pipeline.admit(transaction.clone(), Vec::new());
                (admitted, pipeline.join())
            };
            match admitted {
                Ok(ticket) => {
                    if let Some(revision) = self.landed(ticket).await? {
                        return Ok(revision);
                    }
                }
                // Let what it lost against become visible, so that the caller's next look shows it.
                Err(conflict @ CommitError::Conflict { .. }) => {
                    if self.landed(seen).await?.is_some() {
                        return Err(conflict);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(CommitError::Conflict { table: "", key: String::new() })
    }

    /// Decide on the newest state and commit what was decided. `decide` must be pure: it runs again when what it saw did not come
    /// true. Its refusal is returned only after everything it saw is durable.
    pub async fn update<R, E: From<CommitError>>(
        &self,
        mut decide: impl FnMut(&Snapshot) -> Result<(Transaction, R), E>,
    ) -> Result<(Revision, R), E> {
        let _turn = self.turn().await;
        let mut lost = CommitError::Conflict { table: "", key: String::new() };
        for number in 0..DECISIONS_MAX {
            if number > 0 {
                self.inner.again.fetch_add(1, Ordering::Relaxed);
            }
            match self.decide(&mut decide) {
                Ok(Decided::Yes(ticket, answer)) => {
                    if let Some(revision) = self.landed(ticket).await? {
                        return Ok((revision, answer));
                    }
                }
                Ok(Decided::No(ticket, refusal)) => {
                    if self.landed(ticket).await?.is_some() {
                        return Err(refusal);
                    }
                }
                Err(conflict @ CommitError::Conflict { .. }) => lost = conflict,
                Err(error) => return Err(error.into()),
            }
        }
        Err(lost.into())
    }

    /// Keep the store elsewhere from now on. Reads go on; commits wait while what came last is copied. Nobody else may write to the engine it is kept
    /// in now.
    ///
    /// # Errors
    /// With the reason why it stays where it is.
    pub async fn move_to(&self, destination: &dyn Destination) -> Result<Moved, MoveError> {
        let inner = &self.inner;
        let mirror = &inner.mirror;
        let _alone = inner.moving.lock().await;
        let (from, to) = (mirror.engine(), destination.engine());
        moving::approach(from.as_ref(), to.as_ref()).await?;
        let start = Instant::now();
        let (gate, records, state) = moving::within_the_pause(
            async {
                let gate = inner.gate.lock().await;
                if let Some(error) = mirror.broken() {
                    return Err(MoveError::Read(error));
                }
                let above = self.snapshot().revision();
                moving::reconcile(from.as_ref(), to.as_ref()).await?;
                let last = moving::reconcile(from.as_ref(), to.as_ref()).await?;
                if last.differences > 0 {
                    return Err(MoveError::Differs(last.differences));
                }
                base::crash::point("store.move.copied");
                let raised = destination.raise(above).await;
                raised.map_err(|source| MoveError::Caller { doing: "raise the new store's revisions", source })?;
                let state = mirror.read(to.as_ref()).await.map_err(|error| MoveError::Read(Arc::new(error)))?;
                if state.revision <= above {
                    return Err(MoveError::Backwards { found: state.revision, above });
                }
                base::crash::point("store.move.raised");
                Ok((gate, last.records, state))
            },
            start,
        )
        .await?;
        let switched = destination.switch().await;
        switched.map_err(|source| MoveError::Caller { doing: "make the new store the one to be opened", source })?;
        base::crash::point("store.move.switched");
        mirror.exchange(to, state).await;
        drop(gate);
        Ok(Moved { records, pause: start.elapsed() })
    }

    fn decide<R, E>(
        &self,
        decide: &mut impl FnMut(&Snapshot) -> Result<(Transaction, R), E>,
    ) -> Result<Decided<R, E>, CommitError> {
        let mut pipeline = self.pipeline()?;
        let (newest, looked_at) = pipeline.newest(|| self.inner.mirror.snapshot()).noted();
        match decide(&newest) {
            Ok((transaction, answer)) => {
                drop(newest);
                let ticket = pipeline.admit(transaction, looked_at.take())?;
                Ok(Decided::Yes(ticket, answer))
            }
            Err(refusal) => Ok(Decided::No(pipeline.join(), refusal)),
        }
    }

    /// The revision a ticket became; `None`: decide again.
    async fn landed(&self, ticket: Ticket) -> Result<Option<Revision>, CommitError> {
        let waiting = match ticket {
            Ticket::Now(revision) => return Ok(Some(revision)),
            Ticket::Wait(waiting) => waiting,
        };
        self.inner.queued.notify_one();
        match waiting.await {
            Ok(Landing::Durable(revision)) => Ok(Some(revision)),
            Ok(Landing::Again) => Ok(None),
            Ok(Landing::Failed(error)) if matches!(*error, EngineError::Full) => Err(CommitError::Full),
            Ok(Landing::Failed(error)) => Err(CommitError::Engine(error)),
            Err(_) => Err(self.stopped()),
        }
    }

    fn pipeline(&self) -> Result<MutexGuard<'_, Pipeline>, CommitError> {
        if let Some(error) = self.inner.mirror.broken() {
            return Err(CommitError::Stopped(error));
        }
        let mut pipeline = self.inner.mirror.pipeline();
        pipeline.newest(|| self.inner.mirror.snapshot());
        Ok(pipeline)
    }

    async fn turn(&self) -> Turn<'_> {
        self.inner.turns.take(&self.line).await
    }

    fn stopped(&self) -> CommitError {
        let reason = self.inner.mirror.broken();
        CommitError::Stopped(reason.unwrap_or_else(|| Arc::new(Error::Engine(EngineError::Closed))))
    }
}

impl Inner {
    /// Commit one group after the other until shutdown.
    async fn fly(self: Arc<Self>, shutdown: Shutdown) {
        while shutdown.unless(self.queued.notified()).await.is_some() {
            loop {
                let gate = self.gate.lock().await;
                let Some((outcome, took)) = self.commit_next().await else { break };
                self.count(took, &outcome);
                let crowd = self.mirror.pipeline().writers();
                if let Err(reason) = self.land(outcome).await {
                    tracing::error!(reason = base::errors::chain(reason.as_ref()), "the store takes no more commits");
                    // Dropping the waiters tells their callers that the store has stopped.
                    drop(self.mirror.pipeline().crashed(self.mirror.snapshot()));
                }
                drop(gate);
                self.linger(crowd, took).await;
            }
        }
    }

    fn count(&self, took: Duration, outcome: &Result<Outcome, EngineError>) {
        self.commits.observe(took);
        match outcome {
            Ok(Outcome::Committed(_)) => {}
            Ok(Outcome::Conflict(_)) => _ = self.conflicts.fetch_add(1, Ordering::Relaxed),
            Err(_) => _ = self.failures.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// On a slow disk, give those who were just answered a moment to come back: `crowd` callers who write over and over would else
    /// fall into two halves that take turns, at half the rate. One caller alone never waits.
    async fn linger(&self, crowd: usize, took: Duration) {
        if took < LINGER_FROM || crowd < 2 {
            return;
        }
        let gathered = async {
            while self.mirror.pipeline().writers() < crowd {
                self.queued.notified().await;
            }
        };
        // Not all of them come back; that is no error.
        let _ = tokio::time::timeout(took / LINGER_SHARE, gathered).await;
    }

    /// Commit the next group, and say how long the engine took; `None` when there is none.
    async fn commit_next(&self) -> Option<(Result<Outcome, EngineError>, Duration)> {
        let _air = self.mirror.air.lock().await;
        let batch = self.mirror.pipeline().take()?;
        base::crash::point("store.commit.before");
        let start = Instant::now();
        let outcome = self.mirror.engine().commit(batch).await;
        let took = start.elapsed();
        base::crash::point("store.commit.after");
        if let Ok(Outcome::Committed(revision)) = &outcome {
            self.mirror.committed(*revision);
        }
        Some((outcome, took))
    }

    async fn land(&self, outcome: Result<Outcome, EngineError>) -> Result<(), Arc<Error>> {
        match outcome {
            // The mirror tells the waiters when it shows the revision, which it may do already.
            Ok(Outcome::Committed(revision)) => self.mirror.reached(revision).await?,
            Ok(Outcome::Conflict(revision)) => {
                self.mirror.reached(revision).await?;
                let again = {
                    let mut pipeline = self.mirror.pipeline();
                    pipeline.overtaken(self.mirror.snapshot())
                };
                again.tell(&Landing::Again);
            }
            Err(error) => {
                let full = matches!(error, EngineError::Full);
                let (flying, queued) = {
                    let mut pipeline = self.mirror.pipeline();
                    let (flying, queued) = pipeline.crashed(self.mirror.snapshot());
                    if full {
                        pipeline.fly_alone(flying.writers() + queued.writers());
                    }
                    (flying, queued)
                };
                if full && flying.writers() > 1 {
                    flying.tell(&Landing::Again);
                } else {
                    flying.tell_writers(&Landing::Failed(Arc::new(error)));
                }
                queued.tell(&Landing::Again);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{memory::Memory, table::Table};

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Note(String);

    static NOTES: Table<Note> =
        Table { name: "notes", version: 1, key: |note| note.0.clone(), indexes: &[], upgrade: |_, value| Ok(value) };

    #[tokio::test(start_paused = true)]
    async fn what_the_engine_takes_is_counted_without_the_wait_for_it() {
        let store = Store::open(Arc::new(Memory::new()), Schema::new().with(&NOTES)).await.unwrap();
        let air = store.inner.mirror.air.lock().await;
        let wait = async {
            while store.inner.gate.try_lock().is_ok() {
                tokio::task::yield_now().await;
            }
            tokio::time::advance(Duration::from_secs(10)).await;
            drop(air);
        };
        let made = Transaction::new().create(&NOTES, Note("a".to_owned()));
        let write = store.update(move |_| Ok::<_, CommitError>((made.clone(), ())));
        let (written, ()) = tokio::join!(write, wait);
        written.unwrap();
        let commits = store.counts().commits;
        assert_eq!((commits.count, commits.sum_us), (1, 0));
    }
}
