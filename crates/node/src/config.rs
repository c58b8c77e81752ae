//! What an agent must be told. Plain data: reading settings files is the caller's job.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, time::Duration};

use host::zone::IdRange;
use model::{
    id::ServerId,
    role::{HeadnodeFact, HeadnodeRole},
    server::Whereabouts,
};
use tokio::sync::watch;

use crate::files::Disk;

/// Everything an agent is told at its start.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Which machine this is; targets for another one are refused.
    pub server: ServerId,
    /// Where the target, the ledgers and images on their way are kept, e.g. `/var/lib/neso/node`. Must survive a reboot.
    pub data_dir: PathBuf,
    /// Where each zone gets the directory that it sees as `/.zonecontrol`, e.g. `/run/neso/control`. Need not survive a reboot.
    pub control_dir: PathBuf,
    /// What stands between the agent and its files.
    pub disk: Disk,
    /// Where the private id ranges of zones come from.
    pub id_ranges: IdRanges,
    /// Program and arguments of a zone's init.
    pub init: Vec<String>,
    /// How long a zone may take to halt before it is killed.
    pub stop_grace: Duration,
    /// Version text for reports.
    pub version: String,
    /// NIC tags this machine is wired to; `None` leaves it open.
    pub nic_tags: Option<BTreeSet<String>>,
    /// Where this machine is in the networks around it; follows what the caller finds out.
    pub whereabouts: watch::Receiver<Whereabouts>,
    /// Told what its documents say about running a headnode; taking that on is the caller's business.
    pub role: watch::Sender<Option<HeadnodeRole>>,
    /// How far the caller is with it, for reports.
    pub headnode: watch::Receiver<Option<HeadnodeFact>>,
    /// Where a headnode on this machine would listen.
    pub headnode_listens: Vec<SocketAddr>,
    /// Where what instances use is written down every minute; `None` does not write it.
    pub usage_dir: Option<PathBuf>,
    /// Where verbs of the host run.
    pub execution: Execution,
}

impl AgentConfig {
    /// The usual choices for a machine; the caller gives what differs between datacenters.
    pub fn new(server: ServerId, data_dir: PathBuf, control_dir: PathBuf) -> Self {
        Self {
            server,
            data_dir,
            control_dir,
            disk: Disk::default(),
            id_ranges: IdRanges::default(),
            init: vec!["/sbin/init".to_owned()],
            stop_grace: Duration::from_secs(15),
            whereabouts: watch::channel(Whereabouts::default()).1,
            version: base::release::name().to_owned(),
            nic_tags: None,
            role: watch::Sender::new(None),
            headnode: watch::channel(None).1,
            headnode_listens: Vec::new(),
            usage_dir: None,
            execution: Execution::Threads,
        }
    }
}

/// The stretch of host ids that this agent may give to zones. Two datacenters on one machine need two stretches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRanges {
    /// First host id of the first range.
    pub first: u32,
    /// How many ranges of [`IdRange::COUNT`] ids.
    pub count: u32,
}

impl Default for IdRanges {
    /// From [`IdRange::BASE`] to the end of the 32-bit ids: 61,439 zones.
    fn default() -> Self {
        Self { first: IdRange::BASE, count: (u32::MAX - IdRange::BASE) / IdRange::COUNT }
    }
}

/// Where verbs of the host, which may wait, are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Execution {
    /// On threads meant for waiting.
    Threads,
    /// In place. For simulations, where the host never waits and the order of events must follow from the seed.
    Inline,
}
