//! Full disks: whoever asks for more is told so in plain words; reading, stopping and deleting go on; with room again, all
//! is well without anybody's doing.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use crate::datacenter::Datacenter;

/// The headnode's file system, MiB: the small image, the store's reserve, and some more.
const HEADNODE_MIB: u64 = 64;
/// Accounts that fill a log of the store's own, at most.
const ACCOUNTS: usize = 2000;
/// Small files that fill a pool's metadata, at most.
const SMALL_FILES: usize = 400_000;

/// The headnode's disk is full.
#[test]
fn a_full_headnode_reads_and_deletes() {
    let Some(datacenter) = Datacenter::start_after(|datacenter| datacenter.confine_headnode(HEADNODE_MIB)) else {
        return;
    };
    for name in ["kept", "old"] {
        datacenter.good(&["instance", "create", "-w", "--name", name, "minimal", "g1-nano"]);
    }
    datacenter.wait_idle();
    let ballast = fill(&datacenter.settings().headnode_dir());

    // The store goes on within its own file for a while.
    let refusal = (0..ACCOUNTS)
        .map(|number| format!("filler-{number}"))
        .map(|login| datacenter.run(&["adm", "account", "create", &login, "--email", "filler@example.com"]))
        .find(|output| !output.status.success())
        .expect("a full disk refuses somebody");
    let words = String::from_utf8_lossy(&refusal.stderr).into_owned();
    assert!(words.contains("full"), "refused, but not in plain words: {words}");
    let create = datacenter.run(&["instance", "create", "--name", "new", "minimal", "g1-nano"]);
    let words = String::from_utf8_lossy(&create.stderr);
    assert!(!create.status.success() && words.contains("full"), "a create on a full disk: {words}");

    assert_eq!(datacenter.state("kept").as_deref(), Some("running"));
    datacenter.good(&["instance", "list"]);
    datacenter.good(&["instance", "stop", "-w", "kept"]);
    datacenter.good(&["instance", "delete", "-w", "old"]);
    datacenter.wait_idle();
    datacenter.assert_agreed();

    // The same after a start with the disk still full.
    datacenter.kill("headnode");
    datacenter.wait("the headnode on a full disk", || datacenter.state("kept").as_deref() == Some("stopped"));

    fs::remove_file(ballast).expect("the ballast can go");
    datacenter.wait("a create with room again", || {
        datacenter.run(&["instance", "create", "-w", "--name", "new", "minimal", "g1-nano"]).status.success()
    });
    datacenter.wait_idle();
    for name in ["new", "kept"] {
        datacenter.good(&["instance", "delete", "-w", name]);
    }
    datacenter.wait_idle();
    datacenter.assert_clean();
}

/// The pool is full, to its last page.
#[test]
fn a_full_pool_says_so_and_deletes() {
    let Some(datacenter) = Datacenter::start() else { return };
    datacenter.good(&["instance", "create", "-w", "--name", "old", "minimal", "g1-nano"]);
    datacenter.wait_idle();
    let ballast = datacenter.settings().pool_dir().join("ballast");
    fs::create_dir(&ballast).expect("a directory in the pool");
    fill(&ballast);
    // A clone needs no data, only metadata; small files are kept there.
    let piece = vec![7; 2000];
    let full = (0..SMALL_FILES).position(|number| fs::write(ballast.join(number.to_string()), &piece).is_err());
    assert!(full.is_some(), "the pool's metadata never filled");

    let create = datacenter.run(&["instance", "create", "-w", "--name", "new", "minimal", "g1-nano"]);
    assert!(!create.status.success(), "an instance was made where there is no room");
    datacenter.wait_idle();
    let new = datacenter.json(&["adm", "-j", "instance", "get", "new"]);
    let why = new["failure"].as_str().unwrap_or_default().to_lowercase();
    assert!(why.contains("no space") || why.contains("full"), "the record does not say why: {new}");
    datacenter.good(&["instance", "delete", "-w", "new"]);
    datacenter.good(&["instance", "delete", "-w", "old"]);
    datacenter.wait_idle();

    fs::remove_dir_all(&ballast).expect("the ballast can go");
    datacenter.wait("a create with room again", || {
        datacenter.run(&["instance", "create", "-w", "--name", "next", "minimal", "g1-nano"]).status.success()
    });
    for instance in datacenter.instances() {
        datacenter.good(&["instance", "delete", "-w", instance["id"].as_str().expect("an id")]);
    }
    datacenter.wait_idle();
    datacenter.assert_clean();
}

/// Writes into `directory` until not a byte more fits.
fn fill(directory: &Path) -> PathBuf {
    let path = directory.join("ballast.img");
    let mut file = File::create(&path).expect("a file");
    for piece in [1 << 20, 4096] {
        let piece: Vec<u8> = vec![7; piece];
        while file.write_all(&piece).is_ok() && file.sync_data().is_ok() {}
    }
    path
}
