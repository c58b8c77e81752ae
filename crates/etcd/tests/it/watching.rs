//! Watches that are cut, fall behind, or follow a member that is frozen; and stores that follow them.

use std::sync::Arc;

use store::{Change, Engine, EngineError, Revision, Store, Transaction, engine::Outcome};

use crate::{
    bed::{AMPLE, Bed, COUNTERS, Counter, batch, committed, counter, put, schema, until},
    proxy::{Cable, Proxy},
};

async fn set(store: &Store, name: &str, count: u64) {
    let decided = store.update(|newest| {
        let transaction = Transaction::new();
        let transaction = match newest.get(&COUNTERS, name) {
            Some(entry) => transaction.replace(&COUNTERS, &entry, counter(name, count)),
            None => transaction.create(&COUNTERS, counter(name, count)),
        };
        Ok::<_, store::CommitError>((transaction, ()))
    });
    decided.await.unwrap();
}

fn held(store: &Store) -> Vec<Counter> {
    store.snapshot().scan(&COUNTERS).map(|entry| entry.value.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_where_it_was_cut() {
    let Some(bed) = Bed::single().await else { return };
    let proxy = Proxy::start(&bed.members[0].endpoint()).await;
    let follower = bed.open_through("follower", vec![proxy.endpoint()]).await;
    let follower = Store::open(Arc::new(follower), schema()).await.unwrap();
    let leader = Store::open(Arc::new(bed.open("leader").await), schema()).await.unwrap();
    let mut changes = follower.changes();
    set(&leader, "a", 1).await;
    // That the leader took its name is a revision too, of no record.
    let told = loop {
        let change = changes.next().await;
        if !change.keys.is_empty() {
            break change;
        }
    };
    assert_eq!(told.keys.len(), 1);
    proxy.set(Cable::Cut);
    for count in 2..=20 {
        set(&leader, "a", count).await;
    }
    assert_eq!(held(&follower)[0].count, 1, "it is cut off");
    proxy.set(Cable::Whole);
    let mut seen = 1;
    while seen < 20 {
        let change: Arc<Change> = changes.next().await;
        assert!(!change.lagged, "nothing was missed, so nothing had to be loaded again");
        seen = change.snapshot.get(&COUNTERS, "a").unwrap().count;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compacted_history_is_loaded_again() {
    let Some(bed) = Bed::single().await else { return };
    let proxy = Proxy::start(&bed.members[0].endpoint()).await;
    let follower = bed.open_through("follower", vec![proxy.endpoint()]).await;
    let follower = Store::open(Arc::new(follower), schema()).await.unwrap();
    let engine = Arc::new(bed.open("leader").await);
    let leader = Store::open(engine.clone(), schema()).await.unwrap();
    set(&leader, "kept", 1).await;
    set(&leader, "gone", 1).await;
    until("the follower has both", || held(&follower).len() == 2).await;
    let mut changes = follower.changes();
    let before = follower.snapshot().revision();
    proxy.set(Cable::Cut);
    let gone = leader.snapshot().get(&COUNTERS, "gone").unwrap();
    leader.commit(Transaction::new().delete(&COUNTERS, &gone)).await.unwrap();
    set(&leader, "kept", 2).await;
    set(&leader, "new", 1).await;
    engine.compact(leader.snapshot().revision()).await.unwrap();
    let compacted = engine.watch(before).await.err().unwrap();
    assert!(matches!(compacted, EngineError::Compacted(revision) if revision == before), "{compacted:?}");
    proxy.set(Cable::Whole);
    let change = changes.next().await;
    assert!(change.lagged, "readers are told that anything may have changed");
    assert_eq!(held(&follower), [counter("kept", 2), counter("new", 1)]);
    // And it follows again, and commits.
    set(&leader, "new", 2).await;
    until("the follower goes on", || held(&follower)[1].count == 2).await;
    set(&follower, "new", 3).await;
    until("the leader sees it", || held(&leader)[1].count == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_that_never_was_is_no_place_to_go_on_from() {
    let Some(bed) = Bed::single().await else { return };
    let engine = bed.open("one").await;
    let now = committed(&engine, batch(&[], vec![put("a", "1")])).await;
    assert!(matches!(engine.watch(Revision(now.0 + 100)).await, Err(EngineError::Compacted(_))));
    assert!(engine.watch(now).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_member_is_left_for_another() {
    let Some(bed) = Bed::single().await else { return };
    let direct = bed.members[0].endpoint();
    let proxy = Proxy::start(&direct).await;
    let engine = bed.open_through("follower", vec![proxy.endpoint(), direct]).await;
    let follower = Store::open(Arc::new(engine), schema()).await.unwrap();
    let leader = Store::open(Arc::new(bed.open("leader").await), schema()).await.unwrap();
    set(&leader, "a", 1).await;
    until("the follower follows", || held(&follower) == [counter("a", 1)]).await;
    // Its connections stay open and say nothing.
    proxy.set(Cable::Frozen);
    set(&leader, "a", 2).await;
    until("the follower goes on by itself", || held(&follower) == [counter("a", 2)]).await;
    set(&follower, "a", 3).await;
    assert_eq!(held(&follower), [counter("a", 3)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_records_are_loaded_and_told_whole() {
    let Some(bed) = Bed::single().await else { return };
    let engine = bed.open("one").await;
    let large = "x".repeat(900_000);
    let start = committed(&engine, batch(&[], vec![put("small", "1")])).await;
    for number in 0..100 {
        committed(&engine, batch(&[], vec![put(&format!("large-{number:03}"), &large)])).await;
    }
    // More than one answer may weigh: pages are cut shorter until they fit.
    let (mut after, mut count) = (String::new(), 0);
    loop {
        let page = engine.load(&after, 1000).await.unwrap();
        count += page.records.len();
        assert!(page.records.iter().all(|record| record.key == "small" || record.value.len() == large.len()));
        match page.records.last() {
            Some(last) if page.more => after.clone_from(&last.key),
            _ => break,
        }
    }
    assert_eq!(count, 101);
    let mut watch = engine.watch(start).await.unwrap();
    let mut told = 0;
    while told < 100 {
        let delivery = watch.next().await.unwrap();
        assert!(
            delivery.events.iter().all(|event| event.value.as_ref().is_some_and(|value| value.len() == large.len()))
        );
        told += delivery.events.len();
    }
    let limits = engine.limits();
    let refused = engine.commit(batch(&[], vec![put("a", &"x".repeat(limits.bytes * 2))])).await.unwrap_err();
    assert!(
        base::errors::chain(&refused).contains("etcd takes requests of 1572864"),
        "{}",
        base::errors::chain(&refused)
    );
}

/// Some wait until the feed has told them of a snapshot's revision; a revision that changes no record is one too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_feed_tells_of_every_revision_a_snapshot_shows() {
    let Some(bed) = Bed::single().await else { return };
    let store = Store::open(Arc::new(bed.open("one").await), schema()).await.unwrap();
    let other = bed.open("two").await;
    set(&store, "a", 1).await;
    let mut changes = store.changes();
    let refused = other.commit(batch(&[("a", Some(Revision(1)))], vec![put("a", "1")])).await.unwrap();
    let Outcome::Conflict(conflict) = refused else { panic!("{refused:?}") };
    until("the snapshot shows the conflict's revision", || store.snapshot().revision() >= conflict).await;
    let told = tokio::time::timeout(AMPLE, changes.next()).await.expect("the feed tells of it");
    assert_eq!((told.revision, told.keys.len(), told.lagged), (conflict, 0, false));
}

/// Two stores race for one record, each with several callers, and then nothing more happens: those who lose must not need another
/// change to go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_loses_a_race_needs_nothing_more_to_happen() {
    let Some(bed) = Bed::single().await else { return };
    let one = Store::open(Arc::new(bed.open("one").await), schema()).await.unwrap();
    let two = Store::open(Arc::new(bed.open("two").await), schema()).await.unwrap();
    set(&one, "a", 0).await;
    until("both have it", || held(&two) == [counter("a", 0)]).await;
    for round in 1..=300 {
        let callers = (0..8).map(|caller| {
            let store = if caller % 2 == 0 { one.clone() } else { two.clone() };
            base::task::spawn("racer", async move {
                set(&store, "a", round * 8 + caller).await;
                set(&store, &format!("b-{caller}"), round).await;
            })
        });
        let callers: Vec<_> = callers.collect();
        let all = async {
            for caller in callers {
                caller.await.unwrap();
            }
        };
        let ended = tokio::time::timeout(std::time::Duration::from_secs(20), all).await;
        assert!(ended.is_ok(), "round {round}: {:?} {:?}", one.snapshot().revision(), two.snapshot().revision());
    }
}
