//! Fabrics: zones of one tenant on two machines meet, and nobody else's; routers lead outside and between networks.
//!
//! The machines are network namespaces with a wire between them. Each test has prefixes of its own, since routers have names that
//! are the whole machine's.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use host::{
    fabric::{FabricSet, Segment},
    fake::{Faults, link::FakeLinks, link::LinkMachine},
    link::{LinkNames, Links, NetworkSetup, Packet, Probe, Through},
    linux::link::LinuxLinks,
};
use ipnet::Ipv6Net;
use model::{
    id::{AccountId, InstanceId, MacAddr},
    path::{Look, Sight, Tunnel},
    peers::Peer,
    target::{FabricTarget, NetworkTarget},
};

use super::{
    frames::{pings, pings6},
    site::{Namespace, PATIENCE, SILENCE, connects, in_host, listen, listen6, nic_on, run, without4},
};

pub(super) fn tenant_network(owner: AccountId, vni: u32, subnet: &str) -> NetworkTarget {
    let subnet: ipnet::Ipv4Net = subnet.parse().expect("a subnet");
    NetworkTarget {
        nic_tag: format!("x{vni:06x}"),
        subnet: Some(subnet),
        mtu: 1450,
        gateway: subnet.hosts().next(),
        fabric: Some(FabricTarget { vni, owner, internet_nat: false, routed: false }),
        ..NetworkTarget::default()
    }
}

/// The same with IPv6.
fn tenant_network6(owner: AccountId, vni: u32, subnet: &str, subnet6: &str) -> NetworkTarget {
    let subnet6: Ipv6Net = subnet6.parse().expect("a subnet");
    let gateway6 = Some(Ipv6Addr::from_bits(subnet6.network().to_bits() + 1));
    NetworkTarget { subnet6: Some(subnet6), gateway6, ..tenant_network(owner, vni, subnet) }
}

/// A machine of a small fleet.
pub(super) struct Machine {
    pub(super) space: Namespace,
    pub(super) links: LinuxLinks,
    underlay: Ipv4Addr,
    pub(super) set: FabricSet,
}

/// A zone with one NIC.
pub(super) struct Zone {
    pub(super) space: Namespace,
    pub(super) mac: MacAddr,
    pub(super) address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
}

impl Zone {
    /// Its IPv6 address, which it has.
    fn six(&self) -> Ipv6Addr {
        self.address6.expect("its network has IPv6")
    }
}

impl Machine {
    fn new(prefix: &str, underlay: [u8; 4]) -> Self {
        let names = LinkNames::new(prefix).expect("a prefix");
        let space = Namespace::new();
        space.run(&["ip", "link", "set", "lo", "up"]);
        let set = FabricSet { underlay: Some(IpAddr::from(underlay)), ..FabricSet::default() };
        Self { space, links: LinuxLinks::new(names), underlay: underlay.into(), set }
    }

    pub(super) fn program(&self) {
        self.space.enter(|| self.links.program(&self.set)).expect("fabrics");
    }

    /// Makes the segment of a network here, and its router if it has one.
    pub(super) fn join(&mut self, network: &NetworkTarget) {
        let fabric = network.fabric.clone().expect("a fabric");
        let segment = Segment { network: network.clone(), peers: BTreeMap::new() };
        self.set.segments.entry(fabric.vni).or_insert(segment);
        if network.is_routed() {
            self.set.routers.entry(fabric.owner).or_default().push(network.clone());
        }
        self.program();
    }

    pub(super) fn zone(&self, network: &NetworkTarget, suffix: u32) -> Zone {
        let (mut nic, address) = nic_on(network, suffix, suffix as usize % 64 + 8);
        nic.mtu = network.mtu;
        let own = |subnet: Ipv6Net| Ipv6Addr::from_bits(subnet.network().to_bits() + u128::from(suffix % 64) + 8);
        let address6 = network.subnet6.map(own);
        nic.addresses6 = address6.into_iter().map(|ip| Ipv6Net::new(ip, 64).expect("a length")).collect();
        nic.gateway6 = network.gateway6;
        let (space, mac) = (Namespace::new(), nic.mac);
        let setup = NetworkSetup { nics: vec![(nic, network.clone())], routes: BTreeMap::new() };
        self.space.enter(|| self.links.attach(InstanceId::random(), &space.path(), &setup)).expect("a NIC");
        Zone { space, mac, address, address6 }
    }

    /// Tells this machine of a zone on another.
    pub(super) fn meet(&mut self, vni: u32, zone: &Zone, at: &Machine) {
        let addresses = std::iter::once(IpAddr::V4(zone.address)).chain(zone.address6.map(IpAddr::V6));
        let addresses = addresses.filter(|ip| !ip.is_unspecified());
        let peer = Peer { addresses: addresses.collect(), underlay: at.underlay.into() };
        self.set.segments.get_mut(&vni).expect("it has the segment").peers.insert(zone.mac, peer);
        self.program();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Routers have names that outlive namespaces.
        let nothing = FabricSet::default();
        let _ = self.space.enter(|| self.links.program(&nothing));
    }
}

/// A wire from one namespace to another, named for its ends' addresses.
pub(super) fn wire(one: (&Namespace, &str, &str), other: (&Namespace, &str, &str)) {
    run(&["ip", "link", "add", one.1, "type", "veth", "peer", "name", other.1]);
    for (space, name, address) in [one, other] {
        let path = space.path();
        let fd = path.to_str().expect("plain text").rsplit('/').next().expect("its number");
        run(&["ip", "link", "set", name, "netns", &format!("/proc/{}/fd/{fd}", std::process::id())]);
        space.run(&["ip", "addr", "add", address, "dev", name]);
        space.run(&["ip", "link", "set", name, "up"]);
    }
}

pub(super) fn two_machines(prefixes: [&str; 2]) -> [Machine; 2] {
    let [one, two] = [Machine::new(prefixes[0], [10, 99, 0, 1]), Machine::new(prefixes[1], [10, 99, 0, 2])];
    wire((&one.space, "under1", "10.99.0.1/24"), (&two.space, "under2", "10.99.0.2/24"));
    [one, two]
}

/// Packets that left through an interface.
fn sent(space: &Namespace, name: &str) -> u64 {
    let text = space.run(&["cat", "/proc/net/dev"]);
    let line = text.lines().find(|line| line.trim_start().starts_with(&format!("{name}:"))).expect("the interface");
    line.split_whitespace().nth(10).expect("its tenth column").parse().expect("a number")
}

#[test]
fn fake_links_pass_the_fabric_suite() {
    suite(&FakeLinks::new(LinkMachine::default(), Faults::default()));
}

#[test]
fn linux_links_pass_the_fabric_suite() {
    in_host(|| suite(&LinuxLinks::new(LinkNames::new("ye").expect("a prefix"))));
}

fn suite(links: &dyn Links) {
    let network = tenant_network(AccountId::random(), 7, "10.0.0.0/24");
    let peer = |last: u16| {
        let [high, low] = last.to_be_bytes();
        Peer { addresses: vec![IpAddr::from([10, 0, high, low])], underlay: [127, 1, high, low].into() }
    };
    // More than a socket's buffer holds answers for.
    let peers: BTreeMap<_, _> = (1..=1_000).map(|last| (MacAddr::from_suffix(last.into()), peer(last))).collect();
    let mut set = FabricSet { underlay: Some([127, 0, 0, 100].into()), ..FabricSet::default() };
    set.segments.insert(7, Segment { network: network.clone(), peers });
    for _ in 0..2 {
        links.program(&set).expect("fabrics");
    }
    set.segments.get_mut(&7).expect("it is there").peers.retain(|mac, _| mac.0[5] % 2 == 0);
    links.program(&set).expect("half the peers");
    let bridge = links.ensure_bridge(&network).expect("its bridge is there");
    assert!(bridge.ends_with("b-x000007"), "{bridge}");
    links.program(&FabricSet::default()).expect("nothing");
    links.program(&FabricSet::default()).expect("again");
    links.remove_bridges_except(&[]).expect("its bridge away");
}

#[test]
fn the_kernel_holds_exactly_the_peers_and_puts_back_what_was_taken() {
    in_host(|| {
        let links = LinuxLinks::new(LinkNames::new("yf").expect("a prefix"));
        let network = tenant_network(AccountId::random(), 9, "10.0.0.0/24");
        let mut set = FabricSet { underlay: Some([127, 0, 0, 1].into()), ..FabricSet::default() };
        let peer =
            |address: IpAddr, machine: u8| Peer { addresses: vec![address], underlay: [127, 0, 0, machine].into() };
        let mut peers: BTreeMap<_, _> = [
            (MacAddr::from_suffix(1), peer([10, 0, 0, 5].into(), 2)),
            (MacAddr::from_suffix(2), peer("fd00::5".parse().expect("an address"), 3)),
        ]
        .into();
        let held = || {
            let entries = run(&["bridge", "fdb", "show", "dev", "yfx000009"]);
            let known =
                |word: &str| entries.lines().filter(|line| line.contains("90:b8:d0") && line.contains(word)).count();
            let neighbours = run(&["ip", "neigh", "show", "dev", "yfb-x000009", "nud", "permanent"]);
            let v6 = run(&["ip", "-6", "neigh", "show", "dev", "yfb-x000009", "nud", "permanent"]);
            let count = |text: &str| text.lines().filter(|line| line.contains("90:b8:d0")).count();
            (known("dst 127.0.0."), known("master"), count(&neighbours).max(count(&v6)), entries, neighbours + &v6)
        };
        set.segments.insert(9, Segment { network: network.clone(), peers: peers.clone() });
        links.program(&set).expect("fabrics");
        let seen = held();
        assert_eq!((seen.0, seen.1), (2, 2), "{seen:?}");
        assert!(seen.4.contains("10.0.0.5") && seen.4.contains("fd00::5"), "{seen:?}");
        // One moved to another machine, and somebody took entries away.
        peers.insert(MacAddr::from_suffix(1), peer([10, 0, 0, 5].into(), 4));
        run(&["bridge", "fdb", "del", "90:b8:d0:00:00:02", "dev", "yfx000009", "self"]);
        run(&["ip", "neigh", "flush", "dev", "yfb-x000009", "nud", "permanent"]);
        set.segments.insert(9, Segment { network, peers });
        links.program(&set).expect("fabrics");
        let seen = held();
        assert_eq!((seen.0, seen.1), (2, 2), "{seen:?}");
        assert!(seen.3.contains("dst 127.0.0.4") && !seen.3.contains("dst 127.0.0.2 "), "{seen:?}");
        assert!(seen.4.contains("10.0.0.5"), "{seen:?}");
        let port = run(&["ip", "-d", "link", "show", "yfx000009"]);
        for wanted in ["id 9", "nolearning", "learning off", "flood off", "neigh_suppress on", "mcast_flood off"] {
            assert!(port.contains(wanted), "{wanted} is missing in {port}");
        }
        // Peers that are gone leave nothing.
        set.segments.get_mut(&9).expect("it is there").peers.clear();
        links.program(&set).expect("fabrics");
        let seen = held();
        assert_eq!((seen.0, seen.1, seen.2), (0, 0, 0), "{seen:?}");
        links.program(&FabricSet::default()).expect("nothing");
        assert!(!run(&["ip", "link"]).contains("yfx000009"));
    });
}

/// Machines that share a segment try VXLAN itself: what closes its port alone is found out, and nothing else is reached that way.
#[test]
fn vxlan_is_tried_apart_from_pings() {
    in_host(|| {
        let [mut one, mut two] = two_machines(["wa", "wb"]);
        let network = tenant_network(AccountId::random(), 41, "10.0.0.0/24");
        one.join(&network);
        two.join(&network);
        let tried = |machine: &Machine, to: Ipv4Addr, through| {
            let packets = vec![Packet { to: to.into(), size: 96 }];
            let probe = Probe { from: machine.underlay.into(), packets, token: 7, through };
            machine.space.enter(|| machine.links.probe(&probe)).ok().map(|passed| passed[0])
        };
        let both = |from: &Machine, to: &Machine| {
            [Through::Wire, Through::Tunnel].map(|through| tried(from, to.underlay, through))
        };
        assert_eq!(both(&one, &two), [Some(true), None], "without a neighbour there is nothing to try it in");
        let (here, there) = (one.zone(&network, 1), two.zone(&network, 2));
        one.meet(41, &there, &two);
        assert_eq!(both(&one, &two), [Some(true), Some(false)], "the other was not told yet");
        two.meet(41, &here, &one);
        assert_eq!(both(&one, &two), [Some(true); 2]);
        assert_eq!(both(&two, &one), [Some(true); 2]);

        two.space.run(&["nft", "add table inet t; add chain inet t i { type filter hook input priority -300; }; add rule inet t i udp dport 4789 drop"]);
        assert_eq!(both(&one, &two), [Some(true), Some(false)], "the request is lost");
        assert_eq!(both(&two, &one), [Some(true), Some(false)], "the answer is");
        two.space.run(&["nft", "delete table inet t"]);
        assert_eq!(both(&one, &two), [Some(true); 2]);

        // A look puts back what somebody took, and the port may become another.
        one.space.run(&["ip", "netns", "exec", "neso-wa-wires", "ip", "link", "delete", "wax000000"]);
        assert_eq!(both(&one, &two)[1], None, "its own address there is gone too");
        (one.set.port, two.set.port) = (4_790, 4_790);
        one.program();
        two.program();
        assert_eq!(both(&one, &two), [Some(true); 2]);

        one.set.segments.get_mut(&41).expect("its segment").peers.clear();
        one.program();
        assert_eq!(both(&one, &two), [Some(true), None], "it goes with the last peer");
        assert!(!std::path::Path::new("/run/netns/neso-wa-wires").exists());
    });
}

#[test]
fn zones_of_a_tenant_meet_across_machines_and_nobody_elses() {
    in_host(|| {
        let [mut one, mut two] = two_machines(["ya", "yb"]);
        let mine = tenant_network(AccountId::random(), 0x10, "10.0.0.0/24");
        let theirs = tenant_network(AccountId::random(), 0x11, "10.0.0.0/24");
        for network in [&mine, &theirs] {
            one.join(network);
            two.join(network);
        }
        // Both tenants use the same addresses.
        let (a, b) = (one.zone(&mine, 1), two.zone(&mine, 2));
        let (x, y) = (one.zone(&theirs, 64 + 1), two.zone(&theirs, 64 + 3));
        assert_eq!(a.address, x.address);
        a.space.enter(|| assert!(!pings(b.address, SILENCE), "nobody told the machines"));
        one.meet(0x10, &b, &two);
        two.meet(0x10, &a, &one);
        one.meet(0x11, &y, &two);
        two.meet(0x11, &x, &one);
        a.space.enter(|| assert!(pings(b.address, PATIENCE), "across machines"));
        x.space.enter(|| assert!(pings(y.address, PATIENCE), "the other tenant likewise"));
        let server = b.space.enter(listen);
        let at = SocketAddr::from((b.address, server.local_addr().expect("bound").port()));
        a.space.enter(|| assert!(connects(at, PATIENCE)));
        // b's address means nothing to the other tenant, and asking for it stays on the machine.
        let before = sent(&one.space, "yax000011");
        x.space.enter(|| assert!(!pings(b.address, SILENCE)));
        assert_eq!(sent(&one.space, "yax000011"), before, "nothing is flooded to other machines");
        // b goes away: forgotten, and silent.
        one.set.segments.get_mut(&0x10).expect("it is there").peers.clear();
        one.program();
        a.space.enter(|| assert!(!connects(at, SILENCE), "a forgotten peer is not reached"));
    });
}

#[test]
fn routers_lead_outside_for_tenants_with_equal_addresses() {
    in_host(|| {
        let mut one = Machine::new("yc", [10, 99, 0, 1]);
        let outside = Namespace::new();
        outside.run(&["ip", "link", "set", "lo", "up"]);
        wire((&one.space, "uplink", "203.0.113.1/24"), (&outside, "world", "203.0.113.9/24"));
        let mut zones = Vec::new();
        for vni in [0x20, 0x21] {
            let mut network = tenant_network(AccountId::random(), vni, "10.0.0.0/24");
            network.fabric.as_mut().expect("a fabric").internet_nat = true;
            one.join(&network);
            zones.push((one.zone(&network, 64 * (vni - 0x20) + 1), network));
        }
        assert_eq!(zones[0].0.address, zones[1].0.address);
        let server = outside.enter(listen);
        let at = SocketAddr::from(([203, 0, 113, 9], server.local_addr().expect("bound").port()));
        let of_host = one.space.enter(listen);
        let port = of_host.local_addr().expect("bound").port();
        for (zone, network) in &zones {
            zone.space.enter(|| {
                assert!(pings(network.gateway.expect("it has one"), PATIENCE), "the gateway answers");
                assert!(connects(at, PATIENCE), "NAT leads outside");
                for address in [[203, 0, 113, 1], [10, 99, 0, 1], [100, 127, 0, 0], [100, 127, 0, 2]] {
                    assert!(!connects(SocketAddr::from((address, port)), SILENCE), "the host's {address:?}");
                }
            });
            let (_, from) = server.accept().expect("it arrived");
            assert_eq!(from.ip(), IpAddr::from([203, 0, 113, 1]), "the outside sees the host's address");
        }
        // Nothing is left when the tenants are gone.
        one.set.segments.clear();
        one.set.routers.clear();
        one.program();
        let left = one.space.run(&["ip", "-o", "link"]);
        assert!(!["ycg", "yct-", "ycx"].iter().any(|name| left.contains(name)), "{left}");
    });
}

#[test]
fn routers_lead_between_a_tenants_networks_on_two_machines() {
    in_host(|| {
        let [mut one, mut two] = two_machines(["yg", "yh"]);
        let owner = AccountId::random();
        let routed = |vni, subnet: &str| {
            let mut network = tenant_network(owner, vni, subnet);
            network.fabric.as_mut().expect("a fabric").routed = true;
            network
        };
        let (first, second) = (routed(0x30, "10.0.0.0/24"), routed(0x31, "10.0.1.0/24"));
        for network in [&first, &second] {
            one.join(network);
            two.join(network);
        }
        let (a, b) = (one.zone(&first, 1), two.zone(&second, 2));
        one.meet(0x31, &b, &two);
        two.meet(0x30, &a, &one);
        let server = b.space.enter(listen);
        let at = SocketAddr::from((b.address, server.local_addr().expect("bound").port()));
        a.space.enter(|| {
            assert!(pings(b.address, PATIENCE), "from one network to the other");
            assert!(connects(at, PATIENCE), "each way through another machine's router");
        });
    });
}

#[test]
fn fabrics_carry_ipv6_across_machines_and_ask_nobody_else() {
    in_host(|| {
        let [mut one, mut two] = two_machines(["yj", "yk"]);
        let mine = tenant_network6(AccountId::random(), 0x40, "10.0.0.0/24", "fd00:1::/64");
        let theirs = tenant_network6(AccountId::random(), 0x41, "10.0.0.0/24", "fd00:1::/64");
        for network in [&mine, &theirs] {
            one.join(network);
            two.join(network);
        }
        let (a, b) = (one.zone(&mine, 1), two.zone(&mine, 2));
        let (x, y) = (one.zone(&theirs, 64 + 1), two.zone(&theirs, 64 + 3));
        assert_eq!(a.six(), x.six(), "both tenants use the same addresses");
        a.space.enter(|| assert!(!pings6(b.six(), SILENCE), "nobody told the machines"));
        one.meet(0x40, &b, &two);
        two.meet(0x40, &a, &one);
        one.meet(0x41, &y, &two);
        two.meet(0x41, &x, &one);
        a.space.enter(|| assert!(pings6(b.six(), PATIENCE), "across machines"));
        x.space.enter(|| assert!(pings6(y.six(), PATIENCE), "the other tenant likewise"));
        let server = b.space.enter(listen6);
        let at = SocketAddr::from((b.six(), server.local_addr().expect("bound").port()));
        a.space.enter(|| assert!(connects(at, PATIENCE)));
        // b's address means nothing to the other tenant, and asking for it stays on the machine.
        let before = sent(&one.space, "yjx000041");
        x.space.enter(|| assert!(!pings6(b.six(), SILENCE)));
        assert_eq!(sent(&one.space, "yjx000041"), before, "nothing is flooded to other machines");
        one.set.segments.get_mut(&0x40).expect("it is there").peers.clear();
        one.program();
        a.space.enter(|| assert!(!connects(at, SILENCE), "a forgotten peer is not reached"));
    });
}

#[test]
fn routers_translate_ipv6_and_lead_between_networks() {
    routes_ipv6(|network| network, ["ym", "yn"]);
}

#[test]
fn routers_translate_ipv6_and_lead_between_networks_without_ipv4() {
    routes_ipv6(without4, ["yw", "yx"]);
}

fn routes_ipv6(shape: fn(NetworkTarget) -> NetworkTarget, prefixes: [&str; 2]) {
    in_host(|| {
        let [mut one, mut two] = two_machines(prefixes);
        let outside = Namespace::new();
        outside.run(&["ip", "link", "set", "lo", "up"]);
        wire((&one.space, "uplink", "203.0.113.1/24"), (&outside, "world", "203.0.113.9/24"));
        for (space, name, address) in
            [(&one.space, "uplink", "2001:db8:1::1/64"), (&outside, "world", "2001:db8:1::9/64")]
        {
            space.run(&["ip", "addr", "add", address, "dev", name, "nodad"]);
        }
        let owner = AccountId::random();
        let routed = |vni, subnet: &str, subnet6: &str| {
            let mut network = shape(tenant_network6(owner, vni, subnet, subnet6));
            let fabric = network.fabric.as_mut().expect("a fabric");
            (fabric.routed, fabric.internet_nat) = (true, true);
            network
        };
        let first = routed(0x50, "10.0.0.0/24", "fd00:1::/64");
        let second = routed(0x51, "10.0.1.0/24", "fd00:2::/64");
        for network in [&first, &second] {
            one.join(network);
            two.join(network);
        }
        let (a, b) = (one.zone(&first, 1), two.zone(&second, 2));
        one.meet(0x51, &b, &two);
        two.meet(0x50, &a, &one);
        let gateway = first.gateway6.expect("it has one");
        let of_b = b.space.enter(listen6);
        let b_at = SocketAddr::from((b.six(), of_b.local_addr().expect("bound").port()));
        let server = outside.enter(listen6);
        let at = SocketAddr::from((
            Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 9),
            server.local_addr().expect("bound").port(),
        ));
        let of_host = one.space.enter(listen6);
        let port = of_host.local_addr().expect("bound").port();
        a.space.enter(|| {
            assert!(pings6(gateway, PATIENCE), "the gateway answers");
            assert!(pings6(b.six(), PATIENCE), "from one network to the other");
            assert!(connects(b_at, PATIENCE), "each way through another machine's router");
            assert!(connects(at, PATIENCE), "NAT leads outside");
            for address in ["2001:db8:1::1", "fd4e:6573:6f74::", "fd4e:6573:6f74::2"] {
                let address: Ipv6Addr = address.parse().expect("an address");
                assert!(!connects(SocketAddr::from((address, port)), SILENCE), "the host's {address}");
            }
        });
        let (_, from) = server.accept().expect("it arrived");
        assert_eq!(from.ip(), IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, 1]), "the outside sees the host's address");
        // Whatever is there is left as it is.
        one.program();
        a.space.enter(|| assert!(connects(at, PATIENCE)));
    });
}

#[test]
fn what_is_on_a_packets_way_is_seen_and_so_is_what_was_taken_from_it() {
    in_host(|| {
        let [mut one, mut two] = two_machines(["yi", "yj"]);
        let network = tenant_network(AccountId::random(), 0x40, "10.0.0.0/24");
        one.join(&network);
        two.join(&network);
        let (a, b) = (one.zone(&network, 1), two.zone(&network, 2));
        let other = Some((network.clone(), b.mac, IpAddr::from(b.address)));
        let look = Look { mac: a.mac, network: network.clone(), other };
        let seen = |one: &Machine| one.space.enter(|| one.links.sight(&look)).expect("a look");
        let nobody = Tunnel { device: true, ..Tunnel::default() };
        assert_eq!(seen(&one), Sight { nic: Some(true), filters: None, router: false, tunnel: Some(nobody.clone()) });
        one.meet(0x40, &b, &two);
        two.meet(0x40, &a, &one);
        let whole = Tunnel { device: true, machine: Some(two.underlay.into()), port: true, neighbour: Some(b.mac) };
        assert_eq!(seen(&one).tunnel, Some(whole.clone()));
        a.space.enter(|| assert!(pings(b.address, PATIENCE), "it is the way packets take"));
        one.space.run(&["bridge", "fdb", "del", &b.mac.to_string(), "dev", "yix000040", "self"]);
        assert_eq!(seen(&one).tunnel, Some(Tunnel { machine: None, ..whole.clone() }));
        one.space.run(&["ip", "neigh", "flush", "dev", "yib-x000040", "nud", "permanent"]);
        assert_eq!(seen(&one).tunnel, Some(Tunnel { machine: None, neighbour: None, ..whole }));
        one.space.run(&["ip", "link", "delete", "yix000040"]);
        one.space.run(&["ip", "link", "set", &format!("yiv{}", a.mac.bare()), "down"]);
        assert_eq!(
            seen(&one),
            Sight { nic: Some(false), filters: None, router: false, tunnel: Some(Tunnel::default()) }
        );
    });
}

/// The kernel's numbers of all tables, which change when one is loaded anew.
fn numbers(machine: &Machine, router: &str) -> [String; 2] {
    let here = machine.space.run(&["nft", "-a", "list", "tables"]);
    let there = machine.space.run(&["nsenter", &format!("--net={router}"), "nft", "-a", "list", "tables"]);
    [here, there]
}

/// All rules of a machine and of a router on it, in an order of their own: tables stand in the order in which they came to be.
fn rules(machine: &Machine, router: &str) -> Vec<String> {
    let here = machine.space.run(&["nft", "list", "ruleset"]);
    let there = machine.space.run(&["nsenter", &format!("--net={router}"), "nft", "list", "ruleset"]);
    // What a counter has counted is no part of it.
    let lines = here.lines().chain(there.lines()).filter(|line| !line.trim_start().starts_with("packets"));
    let mut lines: Vec<String> = lines.map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn rules_are_loaded_when_they_differ_and_left_alone_otherwise() {
    in_host(|| {
        let mut one = Machine::new("yu", [10, 99, 0, 1]);
        one.space.run(&["ip", "address", "add", "10.99.0.1/32", "dev", "lo"]);
        let mut network = tenant_network(AccountId::random(), 0x60, "10.0.0.0/24");
        let fabric = network.fabric.as_mut().expect("a fabric");
        fabric.internet_nat = true;
        let router = format!("/run/netns/neso-yu-{}", fabric.owner);
        one.join(&network);
        let made = numbers(&one, &router);
        assert!(
            made[0].contains("yu_underlay") && made[0].contains("yu_transit") && made[1].contains("router"),
            "{made:?}"
        );
        one.program();
        assert_eq!(numbers(&one, &router), made, "what is as it should be");
        // Somebody else's table makes us look, and no more.
        one.space.run(&["nft", "add", "table", "inet", "another"]);
        one.program();
        one.space.run(&["nft", "delete", "table", "inet", "another"]);
        assert_eq!(numbers(&one, &router), made, "what is beside another's");

        for damage in [
            &["nft", "flush", "chain", "inet", "yu_transit", "forward"][..],
            &["nft", "delete", "table", "inet", "yu_underlay"],
            &["nsenter", &format!("--net={router}"), "nft", "flush", "set", "inet", "router", "translated"],
        ] {
            let whole = rules(&one, &router);
            one.space.run(damage);
            assert_ne!(rules(&one, &router), whole, "`{damage:?}` does something");
            one.program();
            assert_eq!(rules(&one, &router), whole, "after `{damage:?}`");
        }

        // Another port is another device, and other rules.
        one.set.port = 4_790;
        one.program();
        let device = one.space.run(&["ip", "-d", "link", "show", "yux000060"]);
        assert!(device.contains("dstport 4790"), "{device}");
        let rules = one.space.run(&["nft", "list", "table", "inet", "yu_underlay"]);
        assert!(rules.contains("dport 4790") && !rules.contains("4789"), "{rules}");
        one.set.segments.clear();
        one.set.routers.clear();
        one.program();
        assert_eq!(one.space.run(&["nft", "list", "tables"]), "", "nothing is left");
    });
}
