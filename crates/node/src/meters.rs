//! What this machine and its instances use: read when a headnode asks, and at most once in a while, however many ask.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use host::Host;
use model::{
    id::{InstanceId, MacAddr},
    instance::Wanted,
    meters::{InstanceMeters, MachineMeters, NodeMeters, ZoneMeters},
    part::Part,
    target::{Limits, Target, ZoneTarget},
    time::Timestamp,
};
use tokio::{sync::Mutex, time::Instant};

use crate::shared::Shared;

/// For how long a reading answers whoever asks next, at least: a third of the shortest interval people look at metrics in.
const FRESH_MIN: Duration = Duration::from_secs(5);
/// The same at most, however long it took: the shortest interval.
const FRESH_MAX: Duration = Duration::from_secs(15);
/// A reading is good for so many times as long as it took: all of them cost a hundredth of a CPU, however many instances there are and
/// however often somebody looks.
const REST: u32 = 100;

/// The last reading.
#[derive(Default)]
pub(crate) struct Meters(Mutex<Last>);

#[derive(Default)]
struct Last {
    read: Option<Reading>,
    /// For how long that answers, milliseconds.
    fresh_ms: i64,
    /// Why instances could not be read, so that each is logged once.
    failing: BTreeMap<InstanceId, String>,
}

/// What was read.
#[derive(Clone)]
pub(crate) struct Reading {
    pub(crate) meters: Arc<NodeMeters>,
    /// When, by the machine's own clock, milliseconds.
    pub(crate) here_ms: i64,
}

fn fresh_ms(took: Duration) -> i64 {
    i64::try_from((took * REST).clamp(FRESH_MIN, FRESH_MAX).as_millis()).unwrap_or(0)
}

/// Reads them, or gives what was read a moment ago. Whoever asks meanwhile waits for the same reading.
pub(crate) async fn read(shared: &Shared) -> Result<Reading, String> {
    let mut last = shared.meters.0.lock().await;
    let here_ms = shared.now_ms();
    if let Some(reading) = &last.read
        && (0..last.fresh_ms).contains(&here_ms.saturating_sub(reading.here_ms))
    {
        return Ok(reading.clone());
    }
    let begun = Instant::now();
    let (known, at) = (known(&shared.target()), shared.of_datacenter(Timestamp(here_ms)));
    let agent = shared.activity.read(shared.verbs.times());
    let gathered = shared.verbs.run("meters", move |host| gather(host, known, at)).await;
    let (mut meters, failing) = gathered.map_err(|error| base::errors::chain(&error))?;
    for (instance, why) in failing.iter().filter(|(instance, why)| last.failing.get(instance) != Some(*why)) {
        tracing::error!(%instance, why, "failed to read what an instance uses; the others are told without it");
    }
    meters.machine.agent = Some(Box::new(agent));
    let reading = Reading { meters: Arc::new(meters), here_ms };
    *last = Last { read: Some(reading.clone()), fresh_ms: fresh_ms(begun.elapsed()), failing };
    Ok(reading)
}

/// What is told of an instance besides what the kernel counts.
struct Known {
    limits: Limits,
    /// Name inside and Ethernet address.
    nics: Vec<(String, MacAddr)>,
}

fn known(target: &Target) -> BTreeMap<InstanceId, Known> {
    let of = |zone: &Part<ZoneTarget>| Known {
        limits: zone.limits.clone(),
        nics: zone.nics.iter().map(|nic| (nic.interface.clone(), nic.mac)).collect(),
    };
    let should_be = |zone: &Part<ZoneTarget>| zone.wanted != Wanted::Absent;
    target.zones.iter().filter(|(_, zone)| should_be(zone)).map(|(id, zone)| (*id, of(zone))).collect()
}

/// Reads all there is. An instance that cannot be read is left out, with the reason beside.
fn gather(
    host: &Host,
    known: BTreeMap<InstanceId, Known>,
    at: Timestamp,
) -> host::error::Result<(NodeMeters, BTreeMap<InstanceId, String>)> {
    let mut traffic = host.links.meters()?;
    let used = host.datasets.used_by_roots()?;
    let pool = host.datasets.pool()?;
    let (mut instances, mut failing) = (BTreeMap::new(), BTreeMap::new());
    for (id, known) in known {
        let zone = match zone(host, id) {
            Ok(zone) => zone,
            Err(error) => {
                failing.insert(id, base::errors::chain(&error));
                continue;
            }
        };
        let nics = known.nics.into_iter().filter_map(|(name, mac)| Some((name, traffic.nics.remove(&mac)?))).collect();
        instances
            .insert(id, InstanceMeters { limits: Some(known.limits), zone, nics, disk_bytes: used.get(&id).copied() });
    }
    let machine = MachineMeters {
        links: traffic.others,
        pool: Some((pool.size_bytes, pool.used_bytes)),
        ..host.machine.meters()?
    };
    Ok((NodeMeters { at, machine, instances }, failing))
}

/// What the processes of an instance use; `None` while none runs.
fn zone(host: &Host, id: InstanceId) -> host::error::Result<Option<ZoneMeters>> {
    // One that ends while it is read fails to be read, and is seen to have ended by the second look.
    let found = match host.zones.meters(id) {
        Err(host::Error::Missing(_)) => return Ok(None),
        Err(_) => host.zones.meters(id),
        found => found,
    };
    match found {
        Err(host::Error::Missing(_)) => Ok(None),
        found => found.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_full_of_instances_is_read_more_seldom() {
        let fresh = |took_ms| fresh_ms(Duration::from_millis(took_ms));
        assert_eq!((fresh(0), fresh(50), fresh(71), fresh(60_000)), (5_000, 5_000, 7_100, 15_000));
    }
}
