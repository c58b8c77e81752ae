//! What is new in a document: [`diff`].
//!
//! The answer names things of the new document that must be written and things of the old one that must go. Carried out as one
//! transaction any order is right; one by one, sets come first, then layers, then instances, and removals last in the opposite
//! order. Most changes of a datacenter's life are [`Change::is_sets_only`]: elements in and out of sets, no chain touched,
//! no connection forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use super::target::{AddressSet, FirewallTarget, Layer, LayerId, SetId};
use crate::id::InstanceId;

/// How to get from one document to another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Sets of the new document that the old one does not have.
    pub sets_added: BTreeSet<SetId>,
    /// Elements in and out of sets both have; only sets that differ.
    pub sets_changed: BTreeMap<SetId, AddressChange>,
    /// Sets only the old document has.
    pub sets_removed: BTreeSet<SetId>,
    /// Layers of the new document that the old one does not have or has with other rules in it, or with rules that say something
    /// else now: to be written whole.
    pub layers_written: BTreeSet<LayerId>,
    /// Layers only the old document has.
    pub layers_removed: BTreeSet<LayerId>,
    /// Instances of the new document that were not filtered, or by other layers: to be written whole.
    pub instances_written: BTreeSet<InstanceId>,
    /// Instances that are not filtered any more.
    pub instances_removed: BTreeSet<InstanceId>,
}

/// Elements in and out of a set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressChange {
    /// In, IPv4.
    pub added_v4: Vec<Ipv4Addr>,
    /// Out, IPv4.
    pub removed_v4: Vec<Ipv4Addr>,
    /// In, IPv6.
    pub added_v6: Vec<Ipv6Addr>,
    /// Out, IPv6.
    pub removed_v6: Vec<Ipv6Addr>,
}

impl Change {
    /// Whether there is nothing to do. Documents may still differ, in versions of rules.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether only elements of sets change.
    pub fn is_sets_only(&self) -> bool {
        let Self {
            sets_added,
            sets_changed: _,
            sets_removed,
            layers_written,
            layers_removed,
            instances_written,
            instances_removed,
        } = self;
        sets_added.is_empty()
            && sets_removed.is_empty()
            && layers_written.is_empty()
            && layers_removed.is_empty()
            && instances_written.is_empty()
            && instances_removed.is_empty()
    }
}

/// What is to do where `old` is enforced and `new` should be.
pub fn diff(old: &FirewallTarget, new: &FirewallTarget) -> Change {
    let sets_changed = new.sets.iter().filter_map(|(id, set)| {
        let before = &old.sets.get(id)?.addresses;
        (*before != set.addresses).then(|| (*id, AddressChange::between(before, &set.addresses)))
    });
    let is_same_layer = |id: &LayerId, layer: &Layer| {
        old.layers.get(id).is_some_and(|before| {
            before.rules == layer.rules
                && layer.rules.iter().all(|rule| {
                    let [before, after] = [old, new].map(|target| {
                        target.rules.get(rule).map(|rule| (rule.log, &rule.traffic, rule.peers(layer.direction)))
                    });
                    before == after
                })
        })
    };
    let layers_written = new.layers.iter().filter(|(id, layer)| !is_same_layer(id, layer)).map(|(id, _)| *id);
    let instances_written =
        new.instances.iter().filter(|(id, filter)| old.instances.get(id) != Some(filter)).map(|(id, _)| *id);
    Change {
        sets_added: missing(&new.sets, &old.sets),
        sets_changed: sets_changed.collect(),
        sets_removed: missing(&old.sets, &new.sets),
        layers_written: layers_written.collect(),
        layers_removed: missing(&old.layers, &new.layers),
        instances_written: instances_written.collect(),
        instances_removed: missing(&old.instances, &new.instances),
    }
}

/// Keys of `one` that `other` does not have.
fn missing<K: Ord + Copy, V>(one: &BTreeMap<K, V>, other: &BTreeMap<K, V>) -> BTreeSet<K> {
    one.keys().filter(|key| !other.contains_key(key)).copied().collect()
}

impl AddressChange {
    /// What to add to and remove from `before` so that it becomes `after`.
    pub fn between(before: &AddressSet, after: &AddressSet) -> Self {
        Self {
            added_v4: after.v4.difference(&before.v4).copied().collect(),
            removed_v4: before.v4.difference(&after.v4).copied().collect(),
            added_v6: after.v6.difference(&before.v6).copied().collect(),
            removed_v6: before.v6.difference(&after.v6).copied().collect(),
        }
    }
}
