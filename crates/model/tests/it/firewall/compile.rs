//! Documents: that they mean what the records say, that they share, and that a difference leads from one to the next.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    firewall::{
        Action, Change, DecidedBy, Decision, Direction, Directory, FirewallRule, FirewallTarget, InstanceFilter,
        InstanceView, LayerId, Packet, PacketKind, Peers, SetId, Traffic, compile, diff, directory::changed_sets,
        evaluate, target::AddressSet,
    },
    id::InstanceId,
};
use proptest::prelude::*;

use super::worlds::{self, account, instance_id, record, v4, v6};

/// What a rule of a chain looks for, and whether it logs.
type Matches = (Traffic, Peers, bool);

/// What a kernel holds: made from a whole document, or from another state and a change.
#[derive(Debug, Clone, PartialEq)]
struct Kernel {
    sets: BTreeMap<SetId, AddressSet>,
    layers: BTreeMap<LayerId, (Action, Vec<Matches>)>,
    instances: BTreeMap<InstanceId, InstanceFilter>,
}

impl Kernel {
    fn of(target: &FirewallTarget) -> Self {
        let mut kernel = Self { sets: BTreeMap::new(), layers: BTreeMap::new(), instances: BTreeMap::new() };
        kernel.apply(&diff(&FirewallTarget::default(), target), target);
        kernel
    }

    /// Looks at nothing of `new` but what the change names.
    fn apply(&mut self, change: &Change, new: &FirewallTarget) {
        for id in &change.sets_added {
            assert!(self.sets.insert(*id, new.sets[id].addresses.clone()).is_none());
        }
        for (id, change) in &change.sets_changed {
            let set = self.sets.get_mut(id).unwrap();
            assert!(change.removed_v4.iter().all(|address| set.v4.remove(address)));
            assert!(change.removed_v6.iter().all(|address| set.v6.remove(address)));
            assert!(change.added_v4.iter().all(|address| set.v4.insert(*address)));
            assert!(change.added_v6.iter().all(|address| set.v6.insert(*address)));
        }
        for id in &change.layers_written {
            let layer = &new.layers[id];
            let rules = layer.rules.iter().map(|rule| {
                let rule = &new.rules[rule];
                (rule.traffic.clone(), rule.peers(layer.direction).unwrap().clone(), rule.log)
            });
            self.layers.insert(*id, (layer.action, rules.collect()));
        }
        for id in &change.instances_written {
            self.instances.insert(*id, new.instances[id].clone());
        }
        assert!(change.instances_removed.iter().all(|id| self.instances.remove(id).is_some()));
        assert!(change.layers_removed.iter().all(|id| self.layers.remove(id).is_some()));
        assert!(change.sets_removed.iter().all(|id| self.sets.remove(id).is_some()));
    }
}

fn compiled(rules: &[FirewallRule], instances: &[InstanceView], here: &[bool]) -> FirewallTarget {
    let directory = Directory::new(instances.iter().cloned());
    let here = instances.iter().zip(here).filter(|(_, here)| **here).map(|(instance, _)| instance);
    compile(rules, &directory, here)
}

fn is_here() -> impl Strategy<Value = Vec<bool>> {
    prop::collection::vec(prop::bool::weighted(0.7), usize::from(worlds::INSTANCES))
}

/// The document decides like the records. Which of several rules of one weight is named may differ, and a rule that says what happens
/// anyway may be called the default.
fn check_same(
    rules: &[FirewallRule],
    meant: Decision,
    enforced: Decision,
    packet: Packet,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(enforced.action, meant.action, "{:?} against {:?}", enforced, meant);
    let rule = |by| rules.iter().find(|rule| by == DecidedBy::Rule(rule.id));
    match (rule(meant.by), rule(enforced.by)) {
        (Some(meant), Some(enforced)) => {
            prop_assert_eq!(meant.rule.priority(), enforced.rule.priority());
            prop_assert!(enforced.enabled && enforced.rule.protocol().matches(packet));
        }
        (Some(meant), None) => prop_assert!(meant.is_default(packet.direction) && enforced.by == DecidedBy::Default),
        (None, _) => prop_assert_eq!(meant.by, enforced.by),
    }
    Ok(())
}

proptest! {
    #[test]
    fn documents_decide_like_records(
        rules in worlds::rules(),
        instances in worlds::instances(),
        here in is_here(),
        packets in prop::collection::vec(worlds::packet(), 1..40),
    ) {
        let target = compiled(&rules, &instances, &here);
        prop_assert_eq!(target.check(), Ok(()));
        let stored = serde_json::to_vec(&target).unwrap();
        prop_assert_eq!(&serde_json::from_slice::<FirewallTarget>(&stored).unwrap(), &target);

        let directory = Directory::new(instances.iter().cloned());
        for (instance, here) in instances.iter().zip(&here) {
            prop_assert_eq!(target.instances.contains_key(&instance.id), *here && instance.firewall_enabled);
            for packet in packets.iter().filter(|_| *here) {
                let meant = evaluate(&rules, &directory, instance, *packet);
                check_same(&rules, meant, target.evaluate(instance.id, *packet), *packet)?;
            }
        }
    }

    #[test]
    fn merged_rules_match_the_same(
        rules in worlds::rules(),
        instances in worlds::instances(),
        here in is_here(),
        packets in prop::collection::vec(worlds::packet(), 1..40),
    ) {
        let target = compiled(&rules, &instances, &here);
        for (id, layer) in &target.layers {
            let matches = target.matches(*id);
            let mut merged: Vec<_> = matches.iter().flat_map(|one| one.rules.clone()).collect();
            merged.sort_unstable();
            prop_assert_eq!(&merged, &layer.rules);
            prop_assert!(matches.iter().all(|one| !one.log || one.rules.len() == 1));
            for packet in &packets {
                let fits = |traffic: &Traffic, peers: &Peers| traffic.matches(*packet) && target.is_peer(peers, packet.peer);
                let by_rule = layer.rules.iter().any(|rule| {
                    let rule = &target.rules[rule];
                    fits(&rule.traffic, rule.peers(layer.direction).unwrap())
                });
                prop_assert_eq!(matches.iter().any(|one| fits(&one.traffic, &one.peers)), by_rule);
            }
        }
    }

    #[test]
    fn nothing_in_a_document_is_for_nobody(rules in worlds::rules(), instances in worlds::instances(), here in is_here()) {
        let target = compiled(&rules, &instances, &here);
        let filters = target.instances.values();
        let used: BTreeSet<LayerId> = filters.flat_map(|filter| filter.inbound.iter().chain(&filter.outbound)).copied().collect();
        prop_assert_eq!(used, target.layers.keys().copied().collect());
        let peers = target.rules.values().flat_map(|rule| rule.inbound.iter().chain(&rule.outbound));
        let used: BTreeSet<SetId> = peers.flat_map(Peers::sets).copied().collect();
        prop_assert_eq!(used, target.sets.keys().copied().collect());
    }

    #[test]
    fn a_difference_leads_from_one_document_to_the_next(
        old in (worlds::rules(), worlds::instances(), is_here()),
        new in (worlds::rules(), worlds::instances(), is_here()),
    ) {
        let old = compiled(&old.0, &old.1, &old.2);
        let new = compiled(&new.0, &new.1, &new.2);
        let mut kernel = Kernel::of(&old);
        kernel.apply(&diff(&old, &new), &new);
        prop_assert_eq!(kernel, Kernel::of(&new));
        prop_assert!(diff(&new, &new).is_empty());
    }

    /// An instance elsewhere changes: the document follows by looking up a few sets, and is what a new one would be.
    #[test]
    fn changes_elsewhere_are_set_updates(
        rules in worlds::rules(),
        instances in worlds::instances(),
        here in is_here(),
        after in (0..worlds::INSTANCES).prop_flat_map(worlds::instance),
    ) {
        let is_elsewhere = |instance: &InstanceView| instance.id != after.id;
        let at_home: Vec<&InstanceView> =
            instances.iter().zip(&here).filter(|(instance, here)| **here && is_elsewhere(instance)).map(|(instance, _)| instance).collect();
        let mut directory = Directory::new(instances.clone());
        let old = compile(&rules, &directory, at_home.iter().copied());
        let before = directory.insert(after.clone());
        let new = compile(&rules, &directory, at_home.iter().copied());
        let change = diff(&old, &new);
        prop_assert!(change.is_sets_only());

        let mut refreshed = old.clone();
        let differs = refreshed.refresh(&directory, &changed_sets(before.as_ref(), Some(&after)));
        prop_assert_eq!(differs, !change.is_empty());
        prop_assert_eq!(refreshed, new);
    }
}

/// `(instance, tags)`, all of one owner, with one address of each family.
fn tagged(number: u8, tags: &[&str]) -> InstanceView {
    InstanceView {
        id: instance_id(number),
        owner: account(1),
        tags: tags.iter().map(|name| ((*name).to_owned(), "true".to_owned())).collect(),
        addresses: vec![v4(number), v6(number)],
        firewall_enabled: true,
    }
}

fn ours(texts: &[&str]) -> Vec<FirewallRule> {
    (0u8..).zip(texts).map(|(number, text)| record(number, Some(account(1)), text.parse().unwrap())).collect()
}

/// What happens to a packet, by records and by document.
fn decide(rules: &[FirewallRule], instances: &[InstanceView], packet: Packet) -> Action {
    let directory = Directory::new(instances.iter().cloned());
    let meant = evaluate(rules, &directory, &instances[0], packet);
    let enforced = compile(rules, &directory, instances).evaluate(instances[0].id, packet);
    assert_eq!(meant, enforced);
    meant.action
}

#[test]
fn defaults_priorities_and_ties() {
    let instances = [tagged(1, &["www"]), tagged(2, &[])];
    let ssh = |direction| Packet { direction, peer: v4(2), kind: PacketKind::Tcp(22) };
    let (allow, block) = ("ALLOW tcp PORT 22", "BLOCK tcp PORT 22");
    let into = |action: &str| format!("FROM any TO tag www {action}");
    let out_of = |action: &str| format!("FROM tag www TO all vms {action}");
    let decide = |texts: &[String], direction| {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        decide(&ours(&texts), &instances, ssh(direction))
    };
    let (inbound, outbound) = (Direction::Inbound, Direction::Outbound);
    assert_eq!(decide(&[], inbound), Action::Block);
    assert_eq!(decide(&[], outbound), Action::Allow);
    assert_eq!(decide(&[into(allow)], inbound), Action::Allow);
    assert_eq!(decide(&[out_of(block)], outbound), Action::Block);
    // In a tie, what differs from the default decides.
    assert_eq!(decide(&[into(block), into(allow)], inbound), Action::Allow);
    assert_eq!(decide(&[out_of(allow), out_of(block)], outbound), Action::Block);
    // A higher priority decides.
    assert_eq!(decide(&[into(allow), into("BLOCK tcp PORT all PRIORITY 1")], inbound), Action::Block);
    assert_eq!(decide(&[out_of(block), out_of("ALLOW tcp PORTS 20 - 30 PRIORITY 1")], outbound), Action::Allow);
    assert_eq!(
        decide(&[into("BLOCK tcp PORT 22 PRIORITY 2"), into("ALLOW tcp PORT 22 PRIORITY 3")], inbound),
        Action::Allow
    );
}

#[test]
fn a_global_rule_lets_pings_through() {
    let ping = [record(9, None, "FROM any TO all vms ALLOW icmp TYPE 8 CODE 0".parse().unwrap())];
    let instances = [tagged(1, &[])];
    let packet = |kind, peer| Packet { direction: Direction::Inbound, peer, kind };
    assert_eq!(decide(&ping, &instances, packet(PacketKind::Icmp(8, 0), v4(9))), Action::Allow);
    assert_eq!(decide(&ping, &instances, packet(PacketKind::Icmp(13, 0), v4(9))), Action::Block);
    assert_eq!(decide(&ping, &instances, packet(PacketKind::Icmp6(128, 0), v6(9))), Action::Block);
    let off = InstanceView { firewall_enabled: false, ..instances[0].clone() };
    assert_eq!(decide(&ping, &[off], packet(PacketKind::Other, v4(9))), Action::Allow);
}

#[test]
fn a_document_as_text() {
    let mut rules =
        ours(&["FROM (tag db OR ip 192.0.2.1 OR subnet fd00::/64) TO tag www ALLOW tcp PORTS 80, 443, 81 - 90"]);
    rules.push(FirewallRule {
        log: true,
        ..record(9, None, "FROM all vms TO any BLOCK udp PORT all PRIORITY 5".parse().unwrap())
    });
    let instances = [tagged(1, &["www"]), tagged(2, &["db"])];
    let directory = Directory::new(instances.iter().cloned());
    let target = compile(&rules, &directory, &instances[..1]);
    let set = target.sets.keys().next().unwrap();
    let [first, second] = [&rules[0], &rules[1]].map(|rule| rule.id);
    let mut document = serde_json::to_value(&target).unwrap();
    // Not for the kernel: what the record is made again of.
    let origins = [first, second].map(|id| {
        let rule = document["rules"][id.to_string()].as_object_mut().unwrap();
        rule.remove("origin").unwrap()
    });
    let told: Vec<_> = target.told_rules(None).collect();
    assert_eq!(told.len(), 2);
    for (rule, origin) in rules.iter().zip(origins) {
        let (_, told) = told.iter().find(|(id, _)| *id == rule.id).unwrap();
        assert_eq!((told.version, told.log, &told.origin.text), (1, rule.log, &rule.rule.to_string()));
        assert_eq!((told.origin.owner, serde_json::to_value(&told.origin).unwrap()), (rule.owner, origin));
    }
    assert_eq!(target.told_rules(Some(told[0].0)).collect::<Vec<_>>(), told[1..]);
    assert_eq!(
        document["rules"],
        serde_json::json!({
            first.to_string(): {
                "version": 1,
                "traffic": {"protocol": "tcp", "ports": [[80, 90], [443, 443]]},
                "inbound": {"of": {"sets": [set], "subnets": ["fd00::/64"], "addresses": ["192.0.2.1"]}},
            },
            second.to_string(): {"version": 1, "log": true, "traffic": {"protocol": "udp"}, "outbound": "any"},
        })
    );
    assert_eq!(
        document["sets"][set.to_string()],
        serde_json::json!({
            "key": {"scope": account(1), "selector": {"tag": {"name": "db"}}},
            "v4": ["10.0.0.2"],
            "v6": ["fd00::2"],
        })
    );
    let outbound = &target.layers[&target.instances[&instances[0].id].outbound[0]];
    assert_eq!((outbound.priority, outbound.action, &outbound.rules), (5, Action::Block, &vec![second]));
}

#[test]
fn rules_that_differ_in_one_thing_are_one_match() {
    let rules = ours(&[
        "FROM tag db TO all vms ALLOW tcp PORT 80",
        "FROM tag db TO all vms ALLOW tcp PORTS 81 - 90, 443",
        "FROM ip 192.0.2.1 TO all vms ALLOW tcp PORT 22",
        "FROM (ip 192.0.2.2 OR subnet 198.51.100.0/24) TO all vms ALLOW tcp PORT 22",
        "FROM any TO all vms ALLOW icmp TYPE 8 CODE 0",
        "FROM any TO all vms ALLOW icmp TYPE 8",
    ]);
    let world = [tagged(1, &["db"])];
    let target = compile(&rules, &Directory::new(world.iter().cloned()), &world);
    let [layer] = target.instances[&world[0].id].inbound[..] else { panic!("all are of one weight") };
    let found: Vec<String> = target
        .matches(layer)
        .iter()
        .map(|one| format!("{} {}", one.rules.len(), serde_json::to_string(&one.traffic).unwrap()))
        .collect();
    assert_eq!(
        found,
        [
            r#"2 {"protocol":"tcp","ports":[[80,90],[443,443]]}"#,
            r#"2 {"protocol":"tcp","ports":[[22,22]]}"#,
            r#"2 {"protocol":"icmp","types":[{"type":8}]}"#,
        ]
    );
}

#[test]
fn tags_here_change_lists_and_sets_but_no_layer() {
    let rules = ours(&[
        "FROM any TO tag a ALLOW tcp PORT 80",
        "FROM tag a TO all vms ALLOW tcp PORT 22",
        "FROM any TO tag b ALLOW tcp PORT 443",
    ]);
    let before = [tagged(1, &["a"]), tagged(2, &["a"]), tagged(3, &["b"])];
    let after = [tagged(1, &["b"]), before[1].clone(), before[2].clone()];
    let [old, new] = [&before, &after].map(|world| compile(&rules, &Directory::new(world.iter().cloned()), world));
    let change = diff(&old, &new);
    assert_eq!(change.instances_written, BTreeSet::from([instance_id(1)]));
    assert_eq!(change.sets_changed.len(), 1);
    assert!(change.layers_written.is_empty() && change.layers_removed.is_empty() && change.sets_added.is_empty());
}

#[test]
fn a_document_with_holes_is_refused() {
    let rules = ours(&["FROM tag a TO tag b ALLOW tcp PORT 80"]);
    let world = [tagged(1, &["a"]), tagged(2, &["b"])];
    let whole = compile(&rules, &Directory::new(world.iter().cloned()), &world);
    assert_eq!(whole.check(), Ok(()));
    let holes: [fn(&mut FirewallTarget); 3] =
        [|target| target.sets.clear(), |target| target.rules.clear(), |target| target.layers.clear()];
    for hole in holes {
        let mut target = whole.clone();
        hole(&mut target);
        assert!(target.check().is_err());
    }
}
