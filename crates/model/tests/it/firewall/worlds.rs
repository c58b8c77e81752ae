//! Small datacenters at random: few accounts, tags and addresses, so that rules meet instances and each other often.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::{
    firewall::{
        Action, Direction, FirewallRule, IcmpType, IcmpTypes, InstanceView, Packet, PacketKind, Port, Ports, Protocol,
        Rule, Target, Targets,
    },
    id::{AccountId, FirewallRuleId, InstanceId},
    time::Timestamp,
};
use proptest::{collection, option, prelude::*, sample::select};
use uuid::Uuid;

/// Instances of a world at most.
pub(super) const INSTANCES: u8 = 8;

pub(super) fn account(number: u8) -> AccountId {
    AccountId::new(Uuid::from_u128(0xacc0 + u128::from(number)))
}

pub(super) fn instance_id(number: u8) -> InstanceId {
    InstanceId::new(Uuid::from_u128(0x1000 + u128::from(number)))
}

pub(super) fn v4(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, number))
}

pub(super) fn v6(number: u8) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()))
}

fn address() -> impl Strategy<Value = IpAddr> {
    (1u8..12, any::<bool>()).prop_map(|(number, is_v4)| if is_v4 { v4(number) } else { v6(number) })
}

fn subnet() -> impl Strategy<Value = IpNet> {
    let texts = ["10.0.0.0/29", "10.0.0.8/30", "0.0.0.0/0", "fd00::/125", "fd00::8/126", "::/0", "192.0.2.0/24"];
    select(texts.map(|text| text.parse::<IpNet>().unwrap()).to_vec())
}

fn tag_name() -> impl Strategy<Value = String> {
    select(vec!["a", "b"]).prop_map(str::to_owned)
}

fn tag_value() -> impl Strategy<Value = String> {
    select(vec!["x", "y", ""]).prop_map(str::to_owned)
}

pub(super) fn instance(number: u8) -> impl Strategy<Value = InstanceView> {
    let tags = collection::btree_map(tag_name(), tag_value(), 0..3);
    (0u8..2, tags, collection::vec(address(), 0..3), prop::bool::weighted(0.8)).prop_map(
        move |(owner, tags, addresses, firewall_enabled)| InstanceView {
            id: instance_id(number),
            owner: account(owner),
            tags,
            addresses,
            firewall_enabled,
        },
    )
}

pub(super) fn instances() -> impl Strategy<Value = Vec<InstanceView>> {
    (0..INSTANCES).map(instance).collect::<Vec<_>>()
}

/// A target with a tag of any characters, for the language; [`target`] is for worlds.
fn any_tag() -> impl Strategy<Value = Target> {
    (any::<String>(), option::of(any::<String>())).prop_map(|(name, value)| Target::Tag { name, value })
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        1 => address().prop_map(Target::Ip),
        1 => subnet().prop_map(Target::Subnet),
        3 => (tag_name(), option::of(tag_value())).prop_map(|(name, value)| Target::Tag { name, value }),
        2 => (0..INSTANCES).prop_map(|number| Target::Vm(instance_id(number))),
    ]
}

fn targets(target: impl Strategy<Value = Target>) -> impl Strategy<Value = Targets> {
    prop_oneof![
        1 => Just(Targets::Any),
        2 => Just(Targets::AllVms),
        4 => collection::vec(target, 1..4).prop_map(Targets::List),
    ]
}

fn ports() -> impl Strategy<Value = Ports> {
    let port = prop_oneof![
        (1u16..30).prop_map(Port::One),
        (1u16..30, 0u16..10).prop_map(|(first, more)| Port::Range(first, first + more)),
        Just(Port::Range(1, u16::MAX)),
    ];
    prop_oneof![1 => Just(Ports::All), 3 => collection::vec(port, 1..5).prop_map(Ports::List)]
}

fn types() -> impl Strategy<Value = IcmpTypes> {
    let kind = (0u8..4, option::of(0u8..3)).prop_map(|(kind, code)| IcmpType { kind, code });
    prop_oneof![1 => Just(IcmpTypes::All), 3 => collection::vec(kind, 1..5).prop_map(IcmpTypes::List)]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![
        4 => ports().prop_map(Protocol::Tcp),
        2 => ports().prop_map(Protocol::Udp),
        2 => types().prop_map(Protocol::Icmp),
        2 => types().prop_map(Protocol::Icmp6),
        1 => Just(Protocol::Ah),
        1 => Just(Protocol::Esp),
    ]
}

/// Rules of which `new` made something.
fn rule_of(target: impl Strategy<Value = Target> + Clone + 'static) -> impl Strategy<Value = Rule> {
    let action = select(vec![Action::Allow, Action::Block]);
    let priority = prop_oneof![2 => Just(0u8), 1 => 0u8..=2, 1 => 0u8..=100];
    (targets(target.clone()), targets(target), action, protocol(), priority)
        .prop_filter_map("makes no sense", |(from, to, action, protocol, priority)| {
            Rule::new(from, to, action, protocol, priority).ok()
        })
}

/// A rule that can meet the instances of a world.
pub(super) fn rule() -> impl Strategy<Value = Rule> {
    rule_of(target().boxed())
}

/// A rule with any tag there can be.
pub(super) fn strange_rule() -> impl Strategy<Value = Rule> {
    rule_of(prop_oneof![target(), any_tag()].boxed())
}

pub(super) fn record(number: u8, owner: Option<AccountId>, rule: Rule) -> FirewallRule {
    FirewallRule {
        id: FirewallRuleId::new(Uuid::from_u128(0x2000 + u128::from(number))),
        owner,
        rule,
        enabled: true,
        log: false,
        description: None,
        created_by: None,
        version: 1,
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
    }
}

pub(super) fn rules() -> impl Strategy<Value = Vec<FirewallRule>> {
    let one = (option::weighted(0.7, 0u8..2), rule(), prop::bool::weighted(0.9), prop::bool::weighted(0.2));
    collection::vec(one, 0..12).prop_map(|rules| {
        let numbered = (0u8..).zip(rules);
        numbered
            .map(|(number, (owner, rule, enabled, log))| FirewallRule {
                enabled,
                log,
                ..record(number, owner.map(account), rule)
            })
            .collect()
    })
}

pub(super) fn packet() -> impl Strategy<Value = Packet> {
    let kind = prop_oneof![
        4 => (1u16..40).prop_map(PacketKind::Tcp),
        2 => (1u16..40).prop_map(PacketKind::Udp),
        2 => (0u8..4, 0u8..3).prop_map(|(kind, code)| PacketKind::Icmp(kind, code)),
        2 => (0u8..4, 0u8..3).prop_map(|(kind, code)| PacketKind::Icmp6(kind, code)),
        1 => Just(PacketKind::Ah),
        1 => Just(PacketKind::Esp),
        1 => Just(PacketKind::Other),
    ];
    (select(Direction::ALL.to_vec()), address(), kind).prop_map(|(direction, peer, kind)| Packet {
        direction,
        peer,
        kind,
    })
}
