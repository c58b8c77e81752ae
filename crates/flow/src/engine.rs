//! Who runs the flows: one dispatcher that reads the store's feed, and one task per open flow.
//!
//! The dispatcher owns the order: which flows there are, whose turn it is within a subject, how many have a task. It picks up every open
//! flow at start, and each new one the moment its commit is visible. Only a limited number of steps *run* at once; waiting takes no
//! place. Two engines over one store are safe (every journal commit checks the journal's revision) but wasteful; each is given a
//! share of the flows ([`crate::share`]).

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use base::{
    channel::{Receiver, Sender, bounded},
    clock::Clock,
    shutdown::Shutdown,
    watch,
};
use store::{Change, Snapshot, Store};
use tokio::sync::Semaphore;

use crate::{
    kind::{AnyKind, Kind},
    ready::{Begun, Ready},
    record::{FLOWS, FlowId, FlowRecord, OPEN},
    runner::Runner,
    share::{Share, Shares},
    step::FlowKind,
    testing::Fault,
    waits::Waits,
};

/// Flows that have a task; the rest stay in the store until one ends. A task that waits takes about two KiB.
pub const FLOWS_MAX: usize = 10_000;
/// Steps whose bodies run at once.
pub const STEPS_MAX: usize = 64;

/// Runs flows whose kinds share the context `C`.
pub struct Engine<C> {
    shared: Arc<Shared<C>>,
}

pub(crate) struct Shared<C> {
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) context: C,
    pub(crate) kinds: BTreeMap<&'static str, Box<dyn AnyKind<C>>>,
    pub(crate) waits: Arc<Waits>,
    pub(crate) steps: Semaphore,
    pub(crate) shares: Shares,
    pub(crate) fault: Option<Arc<Fault>>,
}

impl<C: Send + Sync + 'static> Engine<C> {
    /// An engine that knows no kind yet.
    pub fn new(store: Store, clock: Arc<dyn Clock>, context: C) -> Self {
        let shared = Shared {
            store,
            clock,
            context,
            kinds: BTreeMap::new(),
            waits: Arc::default(),
            steps: Semaphore::new(STEPS_MAX),
            shares: Shares::all(),
            fault: None,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Know a kind.
    ///
    /// # Panics
    /// If a kind of that name is known already.
    #[must_use]
    pub fn register<K: FlowKind<Context = C>>(mut self) -> Self {
        let kind: Box<dyn AnyKind<C>> = Box::new(Kind::<K>::new());
        let known = self.shared_mut().kinds.insert(K::NAME, kind);
        assert!(known.is_none(), "two kinds of flow are named `{}`", K::NAME);
        self
    }

    /// Run only what is in the newest share: others run the rest.
    #[must_use]
    pub fn sharing(mut self, shares: watch::Receiver<Arc<dyn Share>>) -> Self {
        self.shared_mut().shares = Shares::follow(shares);
        self
    }

    /// Names of the kinds it knows, each with its steps.
    pub fn kinds(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        self.shared.kinds.iter().map(|(name, kind)| (*name, kind.steps())).collect()
    }

    /// Let a test do something to it.
    #[must_use]
    pub(crate) fn with_fault(mut self, fault: Arc<Fault>) -> Self {
        self.shared_mut().fault = Some(fault);
        self
    }

    /// Run flows until shutdown; returns when every task has stopped. Flows that were not finished go on at the next start.
    pub async fn run(self, shutdown: Shutdown) {
        // The feed first, then the scan: whatever is made in between is in one of the two.
        let mut changes = self.shared.store.changes();
        let mut shares = self.shared.shares.watch();
        let (ended, mut ends) = bounded("flow-ends", FLOWS_MAX);
        let mut dispatcher = Dispatcher {
            shared: self.shared,
            shutdown: shutdown.clone(),
            known: HashSet::new(),
            lines: HashMap::new(),
            ready: Ready::default(),
            ended,
        };
        dispatcher.pick_up_all(&dispatcher.shared.store.snapshot());
        loop {
            dispatcher.start_ready();
            tokio::select! {
                biased;
                () = shutdown.wait() => break,
                Some(end) = ends.recv() => dispatcher.end(&end),
                () = shares.changed() => dispatcher.share(),
                change = changes.next() => dispatcher.see(&change),
            }
        }
        dispatcher.drain(&mut ends).await;
    }

    fn shared_mut(&mut self) -> &mut Shared<C> {
        Arc::get_mut(&mut self.shared).expect("an engine that does not run yet has one owner")
    }
}

struct Dispatcher<C> {
    shared: Arc<Shared<C>>,
    shutdown: Shutdown,
    /// Flows that run, are ready, or stand in a line.
    known: HashSet<FlowId>,
    /// Per subject: the flow whose turn it is, and those behind it, each with its group.
    lines: HashMap<String, VecDeque<(FlowId, String)>>,
    /// Whose turn it is within its subject, but without a task yet; and how many have one.
    ready: Ready,
    ended: Sender<Ended>,
}

impl<C: Send + Sync + 'static> Dispatcher<C> {
    fn pick_up_all(&mut self, snapshot: &Snapshot) {
        for flow in snapshot.find(&FLOWS, OPEN, OPEN) {
            self.pick_up(&flow);
        }
    }

    fn pick_up(&mut self, flow: &FlowRecord) {
        if !flow.state.is_open() || !self.shared.shares.has(flow) || !self.known.insert(flow.id) {
            return;
        }
        if flow.subject.is_empty() {
            self.ready.push(&flow.group, flow.id, String::new());
            return;
        }
        let line = self.lines.entry(flow.subject.clone()).or_default();
        line.push_back((flow.id, flow.group.clone()));
        if line.len() == 1 {
            self.ready.push(&flow.group, flow.id, flow.subject.clone());
        }
    }

    /// Lets go of what is not its own any more, as far as it has not begun, and picks up what is now. Flows that run let go of themselves.
    fn share(&mut self) {
        for (subject, line) in &mut self.lines {
            if !self.shared.shares.has_subject(subject) {
                // The first one runs or is about to; its end removes it.
                for (id, _) in line.drain(1..) {
                    self.known.remove(&id);
                }
            }
        }
        self.pick_up_all(&self.shared.store.snapshot());
    }

    fn see(&mut self, change: &Change) {
        self.shared.waits.wake(change);
        if change.lagged {
            self.pick_up_all(&change.snapshot);
            return;
        }
        // In the order of ids: one commit, or several delivered together, may make two flows of one subject.
        let mut made: Vec<&str> =
            change.keys.iter().filter(|(table, _)| *table == FLOWS.name).map(|(_, key)| key.as_ref()).collect();
        made.sort_unstable();
        for key in made {
            if let Some(flow) = change.snapshot.get(&FLOWS, key) {
                self.pick_up(&flow);
            }
        }
    }

    fn start_ready(&mut self) {
        while let Some(Begun { id, subject, group }) = self.ready.begin() {
            let runner = Runner { shared: self.shared.clone(), id, shutdown: self.shutdown.clone() };
            let ended = self.ended.clone();
            base::task::spawn("flow", async move {
                // Also when the runner panics: the line must move on.
                let _end = EndGuard { ended, id, subject, group };
                runner.run().await;
            });
        }
    }

    fn end(&mut self, end: &Ended) {
        let (id, subject) = (end.id, end.subject.as_str());
        self.ready.ended(&end.group);
        // Let loose again (unparked, or given back to us) between its last look and now: the feed told us while it was still known. One that
        // panicked stays known, so that it is not tried again and again; the next start of the program tries it once.
        let snapshot = self.shared.store.snapshot();
        let open =
            snapshot.get(&FLOWS, &id.to_string()).filter(|flow| flow.state.is_open() && self.shared.shares.has(flow));
        let again = open.filter(|_| !end.panicked && !self.shutdown.is_set());
        if !end.panicked && again.is_none() {
            self.known.remove(&id);
        }
        if subject.is_empty() {
            if let Some(flow) = again {
                self.ready.push(&flow.group, id, String::new());
            }
            return;
        }
        let line = self.lines.entry(subject.to_owned()).or_default();
        line.pop_front();
        if let Some(flow) = again {
            // In the order in which they were made, as everybody else would pick them up.
            let place = line.partition_point(|(other, _)| *other < id);
            line.insert(place, (id, flow.group.clone()));
        }
        match line.front() {
            Some((next, group)) => self.ready.push(group, *next, subject.to_owned()),
            None => {
                self.lines.remove(subject);
            }
        }
    }

    async fn drain(mut self, ends: &mut Receiver<Ended>) {
        while self.ready.running() > 0 {
            let Some(end) = ends.recv().await else { return };
            self.ready.ended(&end.group);
        }
    }
}

/// A flow's task is over.
struct Ended {
    id: FlowId,
    subject: String,
    group: String,
    panicked: bool,
}

struct EndGuard {
    ended: Sender<Ended>,
    id: FlowId,
    subject: String,
    group: String,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        let (subject, group) = (std::mem::take(&mut self.subject), std::mem::take(&mut self.group));
        // The queue has room for every flow that runs; closed means the dispatcher is gone.
        let _ = self.ended.try_send(Ended { id: self.id, subject, group, panicked: std::thread::panicking() });
    }
}
