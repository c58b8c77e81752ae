//! What a commit costs through the store, on each engine, beside the engine alone in the same round.
//!
//! Alone, etcd is asked for bare puts: one record, no check, one connection for all callers. They are ours, and `etcdctl check perf` says what
//! etcd's own client makes of the same members. Alone, SQLite is one thread that commits, with the settings the store has. The store's commit checks
//! the record, and answers when the mirror shows it; over etcd it writes a mark besides. Clusters and files lie on one disk, and rounds are
//! interleaved, so that a busy disk slows all of them. Three members on one disk share its flushes, which real ones do not.

mod subject;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use base::clock::{Clock as _, SystemClock};
use etcd::{Config, Etcd, Tls, local::Member};
use headnode::{Settings, pki};
use model::time::Timestamp;
use store::{Engine, Schema, Store, sqlite::Sqlite};

use crate::report::{Row, Section, percentile};
use subject::{AT_ONCE, ROUND, Round, SAMPLES, SINGLE, Subject, until_seen};

/// Rounds of each subject.
const ROUNDS: usize = 4;
/// How hard etcd's own client tries: 500 clients, one minute. Its smaller loads only try whether a rate is reached.
const CHECK: &str = "l";

/// An engine alone and the store over it.
struct Pair {
    /// What both are over.
    over: &'static str,
    alone: (&'static str, Subject),
    store: Store,
    /// Of the two, in turns.
    rounds: Vec<(Round, Round)>,
    /// Writes a second of etcd's own client.
    others: Option<Result<f64, String>>,
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
    let tls = certificates(&directory)?;
    let one = cluster(&directory.join("one"), 1, None).await?;
    let three = cluster(&directory.join("three"), 3, Some(&tls)).await?;
    let sqlite = Sqlite::open(&directory.join("store.db")).await.map_err(|error| base::errors::chain(&error))?;
    let follower = opened(Arc::new(engine(&three, "follower", Some(&tls)).await?)).await?;
    let pair = |over, alone, store| Pair { over, alone, store, rounds: Vec::new(), others: None };
    let put = "a bare put";
    let mut pairs = [
        pair("etcd, one member", (put, bare(&one).await?), opened(Arc::new(engine(&one, "bench", None).await?)).await?),
        pair(
            "etcd, three members with TLS",
            (put, bare(&three).await?),
            opened(Arc::new(engine(&three, "bench", Some(&tls)).await?)).await?,
        ),
        pair(
            "SQLite",
            ("SQLite alone", subject::sqlite_alone(&directory.join("alone.db"))?),
            opened(Arc::new(sqlite)).await?,
        ),
    ];
    let mut seen = Vec::new();
    for round in 0..ROUNDS {
        for pair in &mut pairs {
            let alone = pair.alone.1.round(round).await?;
            let ours = Subject::Store(pair.store.clone()).round(round).await?;
            pair.rounds.push((alone, ours));
        }
        for number in 0..SINGLE {
            seen.push(until_seen(&pairs[1].store, &follower, format!("seen-{round}-{number}")).await?);
        }
    }
    pairs[0].others = Some(checked(&one[0], None).await);
    pairs[1].others = Some(checked(&three[0], Some(tls)).await);
    Ok(told(&pairs, seen))
}

fn told(pairs: &[Pair], seen: Vec<f64>) -> Vec<Section> {
    let mut sections: Vec<Section> = pairs.iter().flat_map(of_pair).collect();
    let ratios = |of: fn(&Round) -> f64, more_is_better: bool, what: &str| -> Vec<Row> {
        let row = |pair: &Pair| {
            let samples = pair.rounds.iter().map(|(alone, ours)| match more_is_better {
                true => of(ours) / of(alone),
                false => of(alone) / of(ours),
            });
            Row { name: format!("{}, {what}", pair.over), unit: "×", samples: Ok(samples.collect()) }
        };
        pairs.iter().map(row).collect()
    };
    let mut rows = ratios(|round| round.rate, true, &format!("{AT_ONCE} callers: commits a second"));
    rows.extend(ratios(|round| percentile(&round.crowd_ms, 99), false, &format!("{AT_ONCE} callers: p99")));
    rows.extend(ratios(|round| percentile(&round.single_ms, 50), false, "one caller: median"));
    rows.extend(ratios(|round| percentile(&round.single_ms, 99), false, "one caller: p99"));
    let about = "The store against the engine alone in the same round: below 1 the store costs something, and min and max are the noise. The \
                 column of ratios says nothing here.";
    sections.push(Section { about: about.to_owned(), rows });
    sections.push(Section {
        about: "From the beginning of a commit until the mirror of another headnode shows it; three members with TLS."
            .to_owned(),
        rows: vec![Row { name: "another headnode shows it".to_owned(), unit: "ms", samples: Ok(seen) }],
    });
    sections
}

fn of_pair(pair: &Pair) -> [Section; 3] {
    let Pair { over, alone: (alone, _), rounds, others, .. } = pair;
    let both = |unit, of: fn(&Round) -> Vec<f64>| {
        let alone_row = rounds.iter().flat_map(|(alone, _)| of(alone)).collect();
        let ours_row = rounds.iter().flat_map(|(_, ours)| of(ours)).collect();
        vec![
            Row { name: (*alone).to_owned(), unit, samples: Ok(alone_row) },
            Row { name: "the store".to_owned(), unit, samples: Ok(ours_row) },
        ]
    };
    let mut rates = both("/s", |round| vec![round.rate]);
    if let Some(others) = others {
        let name = "etcdctl check perf, 500 clients of its own".to_owned();
        rates.push(Row { name, unit: "/s", samples: others.clone().map(|rate| vec![rate]) });
    }
    [
        Section {
            about: format!("{over}: one record a commit, one at a time."),
            rows: both("ms", |round| round.single_ms.clone()),
        },
        Section {
            about: format!(
                "{over}: records per second, {AT_ONCE} callers at once, in rounds of {} s.",
                ROUND.as_secs()
            ),
            rows: rates,
        },
        Section {
            about: format!("{over}: what each of those waits."),
            rows: both("ms", |round| round.crowd_ms.clone()),
        },
    ]
}

/// Good for members of the loopback address, and for headnodes.
fn certificates(directory: &Path) -> Result<Tls, String> {
    let text = Settings::generate(Some(directory)).map_err(|error| error.to_string())?;
    let settings = Settings::parse(&text).map_err(|error| error.to_string())?;
    let now = Timestamp(SystemClock.now_ms());
    let made = pki::make_store_authority(&settings, now)
        .and_then(|()| pki::store_certificates(&settings, "bench", &["127.0.0.1".to_owned()], now));
    let made = made.map_err(|error| base::errors::chain(&error))?;
    Ok(Tls { authority: made.authority, certificate: made.member.certificate, key: made.member.key })
}

async fn cluster(directory: &Path, count: usize, tls: Option<&Tls>) -> Result<Vec<Member>, String> {
    std::fs::create_dir_all(directory).map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
    Member::cluster(directory, count, tls, &[]).await.map_err(|error| error.to_string())
}

async fn bare(members: &[Member]) -> Result<Subject, String> {
    Ok(Subject::Bare(members[0].bare().await.map_err(|error| error.to_string())?))
}

async fn engine(members: &[Member], name: &str, tls: Option<&Tls>) -> Result<Etcd, String> {
    let config = Config {
        endpoints: members.iter().map(Member::endpoint).collect(),
        tls: tls.cloned(),
        prefix: "bench".to_owned(),
        name: name.to_owned(),
        operations_max: etcd::OPERATIONS_MAX_DEFAULT,
        room: None,
        data: None,
    };
    Etcd::open(config).await.map_err(|error| base::errors::chain(&error))
}

async fn opened(engine: Arc<dyn Engine>) -> Result<Store, String> {
    Store::open(engine, Schema::new().with(&SAMPLES)).await.map_err(|error| base::errors::chain(&error))
}

/// What etcd's own client says of a member: writes a second.
async fn checked(member: &Member, tls: Option<Tls>) -> Result<f64, String> {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").args(["check", "perf", "--load", CHECK, "--endpoints", &member.endpoint()]);
    if let Some(tls) = tls {
        command.arg("--cacert").arg(tls.authority).arg("--cert").arg(tls.certificate).arg("--key").arg(tls.key);
    }
    let output = base::task::blocking("etcdctl", move || command.output()).await;
    let output = output.map_err(|error| format!("etcdctl (Debian's package etcd-client): {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<&str> = said.split_whitespace().collect();
    let rate = words.windows(2).find(|pair| pair[1] == "writes/s").and_then(|pair| pair[0].parse().ok());
    rate.ok_or_else(|| "it says no rate".to_owned())
}
