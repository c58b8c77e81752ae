//! From records to the document of one node.
//!
//! First every instance here is entered under each of its keys; then each rule asks, for each selector on the side it filters,
//! whether anybody is there. Nothing is done per pair of rule and instance: the cost is rules × selectors + instances × keys, plus
//! the addresses of the sets that are referred to.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
};

use super::{
    apply::{Direction, FirewallRule, InstanceView, Selector, SetKey},
    directory::Directory,
    rule::{Target, Targets},
    target::{
        FirewallTarget, InstanceFilter, Layer, LayerId, Peers, RuleOrigin, RuleTarget, SetId, SetTarget, Traffic,
    },
};
use crate::id::{AccountId, InstanceId};

/// What a node with the instances `here` enforces: the enabled ones of `rules` that concern them, with the addresses of everybody
/// in `directory`. Rules may be all there are; those of owners without an instance here cost next to nothing.
pub fn compile<'a>(
    rules: impl IntoIterator<Item = &'a FirewallRule>,
    directory: &Directory,
    here: impl IntoIterator<Item = &'a InstanceView>,
) -> FirewallTarget {
    let mut compiler = Compiler::new(directory, here);
    for rule in rules {
        compiler.add(rule);
    }
    compiler.finish()
}

struct Compiler<'a> {
    directory: &'a Directory,
    owners: HashSet<AccountId>,
    /// Instances here with their firewall enabled, under each of their keys.
    members: HashMap<SetKey, Vec<InstanceId>>,
    target: FirewallTarget,
}

impl<'a> Compiler<'a> {
    fn new<'b>(directory: &'a Directory, here: impl IntoIterator<Item = &'b InstanceView>) -> Self {
        let mut compiler =
            Self { directory, owners: HashSet::new(), members: HashMap::new(), target: FirewallTarget::default() };
        for instance in here.into_iter().filter(|instance| instance.firewall_enabled) {
            compiler.owners.insert(instance.owner);
            compiler.target.instances.insert(instance.id, InstanceFilter::default());
            for key in instance.keys() {
                compiler.members.entry(key).or_default().push(instance.id);
            }
        }
        compiler
    }

    fn add(&mut self, rule: &FirewallRule) {
        let has_instances_here = rule.owner.is_none_or(|owner| self.owners.contains(&owner));
        if !rule.enabled || !has_instances_here {
            return;
        }
        let [inbound, outbound] = Direction::ALL.map(|direction| self.add_direction(rule, direction));
        if inbound.is_none() && outbound.is_none() {
            return;
        }
        let [inbound, outbound] = [inbound, outbound].map(Option::flatten);
        let traffic = Traffic::of(rule.rule.protocol());
        let origin = Some(Box::new(RuleOrigin::of(rule)));
        let rule_target = RuleTarget { version: rule.version, log: rule.log, traffic, inbound, outbound, origin };
        self.target.rules.insert(rule.id, rule_target);
    }

    /// `None` if the rule concerns nobody here in this direction; no peers if it says what happens anyway.
    fn add_direction(&mut self, rule: &FirewallRule, direction: Direction) -> Option<Option<Peers>> {
        let groups: BTreeSet<SetKey> =
            rule.selectors(direction).into_iter().map(|selector| rule.key(selector)).collect();
        let groups: Vec<SetKey> = groups.into_iter().filter(|key| self.members.contains_key(key)).collect();
        if groups.is_empty() {
            return None;
        }
        // Its absence changes nothing but what is logged.
        if rule.is_default(direction) && !rule.log {
            return Some(None);
        }
        let (priority, action) = (rule.rule.priority(), rule.rule.action());
        for group in groups {
            let id = LayerId::of(&group, direction, priority, action);
            let layer = Layer { direction, priority, action, group, rules: Vec::new() };
            self.target.layers.entry(id).or_insert(layer).rules.push(rule.id);
        }
        Some(Some(self.peers(rule, direction)))
    }

    fn peers(&mut self, rule: &FirewallRule, direction: Direction) -> Peers {
        let side = rule.peer_side(direction);
        if *side == Targets::Any {
            return Peers::Any;
        }
        let sets = Selector::of(side).into_iter().map(|selector| self.set(rule.key(selector))).collect();
        let (mut subnets, mut addresses) = (Vec::new(), Vec::new());
        for target in side.list() {
            match target {
                Target::Ip(address) => addresses.push(*address),
                Target::Subnet(subnet) => subnets.push(*subnet),
                Target::Tag { .. } | Target::Vm(_) => {}
            }
        }
        Peers::Of { sets, subnets, addresses }
    }

    fn set(&mut self, key: SetKey) -> SetId {
        let id = SetId::of(&key);
        let directory = self.directory;
        self.target.sets.entry(id).or_insert_with(|| SetTarget { addresses: directory.addresses(&key), key });
        id
    }

    fn finish(mut self) -> FirewallTarget {
        let mut ordered: BTreeMap<_, Vec<LayerId>> = BTreeMap::new();
        for (id, layer) in &mut self.target.layers {
            layer.rules.sort_unstable();
            layer.rules.dedup();
            // Highest priority first; within one, what differs from the default first.
            let is_default = layer.action == layer.direction.default_action();
            ordered.entry((Reverse(layer.priority), is_default)).or_default().push(*id);
        }
        for id in ordered.into_values().flatten() {
            let layer = &self.target.layers[&id];
            for instance in self.members.get(&layer.group).into_iter().flatten() {
                let Some(filter) = self.target.instances.get_mut(instance) else { continue };
                match layer.direction {
                    Direction::Inbound => filter.inbound.push(id),
                    Direction::Outbound => filter.outbound.push(id),
                }
            }
        }
        self.target
    }
}
