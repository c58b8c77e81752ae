//! When each machine was last heard of. Lives in memory, because it changes every few seconds and means nothing after a
//! restart: then every machine gets the full time to speak again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Mutex, MutexGuard},
};

use base::watch;
use model::{
    clock::ClockReading,
    id::{InstanceId, NetworkId, ServerId},
    state::Reachability,
    time::Timestamp,
    wire::Wires,
};

/// Heartbeats by machine.
#[derive(Debug)]
pub struct Liveness {
    /// When this process began to listen.
    since: Timestamp,
    unreachable_after_ms: i64,
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
pub(crate) const STRANGERS_MAX: usize = 1_000;

impl Liveness {
    /// Nobody was heard of yet.
    pub(crate) fn new(since: Timestamp, unreachable_after_ms: i64) -> Self {
        Self { since, unreachable_after_ms, known: Mutex::default(), firewall_news: watch::Sender::new(0) }
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

    /// The last report of `server` to this process.
    pub fn heard(&self, server: ServerId) -> Option<Heard> {
        self.lock().heard.get(&server).cloned()
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
        let last = self.lock().heard.get(&server).map_or(self.since, |heard| heard.at.max(self.since));
        if now.0.saturating_sub(last.0) > self.unreachable_after_ms {
            Reachability::Unreachable
        } else {
            Reachability::Reachable
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no holder of this lock panics")
    }
}
