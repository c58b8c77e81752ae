//! Members that come and go, and files that fill up.

use std::{sync::Arc, time::Duration};

use etcd::{Admin, AdminError, Alarm, Config, Etcd, Room, Tls, Vote, local::Member};
use store::{
    Engine, EngineError, Revision, Store, Transaction,
    engine::{Batch, Outcome},
};

use crate::bed::{AMPLE, Bed, COUNTERS, all, batch, certificates, committed, counter, put, schema};

fn admin(bed: &Bed) -> Admin {
    let endpoints: Vec<String> = bed.members.iter().map(Member::endpoint).collect();
    Admin::new(&endpoints, bed.tls.clone()).unwrap()
}

/// Repeat what may fail while a cluster settles.
async fn at_last<T, E: std::fmt::Debug>(what: &str, ask: impl AsyncFn() -> Result<T, E>) -> T {
    let tried = tokio::time::timeout(AMPLE, async {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(error) => {
                    println!("{what}: {error:?}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    });
    tried.await.unwrap_or_else(|_| panic!("in time: {what}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_catches_up_gets_its_vote_and_the_leader_may_go() {
    let Some(mut bed) = Bed::three().await else { return };
    let keeper = admin(&bed);
    let engine = Arc::new(bed.open("one").await);
    let store = Store::open(engine.clone(), schema()).await.unwrap();
    for number in 0..200 {
        store.commit(Transaction::new().create(&COUNTERS, counter(&format!("c{number}"), number))).await.unwrap();
    }
    // Added before it runs, and added once however often it is asked for.
    let mut fourth = Member::beside(&bed.members, "m4").unwrap();
    let added = at_last("add", async || keeper.add_learner(&fourth.peer()).await).await;
    assert!(added.learner && added.name.is_empty());
    assert_eq!(keeper.add_learner(&fourth.peer()).await.unwrap(), added);
    let another = keeper.add_learner("https://127.0.0.1:1").await.unwrap_err();
    assert!(base::errors::chain(&another).contains("too many learner"), "{}", base::errors::chain(&another));
    assert_eq!(keeper.promote(added.id).await.unwrap(), Vote::TooFarBehind);
    assert!(matches!(keeper.promote(7).await, Err(AdminError::Unknown(7))));

    fourth.start().unwrap();
    at_last("vote", async || match keeper.promote(added.id).await {
        Ok(Vote::Given) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(keeper.promote(added.id).await.unwrap(), Vote::Given, "it has it");
    let known = keeper.members().await.unwrap();
    assert_eq!(known.len(), 4);
    let of_fourth = known.iter().find(|member| member.id == added.id).unwrap();
    assert_eq!((of_fourth.name.as_str(), of_fourth.learner), ("m4", false));
    assert_eq!(of_fourth.clients, [fourth.endpoint()]);
    // It has all of it.
    let reached = keeper.status(&fourth.endpoint()).await.unwrap();
    let (revision, version) = (reached.revision, reached.version);
    assert!(version.starts_with("3.") && reached.size_bytes >= reached.used_bytes && reached.used_bytes > 0);
    let mut hashes = Vec::new();
    for member in bed.members.iter().chain([&fourth]) {
        hashes.push(at_last("hash", async || keeper.hash(&member.endpoint(), revision).await).await.0);
    }
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{hashes:?}");

    // Whoever leads is taken out, alive, under commits; the others go on.
    bed.members.push(fourth);
    let endpoints: Vec<String> = bed.members.iter().map(Member::endpoint).collect();
    engine.set_endpoints(&endpoints).unwrap();
    let leader = leader(&bed.members).await;
    let id = keeper.status(&bed.members[leader].endpoint()).await.unwrap().id;
    at_last("remove", async || keeper.remove(id).await).await;
    keeper.remove(id).await.unwrap();
    store.commit(Transaction::new().create(&COUNTERS, counter("after", 1))).await.unwrap();
    let gone = bed.members.remove(leader);
    let left: Vec<String> = bed.members.iter().map(Member::endpoint).collect();
    engine.set_endpoints(&left).unwrap();
    assert_eq!(Admin::new(&left, bed.tls.clone()).unwrap().members().await.unwrap().len(), 3);
    drop(gone);
    store.commit(Transaction::new().create(&COUNTERS, counter("without", 1))).await.unwrap();
    assert_eq!(store.snapshot().count(&COUNTERS), 202);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_another_authority_keeps_nothing() {
    let Some(bed) = Bed::three().await else { return };
    let stranger = certificates(bed.path(), "stranger");
    let good = bed.tls.clone().unwrap();
    let endpoints: Vec<String> = bed.members.iter().map(Member::endpoint).collect();
    for tls in [
        Tls { authority: stranger.authority.clone(), ..good.clone() },
        Tls { authority: good.authority.clone(), ..stranger.clone() },
    ] {
        let keeper = Admin::new(&endpoints, Some(tls)).unwrap();
        for refused in [keeper.members().await.map(|_| ()), keeper.add_learner("https://127.0.0.1:1").await.map(|_| ())]
        {
            let why = base::errors::chain(&refused.unwrap_err());
            assert!(why.contains("do not trust each other"), "{why}");
        }
        // Asked once, of one: it may only see that the connection is closed.
        assert!(keeper.status(&endpoints[0]).await.is_err());
    }
    assert_eq!(admin(&bed).members().await.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revisions_are_raised_for_good() {
    let Some(bed) = Bed::single().await else { return };
    let engine = bed.open("one").await;
    let low = committed(&engine, batch(&[], vec![put("t/a", "1")])).await;
    engine.raise(Revision(1_000_000)).await.unwrap();
    let (_, raised, _) = all(&engine).await.remove(0);
    assert_eq!(raised.0, low.0 + 1_000_000);
    // Who knows the revision of before has to load anew, and does not get at the record with it.
    assert!(matches!(engine.watch(low).await, Err(EngineError::Compacted(_))));
    let stale = engine.commit(batch(&[("t/a", Some(low))], vec![put("t/a", "2")])).await.unwrap();
    assert!(matches!(stale, Outcome::Conflict(at) if at > raised), "{stale:?}");
    // Another headnode sees the same numbers, and the watch tells them.
    let other = bed.open("two").await;
    assert_eq!(all(&other).await, all(&engine).await);
    let mut watch = other.watch(raised).await.unwrap();
    let next = committed(&engine, batch(&[("t/a", Some(raised))], vec![put("t/a", "3")])).await;
    assert!(next > raised);
    loop {
        let delivery = watch.next().await.unwrap();
        if let Some(event) = delivery.events.first() {
            assert_eq!((event.revision, delivery.through), (next, next));
            break;
        }
    }
    engine.compact(next).await.unwrap();
    assert!(matches!(other.watch(raised).await, Err(EngineError::Compacted(_))));
}

const MIB: u64 = 1 << 20;
/// A quota that is reached soon.
const QUOTA: u64 = 24 * MIB;

fn filling(number: usize) -> (String, Option<bytes::Bytes>) {
    (format!("t/{number:05}"), Some(bytes::Bytes::from(vec![b'x'; 200 << 10])))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_still_deletes_and_has_room_again() {
    // etcd counts what it has written to its file, a tenth of a second late; the reserve is larger than what is written in that.
    let quota_bytes = 96 * MIB;
    let Some(bed) = Bed::limited(quota_bytes).await else { return };
    let room = Some(Room { quota_bytes, reserve_bytes: 48 * MIB });
    let engine = Etcd::open(Config { room, ..bed.config("one") }).await.unwrap();
    let keeper = admin(&bed);
    let mut written = 0;
    loop {
        match engine.commit(Batch { writes: vec![filling(written)], ..Batch::default() }).await {
            Ok(Outcome::Committed(_)) => written += 1,
            Err(EngineError::Full) => break,
            other => panic!("{other:?}"),
        }
        assert!(written < 2_000, "the quota is reached");
    }
    assert!(keeper.alarms().await.unwrap().is_empty(), "etcd itself is not full");
    assert!(written > 100, "{written} records are not what fits");
    // What may use the reserve goes on.
    for number in 0..written {
        let gone = Batch { writes: vec![(format!("t/{number:05}"), None)], may_use_reserve: true, ..Batch::default() };
        assert!(matches!(engine.commit(gone).await, Ok(Outcome::Committed(_))));
    }
    let full = engine.commit(Batch { writes: vec![filling(0)], ..Batch::default() }).await;
    assert!(matches!(full, Err(EngineError::Full)), "history is still there: {full:?}");
    let now = engine.load("", 1).await.unwrap().revision;
    engine.compact(now).await.unwrap();
    let endpoint = bed.members[0].endpoint();
    let before = at_last("freed", async || {
        // A file's free pages are counted when something is written.
        let sign = Batch { writes: vec![put("t/sign", "of life")], may_use_reserve: true, ..Batch::default() };
        assert!(matches!(engine.commit(sign).await, Ok(Outcome::Committed(_))));
        let status = keeper.status(&endpoint).await.unwrap();
        if status.used_bytes < 4 * MIB { Ok(status) } else { Err(status) }
    })
    .await;
    keeper.defragment(&endpoint).await.unwrap();
    let after = keeper.status(&endpoint).await.unwrap();
    assert!(after.size_bytes < before.size_bytes / 2, "{before:?} {after:?}");
    engine.note_space(after.size_bytes, after.used_bytes);
    assert!(matches!(
        engine.commit(Batch { writes: vec![filling(0)], ..Batch::default() }).await,
        Ok(Outcome::Committed(_))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_is_seen_and_ended() {
    let Some(bed) = Bed::limited(QUOTA).await else { return };
    // Nothing kept back.
    let engine = bed.open("one").await;
    let keeper = admin(&bed);
    let mut number = 0;
    loop {
        match engine.commit(Batch { writes: vec![filling(number % 4)], ..Batch::default() }).await {
            Ok(Outcome::Committed(_)) => number += 1,
            Err(EngineError::Full) => break,
            other => panic!("{other:?}"),
        }
        assert!(number < 400, "the quota is reached");
    }
    let alarms = keeper.alarms().await.unwrap();
    assert!(matches!(alarms.as_slice(), [(_, Alarm::Space)]), "{alarms:?}");
    let status = keeper.status(&bed.members[0].endpoint()).await.unwrap();
    assert!(status.errors.iter().any(|error| error.contains("NOSPACE")), "{status:?}");
    keeper.compact(status.revision).await.unwrap();
    keeper.compact(status.revision).await.unwrap();
    let endpoint = bed.members[0].endpoint();
    keeper.defragment(&endpoint).await.unwrap();
    keeper.disarm(alarms[0].0, Alarm::Space).await.unwrap();
    assert!(keeper.alarms().await.unwrap().is_empty());
    committed(&engine, Batch { writes: vec![filling(0)], ..Batch::default() }).await;
}
