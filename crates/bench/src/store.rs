//! What a commit costs through the store, on each engine, beside bare puts to the same etcd.
//!
//! A bare put is etcd's own: one record, no check, one connection, as `etcdctl put` does without starting a program each time. The
//! store's commit of one record checks it, writes its mark, and waits until the mirror shows it. Clusters and files lie on one disk, and
//! rounds are interleaved, so that a busy disk slows all of them. Three members on one disk share its flushes, which real ones do not.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use etcd::{
    Config, Etcd,
    local::{Bare, Member},
};
use serde::{Deserialize, Serialize};
use store::{CommitError, Engine, Schema, Store, Table, Transaction, sqlite::Sqlite};

use crate::report::{Row, Section};

/// Commits of a round, one at a time.
const SINGLE: u32 = 100;
/// Callers that commit at once.
const AT_ONCE: u32 = 64;
/// How long those go on in a round.
const ROUND: Duration = Duration::from_secs(2);
/// Rounds of each subject.
const ROUNDS: usize = 5;
/// Bytes of a record's text: with the rest, about what an instance's record has.
const TEXT_BYTES: usize = 1000;

#[derive(Clone, Serialize, Deserialize)]
struct Sample {
    id: String,
    text: String,
}

static SAMPLES: Table<Sample> = Table {
    name: "samples",
    version: 1,
    key: |sample| sample.id.clone(),
    indexes: &[],
    upgrade: |_, _| Err("no other version was ever written".to_owned()),
};

/// What commits.
#[derive(Clone)]
enum Subject {
    Bare(Bare),
    Store(Store),
}

impl Subject {
    /// One record more.
    async fn commit(&self, id: String) -> Result<(), String> {
        let sample = Sample { id, text: "x".repeat(TEXT_BYTES) };
        match self {
            Self::Bare(bare) => bare.put(&sample.id, sample.text.clone()).await.map_err(|error| error.to_string()),
            Self::Store(store) => {
                let decided =
                    store.update(|_| Ok::<_, CommitError>((Transaction::new().create(&SAMPLES, sample.clone()), ())));
                decided.await.map(|_| ()).map_err(|error| base::errors::chain(&error))
            }
        }
    }
}

/// One subject and what was measured of it.
struct Measured {
    name: &'static str,
    subject: Subject,
    millis: Vec<f64>,
    rates: Vec<f64>,
}

/// Entry of the benchmark.
pub(crate) fn measure() -> Result<Vec<Section>, String> {
    if !etcd::local::is_installed() {
        return Err("etcd is not installed (Debian's package etcd-server)".to_owned());
    }
    let directory = std::env::temp_dir().join(format!("neso-bench-store-{}", std::process::id()));
    std::fs::create_dir_all(&directory).map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start a runtime: {error}"))?;
    let work = directory.clone();
    let sections =
        runtime.block_on(async { base::task::spawn("bench", all(work)).await.map_err(|error| error.to_string())? });
    // What is left of a benchmark that failed is of no use either.
    let _ = std::fs::remove_dir_all(&directory);
    sections
}

async fn all(directory: PathBuf) -> Result<Vec<Section>, String> {
    let one = cluster(&directory.join("one"), 1).await?;
    let three = cluster(&directory.join("three"), 3).await?;
    let sqlite = Sqlite::open(&directory.join("store.db")).await.map_err(|error| base::errors::chain(&error))?;
    let follower = opened(Arc::new(engine(&three, "follower").await?)).await?;
    let committer = opened(Arc::new(engine(&three, "bench").await?)).await?;
    let subjects = [
        ("a bare put, one member", bare(&one).await?),
        ("the store on etcd, one member", Subject::Store(opened(Arc::new(engine(&one, "bench").await?)).await?)),
        ("a bare put, three members", bare(&three).await?),
        ("the store on etcd, three members", Subject::Store(committer.clone())),
        ("the store on SQLite", Subject::Store(opened(Arc::new(sqlite)).await?)),
    ];
    let mut all = subjects.map(|(name, subject)| Measured { name, subject, millis: Vec::new(), rates: Vec::new() });
    let mut seen = Vec::new();
    for round in 0..ROUNDS {
        for measured in &mut all {
            for number in 0..SINGLE {
                let began = Instant::now();
                measured.subject.commit(format!("single-{round}-{number}")).await?;
                measured.millis.push(began.elapsed().as_secs_f64() * 1e3);
            }
            measured.rates.push(crowd(&measured.subject, round).await?);
        }
        for number in 0..SINGLE {
            seen.push(until_seen(&committer, &follower, format!("seen-{round}-{number}")).await?);
        }
    }
    Ok(told(&all, seen))
}

/// Commits per second of many callers.
async fn crowd(subject: &Subject, round: usize) -> Result<f64, String> {
    let began = Instant::now();
    let callers = (0..AT_ONCE).map(|caller| {
        let subject = subject.clone();
        base::task::spawn("bench-caller", async move {
            let mut count = 0_u32;
            while began.elapsed() < ROUND {
                subject.commit(format!("crowd-{round}-{caller}-{count}")).await?;
                count += 1;
            }
            Ok::<_, String>(count)
        })
    });
    let callers: Vec<_> = callers.collect();
    let mut total = 0;
    for caller in callers {
        total += caller.await.map_err(|error| error.to_string())??;
    }
    Ok(f64::from(total) / began.elapsed().as_secs_f64())
}

/// Milliseconds from the beginning of a commit until the mirror of another headnode shows it.
async fn until_seen(committer: &Store, follower: &Store, id: String) -> Result<f64, String> {
    let mut changes = follower.changes();
    let began = Instant::now();
    Subject::Store(committer.clone()).commit(id.clone()).await?;
    while !follower.snapshot().contains(&SAMPLES, &id) {
        changes.next().await;
    }
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

fn told(all: &[Measured], seen: Vec<f64>) -> Vec<Section> {
    let rows = |unit, samples: fn(&Measured) -> Vec<f64>| {
        let row = |measured: &Measured| Row { name: measured.name.to_owned(), unit, samples: Ok(samples(measured)) };
        all.iter().map(row).collect()
    };
    let mut single: Vec<Row> = rows("ms", |measured| measured.millis.clone());
    single.push(Row {
        name: "until another headnode shows it, three members".to_owned(),
        unit: "ms",
        samples: Ok(seen),
    });
    vec![
        Section { about: "One record a commit, one at a time.".to_owned(), rows: single },
        Section {
            about: format!("Commits per second, {AT_ONCE} callers at once, in rounds of {} s.", ROUND.as_secs()),
            rows: rows("/s", |measured| measured.rates.clone()),
        },
    ]
}

async fn cluster(directory: &Path, count: usize) -> Result<Vec<Member>, String> {
    std::fs::create_dir_all(directory).map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
    Member::cluster(directory, count, None, &[]).await.map_err(|error| error.to_string())
}

async fn bare(members: &[Member]) -> Result<Subject, String> {
    Ok(Subject::Bare(members[0].bare().await.map_err(|error| error.to_string())?))
}

async fn engine(members: &[Member], name: &str) -> Result<Etcd, String> {
    let config = Config {
        endpoints: members.iter().map(Member::endpoint).collect(),
        tls: None,
        prefix: "bench".to_owned(),
        name: name.to_owned(),
        operations_max: etcd::OPERATIONS_MAX_DEFAULT,
        room: None,
    };
    Etcd::open(config).await.map_err(|error| base::errors::chain(&error))
}

async fn opened(engine: Arc<dyn Engine>) -> Result<Store, String> {
    Store::open(engine, Schema::new().with(&SAMPLES)).await.map_err(|error| base::errors::chain(&error))
}
