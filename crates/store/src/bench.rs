//! What the store costs on this machine, measured beside what the disk and SQLite alone can do in the same run.
//!
//! Called by the workspace's bench command; nothing here asserts a speed.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    CommitError, EngineError, Error, Index, Schema, Snapshot, Store, Table, Transaction,
    engine::{Batch, Engine},
    memory::Memory,
    sqlite::Sqlite,
};

/// How long each rate is measured.
const MEASURE_FOR: Duration = Duration::from_secs(2);
/// Records of the large store.
const RECORDS: usize = 100_000;
/// Looks per measurement of a look.
const LOOKS: u32 = 200_000;

/// One number.
#[derive(Debug, Clone, Serialize)]
pub struct Measure {
    /// What was measured.
    pub name: String,
    /// The number.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
}

/// Why the bench did not finish.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A store could not be opened.
    #[error("open the store to measure")]
    Open(#[from] Error),
    /// An engine could not be opened or filled.
    #[error("prepare the engine to measure")]
    Engine(#[from] EngineError),
    /// A commit failed.
    #[error("commit to the store to measure")]
    Commit(#[from] CommitError),
    /// SQLite alone failed.
    #[error("measure SQLite alone")]
    Sqlite(#[from] rusqlite::Error),
    /// The file for the disk's own speed failed.
    #[error("measure the disk")]
    Disk(#[from] std::io::Error),
}

/// About the size and shape of an instance's record.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Sample {
    id: String,
    owner: String,
    server: String,
    state: String,
    tags: Vec<(String, String)>,
    text: String,
    count: u64,
}

static SAMPLES: Table<Sample> = Table {
    name: "samples",
    version: 1,
    key: |sample| sample.id.clone(),
    indexes: &[
        Index { name: "owner", keys: |sample| vec![sample.owner.clone()] },
        Index { name: "server", keys: |sample| vec![sample.server.clone()] },
    ],
    upgrade: |from_version, _| Err(format!("version {from_version} was never written")),
};

fn sample(number: usize) -> Sample {
    Sample {
        id: format!("{number:08}-0000-4000-8000-000000000000"),
        owner: format!("{:08}-1111-4000-8000-000000000000", number / 100),
        server: format!("{:08}-2222-4000-8000-000000000000", number % 1000),
        state: "running".to_owned(),
        tags: (0..4).map(|tag| (format!("tag-{tag}"), format!("value-{number}-{tag}"))).collect(),
        text: "x".repeat(600),
        count: 0,
    }
}

/// Run all; files go under `directory`, which must be on the disk to measure and is not cleaned.
///
/// # Errors
/// When a file, an engine or a commit fails.
pub async fn run(directory: &Path) -> Result<Vec<Measure>, BenchError> {
    let mut measures = Vec::new();
    let mut add = |name: &str, value: f64, unit| measures.push(Measure { name: name.to_owned(), value, unit });
    let disk = directory.join("fsync");
    add("write and fdatasync 4 KiB", base::task::blocking("bench", move || disk_rate(&disk)).await?, "per second");
    let raw = directory.join("raw.db");
    add(
        "SQLite alone, one record a commit",
        base::task::blocking("bench", move || raw_rate(&raw)).await?,
        "per second",
    );
    let engine = Sqlite::open(&directory.join("store.db")).await?;
    let store = Store::open(Arc::new(engine), Schema::new().with(&SAMPLES)).await?;
    store.commit(Transaction::new().create(&SAMPLES, Sample { id: "shared".to_owned(), ..sample(0) })).await?;
    for callers in [1, 8, 64] {
        let name = format!("store, one record and one shared record a commit, {callers} at once");
        add(&name, commit_rate(&store, callers).await?, "per second");
    }
    drop(store);
    large(&mut add).await?;
    Ok(measures)
}

fn disk_rate(path: &Path) -> Result<f64, std::io::Error> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path)?;
    let piece = [7_u8; 4096];
    for position in 0..256 {
        file.write_all_at(&piece, position * 4096)?;
    }
    file.sync_all()?;
    let (start, mut count) = (Instant::now(), 0_u32);
    while start.elapsed() < MEASURE_FOR {
        file.write_all_at(&piece, u64::from(count % 256) * 4096)?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

fn raw_rate(path: &Path) -> Result<f64, rusqlite::Error> {
    let connection = rusqlite::Connection::open(path)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch("CREATE TABLE records (key TEXT PRIMARY KEY, value BLOB NOT NULL)")?;
    let value = serde_json::to_vec(&sample(0)).unwrap_or_default();
    let mut insert = connection.prepare("INSERT INTO records VALUES (?1, ?2)")?;
    let (start, mut count) = (Instant::now(), 0_u32);
    while start.elapsed() < MEASURE_FOR {
        insert.execute(rusqlite::params![count.to_string(), value])?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

async fn commit_rate(store: &Store, callers: usize) -> Result<f64, CommitError> {
    let start = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let store = store.clone();
            base::task::spawn("bench-caller", async move {
                let mut count = 0_u32;
                while start.elapsed() < MEASURE_FOR {
                    let new = Sample { id: format!("{callers}-{caller}-{count}"), ..sample(caller) };
                    store.update(|newest| decide(newest, &new)).await?;
                    count += 1;
                }
                Ok::<_, CommitError>(count)
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await.expect("a bench caller does not panic")?;
    }
    Ok(f64::from(total) / start.elapsed().as_secs_f64())
}

fn decide(newest: &Snapshot, new: &Sample) -> Result<(Transaction, ()), CommitError> {
    let shared = newest.get(&SAMPLES, "shared").expect("the shared record was made first");
    let counted = Sample { count: shared.count + 1, ..shared.value.clone() };
    Ok((Transaction::new().create(&SAMPLES, new.clone()).replace(&SAMPLES, &shared, counted), ()))
}

async fn large(add: &mut impl FnMut(&str, f64, &'static str)) -> Result<(), BenchError> {
    let engine = Arc::new(Memory::new());
    let mut bytes = 0;
    for chunk in (0..RECORDS).collect::<Vec<_>>().chunks(100) {
        let record = |number: &usize| {
            let sample = sample(*number);
            let value = crate::table::encode(&SAMPLES, &sample).expect("a sample is plain data");
            bytes += value.len();
            (format!("samples/{}", sample.id), Some(value))
        };
        engine.commit(Batch { writes: chunk.iter().map(record).collect(), ..Batch::default() }).await?;
    }
    add("bytes of a record as stored", bytes as f64 / RECORDS as f64, "bytes");
    let before = resident_bytes();
    let start = Instant::now();
    let store = Store::open(engine, Schema::new().with(&SAMPLES)).await?;
    add("open 100,000 records", start.elapsed().as_secs_f64() * 1e3, "ms");
    add(
        "memory of a record in the mirror, two indexes",
        resident_bytes().saturating_sub(before) as f64 / RECORDS as f64,
        "bytes",
    );

    let nanos = |start: Instant, count: u32| start.elapsed().as_secs_f64() * 1e9 / f64::from(count);
    let start = Instant::now();
    for _ in 0..LOOKS {
        std::hint::black_box(store.snapshot());
    }
    add("take a snapshot of 100,000 records", nanos(start, LOOKS), "ns");
    let snapshot = store.snapshot();
    let keys: Vec<String> = (0..1000).map(|number| sample(number * 97).id).collect();
    let start = Instant::now();
    for (_, key) in (0..LOOKS).zip(keys.iter().cycle()) {
        std::hint::black_box(snapshot.get(&SAMPLES, key));
    }
    add("get one of 100,000", nanos(start, LOOKS), "ns");
    let owner = sample(5000).owner;
    let (start, mut found) = (Instant::now(), 0_u32);
    while found < LOOKS {
        found += u32::try_from(snapshot.find(&SAMPLES, "owner", &owner).count()).unwrap_or(1).max(1);
    }
    add("find by index, each of 100 found", nanos(start, found), "ns");
    let start = Instant::now();
    let count = std::hint::black_box(snapshot.scan(&SAMPLES).filter(|sample| sample.count == 0).count());
    add("scan, each record", nanos(start, u32::try_from(count).unwrap_or(u32::MAX)), "ns");
    drop(snapshot);
    let (start, mut count) = (Instant::now(), 0_u32);
    while start.elapsed() < MEASURE_FOR {
        let id = sample(usize::try_from(count).unwrap_or(0) * 31 % RECORDS).id;
        let change = |newest: &Snapshot| {
            let entry = newest.get(&SAMPLES, &id).expect("every sample is there");
            let counted = Sample { count: entry.count + 1, ..entry.value.clone() };
            Ok::<_, CommitError>((Transaction::new().replace(&SAMPLES, &entry, counted), ()))
        };
        store.update(change).await?;
        count += 1;
    }
    add("update one of 100,000 in the memory engine", start.elapsed().as_secs_f64() * 1e6 / f64::from(count), "µs");
    Ok(())
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = status.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}
