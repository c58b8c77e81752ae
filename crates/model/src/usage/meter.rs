//! Samples of one machine, one after the other, and what was used between two.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{FRESH_START_MS, GAP_MINUTES_MAX, HOUR_ROWS_MAX, MINUTE_MS, Row, Sample, Sums, attribute, bounded};
use crate::{
    id::{AccountId, InstanceId},
    time::Timestamp,
};

/// Bytes sent and received by NIC.
type Traffic = BTreeMap<String, (u64, u64)>;

/// What has to be known of an instance's last sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    at: Timestamp,
    /// The last run that was seen: one sample without it is no proof that it ended.
    started: Option<Timestamp>,
    cpu_ns: u64,
    traffic: Traffic,
    /// NICs that were missing since, in this run: one that comes again goes on from there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    missing: Traffic,
}

impl Seen {
    /// What follows `before` with a sample; `None` when it contradicts what was seen: counters of a run only grow, so whoever sees them fall
    /// sees a run that was not told of yet, and the next sample tells.
    fn next(before: Option<&Self>, sample: &Sample) -> Option<Self> {
        let cpu_ns = sample.cpu_usage.map_or(0, |cpu| cpu.user_ns.saturating_add(cpu.system_ns));
        let traffic =
            sample.network_usage.iter().map(|(nic, used)| (nic.clone(), (used.sent_bytes, used.received_bytes)));
        let now = Self {
            at: sample.timestamp,
            started: sample.started,
            cpu_ns,
            traffic: traffic.collect(),
            missing: Traffic::new(),
        };
        let Some(before) = before else { return Some(now) };
        let (started, cpu_ns) = match sample.started {
            None => (before.started, before.cpu_ns),
            Some(_) if before.started == sample.started && cpu_ns < before.cpu_ns => return None,
            started => (started, cpu_ns),
        };
        // A run that is new has new NICs where they were missing before it.
        let long = Some(&before.missing).filter(|_| before.started == started);
        let gone = before.traffic.iter().chain(long.into_iter().flatten());
        let missing = gone.filter(|(nic, _)| !now.traffic.contains_key(*nic));
        let missing = missing.map(|(nic, counters)| (nic.clone(), *counters)).collect();
        Some(Self { started, cpu_ns, missing, ..now })
    }

    /// What a NIC had counted, also when it was missing meanwhile in this run.
    fn counted(&self, nic: &str, is_same_run: bool) -> Option<(u64, u64)> {
        self.traffic.get(nic).or_else(|| self.missing.get(nic).filter(|_| is_same_run)).copied()
    }
}

/// Adds samples up. What it holds is as large as a machine has instances.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meter {
    held: Held,
    rows: BTreeMap<(InstanceId, String), Row>,
}

/// What a [`Meter`] goes on from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    seen: BTreeMap<InstanceId, Seen>,
    /// When all instances were looked at last: who is new and began later is new from the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    looked: Option<Timestamp>,
}

impl Meter {
    /// One that goes on from what another held.
    pub const fn after(held: Held) -> Self {
        Self { held, rows: BTreeMap::new() }
    }

    /// All samples of a moment were added.
    pub const fn looked(&mut self, at: Timestamp) {
        self.held.looked = Some(at);
    }

    /// A sample, taken later than those before, whatever its time says: clocks are set. One without an owner is nobody's, and not counted.
    pub fn add(&mut self, sample: &Sample) {
        let attribute = |key: &str| sample.config.attributes.get(key).map_or("", String::as_str);
        let Ok(owner) = attribute(attribute::OWNER).parse::<AccountId>() else { return };
        let before = self.held.seen.get(&sample.uuid);
        let Some(now) = Seen::next(before, sample) else { return };
        let sums = since(before, self.held.looked, &now, sample);
        let key = (sample.uuid, attribute(attribute::PACKAGE).to_owned());
        let row = self.rows.entry(key).or_insert_with(|| Row {
            instance: sample.uuid,
            owner,
            alias: String::new(),
            package: attribute(attribute::PACKAGE).to_owned(),
            sums: Sums::default(),
        });
        attribute(attribute::ALIAS).clone_into(&mut row.alias);
        row.sums = row.sums.plus(sums);
        self.held.seen.insert(sample.uuid, now);
    }

    /// What was added since the last time, and what the next one goes on from. Instances that were not seen for [`GAP_MINUTES_MAX`] before
    /// the last look are forgotten: by the clock of that look, which may be any.
    pub fn take(&mut self) -> (Vec<Row>, &Held) {
        if let Some(looked) = self.held.looked {
            let gap = GAP_MINUTES_MAX.saturating_mul(MINUTE_MS).unsigned_abs();
            self.held.seen.retain(|_, seen| looked.0.abs_diff(seen.at.0) <= gap);
        }
        let rows = std::mem::take(&mut self.rows).into_values().collect();
        (bounded(rows, HOUR_ROWS_MAX, |_| true), &self.held)
    }
}

/// What was used between two samples. `looked`: when all instances were looked at last.
fn since(before: Option<&Seen>, looked: Option<Timestamp>, now: &Seen, sample: &Sample) -> Sums {
    let minute = |at: Timestamp| at.0.div_euclid(MINUTE_MS);
    let runs = sample.started.is_some();
    let is_same_run = before.is_some_and(|before| runs && before.started == sample.started);
    // When the run began, by the clock of samples: the one it was started by may have been another.
    let begun =
        sample.started.map(|started| sample.age_ms.map_or(started, |age| now.at.plus_millis(age.saturating_neg())));
    // Counters of a run that nobody knows the beginning of would be counted a second time.
    let is_new = |begun: Timestamp| {
        looked.is_some_and(|looked| begun > looked) || (0..=FRESH_START_MS).contains(&(now.at.0 - begun.0))
    };
    let is_known = before.is_some() || begun.is_some_and(is_new);
    let since_begun = begun.map_or(0, |begun| minute(now.at) - minute(begun));
    let passed = match before {
        Some(before) => minute(now.at) - minute(before.at),
        None if is_known => since_begun.max(1),
        None => 1,
    };
    // A clock that was set back says that less than nothing passed, and one that was set forward what is not to be believed.
    let minutes = if passed > GAP_MINUTES_MAX { 1 } else { passed.max(0).unsigned_abs() };
    let running_minutes = match (runs, is_same_run) {
        (false, _) => 0,
        (true, true) => minutes,
        // What of it was this run. The end of the one before is not known.
        (true, false) => minutes.min(u64::try_from(since_begun).unwrap_or(0)),
    };
    let grown = |before: Option<u64>, now: u64| match before {
        Some(before) if before <= now => now - before,
        // They began anew.
        _ if is_known => now,
        _ => 0,
    };
    // Of one that does not run nothing is new.
    let earlier = before.filter(|_| is_same_run || !runs);
    // NICs stay when an instance is rebooted, and their counters go on.
    let mut traffic = (0u64, 0u64);
    for (nic, (sent, received)) in &now.traffic {
        let counted = before.and_then(|before| before.counted(nic, is_same_run || !runs));
        traffic.0 = traffic.0.saturating_add(grown(counted.map(|counted| counted.0), *sent));
        traffic.1 = traffic.1.saturating_add(grown(counted.map(|counted| counted.1), *received));
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let memory = sample.config.max_physical_memory.parse().map_or(0, mib);
    let disk = sample.disk_usage.values().map(|disk| disk.used).fold(0, u64::saturating_add);
    Sums {
        minutes,
        running_minutes,
        cpu_ns: grown(earlier.map(|before| before.cpu_ns), now.cpu_ns),
        sent_bytes: traffic.0,
        received_bytes: traffic.1,
        memory_mib_minutes: memory.saturating_mul(running_minutes),
        disk_mib_minutes: mib(disk).saturating_mul(minutes),
    }
}
