//! The document a node enforces: [`FirewallTarget`].
//!
//! A thousand rules on five hundred instances are half a million pairs; the document never lists pairs. It has four tables, each
//! thing in it once:
//!
//! ```text
//! instances:  instance ──▶ layers that filter it, in order, inbound and outbound
//! layers:     one group ("tag www of A"), direction, priority and action ──▶ rules
//! rules:      traffic, and per direction who the peers are: anybody, or addresses, subnets and sets
//! sets:       "tag db of A" ──▶ addresses
//! ```
//!
//! All rules of a layer say the same (let through, or drop), so the order *within* a layer is free: whoever enforces it may merge
//! its rules into one lookup (see [`FirewallTarget::matches`]). The order *of* layers is the order of decision. An instance has few layers: its groups that have
//! rules, times the priorities in use there.
//!
//! Names ([`SetId`], [`LayerId`]) come from what they name, not from when: two documents call the same thing the same, so their
//! difference is small (see [`super::change`]). When a tag or an address changes somewhere, only sets change their content; when an
//! instance *here* changes its tags, its own two lists do too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Bound,
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use super::{
    apply::{Direction, FirewallRule, Selector, SetKey},
    directory::Directory,
    rule::{Action, IcmpType, IcmpTypes, Port, Ports, Protocol},
};
use crate::{
    id::{AccountId, FirewallRuleId, InstanceId},
    time::Timestamp,
};

/// All a node needs to filter its instances' traffic. An instance that is not in it is not filtered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallTarget {
    /// Instances here whose firewall is enabled.
    pub instances: BTreeMap<InstanceId, InstanceFilter>,
    /// What instances refer to.
    pub layers: BTreeMap<LayerId, Layer>,
    /// Enabled rules that concern an instance above, in the version that is meant. Some of them say what would happen anyway, and
    /// no layer has them.
    pub rules: BTreeMap<FirewallRuleId, RuleTarget>,
    /// What rules refer to.
    pub sets: BTreeMap<SetId, SetTarget>,
}

/// What filters one instance. Traffic no layer decides is dropped coming in and let through going out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceFilter {
    /// Coming in; the first layer with a matching rule decides.
    pub inbound: Vec<LayerId>,
    /// Going out; the same.
    pub outbound: Vec<LayerId>,
}

/// Rules of one group of instances that decide the same with the same weight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Which way the traffic goes.
    pub direction: Direction,
    /// The priority of its rules.
    pub priority: u8,
    /// What happens to traffic that matches one of its rules.
    pub action: Action,
    /// The instances it is for.
    pub group: SetKey,
    /// By id; each has peers for the direction.
    pub rules: Vec<FirewallRuleId>,
}

/// What a rule matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleTarget {
    /// See [`super::FirewallRule::version`].
    pub version: u64,
    /// Whether to log what it decides.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub log: bool,
    /// Which traffic.
    pub traffic: Traffic,
    /// Where traffic to instances here comes from, if a layer has the rule for that direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<Peers>,
    /// Where traffic of instances here goes to, if a layer has the rule for that direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<Peers>,
    /// What the record is made again of when nobody else knows it. Nothing that is enforced depends on it; older headnodes do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Box<RuleOrigin>>,
}

/// What a rule's record says and no machine needs to enforce it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleOrigin {
    /// See [`super::FirewallRule::owner`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<AccountId>,
    /// The rule's canonical text.
    pub text: String,
    /// See [`super::FirewallRule::description`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// See [`super::FirewallRule::created_by`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// See [`super::FirewallRule::created_at`].
    pub created_at: Timestamp,
}

/// What a machine was told of a rule last, without what it enforces: enough for its record to be made anew. Whoever holds it, the rule was enabled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldRule {
    /// See [`super::FirewallRule::version`].
    pub version: u64,
    /// See [`super::FirewallRule::log`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub log: bool,
    /// The rest of the record.
    pub origin: RuleOrigin,
}

/// The other end of the traffic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Peers {
    /// Every address of both families.
    Any,
    /// Any of these.
    Of {
        /// Sets of addresses.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        sets: Vec<SetId>,
        /// Subnets, without host bits.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        subnets: Vec<IpNet>,
        /// Addresses.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        addresses: Vec<IpAddr>,
    },
}

/// Which traffic, ready to be compared with packets: sorted, merged, nothing twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "protocol", rename_all = "lowercase")]
pub enum Traffic {
    /// TCP.
    Tcp {
        /// First and last destination port of each range; `None` is every port.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ports: Option<Vec<(u16, u16)>>,
    },
    /// UDP.
    Udp {
        /// First and last destination port of each range; `None` is every port.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ports: Option<Vec<(u16, u16)>>,
    },
    /// ICMP; IPv4 only.
    Icmp {
        /// `None` is every type.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        types: Option<Vec<IcmpType>>,
    },
    /// ICMP of IPv6; IPv6 only.
    Icmp6 {
        /// `None` is every type.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        types: Option<Vec<IcmpType>>,
    },
    /// IPsec authentication header, protocol 51.
    Ah,
    /// IPsec encapsulation, protocol 50.
    Esp,
}

/// A set of addresses and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetTarget {
    /// What it stands for; its name is made of this.
    pub key: SetKey,
    /// Its content. May be empty.
    #[serde(flatten)]
    pub addresses: AddressSet,
}

/// Addresses by family, as the kernel wants them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressSet {
    /// IPv4.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub v4: BTreeSet<Ipv4Addr>,
    /// IPv6.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub v6: BTreeSet<Ipv6Addr>,
}

/// A document whose tables do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{from} refers to {missing}, which the document does not have")]
pub struct DanglingReference {
    /// Who refers.
    pub from: String,
    /// To what.
    pub missing: String,
}

impl FirewallTarget {
    /// The layers and rules that filter an instance's traffic in one direction, in order of decision. Nothing if it is not
    /// filtered; ask [`FirewallTarget::instances`] for that.
    pub fn entries(&self, instance: InstanceId, direction: Direction) -> impl Iterator<Item = Entry<'_>> {
        let layers = self.instances.get(&instance).map(|filter| filter.layers(direction)).unwrap_or_default();
        layers.iter().filter_map(|id| self.layers.get(id)).flat_map(move |layer| {
            layer.rules.iter().filter_map(move |id| {
                let rule = self.rules.get(id)?;
                Some(Entry { layer, id: *id, rule, peers: rule.peers(direction)? })
            })
        })
    }

    /// What it says of rules behind `after`, by their ids, as far as it says what their records are made of.
    pub fn told_rules(&self, after: Option<FirewallRuleId>) -> impl Iterator<Item = (FirewallRuleId, ToldRule)> + '_ {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.rules.range((from, Bound::Unbounded)).filter_map(|(id, rule)| {
            let origin = RuleOrigin::clone(rule.origin.as_ref()?);
            Some((*id, ToldRule { version: rule.version, log: rule.log, origin }))
        })
    }

    /// Whether every layer, rule and set that is referred to is there. A node asks once, when it receives a document.
    pub fn check(&self) -> Result<(), DanglingReference> {
        let dangling = |from: String, missing: String| Err(DanglingReference { from, missing });
        for (instance, filter) in &self.instances {
            for direction in Direction::ALL {
                let is_wrong = |id: &&LayerId| self.layers.get(id).is_none_or(|layer| layer.direction != direction);
                if let Some(id) = filter.layers(direction).iter().find(is_wrong) {
                    return dangling(format!("instance {instance}"), format!("layer {id}"));
                }
            }
        }
        for (name, layer) in &self.layers {
            let has_peers = |id| self.rules.get(id).is_some_and(|rule| rule.peers(layer.direction).is_some());
            if let Some(id) = layer.rules.iter().find(|id| !has_peers(id)) {
                return dangling(format!("layer {name}"), format!("rule {id}"));
            }
        }
        for (name, rule) in &self.rules {
            let sets = [&rule.inbound, &rule.outbound].into_iter().flatten().flat_map(Peers::sets);
            if let Some(id) = sets.into_iter().find(|id| !self.sets.contains_key(id)) {
                return dangling(format!("rule {name}"), format!("set {id}"));
            }
        }
        Ok(())
    }

    /// Looks up the content of those of `changed` that are sets of this document, and says whether one differs. What
    /// [`super::directory::changed_sets`] returns may be given as it is; this is all that is to do on a node that does not have the
    /// instance which changed.
    pub fn refresh<'a>(&mut self, directory: &Directory, changed: impl IntoIterator<Item = &'a SetKey>) -> bool {
        let mut differs = false;
        for key in changed {
            if let Some(set) = self.sets.get_mut(&SetId::of(key)) {
                let addresses = directory.addresses(key);
                differs |= set.addresses != addresses;
                set.addresses = addresses;
            }
        }
        differs
    }
}

/// A rule where it stands in the order that filters an instance.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Where it stands: its action and priority.
    pub layer: &'a Layer,
    /// Which rule.
    pub id: FirewallRuleId,
    /// The rule.
    pub rule: &'a RuleTarget,
    /// Its peers in the direction that was asked for.
    pub peers: &'a Peers,
}

impl InstanceFilter {
    /// The layers of one direction, in order of decision.
    pub fn layers(&self, direction: Direction) -> &[LayerId] {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }
}

impl RuleOrigin {
    /// Of a record.
    pub fn of(rule: &FirewallRule) -> Self {
        Self {
            owner: rule.owner,
            text: rule.rule.to_string(),
            description: rule.description.clone(),
            created_by: rule.created_by.clone(),
            created_at: rule.created_at,
        }
    }
}

impl RuleTarget {
    /// The peers in one direction.
    pub fn peers(&self, direction: Direction) -> Option<&Peers> {
        match direction {
            Direction::Inbound => self.inbound.as_ref(),
            Direction::Outbound => self.outbound.as_ref(),
        }
    }
}

impl Peers {
    /// The sets among them.
    pub fn sets(&self) -> &[SetId] {
        match self {
            Self::Any => &[],
            Self::Of { sets, .. } => sets,
        }
    }

    /// Becomes these and `other`.
    pub(super) fn extend(&mut self, other: Self) {
        let Self::Of { sets, subnets, addresses } = self else { return };
        match other {
            Self::Any => *self = Self::Any,
            Self::Of { sets: more_sets, subnets: more_subnets, addresses: more_addresses } => {
                add_all(sets, more_sets);
                add_all(subnets, more_subnets);
                add_all(addresses, more_addresses);
            }
        }
    }
}

impl Traffic {
    /// What a rule's protocol means.
    pub fn of(protocol: &Protocol) -> Self {
        match protocol {
            Protocol::Tcp(ports) => Self::Tcp { ports: ranges_of(ports) },
            Protocol::Udp(ports) => Self::Udp { ports: ranges_of(ports) },
            Protocol::Icmp(types) => Self::Icmp { types: types_of(types) },
            Protocol::Icmp6(types) => Self::Icmp6 { types: types_of(types) },
            Protocol::Ah => Self::Ah,
            Protocol::Esp => Self::Esp,
        }
    }

    /// Becomes this and `other`, which is of the same protocol.
    pub(super) fn extend(&mut self, other: Self) {
        match (self, other) {
            (Self::Tcp { ports }, Self::Tcp { ports: more }) | (Self::Udp { ports }, Self::Udp { ports: more }) => {
                *ports = both(ports.take(), more).and_then(merge_ranges);
            }
            (Self::Icmp { types }, Self::Icmp { types: more })
            | (Self::Icmp6 { types }, Self::Icmp6 { types: more }) => {
                *types = both(types.take(), more).map(merge_types);
            }
            _ => {}
        }
    }
}

impl AddressSet {
    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains(&address),
            IpAddr::V6(address) => self.v6.contains(&address),
        }
    }

    /// How many addresses there are, of both families.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FromIterator<IpAddr> for AddressSet {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut set = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(address) => set.v4.insert(address),
                IpAddr::V6(address) => set.v6.insert(address),
            };
        }
        set
    }
}

/// First and last port of each.
fn ranges_of(ports: &Ports) -> Option<Vec<(u16, u16)>> {
    let Ports::List(ports) = ports else { return None };
    merge_ranges(ports.iter().map(|port| (Port::first(port), Port::last(port))).collect())
}

fn types_of(types: &IcmpTypes) -> Option<Vec<IcmpType>> {
    let IcmpTypes::List(types) = types else { return None };
    Some(merge_types(types.clone()))
}

/// In order, those that touch as one; `None` if nothing is left out.
fn merge_ranges(mut ranges: Vec<(u16, u16)>) -> Option<Vec<(u16, u16)>> {
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    (merged != [(1, u16::MAX)]).then_some(merged)
}

/// In order, none twice; a type with any code makes the same with a code superfluous.
fn merge_types(mut types: Vec<IcmpType>) -> Vec<IcmpType> {
    types.sort();
    types.dedup_by(|next, kept| next == kept || (next.kind == kept.kind && kept.code.is_none()));
    types
}

/// Both lists as one; `None`, which is everything, swallows the other.
fn both<T>(one: Option<Vec<T>>, other: Option<Vec<T>>) -> Option<Vec<T>> {
    let (mut one, other) = (one?, other?);
    one.extend(other);
    Some(one)
}

/// Ordered and each once.
fn add_all<T: Ord>(list: &mut Vec<T>, more: Vec<T>) {
    list.extend(more);
    list.sort_unstable();
    list.dedup();
}

/// Bits of a name: too many for two names to meet by accident or by the work of one who may only name his own things.
const NAME_BITS: u32 = 96;
/// What names are made in; any other would do, but this one may not change.
const NAMESPACE: Uuid = Uuid::from_u128(0x6e65_736f_0001_4000_8000_6669_7265_7761);

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            fn hash(text: &str) -> Self {
                Self(Uuid::new_v5(&NAMESPACE, text.as_bytes()).as_u128() >> (u128::BITS - NAME_BITS))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:024x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let digits = text.strip_prefix($prefix).filter(|digits| {
                    digits.len() == NAME_BITS as usize / 4 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
                });
                let number = digits.and_then(|digits| u128::from_str_radix(digits, 16).ok());
                number.map(Self).ok_or_else(|| InvalidName(text.chars().take(32).collect()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

names! {
    /// The name of a set: 25 characters `s[0-9a-f]+`, the same for the same [`SetKey`] everywhere and always.
    SetId "s";
    /// The name of a layer: 25 characters `l[0-9a-f]+`, the same for the same group, direction, priority and action.
    LayerId "l";
}

/// A text that names no set or layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not the name of a firewall set or layer")]
pub struct InvalidName(String);

impl SetId {
    /// The name of what `key` stands for.
    pub fn of(key: &SetKey) -> Self {
        Self::hash(&name_of(key))
    }
}

impl LayerId {
    /// The name of a layer.
    pub fn of(group: &SetKey, direction: Direction, priority: u8, action: Action) -> Self {
        Self::hash(&format!("{direction:?} {action:?} {priority} {}", name_of(group)))
    }
}

/// One text per key: lengths keep a name and a value from running into each other.
fn name_of(key: &SetKey) -> String {
    let scope = key.scope.map_or_else(|| "*".to_owned(), |owner| owner.to_string());
    match &key.selector {
        Selector::AllVms => format!("{scope} all"),
        Selector::Vm(id) => format!("{scope} vm {id}"),
        Selector::Tag { name, value: None } => format!("{scope} tag {name}"),
        Selector::Tag { name, value: Some(value) } => format!("{scope} tag={} {name}{value}", name.len()),
    }
}
