//! A full disk: commits say so, reads and deletes go on, and room makes everything well again.

use std::{path::PathBuf, sync::Arc, time::Duration};

use store::{CommitError, Store, Transaction, memory::Memory, sqlite::Sqlite};

use crate::records::{BOATS, Boat, COUNTERS, boat, counter, schema};

/// A small file system of its own, gone when dropped.
struct Tmpfs {
    directory: tempfile::TempDir,
}

async fn run(program: &str, args: &[&str]) {
    let mut command = base::process::command(program);
    command.args(args);
    let output = base::process::output(command, Duration::from_secs(20)).await.unwrap();
    assert!(output.success(), "{program} {args:?}: {} (this test mounts a tmpfs and needs root)", output.reason());
}

impl Tmpfs {
    async fn mount(size: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("neso-store-full-").tempdir().unwrap();
        run(
            "mount",
            &["-t", "tmpfs", "-o", &format!("size={size}"), "neso-store-test", directory.path().to_str().unwrap()],
        )
        .await;
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("store.db")
    }
}

impl Drop for Tmpfs {
    #[expect(clippy::disallowed_types, reason = "a destructor cannot wait for a runtime")]
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.directory.path()).status();
    }
}

fn cargo(number: usize) -> Boat {
    Boat {
        crew: (0..200).map(|sailor| format!("sailor-{number}-{sailor}")).collect(),
        ..boat(&format!("boat-{number:05}"), "x")
    }
}

async fn fill(store: &Store) -> usize {
    for number in 0..100_000 {
        match store.commit(Transaction::new().create(&BOATS, cargo(number))).await {
            Ok(_) => {}
            Err(CommitError::Full) => return number,
            Err(error) => panic!("{}", base::errors::chain(&error)),
        }
    }
    panic!("the disk never filled");
}

async fn behaves_when_full(store: &Store) -> usize {
    let held = fill(store).await;
    assert!(held > 10);
    // Still full, at once, and reading works.
    assert!(matches!(store.commit(Transaction::new().create(&BOATS, cargo(held))).await, Err(CommitError::Full)));
    assert_eq!(store.snapshot().count(&BOATS), held);
    // What may use the reserve goes through, and so does what only deletes.
    let wanted_gone = Transaction::new().create(&COUNTERS, counter("wanted-gone", 1)).may_use_reserve();
    store.commit(wanted_gone).await.unwrap();
    // Together with others that do not fit, each is judged by itself.
    let (refused, taken) = tokio::join!(
        store.commit(Transaction::new().create(&BOATS, cargo(held))),
        store.commit(Transaction::new().create(&COUNTERS, counter("wanted-gone-too", 1)).may_use_reserve()),
    );
    assert!(matches!(refused, Err(CommitError::Full)));
    taken.unwrap();
    let boats: Vec<_> = store.snapshot().scan(&BOATS).collect();
    for boat in &boats[..held - 5] {
        store.commit(Transaction::new().delete(&BOATS, boat)).await.unwrap();
    }
    assert_eq!(store.snapshot().count(&BOATS), 5);
    held
}

async fn until_room(store: &Store) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while let Err(error) = store.commit(Transaction::new().create(&BOATS, cargo(0))).await {
        assert!(matches!(error, CommitError::Full));
        assert!(std::time::Instant::now() < deadline, "there is room, but the store does not see it");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_full_memory_refuses_growth_only() {
    let store = Store::open(Arc::new(Memory::with_capacity(500_000)), schema()).await.unwrap();
    behaves_when_full(&store).await;
    until_room(&store).await;
}

#[tokio::test]
async fn a_full_disk_refuses_growth_only() {
    let disk = Tmpfs::mount("20m").await;
    let engine = Sqlite::open_with_reserve(&disk.path(), 4 << 20).await.unwrap();
    let store = Store::open(Arc::new(engine), schema()).await.unwrap();
    behaves_when_full(&store).await;
    until_room(&store).await;
    assert_eq!(store.snapshot().count(&BOATS), 6);
}

#[tokio::test]
async fn a_disk_filled_by_others_is_no_different() {
    let disk = Tmpfs::mount("16m").await;
    let engine = Sqlite::open_with_reserve(&disk.path(), 4 << 20).await.unwrap();
    let store = Store::open(Arc::new(engine), schema()).await.unwrap();
    for number in 0..50 {
        store.commit(Transaction::new().create(&BOATS, cargo(number))).await.unwrap();
    }
    // Somebody's log takes every byte that is left.
    let log = disk.directory.path().join("log");
    let mut file = std::fs::File::create(&log).unwrap();
    let piece = vec![1_u8; 4096];
    while std::io::Write::write_all(&mut file, &piece).is_ok() {}
    let mut number = 1000;
    while store.commit(Transaction::new().create(&BOATS, cargo(number))).await.is_ok() {
        number += 1;
    }
    let first = store.snapshot().scan(&BOATS).next().unwrap();
    store.commit(Transaction::new().delete(&BOATS, &first)).await.unwrap();
    drop(file);
    std::fs::remove_file(&log).unwrap();
    until_room(&store).await;
}
