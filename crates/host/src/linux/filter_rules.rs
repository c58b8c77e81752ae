//! What a [`FilterSet`] means in nftables: pure text and bytes.
//!
//! ```text
//! table bridge <name>   from_nic     what leaves a NIC: exactly its MAC and addresses, in IPv4 and in ARP
//!                       from_nic6    the same in IPv6; no router, no DHCP server, no redirect
//!                       solicit      neighbour solicitations in the NIC's own name
//!                       advertise    neighbour advertisements of the NIC's own addresses
//! table inet <name>     input        what reaches the host from a segment: pings of its address there
//!                       forward      what is routed: from a segment with NAT to the outside, and the answers
//!                       postrouting  masquerade
//! ```
//! What is no datagram of UDP is accepted by the second rule it meets; the rest is looked at in order. Where the host has no address on any
//! segment and routes for none, no rule speaks of connections, so that the kernel tracks none: tracking what machines send each other is
//! most of what rules may cost a fabric.
//!
//! Neighbour discovery is held to the two shapes kernels send, without an option or with the one link-layer address it is about, by
//! its exact length: so no second option can contradict the first. A first fragment must reach into its transport header, or
//! nobody could say what it begins. A link-local address is for neighbour discovery alone, since
//! the firewall knows instances by the addresses of their networks.
//!
//! Rules never change; only sets do. They name interfaces by prefix, so a NIC without an element may send nothing: the
//! moment between making a NIC and filtering it is closed, and so is a bug that forgets one.
//!
//! `accept` in these chains only ends our own say: tables of others still see the packet. A host whose own rules drop
//! what is forwarded (Docker's do) must let our bridges through there; we do not touch others' tables.

use std::{collections::BTreeSet, fmt::Write, net::IpAddr};

use model::{id::MacAddr, target::Outside6};

use crate::{
    error::{Error, Result},
    filter::{BridgeFilter, FilterSet, NicFilter},
    link::LinkNames,
};

/// The set of what a NIC may send in IPv4.
pub(super) const NIC_IP: &str = "nic_ip";

/// The set of what a NIC may say in ARP.
pub(super) const NIC_ARP: &str = "nic_arp";

/// The set of what a NIC may send in IPv6.
pub(super) const NIC_IP6: &str = "nic_ip6";

/// The set of what a NIC may say in neighbour discovery.
pub(super) const NIC_ND: &str = "nic_nd";

/// The sets about NICs, all in the `bridge` table.
pub(super) const NIC_SETS: [&str; 4] = [NIC_IP, NIC_ARP, NIC_IP6, NIC_ND];

/// The sets about bridges, all in the `inet` table.
pub(super) const FIXED_SETS: [&str; 8] = [
    "host_address",
    "host_address6",
    "same_segment",
    "nat_source",
    "nat_subnet",
    "out_source6",
    "nat_subnet6",
    "routed_subnet6",
];

/// Longest name of an interface.
const NAME_MAX: usize = 15;

/// One thing a NIC may send: by this name, from this MAC, with this address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sender {
    name: String,
    mac: MacAddr,
    address: IpAddr,
}

impl Sender {
    /// Key in one of [`NIC_SETS`], if it belongs there: name, MAC, where the protocol repeats it the MAC once more, address; each
    /// padded to four bytes as the kernel's registers are.
    pub(super) fn key(&self, set: &str) -> Option<Vec<u8>> {
        if !self.belongs_in(set) {
            return None;
        }
        let mut key = self.name.as_bytes().to_vec();
        key.resize(16, 0);
        for _ in 0..if says_mac_twice(set) { 2 } else { 1 } {
            key.extend_from_slice(&self.mac.0);
            key.extend_from_slice(&[0; 2]);
        }
        match self.address {
            IpAddr::V4(address) => key.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => key.extend_from_slice(&address.octets()),
        }
        Some(key)
    }

    fn belongs_in(&self, set: &str) -> bool {
        match self.address {
            IpAddr::V4(_) => matches!(set, NIC_IP | NIC_ARP),
            IpAddr::V6(address) => set == NIC_ND || (set == NIC_IP6 && !address.is_unicast_link_local()),
        }
    }

    /// The same as text.
    fn element(&self, set: &str) -> Option<String> {
        let Self { name, mac, address } = self;
        self.belongs_in(set).then(|| match (set, address) {
            // The kernel knows these two by their place in the packet and not by what they are.
            (NIC_ND, IpAddr::V6(address)) => {
                format!("\"{name}\" . {mac} . 0x{} . 0x{:032x}", mac.bare(), address.to_bits())
            }
            _ if says_mac_twice(set) => format!("\"{name}\" . {mac} . {mac} . {address}"),
            _ => format!("\"{name}\" . {mac} . {address}"),
        })
    }
}

fn says_mac_twice(set: &str) -> bool {
    matches!(set, NIC_ARP | NIC_ND)
}

/// What differs between two sets of senders: whom to forget, whom to add.
pub(super) fn difference(held: &FilterSet, wanted: &FilterSet, names: &LinkNames) -> (Vec<Sender>, Vec<Sender>) {
    // Only of NICs that differ: however many there are, one comes or goes at a time.
    let differing = |one: &FilterSet, other: &FilterSet| -> BTreeSet<Sender> {
        let is_other = |mac, nic: &NicFilter| other.nics.get(mac).is_none_or(|there| there.addresses != nic.addresses);
        one.nics
            .iter()
            .filter(|(mac, nic)| is_other(mac, nic))
            .flat_map(|(mac, nic)| sent_by(*mac, nic, names))
            .collect()
    };
    let (held, wanted) = (differing(held, wanted), differing(wanted, held));
    (held.difference(&wanted).cloned().collect(), wanted.difference(&held).cloned().collect())
}

/// Everything NICs may send.
pub(super) fn senders(set: &FilterSet, names: &LinkNames) -> BTreeSet<Sender> {
    set.nics.iter().flat_map(|(mac, nic)| sent_by(*mac, nic, names)).collect()
}

fn sent_by(mac: MacAddr, nic: &NicFilter, names: &LinkNames) -> impl Iterator<Item = Sender> {
    let name = names.nic(mac);
    let has_six = nic.addresses.iter().any(IpAddr::is_ipv6);
    let link_local = has_six.then(|| IpAddr::V6(mac.link_local()));
    let addresses = nic.addresses.iter().copied().chain(link_local);
    addresses.map(move |address| Sender { name: name.clone(), mac, address })
}

/// The whole rule set as one transaction of `nft`, which replaces whatever our tables held.
pub(super) fn script(table: &str, names: &LinkNames, set: &FilterSet) -> Result<String> {
    let word = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if table.is_empty() || table.len() > 64 || !word(table) {
        return Err(refused(format!("nftables table `{table}`"), "it has characters other than letters and digits"));
    }
    for bridge in set.bridges.keys() {
        let fits = bridge.len() <= NAME_MAX
            && bridge.starts_with(&names.bridge_prefix())
            && bridge.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
        if !fits {
            return Err(refused(format!("bridge `{bridge}`"), "its name is not one of ours"));
        }
    }
    let mut text = String::new();
    for family in ["bridge", "inet"] {
        // Adding first makes deleting succeed whether or not the table is there.
        let _ = writeln!(text, "add table {family} {table}\ndelete table {family} {table}");
    }
    text.push_str(&bridge_table(table, names, set));
    text.push_str(&inet_table(table, names, set));
    Ok(text)
}

fn bridge_table(table: &str, names: &LinkNames, set: &FilterSet) -> String {
    let senders = senders(set, names);
    let [ip, arp, ip6, nd] = NIC_SETS.map(|set| elements(senders.iter().filter_map(|sender| sender.element(set))));
    let nics = names.nic_prefix();
    format!(
        r#"table bridge {table} {{
    counter spoofed {{ }}
    counter dhcp_server {{ }}
    counter router {{ }}
    counter other {{ }}
    set {NIC_IP} {{
        type ifname . ether_addr . ipv4_addr{ip}
    }}
    set {NIC_ARP} {{
        type ifname . ether_addr . ether_addr . ipv4_addr{arp}
    }}
    set {NIC_IP6} {{
        type ifname . ether_addr . ipv6_addr{ip6}
    }}
    set {NIC_ND} {{
        typeof iifname . ether saddr . {OPTION_MAC} . {TARGET}{nd}
    }}
    chain solicit {{
        ip6 nexthdr != icmpv6 counter name spoofed drop
        ip6 saddr :: iifname . ether saddr . {FRAME_MAC} . {TARGET} @{NIC_ND} accept
        ip6 saddr :: counter name other drop
        ip6 length 24 iifname . ether saddr . {FRAME_MAC} . {SOURCE} @{NIC_ND} accept
        ip6 length 32 {OPTION_HEAD} 0x0101 iifname . ether saddr . {OPTION_MAC} . {SOURCE} @{NIC_ND} accept
        counter name spoofed drop
    }}
    chain advertise {{
        ip6 nexthdr != icmpv6 counter name spoofed drop
        iifname . ether saddr . {FRAME_MAC} . {SOURCE} != @{NIC_ND} counter name spoofed drop
        ip6 length 24 iifname . ether saddr . {FRAME_MAC} . {TARGET} @{NIC_ND} accept
        ip6 length 32 {OPTION_HEAD} 0x0201 iifname . ether saddr . {OPTION_MAC} . {TARGET} @{NIC_ND} accept
        counter name spoofed drop
    }}
    chain from_nic6 {{
        icmpv6 type 135 goto solicit
        icmpv6 type 136 goto advertise
        icmpv6 type {{ 134, 137 }} counter name router drop
        icmpv6 type {{ 130, 131, 132, 133, 143 }} drop
        udp sport 547 counter name dhcp_server drop
        {TRANSPORT} != 547 iifname . ether saddr . ip6 saddr @{NIC_IP6} accept
        frag frag-off != 0 iifname . ether saddr . ip6 saddr @{NIC_IP6} accept
        counter name spoofed drop
    }}
    chain from_nic {{
        type filter hook prerouting priority -300; policy accept;
        iifname != "{nics}*" accept
        ether type ip meta l4proto != udp iifname . ether saddr . ip saddr @{NIC_IP} accept
        ether type vlan counter name other drop
        ether type arp iifname . ether saddr . arp saddr ether . arp saddr ip @{NIC_ARP} accept
        ether type arp counter name spoofed drop
        ether type ip6 goto from_nic6
        ether type != ip counter name other drop
        udp sport 67 counter name dhcp_server drop
        iifname . ether saddr . ip saddr @{NIC_IP} accept
        counter name spoofed drop
    }}
}}
"#
    )
}

// Places in a packet of neighbour discovery that `nft` has no names for: in bits from a header's start, length in bits. The first
// option follows the target; two bytes of it say what and how long it is.
const FRAME_MAC: &str = "@ll,48,48";
const SOURCE: &str = "@nh,64,128";
const TARGET: &str = "@th,64,128";
const OPTION_HEAD: &str = "@th,192,16";
const OPTION_MAC: &str = "@th,208,48";
/// First two bytes of the transport header: a port, or what kind of ICMPv6 it is. A rule with it fits only where they can be read.
const TRANSPORT: &str = "@th,0,16";

fn inet_table(table: &str, names: &LinkNames, set: &FilterSet) -> String {
    let (sets, bridges) = (bridge_sets(set), names.bridge_prefix());
    // A single mention of connections has the kernel track all of the machine's.
    let tracked = |text| if set.bridges.values().any(BridgeFilter::tracks) { text } else { "" };
    let answers = tracked("ct state established,related accept");
    let odd = tracked("ct state invalid counter name forward_denied drop");
    let postrouting = match set.bridges.values().any(BridgeFilter::translates) {
        true => postrouting(&bridges),
        false => String::new(),
    };
    format!(
        r#"table inet {table} {{
    counter host_denied {{ }}
    counter forward_denied {{ }}
{sets}    chain input {{
        type filter hook input priority filter - 10; policy accept;
        iifname != "{bridges}*" accept
        {answers}
        icmp type echo-request iifname . ip daddr @host_address accept
        icmpv6 type echo-request iifname . ip6 daddr @host_address6 accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        counter name host_denied drop
    }}
    chain forward {{
        type filter hook forward priority filter - 10; policy accept;
        iifname . oifname @same_segment accept
        iifname "{bridges}*" jump from_segment
        oifname "{bridges}*" jump to_segment
    }}
    chain from_segment {{
        oifname "{bridges}*" counter name forward_denied drop
        {odd}
        ip daddr 169.254.0.0/16 counter name forward_denied drop
        ip6 daddr {{ {METADATA6} }} counter name forward_denied drop
        iifname . ip saddr @nat_source accept
        iifname . ip6 saddr @out_source6 accept
        counter name forward_denied drop
    }}
    chain to_segment {{
        {answers}
        oifname . ip6 daddr @routed_subnet6 accept
        counter name forward_denied drop
    }}
{postrouting}}}
"#
    )
}

fn postrouting(bridges: &str) -> String {
    format!(
        r#"    chain postrouting {{
        type nat hook postrouting priority srcnat - 10; policy accept;
        oifname "{bridges}*" accept
        oifname "lo" accept
        ip saddr @nat_subnet masquerade
        ip6 saddr @nat_subnet6 masquerade
    }}
"#
    )
}

/// The sets about bridges, [`FIXED_SETS`].
fn bridge_sets(set: &FilterSet) -> String {
    fn of<T: ToString>(set: &FilterSet, what: impl Fn(&BridgeFilter) -> Option<T>) -> String {
        elements(set.bridges.iter().filter_map(|(name, bridge)| {
            let what = what(bridge)?.to_string();
            Some(format!("\"{name}\" . {what}"))
        }))
    }
    fn alone<T: ToString>(set: &FilterSet, what: impl Fn(&BridgeFilter) -> Option<T>) -> String {
        let all: BTreeSet<String> = set.bridges.values().filter_map(|bridge| Some(what(bridge)?.to_string())).collect();
        elements(all)
    }
    let (host, host6) = (of(set, |bridge| bridge.host_address), of(set, |bridge| bridge.host_address6));
    let same = elements(set.bridges.keys().map(|name| format!("\"{name}\" . \"{name}\"")));
    let nat = |bridge: &BridgeFilter| bridge.subnet.filter(|_| bridge.nat).map(|subnet| subnet.trunc());
    let (sources, subnets) = (of(set, nat), alone(set, nat));
    let sources6 = of(set, |bridge| bridge.forwards6(|outside| !outside.is_none()));
    let subnets6 = alone(set, |bridge| bridge.forwards6(|outside| outside == Outside6::Masqueraded));
    let routed6 = of(set, |bridge| bridge.forwards6(|outside| outside == Outside6::Routed));
    format!(
        r#"    set host_address {{
        type ifname . ipv4_addr{host}
    }}
    set host_address6 {{
        type ifname . ipv6_addr{host6}
    }}
    set same_segment {{
        type ifname . ifname{same}
    }}
    set nat_source {{
        type ifname . ipv4_addr
        flags interval{sources}
    }}
    set nat_subnet {{
        type ipv4_addr
        flags interval
        auto-merge{subnets}
    }}
    set out_source6 {{
        type ifname . ipv6_addr
        flags interval{sources6}
    }}
    set nat_subnet6 {{
        type ipv6_addr
        flags interval
        auto-merge{subnets6}
    }}
    set routed_subnet6 {{
        type ifname . ipv6_addr
        flags interval{routed6}
    }}
"#
    )
}

/// Where clouds keep the metadata of their own machines in IPv6: Amazon's and Google's. In IPv4 it is link-local.
pub(super) const METADATA6: &str = "fd00:ec2::254, fd20:ce::254";

fn elements(all: impl IntoIterator<Item = String>) -> String {
    let all: Vec<String> = all.into_iter().collect();
    match all.is_empty() {
        true => String::new(),
        false => format!("\n        elements = {{ {} }}", all.join(", ")),
    }
}

fn refused(what: String, why: &str) -> Error {
    Error::Refused { what, why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::id::InstanceId;
    use proptest::prelude::*;

    use super::*;
    use crate::filter::{BridgeFilter, NicFilter};

    fn nic(addresses: &[&str]) -> NicFilter {
        NicFilter {
            instance: InstanceId::new(uuid::Uuid::nil()),
            addresses: addresses.iter().map(|address| ip(address)).collect(),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn example() -> FilterSet {
        let bridge = |subnet: &str, host: Option<&str>, nat| BridgeFilter {
            subnet: Some(subnet.parse().expect("a subnet")),
            host_address: host.map(|host| host.parse().expect("an address")),
            nat,
            ..BridgeFilter::default()
        };
        let six = BridgeFilter {
            subnet6: Some("fd00:7::/64".parse().expect("a subnet")),
            host_address6: Some("fd00:7::1".parse().expect("an address")),
            outside6: Outside6::Masqueraded,
            ..bridge("10.7.0.0/24", None, false)
        };
        let routed = BridgeFilter {
            subnet6: Some("2001:db8:8::/64".parse().expect("a subnet")),
            outside6: Outside6::Routed,
            ..bridge("10.8.0.0/24", None, false)
        };
        FilterSet {
            nics: [
                (MacAddr::from_suffix(1), nic(&["10.88.0.5", "10.88.0.6"])),
                (MacAddr::from_suffix(2), nic(&[])),
                (MacAddr::from_suffix(3), nic(&["10.7.0.5", "fd00:7::5"])),
            ]
            .into(),
            bridges: [
                ("nb-ext".to_owned(), bridge("10.88.0.0/16", Some("10.88.0.1"), true)),
                ("nb-priv".to_owned(), bridge("192.168.128.0/22", None, false)),
                ("nb-routed".to_owned(), routed),
                ("nb-six".to_owned(), six),
            ]
            .into(),
        }
    }

    #[test]
    fn sets_hold_what_the_value_says() {
        let text = script("neso", &LinkNames::default(), &example()).expect("a rule set");
        let sets: Vec<&str> = text.lines().filter(|line| line.contains("elements =")).map(str::trim).collect();
        assert_eq!(
            sets,
            [
                "elements = { \"nv90b8d0000001\" . 90:b8:d0:00:00:01 . 10.88.0.5, \
                 \"nv90b8d0000001\" . 90:b8:d0:00:00:01 . 10.88.0.6, \
                 \"nv90b8d0000003\" . 90:b8:d0:00:00:03 . 10.7.0.5 }",
                "elements = { \"nv90b8d0000001\" . 90:b8:d0:00:00:01 . 90:b8:d0:00:00:01 . 10.88.0.5, \
                 \"nv90b8d0000001\" . 90:b8:d0:00:00:01 . 90:b8:d0:00:00:01 . 10.88.0.6, \
                 \"nv90b8d0000003\" . 90:b8:d0:00:00:03 . 90:b8:d0:00:00:03 . 10.7.0.5 }",
                "elements = { \"nv90b8d0000003\" . 90:b8:d0:00:00:03 . fd00:7::5 }",
                "elements = { \"nv90b8d0000003\" . 90:b8:d0:00:00:03 . 0x90b8d0000003 . \
                 0xfd000007000000000000000000000005, \
                 \"nv90b8d0000003\" . 90:b8:d0:00:00:03 . 0x90b8d0000003 . 0xfe8000000000000092b8d0fffe000003 }",
                "elements = { \"nb-ext\" . 10.88.0.1 }",
                "elements = { \"nb-six\" . fd00:7::1 }",
                "elements = { \"nb-ext\" . \"nb-ext\", \"nb-priv\" . \"nb-priv\", \
                 \"nb-routed\" . \"nb-routed\", \"nb-six\" . \"nb-six\" }",
                "elements = { \"nb-ext\" . 10.88.0.0/16 }",
                "elements = { 10.88.0.0/16 }",
                "elements = { \"nb-routed\" . 2001:db8:8::/64, \"nb-six\" . fd00:7::/64 }",
                "elements = { fd00:7::/64 }",
                "elements = { \"nb-routed\" . 2001:db8:8::/64 }",
            ]
        );
        assert!(text.starts_with("add table bridge neso\ndelete table bridge neso\nadd table inet neso\n"));
    }

    #[test]
    fn names_that_would_be_syntax_are_refused() {
        let mut set = example();
        assert!(script("a; flush ruleset", &LinkNames::default(), &set).is_err());
        let stolen = set.bridges.remove("nb-ext").expect("it is there");
        set.bridges.insert("nb-\" drop".to_owned(), stolen);
        assert!(script("neso", &LinkNames::default(), &set).is_err());
    }

    #[test]
    fn keys_are_padded_registers() {
        let sender =
            |address: &str| Sender { name: "nv1".to_owned(), mac: MacAddr([1, 2, 3, 4, 5, 6]), address: ip(address) };
        let head = [&b"nv1"[..], &[0; 13], &[1, 2, 3, 4, 5, 6, 0, 0]].concat();
        assert_eq!(sender("10.0.0.9").key(NIC_IP), Some([&head[..], &[10, 0, 0, 9]].concat()));
        let sizes = |address: &str| NIC_SETS.map(|set| sender(address).key(set).map_or(0, |key| key.len()));
        assert_eq!(sizes("10.0.0.9"), [28, 36, 0, 0]);
        assert_eq!(sizes("fd00::9"), [0, 0, 40, 48]);
        assert_eq!(sizes("fe80::9"), [0, 0, 0, 48], "a link-local address is for neighbour discovery alone");
    }

    fn any_set() -> impl Strategy<Value = FilterSet> {
        // Even numbers are IPv4, odd ones IPv6.
        let nics = proptest::collection::btree_map(0_u32..8, proptest::collection::vec(0_u8..6, 0..3), 0..8);
        nics.prop_map(|nics| FilterSet {
            nics: nics
                .into_iter()
                .map(|(mac, addresses)| {
                    let address = |last: u8| match last % 2 {
                        0 => IpAddr::from([10, 0, 0, last]),
                        _ => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]),
                    };
                    let addresses = addresses.into_iter().map(address).collect();
                    let instance = InstanceId::new(uuid::Uuid::nil());
                    (MacAddr::from_suffix(mac), NicFilter { instance, addresses })
                })
                .collect(),
            bridges: BTreeMap::new(),
        })
    }

    proptest! {
        #[test]
        fn a_difference_leads_from_one_set_to_the_other(held in any_set(), wanted in any_set()) {
            let names = LinkNames::default();
            let (gone, new) = difference(&held, &wanted, &names);
            let mut reached = senders(&held, &names);
            for sender in &gone {
                prop_assert!(reached.remove(sender), "only what is there is taken away");
            }
            for sender in new {
                prop_assert!(reached.insert(sender), "only what is missing is added");
            }
            prop_assert_eq!(reached, senders(&wanted, &names));
        }
    }
}
