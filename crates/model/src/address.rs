//! Which address a new NIC gets.
//!
//! A network gives out addresses in the order of its range, continuing after the one it gave last and starting again at
//! the beginning when it comes to the end. An address that was just returned is therefore the last to be given again,
//! which keeps stale ARP entries and tenants' own lists of addresses harmless, as NAPI did, without a record for every
//! address that was ever used.
//!
//! The caller supplies the used addresses as a sorted walk from any point, which an ordered table does without looking at
//! the part before. The search then costs as many steps as there are used addresses between the last one given and the
//! next gap: usually none. The same search serves both families, and the numbers of tenants' VLANs.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::network::Network;

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
pub(crate) fn is_host(subnet: IpNet, ip: IpAddr) -> bool {
    match subnet {
        IpNet::V4(subnet) => subnet.prefix_len() >= 31 || (ip != subnet.network() && ip != subnet.broadcast()),
        // All routers of the subnet answer to its own address.
        IpNet::V6(subnet) => subnet.prefix_len() >= 127 || ip != subnet.network(),
    }
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
