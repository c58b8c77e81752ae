//! A store that moves to another engine while it is used, and one whose process is killed on the way.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use store::{
    BoxFuture, CommitError, Destination, Engine, MoveError, Reason, Revision, Store, Transaction, memory::Memory,
    sqlite::Sqlite,
};

use crate::records::{BOATS, COUNTERS, Counter, boat, counter, etcd_bed, schema};

const AMPLE: Duration = Duration::from_secs(120);

/// Where these stores move to.
struct To {
    engine: Arc<dyn Engine>,
    raise: Box<dyn Fn(Revision) -> BoxFuture<'static, Result<(), Reason>> + Send + Sync>,
    /// Written by the switch.
    marker: Option<PathBuf>,
    fails: Option<&'static str>,
    switched: AtomicBool,
}

impl To {
    fn memory() -> Self {
        let memory = Arc::new(Memory::new());
        let raised = memory.clone();
        let raise = move |above| -> BoxFuture<'static, Result<(), Reason>> {
            raised.raise(above);
            Box::pin(std::future::ready(Ok(())))
        };
        Self::new(memory, raise)
    }

    fn etcd(engine: Arc<etcd::Etcd>) -> Self {
        let raised = engine.clone();
        let raise = move |above| -> BoxFuture<'static, Result<(), Reason>> {
            let raised = raised.clone();
            Box::pin(async move { Ok(raised.raise(above).await?) })
        };
        Self::new(engine, raise)
    }

    fn new(
        engine: Arc<dyn Engine>,
        raise: impl Fn(Revision) -> BoxFuture<'static, Result<(), Reason>> + Send + Sync + 'static,
    ) -> Self {
        Self { engine, raise: Box::new(raise), marker: None, fails: None, switched: AtomicBool::new(false) }
    }
}

impl Destination for To {
    fn engine(&self) -> Arc<dyn Engine> {
        self.engine.clone()
    }

    fn raise(&self, above: Revision) -> BoxFuture<'_, Result<(), Reason>> {
        match self.fails {
            Some("raise") => Box::pin(std::future::ready(Err("it will not".into()))),
            Some("forget") => Box::pin(std::future::ready(Ok(()))),
            _ => (self.raise)(above),
        }
    }

    fn switch(&self) -> BoxFuture<'_, Result<(), Reason>> {
        if self.fails == Some("switch") {
            return Box::pin(std::future::ready(Err("it will not".into())));
        }
        if let Some(marker) = &self.marker {
            std::fs::write(marker, "there").unwrap();
        }
        self.switched.store(true, Ordering::SeqCst);
        Box::pin(std::future::ready(Ok(())))
    }
}

async fn sqlite(directory: &Path) -> Arc<dyn Engine> {
    Arc::new(Sqlite::open_with_reserve(&directory.join("store.db"), 1 << 20).await.unwrap())
}

async fn fill(store: &Store, count: u64) {
    for number in 0..count {
        store.commit(Transaction::new().create(&BOATS, boat(&format!("b{number}"), "nantes"))).await.unwrap();
    }
    store.commit(Transaction::new().create(&COUNTERS, counter("shared", 0))).await.unwrap();
}

/// What the writers were told.
#[derive(Default)]
struct Told {
    counted: Mutex<Vec<u64>>,
    revisions: Mutex<Vec<Revision>>,
    made: AtomicU64,
    stop: AtomicBool,
}

async fn write(store: Store, name: u64, told: Arc<Told>) {
    for number in 0_u64.. {
        if told.stop.load(Ordering::SeqCst) {
            return;
        }
        let counted = store.update(|newest| {
            let entry = newest.get(&COUNTERS, "shared").expect("it was made first");
            let next = Counter { count: entry.count + 1, ..entry.value.clone() };
            let made = counter(&format!("{name}-{number}"), number);
            let change = Transaction::new().replace(&COUNTERS, &entry, next).create(&COUNTERS, made);
            Ok::<_, CommitError>((change, entry.count + 1))
        });
        let (revision, value) = counted.await.expect("every decision is carried out");
        let seen = store.snapshot();
        assert!(seen.revision() >= revision && seen.contains(&COUNTERS, &format!("{name}-{number}")));
        told.counted.lock().unwrap().push(value);
        told.revisions.lock().unwrap().push(revision);
        told.made.fetch_add(1, Ordering::SeqCst);
    }
}

/// Reads never stop, and what they show never gets older.
async fn read(store: Store, told: Arc<Told>) {
    let (mut revision, mut count, mut of_record) = (Revision(0), 0, Revision(0));
    while !told.stop.load(Ordering::SeqCst) {
        let seen = store.snapshot();
        let entry = seen.get(&COUNTERS, "shared").expect("it stays");
        assert!(seen.revision() >= revision && entry.count >= count && entry.revision() >= of_record);
        (revision, count, of_record) = (seen.revision(), entry.count, entry.revision());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn more(told: &Told, count: u64) {
    let from = told.made.load(Ordering::SeqCst);
    let waited = tokio::time::timeout(AMPLE, async {
        while told.made.load(Ordering::SeqCst) < from + count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "commits go on");
}

async fn moves_under_load(from: Arc<dyn Engine>, to: To) {
    let store = Store::open(from.clone(), schema()).await.unwrap();
    fill(&store, 700).await;
    let told = Arc::new(Told::default());
    let mut workers: Vec<_> =
        (0..6).map(|name| base::task::spawn("writer", write(store.clone(), name, told.clone()))).collect();
    workers.push(base::task::spawn("reader", read(store.clone(), told.clone())));
    let mut changes = store.changes();
    more(&told, 30).await;
    let before = store.snapshot();
    let moved = store.move_to(&to).await.unwrap();
    assert!(to.switched.load(Ordering::SeqCst));
    assert!(moved.records > 700, "{moved:?}");
    assert!(store.snapshot().revision() > before.revision());
    // A revision of before fits no record of after, though a record is the same.
    let old = before.get(&BOATS, "b7").unwrap();
    let stale = Transaction::new().replace(&BOATS, &old, boat("b7", "brest"));
    assert!(matches!(store.commit(stale).await, Err(CommitError::Conflict { table: "boats", .. })));
    more(&told, 60).await;
    told.stop.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.await.unwrap();
    }
    println!("{} records, a pause of {:?}", moved.records, moved.pause);

    let mut counted = told.counted.lock().unwrap().clone();
    counted.sort_unstable();
    let made = told.made.load(Ordering::SeqCst);
    assert_eq!(counted, (1..=made).collect::<Vec<_>>(), "each value once, none lost");
    // Readers of the feed were told that anything may have changed.
    let lagged = async { while !changes.next().await.lagged {} };
    tokio::time::timeout(AMPLE, lagged).await.expect("the feed tells it");
    // Somebody else who opens the new engine sees all of it, and the old one has stayed behind.
    let anew = Store::open(to.engine.clone(), schema()).await.unwrap().snapshot();
    assert_eq!(anew.get(&COUNTERS, "shared").unwrap().count, made);
    assert_eq!(anew.count(&BOATS), 700);
    assert_eq!(anew.count(&COUNTERS) as u64, made + 1);
    assert!(told.revisions.lock().unwrap().iter().all(|revision| *revision <= anew.revision()));
    let left = Store::open(from, schema()).await.unwrap().snapshot();
    assert!(left.get(&COUNTERS, "shared").unwrap().count < made);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_to_memory_under_commits() {
    let directory = tempfile::tempdir().unwrap();
    moves_under_load(sqlite(directory.path()).await, To::memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_to_etcd_under_commits() {
    let Some(bed) = etcd_bed().await else { return };
    let directory = tempfile::tempdir().unwrap();
    let engine = bed.etcd("moved", "mover").await;
    moves_under_load(sqlite(directory.path()).await, To::etcd(Arc::new(engine))).await;
}

#[tokio::test]
async fn what_lies_there_is_made_the_same() {
    let store = Store::open(Arc::new(Memory::new()), schema()).await.unwrap();
    fill(&store, 1_200).await;
    let to = To::memory();
    {
        // An attempt before it that was not finished: some are missing, one is another, one should not be there.
        let half = Store::open(to.engine.clone(), schema()).await.unwrap();
        for number in (0..1_200).step_by(2) {
            let harbour = if number == 600 { "brest" } else { "nantes" };
            half.commit(Transaction::new().create(&BOATS, boat(&format!("b{number}"), harbour))).await.unwrap();
        }
        for stray in ["", "a", "zzz"] {
            half.commit(Transaction::new().create(&BOATS, boat(&format!("b9999{stray}"), "nowhere"))).await.unwrap();
        }
    }
    let moved = store.move_to(&to).await.unwrap();
    assert_eq!(moved.records, 1_201);
    let anew = Store::open(to.engine.clone(), schema()).await.unwrap().snapshot();
    let boats =
        |snapshot: &store::Snapshot| -> Vec<_> { snapshot.scan(&BOATS).map(|entry| entry.value.clone()).collect() };
    assert_eq!(boats(&anew), boats(&store.snapshot()));
    assert_eq!(anew.count(&BOATS), 1_200);
}

#[tokio::test]
async fn a_move_that_fails_leaves_everything_as_it_was() {
    for fails in ["raise", "forget", "switch"] {
        let store = Store::open(Arc::new(Memory::new()), schema()).await.unwrap();
        fill(&store, 20).await;
        let to = To { fails: Some(fails), ..To::memory() };
        let why = store.move_to(&to).await.unwrap_err();
        match fails {
            "forget" => assert!(matches!(why, MoveError::Backwards { .. }), "{why:?}"),
            _ => assert!(matches!(why, MoveError::Caller { .. }), "{why:?}"),
        }
        store.commit(Transaction::new().create(&BOATS, boat("late", "nantes"))).await.unwrap();
        assert_eq!(store.snapshot().count(&BOATS), 21);
        let there = to.engine.load("", 1_000).await.unwrap();
        assert_eq!(there.records.len(), 21, "{fails}: the commit went where it was before");
        // And it may be tried again.
        store.move_to(&To { fails: None, ..to }).await.unwrap();
        assert_eq!(store.snapshot().count(&BOATS), 21);
    }
}

#[tokio::test]
async fn a_record_that_does_not_fit_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(sqlite(directory.path()).await, schema()).await.unwrap();
    let wide = boat("wide", &"x".repeat(3 << 19));
    store.commit(Transaction::new().create(&BOATS, wide)).await.unwrap();
    let why = store.move_to(&To::memory()).await.unwrap_err();
    assert!(matches!(&why, MoveError::TooLarge { key, .. } if key == "boats/wide"), "{why:?}");
    store.commit(Transaction::new().create(&COUNTERS, counter("one", 1))).await.unwrap();
}

const DIRECTORY: &str = "STORE_TEST_MOVE_DIRECTORY";
const ENDPOINT: &str = "STORE_TEST_MOVE_ENDPOINT";

/// Not a test by itself: the program that [`nothing_is_lost_when_it_is_killed_on_the_way`] runs and a crash point kills.
#[test]
fn child() {
    let (Ok(directory), Ok(endpoint)) = (std::env::var(DIRECTORY), std::env::var(ENDPOINT)) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let directory = PathBuf::from(directory);
        let marker = directory.join("moved");
        let (store, _) = open_killed(&directory, &endpoint).await;
        for writer in 0..4 {
            let store = store.clone();
            base::task::spawn("writer", async move {
                for number in 0_u64.. {
                    let key = format!("{}-{writer}-{number}", std::process::id());
                    store.commit(Transaction::new().create(&COUNTERS, counter(&key, number))).await.unwrap();
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "ack {key}").unwrap();
                    out.flush().unwrap();
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        if !marker.exists() {
            let etcd = Arc::new(open_etcd(&endpoint).await);
            store.move_to(&To { marker: Some(marker), ..To::etcd(etcd) }).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        println!("end");
    });
}

async fn open_etcd(endpoint: &str) -> etcd::Etcd {
    let config = etcd::Config {
        endpoints: vec![endpoint.to_owned()],
        tls: None,
        prefix: "killed".to_owned(),
        name: "mover".to_owned(),
        operations_max: etcd::OPERATIONS_MAX_DEFAULT,
        room: None,
        data: None,
    };
    etcd::Etcd::open(config).await.unwrap()
}

/// The store as a process that starts finds it, and which it is.
async fn open_killed(directory: &Path, endpoint: &str) -> (Store, &'static str) {
    let (engine, name): (Arc<dyn Engine>, _) = match directory.join("moved").exists() {
        true => (Arc::new(open_etcd(endpoint).await), "etcd"),
        false => (sqlite(directory).await, "sqlite"),
    };
    (Store::open(engine, schema()).await.unwrap(), name)
}

#[test]
#[expect(clippy::disallowed_types, reason = "the child is this test itself")]
fn nothing_is_lost_when_it_is_killed_on_the_way() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let Some(bed) = runtime.block_on(etcd_bed()) else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    let mut last = Revision(0);
    let points = [
        ("store.move.pass", "sqlite"),
        ("store.move.copied", "sqlite"),
        ("store.move.raised", "sqlite"),
        ("store.move.switched", "etcd"),
        ("none", "etcd"),
    ];
    for (point, kept_in) in points {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["moving::child", "--exact", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .env(ENDPOINT, bed.endpoint().unwrap())
            .env(base::crash::VARIABLE, point)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines: Vec<String> = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok).collect();
        let status = child.wait().unwrap();
        let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
        assert_eq!(killed, point != "none", "{point}: {status}");
        let told = lines.iter().filter_map(|line| line.rsplit_once("ack ")).map(|(_, key)| key.to_owned());
        // A line may be cut short.
        acknowledged.extend(told.filter(|key| key.matches('-').count() == 2));
        let (store, name) = runtime.block_on(open_killed(directory.path(), bed.endpoint().unwrap().as_str()));
        assert_eq!(name, kept_in, "{point}");
        let seen = store.snapshot();
        assert!(seen.revision() > last, "{point}");
        last = seen.revision();
        for key in &acknowledged {
            assert!(seen.contains(&COUNTERS, key), "{point}: {key} was acknowledged and is gone");
        }
        println!("{point}: {} acknowledged, {} there, in {name}", acknowledged.len(), seen.count(&COUNTERS));
    }
    assert!(!acknowledged.is_empty());
}
