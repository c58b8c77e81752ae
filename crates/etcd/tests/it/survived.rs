//! What one member of several has, the last moment before it was killed included.

use std::{collections::BTreeMap, fs, path::PathBuf};

use etcd::{Admin, Etcd, Survived, local::Member};
use store::{Engine as _, EngineError, Revision, engine::Outcome};

use crate::bed::{Bed, all, batch, committed, put, until};

const ROUNDS: u64 = 150;

fn survived(bed: &Bed, number: usize) -> Survived {
    let data = bed.path().join(format!("m{}", number + 1));
    etcd::survived(&data, "neso/test").unwrap()
}

fn texts(survived: &Survived) -> BTreeMap<String, String> {
    let text = |(key, value): (&String, &bytes::Bytes)| (key.clone(), String::from_utf8(value.to_vec()).unwrap());
    survived.records.iter().map(text).collect()
}

async fn records(engine: &Etcd) -> BTreeMap<String, String> {
    all(engine).await.into_iter().map(|(key, _, value)| (key, value)).collect()
}

/// Commits that succeed, conflict, change, delete and do nothing.
async fn work(engine: &Etcd) -> Revision {
    engine.raise(Revision(7_000)).await.unwrap();
    let mut last = Revision(0);
    for round in 0..ROUNDS {
        let key = |number: u64| format!("t/{}", (round * 7 + number * number) % 23);
        let value = format!("round {round}");
        last = committed(engine, batch(&[], vec![put(&key(0), &value), put(&format!("u/{round}"), &value)])).await;
        // Of this commit, and of one before.
        let _ = committed(engine, batch(&[(&key(0), Some(last))], vec![(key(0), None), put("t/last", &value)])).await;
        let refused = engine.commit(batch(&[(&key(0), Some(last))], vec![put("never", &value)])).await.unwrap();
        assert!(matches!(refused, Outcome::Conflict(_)));
        last = committed(engine, batch(&[], vec![(key(1), None), (key(2), None)])).await;
    }
    last
}

async fn leader(bed: &Bed) -> usize {
    for (number, member) in bed.members.iter().enumerate() {
        if member.is_leader().await.unwrap() {
            return number;
        }
    }
    panic!("one leads")
}

async fn kill(members: &mut [Member]) {
    for member in members {
        member.kill().await.unwrap();
    }
}

/// Ends a member as its supervisor does.
async fn end(member: &mut Member) {
    let pid = i32::try_from(member.pid().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
    until("it to end", || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z ")))
        .await;
    member.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_a_moment_before_the_end_is_there() {
    let Some(mut bed) = Bed::lazy(3, &[]).await else { return };
    let engine = bed.open("one").await;
    work(&engine).await;
    let before = records(&engine).await;
    let last = committed(&engine, batch(&[], vec![put("t/moment", "last")])).await;
    let leads = leader(&bed).await;
    kill(&mut bed.members).await;

    let found = [0, 1, 2].map(|number| survived(&bed, number));
    for one in &found {
        // It is not in a file: this is what is tried.
        assert!(one.file_revision < last && one.log.entries > ROUNDS && one.log.stopped.is_none(), "{:?}", one.log);
    }
    let whole = found.iter().filter(|one| one.records.contains_key("t/moment")).count();
    assert!(whole >= 2 && found[leads].records.contains_key("t/moment"), "{whole} of a majority of two, {leads} leads");
    // Nobody but who leads can know that it was agreed, and that is known with the next entry only.
    assert!(found.iter().any(|one| one.log.not_agreed > 0));
    let leading = texts(&found[leads]);
    assert_eq!(found[leads].revision, last);
    let mut without = leading.clone();
    without.remove("t/moment");
    assert_eq!(without, before);

    // What etcd itself makes of its logs.
    for member in &mut bed.members {
        member.start().unwrap();
    }
    for member in &mut bed.members {
        member.ready().await.unwrap();
    }
    assert_eq!(records(&bed.open("two").await).await, leading);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_for_want_of_room_is_not_there() {
    // etcd knows how large a file is when it has written it.
    let limits = ["--quota-backend-bytes=2000000", "--backend-batch-limit=12"];
    let Some(mut bed) = Bed::lazy(1, &limits).await else { return };
    let engine = bed.open("one").await;
    let large = "x".repeat(200_000);
    let mut refused = 0;
    for number in 0..60 {
        let writes = vec![put(&format!("t/{number:02}"), &large)];
        match engine.commit(batch(&[], writes)).await {
            Ok(Outcome::Committed(_)) => {}
            Err(EngineError::Full) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 20, "{refused}");
    let admin = Admin::new(&[bed.members[0].endpoint()], None).unwrap();
    let at = admin.status(&bed.members[0].endpoint()).await.unwrap().revision;
    let before = records(&engine).await;
    kill(&mut bed.members).await;
    let found = survived(&bed, 0);
    assert_eq!((found.revision.0, found.log.stopped.as_deref()), (at, None));
    assert_eq!(texts(&found), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_is_followed_up_to_the_damage() {
    let Some(mut bed) = Bed::lazy(1, &[]).await else { return };
    // One that ends in peace has all of it in its file.
    drop(bed.open("one").await);
    end(&mut bed.members[0]).await;
    bed.members[0].start().unwrap();
    bed.members[0].ready().await.unwrap();
    let engine = bed.open("one").await;
    let last = work(&engine).await;
    kill(&mut bed.members).await;
    let whole = survived(&bed, 0);
    assert_eq!((whole.revision, whole.log.stopped.as_deref()), (last, None));

    let log = bed.path().join("m1/member/wal");
    let segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "wal");
    let mut segments: Vec<PathBuf> = fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(segment);
    let [segment] = &segments[..] else { panic!("{segments:?}") };
    let sound = fs::read(segment).unwrap();
    let end = sound.iter().rposition(|byte| *byte != 0).unwrap();
    let mut damaged = sound.clone();
    damaged[end / 2] ^= 0x40;
    fs::write(segment, damaged).unwrap();
    let part = survived(&bed, 0);
    let why = part.log.stopped.clone().unwrap();
    assert!(why.contains("at byte"), "{why}");
    assert!(part.log.entries > 0 && part.log.entries < whole.log.entries, "{:?}", part.log);
    assert!(part.file_revision < part.revision && part.revision < last);

    fs::remove_dir_all(&log).unwrap();
    let file = survived(&bed, 0);
    assert!(file.log.entries == 0 && file.log.stopped.clone().unwrap().contains("wal"), "{:?}", file.log);
    assert_eq!((file.revision, file.file_revision), (whole.file_revision, whole.file_revision));
}
