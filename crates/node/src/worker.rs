//! The worker of one instance: look, plan, act, write down; again until there is nothing to do.
//!
//! Decisions are [`model::diff`]'s. This file carries them out through the host, keeps the ledger in step, times the
//! phases of the first boot, and posts facts. A worker owns what is known of its instance while it works and hands it
//! back when it ends, so nothing else changes it meanwhile.
//!
//! A failed step is tried again after a pause that grows. After [`ATTEMPTS`] failures that were ours, the worker gives up
//! and says why; the next change of the instance's target begins anew. A headnode that cannot be reached is never a reason
//! to give up.

use std::{sync::Arc, time::Duration};

use base::backoff::Backoff;
use host::zone::{IdRange, ZoneStatus};
use model::{
    diff::{self, Ended, Observed, Step, Wiring},
    id::InstanceId,
    instance::Wanted,
    target::{Exit, Phase, Target, ZoneState, ZoneTarget},
    time::Timestamp,
};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::{
    error::StepError,
    facts::{Held, fact, post_rest},
    files::Durability,
    images, metadata, network,
    shared::Shared,
    spec,
};

/// Failures before giving up. With the pauses between, about ten seconds: long enough for a passing shortage, short enough
/// for somebody who waits for a create.
pub(crate) const ATTEMPTS: u32 = 6;

/// Pause after the first failure.
const PAUSE_FLOOR: Duration = Duration::from_millis(200);

/// Longest pause.
const PAUSE_CEILING: Duration = Duration::from_secs(15);

/// Plans carried out in one go without reaching rest. Two are usual (a reboot); more means that somebody else changes
/// the zone as fast as we do.
const ROUNDS: u32 = 8;

/// Works on one instance until it is as it should be, or cannot be made so.
pub(crate) async fn work(shared: Arc<Shared>, id: InstanceId, held: Held, wake: Arc<Notify>) -> Held {
    let mut worker = Worker { shared: &shared, id, held, wake: &wake };
    let mut pauses = Backoff::new(PAUSE_FLOOR, PAUSE_CEILING);
    let mut failures = 0;
    loop {
        let target = shared.target();
        let zone = target.zones.get(&id);
        let wanted = zone.map(|zone| &**zone);
        let error = match worker.converge(&target, wanted).await {
            Ok(()) => return worker.held,
            Err(StepError::Ending) => return worker.held,
            Err(StepError::Interrupted) => continue,
            Err(error) => error,
        };
        let text = base::errors::chain(&error);
        tracing::warn!(instance = %id, error = %text, failures, "an instance is not yet as it should be");
        shared.activity.attempts_failed.one();
        worker.held.error = Some(text);
        shared.network.distrust();
        failures += match error {
            // What was asked for cannot be; that changes when somebody asks for something else.
            StepError::Host { source: host::Error::Refused { .. }, .. } => ATTEMPTS,
            _ => u32::from(!error.is_outside()),
        };
        if failures >= ATTEMPTS {
            worker.held.given_up = true;
            worker.post_rest();
            return worker.held;
        }
        worker.post_failing(wanted);
        tokio::select! {
            biased;
            () = tokio::time::sleep(pauses.next_delay()) => {}
            () = wake.notified() => {
                if shared.target().zones.get(&id) != zone {
                    failures = 0;
                    pauses.reset();
                }
            }
            () = shared.shutdown.wait() => return worker.held,
        }
    }
}

struct Worker<'a> {
    shared: &'a Arc<Shared>,
    id: InstanceId,
    held: Held,
    wake: &'a Notify,
}

// === impl Worker: looking and planning ===

impl Worker<'_> {
    async fn converge(&mut self, target: &Target, zone: Option<&ZoneTarget>) -> Result<(), StepError> {
        for _ in 0..ROUNDS {
            self.look().await?;
            let wiring = match zone {
                Some(zone) if zone.wanted != Wanted::Absent => Wiring::of(target, zone)?,
                _ => Wiring::default(),
            };
            let steps = self.plan(zone, &wiring);
            if steps.is_empty() {
                if !self.held.given_up {
                    self.held.error = None;
                }
                self.post_rest();
                return Ok(());
            }
            self.carry_out(target, zone, &wiring, &steps).await?;
        }
        tracing::warn!(instance = %self.id, "an instance does not come to rest; looking again at the next change");
        self.post_rest();
        Ok(())
    }

    fn plan(&self, zone: Option<&ZoneTarget>, wiring: &Wiring) -> Vec<Step> {
        let remembered = &self.held.ledger.remembered;
        if self.held.given_up {
            return Vec::new();
        }
        match zone {
            Some(zone) if zone.wanted == Wanted::Absent && self.held.written => vec![Step::Remove],
            Some(zone) => diff::plan(zone, wiring, remembered, self.held.observed, &self.shared.boot_id),
            // Nobody tells us what it should be: only a removal that has begun goes on.
            None if remembered.removing => vec![Step::Remove],
            None => Vec::new(),
        }
    }

    /// Sees whether the zone runs, and writes down how it ended if it does not any more.
    async fn look(&mut self) -> Result<(), StepError> {
        if !self.held.observed.traces {
            return Ok(());
        }
        let id = self.id;
        match self.shared.verbs.run("zone status", move |host| host.zones.status(id)).await {
            Ok(status) => self.saw(&status),
            Err(host::Error::Missing(_)) => {
                self.held.observed.traces = false;
                self.saw_ended(None)
            }
            Err(source) => Err(StepError::Host { doing: "look at the zone", source }),
        }
    }

    fn saw(&mut self, status: &ZoneStatus) -> Result<(), StepError> {
        if !status.running {
            return self.saw_ended(status.exit.clone());
        }
        self.held.observed.running = true;
        self.held.started_at = status.started_at;
        let remembered = &mut self.held.ledger.remembered;
        if remembered.boot_id.as_deref() != Some(&self.shared.boot_id) {
            // An agent died between starting it and writing that down.
            remembered.boot_id = Some(self.shared.boot_id.clone());
            remembered.ended = None;
            self.save("write", Durability::Process)?;
        }
        Ok(())
    }

    fn saw_ended(&mut self, exit: Option<Exit>) -> Result<(), StepError> {
        self.held.observed.running = false;
        self.held.started_at = None;
        let now = self.shared.now();
        let ledger = &mut self.held.ledger;
        let ran_in_this_boot = ledger.remembered.boot_id.as_deref() == Some(&self.shared.boot_id);
        let noted = ledger.exit_was_asked || ledger.remembered.ended.is_some() || ledger.remembered.removing;
        if !self.held.written || !ran_in_this_boot || noted {
            return Ok(());
        }
        let exit = exit.map(|exit| Exit { at: self.shared.of_datacenter(exit.at), ..exit });
        let exit = exit.unwrap_or_else(|| Exit {
            at: now,
            code: None,
            signal: None,
            reason: "ended together with its supervisor; how is not known".to_owned(),
            asked: false,
        });
        tracing::info!(instance = %self.id, reason = %exit.reason, "a zone ended by itself");
        ledger.remembered.ended = Some(Ended::of(&exit));
        ledger.exit = Some(exit);
        self.save("write", Durability::Process)
    }
}

// === impl Worker: acting ===

impl<'a> Worker<'a> {
    async fn carry_out(
        &mut self,
        target: &Target,
        zone: Option<&ZoneTarget>,
        wiring: &Wiring,
        steps: &[Step],
    ) -> Result<(), StepError> {
        let mut steps = steps;
        let first_boot = self.held.ledger.remembered.starts_done == 0;
        while let Some((step, rest)) = steps.split_first() {
            steps = rest;
            base::crash::point("node.step.before");
            let Some(zone) = zone else {
                // Only a removal is planned without a target.
                return self.remove().await;
            };
            match step {
                Step::Root if rest.starts_with(&[Step::Namespaces, Step::Network]) => {
                    // The root and the network know nothing of each other: make them at the same time.
                    steps = &rest[2..];
                    let result = self.prepare(target, zone, wiring, first_boot).await;
                    // A start says it in a moment; whoever dies before looks and makes sure of both again.
                    if self.held.written && (result.is_err() || steps.first() != Some(&Step::Start)) {
                        self.save("write", Durability::Process)?;
                    }
                    result?;
                }
                Step::Root => self.make_root(target, zone, wiring, first_boot).await?,
                Step::Namespaces if rest.first() == Some(&Step::Network) => {
                    steps = &rest[1..];
                    self.make_namespaces_and_network(zone, wiring, first_boot).await?;
                }
                Step::Namespaces | Step::Network => self.make_namespaces_and_network(zone, wiring, first_boot).await?,
                Step::Start => self.start(zone, wiring, first_boot).await?,
                Step::Stop => self.stop(zone, wiring).await?,
                Step::Disconnect => self.disconnect(zone, wiring).await?,
                Step::Quota => self.set_quota(zone, wiring).await?,
                Step::Limits => self.set_limits(zone, wiring).await?,
                Step::Accept => self.note(Step::Accept, zone, wiring)?,
                Step::Remove => self.remove().await?,
            }
            base::crash::point("node.step.after");
        }
        Ok(())
    }

    /// Waits for a permit. That may take long, and something else may be wanted by then: what was planned for `zone` is
    /// only begun while it is still what the target asks for.
    async fn turn(&self, permits: &'a Semaphore, zone: &ZoneTarget) -> Result<SemaphorePermit<'a>, StepError> {
        let waiting = self.shared.activity.wait();
        let permit = permits.acquire().await.map_err(|_| StepError::Ending)?;
        drop(waiting);
        match self.shared.target().zones.get(&self.id) {
            Some(newest) if diff::same_plan(zone, newest) => Ok(permit),
            _ => Err(StepError::Interrupted),
        }
    }

    /// Root, namespaces and network of a zone that has none of them, at once.
    async fn prepare(
        &mut self,
        target: &Target,
        zone: &ZoneTarget,
        wiring: &Wiring,
        first: bool,
    ) -> Result<(), StepError> {
        let _permit = self.turn(&self.shared.making, zone).await?;
        self.post(ZoneState::Preparing, None);
        let ids = self.begin_ledger()?;
        self.open_metadata(ids)?;
        let (root, network) = futures_util::join!(self.root(target, zone), self.network(ids, wiring));
        // What succeeded is kept, whatever became of the other.
        if let Ok(phases) = &root {
            self.phases(first, phases);
            self.apply(Step::Root, zone, wiring);
        }
        if let Ok(phase) = &network {
            self.phases(first, std::slice::from_ref(phase));
            self.apply(Step::Namespaces, zone, wiring);
            self.apply(Step::Network, zone, wiring);
        }
        root?;
        network?;
        Ok(())
    }

    async fn make_root(
        &mut self,
        target: &Target,
        zone: &ZoneTarget,
        wiring: &Wiring,
        first: bool,
    ) -> Result<(), StepError> {
        let _permit = self.turn(&self.shared.making, zone).await?;
        if !self.held.observed.running {
            self.post(ZoneState::Preparing, None);
        }
        self.begin_ledger()?;
        let phases = self.root(target, zone).await?;
        self.phases(first, &phases);
        self.note(Step::Root, zone, wiring)
    }

    async fn make_namespaces_and_network(
        &mut self,
        zone: &ZoneTarget,
        wiring: &Wiring,
        first: bool,
    ) -> Result<(), StepError> {
        let _permit = self.turn(&self.shared.making, zone).await?;
        if !self.held.observed.running {
            self.post(if first { ZoneState::Preparing } else { ZoneState::Starting }, None);
        }
        let ids = self.begin_ledger()?;
        self.open_metadata(ids)?;
        let phase = self.network(ids, wiring).await?;
        self.phases(first, &[phase]);
        self.apply(Step::Namespaces, zone, wiring);
        self.note(Step::Network, zone, wiring)
    }

    /// Fetches the image and clones it. A newer target interrupts the wait for the image, which may be long.
    async fn root(&self, target: &Target, zone: &ZoneTarget) -> Result<Vec<Phase>, StepError> {
        let wanted = target.images.get(&zone.image).ok_or(StepError::UnknownImage(zone.image))?;
        let begun = self.shared.now();
        self.ensure_image(zone, wanted).await?;
        let fetched = self.shared.now();
        let (id, image, quota) = (self.id, zone.image, zone.limits.disk);
        self.shared
            .verbs
            .run("clone", move |host| host.datasets.clone_image(image, id, quota))
            .await
            .map_err(|source| StepError::Host { doing: "make the root", source })?;
        Ok(vec![phase("image", begun, fetched), phase("dataset", fetched, self.shared.now())])
    }

    async fn ensure_image(&self, zone: &ZoneTarget, wanted: &model::target::ImageTarget) -> Result<(), StepError> {
        let fetch = images::ensure(self.shared, zone.image, wanted);
        tokio::pin!(fetch);
        loop {
            tokio::select! {
                biased;
                result = &mut fetch => return result,
                () = self.wake.notified() => {
                    if self.shared.target().zones.get(&self.id).is_none_or(|newest| **newest != *zone) {
                        return Err(StepError::Interrupted);
                    }
                }
            }
        }
    }

    async fn network(&self, ids: IdRange, wiring: &Wiring) -> Result<Phase, StepError> {
        let begun = self.shared.now();
        let id = self.id;
        let verbs = &self.shared.verbs;
        let prepared = async {
            let prepared = verbs.run("zone prepare", move |host| host.zones.prepare(id, ids)).await;
            prepared.map_err(|source| StepError::Host { doing: "make the zone's namespaces", source })
        };
        let (admitted, prepared) = futures_util::join!(self.shared.network.admit(verbs, id, wiring), prepared);
        admitted?;
        let namespace = prepared?;
        let setup = network::setup(wiring);
        verbs
            .run("attach", move |host| host.links.attach(id, &namespace, &setup))
            .await
            .map_err(|source| StepError::Host { doing: "make the zone's NICs", source })?;
        Ok(phase("network", begun, self.shared.now()))
    }

    async fn start(&mut self, zone: &ZoneTarget, wiring: &Wiring, first: bool) -> Result<(), StepError> {
        let _permit = self.turn(&self.shared.making, zone).await?;
        self.post(ZoneState::Starting, None);
        let ids = self.begin_ledger()?;
        self.open_metadata(ids)?;
        let (id, image, quota) = (self.id, zone.image, zone.limits.disk);
        let begun = self.shared.now();
        let mut spec = spec::of(self.shared, id, zone, ids);
        let status = self
            .shared
            .verbs
            .run("zone start", move |host| {
                // Cloning what is cloned only tells where it lies.
                spec.root = host.datasets.clone_image(image, id, quota)?;
                host.zones.start(&spec)
            })
            .await
            .map_err(|source| StepError::Host { doing: "start the zone", source })?;
        self.phases(first, &[phase("zone start", begun, self.shared.now())]);
        self.held.started_at = status.started_at;
        // How the boot before ended stays told; what it was is over.
        self.held.ledger.exit_was_asked = false;
        self.note(Step::Start, zone, wiring)
    }

    async fn stop(&mut self, zone: &ZoneTarget, wiring: &Wiring) -> Result<(), StepError> {
        let _permit = self.turn(&self.shared.ending, zone).await?;
        self.post(ZoneState::Stopping, None);
        let (id, grace) = (self.id, self.shared.config.stop_grace);
        let status = self
            .shared
            .verbs
            .run("zone stop", move |host| host.zones.stop(id, grace))
            .await
            .map_err(|source| StepError::Host { doing: "stop the zone", source })?;
        self.held.started_at = None;
        let ended = |exit: Exit| Exit { at: self.shared.of_datacenter(exit.at), asked: true, ..exit };
        self.held.ledger.exit = status.exit.map(ended);
        self.held.ledger.exit_was_asked = true;
        self.note(Step::Stop, zone, wiring)
    }

    async fn disconnect(&mut self, zone: &ZoneTarget, wiring: &Wiring) -> Result<(), StepError> {
        self.detach().await?;
        self.note(Step::Disconnect, zone, wiring)
    }

    /// Removes the NICs first and their rules after them: no frame leaves unfiltered.
    async fn detach(&self) -> Result<(), StepError> {
        let id = self.id;
        self.shared
            .verbs
            .run("detach", move |host| host.links.detach(id))
            .await
            .map_err(|source| StepError::Host { doing: "remove the zone's NICs", source })?;
        self.shared.network.dismiss(id).await
    }

    async fn set_quota(&mut self, zone: &ZoneTarget, wiring: &Wiring) -> Result<(), StepError> {
        let (id, quota) = (self.id, zone.limits.disk);
        self.shared
            .verbs
            .run("quota", move |host| host.datasets.set_quota(id, quota))
            .await
            .map_err(|source| StepError::Host { doing: "change the quota of the root", source })?;
        self.note(Step::Quota, zone, wiring)
    }

    async fn set_limits(&mut self, zone: &ZoneTarget, wiring: &Wiring) -> Result<(), StepError> {
        let (id, limits) = (self.id, zone.limits.clone());
        self.shared
            .verbs
            .run("limits", move |host| host.zones.set_limits(id, &limits))
            .await
            .map_err(|source| StepError::Host { doing: "change the zone's limits", source })?;
        self.note(Step::Limits, zone, wiring)
    }

    /// Removes every trace. The mark comes first and the ledger goes last, so a removal that was cut short goes on.
    async fn remove(&mut self) -> Result<(), StepError> {
        let waiting = self.shared.activity.wait();
        let _permit = self.shared.ending.acquire().await.map_err(|_| StepError::Ending)?;
        drop(waiting);
        let removing = self.held.ledger.remembered.removing;
        let asked = self.shared.target().zones.get(&self.id).is_some_and(|zone| zone.wanted == Wanted::Absent);
        if !removing && !asked {
            return Err(StepError::Interrupted);
        }
        self.post(ZoneState::Removing, None);
        if !self.held.ledger.remembered.removing {
            self.held.ledger.remembered.removing = true;
            self.save("write", Durability::Power)?;
        }
        let id = self.id;
        self.shared
            .verbs
            .run("zone destroy", move |host| host.zones.destroy(id))
            .await
            .map_err(|source| StepError::Host { doing: "destroy the zone", source })?;
        self.detach().await?;
        self.shared
            .verbs
            .run("root removal", move |host| host.datasets.remove_root(id))
            .await
            .map_err(|source| StepError::Host { doing: "remove the root", source })?;
        self.shared.metadata.close(id).map_err(StepError::Metadata)?;
        base::crash::point("node.remove.before-ledger");
        self.shared.ledgers.remove(id).map_err(|source| StepError::Ledger { doing: "remove", source })?;
        if let Some(ids) = self.held.ledger.ids {
            self.shared.with_ids(|pool| pool.give_back(ids));
        }
        self.held = Held::default();
        Ok(())
    }
}

// === impl Worker: writing down and saying ===

impl Worker<'_> {
    /// Makes sure that a ledger with an id range is there before anything is made.
    fn begin_ledger(&mut self) -> Result<IdRange, StepError> {
        if let (Some(ids), true) = (self.held.ledger.ids, self.held.written) {
            return Ok(ids);
        }
        let ids = match self.held.ledger.ids {
            Some(ids) => ids,
            None => {
                let taken = self.shared.with_ids(|pool| pool.take().ok_or(StepError::NoIds(pool.size())))?;
                *self.held.ledger.ids.insert(taken)
            }
        };
        self.save("write", Durability::Process)?;
        Ok(ids)
    }

    fn open_metadata(&self, ids: IdRange) -> Result<(), StepError> {
        metadata::open(self.shared, self.id, ids.first).map_err(StepError::Metadata)
    }

    fn apply(&mut self, step: Step, zone: &ZoneTarget, wiring: &Wiring) {
        let held = &mut self.held;
        let (remembered, observed) = (&mut held.ledger.remembered, &mut held.observed);
        diff::carried_out(step, zone, wiring, remembered, observed, &self.shared.boot_id);
        held.error = None;
    }

    fn note(&mut self, step: Step, zone: &ZoneTarget, wiring: &Wiring) -> Result<(), StepError> {
        self.apply(step, zone, wiring);
        self.save("write", Durability::Process)
    }

    fn save(&mut self, doing: &'static str, durability: Durability) -> Result<(), StepError> {
        self.shared
            .ledgers
            .save(self.id, &self.held.ledger, durability)
            .map_err(|source| StepError::Ledger { doing, source })?;
        self.held.written = true;
        Ok(())
    }

    /// Keeps the phases of the first boot; one that is tried again replaces its failed attempt.
    fn phases(&mut self, first: bool, phases: &[Phase]) {
        if first {
            let timeline = &mut self.held.ledger.timeline;
            timeline.retain(|old| phases.iter().all(|new| new.name != old.name));
            timeline.extend_from_slice(phases);
        }
    }

    fn post(&self, state: ZoneState, error: Option<String>) {
        self.shared.board.post(self.id, fact(&self.held, state, error), self.shared.now_ms());
    }

    /// Says how things are when there is nothing to do, or nothing that can be done.
    fn post_rest(&self) {
        post_rest(self.shared, self.id, &self.held);
    }

    /// Says that the last attempt failed while there will be another.
    fn post_failing(&self, zone: Option<&ZoneTarget>) {
        let remembered = &self.held.ledger.remembered;
        let state = match (self.held.observed.running, zone.map(|zone| zone.wanted)) {
            _ if remembered.removing => ZoneState::Removing,
            (true, Some(Wanted::Stopped)) => ZoneState::Stopping,
            (true, _) => ZoneState::Running,
            (false, Some(Wanted::Running)) if remembered.starts_done == 0 => ZoneState::Preparing,
            (false, Some(Wanted::Running)) => ZoneState::Starting,
            (false, _) => ZoneState::Stopped,
        };
        self.post(state, self.held.error.clone());
    }
}

fn phase(name: &str, begun: Timestamp, ended: Timestamp) -> Phase {
    Phase { name: name.to_owned(), at: begun, ms: ended.millis_since(begun) }
}

/// Removes NICs and kernel traces of an instance that nobody knows. They hold no data; its root stays.
pub(crate) async fn disconnect_leftover(shared: Arc<Shared>, id: InstanceId, mut held: Held) -> Held {
    tracing::warn!(instance = %id, "removing NICs and kernel traces of an instance that nobody knows; its root stays");
    let destroyed =
        shared.verbs.run("leftover", move |host| host.zones.destroy(id).and_then(|()| host.links.detach(id))).await;
    match destroyed {
        Ok(()) => held.observed = Observed { root: held.observed.root, ..Observed::default() },
        Err(error) => {
            tracing::warn!(instance = %id, error = %base::errors::chain(&error), "failed to remove a leftover")
        }
    }
    if let Err(error) = shared.network.dismiss(id).await {
        tracing::warn!(instance = %id, error = %base::errors::chain(&error), "failed to remove a leftover's filters");
    }
    post_rest(&shared, id, &held);
    held
}
