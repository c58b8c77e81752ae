//! Who may speak VXLAN to this machine, and through it: other machines, and never an instance.
//!
//! A frame in VXLAN is believed whatever it says it is, so whoever can send a datagram to the port speaks in every tenant's segment.
//! Instances can send datagrams to machines where their way out leads there; the machine hides them behind its own address, which the other
//! machines trust. So VXLAN that comes from an instance is dropped here, and on arrival only machines this one has a peer on are
//! heard. A sender with a forged address is the operator's network's business.
//!
//! Where the machine tracks connections for some other reason, what machines send each other is exempt: each of a tenant's connections would be
//! another entry in the host's table, which is everybody's, and each packet would be looked up in it on both machines.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::rules_kept::{self, Loaded, Table};
use crate::{error::Result, fabric::FabricSet, link::LinkNames};

/// Makes the rules of this machine those of `wanted`.
pub(super) fn guard(names: &LinkNames, wanted: &FabricSet, held: &mut Option<Loaded>) -> Result<()> {
    let name = format!("{}_underlay", names.prefix());
    if wanted.underlay.is_none() || wanted.segments.is_empty() {
        return rules_kept::remove(&name, held);
    }
    Table { name: &name, sets: &["machine4", "machine6"], text: text(&name, names, wanted) }.keep(held)
}

fn text(name: &str, names: &LinkNames, wanted: &FabricSet) -> String {
    let machines = wanted.segments.values().flat_map(|segment| segment.peers.values()).map(|peer| peer.underlay);
    let (mut four, mut six): (BTreeSet<Ipv4Addr>, BTreeSet<Ipv6Addr>) = Default::default();
    for machine in machines {
        match machine {
            IpAddr::V4(address) => drop(four.insert(address)),
            IpAddr::V6(address) => drop(six.insert(address)),
        }
    }
    let (four, six) = (elements(four), elements(six));
    let (bridge, transit, port) = (names.bridge_prefix(), names.transit_prefix(), wanted.port);
    let removal = rules_kept::removal(name);
    let exempt = match wanted.tracks || !wanted.routers.is_empty() {
        true => exempt(&bridge, &transit, port),
        false => String::new(),
    };
    format!(
        r#"{removal}table inet {name} {{
    counter strangers {{ }}
    counter forged {{ }}
    set machine4 {{ type ipv4_addr; {four} }}
    set machine6 {{ type ipv6_addr; {six} }}
    chain input {{
        type filter hook input priority filter - 10; policy accept;
        udp dport {port} jump from_machine
    }}
    chain from_machine {{
        ip saddr @machine4 accept
        ip6 saddr @machine6 accept
        counter name strangers drop
    }}
    chain forward {{
        type filter hook forward priority filter - 10; policy accept;
        iifname "{bridge}*" oifname != "{bridge}*" udp dport {port} counter name forged drop
        iifname "{transit}*" udp dport {port} counter name forged drop
    }}
{exempt}}}
"#
    )
}

/// What an instance sends may bear a machine's address in its own network, and stays tracked.
fn exempt(bridge: &str, transit: &str, port: u16) -> String {
    format!(
        r#"    chain untracked {{
        type filter hook prerouting priority raw; policy accept;
        udp dport != {port} accept
        iifname "{bridge}*" accept
        iifname "{transit}*" accept
        ip saddr @machine4 notrack
        ip6 saddr @machine6 notrack
    }}
    chain untracked_out {{
        type filter hook output priority raw; policy accept;
        udp dport != {port} accept
        ip daddr @machine4 notrack
        ip6 daddr @machine6 notrack
    }}
"#
    )
}

fn elements<T: ToString>(all: BTreeSet<T>) -> String {
    match all.is_empty() {
        true => String::new(),
        false => {
            format!("elements = {{ {} }}", all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::{id::MacAddr, peers::Peer, target::NetworkTarget};

    use super::*;
    use crate::fabric::Segment;

    #[test]
    fn machines_with_peers_are_heard_once_each() {
        let peer = |machine: &str| Peer { addresses: Vec::new(), underlay: machine.parse().expect("an address") };
        let machines = ["10.0.0.2", "10.0.0.2", "fd00::3"];
        let peers: BTreeMap<_, _> =
            (0..).zip(machines).map(|(last, machine)| (MacAddr::from_suffix(last), peer(machine))).collect();
        let mut wanted = FabricSet { underlay: Some([10, 0, 0, 1].into()), port: 4_790, ..FabricSet::default() };
        wanted.segments.insert(7, Segment { network: NetworkTarget::default(), peers });
        let text = text("n_underlay", &LinkNames::default(), &wanted);
        assert!(text.contains("type ipv4_addr; elements = { 10.0.0.2 }"), "{text}");
        assert!(text.contains("type ipv6_addr; elements = { fd00::3 }"), "{text}");
        assert_eq!(text.matches("udp dport 4790").count(), 3, "{text}");
        wanted.segments.clear();
        wanted.segments.insert(7, Segment { network: NetworkTarget::default(), peers: BTreeMap::new() });
        assert!(!self::text("n_underlay", &LinkNames::default(), &wanted).contains("elements"));
    }
}
