//! What commits: an engine alone, or the store over it.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use etcd::local::Bare;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use store::{CommitError, Store, Table, Transaction};

/// Commits of a round, one at a time.
pub(super) const SINGLE: usize = 100;
/// Callers that commit at once.
pub(super) const AT_ONCE: u32 = 64;
/// How long those go on in a round.
pub(super) const ROUND: Duration = Duration::from_secs(2);
/// Bytes of a record's text: with the rest, about what an instance's record has.
const TEXT_BYTES: usize = 1000;

/// A record.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Sample {
    id: String,
    text: String,
}

impl Sample {
    fn new(id: String) -> Self {
        Self { id, text: "x".repeat(TEXT_BYTES) }
    }

    /// As the store writes it.
    fn stored(&self) -> Result<String, String> {
        let text = serde_json::to_string(self).map_err(|error| error.to_string())?;
        Ok(format!("{{\"v\":1,\"d\":{text}}}"))
    }
}

/// Its table.
pub(super) static SAMPLES: Table<Sample> = Table {
    name: "samples",
    version: 1,
    key: |sample| sample.id.clone(),
    indexes: &[],
    upgrade: |_, _| Err("no other version was ever written".to_owned()),
};

/// What commits.
#[derive(Clone)]
pub(super) enum Subject {
    Bare(Bare),
    // Held by the one thread that commits in a round.
    File(Arc<Mutex<Connection>>),
    Store(Store),
}

/// What one round came to.
#[derive(Default)]
pub(super) struct Round {
    /// Of each commit, one at a time.
    pub(super) single_ms: Vec<f64>,
    /// Of each record, many at once.
    pub(super) crowd_ms: Vec<f64>,
    /// Records a second then.
    pub(super) rate: f64,
}

/// SQLite as the store sets it, without the store.
pub(super) fn sqlite_alone(path: &Path) -> Result<Subject, String> {
    let open = || {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "wal_autocheckpoint", 1000)?;
        connection.execute_batch(
            "CREATE TABLE records (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, revision INTEGER NOT NULL, value BLOB NOT NULL) STRICT",
        )?;
        Ok::<_, rusqlite::Error>(connection)
    };
    let connection = open().map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    Ok(Subject::File(Arc::new(Mutex::new(connection))))
}

impl Subject {
    pub(super) async fn round(&self, round: usize) -> Result<Round, String> {
        if let Self::File(connection) = self {
            let connection = connection.clone();
            return base::task::blocking("bench", move || alone(&connection, round)).await;
        }
        let mut told = Round::default();
        for number in 0..SINGLE {
            let began = Instant::now();
            self.commit(format!("single-{round}-{number}")).await?;
            told.single_ms.push(milliseconds(began));
        }
        let began = Instant::now();
        let callers = (0..AT_ONCE).map(|caller| {
            let subject = self.clone();
            base::task::spawn("bench-caller", async move {
                let mut waits = Vec::new();
                while began.elapsed() < ROUND {
                    let asked = Instant::now();
                    subject.commit(format!("crowd-{round}-{caller}-{}", waits.len())).await?;
                    waits.push(milliseconds(asked));
                }
                Ok::<_, String>(waits)
            })
        });
        let callers: Vec<_> = callers.collect();
        for caller in callers {
            told.crowd_ms.extend(caller.await.map_err(|error| error.to_string())??);
        }
        told.rate = told.crowd_ms.len() as f64 / began.elapsed().as_secs_f64();
        Ok(told)
    }

    /// One record more.
    async fn commit(&self, id: String) -> Result<(), String> {
        let sample = Sample::new(id);
        match self {
            Self::Bare(bare) => bare.put(&sample.id, sample.stored()?).await.map_err(|error| error.to_string()),
            Self::Store(store) => {
                let decide = |_: &_| Ok::<_, CommitError>((Transaction::new().create(&SAMPLES, sample.clone()), ()));
                store.update(decide).await.map(drop).map_err(|error| base::errors::chain(&error))
            }
            Self::File(_) => Err("a file has one caller".to_owned()),
        }
    }
}

/// One thread: a record a transaction, then as many records a transaction as there would be callers, which is what group commit can
/// come to at best.
fn alone(connection: &Mutex<Connection>, round: usize) -> Result<Round, String> {
    let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
    let mut told = Round::default();
    for number in 0..SINGLE {
        let began = Instant::now();
        insert(&mut connection, std::iter::once(format!("single-{round}-{number}")))?;
        told.single_ms.push(milliseconds(began));
    }
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < ROUND {
        let asked = Instant::now();
        insert(&mut connection, (0..AT_ONCE).map(|caller| format!("crowd-{round}-{caller}-{count}")))?;
        told.crowd_ms.extend(std::iter::repeat_n(milliseconds(asked), AT_ONCE as usize));
        count += 1;
    }
    told.rate = told.crowd_ms.len() as f64 / began.elapsed().as_secs_f64();
    Ok(told)
}

fn insert(connection: &mut Connection, ids: impl Iterator<Item = String>) -> Result<(), String> {
    let record = |id: String| {
        let sample = Sample::new(id);
        Ok((format!("samples/{}", sample.id), sample.stored()?))
    };
    let records: Vec<(String, String)> = ids.map(record).collect::<Result<_, String>>()?;
    let mut write = || {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut statement =
            transaction.prepare_cached("INSERT INTO records (key, revision, value) VALUES (?1, ?2, ?3)")?;
        for (key, text) in &records {
            statement.execute(params![key, 1, text.as_bytes()])?;
        }
        drop(statement);
        transaction.commit()
    };
    write().map_err(|error: rusqlite::Error| error.to_string())
}

/// Milliseconds from the beginning of a commit until the mirror of another headnode shows it.
pub(super) async fn until_seen(committer: &Store, follower: &Store, id: String) -> Result<f64, String> {
    let mut changes = follower.changes();
    let began = Instant::now();
    Subject::Store(committer.clone()).commit(id.clone()).await?;
    while !follower.snapshot().contains(&SAMPLES, &id) {
        changes.next().await;
    }
    Ok(milliseconds(began))
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
