//! What instances used, for bills: samples of a minute in Triton's shape, and the sums of an hour and a month that are made of them.
//!
//! ```text
//! samples of a machine, one an instance and minute ─► Meter ─► Row, one an instance and package and hour ─► sums of months
//! ```
//! A sample holds the kernel's counters as they are; what was used is the difference between two samples. So a minute in which nobody
//! looked loses nothing as long as the instance runs on: what it used is in the next difference, and the time between two samples of one
//! run counts as time in which it ran. What is lost is what a run used between its last sample and its end: a minute's at most while lines
//! are written, and of a longer gap all that was used in it by a run that ended in it.

mod meter;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Serialize, de};

pub use self::meter::{Held, Meter, Seen};
use crate::{
    id::{AccountId, InstanceId, MacAddr, ServerId},
    rules::{ALIAS_MAX, NAME_MAX},
    time::Timestamp,
};

/// Version of [`Sample`]: what Triton calls this shape.
pub const VERSION: &str = "HF4";
/// Longest time between two samples that is counted as time, minutes. A longer one is a clock that was set, or a machine whose agent was
/// away for so long that people look at it; counters are counted all the same.
pub const GAP_MINUTES_MAX: i64 = 24 * 60;
/// An instance that is seen for the first time was not there before if it was started so shortly ago, milliseconds.
const FRESH_START_MS: i64 = 120_000;
const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 3_600_000;

// === when ===

/// An hour, in UTC. Text form: `2026-11-28T19`, as Triton names its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(i64);

impl Hour {
    /// The one a moment is in.
    pub const fn of(at: Timestamp) -> Self {
        Self(at.0.div_euclid(HOUR_MS))
    }

    /// When it begins.
    pub const fn begins(self) -> Timestamp {
        Timestamp(self.0.saturating_mul(HOUR_MS))
    }

    /// `hours` behind this one.
    pub const fn later(self, hours: i64) -> Self {
        Self(self.0.saturating_add(hours))
    }

    /// `hours` before this one.
    pub const fn earlier(self, hours: i64) -> Self {
        Self(self.0.saturating_sub(hours))
    }

    /// The month it is in.
    pub fn month(self) -> Month {
        let text = self.begins().to_string();
        // A moment that no calendar knows has no month; it is put before all others.
        text.get(..7).and_then(|month| month.parse().ok()).unwrap_or(Month { year: 1970, month: 1 })
    }
}

impl fmt::Display for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.begins().to_string();
        f.write_str(text.get(..13).unwrap_or(&text))
    }
}

/// A text that is no hour or no month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be {0}")]
pub struct NoTime(&'static str);

impl FromStr for Hour {
    type Err = NoTime;

    fn from_str(text: &str) -> Result<Self, NoTime> {
        let wrong = NoTime("an hour such as 2026-11-28T19");
        let at: Timestamp = format!("{text}:00:00.000Z").parse().map_err(|_| wrong)?;
        let hour = Self::of(at);
        if hour.to_string() == text { Ok(hour) } else { Err(wrong) }
    }
}

/// A month, in UTC. Text form: `2026-11`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month {
    year: u16,
    month: u8,
}

impl Month {
    /// The one a moment is in.
    pub fn of(at: Timestamp) -> Self {
        Hour::of(at).month()
    }

    /// `months` before this one.
    pub const fn earlier(self, months: u16) -> Self {
        let all = (self.year as u32 * 12 + self.month as u32 - 1).saturating_sub(months as u32);
        Self { year: (all / 12) as u16, month: (all % 12) as u8 + 1 }
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl FromStr for Month {
    type Err = NoTime;

    fn from_str(text: &str) -> Result<Self, NoTime> {
        let read = || {
            let (year, month) = text.split_once('-')?;
            let found = Self { year: year.parse().ok()?, month: month.parse().ok()? };
            ((1..=12).contains(&found.month) && found.year <= 9_999 && found.to_string() == text).then_some(found)
        };
        read().ok_or(NoTime("a month such as 2026-11"))
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_text!(Hour, Month);

// === what a file holds ===

/// One line of a file of samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line {
    /// An instance.
    Usage(Box<Sample>),
    /// Behind all instances of a minute.
    Summary(Summary),
}

/// An instance at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// [`VERSION`].
    pub v: String,
    /// When.
    pub timestamp: Timestamp,
    /// The machine.
    pub server_uuid: ServerId,
    /// The datacenter.
    pub datacenter_name: String,
    /// Which.
    pub uuid: InstanceId,
    /// The same; Triton has two.
    pub os_uuid: InstanceId,
    /// `running`, else `installed`.
    pub status: String,
    /// When it was started last, while it runs, by the machine's own clock then: the name of this run, which never moves. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// How long ago that was by the same clock, milliseconds: `timestamp` is the headnodes' time. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<i64>,
    /// What it should be.
    pub config: SampleConfig,
    /// Traffic by NIC, as the instance sees it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub network_usage: BTreeMap<String, NetworkUsage>,
    /// Disk space by dataset.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub disk_usage: BTreeMap<String, DiskUsage>,
    /// CPU time since it was started. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_usage: Option<CpuUsage>,
    /// Memory its processes use, bytes. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_usage: Option<u64>,
}

/// Part of [`Sample`]: in Triton, the settings of a zone, where every value is a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleConfig {
    /// Its id.
    pub name: String,
    /// How it runs.
    pub brand: String,
    /// `alias`, `owner-uuid`, `billing-id`, `package-name` …
    pub attributes: BTreeMap<String, String>,
    /// Weight.
    pub cpu_shares: String,
    /// Ceiling, hundredths of a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_cap: Option<String>,
    /// Processes and threads.
    pub max_lwps: String,
    /// Memory, bytes.
    pub max_physical_memory: String,
    /// Memory and swap, bytes.
    pub max_swap: String,
    /// Its NICs.
    #[serde(default)]
    pub networks: Vec<SampleNic>,
}

/// Part of [`SampleConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleNic {
    /// Its Ethernet address.
    pub mac_addr: MacAddr,
    /// Its name inside.
    pub physical: String,
    /// Whether the default route goes there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// Its IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// That one's mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netmask: Option<String>,
}

/// Part of [`Sample`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkUsage {
    /// Bytes that left.
    pub sent_bytes: u64,
    /// Bytes that arrived.
    pub received_bytes: u64,
}

/// Part of [`Sample`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    /// The dataset.
    pub name: String,
    /// Bytes.
    pub used: u64,
    /// Bytes it may use.
    pub quota: u64,
    /// `filesystem`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// Part of [`Sample`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuUsage {
    /// In programs, nanoseconds.
    pub user_ns: u64,
    /// In the kernel, nanoseconds.
    pub system_ns: u64,
}

/// Behind all samples of a minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// [`VERSION`].
    pub v: String,
    /// When.
    pub timestamp: Timestamp,
    /// The machine.
    pub server_uuid: ServerId,
    /// The datacenter.
    pub datacenter_name: String,
    /// How many samples stand before this.
    pub vm_count: usize,
    /// How long it took to look, milliseconds.
    pub runtime: u64,
}

/// Keys of [`SampleConfig::attributes`] that sums are made of.
pub mod attribute {
    /// The account.
    pub const OWNER: &str = "owner-uuid";
    /// The name.
    pub const ALIAS: &str = "alias";
    /// The package's name.
    pub const PACKAGE: &str = "package-name";
    /// The package's id.
    pub const BILLING: &str = "billing-id";
}

// === sums ===

/// What was used in some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Minutes in which it was there.
    pub minutes: u64,
    /// Minutes in which it ran.
    pub running_minutes: u64,
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
    /// Bytes it sent.
    pub sent_bytes: u64,
    /// Bytes it received.
    pub received_bytes: u64,
    /// Memory it might have used while it ran, MiB times minutes.
    pub memory_mib_minutes: u64,
    /// Disk space it used while it was there, MiB times minutes.
    pub disk_mib_minutes: u64,
}

impl Sums {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            minutes: self.minutes.saturating_add(other.minutes),
            running_minutes: self.running_minutes.saturating_add(other.running_minutes),
            cpu_ns: self.cpu_ns.saturating_add(other.cpu_ns),
            sent_bytes: self.sent_bytes.saturating_add(other.sent_bytes),
            received_bytes: self.received_bytes.saturating_add(other.received_bytes),
            memory_mib_minutes: self.memory_mib_minutes.saturating_add(other.memory_mib_minutes),
            disk_mib_minutes: self.disk_mib_minutes.saturating_add(other.disk_mib_minutes),
        }
    }
}

/// Instead of an instance: several that had no room of their own, see [`bounded`].
pub const SEVERAL: InstanceId = InstanceId::new(uuid::Uuid::nil());

/// What an instance used with one package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Which; or [`SEVERAL`].
    pub instance: InstanceId,
    /// Whose it is.
    pub owner: AccountId,
    /// Its name when it was seen last.
    pub alias: String,
    /// The package's name: who is resized has a row for each.
    pub package: String,
    /// How much.
    pub sums: Sums,
}

/// What the instances of a machine used in an hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HourUsage {
    /// Which hour.
    pub hour: Hour,
    /// By instance and package.
    pub rows: Vec<Row>,
}

impl HourUsage {
    /// Whether it is as large as an hour may be, and if not, what of it is too much.
    pub fn check(&self) -> Result<(), String> {
        if self.rows.len() > HOUR_ROWS_TOLD {
            return Err(format!("{} has {} rows; at most {HOUR_ROWS_TOLD} are taken", self.hour, self.rows.len()));
        }
        let too_long = |row: &&Row| row.alias.len() > ALIAS_MAX || row.package.chars().count() > NAME_MAX;
        match self.rows.iter().find(too_long) {
            None => Ok(()),
            Some(row) => Err(format!(
                "{} has an `alias` of {} bytes and a `package` of {} for instance {}; at most {ALIAS_MAX}, and {NAME_MAX} characters, are taken",
                self.hour,
                row.alias.len(),
                row.package.len(),
                row.instance
            )),
        }
    }
}

/// What an account's instances on one machine used in a month.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonthUsage {
    /// Whose.
    pub account: AccountId,
    /// When.
    pub month: Month,
    /// The machine.
    pub server: ServerId,
    /// The last hour that is in it; what comes again is not counted again.
    pub through: Hour,
    /// By instance and package.
    pub rows: Vec<Row>,
}

impl MonthUsage {
    /// With nothing in it, before `hour`.
    pub fn empty(account: AccountId, server: ServerId, hour: Hour) -> Self {
        Self { account, month: hour.month(), server, through: hour.earlier(1), rows: Vec::new() }
    }

    /// With an hour more; `None` when that is in it already.
    pub fn with(&self, hour: Hour, rows: &[Row]) -> Option<Self> {
        if hour <= self.through {
            return None;
        }
        let live: BTreeSet<InstanceId> = rows.iter().map(|row| row.instance).collect();
        let rows = together(self.rows.iter().chain(rows));
        let rows = bounded(rows, MONTH_ROWS_MAX, |row| live.contains(&row.instance));
        Some(Self { through: hour, rows, ..self.clone() })
    }
}

/// Rows of one instance and package as one, in the order of instances; with the name of the last.
pub fn together<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Vec<Row> {
    let mut all: BTreeMap<(InstanceId, &str), Row> = BTreeMap::new();
    for row in rows {
        match all.entry((row.instance, row.package.as_str())) {
            Entry::Vacant(place) => _ = place.insert(row.clone()),
            Entry::Occupied(mut one) => {
                let one = one.get_mut();
                one.sums = one.sums.plus(row.sums);
                one.alias.clone_from(&row.alias);
            }
        }
    }
    all.into_values().collect()
}

/// As they are if they are at most `most`; else `most` of them, those that are `preferred` first, and the rest as one row an account
/// and package under [`SEVERAL`]. What accounts used stays the same: only whose instances those were is lost.
pub fn bounded(rows: Vec<Row>, most: usize, preferred: impl Fn(&Row) -> bool) -> Vec<Row> {
    if rows.len() <= most {
        return rows;
    }
    let (mut others, mut kept): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.instance == SEVERAL);
    // Each group in the order it had.
    kept.sort_by_key(|row| !preferred(row));
    others.extend(kept.drain(most.min(kept.len())..));
    kept.sort_by(|one, next| (one.instance, &one.package).cmp(&(next.instance, &next.package)));
    let mut several: BTreeMap<(AccountId, String), Row> = BTreeMap::new();
    for row in others {
        let key = (row.owner, row.package.clone());
        let empty = Row { instance: SEVERAL, alias: String::new(), sums: Sums::default(), ..row.clone() };
        let all = several.entry(key).or_insert(empty);
        all.sums = all.sums.plus(row.sums);
    }
    several.into_values().chain(kept).collect()
}

/// Rows of one record of [`MonthUsage`], beside those of [`SEVERAL`]: an account that makes and deletes instances by the thousand must not
/// make records that no store takes. Some 100 KiB.
pub const MONTH_ROWS_MAX: usize = 400;
/// Rows of one hour of a machine, beside those of [`SEVERAL`]: some MiB at most, as one answer has room for.
pub const HOUR_ROWS_MAX: usize = 4_000;
/// Rows of one hour of a machine with those of [`SEVERAL`], as a headnode takes it.
const HOUR_ROWS_TOLD: usize = 2 * HOUR_ROWS_MAX;

/// How far the hours of a machine are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRead {
    /// The machine.
    pub server: ServerId,
    /// The last hour that was asked for and is in the records.
    pub through: Hour,
}

#[cfg(test)]
mod tests;
