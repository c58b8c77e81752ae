//! What this machine and its instances use: read when a headnode asks, and at most once in a while, however many ask.

use std::{collections::BTreeMap, sync::Arc};

use host::Host;
use model::{
    id::{InstanceId, MacAddr},
    instance::Wanted,
    meters::{InstanceMeters, MachineMeters, NodeMeters},
    part::Part,
    target::{Limits, Target, ZoneTarget},
    time::Timestamp,
};
use tokio::sync::Mutex;

use crate::shared::Shared;

/// For how long a reading answers whoever asks next, milliseconds: a third of the shortest interval people look at metrics in.
const FRESH_MS: i64 = 5_000;

/// The last reading, and when it was made by the machine's own clock.
#[derive(Default)]
pub(crate) struct Meters(Mutex<Option<(i64, Arc<NodeMeters>)>>);

/// Reads them, or gives what was read a moment ago. Whoever asks meanwhile waits for the same reading.
pub(crate) async fn read(shared: &Shared) -> Result<Arc<NodeMeters>, String> {
    let mut last = shared.meters.0.lock().await;
    let now = shared.now_ms();
    if let Some((at, meters)) = &*last
        && (0..FRESH_MS).contains(&now.saturating_sub(*at))
    {
        return Ok(meters.clone());
    }
    let (known, at) = (known(&shared.target()), shared.now());
    let agent = shared.activity.read(shared.verbs.times());
    let gathered = shared.verbs.run("meters", move |host| gather(host, known, at)).await;
    let mut meters = gathered.map_err(|error| base::errors::chain(&error))?;
    meters.machine.agent = Some(Box::new(agent));
    let meters = Arc::new(meters);
    *last = Some((now, meters.clone()));
    Ok(meters)
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

fn gather(host: &Host, known: BTreeMap<InstanceId, Known>, at: Timestamp) -> host::error::Result<NodeMeters> {
    let mut traffic = host.links.meters()?;
    let used = host.datasets.used_by_roots()?;
    let pool = host.datasets.pool()?;
    let mut instances = BTreeMap::new();
    for (id, known) in known {
        let zone = match host.zones.meters(id) {
            // It does not run.
            Err(host::Error::Missing(_)) => None,
            found => Some(found?),
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
    Ok(NodeMeters { at, machine, instances })
}
