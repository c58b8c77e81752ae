//! A rule as a value that is right by construction.
//!
//! [`Rule::new`] is the only door: it checks limits and sense, sorts and removes repetition, so that two rules that say the same
//! targets in another order are equal and [`Rule`]'s text (see [`super::canonical`]) is the same. Ports and types are sorted
//! but neither merged nor deduplicated, because the language's users compare texts and its first implementation keeps them; what
//! a node gets is merged (see [`super::target::Traffic`]).

use std::{cmp::Ordering, net::IpAddr};

use ipnet::IpNet;

use super::{RuleError, parse::Language};
use crate::id::InstanceId;

/// Targets on one side of a rule.
pub const TARGETS_MAX: usize = 24;
/// Ports or ICMP types of a rule since version 4 of the language.
pub const PORTS_MAX: usize = 24;
/// Ports or ICMP types of a rule before version 4 of the language.
pub const PORTS_MAX_BEFORE_4: usize = 8;
/// The highest priority; 0 is the lowest and the default.
pub const PRIORITY_MAX: u8 = 100;
/// Bytes of a rule's text, as given and canonical: 48 targets with long tags, and a bound for what is stored and sent.
pub const TEXT_MAX_BYTES: usize = 16 << 10;

/// One rule: who, to whom, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    from: Targets,
    to: Targets,
    action: Action,
    protocol: Protocol,
    priority: u8,
}

/// One side of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Every address there is.
    Any,
    /// All instances of the rule's owner; of everybody if the rule is global.
    AllVms,
    /// Any of these; in canonical order and without repetition once it is part of a [`Rule`].
    List(Vec<Target>),
}

/// One of several on a side.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// An address.
    Ip(IpAddr),
    /// A subnet without host bits.
    Subnet(IpNet),
    /// Instances with this tag, with this value if one is given. Values compare as texts, whatever their JSON type.
    Tag {
        /// The tag's name.
        name: String,
        /// The tag's value; `None` is any.
        value: Option<String>,
    },
    /// One instance.
    Vm(InstanceId),
}

/// What happens to traffic that matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Let through.
    Allow,
    /// Dropped without an answer.
    Block,
}

/// Which traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// TCP to these ports.
    Tcp(Ports),
    /// UDP to these ports.
    Udp(Ports),
    /// ICMP of IPv4.
    Icmp(IcmpTypes),
    /// ICMP of IPv6.
    Icmp6(IcmpTypes),
    /// IPsec authentication header.
    Ah,
    /// IPsec encapsulation.
    Esp,
}

/// Destination ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// Every port.
    All,
    /// Any of these, by their first port.
    List(Vec<Port>),
}

/// A port or several in a row. A range of one port is not the same text as that port, and so not the same value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// This one.
    One(u16),
    /// From the first to the last, both included.
    Range(u16, u16),
}

/// ICMP types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IcmpTypes {
    /// Every type.
    All,
    /// Any of these, by type and code.
    List(Vec<IcmpType>),
}

/// An ICMP type, with a code or with every code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct IcmpType {
    /// The type.
    #[serde(rename = "type")]
    pub kind: u8,
    /// The code; `None` is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
}

impl Rule {
    /// Puts a rule of the current language together, or says what is wrong with it.
    pub fn new(
        from: Targets,
        to: Targets,
        action: Action,
        protocol: Protocol,
        priority: u8,
    ) -> Result<Self, RuleError> {
        Self::in_language(Language::CURRENT, Self { from, to, action, protocol, priority })
    }

    /// [`Rule::new`] with the limits of an older language.
    pub(super) fn in_language(language: Language, mut rule: Self) -> Result<Self, RuleError> {
        rule.from.check("FROM")?;
        rule.to.check("TO")?;
        rule.protocol.check(language)?;
        if rule.priority > PRIORITY_MAX {
            return Err(out_of_range("priority", rule.priority.into(), 0, PRIORITY_MAX.into()));
        }
        rule.check_families()?;
        if !rule.from.may_be_instances() && !rule.to.may_be_instances() {
            return Err(RuleError::NoInstances);
        }
        rule.from.sort();
        rule.to.sort();
        rule.protocol.sort();
        let bytes = rule.to_string().len();
        if bytes > TEXT_MAX_BYTES {
            return Err(RuleError::TooLong { bytes, max: TEXT_MAX_BYTES, canonical: true });
        }
        Ok(rule)
    }

    /// Who sends; its instances' outgoing traffic is filtered.
    pub fn from(&self) -> &Targets {
        &self.from
    }

    /// Who receives; its instances' incoming traffic is filtered.
    pub fn to(&self) -> &Targets {
        &self.to
    }

    /// What happens to matching traffic.
    pub fn action(&self) -> Action {
        self.action
    }

    /// Which traffic.
    pub fn protocol(&self) -> &Protocol {
        &self.protocol
    }

    /// 0 to [`PRIORITY_MAX`]; higher decides first.
    pub fn priority(&self) -> u8 {
        self.priority
    }

    /// The assembled parts, unchecked; only for [`Rule::in_language`].
    pub(super) fn unchecked(from: Targets, to: Targets, action: Action, protocol: Protocol, priority: u8) -> Self {
        Self { from, to, action, protocol, priority }
    }

    fn check_families(&self) -> Result<(), RuleError> {
        let (protocol, wants_ipv4) = match &self.protocol {
            Protocol::Icmp(_) => ("ICMPv4", true),
            Protocol::Icmp6(_) => ("ICMPv6", false),
            _ => return Ok(()),
        };
        for target in self.from.list().iter().chain(self.to.list()) {
            let is_ipv4 = match target {
                Target::Ip(address) => address.is_ipv4(),
                Target::Subnet(subnet) => subnet.addr().is_ipv4(),
                Target::Tag { .. } | Target::Vm(_) => continue,
            };
            if is_ipv4 != wants_ipv4 {
                return Err(RuleError::WrongFamily { protocol, target: target.to_string() });
            }
        }
        Ok(())
    }
}

impl Targets {
    /// The targets of a list; empty for [`Targets::Any`] and [`Targets::AllVms`].
    pub fn list(&self) -> &[Target] {
        match self {
            Self::Any | Self::AllVms => &[],
            Self::List(targets) => targets,
        }
    }

    /// Whether the rule can concern an instance on this side.
    fn may_be_instances(&self) -> bool {
        let names_instances = |target: &Target| matches!(target, Target::Tag { .. } | Target::Vm(_));
        matches!(self, Self::AllVms) || self.list().iter().any(names_instances)
    }

    fn check(&self, side: &'static str) -> Result<(), RuleError> {
        let Self::List(targets) = self else { return Ok(()) };
        if targets.is_empty() {
            return Err(RuleError::NoTarget { side });
        }
        if targets.len() > TARGETS_MAX {
            return Err(RuleError::TooManyTargets { side, count: targets.len(), max: TARGETS_MAX });
        }
        for target in targets {
            target.check()?;
        }
        Ok(())
    }

    /// Canonical order, each target once; a tag with any value makes the same tag with a value superfluous.
    fn sort(&mut self) {
        let Self::List(targets) = self else { return };
        targets.sort_by(Target::canonical_cmp);
        targets.dedup();
        let mut any_value: Option<String> = None;
        targets.retain(|target| match target {
            Target::Tag { name, value: None } => {
                any_value = Some(name.clone());
                true
            }
            Target::Tag { name, value: Some(_) } => any_value.as_ref() != Some(name),
            _ => true,
        });
    }
}

impl Target {
    fn check(&self) -> Result<(), RuleError> {
        match self {
            Self::Ip(address) if !is_peer(*address) => Err(RuleError::Address { text: address.to_string(), at: 0 }),
            Self::Subnet(subnet) if subnet.addr() != subnet.network() => {
                Err(RuleError::Subnet { text: subnet.to_string(), why: HOST_BITS, at: 0 })
            }
            _ => Ok(()),
        }
    }

    /// Addresses, subnets, tags, instances; each kind by its text in UTF-16 order, a tag without a value first.
    fn canonical_cmp(&self, other: &Self) -> Ordering {
        let rank = |target: &Self| match target {
            Self::Ip(_) => 0,
            Self::Subnet(_) => 1,
            Self::Tag { .. } => 2,
            Self::Vm(_) => 3,
        };
        let text_cmp = |a: &str, b: &str| a.encode_utf16().cmp(b.encode_utf16());
        rank(self).cmp(&rank(other)).then_with(|| match (self, other) {
            (Self::Ip(a), Self::Ip(b)) => a.to_string().cmp(&b.to_string()),
            (Self::Subnet(a), Self::Subnet(b)) => a.to_string().cmp(&b.to_string()),
            (Self::Vm(a), Self::Vm(b)) => a.cmp(b),
            (Self::Tag { name: a, value: x }, Self::Tag { name: b, value: y }) => {
                text_cmp(a, b).then_with(|| match (x, y) {
                    (Some(x), Some(y)) => text_cmp(x, y),
                    _ => x.is_some().cmp(&y.is_some()),
                })
            }
            _ => Ordering::Equal,
        })
    }
}

impl Protocol {
    /// The language's word for it, in lower case.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "tcp",
            Self::Udp(_) => "udp",
            Self::Icmp(_) => "icmp",
            Self::Icmp6(_) => "icmp6",
            Self::Ah => "ah",
            Self::Esp => "esp",
        }
    }

    fn check(&self, language: Language) -> Result<(), RuleError> {
        let max = if language < Language::V4 { PORTS_MAX_BEFORE_4 } else { PORTS_MAX };
        let (one, what, count) = match self {
            Self::Tcp(Ports::List(ports)) | Self::Udp(Ports::List(ports)) => {
                ports.iter().try_for_each(Port::check)?;
                ("port", "ports", ports.len())
            }
            Self::Icmp(IcmpTypes::List(types)) | Self::Icmp6(IcmpTypes::List(types)) => ("type", "types", types.len()),
            _ => return Ok(()),
        };
        match count {
            0 => Err(RuleError::NoPort { what: one }),
            _ if count > max => Err(RuleError::TooManyPorts { what, count, max }),
            _ => Ok(()),
        }
    }

    fn sort(&mut self) {
        match self {
            Self::Tcp(Ports::List(ports)) | Self::Udp(Ports::List(ports)) => ports.sort_by_key(Port::first),
            Self::Icmp(IcmpTypes::List(types)) | Self::Icmp6(IcmpTypes::List(types)) => types.sort(),
            _ => {}
        }
    }
}

impl Port {
    /// The first port.
    pub fn first(&self) -> u16 {
        match *self {
            Self::One(port) | Self::Range(port, _) => port,
        }
    }

    /// The last port.
    pub fn last(&self) -> u16 {
        match *self {
            Self::One(port) | Self::Range(_, port) => port,
        }
    }

    fn check(&self) -> Result<(), RuleError> {
        let (start, end) = (self.first(), self.last());
        if start == 0 || end == 0 {
            return Err(out_of_range("port number", 0, 1, u16::MAX));
        }
        if end < start {
            return Err(RuleError::Range { start, end });
        }
        Ok(())
    }
}

/// Why a subnet with bits beyond its prefix is none.
pub(super) const HOST_BITS: &str = "bits set to right of mask";

/// Whether an address can be at the other end of a connection.
pub(super) fn is_peer(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_unspecified() && !address.is_broadcast(),
        // An IPv4 address in IPv6 dress would never match a packet.
        IpAddr::V6(address) => address.to_ipv4_mapped().is_none(),
    }
}

fn out_of_range(what: &'static str, value: u16, min: u16, max: u16) -> RuleError {
    RuleError::OutOfRange { what, value, min, max }
}
