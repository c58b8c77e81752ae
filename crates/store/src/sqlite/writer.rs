//! The thread that owns the connection.

use std::path::Path;

use base::channel::Receiver;
use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use tokio::sync::oneshot;

use super::{failed, reserve::Reserve};
use crate::{
    engine::{Batch, EngineError, Event, History, Outcome, Page, Record},
    table::Revision,
};

/// Commits written with one fsync at most.
const GROUP_MAX: usize = 128;
/// "NESO" in ASCII: marks the file as a store of ours.
const APPLICATION_ID: i64 = 0x4E45_534F;
/// Layout of the file itself, see [`Writer::lay_out`].
const FORMAT: i64 = 1;
/// Free pages within the file that make up for a reserve that cannot be laid: 8 MiB of pages of 4 KiB.
const FREE_PAGES_AMPLE: i64 = 2048;

pub(crate) enum Job {
    Commit { batch: Batch, answer: Answer<Outcome> },
    Load { after: String, limit: usize, answer: Answer<Page> },
}

pub(crate) type Answer<T> = oneshot::Sender<Result<T, EngineError>>;

pub(crate) struct Writer {
    connection: Connection,
    revision: Revision,
    reserve: Reserve,
}

type Commit = (Batch, Answer<Outcome>);
type Events = Vec<(Revision, Vec<Event>)>;

impl Writer {
    pub(crate) fn open(path: &Path, reserve_bytes: u64) -> Result<(Self, Revision), EngineError> {
        let doing = |error: rusqlite::Error| failed(format!("open store `{}`", path.display()), error);
        // Before the database: opening one that was not closed may already need room.
        let mut reserve = Reserve::beside(path, reserve_bytes);
        let opened = Self::connect(path).map_err(doing);
        let (connection, revision) = match opened {
            Err(EngineError::Failed { source, .. }) if reserve.is_laid() && is_full_source(source.as_ref()) => {
                reserve.give_up();
                Self::connect(path).map_err(doing)?
            }
            opened => opened?,
        };
        Ok((Self { connection, revision, reserve }, revision))
    }

    fn connect(path: &Path) -> Result<(Connection, Revision), rusqlite::Error> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "page_size", 4096)?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "wal_autocheckpoint", 1000)?;
        connection.pragma_update(None, "journal_size_limit", 8 << 20)?;
        // The mirror holds every record; this cache only serves writing.
        connection.pragma_update(None, "cache_size", -8192)?;
        connection.set_prepared_statement_cache_capacity(16);
        Self::lay_out(&connection)?;
        let revision: i64 = connection.query_row("SELECT revision FROM keyspace", [], |row| row.get(0))?;
        Ok((connection, Revision(revision.cast_unsigned())))
    }

    fn lay_out(connection: &Connection) -> Result<(), rusqlite::Error> {
        let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let (application, format) = (pragma("application_id")?, pragma("user_version")?);
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables > 0 {
            return match (application, format) {
                (APPLICATION_ID, FORMAT) => Ok(()),
                (APPLICATION_ID, _) => {
                    Err(refused(&format!("the store's file has format {format}, this program knows {FORMAT}")))
                }
                _ => Err(refused("the file is not a store")),
            };
        }
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE;
             CREATE TABLE keyspace (only INTEGER PRIMARY KEY CHECK (only = 0), revision INTEGER NOT NULL) STRICT;
             INSERT INTO keyspace VALUES (0, 0);
             CREATE TABLE records (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, revision INTEGER NOT NULL, value BLOB NOT NULL) STRICT;
             PRAGMA application_id = {APPLICATION_ID};
             PRAGMA user_version = {FORMAT};
             COMMIT;"
        ))
    }

    /// Serve jobs until nobody can send one.
    pub(crate) fn run(mut self, mut jobs: Receiver<Job>, history: &History) {
        let mut held = None;
        while let Some(job) = held.take().or_else(|| jobs.blocking_recv()) {
            match job {
                Job::Load { after, limit, answer } => {
                    let page = self.page(&after, limit).map_err(|error| translate("read records", error));
                    let _ = answer.send(page);
                }
                Job::Commit { batch, answer } => {
                    let mut group = vec![(batch, answer)];
                    while group.len() < GROUP_MAX {
                        match jobs.try_recv() {
                            Some(Job::Commit { batch, answer }) => group.push((batch, answer)),
                            other => {
                                held = other;
                                break;
                            }
                        }
                    }
                    self.commit_group(group, history);
                }
            }
        }
    }

    fn page(&self, after: &str, limit: usize) -> Result<Page, rusqlite::Error> {
        let sql = "SELECT key, revision, value FROM records WHERE key > ?1 ORDER BY key LIMIT ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        let wanted = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let rows = statement.query_map(params![after, wanted], |row| {
            Ok(Record {
                key: row.get(0)?,
                revision: Revision(row.get::<_, i64>(1)?.cast_unsigned()),
                value: Bytes::from(row.get::<_, Vec<u8>>(2)?),
            })
        })?;
        let mut records = rows.collect::<Result<Vec<_>, _>>()?;
        let more = records.len() > limit;
        records.truncate(limit);
        Ok(Page { revision: self.revision, records, more })
    }

    /// Commit all, with one fsync if they fit, and answer each.
    fn commit_group(&mut self, group: Vec<Commit>, history: &History) {
        let ample = self.has_room();
        let (mut group, refused): (Vec<Commit>, Vec<Commit>) =
            group.into_iter().partition(|(batch, _)| ample || batch.may_use_reserve);
        for (_, answer) in refused {
            let _ = answer.send(Err(EngineError::Full));
        }
        if group.len() > 1 {
            match self.write(group.iter().map(|(batch, _)| batch)) {
                Ok((outcomes, events)) => {
                    history.push(events);
                    for ((_, answer), outcome) in group.into_iter().zip(outcomes) {
                        let _ = answer.send(Ok(outcome));
                    }
                    return;
                }
                Err(error) => {
                    tracing::warn!(error = base::errors::chain(&error), "a group of commits failed; trying each alone");
                }
            }
        }
        for (batch, answer) in group.drain(..) {
            let outcome = self.commit_one(&batch, history);
            let _ = answer.send(outcome);
        }
    }

    fn commit_one(&mut self, batch: &Batch, history: &History) -> Result<Outcome, EngineError> {
        let mut written = self.write(std::iter::once(batch));
        if let Err(error) = &written
            && is_full(error)
        {
            if !self.reserve.is_laid() {
                return Err(EngineError::Full);
            }
            self.reserve.give_up();
            if !batch.may_use_reserve {
                return Err(EngineError::Full);
            }
            written = self.write(std::iter::once(batch));
        }
        let (outcomes, events) = written.map_err(|error| translate("commit", error))?;
        history.push(events);
        Ok(outcomes[0])
    }

    /// One SQLite transaction. On an error nothing has happened.
    fn write<'a>(
        &mut self,
        batches: impl Iterator<Item = &'a Batch>,
    ) -> Result<(Vec<Outcome>, Events), rusqlite::Error> {
        let mut revision = self.revision;
        let mut outcomes = Vec::new();
        let mut events = Vec::new();
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for batch in batches {
            if !holds(&transaction, batch)? {
                outcomes.push(Outcome::Conflict(revision));
                continue;
            }
            revision = Revision(revision.0 + 1);
            apply(&transaction, batch, revision)?;
            outcomes.push(Outcome::Committed(revision));
            let event =
                |(key, value): &(String, Option<Bytes>)| Event { revision, key: key.clone(), value: value.clone() };
            events.push((revision, batch.writes.iter().map(event).collect()));
        }
        if revision == self.revision {
            // Nothing but conflicts: no fsync for that.
            transaction.rollback()?;
        } else {
            let mut statement = transaction.prepare_cached("UPDATE keyspace SET revision = ?1")?;
            statement.execute([revision.0.cast_signed()])?;
            drop(statement);
            transaction.commit()?;
        }
        self.revision = revision;
        Ok((outcomes, events))
    }

    fn has_room(&mut self) -> bool {
        if self.reserve.is_laid() || self.reserve.relay() {
            return true;
        }
        let free = self.connection.pragma_query_value(None, "freelist_count", |row| row.get::<_, i64>(0));
        free.is_ok_and(|free| free >= FREE_PAGES_AMPLE)
    }
}

fn holds(connection: &Connection, batch: &Batch) -> Result<bool, rusqlite::Error> {
    let mut statement = connection.prepare_cached("SELECT revision FROM records WHERE key = ?1")?;
    for (key, expected) in &batch.checks {
        let found: Option<i64> = statement.query_row([key], |row| row.get(0)).optional()?;
        if found.map(|found| Revision(found.cast_unsigned())) != *expected {
            return Ok(false);
        }
    }
    Ok(true)
}

fn apply(connection: &Connection, batch: &Batch, revision: Revision) -> Result<(), rusqlite::Error> {
    let mut put = connection.prepare_cached(
        "INSERT INTO records (key, revision, value) VALUES (?1, ?2, ?3)
         ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, value = excluded.value",
    )?;
    let mut delete = connection.prepare_cached("DELETE FROM records WHERE key = ?1")?;
    for (key, value) in &batch.writes {
        match value {
            Some(value) => put.execute(params![key, revision.0.cast_signed(), value.as_ref()])?,
            None => delete.execute([key])?,
        };
    }
    Ok(())
}

fn refused(why: &str) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(why.into())
}

/// Whether the disk, or what SQLite needs beside the file, has no room.
fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

fn is_full_source(source: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    source.downcast_ref::<rusqlite::Error>().is_some_and(is_full)
}

fn translate(doing: &str, error: rusqlite::Error) -> EngineError {
    if is_full(&error) { EngineError::Full } else { failed(doing, error) }
}
