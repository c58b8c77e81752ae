//! The engine: how much it commits, in which order, how it waits, retries, undoes and parks.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use base::{
    clock::{Clock, ManualClock, SystemClock},
    shutdown::{Shutdown, Trigger},
};
use flow::{Engine, FLOWS, FlowId, FlowState, StepState, record_for};
use store::{Store, Transaction, memory::Memory};

use crate::world::{
    Context, Counting, Make, Order, SHELVES, THINGS, Thing, ended, engine, order, outside, schema, shelf, until,
};

struct Bench {
    store: Store,
    clock: Arc<ManualClock>,
    context: Context,
    commits: Arc<Counting>,
    _triggers: Vec<Trigger>,
}

impl Bench {
    async fn new() -> Self {
        let commits = Counting::new();
        let store = Store::open(commits.clone(), schema()).await.unwrap();
        shelf(&store).await;
        let clock = Arc::new(ManualClock::new(1_000_000));
        Self { store, clock, context: Context::default(), commits, _triggers: Vec::new() }
    }

    fn start(&mut self) {
        let (trigger, shutdown) = Shutdown::new();
        base::task::spawn("engine", engine(&self.store, self.clock.clone(), &self.context).run(shutdown));
        self._triggers.push(trigger);
    }

    fn start_outside(&mut self) {
        let (trigger, shutdown) = Shutdown::new();
        let store = self.store.clone();
        base::task::spawn("outside", async move { shutdown.unless(outside(store)).await });
        self._triggers.push(trigger);
    }

    async fn make(&self, thing: &str) {
        let entry = self.store.snapshot().get(&THINGS, thing).unwrap();
        let there = Thing { there: true, ..entry.value.clone() };
        self.store.commit(Transaction::new().replace(&THINGS, &entry, there)).await.unwrap();
    }

    async fn until_called(&self, call: &str) {
        let called = async {
            while !self.context.calls().iter().any(|made| made == call) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), called).await.expect("the step is called");
    }
}

#[tokio::test]
async fn steps_that_only_look_cost_nothing() {
    let mut bench = Bench::new().await;
    let before = bench.commits.commits.load(Ordering::SeqCst);
    let id = order(&bench.store, bench.clock.as_ref(), "lamp", 0).await;
    bench.start();
    bench.until_called("lamp/await").await;
    bench.make("lamp").await;
    let flow = until(&bench.store, id, ended).await;
    assert_eq!(flow.state, FlowState::Succeeded);
    assert!(
        flow.steps.iter().all(|step| step.state == StepState::Done && step.error.is_none() && step.ended_at.is_some())
    );
    // The order, reserve, ask, the outside's own, hand over with the end of the flow. Looking and waiting: none.
    assert_eq!(bench.commits.commits.load(Ordering::SeqCst) - before, 5);
    assert_eq!(bench.store.snapshot().get(&SHELVES, "shelf").unwrap().reserved, ["lamp"]);
}

#[tokio::test]
async fn a_waiting_flow_sleeps_until_its_record_changes() {
    let mut bench = Bench::new().await;
    let id = order(&bench.store, bench.clock.as_ref(), "lamp", 0).await;
    bench.start();
    bench.until_called("lamp/await").await;
    let calls = bench.context.calls().len();
    // Others' records change a lot.
    for number in 0..50 {
        let thing = Thing { name: format!("other-{number}"), wanted: false, there: false, state: String::new() };
        bench.store.commit(Transaction::new().create(&THINGS, thing)).await.unwrap();
    }
    assert_eq!(bench.context.calls().len(), calls, "nothing of its own has changed");
    // A long wait is written into the journal, with what it waits for, for an operator to see.
    bench.clock.advance(Duration::from_secs(2));
    let waiting = until(&bench.store, id, |flow| flow.steps[3].error.is_some()).await;
    assert_eq!(waiting.steps[3].error.as_deref(), Some("the thing to be made"));
    bench.make("lamp").await;
    assert_eq!(until(&bench.store, id, ended).await.state, FlowState::Succeeded);
}

#[tokio::test]
async fn a_deadline_that_passes_undoes_the_flow_and_says_why() {
    let mut bench = Bench::new().await;
    let id = order(&bench.store, bench.clock.as_ref(), "lamp", 0).await;
    bench.start();
    bench.until_called("lamp/await").await;
    bench.clock.advance(Duration::from_secs(601));
    let flow = until(&bench.store, id, ended).await;
    assert_eq!(flow.state, FlowState::Failed);
    assert_eq!(flow.error.as_deref(), Some("await: waited 600 s for the thing to be made"));
    assert!(bench.store.snapshot().get(&SHELVES, "shelf").unwrap().reserved.is_empty());
    assert!(!bench.store.snapshot().get(&THINGS, "lamp").unwrap().wanted);
    let calls = bench.context.calls();
    let undone: Vec<_> = calls.iter().filter(|call| call.contains("/un") || call.contains("back")).collect();
    assert_eq!(undone, ["lamp/unask", "lamp/unreserve"], "in reverse, and only what had begun");
    assert_eq!(flow.steps[4].state, StepState::Pending);
}

#[tokio::test]
async fn a_cancelled_flow_is_undone_even_while_it_waits() {
    let mut bench = Bench::new().await;
    let id = order(&bench.store, bench.clock.as_ref(), "lamp", 0).await;
    bench.start();
    bench.until_called("lamp/await").await;
    let cancelled = bench.store.update(|newest| {
        let entry = newest.get(&FLOWS, &id.to_string()).unwrap();
        let record = entry.cancelled("not wanted any more", 5);
        Ok::<_, store::CommitError>((Transaction::new().replace(&FLOWS, &entry, record), ()))
    });
    cancelled.await.unwrap();
    let flow = until(&bench.store, id, ended).await;
    assert_eq!((flow.state, flow.error.as_deref()), (FlowState::Failed, Some("await: not wanted any more")));
    assert!(bench.store.snapshot().get(&SHELVES, "shelf").unwrap().reserved.is_empty());
}

#[tokio::test]
async fn a_step_is_tried_again_with_growing_waits_and_then_fails() {
    let mut bench = Bench::new().await;
    bench.start_outside();
    let lucky = order(&bench.store, bench.clock.as_ref(), "lamp", 3).await;
    let unlucky = order(&bench.store, bench.clock.as_ref(), "vase", 1000).await;
    bench.start();
    let turning = async {
        let mut turns = 0_u32;
        loop {
            let snapshot = bench.store.snapshot();
            let both = [lucky, unlucky]
                .iter()
                .all(|id| snapshot.get(&FLOWS, &id.to_string()).is_some_and(|flow| ended(&flow)));
            if both {
                return turns;
            }
            bench.clock.advance(Duration::from_secs(1));
            turns += 1;
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
    };
    let turns = tokio::time::timeout(Duration::from_secs(20), turning).await.expect("both flows end");
    assert_eq!(until(&bench.store, lucky, ended).await.state, FlowState::Succeeded);
    let failed = until(&bench.store, unlucky, ended).await;
    assert_eq!((failed.state, failed.error.as_deref()), (FlowState::Failed, Some("look: the light is off")));
    assert_eq!(bench.context.troubles.load(Ordering::SeqCst), 3 + 10);
    assert!(turns > 20, "ten tries took only {turns} s");
}

#[tokio::test]
async fn flows_of_one_subject_run_one_after_the_other_in_order() {
    let mut bench = Bench::new().await;
    order(&bench.store, bench.clock.as_ref(), "lamp", 0).await;
    let mut ids = Vec::new();
    for round in 0..5 {
        let id = FlowId::new(bench.clock.now_ms());
        let input = Order { thing: "lamp".to_owned(), troubles: 0 };
        let mut flow = record_for::<Make>(id, "lamp", &input, bench.clock.now_ms());
        flow.subject = "lamp".to_owned();
        bench.store.commit(Transaction::new().create(&FLOWS, flow)).await.unwrap();
        ids.push(id);
        if round == 2 {
            bench.start();
            bench.start_outside();
        }
    }
    let mut last_end = 0;
    let mut revision = store::Revision(0);
    for id in ids {
        let flow = until(&bench.store, id, ended).await;
        assert_eq!(flow.state, FlowState::Succeeded);
        let entry = bench.store.snapshot().get(&FLOWS, &id.to_string()).unwrap();
        assert!(entry.revision() > revision, "ended before the one in front of it");
        revision = entry.revision();
        last_end = last_end.max(flow.ended_at.unwrap());
    }
    // Never interleaved: six times the whole list.
    let names = ["look", "reserve", "ask", "await", "hand_over"].map(|step| format!("lamp/{step}"));
    let mut calls = bench.context.calls();
    calls.dedup();
    assert_eq!(calls.len(), 30, "{calls:?}");
    assert!(calls.chunks(5).all(|round| round == names));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_flows_on_one_shared_record_all_end() {
    let mut bench = Bench::new().await;
    bench.start_outside();
    bench.start();
    let mut ids = Vec::new();
    for number in 0..300 {
        ids.push(order(&bench.store, bench.clock.as_ref(), &format!("thing-{number}"), 0).await);
    }
    for id in ids {
        assert_eq!(until(&bench.store, id, ended).await.state, FlowState::Succeeded);
    }
    assert_eq!(bench.store.snapshot().get(&SHELVES, "shelf").unwrap().reserved.len(), 300);
}

#[tokio::test]
async fn what_a_program_does_not_know_is_parked_and_can_go_on_later() {
    let store = Store::open(Arc::new(Memory::new()), schema()).await.unwrap();
    shelf(&store).await;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let id = order(&store, clock.as_ref(), "lamp", 0).await;
    let (_trigger, shutdown) = Shutdown::new();
    base::task::spawn("engine", Engine::new(store.clone(), clock.clone(), Context::default()).run(shutdown));
    let parked = until(&store, id, ended).await;
    assert_eq!(parked.state, FlowState::Parked);
    assert_eq!(parked.error.as_deref(), Some("this program knows no flows of kind `make`"));

    // A program that knows it, and an operator who lets it go on.
    let (_trigger2, shutdown) = Shutdown::new();
    base::task::spawn("engine", engine(&store, clock, &Context::default()).run(shutdown.clone()));
    let maker = store.clone();
    base::task::spawn("outside", async move { shutdown.unless(outside(maker)).await });
    drop(_trigger);
    let entry = store.snapshot().get(&FLOWS, &id.to_string()).unwrap();
    let record = entry.unparked();
    store.commit(Transaction::new().replace(&FLOWS, &entry, record)).await.unwrap();
    let flow = until(&store, id, |flow| flow.state == FlowState::Succeeded || flow.state == FlowState::Failed).await;
    assert_eq!((flow.state, flow.error), (FlowState::Succeeded, None));
}
