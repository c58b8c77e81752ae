//! Zones: OS containers, each with a small supervisor process that outlives the agent.
//!
//! ```text
//! prepare ─► (links attach NICs) ─► start ─► running ─► stop ─► start …
//!    └─────────────────────────────────── destroy ◄──────┘
//! ```
//! `prepare` makes the namespaces that exist before any process does (user and network), `start` boots, `stop` asks
//! init to halt and kills it after the grace time, `destroy` removes every trace but the dataset.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use model::{
    id::InstanceId,
    meters::ZoneMeters,
    target::{Exit, Limits},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::error::Result;

/// Everything `start` needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneSpec {
    /// Which instance.
    pub instance: InstanceId,
    /// Host name inside.
    pub hostname: String,
    /// The private range of user and group ids. Chosen and remembered by the agent.
    pub ids: IdRange,
    /// The root file system's directory, owned by ids 0… as in the image; it is id-mapped, never chowned.
    pub root: PathBuf,
    /// Program and arguments of init.
    pub init: Vec<String>,
    /// What the kernel enforces.
    pub limits: Limits,
    /// Host directory that appears as `/.zonecontrol` inside, read-only; the agent keeps `metadata.sock` in it.
    pub control_dir: PathBuf,
    /// Content of `/etc/resolv.conf`; `None` leaves the image's.
    pub resolv_conf: Option<String>,
    /// Content of `/etc/hosts`; `None` leaves the image's.
    pub hosts: Option<String>,
}

/// A run of user and group ids on the host that belongs to one zone alone: inside id `n` is host id `first + n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IdRange {
    /// First host id.
    pub first: u32,
    /// How many; 65,536.
    pub count: u32,
}

impl IdRange {
    /// Ids per zone: what a Linux userland expects.
    pub const COUNT: u32 = 65_536;
    /// Lowest first id ever given out; below lie the host's own users and those of other container tools.
    pub const BASE: u32 = 0x1000_0000;
}

/// A zone as it is on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneStatus {
    /// Which instance.
    pub instance: InstanceId,
    /// Whether init runs.
    pub running: bool,
    /// When init was started, if it runs.
    pub started_at: Option<Timestamp>,
    /// Host pid of init, if it runs.
    pub pid: Option<u32>,
    /// How the last boot ended, if one did and nothing runs.
    pub exit: Option<Exit>,
    /// Limits in force.
    pub limits: Option<Limits>,
}

/// A place in a console log: which of its files, and how far into it. Its text form is for handing back later and means
/// nothing to anybody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsoleMark {
    /// The file's number on its file system.
    pub file: u64,
    /// When it was made, nanoseconds since 1970: numbers are used again.
    pub born: u64,
    /// Bytes from its begin.
    pub offset: u64,
}

impl fmt::Display for ConsoleMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.file, self.born, self.offset)
    }
}

/// A text is no [`ConsoleMark`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no place in a console log; give one back as it was told")]
pub struct NoConsoleMark(String);

impl FromStr for ConsoleMark {
    type Err = NoConsoleMark;

    fn from_str(text: &str) -> std::result::Result<Self, NoConsoleMark> {
        let numbers: Option<Vec<u64>> = text.splitn(4, '-').map(|number| number.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[file, born, offset]) => Ok(Self { file, born, offset }),
            _ => Err(NoConsoleMark(text.chars().take(80).collect())),
        }
    }
}

/// A piece of a console log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsolePiece {
    /// What the zone wrote, as it wrote it.
    pub bytes: Vec<u8>,
    /// The place behind its last byte; `None` while nothing was ever written.
    pub end: Option<ConsoleMark>,
    /// The place asked for is gone: the log keeps a bounded amount, and this is its newest part.
    pub lost: bool,
}

/// Something happened to a zone without the agent asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZoneEvent {
    /// Look at this one's [`Zones::status`].
    pub instance: InstanceId,
}

/// Containers.
pub trait Zones: Send + Sync {
    /// Makes user and network namespace of a zone and pins them, so that NICs can be attached before it starts.
    /// Returns the path of the network namespace.
    fn prepare(&self, instance: InstanceId, ids: IdRange) -> Result<PathBuf>;

    /// Starts a prepared zone. Returns once its init executes; a running one is left alone.
    fn start(&self, spec: &ZoneSpec) -> Result<ZoneStatus>;

    /// Asks init to halt, waits `grace`, kills what is left, waits until nothing runs. Keeps the namespaces.
    fn stop(&self, instance: InstanceId, grace: Duration) -> Result<ZoneStatus>;

    /// Changes limits of a running zone at once; remembered for nothing else.
    fn set_limits(&self, instance: InstanceId, limits: &Limits) -> Result<()>;

    /// Condition of one zone; [`crate::Error::Missing`] when there is no trace of it.
    fn status(&self, instance: InstanceId) -> Result<ZoneStatus>;

    /// Every zone with any trace on this machine (namespaces, cgroup, runtime directory, processes).
    fn list(&self) -> Result<Vec<ZoneStatus>>;

    /// What a running zone uses, and used since it was started.
    fn meters(&self, instance: InstanceId) -> Result<ZoneMeters>;

    /// How many of its processes the kernel killed for lack of memory since it was started.
    fn oom_kills(&self, instance: InstanceId) -> Result<u64>;

    /// At most `max_bytes` of the console log: those that follow `after`, or else the last ones. A zone that does not run, or
    /// never did, has one too.
    fn console(&self, instance: InstanceId, after: Option<ConsoleMark>, max_bytes: usize) -> Result<ConsolePiece>;

    /// The last `max_bytes` of the console log.
    fn console_log(&self, instance: InstanceId, max_bytes: usize) -> Result<Vec<u8>> {
        Ok(self.console(instance, None, max_bytes)?.bytes)
    }

    /// Stops without grace and removes every trace: processes, namespaces, cgroups, mounts, runtime files.
    fn destroy(&self, instance: InstanceId) -> Result<()>;

    /// Events from now on. One subscriber; events that find the channel full are dropped, since they only say "look".
    fn events(&self) -> mpsc::Receiver<ZoneEvent>;
}
