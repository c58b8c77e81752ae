//! What must never happen, checked at every tick, and what must be so at rest.

use std::collections::{BTreeMap, BTreeSet};

use control::tables::{ADDRESSES, INSTANCES, SERVERS};
use flow::{FLOWS, FlowState};
use model::{
    instance::{Instance, Wanted},
    server::Reserved,
    target::ZoneState,
};

use crate::datacenter::{Datacenter, files_in};

/// What is wrong right now, in words; empty when nothing is.
pub fn at_every_tick(datacenter: &Datacenter) -> Vec<String> {
    let mut wrong =
        std::mem::take(&mut *datacenter.cable.violations.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    wrong.extend(shared_on_the_machine(datacenter));
    wrong.extend(shared_in_the_records(datacenter));
    wrong.extend(left_of_the_deleted(datacenter));
    wrong
}

/// No two zones have one address on one segment, one MAC, or one range of ids.
fn shared_on_the_machine(datacenter: &Datacenter) -> Vec<String> {
    let mut wrong = Vec::new();
    let (mut addresses, mut macs, mut ranges) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let host = datacenter.machine.host();
    let zones = host.zones.list().unwrap_or_default();
    for zone in &zones {
        let id = zone.instance;
        if let Some(spec) = datacenter.machine.zones.spec(id)
            && let Some(other) = ranges.insert(spec.ids, id)
        {
            wrong.push(format!("{id} and {other} run with the same ids from {}", spec.ids.first));
        }
        for (nic, network) in datacenter.machine.links.attached(id).map(|setup| setup.nics).unwrap_or_default() {
            let address = (network.nic_tag, nic.address.addr());
            if let Some(other) = addresses.insert(address.clone(), id) {
                wrong.push(format!("{id} and {other} both have {} on {}", address.1, address.0));
            }
            if let Some(other) = macs.insert(nic.mac, id) {
                wrong.push(format!("{id} and {other} both have {}", nic.mac));
            }
        }
    }
    wrong
}

/// No two instances hold one address, and each holds the ones its NICs say.
fn shared_in_the_records(datacenter: &Datacenter) -> Vec<String> {
    let mut wrong = Vec::new();
    let snapshot = datacenter.control.snapshot();
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

/// Nothing is left of an instance that is recorded as gone.
fn left_of_the_deleted(datacenter: &Datacenter) -> Vec<String> {
    let there = on_the_machine(datacenter);
    let snapshot = datacenter.control.snapshot();
    let gone = snapshot.scan(&INSTANCES).filter(|instance| instance.released);
    gone.filter(|instance| there.contains(&instance.id))
        .map(|instance| format!("{} is recorded as gone, but something of it is on the machine", instance.id))
        .collect()
}

fn on_the_machine(datacenter: &Datacenter) -> BTreeSet<model::id::InstanceId> {
    let host = datacenter.machine.host();
    let mut there: BTreeSet<_> = host.zones.list().unwrap_or_default().iter().map(|zone| zone.instance).collect();
    there.extend(host.datasets.roots().unwrap_or_default());
    there.extend(host.links.nics().unwrap_or_default().iter().map(|nic| nic.instance));
    there
}

/// What is not yet as it should be when faults have stopped; empty at rest.
pub fn open(datacenter: &Datacenter) -> Vec<String> {
    let mut open = Vec::new();
    let snapshot = datacenter.control.snapshot();
    for flow in snapshot.scan(&FLOWS) {
        if !flow.state.is_ended() {
            let error = flow.error.as_deref().unwrap_or_default();
            open.push(format!("flow {} {} about {} is {:?} {error}", flow.id, flow.kind, flow.subject, flow.state));
        }
        if flow.state == FlowState::Parked {
            open.push(format!("flow {} is parked", flow.id));
        }
    }
    if !open.is_empty() {
        for view in control::servers::list(&datacenter.control) {
            let at = view.last_seen_at.map_or(0, |at| at.0);
            open.push(format!(
                "the machine was heard of at {at} (now {}), has seen target {} of {}",
                datacenter.control.now().0,
                view.target_seen,
                view.target_generation
            ));
        }
        open.push(format!("tasks: {:?}", base::task::running()));
    }
    let zones = datacenter.machine.host().zones.list().unwrap_or_default();
    let running: BTreeSet<_> = zones.iter().filter(|zone| zone.running).map(|zone| zone.instance).collect();
    for instance in snapshot.scan(&INSTANCES).filter(|instance| instance.deleted_at.is_none()) {
        if let Some(why) = unsettled(&instance, running.contains(&instance.id)) {
            open.push(format!("{}: {why}", instance.id));
        }
    }
    open
}

/// Why an instance is not as it was asked to be.
fn unsettled(instance: &Instance, runs: bool) -> Option<String> {
    let fact = instance.fact.as_ref();
    let state = fact.map(|fact| fact.state);
    match instance.intent.wanted {
        Wanted::Absent if instance.failure.is_some() && instance.released => None,
        Wanted::Absent => Some(format!("should be gone; the machine says {state:?}")),
        Wanted::Stopped if runs => Some("should be stopped and runs".to_owned()),
        Wanted::Running if !runs => {
            // It may have ended by itself after what was asked for was done, or its machine may have given it up in words.
            let done = fact.is_some_and(|fact| fact.starts_done >= instance.intent.starts && fact.exit.is_some());
            let given_up = state == Some(ZoneState::Failed) && fact.is_some_and(|fact| fact.error.is_some());
            (!done && !given_up).then(|| format!("should run; the machine says {fact:?}"))
        }
        _ => (state == Some(ZoneState::Running) && !runs).then(|| "is said to run and does not".to_owned()),
    }
}

/// What is left when every instance was deleted; empty when nothing is.
pub fn leaks(datacenter: &Datacenter) -> Vec<String> {
    let mut left: Vec<String> =
        on_the_machine(datacenter).iter().map(|id| format!("{id} is still on the machine")).collect();
    let filters = datacenter.machine.filters.current().nics.len();
    if filters > 0 {
        left.push(format!("{filters} filters of NICs"));
    }
    for folder in ["data/zones", "data/incoming", "control"] {
        left.extend(files_in(&datacenter.node_dir().join(folder)).into_iter().map(|file| format!("{folder}/{file}")));
    }
    let snapshot = datacenter.control.snapshot();
    let held = snapshot.scan(&ADDRESSES).filter(|address| address.instance.is_some());
    left.extend(held.map(|address| format!("address {} of {:?}", address.ip, address.instance)));
    let promised = snapshot.scan(&SERVERS).filter(|server| server.reserved != Reserved::default());
    left.extend(promised.map(|server| format!("the machine still promises {:?}", server.reserved)));
    left
}
