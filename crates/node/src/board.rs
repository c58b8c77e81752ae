//! The board of facts: what this machine says of each instance, and when it is worth saying.
//!
//! Settled facts (running, stopped, gone, failed, an error) are reported at once. Facts of passage (preparing, starting …) are
//! only worth a report when the passage takes long: a create that takes 50 ms must not cost the headnode three commits.
//! So a fact of passage is held back for [`PASSAGE_MS`]; until then reports carry what was said before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::{
    id::{ImageId, InstanceId},
    part::Part,
    target::{Exit, ZoneFact, ZoneState},
    time::Timestamp,
};
use tokio::sync::Notify;

/// How long a fact of passage is held back, milliseconds.
pub(crate) const PASSAGE_MS: i64 = 1000;

/// How long what nobody waits for may wait for company: that a target was seen mostly goes with what became of it.
const GENTLY: Duration = Duration::from_millis(100);

/// See the head of this file.
#[derive(Default)]
pub(crate) struct Board {
    state: Mutex<State>,
    /// Wakes the reporter when something is worth saying.
    news: Notify,
    /// Wakes it when something should be said within [`GENTLY`].
    gently: Notify,
}

#[derive(Default)]
struct State {
    facts: BTreeMap<InstanceId, Posted>,
    images: BTreeSet<ImageId>,
    /// Instances of whose running boot the kernel killed processes for lack of memory.
    oom_kills: BTreeMap<InstanceId, u64>,
}

struct Posted {
    // Shared with every report that says it.
    now: Part<ZoneFact>,
    /// What reports say while `now` is a young fact of passage.
    said: Option<Part<ZoneFact>>,
    since_ms: i64,
}

impl Posted {
    fn is_held_back(&self, at_ms: i64) -> bool {
        is_passage(self.now.state) && self.now.error.is_none() && at_ms < self.since_ms.saturating_add(PASSAGE_MS)
    }
}

const fn is_passage(state: ZoneState) -> bool {
    match state {
        ZoneState::Preparing | ZoneState::Starting | ZoneState::Stopping | ZoneState::Removing => true,
        ZoneState::Absent | ZoneState::Stopped | ZoneState::Running | ZoneState::Failed => false,
    }
}

impl Board {
    /// Says something of an instance.
    pub(crate) fn post(&self, id: InstanceId, fact: ZoneFact, at_ms: i64) {
        let settled = !is_passage(fact.state) || fact.error.is_some();
        {
            let mut state = self.lock();
            if state.facts.get(&id).is_some_and(|posted| *posted.now == fact) {
                return;
            }
            let said = state
                .facts
                .remove(&id)
                .and_then(|previous| if previous.is_held_back(at_ms) { previous.said } else { Some(previous.now) });
            state.facts.insert(id, Posted { now: Part::new(fact), said, since_ms: at_ms });
        }
        if settled {
            self.news.notify_one();
        }
    }

    /// Says nothing more of an instance.
    pub(crate) fn forget(&self, id: InstanceId) {
        if self.lock().facts.remove(&id).is_some() {
            self.news.notify_one();
        }
    }

    /// When the running boot of an instance began, and how the one before ended.
    pub(crate) fn boots(&self, id: InstanceId) -> (Option<Timestamp>, Option<Exit>) {
        let state = self.lock();
        state.facts.get(&id).map_or((None, None), |posted| (posted.now.started_at, posted.now.exit.clone()))
    }

    /// Instances that run.
    pub(crate) fn running(&self) -> Vec<InstanceId> {
        let state = self.lock();
        state.facts.iter().filter(|(_, posted)| posted.now.state == ZoneState::Running).map(|(id, _)| *id).collect()
    }

    /// Says how often the kernel killed for lack of memory, in every instance where it did.
    pub(crate) fn oom_kills(&self, kills: BTreeMap<InstanceId, u64>) {
        let changed = {
            let mut state = self.lock();
            std::mem::replace(&mut state.oom_kills, kills) != state.oom_kills
        };
        if changed {
            self.news.notify_one();
        }
    }

    /// Says which images are here.
    pub(crate) fn images(&self, change: impl FnOnce(&mut BTreeSet<ImageId>)) {
        change(&mut self.lock().images);
    }

    /// Whether anything is said of an instance.
    pub(crate) fn knows(&self, id: InstanceId) -> bool {
        self.lock().facts.contains_key(&id)
    }

    /// Whether an image is here.
    pub(crate) fn has_image(&self, image: ImageId) -> bool {
        self.lock().images.contains(&image)
    }

    /// Something else than a fact is worth saying.
    pub(crate) fn nudge(&self) {
        self.news.notify_one();
    }

    /// The same, but it can wait a moment for something else.
    pub(crate) fn nudge_gently(&self) {
        self.gently.notify_one();
    }

    /// Waits until something is worth saying.
    pub(crate) async fn news(&self) {
        tokio::select! {
            biased;
            () = self.news.notified() => {}
            () = self.gently.notified() => {
                let _ = tokio::time::timeout(GENTLY, self.news.notified()).await;
            }
        }
    }

    /// What a report says at `at_ms`, and when something that is held back now will be said.
    pub(crate) fn read(&self, at_ms: i64) -> (BTreeMap<InstanceId, Part<ZoneFact>>, Vec<ImageId>, Option<i64>) {
        let state = self.lock();
        let mut facts = BTreeMap::new();
        let mut later: Option<i64> = None;
        for (id, posted) in &state.facts {
            if posted.is_held_back(at_ms) {
                let due = posted.since_ms.saturating_add(PASSAGE_MS);
                later = Some(later.map_or(due, |later| later.min(due)));
                // Never left out: silence about an instance in a target that was seen means that nothing of it is here.
                facts.insert(*id, posted.said.as_ref().unwrap_or(&posted.now).clone());
            } else {
                facts.insert(*id, posted.now.clone());
            }
        }
        for (id, kills) in &state.oom_kills {
            if let Some(fact) = facts.get_mut(id).filter(|fact| fact.state == ZoneState::Running) {
                fact.oom_kills = *kills;
            }
        }
        (facts, state.images.iter().copied().collect(), later)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a single insertion or removal, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(state: ZoneState) -> ZoneFact {
        ZoneFact {
            state,
            starts_done: 0,
            reboots_done: 0,
            started_at: None,
            exit: None,
            error: None,
            timeline: Vec::new(),
            limits: None,
            nics: Vec::new(),
            addresses6: BTreeMap::new(),
            gave_up: false,
            oom_kills: 0,
            guest_metadata: Vec::new(),
        }
    }

    #[test]
    fn passages_are_held_back_but_not_for_long() {
        let board = Board::default();
        let id = InstanceId::random();
        let said = |at| {
            let (facts, _, later) = board.read(at);
            (facts.get(&id).map(|fact| fact.state), later)
        };
        board.post(id, fact(ZoneState::Preparing), 0);
        // Nothing was said before, and silence would mean that nothing is there.
        assert_eq!(said(10), (Some(ZoneState::Preparing), Some(1000)));
        board.post(id, fact(ZoneState::Starting), 20);
        assert_eq!(said(30), (Some(ZoneState::Starting), Some(1020)));
        assert_eq!(said(1020), (Some(ZoneState::Starting), None));
        board.post(id, fact(ZoneState::Running), 1100);
        assert_eq!(said(1100), (Some(ZoneState::Running), None));
        board.post(id, fact(ZoneState::Stopping), 1200);
        assert_eq!(said(1300), (Some(ZoneState::Running), Some(2200)));
        // A long passage that was said stays said when the next passage begins.
        assert_eq!(said(2300), (Some(ZoneState::Stopping), None));
        board.post(id, fact(ZoneState::Removing), 2400);
        assert_eq!(said(2500), (Some(ZoneState::Stopping), Some(3400)));
    }
}
