//! Which address a new NIC gets, and which layouts of a network make sense.
//!
//! A network gives out addresses in the order of its range, continuing after the one it gave last and starting again at
//! the beginning when it comes to the end. An address that was just returned is therefore the last to be given again,
//! which keeps stale ARP entries and tenants' own lists of addresses harmless, as NAPI did, without a record for every
//! address that was ever used.
//!
//! The caller supplies the used addresses as a sorted walk from any point, which an ordered table does without looking at
//! the part before. The search then costs as many steps as there are used addresses between the last one given and the
//! next gap: usually none. The same search serves both families, and the numbers of tenants' VLANs.

use std::{fmt::Display, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::network::Network;

/// Subnets a tenant may lay out a network in: those of RFC 1918.
pub const FABRIC_SUBNETS: [Ipv4Net; 3] = [
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(192, 168, 0, 0), 16),
];
/// The same for IPv6: unique local addresses, RFC 4193, which mean nothing outside.
pub const UNIQUE_LOCAL: Ipv6Net = Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7);

/// The addresses of one family that a network may give out automatically.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    start: u128,
    end: u128,
    subnet: IpNet,
    gateway: Option<IpAddr>,
}

impl Range {
    /// The IPv4 range of `network`, if it has one.
    pub fn of(network: &Network) -> Option<Self> {
        Some(Self {
            start: number(network.range_start?.into()),
            end: number(network.range_end?.into()),
            subnet: network.subnet?.into(),
            gateway: network.gateway.map(IpAddr::V4),
        })
    }

    /// The IPv6 range of `network`, if it has one.
    pub fn of6(network: &Network) -> Option<Self> {
        let (start, end) = network.range6?;
        Some(Self {
            start: number(start.into()),
            end: number(end.into()),
            subnet: network.subnet6?.into(),
            gateway: network.gateway6.map(IpAddr::V6),
        })
    }

    /// The range of the family of `ip`.
    pub fn for_ip(network: &Network, ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(_) => Self::of(network),
            IpAddr::V6(_) => Self::of6(network),
        }
    }

    /// Whether an instance may hold `ip`, asked for by name: in the subnet and not one with a meaning of its own. It may
    /// lie outside the automatic range.
    pub fn may_hold(&self, ip: IpAddr) -> bool {
        self.subnet.contains(&ip) && Some(ip) != self.gateway && is_host(self.subnet, ip)
    }

    /// How many addresses the automatic range has, those with a meaning of their own included.
    pub fn size(&self) -> u128 {
        self.end.saturating_sub(self.start).saturating_add(1)
    }

    /// Any address of the automatic range, of `bits` that are random.
    pub fn somewhere(&self, bits: u64) -> IpAddr {
        self.address(self.start + u128::from(bits) % self.size().max(1))
    }

    /// The next free address after `last_given`, or from the start when there was none; `None` when all are used.
    ///
    /// `used_from(ip)` yields used addresses of this family in ascending order, from `ip` on.
    pub fn next_free<U>(&self, last_given: Option<IpAddr>, used_from: impl Fn(IpAddr) -> U) -> Option<IpAddr>
    where
        U: Iterator<Item = IpAddr>,
    {
        let first = last_given
            .map(number)
            .filter(|last| (self.start..self.end).contains(last))
            .map_or(self.start, |last| last + 1);
        let gap = |first, last| {
            let used = used_from(self.address(first)).map(number);
            first_gap(first, last, used, |candidate| self.may_hold(self.address(candidate)))
        };
        let found = gap(first, self.end).or_else(|| {
            let before = first.checked_sub(1).filter(|before| *before >= self.start)?;
            gap(self.start, before)
        });
        found.map(|found| self.address(found))
    }

    /// Whether it is of IPv6 addresses.
    pub fn is_ipv6(&self) -> bool {
        matches!(self.subnet, IpNet::V6(_))
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.subnet {
            // The numbers of a range of this family all fit.
            IpNet::V4(_) => IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into()),
            IpNet::V6(_) => IpAddr::V6(number.into()),
        }
    }
}

/// The lowest number in `first..=last` that fits and is not among `used`, which ascend and begin at `first` or below it.
pub fn first_gap(
    first: u128,
    last: u128,
    used: impl Iterator<Item = u128>,
    fits: impl Fn(u128) -> bool,
) -> Option<u128> {
    let mut used = used.peekable();
    let mut candidate = first;
    while candidate <= last {
        while used.next_if(|taken| *taken < candidate).is_some() {}
        if used.peek() != Some(&candidate) && fits(candidate) {
            return Some(candidate);
        }
        candidate = candidate.checked_add(1)?;
    }
    None
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// Whether `ip` is neither the subnet's own address nor its broadcast address.
fn is_host(subnet: IpNet, ip: IpAddr) -> bool {
    match subnet {
        IpNet::V4(subnet) => subnet.prefix_len() >= 31 || (ip != subnet.network() && ip != subnet.broadcast()),
        // All routers of the subnet answer to its own address.
        IpNet::V6(subnet) => subnet.prefix_len() >= 127 || ip != subnet.network(),
    }
}

/// What is wrong with a network's addresses, and the field to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidPlan {
    /// Name of the field.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub message: String,
}

fn invalid(field: &'static str, message: impl Into<String>) -> InvalidPlan {
    InvalidPlan { field, message: message.into() }
}

/// Checks that subnets, ranges and gateways of `network` fit together. Every fault is found, at most one a field.
pub fn check_plan(network: &Network) -> Vec<InvalidPlan> {
    let mut faults = Vec::new();
    if network.subnets().next().is_none() {
        faults.push(invalid("subnet", "a network needs a subnet: of IPv4, of IPv6 (subnet6), or one of each"));
        return faults;
    }
    if let Some(subnet) = network.subnet {
        let names = ["subnet", "range_start", "range_end", "gateway"];
        let range = network.range_start.zip(network.range_end).map(|(start, end)| (start.into(), end.into()));
        faults.extend(check_family(names, subnet.into(), (8, 30), range, network.gateway.map(IpAddr::V4)));
    } else if network.range_start.is_some() || network.range_end.is_some() || network.gateway.is_some() {
        faults.push(invalid("subnet", "has to be given when there is an IPv4 range or gateway"));
    }
    if !network.has_gateway() && network.host_gateway {
        faults.push(invalid("gateway", "a network whose gateway the node holds needs a gateway address"));
    }
    let translates = network.nat || network.fabric.is_some_and(|fabric| fabric.internet_nat);
    if !network.has_gateway() && translates {
        let field = if network.fabric.is_some() { "internet_nat" } else { "nat" };
        faults.push(invalid(field, "a network without a gateway cannot masquerade; give one"));
    }
    faults.extend(check_routes(network));
    let Some(subnet) = network.subnet6 else {
        if network.range6.is_some() || network.gateway6.is_some() {
            faults.push(invalid("subnet6", "has to be given when there is an IPv6 range or gateway"));
        }
        return faults;
    };
    let names = ["subnet6", "range6_start", "range6_end", "gateway6"];
    let range = network.range6.map(|(start, end)| (start.into(), end.into()));
    faults.extend(check_family(names, subnet.into(), (48, 126), range, network.gateway6.map(IpAddr::V6)));
    let own = subnet.network();
    if own.is_multicast() || own.is_unicast_link_local() || own.is_loopback() || own.is_unspecified() {
        faults.push(invalid("subnet6", format!("{subnet} is no range of ordinary addresses")));
    }
    faults
}

fn check_family(
    [subnet_field, start_field, end_field, gateway_field]: [&'static str; 4],
    subnet: IpNet,
    (shortest, longest): (u8, u8),
    range: Option<(IpAddr, IpAddr)>,
    gateway: Option<IpAddr>,
) -> Vec<InvalidPlan> {
    if subnet.addr() != subnet.network() {
        let message = format!("{subnet} has host bits set; write {}", subnet.trunc());
        return vec![invalid(subnet_field, message)];
    }
    if !(shortest..=longest).contains(&subnet.prefix_len()) {
        let message = format!("{subnet} must have a prefix length from {shortest} to {longest}");
        return vec![invalid(subnet_field, message)];
    }
    let mut faults = Vec::new();
    let outside = |ip: &dyn Display| format!("{ip} does not lie in {subnet}");
    if let Some((start, end)) = range {
        if !subnet.contains(&start) {
            faults.push(invalid(start_field, outside(&start)));
        }
        if !subnet.contains(&end) {
            faults.push(invalid(end_field, outside(&end)));
        } else if start > end && subnet.contains(&start) {
            faults.push(invalid(end_field, format!("{end} comes before the start of the range, {start}")));
        }
    }
    if let Some(gateway) = gateway {
        if !subnet.contains(&gateway) {
            faults.push(invalid(gateway_field, outside(&gateway)));
        } else if !is_host(subnet, gateway) {
            faults.push(invalid(gateway_field, format!("{gateway} is not an address for a host of {subnet}")));
        }
    }
    faults
}

/// Each route's next hop must be one that instances of the network can reach without it.
fn check_routes(network: &Network) -> Option<InvalidPlan> {
    for (to, hop) in &network.routes {
        let subnet = network.subnet_for(*hop);
        let why = match subnet {
            _ if to.addr() != to.network() => format!("{to} has host bits set; write {}", to.trunc()),
            _ if to.addr().is_ipv4() != hop.is_ipv4() => format!("the next hop to {to}, {hop}, is of the other family"),
            None => {
                let family = if hop.is_ipv4() { "IPv4" } else { "IPv6" };
                format!("the next hop to {to}, {hop}, is an {family} address, and there is no {family} subnet")
            }
            Some(subnet) if !subnet.contains(hop) => format!("the next hop to {to}, {hop}, does not lie in {subnet}"),
            Some(_) => continue,
        };
        return Some(invalid("routes", why));
    }
    None
}

/// Checks what holds for a tenant's own network alone: private addresses.
pub fn check_fabric(network: &Network) -> Vec<InvalidPlan> {
    let mut faults = Vec::new();
    let is_private = |subnet: &Ipv4Net| FABRIC_SUBNETS.iter().any(|private| private.contains(subnet));
    if let Some(subnet) = network.subnet.filter(|subnet| !is_private(subnet)) {
        let message = format!("{subnet} must lie in 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16");
        faults.push(invalid("subnet", message));
    }
    if let Some(subnet) = network.subnet6.filter(|subnet| !UNIQUE_LOCAL.contains(subnet)) {
        faults.push(invalid("subnet6", format!("{subnet} must lie in {UNIQUE_LOCAL}")));
    }
    faults
}

/// The subnet of `other` that overlaps one of `network`'s.
pub fn overlap(network: &Network, other: &Network) -> Option<IpNet> {
    let meets = |other: &IpNet| network.subnets().any(|one| one.contains(other) || other.contains(&one));
    other.subnets().find(meets)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn range(start: u8, end: u8, gateway: Option<u8>) -> Range {
        let ip = |last: u8| IpAddr::from(Ipv4Addr::new(10, 0, 0, last));
        Range {
            start: number(ip(start)),
            end: number(ip(end)),
            subnet: "10.0.0.0/24".parse().expect("a subnet"),
            gateway: gateway.map(ip),
        }
    }

    proptest! {
        #[test]
        fn gives_the_first_free_one_in_cyclic_order(
            start in 0_u8..=255, length in 0_u8..=40, gateway in proptest::option::of(0_u8..=255),
            last in proptest::option::of(0_u8..=255), used in proptest::collection::btree_set(0_u8..=255, 0..60),
        ) {
            let end = start.saturating_add(length);
            let range = range(start, end, gateway);
            let ip = |last: u8| IpAddr::from(Ipv4Addr::new(10, 0, 0, last));
            let used: BTreeSet<IpAddr> = used.into_iter().map(ip).collect();
            let given = range.next_free(last.map(ip), |from| used.range(from..).copied());
            // The plain way: every address of the range, rotated.
            let mut order: Vec<u8> = (start..=end).collect();
            if let Some(at) = last.and_then(|last| order.iter().position(|candidate| *candidate == last)) {
                order.rotate_left(at + 1);
            }
            let expected = order.into_iter().map(ip).find(|candidate| range.may_hold(*candidate) && !used.contains(candidate));
            prop_assert_eq!(given, expected);
        }
    }

    #[test]
    fn the_whole_range_is_given_once_before_it_is_full() {
        let range = range(250, 255, Some(252));
        let mut used = BTreeSet::new();
        let mut last = None;
        while let Some(ip) = range.next_free(last, |from| used.range(from..).copied().collect::<Vec<_>>().into_iter()) {
            assert!(used.insert(ip), "{ip} given twice");
            last = Some(ip);
        }
        assert_eq!(used.len(), 4, "250 to 255 without the gateway and the broadcast address: {used:?}");
    }

    #[test]
    fn the_last_address_there_is_ends_the_search() {
        let last = IpAddr::from(std::net::Ipv6Addr::from_bits(u128::MAX));
        let subnet: IpNet = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126".parse().expect("a subnet");
        let range = Range { start: u128::MAX - 1, end: u128::MAX, subnet, gateway: None };
        let used: BTreeSet<IpAddr> = [range.address(u128::MAX - 1)].into();
        assert_eq!(range.next_free(None, |from| used.range(from..).copied()), Some(last));
        let used: BTreeSet<IpAddr> = [range.address(u128::MAX - 1), last].into();
        assert_eq!(range.next_free(Some(last), |from| used.range(from..).copied()), None);
    }
}
