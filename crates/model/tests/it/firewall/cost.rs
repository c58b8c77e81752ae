//! What a big node costs. Prints times and asserts none; sizes it asserts, because they are the same on every machine.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use model::{
    firewall::{Directory, FirewallRule, InstanceView, compile, diff, directory::changed_sets},
    id::{AccountId, FirewallRuleId, InstanceId},
    time::Timestamp,
};
use uuid::Uuid;

/// On the node.
const HERE: u32 = 500;
/// In the datacenter.
const INSTANCES: u32 = 5_000;
const RULES: u32 = 1_000;
/// Of accounts; one of them has most of everything here.
const OWNERS: u32 = 10;
/// Bytes of the document at most: what a node reads from its disk at start and gets over its link at a change.
const DOCUMENT_MAX_BYTES: usize = 2 << 20;

fn owner(number: u32) -> AccountId {
    // Nine of ten instances and rules are the first one's.
    AccountId::new(Uuid::from_u128(if number.is_multiple_of(10) { u128::from(number / 10 % OWNERS) } else { 0 }))
}

fn instance(number: u32) -> InstanceView {
    let tags = [("role", number % 20), ("stage", number % 3), ("unit", number % 100)];
    InstanceView {
        id: InstanceId::new(Uuid::from_u128(0x1000 + u128::from(number))),
        owner: owner(number),
        tags: tags.map(|(name, value)| (name.to_owned(), value.to_string())).into_iter().collect(),
        addresses: vec![
            IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number)),
            IpAddr::V6(Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(number))),
        ],
        firewall_enabled: true,
    }
}

fn rule(number: u32) -> FirewallRule {
    // A prime apart, so that tags and kinds of rules meet in every combination.
    let (role, stage, unit) = (number * 7 / 5 % 20, number * 11 / 5 % 3, number * 13 / 5 % 100);
    let port = 1_000 + number;
    let text = match number % 5 {
        0 => format!("FROM all vms TO all vms ALLOW tcp PORT {port}"),
        1 => format!("FROM tag unit = {unit} TO tag role = {role} ALLOW tcp PORTS {port} - {}", port + 5),
        2 => format!("FROM (subnet 192.0.2.0/24 OR ip 198.51.100.{unit}) TO tag stage = {stage} ALLOW udp PORT {port}"),
        3 => format!("FROM tag role = {role} TO any BLOCK tcp PORT {port} PRIORITY {}", number % 4),
        _ => format!("FROM tag role TO (tag unit = {unit} OR tag stage) BLOCK tcp PORT {port} PRIORITY 10"),
    };
    FirewallRule {
        id: FirewallRuleId::new(Uuid::from_u128(0x2000 + u128::from(number))),
        owner: (!number.is_multiple_of(50)).then(|| owner(number)),
        rule: text.parse().unwrap(),
        enabled: true,
        log: false,
        description: None,
        created_by: None,
        version: 1,
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
    }
}

#[test]
fn a_thousand_rules_and_five_hundred_instances() {
    let start = Instant::now();
    let rules: Vec<FirewallRule> = (0..RULES).map(rule).collect();
    println!("parse {RULES} rules: {:?}", start.elapsed());

    let start = Instant::now();
    let mut directory = Directory::new((0..INSTANCES).map(instance));
    println!("directory of {INSTANCES} instances: {:?}", start.elapsed());

    let here: Vec<InstanceView> = (0..HERE).map(|number| instance(number * (INSTANCES / HERE) + number % 10)).collect();
    let start = Instant::now();
    let old = compile(&rules, &directory, &here);
    println!("compile {RULES} rules for {HERE} instances: {:?}", start.elapsed());
    let entries: usize = old
        .instances
        .values()
        .flat_map(|filter| filter.inbound.iter().chain(&filter.outbound))
        .map(|id| old.layers[id].rules.len())
        .sum();
    let bytes = serde_json::to_vec(&old).unwrap().len();
    let lists: usize = old.instances.values().map(|filter| filter.inbound.len() + filter.outbound.len()).sum();
    println!(
        "{} layers, {} sets, {lists} layers in instances' lists: {bytes} bytes for {entries} pairs",
        old.layers.len(),
        old.sets.len()
    );
    assert!(entries > 100_000, "the case is not as big as it should be: {entries} pairs");
    assert!(bytes < DOCUMENT_MAX_BYTES, "{bytes} bytes");

    let start = Instant::now();
    let matches: usize = old.layers.keys().map(|id| old.matches(*id).len()).sum();
    let rules_in_layers: usize = old.layers.values().map(|layer| layer.rules.len()).sum();
    println!("merge {rules_in_layers} rules in layers to {matches} matches: {:?}", start.elapsed());

    // One tag of an instance elsewhere.
    let mut changed = instance(7);
    assert!(!here.iter().any(|instance| instance.id == changed.id));
    changed.tags.insert("unit".to_owned(), "8".to_owned());
    let before = directory.insert(changed.clone());
    let start = Instant::now();
    let mut new = old.clone();
    println!("copy of the document: {:?}", start.elapsed());
    let start = Instant::now();
    assert!(new.refresh(&directory, &changed_sets(before.as_ref(), Some(&changed))));
    println!("refresh after one tag: {:?}", start.elapsed());
    let start = Instant::now();
    let change = diff(&old, &new);
    println!("diff after one tag: {:?}", start.elapsed());
    assert!(change.is_sets_only() && !change.is_empty());
    let elements = change.sets_changed.values().map(|set| set.added_v4.len() + set.removed_v4.len()).sum::<usize>();
    assert!(elements <= 4, "one instance entered and left at most two sets each, not {elements}");
    assert_eq!(new, compile(&rules, &directory, &here));

    // One tag of an instance here.
    let mut here = here;
    here[3].tags.insert("role".to_owned(), "8".to_owned());
    directory.insert(here[3].clone());
    let start = Instant::now();
    let newest = compile(&rules, &directory, &here);
    let change = diff(&new, &newest);
    println!("compile and diff after one tag here: {:?}", start.elapsed());
    assert_eq!(change.instances_written.len(), 1);
    assert!(change.layers_written.is_empty());
}
