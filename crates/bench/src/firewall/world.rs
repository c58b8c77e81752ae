//! A datacenter's instances and rules, the same every time: nine of ten are one account's, every kind of rule takes part.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use host::filter::{Firewall, Place};
use model::{
    firewall::{Directory, FirewallRule, FirewallTarget, InstanceView, Rule, compile},
    id::{AccountId, FirewallRuleId, InstanceId, MacAddr},
    time::Timestamp,
};

/// Filtered instances on the machine.
pub(super) const HERE: u32 = 500;
/// Instances in the datacenter.
pub(super) const EVERYWHERE: u32 = 5_000;
/// The machine's bridge; `ground` makes it.
pub(super) const BRIDGE: &str = "nb-ext";

const OWNERS: u128 = 10;

pub(super) struct World {
    pub(super) directory: Directory,
    pub(super) rules: Vec<FirewallRule>,
    pub(super) here: Vec<InstanceView>,
    pub(super) places: BTreeMap<InstanceId, Vec<Place>>,
    /// Addresses given so far to [`World::address_here`].
    moved: u32,
}

impl World {
    pub(super) fn new(rules: u32) -> Self {
        let here: Vec<InstanceView> =
            (0..HERE).map(|number| instance(number * (EVERYWHERE / HERE) + number % 10)).collect();
        let places = here.iter().map(|view| (view.id, places(view))).collect();
        let directory = Directory::new((0..EVERYWHERE).map(instance));
        Self { directory, rules: (0..rules).map(rule).collect(), here, places, moved: 0 }
    }

    pub(super) fn compile(&self) -> FirewallTarget {
        compile(&self.rules, &self.directory, &self.here)
    }

    pub(super) fn firewall(&self) -> Firewall {
        Firewall { target: Arc::new(self.compile()), places: self.places.clone(), separate: Default::default() }
    }

    /// One more filtered instance here, with a NIC that is there.
    pub(super) fn admit(&mut self, mac: MacAddr, address: Ipv4Addr) -> InstanceId {
        let id = InstanceId::random();
        let view = InstanceView { id, addresses: vec![address.into()], ..instance(0) };
        self.places.insert(id, vec![Place { bridge: BRIDGE.to_owned(), mac, address: address.into() }]);
        self.directory.insert(view.clone());
        self.here.push(view);
        id
    }

    /// Another tag for an instance of another machine; what it was and is.
    pub(super) fn tag_elsewhere(&mut self, round: u32) -> (Option<InstanceView>, InstanceView) {
        let mut after = instance(7);
        after.tags.insert("unit".to_owned(), (round % 50 * 2).to_string());
        (self.directory.insert(after.clone()), after)
    }

    /// Another tag for an instance of this machine.
    pub(super) fn tag_here(&mut self, round: u32) {
        let view = &mut self.here[3];
        view.tags.insert("role".to_owned(), (round % 20).to_string());
        self.directory.insert(view.clone());
    }

    /// Another address for an instance of this machine.
    pub(super) fn address_here(&mut self, _round: u32) {
        self.moved += 1;
        let view = &mut self.here[4];
        view.addresses[0] = IpAddr::V4(Ipv4Addr::from_bits(0x0a80_0000 + self.moved));
        self.places.insert(view.id, places(view));
        self.directory.insert(view.clone());
    }

    /// Another port for one rule.
    pub(super) fn rule_changed(&mut self, round: u32) {
        let port = 20_000 + round;
        let rule = &mut self.rules[6];
        let text = rule.rule.to_string();
        let (head, _) = text.split_once("PORTS").unwrap_or((&text, ""));
        rule.rule = parsed(&format!("{head} PORTS {port} - {}", port + 5));
        rule.version += 1;
    }
}

fn places(view: &InstanceView) -> Vec<Place> {
    let mac = MacAddr::from_suffix(
        u32::try_from(view.id.to_string().bytes().fold(0_u64, |sum, byte| (sum * 31 + u64::from(byte)) % 0xff_ffff))
            .unwrap_or(0),
    );
    view.addresses.iter().map(|address| Place { bridge: BRIDGE.to_owned(), mac, address: *address }).collect()
}

fn numbered<T: std::str::FromStr<Err: std::fmt::Debug>>(kind: u128, number: u32) -> T {
    let bits = kind << 64 | u128::from(number);
    let hex = format!("{bits:032x}");
    let text = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    text.parse().expect("five groups of hexadecimal digits are an id")
}

fn owner(number: u32) -> AccountId {
    let account = if number.is_multiple_of(10) { u128::from(number / 10) % OWNERS } else { 0 };
    numbered(1 + account, 0)
}

fn instance(number: u32) -> InstanceView {
    let tags = [("role", number % 20), ("stage", number % 3), ("unit", number % 100)];
    InstanceView {
        id: numbered(0x1000, number),
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
    // Steps without a common divisor, so that tags and kinds of rules meet in every combination.
    let (role, stage, unit) = (number * 7 / 5 % 20, number * 11 / 5 % 3, number * 13 / 5 % 100);
    let port = 1_000 + number;
    let text = match number % 5 {
        0 => format!("FROM all vms TO all vms ALLOW tcp PORT {port}"),
        1 => format!("FROM tag unit = {unit} TO tag role = {role} ALLOW tcp PORTS {port} - {}", port + 5),
        2 => format!("FROM (subnet 192.0.2.0/24 OR ip 198.51.100.{unit}) TO tag stage = {stage} ALLOW udp PORT {port}"),
        3 => format!("FROM tag role = {role} TO any BLOCK tcp PORT {port} PRIORITY {}", number % 4),
        _ => format!("FROM tag role TO (tag unit = {unit} OR tag stage) BLOCK tcp PORT {port} PRIORITY 10"),
    };
    record(numbered(0x2000, number), (!number.is_multiple_of(50)).then(|| owner(number)), &text)
}

/// An enabled rule.
pub(super) fn record(id: FirewallRuleId, owner: Option<AccountId>, text: &str) -> FirewallRule {
    FirewallRule {
        id,
        owner,
        rule: parsed(text),
        enabled: true,
        log: false,
        description: None,
        created_by: None,
        version: 1,
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
    }
}

fn parsed(text: &str) -> Rule {
    text.parse().expect("the benchmark's own rules are rules")
}
