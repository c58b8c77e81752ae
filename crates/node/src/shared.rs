//! What the tasks of one agent share: values that never change, and leaf data behind short locks.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use base::{clock::Clock, shutdown::Shutdown, watch};
use model::{clock, id::ServerId, part::Part, target::Target, time::Timestamp};
use nodeapi::link::HeadnodeLink;
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    activity::Activity, board::Board, config::AgentConfig, firewall_log::FirewallLog, ids::IdPool, images::Images,
    ledger::Ledgers, metadata::Metadata, meters::Meters, network::Network, usage::Usage, verbs::Verbs, wires,
};

/// Zones made and started at once, per CPU. Making waits for the kernel's locks more than it computes, so a little more
/// than one; much more only makes all of them slow.
const MAKING_PER_CPU: usize = 2;

/// Zones stopped or removed at once. These mostly wait for guests to halt; each holds a thread.
const ENDING: usize = 64;

/// See the head of this file.
pub(crate) struct Shared {
    pub(crate) config: AgentConfig,
    /// The kernel's id of this boot of the machine.
    pub(crate) boot_id: String,
    pub(crate) verbs: Verbs,
    pub(crate) link: Arc<dyn HeadnodeLink>,
    pub(crate) clock: Arc<dyn Clock>,
    /// How far that is ahead of the headnode's, while it is surely off: [`model::clock::ClockReading::correction_ms`]. A lone number, so
    /// relaxed ordering is enough.
    pub(crate) clock_ahead_ms: AtomicI64,
    pub(crate) clock_told: ClockTold,
    pub(crate) shutdown: Shutdown,
    /// The target held; the keeper in `link` writes it.
    pub(crate) target: watch::Sender<Arc<Target>>,
    /// Generation of which reports may say "seen": every instance in it is on the board. Zero until the first look.
    pub(crate) seen: AtomicU64,
    /// Generation of the target whose firewall is in force. Zero until the first application.
    pub(crate) firewall_seen: AtomicU64,
    pub(crate) firewall_log: FirewallLog,
    /// Whether a headnode has confirmed or replaced the target in this run.
    pub(crate) confirmed: AtomicBool,
    pub(crate) ledgers: Ledgers,
    pub(crate) ids: Mutex<IdPool>,
    pub(crate) board: Arc<Board>,
    pub(crate) images: Images,
    pub(crate) network: Network,
    /// What was found out about the wires to other machines.
    pub(crate) wires: watch::Sender<wires::Found>,
    pub(crate) metadata: Metadata,
    pub(crate) meters: Meters,
    pub(crate) activity: Activity,
    pub(crate) usage: Usage,
    pub(crate) making: Semaphore,
    pub(crate) ending: Semaphore,
}

/// When a headnode told the time last in this run of the agent: by the machine's clock, and by one that nobody sets. Leaf data.
#[derive(Default)]
pub(crate) struct ClockTold(Mutex<Option<(i64, Instant)>>);

impl ClockTold {
    /// One told it just now, when the machine's clock said `now_ms`.
    pub(crate) fn note(&self, now_ms: i64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((now_ms, Instant::now()));
    }

    /// Whether what was told holds at `now_ms`: of a clock that was set since, nothing is known.
    pub(crate) fn holds(&self, now_ms: i64) -> bool {
        let told = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.is_some_and(|(at_ms, at)| !clock::was_set(now_ms.saturating_sub(at_ms), at.elapsed()))
    }
}

impl Shared {
    /// What this machine's clock says: for how long something takes.
    pub(crate) fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    /// The time of the datacenter, as far as it is known: for what others are told.
    pub(crate) fn now(&self) -> Timestamp {
        self.of_datacenter(Timestamp(self.now_ms()))
    }

    /// What the headnode's clock said when this machine's said `here`.
    pub(crate) fn of_datacenter(&self, here: Timestamp) -> Timestamp {
        here.plus_millis(self.clock_ahead_ms.load(Ordering::Relaxed).saturating_neg())
    }

    pub(crate) fn target(&self) -> Arc<Target> {
        self.target.borrow().clone()
    }

    pub(crate) fn with_ids<T>(&self, change: impl FnOnce(&mut IdPool) -> T) -> T {
        // Every change is one insertion or removal, so a panic elsewhere leaves nothing half done.
        change(&mut self.ids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The target of a machine that was never told anything: leave everything alone.
pub(crate) fn empty_target(server: ServerId) -> Target {
    let (networks, images, zones) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    Target {
        server,
        generation: 0,
        datacenter: String::new(),
        networks,
        images,
        zones,
        firewall: Part::default(),
        underlay: None,
        vxlan_port: model::network::VXLAN_PORT,
        peers: BTreeMap::new(),
        headnode: None,
        headnodes: Vec::new(),
    }
}

/// How many may be made at once on `cpus`.
pub(crate) fn making_permits(cpus: u32) -> Semaphore {
    Semaphore::new((usize::try_from(cpus).unwrap_or(1).max(1)) * MAKING_PER_CPU)
}

/// How many may be ended at once.
pub(crate) fn ending_permits() -> Semaphore {
    Semaphore::new(ENDING)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_told_of_a_clock_lapses_when_it_is_set() {
        let told = ClockTold::default();
        assert!(!told.holds(0), "nobody told the time");
        told.note(1_000_000);
        tokio::time::advance(Duration::from_secs(600)).await;
        assert!(told.holds(1_600_000) && told.holds(1_600_900));
        // Three days back, and an hour ahead.
        assert!(!told.holds(1_600_000 - 259_200_000) && !told.holds(1_600_000 + 3_600_000));
        told.note(1_600_000 - 259_200_000);
        assert!(told.holds(1_600_000 - 259_200_000));
    }
}
