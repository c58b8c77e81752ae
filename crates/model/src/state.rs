//! What the public sees: a pure function of what should be and what is.

use crate::{
    instance::{Instance, Wanted},
    target::ZoneState,
};

/// CloudAPI's instance states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PublicState {
    /// Asked for, not yet running for the first time.
    Provisioning,
    /// Its init runs.
    Running,
    /// On its way to stopped.
    Stopping,
    /// There, not running.
    Stopped,
    /// Its machine has not been heard of for a while.
    Offline,
    /// Gone, or on its way.
    Deleted,
    /// Could not be made; the record says why.
    Failed,
}

impl PublicState {
    /// CloudAPI's spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Offline => "offline",
            Self::Deleted => "deleted",
            Self::Failed => "failed",
        }
    }
}

/// Whether an instance's machine is being heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reachability {
    /// Reports arrive.
    Reachable,
    /// They have stopped for longer than the datacenter tolerates.
    Unreachable,
}

/// The state CloudAPI shows for `instance`.
pub fn public(instance: &Instance, machine: Reachability) -> PublicState {
    if instance.deleted_at.is_some() {
        return PublicState::Deleted;
    }
    if instance.failure.is_some() {
        return PublicState::Failed;
    }
    let fact = instance.fact.as_ref();
    let zone = fact.map_or(ZoneState::Absent, |fact| fact.state);
    if machine == Reachability::Unreachable && fact.is_some() {
        return PublicState::Offline;
    }
    let booted_once = fact.is_some_and(|fact| fact.starts_done > 0);
    match (instance.intent.wanted, zone) {
        (Wanted::Absent, _) => PublicState::Stopping,
        (Wanted::Stopped, ZoneState::Running | ZoneState::Stopping) => PublicState::Stopping,
        (_, ZoneState::Running) => PublicState::Running,
        (_, ZoneState::Stopping | ZoneState::Removing) => PublicState::Stopping,
        (_, ZoneState::Absent | ZoneState::Preparing | ZoneState::Starting) if !booted_once => {
            PublicState::Provisioning
        }
        (_, ZoneState::Stopped | ZoneState::Failed) if !booted_once => PublicState::Provisioning,
        (_, ZoneState::Absent | ZoneState::Preparing | ZoneState::Starting | ZoneState::Stopped | ZoneState::Failed) => {
            PublicState::Stopped
        }
    }
}
