//! What is known of an instance, and how it is said on the board.

use model::{
    diff::{Observed, Wiring},
    id::InstanceId,
    target::{ZoneFact, ZoneState},
    time::Timestamp,
};

use crate::{ledger::Ledger, shared::Shared};

/// What is known of one instance.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    pub(crate) ledger: Ledger,
    /// Whether a ledger lies on the disk.
    pub(crate) written: bool,
    pub(crate) observed: Observed,
    pub(crate) started_at: Option<Timestamp>,
    /// Why the last attempt failed.
    pub(crate) error: Option<String>,
    /// Whether the last worker gave up; whoever sees the target change takes this back.
    pub(crate) given_up: bool,
}

impl Held {
    /// Whether nothing is known and nothing is there.
    pub(crate) fn is_empty(&self) -> bool {
        !self.written && !self.observed.anything()
    }
}

/// Says how an instance is that a worker will see to.
pub(crate) fn post(shared: &Shared, id: InstanceId, held: &Held, state: ZoneState) {
    shared.board.post(id, fact(held, state, held.error.clone()), shared.now_ms());
}

/// Says how an instance is that nobody works on.
pub(crate) fn post_rest(shared: &Shared, id: InstanceId, held: &Held) {
    let state = if held.observed.running {
        ZoneState::Running
    } else if held.given_up {
        ZoneState::Failed
    } else if held.observed.connected {
        // Not off before it is off the network.
        ZoneState::Stopping
    } else if held.observed.root {
        ZoneState::Stopped
    } else {
        ZoneState::Absent
    };
    shared.board.post(id, fact(held, state, held.error.clone()), shared.now_ms());
}

/// What a report says of an instance of which `held` is known.
pub(crate) fn fact(held: &Held, state: ZoneState, error: Option<String>) -> ZoneFact {
    let (ledger, remembered) = (&held.ledger, &held.ledger.remembered);
    let macs = |wiring: &Wiring| wiring.nics.iter().map(|(nic, _)| nic.mac).collect();
    let addresses6 = |wiring: &Wiring| wiring.nics.iter().filter_map(|(nic, _)| nic.held6()).collect();
    ZoneFact {
        state,
        starts_done: remembered.starts_done,
        reboots_done: remembered.reboots_done,
        started_at: held.started_at,
        exit: ledger.exit.clone(),
        error,
        timeline: ledger.timeline.clone(),
        limits: remembered.limits.clone(),
        nics: remembered.wiring.as_ref().map(macs).unwrap_or_default(),
        addresses6: remembered.wiring.as_ref().map(addresses6).unwrap_or_default(),
        gave_up: held.given_up,
        // Both are added when the report is made.
        oom_kills: 0,
        guest_metadata: Vec::new(),
    }
}
