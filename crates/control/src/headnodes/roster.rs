//! Who is there, as seen from here.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base::{shutdown::Shutdown, watch};
use flow::Share;
use model::{
    headnode::{BEAT_FRESH_MS, Beat, Sighting, Stage, clock_wrong_ms, owner, workers},
    id::ServerId,
    time::Timestamp,
};
use store::{Change, Snapshot};
// Not the system's: a simulation owns the time. Not the wall clock either, which jumps.
use tokio::time::Instant;

use super::NoMajority;
use crate::{
    Control,
    tables::{BEATS, HEADNODES, SERVERS},
};

/// Without a beat of its own for so long a headnode tells nodes and tenants to go elsewhere. Longer than the members of its store take to find
/// a new leader: sending everybody away for that would only make it worse.
const OUT_AFTER: Duration = Duration::from_millis(10_000);
const FRESH: Duration = Duration::from_millis(BEAT_FRESH_MS);

/// Everybody's beats as they arrive here, and what follows from them.
pub struct Headnodes {
    me: Option<ServerId>,
    // A leaf lock, held to note a beat or to look one up.
    heard: Mutex<BTreeMap<ServerId, Arrived>>,
    roster: watch::Sender<Arc<Roster>>,
    share: watch::Sender<Arc<dyn Share>>,
    out: watch::Sender<bool>,
    /// What the store lacks to be changed.
    pub(super) lacking: watch::Sender<Option<Arc<NoMajority>>>,
}

/// A beat that arrived.
#[derive(Debug, Clone, Copy)]
struct Arrived {
    run: (Timestamp, u64),
    made_at: Timestamp,
    at: Instant,
    /// By how much more than its sender's clock says it came after the one before.
    late_ms: u64,
}

/// Who is there and whose work is whose, at one moment, as seen from one headnode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    me: Option<ServerId>,
    /// No other headnode is known.
    alone: bool,
    seen: Vec<Sighting>,
    workers: Vec<ServerId>,
}

/// Follows the store until `shutdown`.
pub(crate) fn start(control: &Control, shutdown: Shutdown) {
    if control.headnodes.me.is_none() {
        return;
    }
    // Listening begins before the first look, so that no change falls between the two.
    let mut changes = control.store.changes();
    control.headnodes.take_in(&control.snapshot());
    follow_servers(control, &control.snapshot());
    let mut next = control.headnodes.look(&control.snapshot());
    let control = control.clone();
    base::task::spawn("roster", async move {
        loop {
            let late = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shutdown.wait() => return,
                change = changes.next() => {
                    if change.lagged {
                        follow_servers(&control, &change.snapshot);
                    }
                    for (_, key) in change.keys.iter().filter(|(table, _)| *table == SERVERS.name) {
                        if let Ok(id) = key.parse() {
                            control.nodes.follow(id, change.snapshot.get(&SERVERS, key).as_deref().map(|server| &server.value));
                        }
                    }
                    if !concerns(&change) {
                        continue;
                    }
                    control.headnodes.take_in(&change.snapshot);
                    next = control.headnodes.look(&change.snapshot);
                }
                () = late => next = control.headnodes.look(&control.snapshot()),
            }
        }
    });
}

fn follow_servers(control: &Control, snapshot: &Snapshot) {
    for server in snapshot.scan(&SERVERS) {
        control.nodes.follow(server.id, Some(&server.value));
    }
}

fn concerns(change: &Change) -> bool {
    change.lagged || change.keys.iter().any(|(table, _)| *table == BEATS.name || *table == HEADNODES.name)
}

// === impl Headnodes ===

impl Headnodes {
    pub(crate) fn new(me: Option<ServerId>) -> Self {
        // Nothing is anybody's before the first look; a control plane that is no headnode has all.
        let roster = Arc::new(Roster { me, alone: me.is_none(), seen: Vec::new(), workers: Vec::new() });
        Self {
            me,
            heard: Mutex::default(),
            share: watch::Sender::new(roster.clone()),
            roster: watch::Sender::new(roster),
            out: watch::Sender::new(false),
            lacking: watch::Sender::new(None),
        }
    }

    /// Which headnode this is.
    pub const fn me(&self) -> Option<ServerId> {
        self.me
    }

    /// Who is there now.
    pub fn roster(&self) -> Arc<Roster> {
        self.roster.borrow().clone()
    }

    /// The same for those who wait for it to change.
    pub fn watch(&self) -> watch::Receiver<Arc<Roster>> {
        self.roster.subscribe()
    }

    /// Which flows are this headnode's.
    pub fn share(&self) -> watch::Receiver<Arc<dyn Share>> {
        self.share.subscribe()
    }

    /// Whether nodes and tenants had better go to another headnode: this one is sick by its own word while others are well, or has not been able to
    /// commit for long.
    pub fn is_out(&self) -> bool {
        *self.out.borrow()
    }

    /// Resolves when [`Headnodes::is_out`] becomes true.
    pub async fn going_out(&self) {
        let mut out = self.out.subscribe();
        if out.wait_for(|out| *out).await.is_err() {
            std::future::pending().await
        }
    }

    /// Whether all that beat run the same release with the same settings, so that they make the same documents of the same records.
    pub(crate) fn agree(&self, snapshot: &Snapshot) -> bool {
        let roster = self.roster();
        let mut says = snapshot
            .scan(&HEADNODES)
            .filter(|headnode| Some(headnode.id) == self.me || roster.is_fresh(headnode.id))
            .map(|headnode| (headnode.shared_settings, headnode.release.clone()));
        let first = says.next();
        says.all(|other| Some(other) == first)
    }

    /// How long ago a headnode's last beat arrived, milliseconds.
    pub fn heard_ms(&self, id: ServerId) -> Option<u64> {
        let at = self.heard().get(&id)?.at;
        Some(u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// The largest delay of others' last beats against the ones before, milliseconds.
    pub(super) fn lag_ms(&self) -> u64 {
        self.others(|arrived| arrived.late_ms).into_iter().max().unwrap_or(0)
    }

    /// How far the clocks of others that beat are ahead of ours, which says `now`, milliseconds: when ours was set since they beat, that shows at once.
    pub(super) fn others_ahead_ms(&self, now: Timestamp) -> Vec<i64> {
        self.others(|arrived| {
            let passed = i64::try_from(arrived.at.elapsed().as_millis()).unwrap_or(i64::MAX);
            arrived.made_at.0.saturating_add(passed).saturating_sub(now.0)
        })
    }

    /// Whether our clock, which says `now`, is wrong by those of all others, so that whatever is judged by it is judged wrongly.
    pub fn is_clock_wrong(&self, now: Timestamp) -> bool {
        clock_wrong_ms(&self.others_ahead_ms(now)).is_some()
    }

    fn others<T>(&self, of: impl Fn(&Arrived) -> T) -> Vec<T> {
        let heard = self.heard();
        let fresh = heard.iter().filter(|(id, arrived)| Some(**id) != self.me && arrived.at.elapsed() < FRESH);
        fresh.map(|(_, arrived)| of(arrived)).collect()
    }

    /// Notes the beats that are new in `snapshot`.
    fn take_in(&self, snapshot: &Snapshot) {
        let mut heard = self.heard();
        heard.retain(|id, _| snapshot.get(&BEATS, &id.to_string()).is_some());
        for beat in snapshot.scan(&BEATS) {
            let before = heard.get(&beat.headnode).copied();
            let run = (beat.started_at, beat.sequence);
            if before.is_none_or(|before| before.run != run) {
                heard.insert(beat.headnode, Arrived::now(&beat, before));
            }
        }
    }

    /// Works out who is there as of now, and says it if it is news. Returns when it must be looked at again.
    fn look(&self, snapshot: &Snapshot) -> Option<Instant> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        let seen: Vec<Sighting> = snapshot
            .scan(&HEADNODES)
            .map(|headnode| {
                let until = self.heard().get(&headnode.id).map(|arrived| arrived.at + FRESH);
                let fresh = until.is_some_and(|until| until > now);
                if let Some(until) = until.filter(|_| fresh) {
                    next = Some(next.map_or(until, |next| next.min(until)));
                }
                let beat = snapshot.get(&BEATS, &headnode.id.to_string());
                let sick = beat.is_some_and(|beat| beat.health.sick.is_some());
                Sighting { id: headnode.id, stage: headnode.stage, fresh, sick }
            })
            .collect();
        let alone = seen.iter().all(|one| Some(one.id) == self.me);
        let roster = Arc::new(Roster { me: self.me, alone, workers: workers(&seen), seen });
        let is_news = self.roster.send_if_modified(|known| {
            let is_news = **known != *roster;
            known.clone_from(&roster);
            is_news
        });
        if is_news {
            tracing::info!(workers = ?roster.workers, alone, "who shares the work has changed");
            self.share.send_replace(roster);
        }
        // Whoever is alone waits for nobody, and has nobody to send others to.
        if alone {
            self.be_out(false);
            return None;
        }
        let mine = self.me.and_then(|me| Some(self.heard().get(&me)?.at + OUT_AFTER));
        self.be_out(self.roster().is_shunned() || mine.is_some_and(|until| until <= now));
        let mine = mine.filter(|until| *until > now);
        match (next, mine) {
            (Some(next), Some(mine)) => Some(next.min(mine)),
            (next, mine) => next.or(mine),
        }
    }

    fn be_out(&self, is_out: bool) {
        let is_news = self.out.send_if_modified(|out| std::mem::replace(out, is_out) != is_out);
        match is_out {
            true if is_news => tracing::warn!("this headnode sends nodes and tenants to others until it is well again"),
            false if is_news => tracing::info!("this headnode is well again"),
            _ => {}
        }
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServerId, Arrived>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrived {
    fn now(beat: &Beat, before: Option<Self>) -> Self {
        let at = Instant::now();
        let late_ms = before.map_or(0, |before| {
            let passed = u64::try_from(at.duration_since(before.at).as_millis()).unwrap_or(u64::MAX);
            passed.saturating_sub(beat.at.millis_since(before.made_at))
        });
        Self { run: (beat.started_at, beat.sequence), made_at: beat.at, at, late_ms }
    }
}

// === impl Roster ===

impl Roster {
    /// Which headnode sees it so.
    pub const fn me(&self) -> Option<ServerId> {
        self.me
    }

    /// Whether no other headnode is known.
    pub const fn is_alone(&self) -> bool {
        self.alone
    }

    /// Whether a headnode beats.
    pub fn is_fresh(&self, id: ServerId) -> bool {
        self.seen.iter().any(|one| one.id == id && one.fresh)
    }

    /// Those that share the work, in the order of their ids.
    pub fn workers(&self) -> &[ServerId] {
        &self.workers
    }

    /// Whether this is the one that tidies up after all.
    pub fn is_first(&self) -> bool {
        self.alone || self.me.is_some() && self.workers.first().copied() == self.me
    }

    /// Whether others work and this one is sick by its own word.
    fn is_shunned(&self) -> bool {
        let me = self.seen.iter().find(|one| Some(one.id) == self.me);
        me.is_some_and(|me| me.sick && !self.workers.is_empty() && !self.workers.contains(&me.id))
    }

    /// Active headnodes other than this one.
    pub fn others(&self) -> impl Iterator<Item = ServerId> + '_ {
        self.seen.iter().filter(|one| Some(one.id) != self.me && one.stage == Stage::Active).map(|one| one.id)
    }
}

impl Share for Roster {
    fn is_mine(&self, what: &str) -> bool {
        self.alone || self.me.is_some() && owner(&self.workers, what) == self.me
    }
}
