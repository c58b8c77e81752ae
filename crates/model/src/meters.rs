//! What instances and machines used, as their kernels count it.
//!
//! Plain facts, read by a node when a headnode asks; nothing of it is stored. Counters begin at zero when whatever they count begins
//! (an instance's boot, a NIC's making, a machine's boot) and only grow. What a kernel does not count is missing, never zero.
//! What all this is called outside is in [`crate::metrics`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{id::InstanceId, rates::Moment, target::Limits, time::Timestamp};

/// Everything of one machine at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeMeters {
    /// When it was read, by the machine's clock.
    pub at: Timestamp,
    /// The machine itself.
    pub machine: MachineMeters,
    /// Instances it has, running or not.
    pub instances: BTreeMap<InstanceId, InstanceMeters>,
}

impl NodeMeters {
    /// When it was read.
    pub fn moment(&self) -> Moment {
        Moment { at: self.at, up_ms: self.machine.up_ms }
    }
}

/// An instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceMeters {
    /// What the kernel holds it to; `None` while it was never started here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// What its processes use; `None` while none runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneMeters>,
    /// Its NICs by the name they have inside.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nics: BTreeMap<String, LinkMeters>,
    /// Bytes it uses of its disk quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
}

/// The processes of an instance together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneMeters {
    /// When they were started, by the machine's clock: counters of another start are other counters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// CPU time in programs, nanoseconds.
    pub cpu_user_ns: u64,
    /// CPU time in the kernel on their behalf, nanoseconds.
    pub cpu_system_ns: u64,
    /// How long the ceiling on CPU time held them back, nanoseconds; each CPU they were held back on counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_held_back_ns: Option<u64>,
    /// Memory charged to them, without files the kernel gives up before anything else, bytes.
    pub memory_bytes: u64,
    /// The same together with what is in swap, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_and_swap_bytes: Option<u64>,
    /// How often they were at their limit of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_failures: Option<u64>,
    /// How many the kernel killed for lack of memory.
    pub oom_kills: u64,
    /// Processes and threads.
    pub processes: u64,
    /// How long they waited for what they lacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressures>,
    /// Their TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpMeters>,
}

/// Pressure stalls, as the kernel's `Documentation/accounting/psi.rst` means them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressures {
    /// Lack of CPUs.
    pub cpu: Pressure,
    /// Lack of memory.
    pub memory: Pressure,
    /// Slow disks.
    pub io: Pressure,
}

/// Time in which something was lacking, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// Some task waited.
    pub some_us: u64,
    /// All tasks that could have done something waited.
    pub full_us: u64,
}

/// TCP of one network namespace: `/proc/net/snmp` and `netstat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpMeters {
    /// Connections begun.
    pub active_opens: u64,
    /// Connections accepted.
    pub passive_opens: u64,
    /// Connections that did not come about.
    pub failed_attempts: u64,
    /// Connections there now.
    pub established: u64,
    /// Segments sent again.
    pub retransmitted: u64,
    /// Connections dropped because nobody accepted them in time.
    pub listen_drops: u64,
    /// Connections dropped half open.
    pub half_open_drops: u64,
    /// Connections given up because nobody acknowledged.
    pub timeout_drops: u64,
}

/// An interface, as its owner sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkMeters {
    /// Bytes that arrived.
    pub received_bytes: u64,
    /// Packets that arrived.
    pub received_packets: u64,
    /// Packets that arrived and were dropped.
    pub received_drops: u64,
    /// Bytes that left.
    pub sent_bytes: u64,
    /// Packets that left.
    pub sent_packets: u64,
    /// Packets that were to leave and were dropped.
    pub sent_drops: u64,
}

/// A machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineMeters {
    /// When it was switched on, seconds since 1970.
    pub booted_s: u64,
    /// How long ago that was, by a clock that nobody sets, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_ms: Option<u64>,
    /// Its CPUs in order.
    pub cpus: Vec<CpuMeters>,
    /// Tasks running or waiting for a CPU or a disk, averaged over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Of `/proc/meminfo`, bytes by the kernel's name.
    pub memory: BTreeMap<String, u64>,
    /// Whole disks by name.
    pub disks: BTreeMap<String, DiskMeters>,
    /// Interfaces that are not an instance's, by name.
    pub links: BTreeMap<String, LinkMeters>,
    /// Size and use of the pool of datasets, bytes; `None` while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<(u64, u64)>,
    /// How long tasks waited for what they lacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressures>,
    /// Degrees Celsius by the name of the sensor.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub temperatures: BTreeMap<String, f64>,
    /// What the kernel believes of its clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<ClockMeters>,
    /// The agent that read all this; `None` of one that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Box<AgentMeters>>,
}

/// The agent of a machine, since it was started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentMeters {
    /// When that was, by the machine's clock, seconds since 1970.
    pub started_s: u64,
    /// CPU time it used, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_s: Option<f64>,
    /// Memory that is resident, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Threads it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u64>,
    /// Reports a headnode took.
    pub reports: u64,
    /// Reports that no headnode took.
    pub reports_failed: u64,
    /// Targets it took.
    pub targets: u64,
    /// Requests for a target that failed, and targets it refused.
    pub targets_failed: u64,
    /// Questions it answered.
    pub inquiries: u64,
    /// Attempts to make an instance as it should be that failed.
    pub attempts_failed: u64,
    /// Instances that wait for their turn.
    pub waiting: u64,
    /// What it does on its machine, by name.
    pub verbs: BTreeMap<String, VerbMeters>,
}

/// One thing an agent does on its machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerbMeters {
    /// How many it is at.
    pub running: u64,
    /// How many it has done, well or not.
    pub done: u64,
    /// How long these took together, microseconds.
    pub total_us: u64,
}

/// Time of one CPU since the machine's boot, hundredths of a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuMeters {
    /// In programs, also nice ones.
    pub user: u64,
    /// In the kernel, interrupts among it.
    pub system: u64,
    /// Idle.
    pub idle: u64,
    /// Idle while a disk was waited for.
    pub iowait: u64,
    /// Given to other guests by a hypervisor below.
    pub steal: u64,
}

/// A disk since the machine's boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMeters {
    /// Reads done.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes done.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Time with something under way, milliseconds.
    pub busy_ms: u64,
}

/// A machine's clock, from `adjtimex`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockMeters {
    /// Whether something keeps it right.
    pub is_synchronized: bool,
    /// How far it may be off at most, microseconds.
    pub max_error_us: u64,
    /// How far it is thought to be off, microseconds.
    pub estimated_error_us: u64,
}
