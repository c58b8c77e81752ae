//! Which address a new NIC gets.
//!
//! A network gives out addresses in the order of its range, continuing after the one it gave last and starting again at
//! the beginning when it comes to the end. An address that was just returned is therefore the last to be given again,
//! which keeps stale ARP entries and tenants' own lists of addresses harmless, as NAPI did.
//!
//! The caller supplies the used addresses as a sorted walk from any point, which an ordered table does without looking at
//! the part before. The search then costs as many steps as there are used addresses between the last one given and the
//! next gap: usually none.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::network::Network;

/// The addresses of a network that may be given out automatically.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    start: u32,
    end: u32,
    subnet: Ipv4Net,
    gateway: Option<Ipv4Addr>,
}

impl Pool {
    /// The pool of `network`.
    pub fn of(network: &Network) -> Self {
        Self {
            start: network.range_start.to_bits(),
            end: network.range_end.to_bits(),
            subnet: network.subnet,
            gateway: network.gateway,
        }
    }

    /// Whether an instance may hold `ip`, asked for by name: in the subnet and not one with a meaning of its own. It may
    /// lie outside the automatic range.
    pub fn may_hold(&self, ip: Ipv4Addr) -> bool {
        self.subnet.contains(&ip)
            && Some(ip) != self.gateway
            && (self.subnet.prefix_len() >= 31 || (ip != self.subnet.network() && ip != self.subnet.broadcast()))
    }

    /// How many addresses the automatic range has, those with a meaning of their own included.
    pub fn size(&self) -> u64 {
        u64::from(self.end).saturating_sub(u64::from(self.start)) + 1
    }

    /// The next free address after `last_given`, or from the start when there was none; `None` when all are used.
    ///
    /// `used_from(ip)` yields used addresses in ascending order, from `ip` on.
    pub fn next_free<U>(&self, last_given: Option<Ipv4Addr>, used_from: impl Fn(Ipv4Addr) -> U) -> Option<Ipv4Addr>
    where
        U: Iterator<Item = Ipv4Addr>,
    {
        let first = last_given
            .map(Ipv4Addr::to_bits)
            .filter(|last| (self.start..self.end).contains(last))
            .map_or(self.start, |last| last + 1);
        self.gap(first, self.end, &used_from).or_else(|| {
            let before = first.checked_sub(1).filter(|before| *before >= self.start)?;
            self.gap(self.start, before, &used_from)
        })
    }

    /// The lowest address in `first..=last` that is neither used nor special.
    fn gap<U>(&self, first: u32, last: u32, used_from: &impl Fn(Ipv4Addr) -> U) -> Option<Ipv4Addr>
    where
        U: Iterator<Item = Ipv4Addr>,
    {
        if first > last {
            return None;
        }
        let mut used = used_from(Ipv4Addr::from_bits(first)).map(Ipv4Addr::to_bits).peekable();
        let mut candidate = first;
        loop {
            while used.next_if(|taken| *taken < candidate).is_some() {}
            let ip = Ipv4Addr::from_bits(candidate);
            if used.peek() != Some(&candidate) && self.may_hold(ip) {
                return Some(ip);
            }
            if candidate == last {
                return None;
            }
            candidate += 1;
        }
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

/// Checks that subnet, range and gateway of `network` fit together.
pub fn check_plan(network: &Network) -> Result<(), InvalidPlan> {
    let subnet = network.subnet;
    let invalid = |field, message: String| Err(InvalidPlan { field, message });
    if subnet.addr() != subnet.network() {
        return invalid("subnet", format!("{subnet} has host bits set; write {}", subnet.trunc()));
    }
    if !(8..=30).contains(&subnet.prefix_len()) {
        return invalid("subnet", format!("{subnet} must have a prefix length from 8 to 30"));
    }
    let (start, end) = (network.range_start, network.range_end);
    if !subnet.contains(&start) {
        return invalid("range_start", format!("{start} does not lie in {subnet}"));
    }
    if !subnet.contains(&end) {
        return invalid("range_end", format!("{end} does not lie in {subnet}"));
    }
    if start > end {
        return invalid("range_end", format!("{end} comes before the start of the range, {start}"));
    }
    match network.gateway {
        Some(gateway) if !subnet.contains(&gateway) => {
            invalid("gateway", format!("{gateway} does not lie in {subnet}"))
        }
        None if network.host_gateway => {
            invalid("gateway", "a network whose gateway the node holds needs a gateway address".to_owned())
        }
        None if network.nat => invalid("nat", "a network without a gateway cannot masquerade".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn pool(start: u8, end: u8, gateway: Option<u8>) -> Pool {
        let ip = |last: u8| Ipv4Addr::new(10, 0, 0, last);
        Pool {
            start: ip(start).to_bits(),
            end: ip(end).to_bits(),
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
            let pool = pool(start, end, gateway);
            let ip = |last: u8| Ipv4Addr::new(10, 0, 0, last);
            let used: BTreeSet<Ipv4Addr> = used.into_iter().map(ip).collect();
            let given = pool.next_free(last.map(ip), |from| used.range(from..).copied());
            // The plain way: every address of the range, rotated.
            let mut order: Vec<u8> = (start..=end).collect();
            if let Some(at) = last.and_then(|last| order.iter().position(|candidate| *candidate == last)) {
                order.rotate_left(at + 1);
            }
            let expected = order.into_iter().map(ip).find(|candidate| pool.may_hold(*candidate) && !used.contains(candidate));
            prop_assert_eq!(given, expected);
        }
    }

    #[test]
    fn the_whole_range_is_given_once_before_it_is_full() {
        let pool = pool(250, 255, Some(252));
        let mut used = BTreeSet::new();
        let mut last = None;
        while let Some(ip) = pool.next_free(last, |from| used.range(from..).copied().collect::<Vec<_>>().into_iter()) {
            assert!(used.insert(ip), "{ip} given twice");
            last = Some(ip);
        }
        assert_eq!(used.len(), 4, "250 to 255 without the gateway and the broadcast address: {used:?}");
    }
}
