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
        (
            _,
            ZoneState::Absent | ZoneState::Preparing | ZoneState::Starting | ZoneState::Stopped | ZoneState::Failed,
        ) => PublicState::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fmt::Write as _};

    use super::*;
    use crate::{
        id::{AccountId, ImageId, InstanceId, PackageId, ServerId},
        instance::{Brand, Intent},
        pairs::Pairs,
        target::{Limits, ZoneFact},
        time::Timestamp,
        unit::{CpuShares, Mib},
    };

    fn instance(wanted: Wanted, fact: Option<(ZoneState, u64)>) -> Instance {
        let id = uuid::Uuid::nil();
        let limits = Limits {
            memory: Mib(1),
            swap: Mib(1),
            disk: Mib(1),
            max_processes: 1,
            cpu_cap: None,
            cpu_shares: CpuShares(100),
        };
        let fact = fact.map(|(state, starts_done)| ZoneFact {
            state,
            starts_done,
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
        });
        Instance {
            id: InstanceId::new(id),
            owner: AccountId::new(id),
            alias: "a".to_owned(),
            brand: Brand::Lx,
            image: ImageId::new(id),
            package: PackageId::new(id),
            package_name: "p".to_owned(),
            affinity: Vec::new(),
            limits,
            server: ServerId::new(id),
            nics: Vec::new(),
            metadata: Pairs::default(),
            internal_metadata: Pairs::default(),
            tags: Pairs::default(),
            firewall_enabled: false,
            deletion_protection: false,
            intent: Intent { wanted, starts: 1, reboots: 0 },
            fact,
            released: false,
            lost_at: None,
            failure: None,
            flow: None,
            timeline: Vec::new(),
            guest_metadata_seen: 0,
            metadata_edits: 0,
            metadata_edits_served: 0,
            history: Vec::new(),
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
            delete_asked_at: None,
            deleted_at: None,
        }
    }

    /// What the public sees for every pair of what should be and what is. Columns: wanted running, stopped, absent.
    const MATRIX: &str = "\
no fact yet            provisioning provisioning stopping
Absent     never up    provisioning provisioning stopping
Preparing  never up    provisioning provisioning stopping
Stopped    never up    provisioning provisioning stopping
Starting   never up    provisioning provisioning stopping
Running    never up    running      stopping     stopping
Stopping   never up    stopping     stopping     stopping
Removing   never up    stopping     stopping     stopping
Failed     never up    provisioning provisioning stopping
Absent     was up      stopped      stopped      stopping
Preparing  was up      stopped      stopped      stopping
Stopped    was up      stopped      stopped      stopping
Starting   was up      stopped      stopped      stopping
Running    was up      running      stopping     stopping
Stopping   was up      stopping     stopping     stopping
Removing   was up      stopping     stopping     stopping
Failed     was up      stopped      stopped      stopping
machine silent         offline      offline      offline
";

    #[test]
    fn the_matrix() {
        use ZoneState::{Absent, Failed, Preparing, Removing, Running, Starting, Stopped, Stopping};
        let wanted = [Wanted::Running, Wanted::Stopped, Wanted::Absent];
        let mut rows = vec![("no fact yet".to_owned(), None, Reachability::Reachable)];
        for starts_done in [0, 1] {
            for state in [Absent, Preparing, Stopped, Starting, Running, Stopping, Removing, Failed] {
                let past = if starts_done == 0 { "never up" } else { "was up" };
                rows.push((
                    format!("{:<10} {past}", format!("{state:?}")),
                    Some((state, starts_done)),
                    Reachability::Reachable,
                ));
            }
        }
        rows.push(("machine silent".to_owned(), Some((Running, 1)), Reachability::Unreachable));
        let mut table = String::new();
        for (name, fact, machine) in rows {
            let seen = wanted.map(|wanted| public(&instance(wanted, fact), machine).as_str());
            writeln!(table, "{name:<22} {:<12} {:<12} {}", seen[0], seen[1], seen[2]).expect("strings take everything");
        }
        assert_eq!(table, MATRIX, "\n{table}");
    }

    #[test]
    fn deletion_and_failure_outrank_everything() {
        let mut failed = instance(Wanted::Absent, Some((ZoneState::Running, 1)));
        failed.failure = Some("no".to_owned());
        assert_eq!(public(&failed, Reachability::Unreachable), PublicState::Failed);
        failed.deleted_at = Some(Timestamp(1));
        assert_eq!(public(&failed, Reachability::Reachable), PublicState::Deleted);
    }
}
