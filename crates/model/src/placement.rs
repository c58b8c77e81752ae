//! Which machine a new instance goes to, and why not to the others.
//!
//! Stages look at each machine in turn; the first that refuses it gives the reason. Machines that pass all stages are scored,
//! and the best one is taken: the one that will have the largest share of its memory left, so that load spreads. Equal
//! scores go to the smaller id, so the choice is a function of its arguments.

use std::fmt;

use crate::{
    id::ServerId,
    server::{Reserved, Server},
    state::Reachability,
    target::Limits,
    unit::Mib,
};

/// How much a machine may promise, in percent of what it has, and which machines take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Machines that run a headnode take instances too: right for a datacenter on one machine.
    pub headnode_takes_instances: bool,
    /// Memory kept for the machine itself before ratios apply.
    pub memory_kept: Mib,
    /// Percent of the remaining memory that may be promised.
    pub memory_percent: u32,
    /// Percent of all cores' time that CPU caps may add up to.
    pub cpu_percent: u32,
    /// Percent of the pool that quotas may add up to.
    pub disk_percent: u32,
    /// Most instances on one machine.
    pub instances_max: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            headnode_takes_instances: false,
            memory_kept: Mib(1024),
            // Memory is not shared out twice: there is nothing to take it from.
            memory_percent: 100,
            // Caps are ceilings that few reach at once; Triton's own default is 4 to 1.
            cpu_percent: 400,
            // Quotas are ceilings too, and clones of one image share its blocks.
            disk_percent: 400,
            instances_max: 2_000,
        }
    }
}

/// What an instance needs from its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Memory.
    pub memory: Mib,
    /// Disk quota.
    pub disk: Mib,
    /// CPU cap, percent of one core; 0 when it has none.
    pub cpu: u64,
}

impl Demand {
    /// What `limits` need.
    pub fn of(limits: &Limits) -> Self {
        Self { memory: limits.memory, disk: limits.disk, cpu: limits.cpu_cap.map_or(0, |cap| u64::from(cap.0)) }
    }
}

impl Reserved {
    /// With one more instance that needs `demand`.
    pub fn plus(&self, demand: Demand) -> Self {
        Self {
            instances: self.instances.saturating_add(1),
            memory: Mib(self.memory.0.saturating_add(demand.memory.0)),
            disk: Mib(self.disk.0.saturating_add(demand.disk.0)),
            cpu: self.cpu.saturating_add(demand.cpu),
        }
    }

    /// Without one instance that needed `demand`.
    pub fn minus(&self, demand: Demand) -> Self {
        Self {
            instances: self.instances.saturating_sub(1),
            memory: Mib(self.memory.0.saturating_sub(demand.memory.0)),
            disk: Mib(self.disk.0.saturating_sub(demand.disk.0)),
            cpu: self.cpu.saturating_sub(demand.cpu),
        }
    }
}

/// Why a machine is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The operator closed it for new instances.
    Closed,
    /// It runs a headnode.
    Headnode,
    /// It has not been heard of for a while.
    Unreachable,
    /// It has as many instances as a machine may.
    TooMany {
        /// That many.
        limit: u32,
    },
    /// Too little is left of something.
    TooSmall {
        /// `memory`, `disk` or `cpu`.
        what: &'static str,
        /// Needed, in MiB or percent of a core.
        needed: u64,
        /// Left, in the same unit.
        left: u64,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("takes no new instances"),
            Self::Headnode => f.write_str("runs a headnode"),
            Self::Unreachable => f.write_str("has not been heard of"),
            Self::TooMany { limit } => write!(f, "has {limit} instances already"),
            Self::TooSmall { what: "cpu", needed, left } => write!(f, "cpu: {needed}% needed, {left}% left"),
            Self::TooSmall { what, needed, left } => write!(f, "{what}: {needed} MiB needed, {left} MiB left"),
        }
    }
}

/// No machine can take the instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.summary())]
pub struct NoRoom {
    /// Each machine with its reason.
    pub refusals: Vec<(ServerId, Refusal)>,
}

impl NoRoom {
    /// One sentence a tenant may read: no machine is named in it.
    pub fn summary(&self) -> String {
        if self.refusals.is_empty() {
            return "no machine has joined the datacenter yet".to_owned();
        }
        let count = |of: fn(&Refusal) -> bool| self.refusals.iter().filter(|(_, refusal)| of(refusal)).count();
        let parts: Vec<String> = [
            (count(|refusal| matches!(refusal, Refusal::Closed | Refusal::Headnode)), "closed for new instances"),
            (count(|refusal| matches!(refusal, Refusal::Unreachable)), "not reachable"),
            (count(|refusal| matches!(refusal, Refusal::TooMany { .. })), "at their limit of instances"),
            (
                count(|refusal| matches!(refusal, Refusal::TooSmall { what: "memory", .. })),
                "with too little memory left",
            ),
            (count(|refusal| matches!(refusal, Refusal::TooSmall { what: "disk", .. })), "with too little disk left"),
            (count(|refusal| matches!(refusal, Refusal::TooSmall { what: "cpu", .. })), "with too little CPU left"),
        ]
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, why)| format!("{number} {why}"))
        .collect();
        format!("no machine can take it: {}", parts.join(", "))
    }
}

/// Chooses a machine for `demand` among `candidates`.
pub fn place<'a>(
    demand: Demand,
    policy: &Policy,
    candidates: impl IntoIterator<Item = (&'a Server, Reachability)>,
) -> Result<ServerId, NoRoom> {
    let mut refusals = Vec::new();
    let mut best: Option<(u64, ServerId)> = None;
    for (server, reachability) in candidates {
        match judge(demand, policy, server, reachability) {
            Err(refusal) => refusals.push((server.id, refusal)),
            Ok(score) => {
                let better = best.is_none_or(|(top, id)| score > top || (score == top && server.id < id));
                if better {
                    best = Some((score, server.id));
                }
            }
        }
    }
    best.map(|(_, id)| id).ok_or(NoRoom { refusals })
}

/// Whether `server` can take `demand` in place of `released`, which it holds already: a resize.
pub fn fits(demand: Demand, released: Demand, policy: &Policy, server: &Server) -> Result<(), Refusal> {
    let reserved = server.reserved.minus(released);
    // Shrinking always fits, also on a machine that promised too much under an older policy.
    room(demand, released, policy, server, &reserved)
}

/// The stages in order, then the score: per mille of the memory that will be left.
fn judge(demand: Demand, policy: &Policy, server: &Server, reachability: Reachability) -> Result<u64, Refusal> {
    if !server.accepts_instances {
        return Err(Refusal::Closed);
    }
    if server.headnode && !policy.headnode_takes_instances {
        return Err(Refusal::Headnode);
    }
    if reachability == Reachability::Unreachable {
        return Err(Refusal::Unreachable);
    }
    if server.reserved.instances >= policy.instances_max {
        return Err(Refusal::TooMany { limit: policy.instances_max });
    }
    let nothing = Demand { memory: Mib(0), disk: Mib(0), cpu: 0 };
    room(demand, nothing, policy, server, &server.reserved)?;
    let memory = memory_promisable(policy, server).max(1);
    let left = memory.saturating_sub(server.reserved.memory.0 + demand.memory.0);
    Ok(left.saturating_mul(1_000) / memory)
}

fn room(demand: Demand, had: Demand, policy: &Policy, server: &Server, reserved: &Reserved) -> Result<(), Refusal> {
    let percent = |amount: u64, percent: u32| amount.saturating_mul(u64::from(percent)) / 100;
    let cores = u64::from(server.hardware.cpus) * 100;
    let stages = [
        ("memory", demand.memory.0, had.memory.0, memory_promisable(policy, server), reserved.memory.0),
        ("disk", demand.disk.0, had.disk.0, percent(server.hardware.pool_size.0, policy.disk_percent), reserved.disk.0),
        ("cpu", demand.cpu, had.cpu, percent(cores, policy.cpu_percent), reserved.cpu),
    ];
    for (what, needed, had, promisable, promised) in stages {
        let left = promisable.saturating_sub(promised);
        if needed > left && needed > had {
            return Err(Refusal::TooSmall { what, needed, left });
        }
    }
    Ok(())
}

fn memory_promisable(policy: &Policy, server: &Server) -> u64 {
    server.hardware.memory.0.saturating_sub(policy.memory_kept.0).saturating_mul(u64::from(policy.memory_percent)) / 100
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{id::ServerId, server::Hardware, time::Timestamp};

    fn server(number: u128, memory: u64, reserved: u64) -> Server {
        Server {
            id: ServerId::new(uuid::Uuid::from_u128(number)),
            hostname: format!("s{number}"),
            accepts_instances: true,
            headnode: false,
            hardware: Hardware { memory: Mib(memory), cpus: 4, pool_size: Mib(100_000), ..Hardware::default() },
            reserved: Reserved { memory: Mib(reserved), ..Reserved::default() },
            last_seen_at: None,
            boot_id: None,
            target_seen: 0,
            comments: String::new(),
            created_at: Timestamp(0),
        }
    }

    const SMALL: Demand = Demand { memory: Mib(256), disk: Mib(1_000), cpu: 100 };

    fn refusal_of(server: &Server, reachability: Reachability, policy: &Policy) -> String {
        match place(SMALL, policy, [(server, reachability)]) {
            Ok(_) => "placed".to_owned(),
            Err(no_room) => no_room.refusals[0].1.to_string(),
        }
    }

    #[test]
    fn every_stage_gives_its_reason() {
        let (policy, reachable) = (Policy::default(), Reachability::Reachable);
        let good = server(1, 4_096, 0);
        assert_eq!(refusal_of(&good, reachable, &policy), "placed");
        assert_eq!(refusal_of(&good, Reachability::Unreachable, &policy), "has not been heard of");
        let closed = Server { accepts_instances: false, ..good.clone() };
        assert_eq!(refusal_of(&closed, reachable, &policy), "takes no new instances");
        let headnode = Server { headnode: true, ..good.clone() };
        assert_eq!(refusal_of(&headnode, reachable, &policy), "runs a headnode");
        let allowed = Policy { headnode_takes_instances: true, ..policy };
        assert_eq!(refusal_of(&headnode, reachable, &allowed), "placed");
        let full = server(1, 1_200, 0);
        assert_eq!(refusal_of(&full, reachable, &policy), "memory: 256 MiB needed, 176 MiB left");
        let mut busy = good.clone();
        busy.reserved.cpu = 1_550;
        assert_eq!(refusal_of(&busy, reachable, &policy), "cpu: 100% needed, 50% left");
        busy = good.clone();
        busy.reserved.disk = Mib(399_500);
        assert_eq!(refusal_of(&busy, reachable, &policy), "disk: 1000 MiB needed, 500 MiB left");
        busy = good;
        busy.reserved.instances = policy.instances_max;
        assert_eq!(refusal_of(&busy, reachable, &policy), "has 2000 instances already");
    }

    #[test]
    fn a_refusal_names_no_machine() {
        let (one, two) = (server(1, 1_100, 0), server(2, 1_100, 0));
        let no_room = place(SMALL, &Policy::default(), [&one, &two].map(|server| (server, Reachability::Reachable)))
            .expect_err("both are too small");
        assert_eq!(no_room.to_string(), "no machine can take it: 2 with too little memory left");
        let nobody = place(SMALL, &Policy::default(), []).expect_err("nobody is there");
        assert_eq!(nobody.to_string(), "no machine has joined the datacenter yet");
    }

    proptest! {
        #[test]
        fn never_promises_more_than_the_policy_allows(
            machines in proptest::collection::vec((1_000_u64..20_000, 0_u64..20_000), 0..8),
            memory in 1_u64..8_000,
        ) {
            let policy = Policy::default();
            let servers: Vec<Server> = machines.iter().enumerate()
                .map(|(number, (has, promised))| server(number as u128, *has, *promised)).collect();
            let demand = Demand { memory: Mib(memory), disk: Mib(1), cpu: 0 };
            let candidates = |order: &[Server]| place(demand, &policy, order.iter().map(|server| (server, Reachability::Reachable)));
            let fitting = |server: &Server| server.reserved.memory.0 + memory <= server.hardware.memory.0.saturating_sub(1_024);
            match candidates(&servers) {
                Ok(id) => {
                    let chosen = servers.iter().find(|server| server.id == id).expect("one of them");
                    prop_assert!(fitting(chosen));
                }
                Err(no_room) => {
                    prop_assert!(!servers.iter().any(fitting));
                    prop_assert_eq!(no_room.refusals.len(), servers.len());
                }
            }
            let reversed: Vec<Server> = servers.iter().rev().cloned().collect();
            prop_assert_eq!(candidates(&servers).ok(), candidates(&reversed).ok());
        }

        #[test]
        fn giving_back_undoes_taking(memory in 0_u64..1_000_000, disk in 0_u64..1_000_000, cpu in 0_u64..10_000) {
            let demand = Demand { memory: Mib(memory), disk: Mib(disk), cpu };
            let before = Reserved { instances: 3, memory: Mib(7), disk: Mib(9), cpu: 11 };
            prop_assert_eq!(before.plus(demand).minus(demand), before);
        }
    }
}
