//! What a packet must be like for a match to fit: terms, as text of `nft` and as steps of a rule.
//!
//! Both say the same. The text is for a table that is made as a whole, the steps are for a change of one that is there.

use std::net::IpAddr;

use ipnet::IpNet;
use model::firewall::{Direction, Match, Peers, SetId, Traffic};

use super::{
    nft_step::{Base, Compare, Step},
    nft_wire::{Batch, Key, NFPROTO_IPV4, NFPROTO_IPV6},
};

/// The end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

/// Of the internet protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Four,
    Six,
}

/// One thing that must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Term {
    /// The packet is of this family.
    Family(Family),
    /// One of its addresses is in a set.
    InSet(Side, Family, SetId),
    /// One of its addresses is in one of these, which are of the family, as few as can be, and at least one.
    In(Side, Family, Vec<IpNet>),
    /// It is of this protocol.
    Protocol(u8),
    /// It is of this protocol, with its destination port in one of these ranges.
    Ports(u8, Vec<(u16, u16)>),
    /// It is a message of the family's ICMP of this type, and code.
    Icmp(Family, u8, Option<u8>),
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ESP: u8 = 50;
const AH: u8 = 51;
const ICMP6: u8 = 58;

/// The conditions of which one must hold, each a list of terms that all must: peers of either family times kinds of traffic. What costs less comes
/// first, since most rules do not fit a packet: a port is a comparison, a set of peers is looked up. (A kind of ICMP tells the family too, which
/// `nft` would write down twice.)
pub(super) fn conditions(one: &Match, direction: Direction) -> Vec<[Term; 2]> {
    let mut all = Vec::new();
    for family in [Family::Four, Family::Six] {
        let traffic = traffic(&one.traffic, family);
        for peers in peers(&one.peers, direction, family) {
            all.extend(traffic.iter().map(|traffic| match traffic {
                Term::Icmp(..) => [peers.clone(), traffic.clone()],
                _ => [traffic.clone(), peers.clone()],
            }));
        }
    }
    all
}

fn peers(peers: &Peers, direction: Direction, family: Family) -> Vec<Term> {
    let side = match direction {
        Direction::Inbound => Side::Source,
        Direction::Outbound => Side::Destination,
    };
    match peers {
        Peers::Any => vec![Term::Family(family)],
        Peers::Of { sets, subnets, addresses } => {
            let mut all: Vec<Term> = sets.iter().map(|set| Term::InSet(side, family, *set)).collect();
            let named = subnets.iter().copied().chain(addresses.iter().map(|address| IpNet::from(*address)));
            let named: Vec<IpNet> = named.filter(|net| Family::of(net.addr()) == family).collect();
            if !named.is_empty() {
                all.push(Term::In(side, family, IpNet::aggregate(&named)));
            }
            all
        }
    }
}

fn traffic(traffic: &Traffic, family: Family) -> Vec<Term> {
    let ports = |protocol, ports: &Option<Vec<(u16, u16)>>| match ports {
        None => vec![Term::Protocol(protocol)],
        Some(ranges) => vec![Term::Ports(protocol, ranges.clone())],
    };
    match (traffic, family) {
        (Traffic::Tcp { ports: list }, _) => ports(TCP, list),
        (Traffic::Udp { ports: list }, _) => ports(UDP, list),
        (Traffic::Icmp { types }, Family::Four) | (Traffic::Icmp6 { types }, Family::Six) => match types {
            None => vec![Term::Protocol(family.icmp())],
            Some(types) => types.iter().map(|one| Term::Icmp(family, one.kind, one.code)).collect(),
        },
        (Traffic::Icmp { .. } | Traffic::Icmp6 { .. }, _) => Vec::new(),
        (Traffic::Ah, _) => vec![Term::Protocol(AH)],
        (Traffic::Esp, _) => vec![Term::Protocol(ESP)],
    }
}

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Four } else { Self::Six }
    }

    const fn icmp(self) -> u8 {
        match self {
            Self::Four => ICMP,
            Self::Six => ICMP6,
        }
    }

    /// The name of the part of a set that holds this family.
    pub(super) fn part(self, set: SetId) -> String {
        match self {
            Self::Four => format!("{set}_4"),
            Self::Six => format!("{set}_6"),
        }
    }

    /// The kind of address a set of it holds.
    pub(super) const fn key(self) -> Key {
        match self {
            Self::Four => Key::Ipv4,
            Self::Six => Key::Ipv6,
        }
    }

    /// Where its header has an address, and bytes of one.
    const fn place(self, side: Side) -> (u32, usize) {
        match (self, side) {
            (Self::Four, Side::Source) => (12, 4),
            (Self::Four, Side::Destination) => (16, 4),
            (Self::Six, Side::Source) => (8, 16),
            (Self::Six, Side::Destination) => (24, 16),
        }
    }

    /// A packet of this family.
    fn steps(self) -> Vec<Step> {
        let number = match self {
            Self::Four => NFPROTO_IPV4,
            Self::Six => NFPROTO_IPV6,
        };
        vec![Step::Family, Step::Compare(Compare::Equal, vec![number])]
    }
}

impl Term {
    /// As `nft` reads it.
    pub(super) fn text(&self) -> String {
        let address = |side: &Side, family: &Family| {
            let word = if *family == Family::Four { "ip" } else { "ip6" };
            let end = if *side == Side::Source { "saddr" } else { "daddr" };
            format!("{word} {end}")
        };
        match self {
            Self::Family(Family::Four) => "meta nfproto ipv4".to_owned(),
            Self::Family(Family::Six) => "meta nfproto ipv6".to_owned(),
            Self::InSet(side, family, set) => format!("{} @{}", address(side, family), family.part(*set)),
            Self::In(side, family, nets) => format!("{} {{ {} }}", address(side, family), listed(nets)),
            Self::Protocol(number) => format!("meta l4proto {number}"),
            Self::Ports(protocol, ranges) => {
                let word = if *protocol == TCP { "tcp" } else { "udp" };
                let ranges: Vec<String> = ranges
                    .iter()
                    .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
                    .collect();
                format!("{word} dport {{ {} }}", ranges.join(", "))
            }
            Self::Icmp(family, kind, code) => {
                let word = if *family == Family::Four { "icmp" } else { "icmpv6" };
                match code {
                    Some(code) => format!("{word} type {kind} {word} code {code}"),
                    None => format!("{word} type {kind}"),
                }
            }
        }
    }

    /// As the kernel carries it out; sets without a name go to `batch`.
    pub(super) fn steps(&self, batch: &mut Batch) -> Vec<Step> {
        let protocol = |number: u8| vec![Step::Protocol, Step::Compare(Compare::Equal, vec![number])];
        match self {
            Self::Family(family) => family.steps(),
            Self::InSet(side, family, set) => {
                let mut steps = family.steps();
                let (offset, length) = family.place(*side);
                steps.extend([Step::Payload(Base::Network, offset, length), Step::Lookup(family.part(*set))]);
                steps
            }
            Self::In(side, family, nets) => {
                let mut steps = family.steps();
                let (offset, length) = family.place(*side);
                steps.extend(match nets.as_slice() {
                    [net] => in_net(*net, offset, length),
                    _ => {
                        let mut all = vec![Step::Payload(Base::Network, offset, length)];
                        all.extend(batch.one_of(family.key(), &ranges(nets)));
                        all
                    }
                });
                steps
            }
            Self::Protocol(number) => protocol(*number),
            Self::Ports(number, ranges) => {
                let mut steps = protocol(*number);
                steps.push(Step::Payload(Base::Transport, 2, 2));
                let of = |port: u16| port.to_be_bytes().to_vec();
                let ranges: Vec<_> = ranges.iter().map(|(first, last)| (of(*first), of(*last))).collect();
                steps.extend(batch.one_of(Key::Port, &ranges));
                steps
            }
            Self::Icmp(family, kind, code) => {
                let mut steps = protocol(family.icmp());
                let wanted: Vec<u8> = std::iter::once(*kind).chain(*code).collect();
                steps.extend([Step::Payload(Base::Transport, 0, wanted.len()), Step::Compare(Compare::Equal, wanted)]);
                steps
            }
        }
    }
}

/// An address in one subnet. Whole bytes need no mask.
fn in_net(net: IpNet, offset: u32, length: usize) -> Vec<Step> {
    let bytes = octets(net.network());
    let bits = usize::from(net.prefix_len());
    if bits > 0 && bits % 8 == 0 {
        let wanted = bytes[..bits / 8].to_vec();
        return vec![Step::Payload(Base::Network, offset, bits / 8), Step::Compare(Compare::Equal, wanted)];
    }
    let mask = octets(net.netmask());
    vec![Step::Payload(Base::Network, offset, length), Step::Mask(mask), Step::Compare(Compare::Equal, bytes)]
}

/// First and last address of each, in order; those that touch as one.
fn ranges(nets: &[IpNet]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut nets = nets.to_vec();
    nets.sort_unstable_by_key(IpNet::network);
    let mut ranges: Vec<(IpAddr, IpAddr)> = Vec::new();
    for net in nets {
        match ranges.last_mut() {
            Some((_, last)) if touches(*last, net.network()) => *last = net.broadcast(),
            _ => ranges.push((net.network(), net.broadcast())),
        }
    }
    ranges.into_iter().map(|(first, last)| (octets(first), octets(last))).collect()
}

/// Whether an address is the one behind another.
fn touches(one: IpAddr, next: IpAddr) -> bool {
    match (one, next) {
        (IpAddr::V4(one), IpAddr::V4(next)) => one.to_bits().checked_add(1) == Some(next.to_bits()),
        (IpAddr::V6(one), IpAddr::V6(next)) => one.to_bits().checked_add(1) == Some(next.to_bits()),
        _ => false,
    }
}

/// In network order.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub(super) fn listed<T: ToString>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
