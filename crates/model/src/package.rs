//! Packages: the sizes instances come in. Field meanings and names follow Triton's PAPI.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    id::PackageId,
    instance::Brand,
    server::Trait,
    time::Timestamp,
    unit::{CpuCap, CpuShares, Mib},
};

/// A size. Record of table `packages`, unique by id; names are unique among active packages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Package {
    /// Never changes.
    pub id: PackageId,
    /// Name tenants use, e.g. `g1-small`.
    pub name: String,
    /// Version text, e.g. `1.0.0`.
    pub version: String,
    /// Groups packages of one family in listings.
    pub group: Option<String>,
    /// Shown to tenants.
    pub description: Option<String>,
    /// Memory the instance may use.
    pub memory: Mib,
    /// Memory plus swap space, as Triton counts `max_swap`; at least `memory`.
    pub swap: Mib,
    /// Disk quota.
    pub disk: Mib,
    /// Most processes and threads at once.
    pub max_processes: u32,
    /// Virtual CPUs a tenant is told of; 0 for containers.
    pub vcpus: u32,
    /// Ceiling on CPU time; `None` is no ceiling.
    pub cpu_cap: Option<CpuCap>,
    /// Weight under contention.
    pub cpu_shares: CpuShares,
    /// Traits its instances ask of their machine: machines with traits are kept for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub traits: BTreeMap<String, Trait>,
    /// Restricts the package to one brand.
    pub brand: Option<Brand>,
    /// Inactive packages stay for the instances that have them and are hidden from listings.
    pub active: bool,
    /// When it was made.
    pub created_at: Timestamp,
}
