//! The embedded engine: one SQLite file, one writer thread.
//!
//! WAL with `synchronous=FULL`: a commit that was acknowledged is on the disk. The thread takes every commit that waits and writes them
//! in one SQLite transaction with one fsync; each of them still happens all or not at all (its checks are read before its first write).
//! If the whole does not fit, each is tried alone. The file is locked for this process alone (two headnodes on one file would be a
//! mistake), which also spares the shared-memory file.
//!
//! **Full disk.** Beside the database lies a *reserve*: a file that only takes up room. When the disk is full, the reserve is given up, so that commits
//! which may use it (deleting, finishing what was begun) still find room, and all others are refused with [`EngineError::Full`] until
//! the reserve could be laid again or enough pages within the file are free.
//!
//! Rejected: SQLite's rollback journal (two fsyncs a commit, readers wait), one transaction per commit (one fsync each), and
//! `synchronous=NORMAL` (a power cut takes acknowledged commits).

mod reserve;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use base::channel::{SendError, Sender, bounded};
use tokio::sync::oneshot;

use crate::{
    engine::{Batch, BoxFuture, Engine, EngineError, History, Limits, Outcome, Page, Watch},
    table::Revision,
};

use writer::{Job, Writer};

/// Jobs that may wait for the writer thread. The store sends one group at a time, so this is ample even for many stores.
const JOBS_MAX: usize = 256;
/// Large enough for what many callers decide at once; the log of a commit this large is still far below the reserve.
const LIMITS: Limits = Limits { records: 512, bytes: 2 << 20 };
/// Size of the reserve in bytes: the log before SQLite folds it back (4 MiB) and as much growth of the file, twice.
pub const RESERVE_BYTES: u64 = 16 << 20;

/// A keyspace in a file.
pub struct Sqlite {
    jobs: Sender<Job>,
    history: Arc<History>,
    path: PathBuf,
}

impl Sqlite {
    /// Open the file at `path`, or make it; its directory must exist. Lays a reserve of [`RESERVE_BYTES`] beside it.
    ///
    /// # Errors
    /// When another process has it open, it is not a store, it is damaged, or the disk fails.
    pub async fn open(path: &Path) -> Result<Self, EngineError> {
        Self::open_with_reserve(path, RESERVE_BYTES).await
    }

    /// [`Sqlite::open`] with another size of the reserve, in bytes.
    ///
    /// # Errors
    /// As [`Sqlite::open`].
    pub async fn open_with_reserve(path: &Path, reserve_bytes: u64) -> Result<Self, EngineError> {
        let owned = path.to_owned();
        let (writer, revision) =
            base::task::blocking("store-open", move || Writer::open(&owned, reserve_bytes)).await?;
        let history = Arc::new(History::new(revision));
        let (jobs, waiting) = bounded("store-jobs", JOBS_MAX);
        let thread = base::task::thread("store-writer", {
            let history = history.clone();
            move || writer.run(waiting, &history)
        });
        thread.map_err(|error| failed("start the writer thread", error))?;
        Ok(Self { jobs, history, path: path.to_owned() })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, EngineError>>) -> Job) -> Result<T, EngineError> {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(job(answer)).await.map_err(|error| match error {
            SendError::Full { .. } | SendError::Closed { .. } => EngineError::Closed,
        })?;
        answered.await.map_err(|_| EngineError::Closed)?
    }
}

impl Engine for Sqlite {
    fn limits(&self) -> Limits {
        LIMITS
    }

    fn load<'a>(&'a self, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Page, EngineError>> {
        let after = after.to_owned();
        Box::pin(self.ask(move |answer| Job::Load { after, limit, answer }))
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Outcome, EngineError>> {
        Box::pin(self.ask(move |answer| Job::Commit { batch, answer }))
    }

    /// The file is locked for this process.
    fn newest(&self) -> Option<BoxFuture<'_, Result<Revision, EngineError>>> {
        None
    }

    fn watch(&self, after: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, EngineError>> {
        Box::pin(std::future::ready(self.history.watch(after)))
    }
}

fn failed(doing: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> EngineError {
    EngineError::Failed { doing: doing.into(), source: source.into() }
}
