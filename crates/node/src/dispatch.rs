//! The dispatcher: it owns what is known of every instance and gives it to a worker when there is something to do.
//!
//! ```text
//!  target changed ─┐
//!  zone event ─────┼─► slot of the instance ─► idle?  spawn a worker with what is held
//!  audit ──────────┘                           busy?  mark "again", wake it
//!  worker done ─────► take back what is held; again? spawn
//! ```
//! An audit lists the machine from time to time and compares: whatever somebody removed by hand, or an event that got lost,
//! is noticed then. A patrol, more often, looks only at bridges and NICs of what runs.
//! An audit also finds leftovers; [`model::diff::leftover`] says what may be done with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use base::watch;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use host::zone::ZoneEvent;
use model::{
    diff::{self, Leftover, Observed},
    id::{ImageId, InstanceId},
    instance::Wanted,
    target::{NetworkTarget, Target, ZoneState},
    time::Timestamp,
};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use crate::{
    facts::{self, Held},
    ledger::Ledger,
    network::PATROL_PERIOD,
    shared::Shared,
    worker,
};

/// Between audits. Everything an audit finds is an accident, and a list of 300 zones costs some milliseconds.
const AUDIT_PERIOD: Duration = Duration::from_secs(60);

/// How long workers may finish what they began when the agent ends. What they do not finish, the next agent does.
const FAREWELL: Duration = Duration::from_secs(3);

/// Use of the pool beyond which images that no instance needs are dropped, percent.
const POOL_CROWDED_PERCENT: u64 = 85;

/// What is on the machine.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) observed: BTreeMap<InstanceId, Observed>,
    pub(crate) started: BTreeMap<InstanceId, Timestamp>,
    pub(crate) images: BTreeSet<ImageId>,
    crowded: bool,
}

/// Lists what is on the machine.
pub(crate) fn survey(host: &host::Host) -> Result<Survey, host::Error> {
    let mut survey = Survey::default();
    for status in host.zones.list()? {
        let observed = survey.observed.entry(status.instance).or_default();
        observed.traces = true;
        observed.running = status.running;
        survey.started.extend(status.started_at.map(|at| (status.instance, at)));
    }
    for root in host.datasets.roots()? {
        survey.observed.entry(root).or_default().root = true;
    }
    for nic in host.links.nics()? {
        survey.observed.entry(nic.instance).or_default().connected = true;
    }
    survey.images = host.datasets.images()?.into_iter().collect();
    let pool = host.datasets.pool()?;
    survey.crowded = pool.used_bytes.saturating_mul(100) > pool.size_bytes.saturating_mul(POOL_CROWDED_PERCENT);
    Ok(survey)
}

/// What a busy slot does once its worker is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Again {
    No,
    /// Something may have happened to the zone.
    Look,
    /// The target changed: forget that a worker gave up.
    Try,
}

struct Slot {
    /// `None` while a worker has it.
    held: Option<Held>,
    wake: Arc<Notify>,
    again: Again,
    /// When a worker last had it, on the dispatcher's own counter.
    touched: u64,
}

/// A look at the machine under way, with the dispatcher's counter at its begin.
type Underway<T> = Option<(u64, Job<Result<T, host::Error>>)>;

type Job<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// See the head of this file.
pub(crate) struct Dispatcher {
    shared: Arc<Shared>,
    slots: BTreeMap<InstanceId, Slot>,
    working: FuturesUnordered<Job<(InstanceId, Option<Held>)>>,
    /// The audit under way, with the counter at its begin.
    auditing: Underway<Survey>,
    /// The look at bridges and NICs under way; it yields whose NICs are not as they should be.
    patrolling: Underway<Vec<InstanceId>>,
    acted_on: Arc<Target>,
    counter: u64,
}

impl Dispatcher {
    /// A dispatcher that knows what `ledgers` remember and `survey` saw.
    pub(crate) fn new(shared: Arc<Shared>, ledgers: Vec<(InstanceId, Ledger)>, survey: &Survey) -> Self {
        let mut slots = BTreeMap::new();
        for (id, ledger) in ledgers {
            slots.insert(id, Slot::new(Held { ledger, written: true, ..Held::default() }));
        }
        for (id, observed) in &survey.observed {
            let slot = slots.entry(*id).or_insert_with(|| Slot::new(Held::default()));
            if let Some(held) = &mut slot.held {
                held.observed = *observed;
                held.started_at = survey.started.get(id).copied();
            }
        }
        let acted_on = Arc::new(crate::shared::empty_target(shared.config.server));
        let working = FuturesUnordered::new();
        Self { shared, slots, working, auditing: None, patrolling: None, acted_on, counter: 0 }
    }

    /// Runs until shutdown. Everything is looked at once at the start.
    pub(crate) async fn run(
        mut self,
        mut targets: watch::Receiver<Arc<Target>>,
        mut events: mpsc::Receiver<ZoneEvent>,
    ) {
        targets.borrow_and_update();
        self.on_target();
        for id in self.slots.keys().copied().collect::<Vec<_>>() {
            self.nudge(id, Again::Look);
        }
        let mut audit_at = Instant::now() + AUDIT_PERIOD;
        let mut patrol_at = Instant::now() + PATROL_PERIOD;
        let mut deaf = false;
        loop {
            tokio::select! {
                biased;
                () = self.shared.shutdown.wait() => break,
                Ok(()) = targets.changed() => {
                    targets.borrow_and_update();
                    self.on_target();
                }
                event = events.recv(), if !deaf => match event {
                    Some(event) => self.nudge(event.instance, Again::Look),
                    None => {
                        tracing::error!("zone events ended; audits will notice what happens, later");
                        deaf = true;
                    }
                },
                Some((id, held)) = self.working.next(), if !self.working.is_empty() => self.on_done(id, held),
                (since, surveyed) = wait(&mut self.auditing), if self.auditing.is_some() => {
                    self.auditing = None;
                    audit_at = Instant::now() + AUDIT_PERIOD;
                    match surveyed {
                        Ok(survey) => self.on_survey(since, survey),
                        Err(error) => tracing::warn!(error = %base::errors::chain(&error), "an audit failed"),
                    }
                }
                (since, broken) = wait(&mut self.patrolling), if self.patrolling.is_some() => {
                    self.patrolling = None;
                    patrol_at = Instant::now() + PATROL_PERIOD;
                    match broken {
                        Ok(broken) => self.on_patrol(since, &broken),
                        Err(error) => tracing::warn!(error = %base::errors::chain(&error), "a patrol failed"),
                    }
                }
                () = tokio::time::sleep_until(patrol_at), if self.patrolling.is_none() => self.patrol(),
                () = tokio::time::sleep_until(audit_at), if self.auditing.is_none() => {
                    let verbs = self.shared.verbs.clone();
                    self.auditing = Some((self.counter, Box::pin(async move { verbs.run("audit", survey).await })));
                }
            }
        }
        let farewell = async { while self.working.next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
            tracing::info!("left while some instances were being worked on; the next agent goes on with them");
        }
    }

    fn on_target(&mut self) {
        let target = self.shared.target();
        let previous = std::mem::replace(&mut self.acted_on, target.clone());
        self.announce();
        for id in target.zones.keys() {
            if !same_instructions(&previous, &target, *id) || !self.slots.contains_key(id) {
                self.nudge(*id, Again::Try);
            }
        }
        let gone = self.slots.keys().filter(|id| !target.zones.contains_key(id)).copied().collect::<Vec<_>>();
        for id in gone {
            match &self.slots[&id].held {
                Some(held) if held.is_empty() => self.forget(id),
                _ if previous.zones.contains_key(&id) => self.nudge(id, Again::Try),
                _ => {}
            }
        }
    }

    /// Says something of every instance of the target before the target is said to be seen: a headnode takes silence for
    /// "nothing of it is here" and gives its addresses to others.
    fn announce(&self) {
        let target = &self.acted_on;
        for (id, zone) in &target.zones {
            if self.shared.board.knows(*id) {
                continue;
            }
            let nothing = Held::default();
            let (held, busy) = match self.slots.get(id) {
                Some(Slot { held: Some(held), .. }) => (held, false),
                Some(_) => (&nothing, true),
                None => (&nothing, false),
            };
            match zone.wanted {
                Wanted::Absent if busy || !held.is_empty() => {
                    facts::post(&self.shared, *id, held, ZoneState::Removing);
                }
                Wanted::Running | Wanted::Stopped if held.is_empty() => {
                    facts::post(&self.shared, *id, held, ZoneState::Preparing);
                }
                _ => facts::post_rest(&self.shared, *id, held),
            }
        }
        self.shared.seen.store(target.generation, Ordering::Release);
        self.shared.board.nudge_gently();
    }

    fn forget(&mut self, id: InstanceId) {
        self.slots.remove(&id);
        self.shared.board.forget(id);
    }

    fn nudge(&mut self, id: InstanceId, why: Again) {
        self.counter += 1;
        let slot = self.slots.entry(id).or_insert_with(|| Slot::new(Held::default()));
        let Some(mut held) = slot.held.take() else {
            slot.again = slot.again.max(why);
            slot.wake.notify_one();
            return;
        };
        if why == Again::Try {
            held.given_up = false;
        }
        slot.touched = self.counter;
        let work = worker::work(self.shared.clone(), id, held, slot.wake.clone());
        let task = base::task::spawn("instance", work);
        self.working.push(Box::pin(task.map(move |result| (id, result.ok()))));
    }

    fn on_done(&mut self, id: InstanceId, held: Option<Held>) {
        self.counter += 1;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.touched = self.counter;
        let held = held.unwrap_or_else(|| {
            tracing::error!(instance = %id, "a worker panicked; starting over from its ledger at the next audit");
            Held {
                ledger: self.shared.ledgers.read(id).unwrap_or_default(),
                written: true,
                given_up: true,
                ..Held::default()
            }
        });
        let empty = held.is_empty();
        slot.held = Some(held);
        let again = std::mem::replace(&mut slot.again, Again::No);
        if again != Again::No {
            self.nudge(id, again);
        } else if empty && !self.acted_on.zones.contains_key(&id) {
            self.forget(id);
        }
    }

    /// Takes over what an audit saw, where nobody worked meanwhile.
    fn on_survey(&mut self, since: u64, mut survey: Survey) {
        let mut ids: BTreeSet<InstanceId> = survey.observed.keys().copied().collect();
        ids.extend(self.slots.keys().copied());
        for id in ids {
            let observed = survey.observed.remove(&id).unwrap_or_default();
            let slot = self.slots.entry(id).or_insert_with(|| Slot::new(Held::default()));
            let Some(held) = slot.held.as_mut().filter(|_| slot.touched <= since) else { continue };
            if held.observed != observed {
                tracing::info!(instance = %id, known = ?held.observed, seen = ?observed, "an audit found a difference");
                held.observed = observed;
                self.nudge(id, Again::Look);
                continue;
            }
            let is_to_stop = self.acted_on.zones.get(&id).is_some_and(|zone| zone.wanted == Wanted::Stopped);
            if held.given_up && held.observed.running && is_to_stop {
                // Nobody asks twice for a stop: it is owed until it is done, as a removal is.
                self.nudge(id, Again::Try);
                continue;
            }
            self.sweep_leftover(id);
        }
        self.shared.board.images(|known| {
            // An import may have ended while the list was made, so a survey adds and never takes away.
            known.extend(survey.images.iter().copied());
        });
        if survey.crowded {
            self.drop_unused_images(&survey.images);
        }
        if self.working.is_empty() {
            self.sweep_bridges();
        }
    }

    /// Looks whether bridges and NICs are still there. Somebody at the machine may delete what is not theirs.
    fn patrol(&mut self) {
        let running = self.slots.iter().filter_map(|(id, slot)| {
            let held = slot.held.as_ref().filter(|held| held.observed.running && held.observed.connected)?;
            Some((*id, held.ledger.remembered.wiring.clone()?))
        });
        let (expected, shared) = (running.collect(), self.shared.clone());
        let look = async move { shared.network.patrol(&shared.verbs, expected).await };
        self.patrolling = Some((self.counter, Box::pin(look)));
    }

    fn on_patrol(&mut self, since: u64, broken: &[InstanceId]) {
        for id in broken {
            let slot = self.slots.get_mut(id).filter(|slot| slot.touched <= since);
            let Some(held) = slot.and_then(|slot| slot.held.as_mut()) else { continue };
            tracing::warn!(instance = %id, "somebody changed the NICs of an instance; making them anew");
            held.observed.connected = false;
            self.nudge(*id, Again::Look);
        }
    }

    fn sweep_leftover(&mut self, id: InstanceId) {
        let confirmed = self.shared.confirmed.load(Ordering::Relaxed);
        let zone = self.acted_on.zones.get(&id);
        let Some(held) = self.slots.get(&id).and_then(|slot| slot.held.as_ref()) else { return };
        let remembered = held.written.then_some(&held.ledger.remembered);
        match diff::leftover(zone.map(|zone| &**zone), remembered, held.observed, confirmed) {
            Leftover::Keep => {}
            // A removal that failed for good is tried again with each audit.
            Leftover::Remove if held.is_empty() => {}
            Leftover::Remove => self.nudge(id, Again::Try),
            Leftover::Disconnect => {
                let Some(slot) = self.slots.get_mut(&id) else { return };
                let Some(held) = slot.held.take() else { return };
                self.counter += 1;
                slot.touched = self.counter;
                let task = base::task::spawn("leftover", worker::disconnect_leftover(self.shared.clone(), id, held));
                self.working.push(Box::pin(task.map(move |result| (id, result.ok()))));
            }
        }
    }

    fn drop_unused_images(&self, images: &BTreeSet<ImageId>) {
        for image in images.iter().filter(|image| !self.acted_on.images.contains_key(image)).copied() {
            self.shared.board.images(|known| {
                known.remove(&image);
            });
            let shared = self.shared.clone();
            base::task::spawn("image removal", async move {
                match shared.verbs.run("image removal", move |host| host.datasets.remove_image(image)).await {
                    Ok(()) => tracing::info!(%image, "dropped an image that no instance needs: the pool is crowded"),
                    Err(error) => {
                        tracing::warn!(%image, error = %base::errors::chain(&error), "failed to drop an image")
                    }
                }
            });
        }
    }

    fn sweep_bridges(&self) {
        let needed = self.needed_networks();
        let shared = self.shared.clone();
        base::task::spawn("bridge sweep", async move {
            if let Err(error) = shared.network.sweep(&shared.verbs, needed).await {
                tracing::warn!(error = %base::errors::chain(&error), "failed to sweep bridges");
            }
        });
    }

    /// Segments of every instance that has or may get NICs.
    fn needed_networks(&self) -> Vec<NetworkTarget> {
        let target = &self.acted_on;
        let wanted = target.zones.values().filter(|zone| zone.wanted != Wanted::Absent);
        let wanted = wanted.flat_map(|zone| &zone.nics).filter_map(|nic| target.networks.get(&nic.network));
        let held = self.slots.values().filter_map(|slot| slot.held.as_ref()?.ledger.remembered.wiring.as_ref());
        let held = held.flat_map(|wiring| wiring.nics.iter().map(|(_, network)| network));
        // A router may need segments on which nobody lives here.
        let fabrics = target.networks.values().filter(|network| network.fabric.is_some());
        let mut needed: Vec<NetworkTarget> = Vec::new();
        for network in wanted.chain(held).chain(fabrics) {
            if !needed.contains(network) {
                needed.push(network.clone());
            }
        }
        needed
    }
}

impl Slot {
    fn new(held: Held) -> Self {
        Self { held: Some(held), wake: Arc::default(), again: Again::No, touched: 0 }
    }
}

/// The result of the look under way.
async fn wait<T>(looking: &mut Underway<T>) -> (u64, Result<T, host::Error>) {
    match looking {
        Some((since, job)) => (*since, job.await),
        None => std::future::pending().await,
    }
}

/// Whether two targets say the same about an instance, its segments and its image included.
fn same_instructions(one: &Target, other: &Target, id: InstanceId) -> bool {
    match (one.zones.get(&id), other.zones.get(&id)) {
        (Some(a), Some(b)) => {
            a == b
                && one.images.get(&a.image) == other.images.get(&b.image)
                && a.nics.iter().all(|nic| one.networks.get(&nic.network) == other.networks.get(&nic.network))
        }
        (None, None) => true,
        _ => false,
    }
}
