//! Calls with a name: lost at every moment, sent again, sent at once, sent as something else.

use std::{sync::Arc, time::Duration};

use base::{clock::ManualClock, shutdown::Shutdown};
use control::{
    Control, Error, instances,
    instances::CreateInstance,
    repeats::{self, Begun, OpenCall},
    tables::REPEATS,
};
use model::{
    id::{AccountId, InstanceId},
    repeat::{ANSWER_MAX_BYTES, Answer, KEPT_MS, RepeatKey},
};
use store::{Store, memory::Memory};

use crate::{
    restart::again,
    world::{Choices, Kind, Machine, World, caller, start},
};

fn key(text: &str) -> RepeatKey {
    text.parse().expect("a key")
}

async fn begin(control: &Control, account: AccountId, name: &str, request: &str) -> Result<Begun, Error> {
    repeats::begin(control, account, key(name), repeats::hash(&[request.as_bytes()])).await
}

#[track_caller]
fn open(begun: Result<Begun, Error>) -> OpenCall {
    match begun.expect("it begins") {
        Begun::Open(open) => open,
        Begun::Answered(answer) => panic!("it was answered already: {answer}"),
    }
}

#[track_caller]
fn answer_of(begun: Result<Begun, Error>) -> String {
    match begun.expect("it begins") {
        Begun::Answered(answer) => answer,
        Begun::Open(_) => panic!("it was not answered before"),
    }
}

async fn make(call: &OpenCall, owner: AccountId, request: CreateInstance) -> InstanceId {
    instances::create(&call.control, &caller(), owner, request).await.expect("it is made").instance.id
}

fn unnamed(world: &World) -> CreateInstance {
    // A name would keep a second one away by itself.
    CreateInstance { alias: None, ..world.request("") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_between_commit_and_answer_it_is_made_once() {
    let mut world = World::with(Choices { engine: Kind::Sqlite, ..Choices::default() }).await;
    let call = open(begin(&world.control, world.owner, "one", "create").await);
    assert!(!call.repeated);
    let first = make(&call, world.owner, unnamed(&world)).await;
    // The process dies here: nothing was answered, and nothing in memory is left.
    drop(call);
    world = again(world).await;
    for _ in 0..2 {
        let call = open(begin(&world.control, world.owner, "one", "create").await);
        assert!(call.repeated && call.control.is_repeated());
        assert_eq!(make(&call, world.owner, unnamed(&world)).await, first);
        assert!(!call.control.is_repeated(), "its only commit is behind it");
    }
    let call = open(begin(&world.control, world.owner, "one", "create").await);
    assert_eq!(make(&call, world.owner, unnamed(&world)).await, first);
    assert_eq!(call.answered(Some("201".to_owned())).await.expect("it is noted"), Some("201".to_owned()));
    world = again(world).await;
    assert_eq!(answer_of(begin(&world.control, world.owner, "one", "create").await), "201");
    assert_eq!(world.held(), (1, 256, 1, 1, 1));
    // Another name is another call, and so is the same name of somebody else's.
    let call = open(begin(&world.control, world.owner, "two", "create").await);
    assert_ne!(make(&call, world.owner, unnamed(&world)).await, first);
    drop(open(begin(&world.control, AccountId::random(), "one", "create").await));
    assert_eq!(world.held(), (2, 512, 2, 2, 2));
}

#[tokio::test]
async fn a_name_stands_for_one_request_a_day_long() {
    let clock = Arc::new(ManualClock::new(1_000));
    let world = World::with(Choices { clock: clock.clone(), flows: false, ..Choices::default() }).await;
    // What is refused leaves nothing: the name is free for a better try.
    let call = open(begin(&world.control, world.owner, "one", "wrong").await);
    let wrong = CreateInstance { package: "nosuch".to_owned(), ..unnamed(&world) };
    instances::create(&call.control, &caller(), world.owner, wrong).await.expect_err("there is no such package");
    drop(call);
    let call = open(begin(&world.control, world.owner, "one", "right").await);
    let first = make(&call, world.owner, unnamed(&world)).await;
    call.answered(Some("made".to_owned())).await.expect("it is noted");
    for other in ["wrong", "", "right "] {
        let Err(Error::Invalid(fields)) = begin(&world.control, world.owner, "one", other).await else {
            panic!("\"{other}\" was taken for the same request");
        };
        assert_eq!(fields[0].field, "Idempotency-Key");
    }
    clock.advance(Duration::from_millis(KEPT_MS.unsigned_abs() - 1));
    assert_eq!(answer_of(begin(&world.control, world.owner, "one", "right").await), "made");
    clock.advance(Duration::from_millis(1));
    // Forgotten, whether or not the loop has been here. The machine is still there.
    Machine::new(&world).report(&world).await;
    let call = open(begin(&world.control, world.owner, "one", "wrong").await);
    assert!(!call.repeated);
    assert_ne!(make(&call, world.owner, unnamed(&world)).await, first);
    drop(call);
    assert_eq!(repeats::trim(&world.control).await.expect("a pass"), 0, "the newer record stands in its place");
    clock.advance(Duration::from_millis(KEPT_MS.unsigned_abs()));
    assert_eq!(repeats::trim(&world.control).await.expect("a pass"), 1);
    assert_eq!(world.control.snapshot().count(&REPEATS), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sent_many_times_at_once_it_is_made_once_and_answered_alike() {
    let world = World::new().await;
    let mut tasks = Vec::new();
    for number in 0..16 {
        let (control, owner, request) = (world.control.clone(), world.owner, unnamed(&world));
        tasks.push(base::task::spawn("call", async move {
            match begin(&control, owner, "one", "create").await.expect("it is admitted") {
                Begun::Answered(answer) => answer,
                Begun::Open(call) => {
                    let id = make(&call, owner, request).await;
                    call.answered(Some(format!("{number} {id}"))).await.expect("it is noted").expect("an answer")
                }
            }
        }));
    }
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.expect("it does not panic"));
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(world.held().0, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sent_to_two_headnodes_at_once_it_is_made_once_and_answered_alike() {
    let engine: Arc<dyn store::Engine> = Arc::new(Memory::new());
    let world = World::with(Choices { over: Some(engine.clone()), flows: false, ..Choices::default() }).await;
    let (_trigger, shutdown) = Shutdown::new();
    let store = Store::open(engine, control::schema()).await.expect("a second headnode opens the store");
    let other = start(store, world.control.clock.clone(), &world.dir, shutdown);
    for round in 0..20 {
        let run = async |control: &Control, who: &str| {
            let name = format!("round-{round}");
            match begin(control, world.owner, &name, "create").await.expect("it is admitted") {
                Begun::Answered(answer) => answer,
                Begun::Open(call) => {
                    let id = make(&call, world.owner, unnamed(&world)).await;
                    call.answered(Some(format!("{who} {id}"))).await.expect("it is noted").expect("an answer")
                }
            }
        };
        let (one, two) = tokio::join!(run(&world.control, "one"), run(&other, "two"));
        assert_eq!(one, two);
        assert_eq!(world.held().0, round + 1);
    }
}

#[tokio::test]
async fn one_that_is_under_way_is_waited_for_but_not_for_ever() {
    let clock = Arc::new(ManualClock::new(1_000));
    let world = World::with(Choices { clock: clock.clone(), flows: false, ..Choices::default() }).await;
    let call = open(begin(&world.control, world.owner, "one", "create").await);
    let waiting = begin(&world.control, world.owner, "one", "create");
    tokio::pin!(waiting);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    clock.advance(Duration::from_secs(60));
    assert!(matches!(waiting.await, Err(Error::InProgress)));
    // Another name does not wait.
    drop(open(begin(&world.control, world.owner, "two", "create").await));
    let waiting = begin(&world.control, world.owner, "one", "create");
    tokio::pin!(waiting);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    // The machine was heard of in that minute.
    Machine::new(&world).report(&world).await;
    make(&call, world.owner, unnamed(&world)).await;
    call.answered(Some("made".to_owned())).await.expect("it is noted");
    assert_eq!(answer_of(waiting.await), "made");
}

#[tokio::test]
async fn secrets_and_large_answers_are_found_anew() {
    let world = World::new().await;
    for (name, answer) in [("secret", None), ("large", Some("x".repeat(ANSWER_MAX_BYTES + 1)))] {
        let call = open(begin(&world.control, world.owner, name, "create").await);
        let id = make(&call, world.owner, unnamed(&world)).await;
        assert_eq!(call.answered(answer.clone()).await.expect("it is noted"), answer);
        let record = world.control.snapshot().get(&REPEATS, &format!("{}/{name}", world.owner)).expect("a record");
        assert_eq!(record.answer, Some(Answer::FoundAnew));
        let call = open(begin(&world.control, world.owner, name, "create").await);
        assert_eq!(make(&call, world.owner, unnamed(&world)).await, id);
    }
    assert_eq!(world.held().0, 2);
}
