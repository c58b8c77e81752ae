//! Things to work on, and flows that work on them.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base::clock::Clock;
use flow::{At, Engine, FLOWS, FlowId, FlowKind, FlowRecord, FlowState, Progress, Step, StepError, Wait, record_for};
use serde::{Deserialize, Serialize};
use store::{BoxFuture, EngineError, Revision, Schema, Store, Table, Transaction, engine, memory::Memory};

/// What an order is for: reserved, made by the outside, handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Thing {
    pub(crate) name: String,
    pub(crate) wanted: bool,
    pub(crate) there: bool,
    pub(crate) state: String,
}

pub(crate) static THINGS: Table<Thing> = Table {
    name: "things",
    version: 1,
    key: |thing| thing.name.clone(),
    indexes: &[],
    upgrade: |_, _| Err("never".to_owned()),
};

/// One record that every flow changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shelf {
    pub(crate) name: String,
    pub(crate) reserved: Vec<String>,
}

pub(crate) static SHELVES: Table<Shelf> = Table {
    name: "shelves",
    version: 1,
    key: |shelf| shelf.name.clone(),
    indexes: &[],
    upgrade: |_, _| Err("never".to_owned()),
};

pub(crate) fn schema() -> Schema {
    Schema::new().with(&THINGS).with(&SHELVES).with(&FLOWS)
}

#[derive(Clone, Default)]
pub(crate) struct Context {
    /// Step calls in order, as `flow subject/step`.
    pub(crate) calls: Arc<Mutex<Vec<String>>>,
    pub(crate) troubles: Arc<AtomicU64>,
}

impl Context {
    pub(crate) fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

/// Make a thing: look, reserve, ask for it and wait, hand over.
pub(crate) struct Make;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) thing: String,
    /// Tries of the first step that go wrong.
    pub(crate) troubles: u64,
}

impl FlowKind for Make {
    const NAME: &'static str = "make";
    type Input = Order;
    type Context = Context;

    fn steps() -> Vec<Step<Self>> {
        vec![
            Step::new("look", |at| Box::pin(look(at))),
            Step::new("reserve", |at| Box::pin(reserve(at))).undo(|at| Box::pin(unreserve(at))),
            Step::new("ask", |at| Box::pin(ask(at))).undo(|at| Box::pin(unask(at))),
            Step::new("await", |at| Box::pin(await_thing(at))),
            Step::new("hand_over", |at| Box::pin(hand_over(at))).undo(|at| Box::pin(take_back(at))),
        ]
    }
}

async fn look(at: At<'_, Make>) -> Result<Progress, StepError> {
    at.context.note(format!("{}/look", at.flow.subject));
    if u64::from(at.attempt) < at.input.troubles {
        at.context.troubles.fetch_add(1, Ordering::SeqCst);
        return Err(StepError::Retry("the light is off".to_owned()));
    }
    at.notes.set("looked_at", at.now);
    Ok(Progress::Done)
}

fn shelf_with(change: impl Fn(&mut Vec<String>) + Send + 'static) -> Progress {
    Progress::decide(move |newest| {
        let entry = newest.get(&SHELVES, "shelf").ok_or_else(|| StepError::Fail("there is no shelf".to_owned()))?;
        let mut shelf = entry.value.clone();
        change(&mut shelf.reserved);
        Ok(Transaction::new().replace(&SHELVES, &entry, shelf))
    })
}

async fn reserve(at: At<'_, Make>) -> Result<Progress, StepError> {
    at.context.note(format!("{}/reserve", at.flow.subject));
    assert!(at.notes.get::<i64>("looked_at").is_some(), "notes of earlier steps are there, also after a restart");
    let thing = at.input.thing.clone();
    Ok(shelf_with(move |reserved| {
        if !reserved.contains(&thing) {
            reserved.push(thing.clone());
        }
    }))
}

async fn unreserve(at: At<'_, Make>) -> Result<Progress, StepError> {
    at.context.note(format!("{}/unreserve", at.flow.subject));
    let thing = at.input.thing.clone();
    Ok(shelf_with(move |reserved| reserved.retain(|name| *name != thing)))
}

fn thing_with(name: &str, change: impl Fn(&mut Thing) + Send + 'static) -> Progress {
    let name = name.to_owned();
    Progress::decide(move |newest| {
        let entry = newest.get(&THINGS, &name).ok_or_else(|| StepError::Fail("the thing has vanished".to_owned()))?;
        let mut thing = entry.value.clone();
        change(&mut thing);
        Ok(Transaction::new().replace(&THINGS, &entry, thing))
    })
}

async fn ask(at: At<'_, Make>) -> Result<Progress, StepError> {
    at.context.note(format!("{}/ask", at.flow.subject));
    Ok(thing_with(&at.input.thing, |thing| thing.wanted = true))
}

async fn unask(at: At<'_, Make>) -> Result<Progress, StepError> {
    at.context.note(format!("{}/unask", at.flow.subject));
    let thing = at
        .snapshot
        .get(&THINGS, &at.input.thing)
        .ok_or_else(|| StepError::Fail("the thing has vanished".to_owned()))?;
    if thing.wanted {
        // Not the end of this undo: say what is wanted first, then wait for it below.
        let mut unwanted = thing.value.clone();
        unwanted.wanted = false;
        if thing.there {
            return Ok(Progress::Commit(Transaction::new().replace(&THINGS, &thing, unwanted)));
        }
        return Ok(thing_with(&at.input.thing, |thing| thing.wanted = false));
    }
    Ok(Progress::Done)
}

async fn await_thing(at: At<'_, Make>) -> Result<Progress, StepError> {
    at.context.note(format!("{}/await", at.flow.subject));
    match at.snapshot.get(&THINGS, &at.input.thing) {
        Some(thing) if thing.there => Ok(Progress::Done),
        Some(_) => {
            Ok(Wait::within(Duration::from_secs(600), "the thing to be made").on(&THINGS, &at.input.thing).into())
        }
        None => Err(StepError::Fail("the thing has vanished".to_owned())),
    }
}

async fn hand_over(at: At<'_, Make>) -> Result<Progress, StepError> {
    at.context.note(format!("{}/hand_over", at.flow.subject));
    Ok(thing_with(&at.input.thing, |thing| thing.state = "done".to_owned()))
}

async fn take_back(at: At<'_, Make>) -> Result<Progress, StepError> {
    at.context.note(format!("{}/take_back", at.flow.subject));
    let why = at.flow.error.clone().unwrap_or_default();
    Ok(thing_with(&at.input.thing, move |thing| thing.state = format!("failed: {why}")))
}

/// Puts a thing and the flow that makes it into one commit.
pub(crate) async fn order(store: &Store, clock: &dyn Clock, thing: &str, troubles: u64) -> FlowId {
    let id = FlowId::new(clock.now_ms());
    let input = Order { thing: thing.to_owned(), troubles };
    let flow = record_for::<Make>(id, thing, &input, clock.now_ms());
    let record = Thing { name: thing.to_owned(), wanted: false, there: false, state: "new".to_owned() };
    store.commit(Transaction::new().create(&THINGS, record).create(&FLOWS, flow)).await.unwrap();
    id
}

pub(crate) async fn shelf(store: &Store) {
    let shelf = Shelf { name: "shelf".to_owned(), reserved: Vec::new() };
    store.commit(Transaction::new().create(&SHELVES, shelf)).await.unwrap();
}

/// The outside: makes what is wanted, removes what is not.
pub(crate) async fn outside(store: Store) {
    let mut changes = store.changes();
    let mut snapshot = store.snapshot();
    loop {
        for thing in snapshot.scan(&THINGS).filter(|thing| thing.wanted != thing.there) {
            let made = Thing { there: thing.wanted, ..thing.value.clone() };
            // A conflict is a change, which brings us here again.
            let _ = store.commit(Transaction::new().replace(&THINGS, &thing, made)).await;
        }
        snapshot = changes.next().await.snapshot.clone();
    }
}

pub(crate) async fn until(store: &Store, id: FlowId, wanted: impl Fn(&FlowRecord) -> bool) -> FlowRecord {
    let mut changes = store.changes();
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            match store.snapshot().get(&FLOWS, &id.to_string()) {
                Some(flow) if wanted(&flow) => return flow.value.clone(),
                _ => changes.next().await,
            };
        }
    });
    match waited.await {
        Ok(flow) => flow,
        Err(_) => panic!("not in time: {:#?}", store.snapshot().get(&FLOWS, &id.to_string())),
    }
}

pub(crate) fn ended(flow: &FlowRecord) -> bool {
    matches!(flow.state, FlowState::Succeeded | FlowState::Failed | FlowState::Parked)
}

/// A memory engine that counts commits.
pub(crate) struct Counting {
    inner: Memory,
    pub(crate) commits: AtomicU64,
}

impl Counting {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { inner: Memory::new(), commits: AtomicU64::new(0) })
    }
}

impl store::Engine for Counting {
    fn limits(&self) -> engine::Limits {
        self.inner.limits()
    }
    fn load<'a>(&'a self, after: &'a str, limit: usize) -> BoxFuture<'a, Result<engine::Page, EngineError>> {
        self.inner.load(after, limit)
    }
    fn commit(&self, batch: engine::Batch) -> BoxFuture<'_, Result<engine::Outcome, EngineError>> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        self.inner.commit(batch)
    }
    fn newest(&self) -> Option<BoxFuture<'_, Result<Revision, EngineError>>> {
        self.inner.newest()
    }
    fn watch(&self, after: Revision) -> BoxFuture<'_, Result<Box<dyn engine::Watch>, EngineError>> {
        self.inner.watch(after)
    }
}

pub(crate) fn engine(store: &Store, clock: Arc<dyn Clock>, context: &Context) -> Engine<Context> {
    Engine::new(store.clone(), clock, context.clone()).register::<Make>()
}
