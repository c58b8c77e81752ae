//! What differs between two [`Firewall`]s, as one transaction of netlink messages: see [`super::firewall_rules`] for what they mean in
//! nftables, [`super::nft_wire`] for why not as text.
//!
//! Sets, maps, chains and rules are told apart by the kinds of change: a tag of an instance elsewhere is a few elements, however large
//! the table. Every change ends with a new stamp, so that connections are judged again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use model::{
    firewall::{AddressChange, Direction, FirewallTarget, LayerId, diff},
    id::InstanceId,
};

use super::{
    firewall_rules::{LOG_BURST, LOG_RATE, Place, Scope, action, chain, mark, places, receivers},
    firewall_terms::{Family, conditions, octets},
    nft_step::{Compare, Step},
    nft_wire::{Batch, Element, NFPROTO_BRIDGE, NFPROTO_INET, Verb, Verdict, interface},
};
use crate::filter::Firewall;

/// What there is to do.
pub(super) enum Difference {
    Nothing,
    Some(Batch),
    /// It takes a table made anew.
    Everything,
}

/// What to do where `held` is in the kernel and `wanted` should be.
pub(super) fn difference(scope: &Scope<'_>, held: &Firewall, wanted: &Firewall, stamp: u32) -> Difference {
    if held.separate != wanted.separate {
        return Difference::Everything;
    }
    let (change, target) = (diff(&held.target, &wanted.target), &*wanted.target);
    // Most changes move no NIC: then there is nothing to list of hundreds of instances.
    let same_filtered = held.target.instances.keys().eq(wanted.target.instances.keys());
    let moves = held.places != wanted.places || !same_filtered;
    if change.is_empty() && (!moves || places(held) == places(wanted)) {
        return Difference::Nothing;
    }
    let mut batch = Batch::new(scope.table);
    for id in &change.sets_added {
        for family in [Family::Four, Family::Six] {
            batch.add_set(&family.part(*id), family.key());
        }
        let addresses = &target.sets[id].addresses;
        let all = AddressChange::between(&Default::default(), addresses);
        elements(&mut batch, *id, &all);
    }
    for (id, change) in &change.sets_changed {
        elements(&mut batch, *id, change);
    }
    for id in &change.layers_written {
        let name = id.to_string();
        batch.add_chain(&name);
        batch.flush_chain(&name);
        layer(&mut batch, scope, target, *id);
    }
    for id in &change.instances_written {
        for direction in Direction::ALL {
            let name = chain(direction, *id);
            batch.add_chain(&name);
            batch.flush_chain(&name);
        }
        instance(&mut batch, target, *id);
    }
    if moves {
        dispatch(&mut batch, &places(held), &places(wanted));
        nics(&mut batch, scope, held, wanted);
    }
    for id in &change.instances_removed {
        for direction in Direction::ALL {
            batch.delete_chain(&chain(direction, *id));
        }
    }
    for id in &change.layers_removed {
        batch.delete_chain(&id.to_string());
    }
    for id in &change.sets_removed {
        for family in [Family::Four, Family::Six] {
            batch.delete_set(&family.part(*id));
        }
    }
    stamped(&mut batch, stamp);
    Difference::Some(batch)
}

fn elements(batch: &mut Batch, set: model::firewall::SetId, change: &AddressChange) {
    let AddressChange { added_v4, removed_v4, added_v6, removed_v6 } = change;
    let (four, six) = (Family::Four.part(set), Family::Six.part(set));
    for (verb, v4, v6) in [(Verb::Delete, removed_v4, removed_v6), (Verb::Add, added_v4, added_v6)] {
        batch.elements(verb, NFPROTO_INET, &four, v4.iter().map(|address| address.octets().to_vec()));
        batch.elements(verb, NFPROTO_INET, &six, v6.iter().map(|address| address.octets().to_vec()));
    }
}

fn layer(batch: &mut Batch, scope: &Scope<'_>, target: &FirewallTarget, id: LayerId) {
    let Some(layer) = target.layers.get(&id) else { return };
    let (name, verdict) = (id.to_string(), action(layer.action));
    for one in target.matches(id) {
        for condition in conditions(&one, layer.direction) {
            if let Some(mark) = mark(&one, layer) {
                let mut steps: Vec<Step> = condition.iter().flat_map(|term| term.steps(batch)).collect();
                steps.extend([Step::Limit(LOG_RATE, LOG_BURST), Step::Log(mark, scope.log_group)]);
                batch.add_rule(&name, &steps);
            }
            let mut steps: Vec<Step> = condition.iter().flat_map(|term| term.steps(batch)).collect();
            steps.push(Step::Verdict(verdict.clone()));
            batch.add_rule(&name, &steps);
        }
    }
}

fn instance(batch: &mut Batch, target: &FirewallTarget, id: InstanceId) {
    let Some(filter) = target.instances.get(&id) else { return };
    for direction in Direction::ALL {
        let name = chain(direction, id);
        for layer in filter.layers(direction) {
            batch.add_rule(&name, &[Step::Verdict(Verdict::Jump(layer.to_string()))]);
        }
        batch.add_rule(&name, &[Step::Verdict(action(direction.default_action()))]);
    }
}

/// The maps from bridge and address to a chain.
fn dispatch(batch: &mut Batch, before: &BTreeMap<Place<'_>, InstanceId>, after: &BTreeMap<Place<'_>, InstanceId>) {
    // Deletions first, so that an address may go from one instance to another.
    for (verb, some, others) in [(Verb::Delete, before, after), (Verb::Add, after, before)] {
        let mut lists: BTreeMap<String, Vec<Element>> = BTreeMap::new();
        for ((bridge, address), id) in some.iter().filter(|(place, id)| others.get(place) != Some(id)) {
            let family = if address.is_ipv4() { 4 } else { 6 };
            for (direction, word) in [(Direction::Inbound, "in"), (Direction::Outbound, "out")] {
                let mut key = interface(bridge);
                key.extend(octets(*address));
                let verdict = Some(Verdict::Goto(chain(direction, *id)));
                lists.entry(format!("{word}{family}")).or_default().push(Element { key, verdict });
            }
        }
        for (map, list) in lists {
            batch.elements(verb, NFPROTO_INET, &map, list);
        }
    }
}

/// What filtered NICs may receive.
fn nics(batch: &mut Batch, scope: &Scope<'_>, held: &Firewall, wanted: &Firewall) {
    let ((walled, own), (walled_now, own_now)) = (receivers(scope, held), receivers(scope, wanted));
    receiving(batch, Verb::Delete, walled.difference(&walled_now), own.difference(&own_now));
    receiving(batch, Verb::Add, walled_now.difference(&walled), own_now.difference(&own));
}

fn receiving<'a>(
    batch: &mut Batch,
    verb: Verb,
    names: impl Iterator<Item = &'a String>,
    addresses: impl Iterator<Item = &'a (String, IpAddr)>,
) {
    batch.elements(verb, NFPROTO_BRIDGE, "walled", names.map(|name| interface(name)));
    let (four, six): (BTreeSet<_>, BTreeSet<_>) = addresses.partition(|(_, address)| address.is_ipv4());
    for (set, some) in [("own4", four), ("own6", six)] {
        let keys = some.into_iter().map(|(name, address)| {
            let mut key = interface(name);
            key.extend(octets(*address));
            key
        });
        batch.elements(verb, NFPROTO_BRIDGE, set, keys);
    }
}

fn stamped(batch: &mut Batch, stamp: u32) {
    let mark = stamp.to_ne_bytes().to_vec();
    batch.flush_chain("known");
    let known = Step::Compare(Compare::Equal, mark.clone());
    batch.add_rule("known", &[Step::LoadMark, known, Step::Verdict(Verdict::Accept)]);
    batch.flush_chain("stamp");
    batch.add_rule("stamp", &[Step::Constant(mark), Step::StoreMark]);
}
