//! What the operator decides about placement, and what an instance needs: plain numbers.

use super::score::FULL;
use crate::{
    instance::Instance,
    server::{Reserved, Server},
    target::Limits,
    unit::Mib,
};

/// How much a machine may promise, in percent of what it has, and which machines take part. A machine's own
/// [`crate::server::Ratios`] override the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Machines that run a headnode take instances too: right for a datacenter on one machine.
    pub headnode_takes_instances: bool,
    /// Instances with and without a CPU cap do not share a machine: those without one would starve the others.
    pub uncapped_apart: bool,
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
    /// What counts how much when several machines fit.
    pub weights: Weights,
}

/// How much each score counts; a score is 0 to 1,000. A negative weight turns a preference round: memory at -2 packs machines
/// full one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// Share of the memory that is not promised.
    pub memory: i32,
    /// Share of the disk that is not promised.
    pub disk: i32,
    /// Share of the CPU time that is not promised.
    pub cpu: i32,
    /// Few instances of the same owner on the machine.
    pub owner_spread: i32,
    /// Few instances of the same owner in the rack.
    pub rack_spread: i32,
    /// A soft rule of affinity that is met.
    pub soft_rules: i32,
}

impl Weights {
    /// Largest weight, either way.
    pub const MAX: i32 = 100;
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            headnode_takes_instances: false,
            uncapped_apart: false,
            memory_kept: Mib(1024),
            // Memory is not shared out twice: there is nothing to take it from.
            memory_percent: 100,
            // Caps are ceilings that few reach at once; Triton's own default is 4 to 1.
            cpu_percent: 400,
            // Quotas are ceilings too, and clones of one image share its blocks.
            disk_percent: 400,
            instances_max: 2_000,
            weights: Weights { memory: 2, disk: 1, cpu: 0, owner_spread: 1, rack_spread: 1, soft_rules: 10 },
        }
    }
}

impl Policy {
    /// Memory of `server` that may be promised, MiB.
    pub fn memory(&self, server: &Server) -> u64 {
        let kept = server.ratios.memory_kept.unwrap_or(self.memory_kept);
        let share = server.ratios.memory_percent.unwrap_or(self.memory_percent);
        percent(server.hardware.memory.0.saturating_sub(kept.0), share)
    }

    /// Disk of `server` that may be promised, MiB.
    pub fn disk(&self, server: &Server) -> u64 {
        percent(server.hardware.pool_size.0, server.ratios.disk_percent.unwrap_or(self.disk_percent))
    }

    /// CPU time of `server` that may be promised, percent of a core.
    pub fn cpu(&self, server: &Server) -> u64 {
        percent(u64::from(server.hardware.cpus) * 100, server.ratios.cpu_percent.unwrap_or(self.cpu_percent))
    }

    /// Scores that are no further apart are as good as equal: one percent of the room of an empty machine. Nothing where machines are to
    /// be packed full one by one, because there the fullest is wanted and not one nearly as full.
    pub fn band(&self) -> i64 {
        let rooms = [self.weights.memory, self.weights.disk, self.weights.cpu];
        match rooms.iter().any(|weight| *weight < 0) {
            true => 0,
            false => rooms.iter().map(|weight| i64::from(*weight)).sum::<i64>() * FULL / 100,
        }
    }

    /// Most instances of `server`.
    pub fn instances(&self, server: &Server) -> u32 {
        server.ratios.instances_max.unwrap_or(self.instances_max)
    }
}

fn percent(amount: u64, share: u32) -> u64 {
    amount.saturating_mul(u64::from(share)) / 100
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

    /// What the machine of `instance` holds for it: what its limits need, and as much as those still in force there need where that is
    /// more. Room that a smaller size leaves is free when it is free, and not when it was asked for: a machine may refuse, and then
    /// the old size is still there to go back to.
    pub fn held_by(instance: &Instance) -> Self {
        let wanted = Self::of(&instance.limits);
        let in_force = instance.fact.as_ref().and_then(|fact| fact.limits.as_ref());
        in_force.map(Self::of).map_or(wanted, |in_force| Self {
            memory: wanted.memory.max(in_force.memory),
            disk: wanted.disk.max(in_force.disk),
            cpu: wanted.cpu.max(in_force.cpu),
        })
    }

    /// Whether it has no CPU cap.
    pub const fn is_uncapped(self) -> bool {
        self.cpu == 0
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
            uncapped: self.uncapped.saturating_add(u32::from(demand.is_uncapped())),
        }
    }

    /// Without one instance that needed `demand`.
    pub fn minus(&self, demand: Demand) -> Self {
        Self {
            instances: self.instances.saturating_sub(1),
            memory: Mib(self.memory.0.saturating_sub(demand.memory.0)),
            disk: Mib(self.disk.0.saturating_sub(demand.disk.0)),
            cpu: self.cpu.saturating_sub(demand.cpu),
            uncapped: self.uncapped.saturating_sub(u32::from(demand.is_uncapped())),
        }
    }
}
