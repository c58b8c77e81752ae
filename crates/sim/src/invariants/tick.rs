//! What must never be, whatever has failed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use control::tables::{ADDRESSES, BY_SERVER, INSTANCES, SERVERS};
use futures_util::FutureExt;
use model::{id::InstanceId, placement::Demand, server::Reserved, target::Target};
use store::Snapshot;

use super::{expected, on_machine};
use crate::{chance::Chance, datacenter::Datacenter};

/// Machines whose documents are read at each tick.
const DOCUMENTS: usize = 2;

/// How often a document is compared with the records until it shows them: it follows within moments.
const LOOKS: usize = 4;

/// What is wrong right now, in words; empty when nothing is.
pub(crate) fn look(datacenter: &mut Datacenter) -> Vec<String> {
    let mut wrong: Vec<String> = datacenter.nodes.iter().flat_map(|node| node.cable.take_violations()).collect();
    wrong.extend(on_machines(datacenter));
    let snapshot = datacenter.control.snapshot();
    wrong.extend(addresses(&snapshot));
    wrong.extend(promises(datacenter, &snapshot));
    wrong.extend(generations(datacenter));
    wrong
}

/// No instance is on two machines; no two zones have one address on one segment or one MAC, nor, on one machine, one range of ids;
/// and nothing is left of an instance that is recorded as gone.
fn on_machines(datacenter: &Datacenter) -> Vec<String> {
    let mut wrong = Vec::new();
    let (mut places, mut addresses, mut macs) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let snapshot = datacenter.control.snapshot();
    let gone = |id: InstanceId| snapshot.get(&INSTANCES, &id.to_string()).is_some_and(|instance| instance.released);
    for (number, node) in datacenter.nodes.iter().enumerate() {
        let mut ranges = BTreeMap::new();
        for id in on_machine(node) {
            if let Some(other) = places.insert(id, number) {
                wrong.push(format!("{id} is on node {other} and on node {number}"));
            }
            // What a loss of power brought back is told to go once more.
            if gone(id) && !node.revenants.contains(&id) {
                wrong.push(format!("{id} is recorded as gone, but something of it is on node {number}"));
            }
            if let Some(spec) = node.machine.zones.spec(id)
                && let Some(other) = ranges.insert(spec.ids, id)
            {
                wrong.push(format!("{id} and {other} run on node {number} with the same ids from {}", spec.ids.first));
            }
            for (nic, network) in node.machine.links.attached(id).map(|setup| setup.nics).unwrap_or_default() {
                for ip in nic.addresses().map(|net| net.addr()) {
                    let (tag, vlan) = (&network.nic_tag, network.vlan);
                    if let Some(other) = addresses.insert((tag.clone(), vlan, ip), id) {
                        wrong.push(format!("{id} and {other} both have {ip} on {tag} {vlan}"));
                    }
                }
                if let Some(other) = macs.insert(nic.mac, id) {
                    wrong.push(format!("{id} and {other} both have {}", nic.mac));
                }
            }
        }
    }
    wrong
}

/// No two instances hold one address, and each holds the ones its NICs say.
fn addresses(snapshot: &Snapshot) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut held = BTreeMap::new();
    for instance in snapshot.scan(&INSTANCES).filter(|instance| !instance.released) {
        for (network, ip) in instance.nics.iter().flat_map(|nic| nic.addresses().map(|ip| (nic.network, ip))) {
            if let Some(other) = held.insert((network, ip), instance.id) {
                wrong.push(format!("{} and {other} were both given {ip}", instance.id));
            }
        }
    }
    let recorded: BTreeMap<_, _> = snapshot
        .scan(&ADDRESSES)
        .filter_map(|address| Some(((address.network, address.ip), address.instance?)))
        .collect();
    for (address, id) in held {
        if recorded.get(&address) != Some(&id) {
            wrong.push(format!("{id} has {} but its record says {:?}", address.1, recorded.get(&address)));
        }
    }
    wrong
}

/// What machines hold for their instances is what those were promised, or what is still in force where that is more; and no machine promised
/// more than it has.
fn promises(datacenter: &Datacenter, snapshot: &Snapshot) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut sums: BTreeMap<_, (Reserved, Reserved)> = BTreeMap::new();
    for instance in snapshot.scan(&INSTANCES).filter(|instance| !instance.released) {
        let (held, promised) = sums.entry(instance.server).or_default();
        let wanted = Demand::of(&instance.limits);
        let there = instance.fact.as_ref().and_then(|fact| fact.limits.as_ref()).map_or(wanted, Demand::of);
        let larger = Demand {
            memory: wanted.memory.max(there.memory),
            disk: wanted.disk.max(there.disk),
            cpu: wanted.cpu.max(there.cpu),
        };
        (*held, *promised) = (held.plus(larger), promised.plus(wanted));
    }
    let policy = &datacenter.control.config.placement;
    for server in snapshot.scan(&SERVERS) {
        let (held, promised) = sums.remove(&server.id).unwrap_or_default();
        if held != server.reserved {
            wrong.push(format!("{} records {:?}, its instances hold {held:?}", server.hostname, server.reserved));
        }
        if promised.memory.0 > policy.memory(&server) || promised.disk.0 > policy.disk(&server) {
            let has = format!("{} MiB and {} MiB", policy.memory(&server), policy.disk(&server));
            wrong.push(format!("{} may promise {has} and promised {promised:?}", server.hostname));
        }
    }
    wrong.extend(sums.keys().map(|server| format!("instances are on {server}, which does not exist")));
    wrong
}

/// No machine's document has a generation below one that was seen.
fn generations(datacenter: &mut Datacenter) -> Vec<String> {
    let mut wrong = Vec::new();
    for view in control::servers::list(&datacenter.control) {
        let newest = datacenter.generations.entry(view.server.id).or_default();
        if view.target_generation < *newest {
            let now = view.target_generation;
            wrong.push(format!("the target of {} had generation {newest} and now has {now}", view.server.hostname));
        }
        *newest = view.target_generation.max(*newest);
    }
    wrong
}

/// Some machines' documents, against the records: instances and what is wanted of them, and only NICs that exist.
pub(crate) async fn documents(datacenter: &mut Datacenter, chance: &mut Chance) -> Vec<String> {
    let mut wrong = Vec::new();
    for _ in 0..DOCUMENTS.min(datacenter.nodes.len()) {
        let Some(node) = chance.pick(&datacenter.nodes) else { return wrong };
        let (server, mut differing) = (node.server, Vec::new());
        for _ in 0..LOOKS {
            let document = control::servers::watch_target(&datacenter.control, server, 0).now_or_never();
            differing = match document {
                Some(Ok(Some(target))) => differences(&datacenter.control.snapshot(), &target),
                // There is none before the first change that concerns it.
                _ => Vec::new(),
            };
            if differing.is_empty() {
                break;
            }
            // Records are shown before documents follow.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        wrong.extend(differing);
    }
    wrong
}

/// What a document says other than the records.
fn differences(snapshot: &Snapshot, target: &Target) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut here: BTreeSet<InstanceId> = BTreeSet::new();
    for instance in snapshot.find(&INSTANCES, BY_SERVER, &target.server.to_string()) {
        here.insert(instance.id);
        let Some(zone) = target.zones.get(&instance.id) else {
            wrong.push(format!("the target of {} lacks {}", target.server, instance.id));
            continue;
        };
        let wanted = (zone.wanted, zone.starts, zone.reboots, &zone.limits, &zone.tags, &zone.alias);
        let intent = &instance.intent;
        let asked = (intent.wanted, intent.starts, intent.reboots, &instance.limits, &instance.tags, &instance.alias);
        if wanted != asked {
            wrong.push(format!("{} is to be {asked:?}, its machine's target says {wanted:?}", instance.id));
        }
        let told: Vec<_> =
            zone.nics.iter().map(|nic| (nic.mac, nic.addresses().map(|net| net.addr()).collect::<Vec<_>>())).collect();
        let has: Vec<_> = instance.nics.iter().map(|nic| (nic.mac, nic.addresses().collect::<Vec<_>>())).collect();
        if told != has {
            wrong.push(format!("{} has NICs {has:?}, its machine's target says {told:?}", instance.id));
        }
    }
    wrong.extend(
        target
            .zones
            .keys()
            .filter(|id| !here.contains(id))
            .map(|id| format!("the target of {} speaks of {id}, which is not there", target.server)),
    );
    let peers = expected::peers(snapshot).remove(&target.server).unwrap_or_default();
    let told: BTreeMap<_, BTreeMap<_, _>> =
        target.peers.iter().map(|(vni, segment)| (*vni, segment.iter().collect())).collect();
    if told != peers {
        let has = &peers;
        wrong.push(format!("the target of {} has peers {told:?}, there are {has:?}", target.server));
    }
    wrong
}
