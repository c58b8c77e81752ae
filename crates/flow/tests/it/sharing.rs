//! Several engines over one store, each with a share of the flows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use base::{clock::SystemClock, shutdown::Shutdown, watch};
use flow::{FlowId, FlowState, Share};
use store::{Store, memory::Memory};

use crate::world::{Context, SHELVES, THINGS, ended, engine, order, outside, schema, shelf, until};

/// These subjects, all others, or none.
#[derive(Clone)]
enum Part {
    Only(BTreeSet<String>),
    AllBut(BTreeSet<String>),
    Nothing,
}

impl Share for Part {
    fn is_mine(&self, what: &str) -> bool {
        match self {
            Self::Only(these) => these.contains(what),
            Self::AllBut(these) => !these.contains(what),
            Self::Nothing => false,
        }
    }
}

/// An engine with the calls of its steps. Ends with its trigger.
struct Worker {
    calls: Context,
    share: watch::Sender<Arc<dyn Share>>,
    _trigger: base::shutdown::Trigger,
}

impl Worker {
    fn start(store: &Store, part: Part) -> Self {
        let share: watch::Sender<Arc<dyn Share>> = watch::Sender::new(Arc::new(part));
        let (trigger, shutdown) = Shutdown::new();
        let calls = Context::default();
        let engine = engine(store, Arc::new(SystemClock), &calls).sharing(share.subscribe());
        base::task::spawn("engine", engine.run(shutdown));
        Self { calls, share, _trigger: trigger }
    }

    fn give(&self, part: Part) {
        self.share.send_replace(Arc::new(part));
    }

    async fn until_called(&self, call: &str) {
        let called = async {
            while !self.calls.calls().iter().any(|made| made == call) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), called).await.expect("the step is called");
    }
}

fn these(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

async fn open(engine: &Arc<Memory>) -> Store {
    Store::open(engine.clone(), schema()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_runs_its_own() {
    let memory = Arc::new(Memory::new());
    let (one, other) = (open(&memory).await, open(&memory).await);
    shelf(&one).await;
    let first = Worker::start(&one, Part::Only(these(&["lamp"])));
    let second = Worker::start(&other, Part::AllBut(these(&["lamp"])));
    base::task::spawn("outside", outside(open(&memory).await));
    let lamp = order(&one, &SystemClock, "lamp", 0).await;
    let chair = order(&one, &SystemClock, "chair", 0).await;
    assert_eq!(until(&one, lamp, ended).await.state, FlowState::Succeeded);
    assert_eq!(until(&one, chair, ended).await.state, FlowState::Succeeded);
    assert!(first.calls.calls().iter().all(|call| call.starts_with("lamp/")), "{:?}", first.calls.calls());
    assert!(second.calls.calls().iter().all(|call| call.starts_with("chair/")), "{:?}", second.calls.calls());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_that_waits_is_handed_over_and_not_begun_anew() {
    let memory = Arc::new(Memory::new());
    let (one, other) = (open(&memory).await, open(&memory).await);
    shelf(&one).await;
    let first = Worker::start(&one, Part::AllBut(these(&[])));
    let second = Worker::start(&other, Part::Nothing);
    let lamp = order(&one, &SystemClock, "lamp", 0).await;
    first.until_called("lamp/await").await;
    first.give(Part::Nothing);
    second.give(Part::AllBut(these(&[])));
    second.until_called("lamp/await").await;
    let before = first.calls.calls().len();
    // The third one is the outside.
    base::task::spawn("outside", outside(open(&memory).await));
    assert_eq!(until(&one, lamp, ended).await.state, FlowState::Succeeded);
    assert_eq!(second.calls.calls(), ["lamp/await", "lamp/await", "lamp/hand_over"], "only what was left to do");
    assert_eq!(first.calls.calls().len(), before, "the first has let go");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_keeps_its_order_when_it_changes_hands_and_back() {
    let memory = Arc::new(Memory::new());
    let (one, other) = (open(&memory).await, open(&memory).await);
    shelf(&one).await;
    let first = Worker::start(&one, Part::AllBut(these(&[])));
    let second = Worker::start(&other, Part::Nothing);
    let mut ids: Vec<FlowId> = vec![order(&one, &SystemClock, "lamp", 0).await];
    for _ in 0..4 {
        // More of the same subject wait behind the first.
        let id = FlowId::new(base::clock::Clock::now_ms(&SystemClock));
        let input = crate::world::Order { thing: "lamp".to_owned(), troubles: 0 };
        let flow = flow::record_for::<crate::world::Make>(id, "lamp", &input, 0);
        // The first flow changes the lamp meanwhile, so the commit is tried until it comes first.
        loop {
            let lamp = one.snapshot().get(&THINGS, "lamp").unwrap();
            let wanted = store::Transaction::new().require(&THINGS, &lamp).create(&flow::FLOWS, flow.clone());
            match one.commit(wanted).await {
                Err(store::CommitError::Conflict { .. }) => {}
                end => {
                    end.unwrap();
                    break;
                }
            }
        }
        ids.push(id);
    }
    first.until_called("lamp/await").await;
    for _ in 0..3 {
        first.give(Part::Nothing);
        second.give(Part::AllBut(these(&[])));
        tokio::task::yield_now().await;
        second.give(Part::Nothing);
        first.give(Part::AllBut(these(&[])));
    }
    base::task::spawn("outside", outside(open(&memory).await));
    let mut ends = Vec::new();
    for id in &ids {
        let flow = until(&one, *id, ended).await;
        assert_eq!(flow.state, FlowState::Succeeded);
        let begun = flow.steps.iter().filter_map(|step| step.started_at).min().unwrap();
        ends.push((begun, flow.ended_at.unwrap()));
    }
    assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0), "one after the other: {ends:?}");
    drop((first, second));
}

/// Shares change all the time and engines die; in the end every flow has ended and everything was done once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_flow_is_run_by_none_in_the_end() {
    const THINGS_MADE: usize = 60;
    let memory = Arc::new(Memory::new());
    let store = open(&memory).await;
    shelf(&store).await;
    let mut ids = Vec::new();
    let workers: Vec<Worker> = vec![
        Worker::start(&open(&memory).await, Part::Nothing),
        Worker::start(&open(&memory).await, Part::Nothing),
        Worker::start(&open(&memory).await, Part::Nothing),
    ];
    base::task::spawn("outside", outside(open(&memory).await));
    let names: Vec<String> = (0..THINGS_MADE).map(|number| format!("thing-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        ids.push(order(&store, &SystemClock, name, 0).await);
        // Every worker sees the change at another moment; between two of them a flow may be everybody's or nobody's.
        for (place, worker) in workers.iter().enumerate() {
            let own = names.iter().enumerate().filter(|(index, _)| (index + number) % 3 == place);
            worker.give(Part::Only(own.map(|(_, name)| name.clone()).collect()));
            tokio::task::yield_now().await;
        }
    }
    // One dies; the others share what was its.
    let mut workers = workers;
    drop(workers.pop());
    let half: BTreeSet<String> = names.iter().step_by(2).cloned().collect();
    workers[0].give(Part::Only(half.clone()));
    workers[1].give(Part::AllBut(half));
    for id in ids {
        assert_eq!(until(&store, id, ended).await.state, FlowState::Succeeded);
    }
    let snapshot = store.snapshot();
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for name in &snapshot.get(&SHELVES, "shelf").unwrap().reserved {
        *times.entry(name.clone()).or_default() += 1;
    }
    assert!(times.len() == THINGS_MADE && times.values().all(|count| *count == 1), "{times:?}");
    assert!(snapshot.scan(&THINGS).all(|thing| thing.state == "done"));
}
