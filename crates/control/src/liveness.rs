//! When each machine was last heard of. Lives in memory, because it changes every few seconds and means nothing after a
//! restart: then every machine gets the full time to speak again.
//!
//! With several headnodes a machine reports to one of them, which writes its own name into the machine's record ([`Server::heard_by`]) when that is
//! new, and takes it out when the machine falls silent. Everybody else takes its word for as long as it beats: a machine that another one hears was
//! heard here when the last beat of that one was. So a headnode that dies with its machines' silence unsaid costs nothing: the time begins to run with
//! its last beat, and ends when the machine speaks to somebody.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use base::{clock::Clock, watch};
use model::{
    clock::ClockReading,
    id::{InstanceId, NetworkId, ServerId},
    server::{Server, Word},
    state::Reachability,
    time::Timestamp,
    wire::Wires,
};

use crate::headnodes::Headnodes;

/// Heartbeats by machine.
pub struct Liveness {
    /// When this process began to listen.
    since: Timestamp,
    unreachable_after_ms: i64,
    clock: Arc<dyn Clock>,
    headnodes: Arc<Headnodes>,
    /// Machines that another headnode hears. A leaf lock as the other one.
    elsewhere: Mutex<HashMap<ServerId, Elsewhere>>,
    // A leaf lock: held for one look-up, never across an await.
    known: Mutex<Known>,
    /// Counts reports of machines that have another firewall in force than before.
    firewall_news: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Known {
    heard: HashMap<ServerId, Heard>,
    /// Those whose last report named strangers: nearly always none, and every choice of an address asks for them.
    with_strangers: BTreeSet<ServerId>,
}

/// A machine that another headnode hears, by its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Elsewhere {
    by: ServerId,
    target_seen: u64,
    word: Word,
}

/// What a machine's last report said of the machine itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// When it arrived.
    pub at: Timestamp,
    /// Generation of the target the machine has written down.
    pub target_seen: u64,
    /// Its agent said that it ends.
    pub leaving: bool,
    /// And the machine with it.
    pub goes_down: bool,
    /// Generation of the target whose firewall the machine enforces.
    pub firewall_seen: u64,
    /// Instances it has and no record knows as its own, with the addresses they hold; at most a thousand.
    pub strangers: BTreeMap<InstanceId, Vec<(NetworkId, IpAddr)>>,
    /// What it found out about its wires to other machines.
    pub wires: Wires,
    /// Its clock beside that of whoever it reports to.
    pub clock: Option<ClockReading>,
}

impl Heard {
    /// How long ago at most it found out about its wires, milliseconds; `None` when it did not.
    pub fn wires_age_ms(&self, now: Timestamp) -> Option<u64> {
        Some(self.wires.age_ms?.saturating_add(now.millis_since(self.at)))
    }
}

/// Strangers of one machine that are remembered: enough to see that something is wrong, and what.
pub const STRANGERS_MAX: usize = 1_000;

impl Liveness {
    /// Nobody was heard of yet.
    pub(crate) fn new(clock: Arc<dyn Clock>, headnodes: Arc<Headnodes>, unreachable_after_ms: i64) -> Self {
        Self {
            since: Timestamp(clock.now_ms()),
            unreachable_after_ms,
            clock,
            headnodes,
            elsewhere: Mutex::default(),
            known: Mutex::default(),
            firewall_news: watch::Sender::new(0),
        }
    }

    /// When this process began to listen.
    pub(crate) const fn since(&self) -> Timestamp {
        self.since
    }

    /// Notes a report.
    pub(crate) fn note(&self, server: ServerId, heard: Heard) {
        let enforced = heard.firewall_seen;
        let before = {
            let mut known = self.lock();
            if heard.strangers.is_empty() {
                known.with_strangers.remove(&server);
            } else {
                known.with_strangers.insert(server);
            }
            known.heard.insert(server, heard)
        };
        if before.is_none_or(|before| before.firewall_seen != enforced) {
            self.firewall_news.send_modify(|count| *count += 1);
        }
    }

    /// Changes whenever a machine says that it enforces another firewall than before.
    pub(crate) fn firewall_news(&self) -> watch::Receiver<u64> {
        self.firewall_news.subscribe()
    }

    /// Takes over what the record of a machine says of who hears it; `None` when the record is gone.
    pub(crate) fn follow(&self, id: ServerId, server: Option<&Server>) {
        let me = self.headnodes.me();
        let other = server.filter(|server| me.is_some() && server.heard_by.is_some() && server.heard_by != me);
        let there = other.and_then(|server| {
            Some(Elsewhere { by: server.heard_by?, target_seen: server.target_seen, word: server.word })
        });
        let before = {
            let mut elsewhere = self.there();
            match there {
                Some(there) => elsewhere.insert(id, there),
                None => elsewhere.remove(&id),
            }
        };
        if there.is_some() && before.map(|before| before.word) != there.map(|there| there.word) {
            self.firewall_news.send_modify(|count| *count += 1);
        }
    }

    /// The last word of `server`, here or, as far as its record tells it, elsewhere.
    pub fn heard(&self, server: ServerId) -> Option<Heard> {
        let here = self.heard_here(server);
        match (here, self.heard_elsewhere(server)) {
            (Some(here), Some(there)) if here.at >= there.at => Some(here),
            (_, Some(there)) => Some(there),
            (here, None) => here,
        }
    }

    /// The last report of `server` to this process.
    pub(crate) fn heard_here(&self, server: ServerId) -> Option<Heard> {
        self.lock().heard.get(&server).cloned()
    }

    fn heard_elsewhere(&self, server: ServerId) -> Option<Heard> {
        let Elsewhere { by, target_seen, word } = self.there().get(&server).copied()?;
        let ago_ms = i64::try_from(self.headnodes.heard_ms(by)?).unwrap_or(i64::MAX);
        Some(Heard {
            at: Timestamp(self.clock.now_ms().saturating_sub(ago_ms)),
            target_seen,
            leaving: word.leaving,
            goes_down: word.goes_down,
            firewall_seen: word.firewall_seen,
            strangers: BTreeMap::new(),
            wires: Wires::default(),
            clock: None,
        })
    }

    /// Whether `server` has not reported to this process for so long that it counts as unreachable.
    pub(crate) fn is_silent_here(&self, server: ServerId, now: Timestamp) -> bool {
        let last = self.heard_here(server).map_or(self.since, |heard| heard.at.max(self.since));
        self.is_long_ago(last, now)
    }

    fn is_long_ago(&self, last: Timestamp, now: Timestamp) -> bool {
        now.0.saturating_sub(last.0) > self.unreachable_after_ms
    }

    fn there(&self) -> MutexGuard<'_, HashMap<ServerId, Elsewhere>> {
        self.elsewhere.lock().expect("no holder of this lock panics")
    }

    /// Addresses of a network that instances nobody knows hold. Nearly always none.
    pub(crate) fn addresses_of_strangers(&self, network: NetworkId) -> BTreeSet<IpAddr> {
        let known = self.lock();
        let reports = known.with_strangers.iter().filter_map(|server| known.heard.get(server));
        let held = reports.flat_map(|heard| heard.strangers.values().flatten());
        held.filter(|(on, _)| *on == network).map(|(_, ip)| *ip).collect()
    }

    /// Forgets a machine that left.
    pub(crate) fn forget(&self, server: ServerId) {
        let mut known = self.lock();
        known.heard.remove(&server);
        known.with_strangers.remove(&server);
    }

    /// Whether `server` counts as reachable at `now`.
    pub fn reachability(&self, server: ServerId, now: Timestamp) -> Reachability {
        let last = self.heard(server).map_or(self.since, |heard| heard.at.max(self.since));
        if self.is_long_ago(last, now) { Reachability::Unreachable } else { Reachability::Reachable }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no holder of this lock panics")
    }
}
