//! What the firewall does to one packet, and because of which rule.
//!
//! Twice: [`evaluate`] reads the records and nothing derived from them, so it is what the words of a rule mean;
//! [`FirewallTarget::evaluate`] reads the document a node enforces. Tests hold them against each other; an operator asks the first
//! what should be and the second what is. Packets that belong to a connection that was let through are no question for either.

use std::{cmp::Reverse, net::IpAddr};

use super::{
    apply::{Direction, FirewallRule, InstanceView, Selector},
    directory::Directory,
    rule::{Action, IcmpType, IcmpTypes, Ports, Protocol, Target, Targets},
    target::{FirewallTarget, Peers, Traffic},
};
use crate::id::{FirewallRuleId, InstanceId};

/// The first packet of a connection, as one instance's firewall sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// To the instance or from it.
    pub direction: Direction,
    /// The address at the other end.
    pub peer: IpAddr,
    /// What it carries.
    pub kind: PacketKind,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketKind {
    /// TCP to this port.
    Tcp(u16),
    /// UDP to this port.
    Udp(u16),
    /// ICMP of IPv4 with this type and code.
    Icmp(u8, u8),
    /// ICMP of IPv6 with this type and code.
    Icmp6(u8, u8),
    /// IPsec authentication header.
    Ah,
    /// IPsec encapsulation.
    Esp,
    /// Something else, which no rule can name.
    Other,
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Let through or dropped.
    pub action: Action,
    /// Because of what.
    pub by: DecidedBy,
}

/// Why something happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecidedBy {
    /// The instance's firewall is disabled.
    Disabled,
    /// No rule matched.
    Default,
    /// This rule; where several of the same weight match, the one with the least id.
    Rule(FirewallRuleId),
}

impl Decision {
    const UNFILTERED: Self = Self { action: Action::Allow, by: DecidedBy::Disabled };

    fn default_of(direction: Direction) -> Self {
        Self { action: direction.default_action(), by: DecidedBy::Default }
    }
}

/// What `rules` say about a packet to or from `instance`. Looks at every rule and every instance: for a person's question.
pub fn evaluate<'a>(
    rules: impl IntoIterator<Item = &'a FirewallRule>,
    directory: &Directory,
    instance: &InstanceView,
    packet: Packet,
) -> Decision {
    if !instance.firewall_enabled {
        return Decision::UNFILTERED;
    }
    let direction = packet.direction;
    let peers: Vec<&InstanceView> = directory.with_address(packet.peer).collect();
    let matching = rules.into_iter().filter(|rule| {
        rule.enabled
            && rule.rule.protocol().matches(packet)
            && Selector::of(rule.side(direction)).into_iter().any(|selector| rule.key(selector).matches(instance))
            && is_peer(rule, packet, &peers)
    });
    let first = matching.min_by_key(|rule| {
        let is_default = rule.rule.action() == direction.default_action();
        (Reverse(rule.rule.priority()), is_default, rule.id)
    });
    first.map_or(Decision::default_of(direction), |rule| Decision {
        action: rule.rule.action(),
        by: DecidedBy::Rule(rule.id),
    })
}

/// Whether the other end of a packet, which these instances may be, is on the rule's other side.
fn is_peer(rule: &FirewallRule, packet: Packet, peers: &[&InstanceView]) -> bool {
    let side = rule.peer_side(packet.direction);
    let is_target = |target: &Target| match target {
        Target::Ip(address) => *address == packet.peer,
        Target::Subnet(subnet) => subnet.contains(&packet.peer),
        Target::Tag { .. } | Target::Vm(_) => false,
    };
    *side == Targets::Any
        || side.list().iter().any(is_target)
        || Selector::of(side)
            .into_iter()
            .map(|selector| rule.key(selector))
            .any(|key| peers.iter().any(|peer| key.matches(peer)))
}

impl FirewallTarget {
    /// What a node that enforces this document does with a packet to or from one of its instances.
    pub fn evaluate(&self, instance: InstanceId, packet: Packet) -> Decision {
        if !self.instances.contains_key(&instance) {
            return Decision::UNFILTERED;
        }
        let mut entries = self.entries(instance, packet.direction);
        let first = entries.find(|entry| entry.rule.traffic.matches(packet) && self.is_peer(entry.peers, packet.peer));
        first.map_or(Decision::default_of(packet.direction), |entry| Decision {
            action: entry.layer.action,
            by: DecidedBy::Rule(entry.id),
        })
    }

    /// Whether an address is one of `peers`, with the sets of this document.
    pub fn is_peer(&self, peers: &Peers, peer: IpAddr) -> bool {
        match peers {
            Peers::Any => true,
            Peers::Of { sets, subnets, addresses } => {
                addresses.contains(&peer)
                    || subnets.iter().any(|subnet| subnet.contains(&peer))
                    || sets.iter().any(|id| self.sets.get(id).is_some_and(|set| set.addresses.contains(peer)))
            }
        }
    }
}

impl Protocol {
    /// Whether a packet is of this traffic.
    pub fn matches(&self, packet: Packet) -> bool {
        let has_port = |ports: &Ports, port: u16| match ports {
            Ports::All => true,
            Ports::List(ports) => ports.iter().any(|range| (range.first()..=range.last()).contains(&port)),
        };
        let has_type = |types: &IcmpTypes, kind: u8, code: u8| match types {
            IcmpTypes::All => true,
            IcmpTypes::List(types) => types.iter().any(|one| one.matches(kind, code)),
        };
        match (self, packet.kind) {
            (Self::Tcp(ports), PacketKind::Tcp(port)) | (Self::Udp(ports), PacketKind::Udp(port)) => {
                has_port(ports, port)
            }
            (Self::Icmp(types), PacketKind::Icmp(kind, code)) => packet.peer.is_ipv4() && has_type(types, kind, code),
            (Self::Icmp6(types), PacketKind::Icmp6(kind, code)) => packet.peer.is_ipv6() && has_type(types, kind, code),
            (Self::Ah, PacketKind::Ah) | (Self::Esp, PacketKind::Esp) => true,
            _ => false,
        }
    }
}

impl Traffic {
    /// Whether a packet is of this traffic.
    pub fn matches(&self, packet: Packet) -> bool {
        let has_port = |ports: &Option<Vec<(u16, u16)>>, port: u16| {
            ports.as_ref().is_none_or(|ports| ports.iter().any(|(first, last)| (*first..=*last).contains(&port)))
        };
        let has_type = |types: &Option<Vec<IcmpType>>, kind: u8, code: u8| {
            types.as_ref().is_none_or(|types| types.iter().any(|one| one.matches(kind, code)))
        };
        match (self, packet.kind) {
            (Self::Tcp { ports }, PacketKind::Tcp(port)) | (Self::Udp { ports }, PacketKind::Udp(port)) => {
                has_port(ports, port)
            }
            (Self::Icmp { types }, PacketKind::Icmp(kind, code)) => {
                packet.peer.is_ipv4() && has_type(types, kind, code)
            }
            (Self::Icmp6 { types }, PacketKind::Icmp6(kind, code)) => {
                packet.peer.is_ipv6() && has_type(types, kind, code)
            }
            (Self::Ah, PacketKind::Ah) | (Self::Esp, PacketKind::Esp) => true,
            _ => false,
        }
    }
}

impl IcmpType {
    fn matches(self, kind: u8, code: u8) -> bool {
        self.kind == kind && self.code.is_none_or(|wanted| wanted == code)
    }
}
