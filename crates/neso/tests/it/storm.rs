//! kill -9 at random moments, while several tenants' commands make, stop and delete instances without pause.
//!
//! Every command that was acknowledged is remembered. When the storm is over, all that was acknowledged must be so, whatever
//! was not may be or not be, but records, disk and kernel must agree.

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::datacenter::Datacenter;

/// How long commands are given and processes are killed.
const STORM: Duration = Duration::from_secs(20);
/// Commands under way at once.
const TENANTS: usize = 3;
/// Between two kills: at least this, at most four times as long.
const CALM: Duration = Duration::from_millis(400);

/// What is known of an instance from what was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Acknowledged; its state must be this one.
    Is(&'static str),
    /// Its deletion was acknowledged.
    Gone,
    /// The last command was not answered well.
    Unsure,
    /// Made, and then something else was asked for without a good answer: it exists, in whatever state.
    Exists,
}

/// A datacenter whose processes are killed again and again keeps its promises.
#[test]
fn what_was_acknowledged_holds() {
    let Some(datacenter) = Datacenter::start() else { return };
    let known = Mutex::new(BTreeMap::new());
    let over = AtomicBool::new(false);
    let kills = std::thread::scope(|scope| {
        for tenant in 0..TENANTS {
            let (datacenter, known, over) = (&datacenter, &known, &over);
            scope.spawn(move || live(datacenter, tenant, known, over));
        }
        let kills = kill_at_random(&datacenter);
        over.store(true, Ordering::SeqCst);
        kills
    });
    let known = known.into_inner().expect("no tenant panicked");
    let count = |what: &[Known]| known.values().filter(|known| what.contains(known)).count();
    println!(
        "{kills} kills; {} instances asked for: {} hold, {} are gone, {} unsure",
        known.len(),
        count(&[Known::Is("running"), Known::Is("stopped"), Known::Exists]),
        count(&[Known::Gone]),
        count(&[Known::Unsure]),
    );
    assert!(kills >= 10 && known.len() - count(&[Known::Unsure]) >= 5, "that was no storm");

    datacenter.wait("both processes", || datacenter.pid("headnode").is_some() && datacenter.pid("node").is_some());
    let began = Instant::now();
    datacenter.wait_idle();
    println!("every flow had ended {} ms after the storm", began.elapsed().as_millis());
    let instances = datacenter.instances();
    for (name, known) in &known {
        let state =
            instances.iter().find(|one| one["alias"] == **name).map(|one| one["state"].as_str().expect("a word"));
        let state = state.map(str::to_owned);
        match known {
            Known::Is(wanted) => assert_eq!(state.as_deref(), Some(*wanted), "{name}"),
            Known::Gone => assert_eq!(state, None, "{name} was deleted"),
            Known::Exists => assert!(state.is_some(), "{name} is lost"),
            Known::Unsure => (),
        }
    }
    datacenter.assert_agreed();
    for instance in instances {
        datacenter.good(&["instance", "delete", instance["id"].as_str().expect("an id")]);
    }
    datacenter.wait_idle();
    datacenter.assert_clean();
}

/// One tenant: makes instances; leaves some alone, stops some, deletes some.
fn live(datacenter: &Datacenter, tenant: usize, known: &Mutex<BTreeMap<String, Known>>, over: &AtomicBool) {
    let note = |name: &str, what| known.lock().expect("no tenant panicked").insert(name.to_owned(), what);
    for number in 0.. {
        if over.load(Ordering::SeqCst) {
            return;
        }
        let name = format!("storm-{tenant}-{number}");
        let asked = |arguments: &[&str]| datacenter.run(&[&["instance"], arguments].concat()).status.success();
        if !asked(&["create", "--name", &name, "minimal", "g1-nano"]) {
            note(&name, Known::Unsure);
            datacenter.wait("a headnode", || datacenter.pid("headnode").is_some());
            continue;
        }
        note(&name, Known::Is("running"));
        match number % 3 {
            0 => drop(note(&name, if asked(&["delete", &name]) { Known::Gone } else { Known::Unsure })),
            1 => drop(note(&name, if asked(&["stop", &name]) { Known::Is("stopped") } else { Known::Exists })),
            _ => (),
        }
    }
}

/// Kills headnode, node or both until the storm is over. Returns how many processes.
fn kill_at_random(datacenter: &Datacenter) -> usize {
    let chance = RandomState::new();
    let began = Instant::now();
    let mut kills = 0;
    for moment in 0_u64.. {
        let dice = chance.hash_one(moment);
        let calm = CALM + CALM.mul_f64((dice % 300) as f64 / 100.0);
        // The moment is the subject here: nothing is waited for.
        std::thread::sleep(calm);
        if began.elapsed() > STORM {
            break;
        }
        let victims: &[&str] = [&["headnode"][..], &["node"], &["headnode", "node"]][(dice >> 32) as usize % 3];
        for pid in victims.iter().filter_map(|victim| datacenter.pid(victim)) {
            kills += usize::from(base::daemon::kill(pid).is_ok());
        }
    }
    kills
}
