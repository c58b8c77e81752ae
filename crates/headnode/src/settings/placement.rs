//! How much of a machine may be promised, and what counts when several fit.

use serde::{Deserialize, Serialize};

/// Rules of placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Whether the machine that runs the headnode takes instances.
    pub headnode_takes_instances: bool,
    /// Memory kept for the machine itself, MiB.
    pub memory_kept_mib: u64,
    /// Percent of the remaining memory that may be promised.
    pub memory_percent: u32,
    /// Percent of the pool that quotas may add up to.
    pub disk_percent: u32,
    /// Percent of all cores' time that CPU caps may add up to.
    pub cpu_percent: u32,
    /// Most instances on one machine.
    pub instances_max: u32,
    /// Whether instances with and without a CPU cap are kept on different machines.
    #[serde(default)]
    pub uncapped_apart: bool,
    /// What counts how much when several machines fit.
    #[serde(default)]
    pub weights: PlacementWeights,
}

/// What counts how much when several machines fit; see [`model::placement::Weights`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the names are those of the model")]
pub struct PlacementWeights {
    pub memory: i32,
    pub disk: i32,
    pub cpu: i32,
    pub owner_spread: i32,
    pub rack_spread: i32,
    pub soft_rules: i32,
}

impl Default for PlacementWeights {
    fn default() -> Self {
        let model::placement::Weights { memory, disk, cpu, owner_spread, rack_spread, soft_rules } =
            model::placement::Policy::default().weights;
        Self { memory, disk, cpu, owner_spread, rack_spread, soft_rules }
    }
}

impl Placement {
    pub(super) fn check(&self) -> Result<(), String> {
        let PlacementWeights { memory, disk, cpu, owner_spread, rack_spread, soft_rules } = self.weights;
        let weights = [memory, disk, cpu, owner_spread, rack_spread, soft_rules];
        let most = model::placement::Weights::MAX;
        if let Some(weight) = weights.into_iter().find(|weight| weight.abs() > most) {
            return Err(format!("placement.weights must be between -{most} and {most}, not {weight}"));
        }
        Ok(())
    }
}
