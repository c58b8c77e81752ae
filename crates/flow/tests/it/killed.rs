//! A program that is killed while many flows run: the next one ends them all, and nothing is done by half.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use base::{
    clock::{Clock, SystemClock},
    shutdown::Shutdown,
};
use flow::FlowState;
use store::{Store, sqlite::Sqlite};

use crate::world::{Context, SHELVES, THINGS, engine, order, outside, schema, shelf};

const VARIABLE: &str = "FLOW_TEST_KILLED_CHILD";
const THINGS_MADE: usize = 40;

async fn open(path: &Path) -> Store {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match Sqlite::open_with_reserve(path, 4096).await {
            Ok(engine) => return Store::open(Arc::new(engine), schema()).await.unwrap(),
            Err(error) => {
                assert!(Instant::now() < deadline, "{}", base::errors::chain(&error));
                tokio::task::yield_now().await;
            }
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn run(path: &Path, clock: Arc<dyn Clock>) -> (Store, base::shutdown::Trigger) {
    let store = open(path).await;
    let (trigger, shutdown) = Shutdown::new();
    base::task::spawn("engine", engine(&store, clock, &Context::default()).run(shutdown.clone()));
    let maker = store.clone();
    base::task::spawn("outside", async move { shutdown.unless(outside(maker)).await });
    (store, trigger)
}

/// Not a test by itself: the program that is killed.
#[test]
fn child() {
    let Ok(path) = std::env::var(VARIABLE) else { return };
    runtime().block_on(async {
        let (store, _trigger) = run(Path::new(&path), Arc::new(SystemClock)).await;
        let mut changes = store.changes();
        loop {
            let done = changes.next().await.snapshot.scan(&THINGS).filter(|thing| thing.state == "done").count();
            println!("done {done}");
        }
    });
}

#[test]
#[expect(clippy::disallowed_types, reason = "the child is this test itself")]
fn flows_end_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let ids = runtime().block_on(async {
        let store = open(&path).await;
        shelf(&store).await;
        let mut ids = Vec::new();
        for number in 0..THINGS_MADE {
            ids.push(order(&store, &SystemClock, &format!("thing-{number}"), 0).await);
        }
        ids
    });
    for round in 1..=4 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["killed::child", "--exact", "--nocapture"])
            .env(VARIABLE, &path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // After a few more changes each round, so that each kill hits another moment.
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let seen = lines.map_while(Result::ok).filter(|line| line.contains("done ")).take(round * 2).count();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen, round * 2);
    }
    runtime().block_on(async {
        let (store, _trigger) = run(&path, Arc::new(SystemClock)).await;
        for id in ids {
            assert_eq!(crate::world::until(&store, id, crate::world::ended).await.state, FlowState::Succeeded);
        }
        let snapshot = store.snapshot();
        let mut reserved = snapshot.get(&SHELVES, "shelf").unwrap().reserved.clone();
        reserved.sort();
        reserved.dedup();
        assert_eq!(reserved.len(), THINGS_MADE);
        assert!(snapshot.scan(&THINGS).all(|thing| thing.state == "done" && thing.there));
    });
}
