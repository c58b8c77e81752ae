//! Three real members, some of which die or freeze while commits are made, and what all that were acknowledged add up to.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use etcd::{Etcd, local::Member};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use store::{
    CommitError, Engine, EngineError, Revision, Store, Transaction,
    engine::{Batch, Outcome},
};

use crate::bed::{AMPLE, Bed, COUNTERS, Counter, batch, committed, counter, put, schema, until};

/// Commits between one fault and the next.
const BETWEEN: u64 = 40;

/// What was acknowledged.
#[derive(Default)]
struct History {
    /// Of the counter: every value that somebody was told is theirs.
    counted: Mutex<Vec<u64>>,
    /// Of the register: revision, value it was changed from, value it was changed to.
    registered: Mutex<Vec<(Revision, String, String)>>,
    acknowledged: AtomicU64,
    /// Ends that left it open whether it happened.
    unknown: AtomicU64,
    stop: AtomicBool,
}

async fn count(store: Store, history: Arc<History>) {
    while !history.stop.load(Ordering::SeqCst) {
        let counted = store.update(|newest| {
            let entry = newest.get(&COUNTERS, "shared").expect("it was made first");
            let next = Counter { count: entry.count + 1, ..entry.value.clone() };
            Ok::<_, CommitError>((Transaction::new().replace(&COUNTERS, &entry, next), entry.count + 1))
        });
        match counted.await {
            Ok((_, value)) => {
                history.counted.lock().unwrap().push(value);
                history.acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            Err(CommitError::Conflict { .. }) => {}
            Err(CommitError::Engine(_)) => {
                history.unknown.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => panic!("{}", base::errors::chain(&error)),
        }
    }
}

/// Compare and set on the bare engine: each value is unique, so the acknowledged ones must form a chain.
async fn register(engine: Arc<Etcd>, name: &'static str, history: Arc<History>) {
    for number in 0_u64.. {
        if history.stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok(page) = engine.load("other/", 1).await else { continue };
        let Some(now) = page.records.first().filter(|record| record.key == "other/register") else {
            panic!("it is gone")
        };
        let (old, new) = (String::from_utf8(now.value.to_vec()).unwrap(), format!("{name}-{number}"));
        let change = batch(&[("other/register", Some(now.revision))], vec![put("other/register", &new)]);
        match engine.commit(change).await {
            Ok(Outcome::Committed(revision)) => {
                history.registered.lock().unwrap().push((revision, old, new));
                history.acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            Ok(Outcome::Conflict(_)) => {}
            Err(_) => {
                history.unknown.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

/// Every value the register had, in order, as a watch tells it that is opened anew whenever it ends.
async fn follow(engine: Arc<Etcd>, after: Revision, until_value: &str) -> Vec<(Revision, String)> {
    let (mut told, mut at) = (Vec::new(), after);
    loop {
        let Ok(mut watch) = engine.watch(at).await else { continue };
        loop {
            match watch.next().await {
                Ok(delivery) => {
                    assert!(delivery.through > at, "nothing is told twice");
                    at = delivery.through;
                    for event in delivery.events.iter().filter(|event| event.key == "other/register") {
                        let value = String::from_utf8(event.value.clone().unwrap().to_vec()).unwrap();
                        told.push((event.revision, value));
                    }
                    if told.last().is_some_and(|(_, value)| value == until_value) {
                        return told;
                    }
                }
                Err(EngineError::Compacted(_)) => panic!("nobody compacts"),
                Err(_) => break,
            }
        }
    }
}

fn signal(member: &Member, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(member.pid().unwrap()).unwrap()), signal).unwrap();
}

async fn leader(members: &[Member]) -> usize {
    let found = tokio::time::timeout(AMPLE, async {
        loop {
            for (number, member) in members.iter().enumerate() {
                if member.is_leader().await.unwrap_or(false) {
                    return number;
                }
            }
        }
    });
    found.await.expect("there is a leader")
}

async fn more(history: &History, count: u64) {
    let from = history.acknowledged.load(Ordering::SeqCst);
    until("commits go on", || history.acknowledged.load(Ordering::SeqCst) >= from + count).await;
}

/// Leader killed, a follower killed, leader frozen; each comes back, and commits go on meanwhile.
async fn faults(members: &mut [Member], history: &History) {
    more(history, BETWEEN).await;
    for leads in [true, false] {
        let leader = leader(members).await;
        let victim = if leads { leader } else { (leader + 1) % members.len() };
        members[victim].kill().await.unwrap();
        more(history, BETWEEN).await;
        members[victim].start().unwrap();
        members[victim].ready().await.unwrap();
        more(history, BETWEEN).await;
    }
    let frozen = leader(members).await;
    signal(&members[frozen], Signal::SIGSTOP);
    more(history, BETWEEN).await;
    signal(&members[frozen], Signal::SIGCONT);
    more(history, BETWEEN).await;
    // All at once: nothing can be committed until they are back.
    for member in members.iter_mut() {
        member.kill().await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for member in members.iter_mut() {
        member.start().unwrap();
    }
    more(history, BETWEEN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_and_there_once() {
    let Some(mut bed) = Bed::three().await else { return };
    let mut stores = Vec::new();
    let mut bare = Vec::new();
    for name in ["one", "two"] {
        // A mark of its own for each of the two ways to commit.
        let mut config = bed.config(name);
        config.endpoints.rotate_left(stores.len());
        stores.push(Store::open(Arc::new(Etcd::open(config.clone()).await.unwrap()), schema()).await.unwrap());
        config.prefix = "neso/bare".to_owned();
        bare.push(Arc::new(Etcd::open(config).await.unwrap()));
    }
    stores[0].commit(Transaction::new().create(&COUNTERS, counter("shared", 0))).await.unwrap();
    until("both have it", || stores.iter().all(|store| store.snapshot().count(&COUNTERS) == 1)).await;
    let start = committed(&bare[0], batch(&[], vec![put("other/register", "first")])).await;
    let follower = base::task::spawn("follower", {
        let engine = bare[1].clone();
        async move { follow(engine, start, "last").await }
    });
    let history = Arc::new(History::default());
    let mut workers = Vec::new();
    for number in 0..4 {
        workers.push(base::task::spawn("counting", count(stores[number % 2].clone(), history.clone())));
    }
    for (engine, name) in bare.iter().zip(["left", "right"]) {
        workers.push(base::task::spawn("registering", register(engine.clone(), name, history.clone())));
    }
    faults(&mut bed.members, &history).await;
    history.stop.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.await.unwrap();
    }
    check_counter(&history, &stores).await;
    let last = committed(&bare[0], Batch { writes: vec![put("other/register", "last")], ..Batch::default() }).await;
    check_register(&history, &follower.await.unwrap(), last);
}

async fn check_counter(history: &History, stores: &[Store]) {
    let mut counted = history.counted.lock().unwrap().clone();
    let told = counted.len() as u64;
    counted.sort_unstable();
    counted.dedup();
    assert_eq!(counted.len() as u64, told, "no value was given twice");
    let unknown = history.unknown.load(Ordering::SeqCst);
    // Both mirrors show all of it, and what is there is what was told, but for what nobody was told about.
    let most = *counted.last().unwrap();
    for store in stores {
        let value = || store.snapshot().get(&COUNTERS, "shared").unwrap().count;
        until("the mirror shows what was told", || value() >= most).await;
        assert!(value() >= told && value() <= told + unknown, "{} of {told} told and {unknown} unknown", value());
    }
    println!("{told} increments told, {unknown} ends unknown");
}

fn check_register(history: &History, watched: &[(Revision, String)], last: Revision) {
    let values: BTreeMap<Revision, String> = watched.iter().cloned().collect();
    assert_eq!(values.len(), watched.len(), "no revision is told twice");
    assert!(watched.windows(2).all(|pair| pair[0].0 < pair[1].0), "and they are told in order");
    assert_eq!(watched.last().map(|(revision, _)| *revision), Some(last));
    let registered = history.registered.lock().unwrap().clone();
    for (revision, old, new) in &registered {
        assert_eq!(values.get(revision), Some(new), "acknowledged at {revision} and not watched");
        let before = values.range(..revision).next_back().map_or("first", |(_, value)| value.as_str());
        assert_eq!(before, old, "at {revision} something came between");
    }
    // Whatever was watched and not acknowledged is one of the ends that were left open.
    let open = watched.len() - 1 - registered.len();
    assert!(open as u64 <= history.unknown.load(Ordering::SeqCst), "{open} changes nobody made");
    println!("{} changes of the register told, {open} not", registered.len());
}
