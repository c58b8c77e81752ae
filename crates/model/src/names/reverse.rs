//! Where addresses are found: the zones below `in-addr.arpa` and `ip6.arpa`, made from the networks' subnets.
//!
//! DNS cuts IPv4 addresses at bytes and IPv6 addresses at half bytes. A subnet that ends between two cuts has one zone for each of the next
//! finer pieces (a /20 has sixteen for its /24s), so that no address of somebody else's is claimed; one that is smaller than a /24 has the
//! zone of its /24.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

const V4_ROOT: &str = "in-addr.arpa";
const V6_ROOT: &str = "ip6.arpa";
/// Bits that have a label of their own at most: an IPv4 zone has one more below it, an IPv6 zone likewise.
const V4_CUT_MAX: u8 = 24;
const V6_CUT_MAX: u8 = 124;

/// Whether a zone leads from addresses to names.
pub fn is_reverse(apex: &str) -> bool {
    apex.ends_with(V4_ROOT) || apex.ends_with(V6_ROOT)
}

/// The zones of a subnet, 128 at most.
pub fn zones(subnet: IpNet) -> Vec<String> {
    match subnet {
        IpNet::V4(subnet) => {
            let cut = v4_cut(subnet);
            let first = subnet.network().to_bits() & !(u32::MAX.checked_shr(cut.into()).unwrap_or(0));
            let count = 1u32 << cut.saturating_sub(subnet.prefix_len());
            let step = 1u32 << (32 - cut);
            (0..count).map(|at| v4_apex(Ipv4Addr::from_bits(first + at * step), cut)).collect()
        }
        IpNet::V6(subnet) => {
            let cut = v6_cut(subnet);
            let first = subnet.network().to_bits() & !(u128::MAX.checked_shr(cut.into()).unwrap_or(0));
            let count = 1u128 << cut.saturating_sub(subnet.prefix_len());
            let step = 1u128 << (128 - cut);
            (0..count).map(|at| v6_apex(Ipv6Addr::from_bits(first + at * step), cut)).collect()
        }
    }
}

/// Zone of an address of `subnet`, and its name in there.
pub fn place(subnet: IpNet, address: IpAddr) -> Option<(String, String)> {
    match (subnet, address) {
        (IpNet::V4(subnet), IpAddr::V4(address)) if subnet.contains(&address) => {
            let cut = v4_cut(subnet);
            let below = address.octets()[usize::from(cut / 8)..].iter().rev().map(u8::to_string).collect::<Vec<_>>();
            Some((v4_apex(address, cut), below.join(".")))
        }
        (IpNet::V6(subnet), IpAddr::V6(address)) if subnet.contains(&address) => {
            let cut = v6_cut(subnet);
            let below = nibbles(address).skip(usize::from(cut / 4)).collect::<Vec<_>>();
            Some((v6_apex(address, cut), backwards(&below)))
        }
        _ => None,
    }
}

fn v4_cut(subnet: Ipv4Net) -> u8 {
    subnet.prefix_len().max(1).next_multiple_of(8).min(V4_CUT_MAX)
}

fn v6_cut(subnet: Ipv6Net) -> u8 {
    subnet.prefix_len().max(1).next_multiple_of(4).min(V6_CUT_MAX)
}

fn v4_apex(address: Ipv4Addr, cut: u8) -> String {
    let labels = address.octets()[..usize::from(cut / 8)].iter().rev().map(u8::to_string).collect::<Vec<_>>();
    format!("{}.{V4_ROOT}", labels.join("."))
}

fn v6_apex(address: Ipv6Addr, cut: u8) -> String {
    let above = nibbles(address).take(usize::from(cut / 4)).collect::<Vec<_>>();
    format!("{}.{V6_ROOT}", backwards(&above))
}

/// The half bytes of an address as hex digits, from its beginning.
fn nibbles(address: Ipv6Addr) -> impl Iterator<Item = char> {
    let bits = address.to_bits();
    (0..32).map(move |at| char::from_digit(((bits >> (124 - 4 * at)) & 0xf) as u32, 16).unwrap_or('0'))
}

fn backwards(digits: &[char]) -> String {
    digits.iter().rev().map(char::to_string).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a subnet")
    }

    #[test]
    fn zones_end_where_labels_do() {
        assert_eq!(zones(net("10.80.0.0/16")), ["80.10.in-addr.arpa"]);
        assert_eq!(zones(net("10.0.0.0/8")), ["10.in-addr.arpa"]);
        assert_eq!(zones(net("192.0.2.64/26")), ["2.0.192.in-addr.arpa"]);
        assert_eq!(zones(net("10.1.2.0/23")), ["2.1.10.in-addr.arpa", "3.1.10.in-addr.arpa"]);
        let twenty = zones(net("10.150.16.0/20"));
        assert_eq!((twenty.len(), twenty[0].as_str()), (16, "16.150.10.in-addr.arpa"));
        assert_eq!(twenty[15], "31.150.10.in-addr.arpa");
        assert_eq!(zones(net("fd00:80::/32")), ["0.8.0.0.0.0.d.f.ip6.arpa"]);
        assert_eq!(zones(net("fd00::/30")).len(), 4);
    }

    #[test]
    fn addresses_have_a_place() {
        let placed = |subnet, address: &str| place(net(subnet), address.parse().expect("an address"));
        let pair = |zone: &str, name: &str| Some((zone.to_owned(), name.to_owned()));
        assert_eq!(placed("10.80.0.0/16", "10.80.2.7"), pair("80.10.in-addr.arpa", "7.2"));
        assert_eq!(placed("192.0.2.64/26", "192.0.2.70"), pair("2.0.192.in-addr.arpa", "70"));
        assert_eq!(placed("192.0.2.64/26", "192.0.2.7"), None);
        let six = placed("2001:db8::/64", "2001:db8::1:2").expect("a place");
        assert_eq!(six.0, "0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa");
        assert_eq!(six.1, "2.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0");
    }

    proptest! {
        #[test]
        fn every_address_is_in_one_of_its_subnets_zones(bits in any::<u32>(), prefix in 1u8..=32, host in any::<u32>()) {
            let subnet = Ipv4Net::new(Ipv4Addr::from_bits(bits), prefix).expect("a prefix").trunc();
            let address = Ipv4Addr::from_bits(subnet.network().to_bits() | (host & !subnet.netmask().to_bits()));
            let zones = zones(IpNet::V4(subnet));
            prop_assert!(zones.len() <= 128);
            let (zone, name) = place(IpNet::V4(subnet), address.into()).expect("a place");
            prop_assert!(zones.contains(&zone));
            let octets = address.octets();
            let whole = format!("{}.{}.{}.{}.in-addr.arpa", octets[3], octets[2], octets[1], octets[0]);
            prop_assert_eq!(format!("{name}.{zone}"), whole);
        }

        #[test]
        fn ipv6_likewise(bits in any::<u128>(), prefix in 1u8..=128, host in any::<u128>()) {
            let subnet = Ipv6Net::new(Ipv6Addr::from_bits(bits), prefix).expect("a prefix").trunc();
            let address = Ipv6Addr::from_bits(subnet.network().to_bits() | (host & !subnet.netmask().to_bits()));
            let zones = zones(IpNet::V6(subnet));
            prop_assert!(zones.len() <= 8);
            let (zone, name) = place(IpNet::V6(subnet), address.into()).expect("a place");
            prop_assert!(zones.contains(&zone));
            prop_assert_eq!(format!("{name}.{zone}").split('.').count(), 34);
            prop_assert!(!name.is_empty());
        }
    }
}
