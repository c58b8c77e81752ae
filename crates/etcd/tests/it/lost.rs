//! Answers that are lost, and questions that come late.

use std::sync::Arc;

use store::{Engine, engine::Outcome};

use crate::{
    bed::{Bed, all, batch, committed, put},
    proxy::{Cable, Proxy},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_lost_in_transit_is_found_out() {
    let Some(bed) = Bed::single().await else { return };
    let direct = bed.members[0].endpoint();
    let proxy = Proxy::start(&direct).await;
    let engine = bed.open_through("one", vec![proxy.endpoint(), direct]).await;
    let start = committed(&engine, batch(&[], vec![put("old", "1")])).await;

    // It happens, and nobody hears of it. Taken for a failure and tried again, its own check would fail.
    proxy.set(Cable::AnswersHeld);
    let revision = committed(&engine, batch(&[("new", None)], vec![put("new", "1")])).await;
    let (old, new) = (("old".to_owned(), start, "1".to_owned()), ("new".to_owned(), revision, "1".to_owned()));
    assert_eq!(all(&engine).await, [new.clone(), old.clone()]);

    // So does a refusal.
    proxy.set(Cable::Cut);
    let engine = {
        proxy.set(Cable::Whole);
        bed.open_through("two", vec![proxy.endpoint(), bed.members[0].endpoint()]).await
    };
    proxy.set(Cable::AnswersHeld);
    let refused = engine.commit(batch(&[("new", Some(start))], vec![put("new", "2")])).await.unwrap();
    assert!(matches!(refused, Outcome::Conflict(at) if at > revision), "{refused:?}");
    assert_eq!(all(&engine).await, [new, old]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_comes_late_changes_nothing() {
    let Some(bed) = Bed::single().await else { return };
    let direct = bed.members[0].endpoint();
    let proxy = Proxy::start(&direct).await;
    let engine = bed.open_through("one", vec![proxy.endpoint(), direct]).await;
    committed(&engine, batch(&[], vec![put("k", "0")])).await;
    // Held on its way, as in the queue of a frozen leader. It has no check of its own that would stop it.
    proxy.set(Cable::QuestionsLate);
    committed(&engine, batch(&[], vec![put("k", "1")])).await;
    let second = committed(&engine, batch(&[], vec![put("k", "2")])).await;
    let mut watch = engine.watch(second).await.unwrap();
    proxy.set(Cable::Whole);
    // Time for it to arrive: another client's commits come through the same cable after it.
    let other = bed.open_through("other", vec![proxy.endpoint()]).await;
    let last = committed(&other, batch(&[], vec![put("last", "1")])).await;
    let mut through = second;
    while through < last {
        let delivery = watch.next().await.unwrap();
        through = delivery.through;
        assert!(delivery.events.iter().all(|event| event.key == "last"), "{:?}", delivery.events);
    }
    assert_eq!(all(&engine).await[0], ("k".to_owned(), second, "2".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_waiting_leaves_a_question_that_the_next_one_finds_out() {
    let Some(bed) = Bed::single().await else { return };
    let direct = bed.members[0].endpoint();
    let proxy = Proxy::start(&direct).await;
    let engine = Arc::new(bed.open_through("one", vec![proxy.endpoint(), direct]).await);
    let start = committed(&engine, batch(&[], vec![put("k", "0")])).await;
    proxy.set(Cable::AnswersHeld);
    let given_up = base::task::spawn("given up", {
        let engine = engine.clone();
        async move { engine.commit(batch(&[], vec![put("k", "1")])).await.map(|_| ()) }
    });
    // It has been carried out as soon as somebody else sees it.
    let other = bed.open("other").await;
    let mut watch = other.watch(start).await.unwrap();
    while watch.next().await.unwrap().events.is_empty() {}
    given_up.abort();
    let _ = given_up.await;
    let seen = all(&other).await[0].1;
    let next = committed(&engine, batch(&[("k", Some(seen))], vec![put("k", "2")])).await;
    assert_eq!(all(&other).await, [("k".to_owned(), next, "2".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_later_under_a_name_has_it() {
    let Some(bed) = Bed::single().await else { return };
    let first = bed.open("one").await;
    committed(&first, batch(&[], vec![put("k", "1")])).await;
    let second = bed.open("one").await;
    for _ in 0..2 {
        let refused = first.commit(batch(&[], vec![put("k", "2")])).await.unwrap_err();
        assert!(
            base::errors::chain(&refused).contains("opened this store as `one`"),
            "{}",
            base::errors::chain(&refused)
        );
    }
    let revision = committed(&second, batch(&[], vec![put("k", "3")])).await;
    assert_eq!(all(&second).await, [("k".to_owned(), revision, "3".to_owned())]);
}
