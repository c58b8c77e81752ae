//! How much instances and machines use now: the difference of two looks at their counters.
//!
//! A counter that fell began anew in between, so nothing is known of that time; what is not known is missing, never zero.

use serde::{Deserialize, Serialize};

use crate::{
    meters::{CpuMeters, InstanceMeters, LinkMeters, MachineMeters},
    time::Timestamp,
};

/// Shortest time between two looks that says anything, milliseconds.
const APART_MS: u64 = 500;

/// An instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceRates {
    /// CPUs it keeps busy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// The part of the time in which its ceiling on CPU time held it back, each CPU counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_back: Option<f64>,
    /// Memory, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The part of its memory that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_part: Option<f64>,
    /// The part of its disk space that is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_part: Option<f64>,
    /// Bytes it sends in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_bytes_s: Option<f64>,
    /// Bytes it receives in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_bytes_s: Option<f64>,
    /// Its processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
}

/// A machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineRates {
    /// The part of its CPUs that is busy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_part: Option<f64>,
    /// How many it has.
    pub cpus: usize,
    /// Tasks that run or wait, averaged over a minute.
    pub load: f64,
    /// The part of its memory that is not free for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_part: Option<f64>,
    /// The part of its pool that is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_part: Option<f64>,
    /// Bytes its instances send in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_bytes_s: Option<f64>,
    /// Bytes its instances receive in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_bytes_s: Option<f64>,
}

/// When a look was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// By the clock on the wall, which may be set.
    pub at: Timestamp,
    /// By one that only runs: how long the machine has been on, milliseconds; `None` of one that does not tell.
    pub up_ms: Option<u64>,
}

impl Moment {
    /// How much later it was than another one, milliseconds; zero when it was not.
    fn since(self, earlier: Self) -> u64 {
        match (earlier.up_ms, self.up_ms) {
            (Some(earlier), Some(now)) => now.saturating_sub(earlier),
            _ => self.at.millis_since(earlier.at),
        }
    }
}

/// A look and the one before.
#[derive(Debug, Clone, Copy)]
pub struct Between<'a, T> {
    /// The one before, if there was one, and when.
    pub before: Option<(Moment, &'a T)>,
    /// The last one, and when.
    pub now: (Moment, &'a T),
}

impl<T> Between<'_, T> {
    /// Seconds between the two, if enough passed.
    fn seconds(&self) -> Option<f64> {
        let passed_ms = self.now.0.since(self.before?.0);
        (passed_ms >= APART_MS).then(|| passed_ms as f64 / 1_000.0)
    }

    /// By how much a counter grows in a second.
    fn rate(&self, counter: impl Fn(&T) -> Option<u64>) -> Option<f64> {
        let (before, now) = (counter(self.before?.1)?, counter(self.now.1)?);
        Some(now.checked_sub(before)? as f64 / self.seconds()?)
    }
}

/// The part that `used` is of `whole`.
fn part(used: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| used as f64 / whole as f64)
}

/// What an instance uses.
pub fn instance(looks: Between<'_, InstanceMeters>) -> InstanceRates {
    let meters = looks.now.1;
    let limits = meters.limits.as_ref();
    let traffic = |of: fn(&LinkMeters) -> u64| {
        looks
            .rate(|meters| (!meters.nics.is_empty()).then(|| meters.nics.values().map(of).fold(0, u64::saturating_add)))
    };
    let nanoseconds = |rate: f64| rate / 1e9;
    let memory_bytes = meters.zone.map(|zone| zone.memory_bytes);
    InstanceRates {
        cpus: looks
            .rate(|meters| meters.zone.map(|zone| zone.cpu_user_ns.saturating_add(zone.cpu_system_ns)))
            .map(nanoseconds),
        held_back: looks.rate(|meters| meters.zone?.cpu_held_back_ns).map(nanoseconds),
        memory_bytes,
        memory_part: memory_bytes.zip(limits).and_then(|(used, limits)| part(used, limits.memory.0 << 20)),
        disk_part: meters.disk_bytes.zip(limits).and_then(|(used, limits)| part(used, limits.disk.0 << 20)),
        sent_bytes_s: traffic(|link| link.sent_bytes),
        received_bytes_s: traffic(|link| link.received_bytes),
        processes: meters.zone.map(|zone| zone.processes),
    }
}

/// What a machine uses. Its instances' traffic is theirs ([`InstanceRates`]) together.
pub fn machine<'a>(
    looks: Between<'_, MachineMeters>,
    instances: impl IntoIterator<Item = &'a InstanceRates>,
) -> MachineRates {
    let meters = looks.now.1;
    let ticks =
        |meters: &MachineMeters, of: fn(&CpuMeters) -> u64| meters.cpus.iter().map(of).fold(0, u64::saturating_add);
    let busy = looks.rate(|meters| Some(ticks(meters, |cpu| cpu.user + cpu.system)));
    let all = looks.rate(|meters| Some(ticks(meters, |cpu| cpu.user + cpu.system + cpu.idle + cpu.iowait + cpu.steal)));
    let of_memory = |name: &str| meters.memory.get(name).copied();
    let memory_part = of_memory("MemTotal")
        .zip(of_memory("MemAvailable"))
        .and_then(|(total, available)| part(total.saturating_sub(available), total));
    let (mut sent, mut received) = (None, None);
    for instance in instances {
        let and = |sum: Option<f64>, one: Option<f64>| match (sum, one) {
            (None, one) => one,
            (sum, None) => sum,
            (Some(sum), Some(one)) => Some(sum + one),
        };
        (sent, received) = (and(sent, instance.sent_bytes_s), and(received, instance.received_bytes_s));
    }
    MachineRates {
        cpu_part: busy.zip(all).and_then(|(busy, all)| (all > 0.0).then(|| busy / all)),
        cpus: meters.cpus.len(),
        load: meters.load[0],
        memory_part,
        pool_part: meters.pool.and_then(|(size, used)| part(used, size)),
        sent_bytes_s: sent,
        received_bytes_s: received,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meters::ZoneMeters;

    fn used(cpu_user_ns: u64, sent_bytes: u64) -> InstanceMeters {
        InstanceMeters {
            zone: Some(ZoneMeters { cpu_user_ns, memory_bytes: 64 << 20, ..ZoneMeters::default() }),
            nics: [("net0".to_owned(), LinkMeters { sent_bytes, ..LinkMeters::default() })].into(),
            ..InstanceMeters::default()
        }
    }

    /// Of a machine that does not tell how long it has been on.
    fn wall(ms: i64) -> Moment {
        Moment { at: Timestamp(ms), up_ms: None }
    }

    #[test]
    fn a_clock_that_is_set_makes_nobody_busier() {
        let (before, now) = (used(1_000_000_000, 0), used(4_000_000_000, 0));
        let looks = |earlier, later| Between { before: Some((earlier, &before)), now: (later, &now) };
        let at = |ms, up_ms| Moment { up_ms: Some(up_ms), ..wall(ms) };
        for later in [9_000, 12_000, 90_000] {
            assert_eq!(instance(looks(at(10_000, 500_000), at(later, 502_000))).cpus, Some(1.5), "{later}");
        }
        let booted_between = looks(at(10_000, 500_000), at(12_000, 1_000));
        assert_eq!(instance(booted_between).cpus, None);
        let agent_is_new = looks(wall(10_000), at(12_000, 1_000));
        assert_eq!(instance(agent_is_new).cpus, Some(1.5));
    }

    #[test]
    fn a_rate_is_what_grew_in_the_time_between() {
        let (before, now) = (used(1_000_000_000, 500), used(4_000_000_000, 2_500));
        let looks = Between { before: Some((wall(10_000), &before)), now: (wall(12_000), &now) };
        let rates = instance(looks);
        assert_eq!((rates.cpus, rates.sent_bytes_s, rates.received_bytes_s), (Some(1.5), Some(1_000.0), Some(0.0)));
        assert_eq!((rates.memory_bytes, rates.memory_part, rates.held_back), (Some(64 << 20), None, None));
    }

    #[test]
    fn what_is_not_known_is_missing() {
        let (before, now) = (used(4_000_000_000, 500), used(1_000_000_000, 600));
        let at = |ms: i64| wall(10_000 + ms);
        let restarted = instance(Between { before: Some((at(0), &before)), now: (at(2_000), &now) });
        assert_eq!((restarted.cpus, restarted.sent_bytes_s), (None, Some(50.0)));
        let too_soon = instance(Between { before: Some((at(0), &now)), now: (at(100), &before) });
        assert_eq!(too_soon.cpus, None);
        assert_eq!(instance(Between { before: None, now: (at(0), &now) }).cpus, None);
        let stopped = InstanceMeters::default();
        assert_eq!(
            instance(Between { before: Some((at(0), &now)), now: (at(2_000), &stopped) }),
            InstanceRates::default()
        );
    }

    #[test]
    fn a_machine_is_as_busy_as_its_cpus_and_sends_what_its_instances_send() {
        let machine_at = |user, idle| MachineMeters {
            cpus: vec![CpuMeters { user, idle, ..CpuMeters::default() }; 2],
            memory: [("MemTotal".to_owned(), 1_000), ("MemAvailable".to_owned(), 250)].into(),
            pool: Some((200, 50)),
            ..MachineMeters::default()
        };
        let (before, now) = (machine_at(100, 900), machine_at(150, 1_050));
        let looks = Between { before: Some((wall(0), &before)), now: (wall(2_000), &now) };
        let sends = |sent| InstanceRates { sent_bytes_s: sent, ..InstanceRates::default() };
        let rates = machine(looks, &[sends(Some(5.0)), sends(None), sends(Some(7.0))]);
        assert_eq!((rates.cpu_part, rates.memory_part, rates.pool_part), (Some(0.25), Some(0.75), Some(0.25)));
        assert_eq!((rates.sent_bytes_s, rates.received_bytes_s, rates.cpus), (Some(12.0), None, 2));
    }
}
