//! Work of the kernel that frames and packets are spared: the rules for what is routed, and the tracking of connections.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use host::{
    fabric::FabricSet,
    filter::{BridgeFilter, FilterSet, Filters as _, NicFilter},
    link::{LinkNames, Links as _},
    linux::{filter::LinuxFilters, link::LinuxLinks},
};
use model::id::{AccountId, InstanceId};

use super::{
    fabric::{Machine, Zone, tenant_network, two_machines},
    frames::pings,
    site::{Namespace, PATIENCE, SILENCE, connects, in_host, listen, network, run},
};

const SWITCHES: [&str; 3] = [
    "net.bridge.bridge-nf-call-iptables",
    "net.bridge.bridge-nf-call-ip6tables",
    "net.bridge.bridge-nf-call-arptables",
];

fn switches() -> Vec<String> {
    SWITCHES.iter().map(|name| run(&["sysctl", "-n", name]).trim().to_owned()).collect()
}

#[test]
fn all_bridges_are_spared_the_rules_for_routed_packets_when_all_are_ours() {
    in_host(|| {
        if !Path::new("/proc/sys/net/bridge").exists() {
            run(&["modprobe", "br_netfilter"]);
        }
        let turn_on = || SWITCHES.iter().for_each(|name| drop(run(&["sysctl", "-qw", &format!("{name}=1")])));
        let (ext, private) = (network("ext", "10.88.0.0/16"), network("priv", "192.168.128.0/22"));
        turn_on();
        let links = LinuxLinks::new(LinkNames::default());
        links.ensure_bridge(&ext).expect("a bridge");
        assert_eq!(switches(), ["0"; 3], "nobody else has a bridge");
        turn_on();
        links.ensure_bridge(&private).expect("another");
        assert_eq!(switches(), ["0"; 3], "with each bridge that is made");

        run(&["ip", "link", "add", "theirs", "type", "bridge"]);
        turn_on();
        links.remove_bridges_except(&[]).expect("all away");
        links.ensure_bridge(&ext).expect("a bridge");
        LinuxLinks::new(LinkNames::default()).ensure_bridge(&private).expect("an agent that starts");
        assert_eq!(switches(), ["1"; 3], "a bridge of somebody else may need them");
    });
}

/// Connections that a machine tracks.
fn tracked(space: &Namespace) -> u32 {
    space.run(&["sysctl", "-n", "net.netfilter.nf_conntrack_count"]).trim().parse().expect("a number")
}

/// Filters of a machine with one NIC on a fabric, in force.
fn filter(machine: &Machine, prefix: &str, zone: &Zone) -> LinuxFilters {
    let names = LinkNames::new(prefix).expect("a prefix");
    let filters = LinuxFilters::new("neso", names.clone());
    let segment = machine.set.segments.values().next().expect("a segment");
    let bridge = (names.bridge(&segment.network), BridgeFilter::of(&segment.network));
    let nic = NicFilter { instance: InstanceId::random(), addresses: vec![zone.address.into()] };
    let set = FilterSet { nics: [(zone.mac, nic)].into(), bridges: [bridge].into() };
    machine.space.enter(|| filters.apply(&set)).expect("filters");
    filters
}

#[test]
fn what_machines_send_each_other_is_not_tracked() {
    in_host(|| {
        let mut machines = two_machines(["ym", "yn"]);
        let mine = tenant_network(AccountId::random(), 0x70, "10.0.0.0/24");
        machines.iter_mut().for_each(|machine| machine.join(&mine));
        let [mut one, mut two] = machines;
        let (a, b) = (one.zone(&mine, 1), two.zone(&mine, 2));
        one.meet(0x70, &b, &two);
        two.meet(0x70, &a, &one);
        let _filters = [filter(&one, "ym", &a), filter(&two, "yn", &b)];
        let server = b.space.enter(listen);
        let at = SocketAddr::from((b.address, server.local_addr().expect("bound").port()));
        // Each a flow of its own, also to the machines.
        let talk = || {
            for _ in 0..20 {
                assert!(a.space.enter(|| connects(at, PATIENCE)), "across machines");
            }
            (tracked(&one.space), tracked(&two.space))
        };
        assert_eq!(talk(), (0, 0), "nobody asked for it");
        // Protected all the same, without tracking.
        let Some(IpAddr::V4(host)) = one.set.underlay else { panic!("it has an IPv4 address") };
        a.space.run(&["ip", "route", "add", &format!("{host}/32"), "dev", "eth0"]);
        assert!(!a.space.enter(|| pings(host, SILENCE)), "the machine itself");

        for machine in [&one, &two] {
            let inside = |command: &str| drop(machine.space.run(&["nft", command]));
            inside("add table inet theirs");
            inside("add chain inet theirs in { type filter hook input priority 0; }");
            inside("add rule inet theirs in ct state new accept");
        }
        let before = talk();
        assert!(before.0 >= 10 && before.1 >= 10, "somebody else's rules have all tracked: {before:?}");
        for machine in [&one, &two] {
            let exempt = FabricSet { tracks: true, ..machine.set.clone() };
            machine.space.enter(|| machine.links.program(&exempt)).expect("fabrics");
        }
        let after = talk();
        assert!(after.0 <= before.0 && after.1 <= before.1, "{after:?} after {before:?}: machines' packets are exempt");
    });
}
