//! Servers: the machines of the fleet as the control plane knows them.

use serde::{Deserialize, Serialize};

use crate::{id::ServerId, time::Timestamp, unit::Mib};

/// A machine. Record of table `servers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Never changes; carried in the machine's certificate.
    pub id: ServerId,
    /// What it calls itself.
    pub hostname: String,
    /// May take new instances.
    pub accepts_instances: bool,
    /// This machine also runs a headnode.
    pub headnode: bool,
    /// What it reported at its last start.
    pub hardware: Hardware,
    /// What its instances were promised together; changed in the same commit as each placement.
    pub reserved: Reserved,
    /// When it was last heard of, as of the last commit (heartbeats live in memory and are written once a minute).
    pub last_seen_at: Option<Timestamp>,
    /// The kernel's boot id of the running boot.
    pub boot_id: Option<String>,
    /// Highest generation of its target the machine has written down.
    pub target_seen: u64,
    /// Free text of the operator.
    pub comments: String,
    /// When it joined.
    pub created_at: Timestamp,
}

/// What a machine is made of, as it reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Memory the kernel can use.
    pub memory: Mib,
    /// Logical CPUs.
    pub cpus: u32,
    /// CPU model text.
    pub cpu_model: String,
    /// Size of the pool for datasets.
    pub pool_size: Mib,
    /// Kernel release.
    pub kernel: String,
    /// Version of the agent.
    pub agent_version: String,
}

/// Sum of what instances on a machine were promised.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// Number of instances.
    pub instances: u32,
    /// Sum of memory.
    pub memory: Mib,
    /// Sum of disk quotas.
    pub disk: Mib,
    /// Sum of CPU caps, percent of one core; instances without a cap count nothing.
    pub cpu: u64,
}
