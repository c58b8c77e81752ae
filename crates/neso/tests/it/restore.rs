//! The headnode's store is lost and an older copy put in its place: the datacenter goes on, and what the copy does not know
//! is told and kept.

use std::{fs, path::PathBuf};

use crate::datacenter::Datacenter;

#[test]
fn an_older_store_takes_over_and_destroys_nothing() {
    let Some(datacenter) = Datacenter::start() else { return };
    datacenter.good(&["instance", "create", "-w", "--name", "old", "minimal", "g1-nano"]);
    datacenter.wait_idle();
    let id = |name: &str| datacenter.json(&["adm", "-j", "instance", "get", name])["id"].as_str().map(str::to_owned);
    let old = id("old").expect("an id");
    let began = datacenter.init(&old);

    datacenter.end_control();
    let kept: Vec<(PathBuf, Vec<u8>)> = store_files(&datacenter)
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).expect("a file of the store")))
        .collect();
    datacenter.good(&["up"]);

    // What happens now is forgotten: an instance, starts of the other one, and many generations of the target.
    datacenter.good(&["instance", "create", "-w", "--name", "young", "minimal", "g1-nano"]);
    let young = id("young").expect("an id");
    let address = datacenter.good(&["instance", "ip", "young"]);
    for verb in ["stop", "start", "stop", "start"] {
        datacenter.good(&["instance", verb, "-w", "old"]);
    }
    datacenter.wait_idle();
    let seen = |datacenter: &Datacenter| datacenter.ask(&["adm", "-j", "server", "list"])?[0]["target_seen"].as_u64();
    let before = seen(&datacenter).expect("a generation");
    let (restarted, untouched) = (datacenter.init(&old), datacenter.init(&young));
    assert!(restarted.is_some() && restarted != began && untouched.is_some());

    datacenter.end_control();
    for path in store_files(&datacenter) {
        fs::remove_file(path).expect("the newer store can go");
    }
    for (path, content) in kept {
        fs::write(path, content).expect("the older store is put back");
    }
    datacenter.good(&["up"]);

    datacenter.wait("the node to listen again", || seen(&datacenter).is_some_and(|seen| seen > before));
    let servers = datacenter.json(&["adm", "-j", "server", "list"]);
    assert_eq!(servers[0]["strangers"], serde_json::json!([young]), "what is not known is told");
    let doctor = datacenter.run(&["doctor", "-j"]);
    let found = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(found.contains(&young), "the doctor does not name the unknown instance: {found}");

    // Verbs work, counted on from what was carried out in the forgotten time.
    datacenter.good(&["instance", "stop", "-w", "old"]);
    assert_eq!(datacenter.init(&old), None);
    datacenter.good(&["instance", "start", "-w", "old"]);
    assert!(datacenter.init(&old).is_some_and(|now| Some(now) != restarted), "a start starts");
    // The unknown instance holds its address still, so nobody else gets it.
    datacenter.good(&["instance", "create", "-w", "--name", "new", "minimal", "g1-nano"]);
    assert_ne!(datacenter.good(&["instance", "ip", "new"]), address, "one address for two instances");
    assert_eq!(datacenter.init(&young), untouched, "the unknown instance was touched");

    for name in ["old", "new"] {
        datacenter.good(&["instance", "delete", "-w", name]);
    }
    datacenter.wait_idle();
    assert_eq!(datacenter.init(&young), untouched, "the unknown instance was touched");
}

/// The store and what SQLite keeps beside it; not the reserve, which says nothing.
fn store_files(datacenter: &Datacenter) -> Vec<PathBuf> {
    let directory = datacenter.settings().headnode_dir();
    let names = ["store.db", "store.db-wal", "store.db-shm"];
    names.map(|name| directory.join(name)).into_iter().filter(|path| path.exists()).collect()
}
