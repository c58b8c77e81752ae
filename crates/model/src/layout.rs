//! How a network is laid out, whoever draws it: its subnets, what of them is given out, where they lead, and what instances on it are
//! told. One set of checks for the operator's networks, tenants' own, and the one the settings promise to every new account.

use std::{
    collections::BTreeMap,
    fmt::Display,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{address::is_host, compile::RESOLVERS_MAX, network::Network};

/// Static routes of a network at most.
pub const ROUTES_MAX: usize = 64;
/// Bytes of a packet, at least and at most.
const MTU: std::ops::RangeInclusive<u16> = 576..=9_000;
/// Bytes at least where there is IPv6: what the protocol demands of every link.
const MTU_MIN_6: u16 = 1_280;
/// Lengths of prefixes of IPv4 subnets.
const PREFIX: (u8, u8) = (8, 30);
/// The same of IPv6.
const PREFIX_6: (u8, u8) = (48, 126);

/// Subnets a tenant may lay out a network in: those of RFC 1918.
pub const FABRIC_SUBNETS: [Ipv4Net; 3] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
];
/// The same for IPv6: unique local addresses, RFC 4193, which mean nothing outside.
pub const UNIQUE_LOCAL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7);

/// See the head of this file; the fields are those of [`Network`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The IPv4 subnet; of one family at least there is one.
    pub subnet: Option<Ipv4Net>,
    /// First IPv4 address given out: the first after the gateway unless said.
    pub range_start: Option<Ipv4Addr>,
    /// Last IPv4 address given out: the last of the subnet unless said.
    pub range_end: Option<Ipv4Addr>,
    /// The IPv4 gateway.
    pub gateway: Option<Ipv4Addr>,
    /// The IPv6 subnet.
    pub subnet6: Option<Ipv6Net>,
    /// First IPv6 address given out: the first after subnet and gateway unless said.
    pub range6_start: Option<Ipv6Addr>,
    /// Last IPv6 address given out: the last of the subnet unless said.
    pub range6_end: Option<Ipv6Addr>,
    /// The IPv6 gateway.
    pub gateway6: Option<Ipv6Addr>,
    /// Name servers for instances.
    pub resolvers: Vec<IpAddr>,
    /// Static routes: destination subnet to next hop.
    pub routes: BTreeMap<IpNet, IpAddr>,
    /// Bytes of the largest packet.
    pub mtu: u16,
}

/// Whose a network is, and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leads {
    /// The operator's, on wires.
    Operators {
        /// See [`Network::host_gateway`].
        host_gateway: bool,
        /// See [`Network::nat`].
        nat: bool,
    },
    /// A tenant's, on a fabric.
    Fabric {
        /// See [`crate::network::Fabric::internet_nat`].
        internet_nat: bool,
        /// See [`crate::network::Fabric::routed`].
        routed: bool,
    },
}

/// What is wrong with a layout, and the field to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LayoutFault {
    /// Name of the field.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub message: String,
}

fn fault(field: &'static str, message: impl Into<String>) -> LayoutFault {
    LayoutFault { field, message: message.into() }
}

impl Default for Layout {
    /// Nothing, for packets of 1,500 bytes.
    fn default() -> Self {
        Self {
            subnet: None,
            range_start: None,
            range_end: None,
            gateway: None,
            subnet6: None,
            range6_start: None,
            range6_end: None,
            gateway6: None,
            resolvers: Vec::new(),
            routes: BTreeMap::new(),
            mtu: 1_500,
        }
    }
}

impl Leads {
    /// What `network` does.
    pub fn of(network: &Network) -> Self {
        match network.fabric {
            Some(fabric) => Self::Fabric { internet_nat: fabric.internet_nat, routed: fabric.routed },
            None => Self::Operators { host_gateway: network.host_gateway, nat: network.nat },
        }
    }
}

impl Layout {
    /// That of a record.
    pub fn of(network: &Network) -> Self {
        let (range6_start, range6_end) = network.range6.unzip();
        Self {
            subnet: network.subnet,
            range_start: network.range_start,
            range_end: network.range_end,
            gateway: network.gateway,
            subnet6: network.subnet6,
            range6_start,
            range6_end,
            gateway6: network.gateway6,
            resolvers: network.resolvers.clone(),
            routes: network.routes.clone(),
            mtu: network.mtu,
        }
    }

    /// Subnets whose first addresses are the gateways.
    pub fn with_first_gateways(subnet: Option<Ipv4Net>, subnet6: Option<Ipv6Net>) -> Self {
        let first = |subnet: Ipv4Net| Ipv4Addr::from_bits(subnet.network().to_bits().saturating_add(1));
        let first6 = |subnet: Ipv6Net| Ipv6Addr::from_bits(subnet.network().to_bits().saturating_add(1));
        Self { subnet, gateway: subnet.map(first), subnet6, gateway6: subnet6.map(first6), ..Self::default() }
    }

    /// The same with ranges where nobody said any: all of a subnet but a gateway at its beginning. Without a subnet there is only what
    /// was asked for.
    pub fn filled(mut self) -> Self {
        if let Some(subnet) = self.subnet {
            let (first, last) = (subnet.network().to_bits(), subnet.broadcast().to_bits());
            let before = self.gateway.map(Ipv4Addr::to_bits).filter(|gateway| *gateway == first.saturating_add(1));
            let start = Ipv4Addr::from_bits(before.unwrap_or(first).saturating_add(1));
            self.range_start = self.range_start.or(Some(start));
            self.range_end = self.range_end.or(Some(Ipv4Addr::from_bits(last.saturating_sub(1))));
        }
        if let Some(subnet) = self.subnet6 {
            let first = subnet.network().to_bits();
            let before = self.gateway6.map(Ipv6Addr::to_bits).filter(|gateway| *gateway == first.saturating_add(1));
            let start = Ipv6Addr::from_bits(before.unwrap_or(first).saturating_add(1));
            self.range6_start = self.range6_start.or(Some(start));
            self.range6_end = self.range6_end.or(Some(subnet.broadcast()));
        }
        self
    }

    /// Puts it into a record.
    pub fn lay_out(self, network: &mut Network) {
        let Self { subnet, range_start, range_end, gateway, subnet6, range6_start, range6_end, gateway6, .. } = self;
        // One end without the other is a fault, and told of before anything is kept.
        network.range6 = range6_start.zip(range6_end);
        (network.subnet, network.range_start, network.range_end, network.gateway) =
            (subnet, range_start, range_end, gateway);
        (network.subnet6, network.gateway6) = (subnet6, gateway6);
        (network.resolvers, network.routes, network.mtu) = (self.resolvers, self.routes, self.mtu);
    }

    /// Everything that is wrong with it on a network that `leads` there; at most one fault a field, but for the subnets' two.
    pub fn faults(&self, leads: Leads) -> Vec<LayoutFault> {
        let mut faults = Vec::new();
        if self.resolvers.len() > RESOLVERS_MAX {
            faults.push(fault("resolvers", format!("has more than {RESOLVERS_MAX} entries")));
        }
        if !MTU.contains(&self.mtu) {
            faults.push(fault("mtu", format!("must be between {} and {} bytes", MTU.start(), MTU.end())));
        } else if self.subnet6.is_some() && self.mtu < MTU_MIN_6 {
            faults.push(fault("mtu", format!("must be at least {MTU_MIN_6} bytes where there is IPv6")));
        }
        if self.subnet.is_none() && self.subnet6.is_none() {
            faults.push(fault("subnet", "a network needs a subnet: of IPv4, of IPv6 (subnet6), or one of each"));
            return faults;
        }
        faults.extend(self.faults4());
        faults.extend(self.faults6());
        faults.extend(self.faults_of_routes());
        faults.extend(self.faults_of_leads(leads));
        faults
    }

    fn faults4(&self) -> Vec<LayoutFault> {
        let Some(subnet) = self.subnet else {
            let asks = self.range_start.is_some() || self.range_end.is_some() || self.gateway.is_some();
            return asks
                .then(|| fault("subnet", "has to be given when there is an IPv4 range or gateway"))
                .into_iter()
                .collect();
        };
        let names = ["subnet", "range_start", "range_end", "gateway"];
        let range = [self.range_start, self.range_end].map(|end| end.map(IpAddr::V4));
        faults_of_family(names, subnet.into(), PREFIX, range, self.gateway.map(IpAddr::V4))
    }

    fn faults6(&self) -> Vec<LayoutFault> {
        let Some(subnet) = self.subnet6 else {
            let asks = self.range6_start.is_some() || self.range6_end.is_some() || self.gateway6.is_some();
            return asks
                .then(|| fault("subnet6", "has to be given when there is an IPv6 range or gateway"))
                .into_iter()
                .collect();
        };
        let own = subnet.network();
        if own.is_multicast() || own.is_unicast_link_local() || own.is_loopback() || own.is_unspecified() {
            return vec![fault("subnet6", format!("{subnet} is no range of ordinary addresses"))];
        }
        let names = ["subnet6", "range6_start", "range6_end", "gateway6"];
        let range = [self.range6_start, self.range6_end].map(|end| end.map(IpAddr::V6));
        faults_of_family(names, subnet.into(), PREFIX_6, range, self.gateway6.map(IpAddr::V6))
    }

    /// Each route's next hop must be one that instances of the network can reach without it.
    fn faults_of_routes(&self) -> Option<LayoutFault> {
        if self.routes.len() > ROUTES_MAX {
            return Some(fault("routes", format!("has more than {ROUTES_MAX} entries")));
        }
        for (to, hop) in &self.routes {
            let subnet = match hop {
                IpAddr::V4(_) => self.subnet.map(IpNet::V4),
                IpAddr::V6(_) => self.subnet6.map(IpNet::V6),
            };
            let why = match subnet {
                _ if to.addr() != to.network() => format!("{to} has host bits set; write {}", to.trunc()),
                _ if to.addr().is_ipv4() != hop.is_ipv4() => {
                    format!("the next hop to {to}, {hop}, is of the other family")
                }
                None => {
                    let family = if hop.is_ipv4() { "IPv4" } else { "IPv6" };
                    format!("the next hop to {to}, {hop}, is an {family} address, and there is no {family} subnet")
                }
                Some(subnet) if !subnet.contains(hop) => {
                    format!("the next hop to {to}, {hop}, does not lie in {subnet}")
                }
                Some(_) => continue,
            };
            return Some(fault("routes", why));
        }
        None
    }

    /// What leads somewhere needs a gateway; a tenant's subnets are private.
    fn faults_of_leads(&self, leads: Leads) -> Vec<LayoutFault> {
        let mut faults = Vec::new();
        let no_gateway = self.gateway.is_none() && self.gateway6.is_none();
        let masquerade = "a network without a gateway cannot masquerade; give one";
        match leads {
            Leads::Operators { host_gateway, nat } => {
                if no_gateway && host_gateway {
                    faults.push(fault("gateway", "a network whose gateway the node holds needs a gateway address"));
                }
                if no_gateway && nat {
                    faults.push(fault("nat", masquerade));
                }
            }
            Leads::Fabric { internet_nat, routed } => {
                if no_gateway && internet_nat {
                    faults.push(fault("internet_nat", masquerade));
                }
                if no_gateway && routed {
                    faults.push(fault("routed", "a network without a gateway cannot be routed; give one"));
                }
                let is_private = |subnet: &Ipv4Net| FABRIC_SUBNETS.iter().any(|private| private.contains(subnet));
                if let Some(subnet) = self.subnet.filter(|subnet| !is_private(subnet)) {
                    let message = format!("{subnet} must lie in 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16");
                    faults.push(fault("subnet", message));
                }
                if let Some(subnet) = self.subnet6.filter(|subnet| !UNIQUE_LOCAL.contains(subnet)) {
                    faults.push(fault("subnet6", format!("{subnet} must lie in {UNIQUE_LOCAL}")));
                }
            }
        }
        faults
    }
}

fn faults_of_family(
    [subnet_field, start_field, end_field, gateway_field]: [&'static str; 4],
    subnet: IpNet,
    (shortest, longest): (u8, u8),
    [start, end]: [Option<IpAddr>; 2],
    gateway: Option<IpAddr>,
) -> Vec<LayoutFault> {
    if subnet.addr() != subnet.network() {
        return vec![fault(subnet_field, format!("{subnet} has host bits set; write {}", subnet.trunc()))];
    }
    if !(shortest..=longest).contains(&subnet.prefix_len()) {
        let message = format!("{subnet} must have a prefix length from {shortest} to {longest}");
        return vec![fault(subnet_field, message)];
    }
    let mut faults = Vec::new();
    let outside = |ip: &dyn Display| format!("{ip} does not lie in {subnet}");
    for (field, ip) in [(start_field, start), (end_field, end), (gateway_field, gateway)] {
        if let Some(ip) = ip.filter(|ip| !subnet.contains(ip)) {
            faults.push(fault(field, outside(&ip)));
        }
    }
    if let Some((start, end)) = start.zip(end)
        && subnet.contains(&start)
        && subnet.contains(&end)
        && start > end
    {
        faults.push(fault(end_field, format!("{end} comes before the start of the range, {start}")));
    }
    if let Some(gateway) = gateway.filter(|gateway| subnet.contains(gateway) && !is_host(subnet, *gateway)) {
        faults.push(fault(gateway_field, format!("{gateway} is not an address for a host of {subnet}")));
    }
    faults
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::address::Range;

    /// Numbers near the beginning of 10.0.0.0/8 and fd00::/48, in and around small subnets, so that what fits is often hit.
    fn any_layout() -> impl Strategy<Value = Layout> {
        let near = || proptest::option::weighted(0.3, 0_u8..40);
        let gateway = || proptest::option::weighted(0.7, prop_oneof![4 => Just(1_u8), 1 => 0_u8..40]);
        let subnet = || (prop_oneof![4 => Just(0_u8), 1 => 0_u8..4], 0_u8..7);
        let family = || (proptest::option::weighted(0.7, subnet()), near(), near(), gateway());
        let routes = proptest::collection::btree_map((0_u8..3, any::<bool>()), (0_u8..40, any::<bool>()), 0..2);
        let mtu = prop_oneof![9 => Just(1_500_u16), 1 => Just(500), 1 => Just(1_000), 1 => Just(9_001)];
        (family(), family(), routes, mtu).prop_map(
            |((subnet, start, end, gateway), (subnet6, start6, end6, gateway6), routes, mtu)| {
                let v4 = |last: u8| Ipv4Addr::new(10, 0, 0, last);
                let v6 = |last: u8| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into());
                let ip = |last: u8, six: bool| if six { IpAddr::V6(v6(last)) } else { IpAddr::V4(v4(last)) };
                Layout {
                    subnet: subnet.map(|(host, bits)| Ipv4Net::new_assert(v4(host * 8), 25 + bits)),
                    range_start: start.map(v4),
                    range_end: end.map(v4),
                    gateway: gateway.map(v4),
                    subnet6: subnet6.map(|(host, bits)| Ipv6Net::new_assert(v6(host * 8), 121 + bits)),
                    range6_start: start6.map(v6),
                    range6_end: end6.map(v6),
                    gateway6: gateway6.map(v6),
                    resolvers: Vec::new(),
                    routes: routes
                        .into_iter()
                        .map(|((to, six), (hop, hop_six))| {
                            (IpNet::new_assert(ip(to * 64, six), if six { 122 } else { 26 }), ip(hop, hop_six))
                        })
                        .collect(),
                    mtu,
                }
            },
        )
    }

    fn any_leads() -> impl Strategy<Value = Leads> {
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(fabric, one, other)| match fabric {
            true => Leads::Fabric { internet_nat: one, routed: other },
            false => Leads::Operators { host_gateway: one, nat: other },
        })
    }

    fn network(layout: Layout) -> Network {
        let mut network = Network::bare(crate::id::NetworkId::random(), "n", crate::time::Timestamp(0));
        layout.lay_out(&mut network);
        network
    }

    proptest! {
        // Most of what is drawn does not pass.
        #![proptest_config(ProptestConfig { max_global_rejects: 65_536, ..ProptestConfig::default() })]

        /// Whatever passes can be used: addresses are given out, all in their subnet; every next hop can be reached; and a
        /// record keeps it as it is.
        #[test]
        fn what_passes_makes_sense(layout in any_layout(), leads in any_leads()) {
            let layout = layout.filled();
            prop_assume!(layout.faults(leads).is_empty());
            let record = network(layout.clone());
            prop_assert_eq!(&Layout::of(&record), &layout);
            prop_assert!(record.subnets().next().is_some());
            for range in [Range::of(&record), Range::of6(&record)].into_iter().flatten() {
                prop_assert!(range.size() >= 1);
                if let Some(ip) = range.next_free(None, |_| std::iter::empty()) {
                    prop_assert!(record.subnet_for(ip).is_some_and(|subnet| subnet.contains(&ip)));
                    prop_assert!(record.gateway.map(IpAddr::V4) != Some(ip) && record.gateway6.map(IpAddr::V6) != Some(ip));
                }
            }
            let in_own = |ip: IpAddr| record.subnet_for(ip).is_some_and(|subnet| subnet.contains(&ip));
            prop_assert!(layout.gateway.is_none_or(|ip| in_own(ip.into())));
            prop_assert!(layout.gateway6.is_none_or(|ip| in_own(ip.into())));
            prop_assert!(layout.routes.values().all(|hop| in_own(*hop)));
            let leads_on = !matches!(leads,
                Leads::Fabric { internet_nat: false, routed: false } | Leads::Operators { host_gateway: false, nat: false });
            prop_assert!(!leads_on || record.has_gateway());
        }

        /// Faults are told by names of fields that are there, and mending one family needs nothing of the other.
        #[test]
        fn families_are_judged_alone(layout in any_layout(), leads in any_leads()) {
            let faults = layout.faults(leads);
            const FIELDS: [&str; 15] = [
                "subnet", "range_start", "range_end", "gateway", "subnet6", "range6_start", "range6_end", "gateway6", "resolvers",
                "routes", "mtu", "nat", "internet_nat", "routed", "host_gateway",
            ];
            prop_assert!(faults.iter().all(|fault| FIELDS.contains(&fault.field)));
            let of = |faults: &[LayoutFault], six: bool| -> Vec<LayoutFault> {
                let is = |field: &str| FIELDS[..4].contains(&field) && !six || FIELDS[4..8].contains(&field) && six;
                faults.iter().filter(|fault| is(fault.field) && !fault.message.contains("needs a")).cloned().collect()
            };
            if layout.subnet.is_some() && layout.subnet6.is_some() {
                let four = Layout { subnet6: None, range6_start: None, range6_end: None, gateway6: None, ..layout.clone() };
                let six = Layout { subnet: None, range_start: None, range_end: None, gateway: None, ..layout.clone() };
                prop_assert_eq!(of(&faults, false), of(&four.faults(leads), false));
                prop_assert_eq!(of(&faults, true), of(&six.faults(leads), true));
            }
        }
    }
}
