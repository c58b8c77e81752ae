//! Killed in the middle: what was acknowledged is there, and nothing is there by half.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    sync::Arc,
};

use store::{Store, Transaction};

use crate::{
    engines::reopen,
    records::{COUNTERS, counter, schema},
};

const VARIABLE: &str = "STORE_TEST_CRASH_CHILD";

/// Not a test by itself: the program that [`acknowledged_commits_survive_a_kill`] kills.
#[test]
fn child() {
    let Ok(path) = std::env::var(VARIABLE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let engine = reopen(Path::new(&path)).await;
        let store = Store::open(Arc::new(engine), schema()).await.unwrap();
        let mut writers = Vec::new();
        for writer in 0..8 {
            let store = store.clone();
            writers.push(base::task::spawn("writer", async move {
                for number in 0_u64.. {
                    let key = format!("{}-{writer}-{number}", std::process::id());
                    let pair = Transaction::new()
                        .create(&COUNTERS, counter(&format!("{key}-left"), number))
                        .create(&COUNTERS, counter(&format!("{key}-right"), number));
                    store.commit(pair).await.unwrap();
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "ack {key}").unwrap();
                    out.flush().unwrap();
                }
            }));
        }
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

#[test]
#[expect(clippy::disallowed_types, reason = "the child is this test itself")]
fn acknowledged_commits_survive_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let mut acknowledged = Vec::new();
    for round in 1..=4 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["crash::child", "--exact", "--nocapture"])
            .env(VARIABLE, &path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while seen < 60 * round {
            let line = lines.next().expect("the child writes until it is killed").unwrap();
            if let Some(key) = line.rsplit_once("ack ").map(|(_, key)| key.to_owned()) {
                acknowledged.push(key);
                seen += 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had said before it died counts too; a line cut short does not.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        let whole = rest.len().saturating_sub(1);
        acknowledged.extend(rest[..whole].iter().filter_map(|line| line.strip_prefix("ack ").map(str::to_owned)));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(Arc::new(reopen(&path).await), schema()).await.unwrap();
        let snapshot = store.snapshot();
        assert!(acknowledged.len() >= 600);
        for key in &acknowledged {
            assert!(snapshot.contains(&COUNTERS, &format!("{key}-left")), "{key} was acknowledged and is gone");
        }
        for entry in snapshot.scan(&COUNTERS) {
            let (key, side) = entry.name.rsplit_once('-').unwrap();
            let other = if side == "left" { "right" } else { "left" };
            assert!(snapshot.contains(&COUNTERS, &format!("{key}-{other}")), "{key} is there by half");
        }
    });
}
