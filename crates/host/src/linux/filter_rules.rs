//! What a [`FilterSet`] means in nftables: pure text and bytes.
//!
//! ```text
//! table bridge <name>   from_nic     what leaves a NIC: exactly its MAC and addresses, in IPv4 and in ARP
//! table inet <name>     input        what reaches the host from a segment: pings of its address there
//!                       forward      what is routed: from a segment with NAT to the outside, and the answers
//!                       postrouting  masquerade
//! ```
//! Rules never change; only sets do. They name interfaces by prefix, so a NIC without an element may send nothing: the
//! moment between making a NIC and filtering it is closed, and so is a bug that forgets one.
//!
//! `accept` in these chains only ends our own say: tables of others still see the packet. A host whose own rules drop
//! what is forwarded (Docker's do) must let our bridges through there; we do not touch others' tables.

use std::{collections::BTreeSet, fmt::Write, net::Ipv4Addr};

use model::id::MacAddr;

use crate::{
    error::{Error, Result},
    filter::{FilterSet, NicFilter},
    link::LinkNames,
};

/// The set of what a NIC may send in IPv4.
pub(super) const NIC_IP: &str = "nic_ip";

/// The set of what a NIC may say in ARP.
pub(super) const NIC_ARP: &str = "nic_arp";

/// The sets about bridges, all in the `inet` table.
pub(super) const FIXED_SETS: [&str; 4] = ["host_address", "same_segment", "nat_source", "nat_subnet"];

/// Longest name of an interface.
const NAME_MAX: usize = 15;

/// One thing a NIC may send: by this name, from this MAC, with this address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sender {
    name: String,
    mac: MacAddr,
    address: Ipv4Addr,
}

impl Sender {
    /// Key in [`NIC_IP`]: name, MAC, address, each padded to four bytes as the kernel's registers are.
    pub(super) fn ip_key(&self) -> Vec<u8> {
        let mut key = self.name_and_mac();
        key.extend_from_slice(&self.address.octets());
        key
    }

    /// Key in [`NIC_ARP`]: name, MAC, MAC of the ARP sender, address of the ARP sender.
    pub(super) fn arp_key(&self) -> Vec<u8> {
        let mut key = self.name_and_mac();
        key.extend_from_slice(&self.mac.0);
        key.extend_from_slice(&[0; 2]);
        key.extend_from_slice(&self.address.octets());
        key
    }

    fn name_and_mac(&self) -> Vec<u8> {
        let mut key = self.name.as_bytes().to_vec();
        key.resize(16, 0);
        key.extend_from_slice(&self.mac.0);
        key.extend_from_slice(&[0; 2]);
        key
    }
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
    nic.addresses.iter().map(move |address| Sender { name: name.clone(), mac, address: *address })
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
    let ip = senders.iter().map(|s| format!("\"{}\" . {} . {}", s.name, s.mac, s.address));
    let arp = senders.iter().map(|s| format!("\"{}\" . {} . {} . {}", s.name, s.mac, s.mac, s.address));
    let (ip, arp, nics) = (elements(ip), elements(arp), names.nic_prefix());
    format!(
        r#"table bridge {table} {{
    counter spoofed {{ }}
    counter dhcp_server {{ }}
    counter other {{ }}
    set {NIC_IP} {{
        type ifname . ether_addr . ipv4_addr{ip}
    }}
    set {NIC_ARP} {{
        type ifname . ether_addr . ether_addr . ipv4_addr{arp}
    }}
    chain from_nic {{
        type filter hook prerouting priority -300; policy accept;
        iifname != "{nics}*" accept
        ether type vlan counter name other drop
        ether type arp iifname . ether saddr . arp saddr ether . arp saddr ip @{NIC_ARP} accept
        ether type arp counter name spoofed drop
        ether type != ip counter name other drop
        udp sport 67 counter name dhcp_server drop
        iifname . ether saddr . ip saddr @{NIC_IP} accept
        counter name spoofed drop
    }}
}}
"#
    )
}

fn inet_table(table: &str, names: &LinkNames, set: &FilterSet) -> String {
    let host = set.bridges.iter().filter_map(|(name, bridge)| Some(format!("\"{name}\" . {}", bridge.host_address?)));
    let same = set.bridges.keys().map(|name| format!("\"{name}\" . \"{name}\""));
    let nat = || set.bridges.iter().filter(|(_, bridge)| bridge.nat);
    let sources = nat().map(|(name, bridge)| format!("\"{name}\" . {}", bridge.subnet.trunc()));
    let subnets: BTreeSet<String> = nat().map(|(_, bridge)| bridge.subnet.trunc().to_string()).collect();
    let (host, same) = (elements(host), elements(same));
    let (sources, subnets, bridges) = (elements(sources), elements(subnets), names.bridge_prefix());
    format!(
        r#"table inet {table} {{
    counter host_denied {{ }}
    counter forward_denied {{ }}
    set host_address {{
        type ifname . ipv4_addr{host}
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
    chain input {{
        type filter hook input priority filter - 10; policy accept;
        iifname != "{bridges}*" accept
        ct state established,related accept
        icmp type echo-request iifname . ip daddr @host_address accept
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
        ct state invalid counter name forward_denied drop
        ip daddr 169.254.0.0/16 counter name forward_denied drop
        iifname . ip saddr @nat_source accept
        counter name forward_denied drop
    }}
    chain to_segment {{
        ct state established,related accept
        counter name forward_denied drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat - 10; policy accept;
        oifname "{bridges}*" accept
        oifname "lo" accept
        ip saddr @nat_subnet masquerade
    }}
}}
"#
    )
}

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
            addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
        }
    }

    fn example() -> FilterSet {
        let bridge = |subnet: &str, host: Option<&str>, nat| BridgeFilter {
            subnet: subnet.parse().expect("a subnet"),
            host_address: host.map(|host| host.parse().expect("an address")),
            nat,
        };
        FilterSet {
            nics: [(MacAddr::from_suffix(1), nic(&["10.88.0.5", "10.88.0.6"])), (MacAddr::from_suffix(2), nic(&[]))]
                .into(),
            bridges: [
                ("nb-ext".to_owned(), bridge("10.88.0.0/16", Some("10.88.0.1"), true)),
                ("nb-priv".to_owned(), bridge("192.168.128.0/22", None, false)),
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
                 \"nv90b8d0000001\" . 90:b8:d0:00:00:01 . 10.88.0.6 }",
                "elements = { \"nv90b8d0000001\" . 90:b8:d0:00:00:01 . 90:b8:d0:00:00:01 . 10.88.0.5, \
                 \"nv90b8d0000001\" . 90:b8:d0:00:00:01 . 90:b8:d0:00:00:01 . 10.88.0.6 }",
                "elements = { \"nb-ext\" . 10.88.0.1 }",
                "elements = { \"nb-ext\" . \"nb-ext\", \"nb-priv\" . \"nb-priv\" }",
                "elements = { \"nb-ext\" . 10.88.0.0/16 }",
                "elements = { 10.88.0.0/16 }",
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
        let sender = Sender { name: "nv1".to_owned(), mac: MacAddr([1, 2, 3, 4, 5, 6]), address: [10, 0, 0, 9].into() };
        assert_eq!(sender.ip_key(), [&b"nv1"[..], &[0; 13], &[1, 2, 3, 4, 5, 6, 0, 0], &[10, 0, 0, 9]].concat());
        assert_eq!(sender.arp_key().len(), 36);
    }

    fn any_set() -> impl Strategy<Value = FilterSet> {
        let nics = proptest::collection::btree_map(0_u32..8, proptest::collection::vec(0_u8..4, 0..3), 0..8);
        nics.prop_map(|nics| FilterSet {
            nics: nics
                .into_iter()
                .map(|(mac, addresses)| {
                    let addresses = addresses.into_iter().map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
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
