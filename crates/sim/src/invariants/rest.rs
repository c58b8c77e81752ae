//! What must be so when nothing fails any more and nobody asks for anything.

use std::collections::{BTreeMap, BTreeSet};

use control::{
    Scope, firewall,
    tables::{ADDRESSES, BY_SERVER, CLAIMS, INSTANCES, SERVERS, VLANS},
};
use flow::{FLOWS, FlowState};
use futures_util::FutureExt;
use model::{
    instance::{Instance, Wanted},
    server::Reserved,
    target::{Target, ZoneState},
};
use store::Snapshot;

use super::{expected, on_machine};
use crate::{
    datacenter::{Datacenter, files_in},
    machine::Node,
};

/// What is not yet as it should be; empty at rest.
pub(crate) async fn open(datacenter: &Datacenter) -> Vec<String> {
    let snapshot = datacenter.control.snapshot();
    let mut open = flows(&snapshot);
    let peers = expected::peers(&snapshot);
    for (node, view) in datacenter.nodes.iter().filter_map(|node| {
        let view = control::servers::get(&datacenter.control, node.server).ok()?;
        // The one it reports to knows best; another may have its document under a higher number.
        let hearing = datacenter.hearing(view.server.heard_by);
        Some((node, control::servers::get(hearing, node.server).ok()?))
    }) {
        let name = &view.server.hostname;
        if view.target_seen < view.target_generation {
            let at = view.last_seen_at.map_or(0, |at| datacenter.control.now().millis_since(at));
            let (seen, newest) = (view.target_seen, view.target_generation);
            open.push(format!("{name}, heard of {at} ms ago, has seen target {seen} of {newest}"));
        }
        let document = control::servers::watch_target(&datacenter.control, node.server, 0).now_or_never();
        if let Some(Ok(Some(target))) = document {
            open.extend(network(node, &target).into_iter().map(|why| format!("{name}: {why}")));
        }
        let fabrics = node.machine.links.fabrics();
        let known: BTreeMap<_, _> = fabrics.segments.into_iter().map(|(vni, segment)| (vni, segment.peers)).collect();
        let known: BTreeMap<_, _> = known.into_iter().filter(|(_, peers)| !peers.is_empty()).collect();
        let there_are = peers.get(&node.server).cloned().unwrap_or_default();
        if known != there_are {
            open.push(format!("{name} knows peers {known:?}, there are {there_are:?}"));
        }
        open.extend(instances(node, &snapshot));
    }
    for rule in firewall::list(&datacenter.control, Scope::All) {
        let enforcement = firewall::enforcement(&datacenter.control, rule.id).await;
        if !enforcement.is_everywhere() {
            open.push(format!("rule {} is not enforced by {:?}", rule.id, enforcement.waiting_for));
        }
    }
    open
}

/// Flows that have not ended.
fn flows(snapshot: &Snapshot) -> Vec<String> {
    let waiting = snapshot.scan(&FLOWS).filter(|flow| !flow.state.is_ended() || flow.state == FlowState::Parked);
    waiting
        .map(|flow| {
            let error = flow.error.as_deref().unwrap_or_default();
            format!("flow {} {} about {} is {:?} {error}", flow.id, flow.kind, flow.subject, flow.state)
        })
        .collect()
}

/// What the kernel of a machine does other than its document says.
fn network(node: &Node, target: &Target) -> Vec<String> {
    let mut open = Vec::new();
    let enforced = node.machine.filters.firewall().target;
    if *enforced != *target.firewall && !(target.firewall.instances.is_empty() && enforced.instances.is_empty()) {
        open.push("its firewall is not the one in its target".to_owned());
    }
    open
}

/// What of a machine's instances is other than it was asked to be.
fn instances(node: &Node, snapshot: &Snapshot) -> Vec<String> {
    let zones = node.machine.host().zones.list().unwrap_or_default();
    let running: BTreeMap<_, _> =
        zones.iter().filter(|zone| zone.running).map(|zone| (zone.instance, zone.limits.clone())).collect();
    let mut open = Vec::new();
    for instance in snapshot.find(&INSTANCES, BY_SERVER, &node.server.to_string()) {
        let limits = running.get(&instance.id);
        if let Some(why) = unsettled(&instance, limits.is_some()) {
            open.push(format!("{}: {why}", instance.id));
        }
        let Some(limits) = limits.filter(|_| !has_given_up(&instance)) else { continue };
        if limits.as_ref() != Some(&instance.limits) {
            open.push(format!("{} runs with {limits:?} and should with {:?}", instance.id, instance.limits));
        }
        open.extend(nics(node, &instance));
    }
    let there = on_machine(node);
    let known =
        |id: &model::id::InstanceId| snapshot.get(&INSTANCES, &id.to_string()).is_some_and(|it| it.is_on_machine());
    open.extend(there.iter().filter(|id| !known(id)).map(|id| format!("{id} is on a machine and should not be")));
    open
}

/// How the NICs of a running instance, and what they let through, differ from its record.
fn nics(node: &Node, instance: &Instance) -> Vec<String> {
    let id = instance.id;
    let setup = node.machine.links.attached(id).map(|setup| setup.nics).unwrap_or_default();
    let has: BTreeSet<_> =
        setup.iter().map(|(nic, _)| (nic.mac, nic.addresses().map(|net| net.addr()).collect::<Vec<_>>())).collect();
    let wanted: BTreeSet<_> = instance.nics.iter().map(|nic| (nic.mac, nic.addresses().collect::<Vec<_>>())).collect();
    if has != wanted {
        return vec![format!("{id} has NICs {has:?} and should have {wanted:?}")];
    }
    let filters = node.machine.filters.current().nics;
    let lets_through = |(mac, addresses): &&(_, _)| {
        filters.get(mac).is_some_and(|filter| filter.instance == id && filter.addresses == *addresses)
    };
    let wrong = has.iter().filter(|nic| !lets_through(nic));
    wrong.map(|(mac, _)| format!("NIC {mac} of {id} is not filtered as it should be")).collect()
}

/// Whether its machine tries no longer, and says why.
fn has_given_up(instance: &Instance) -> bool {
    instance.fact.as_ref().is_some_and(|fact| (fact.state == ZoneState::Failed || fact.gave_up) && fact.error.is_some())
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
            (!done && !has_given_up(instance)).then(|| format!("should run; the machine says {fact:?}"))
        }
        _ => (state == Some(ZoneState::Running) && !runs).then(|| "is said to run and does not".to_owned()),
    }
}

/// What is left when every instance was deleted; empty when nothing is.
pub(crate) async fn left(datacenter: &Datacenter) -> Vec<String> {
    let mut left = open(datacenter).await;
    for node in &datacenter.nodes {
        let on_it = |what: String| format!("{what} is left on {}", node.server);
        left.extend(on_machine(node).iter().map(|id| on_it(id.to_string())));
        let filters = node.machine.filters.current().nics.len();
        if filters > 0 {
            left.push(on_it(format!("the filter of {filters} NICs")));
        }
        left.extend(node.machine.links.bridges().into_keys().map(|bridge| on_it(format!("bridge {bridge}"))));
        for folder in ["data/zones", "data/incoming", "control"] {
            let files = files_in(&node.directory().join(folder));
            left.extend(files.into_iter().map(|file| on_it(format!("{folder}/{file}"))));
        }
    }
    let snapshot = datacenter.control.snapshot();
    let held = snapshot.scan(&ADDRESSES).filter(|address| address.instance.is_some());
    left.extend(held.map(|address| format!("address {} of {:?} is held", address.ip, address.instance)));
    let promised = snapshot.scan(&SERVERS).filter(|server| server.reserved != Reserved::default());
    left.extend(promised.map(|server| format!("{} still promises {:?}", server.hostname, server.reserved)));
    left
}

/// Names and numbers still taken when everything of the tenants' was deleted.
pub(crate) fn claimed(datacenter: &Datacenter) -> Vec<String> {
    let snapshot = datacenter.control.snapshot();
    let of_instances = ["alias/", "mac/", "vni/"];
    let claims = snapshot.scan(&CLAIMS).filter(|claim| of_instances.iter().any(|kind| claim.name.starts_with(kind)));
    let mut taken: Vec<String> = claims.map(|claim| format!("{} is taken by {}", claim.name, claim.holder)).collect();
    taken.extend(snapshot.scan(&VLANS).map(|vlan| format!("VLAN {} of {} is left", vlan.vlan, vlan.owner)));
    taken.extend(snapshot.scan(&ADDRESSES).filter(|it| it.instance.is_some()).map(|it| format!("{} is held", it.ip)));
    taken
}
