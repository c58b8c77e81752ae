//! IPv6 of zones: given and exact, reachable among neighbours and at the gateway, and only in the zone's own name.

use std::net::{Ipv6Addr, SocketAddr};

use host::{
    filter::{Filters, NicFilter},
    link::Links,
};
use model::{
    id::{InstanceId, MacAddr},
    target::{NetworkTarget, Outside6},
};

use super::{
    frames::{Wire, contains, discovery, frame, icmp6, pings6, udp6},
    site::{
        Namespace, PATIENCE, SILENCE, Site, Zone, connects, counted, in_host, listen6, network, network6, nic, nic_on,
        run, without4,
    },
};

const SUBNET: &str = "fd00:88::/64";
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn ip(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

/// IPv6 addresses of an interface with their scopes, and default routes.
fn shown(zone: &Namespace) -> String {
    let addresses = zone.run(&["ip", "-6", "-o", "addr", "show", "dev", "eth0"]);
    let mut lines: Vec<String> = addresses
        .lines()
        .map(|line| {
            line.split_whitespace().skip(3).take_while(|word| !word.starts_with('\\')).collect::<Vec<_>>().join(" ")
        })
        .collect();
    let routes = zone.run(&["ip", "-6", "route", "show", "default"]);
    lines.extend(routes.lines().map(|line| line.split(" proto").next().unwrap_or_default().to_owned()));
    lines.sort_unstable();
    lines.join("\n")
}

#[test]
fn addresses_are_given_and_never_found_out() {
    in_host(|| {
        let ext = network6("ext", "10.88.0.0/16", SUBNET);
        let mut site = Site::new();
        site.bridge(&ext);
        let mut first = nic(1, "eth0", "10.88.0.5/16");
        first.addresses6 = vec!["fd00:88::5/64".parse().expect("a net"), "fd00:88::6/64".parse().expect("a net")];
        first.gateway6 = Some(ip("fd00:88::1"));
        let (zone, instance) = (Namespace::new(), InstanceId::random());
        let attach = |nic: &model::target::NicTarget| {
            let setup = host::link::NetworkSetup { nics: vec![(nic.clone(), ext.clone())], routes: Default::default() };
            site.links.attach(instance, &zone.path(), &setup).expect("an attachment");
        };
        let expected = "default via fd00:88::1 dev eth0\n\
                        fd00:88::5/64 scope global nodad\n\
                        fd00:88::6/64 scope global nodad\n\
                        fe80::92b8:d0ff:fe00:1/64 scope link nodad";
        for _ in 0..2 {
            attach(&first);
            assert_eq!(shown(&zone), expected, "good at once, with no question to anybody");
        }
        // What somebody did is undone.
        for command in
            ["ip addr add fd00:99::1/64 dev eth0", "ip addr del fd00:88::6/64 dev eth0", "ip -6 route del default"]
        {
            zone.run(&command.split(' ').collect::<Vec<_>>());
        }
        attach(&first);
        assert_eq!(shown(&zone), expected);
        for (name, value) in [("accept_ra", "0"), ("accept_redirects", "0")] {
            let held = zone.run(&["cat", &format!("/proc/sys/net/ipv6/conf/eth0/{name}")]);
            assert_eq!(held.trim(), value, "{name}");
        }
        // One address less, no gateway any more.
        first.addresses6.pop();
        first.gateway6 = None;
        attach(&first);
        assert_eq!(shown(&zone), "fd00:88::5/64 scope global nodad\nfe80::92b8:d0ff:fe00:1/64 scope link nodad");
        let bridge = run(&["ip", "-6", "-o", "addr", "show", "dev", "nb-ext"]);
        assert!(bridge.contains("fd00:88::1/64") && bridge.lines().count() == 2, "and a link-local one: {bridge}");
        assert!(run(&["ip", "-6", "-o", "addr", "show", "dev", "nv90b8d0000001"]).is_empty(), "host ends have none");

        // The network loses its IPv6 address on the host.
        site.links.ensure_bridge(&network("ext", "10.88.0.0/16")).expect("a bridge");
        assert!(run(&["ip", "-6", "-o", "addr", "show", "dev", "nb-ext"]).is_empty());
    });
}

/// What a test's networks are like: with IPv4 beside, or alone.
type Shape = fn(NetworkTarget) -> NetworkTarget;

#[test]
fn zones_reach_each_other_and_the_gateway_and_nothing_of_the_host_in_ipv6() {
    reaches(|network| network);
}

#[test]
fn zones_without_ipv4_do_too() {
    reaches(without4);
}

fn reaches(shape: Shape) {
    in_host(|| {
        let ext = shape(network6("ext", "10.88.0.0/16", SUBNET));
        let mut private = shape(network6("priv", "192.168.128.0/22", "fd00:99::/64"));
        private.host_address6 = None;
        let mut site = Site::new();
        site.bridge(&ext);
        site.bridge(&private);
        run(&["ip", "link", "add", "uplink", "type", "veth", "peer", "name", "world"]);
        run(&["ip", "addr", "add", "2001:db8:1::1/64", "dev", "uplink", "nodad"]);
        run(&["ip", "link", "set", "uplink", "up"]);
        let (a, b) = (site.zone(&ext), site.zone(&ext));
        let (far, near_far) = (site.zone(&private), site.zone(&private));
        let served = b.namespace.enter(listen6);
        let at = SocketAddr::from((b.six(), served.local_addr().expect("bound").port()));
        let gateway = ext.host_address6.expect("it has one");
        a.namespace.enter(|| {
            assert!(pings6(b.six(), PATIENCE), "zones of a segment reach each other");
            assert!(connects(at, PATIENCE));
            assert!(pings6(gateway, PATIENCE), "the gateway answers a ping");
        });
        near_far.namespace.enter(|| assert!(pings6(far.six(), PATIENCE), "without any address of the host too"));
        assert!(connects(at, PATIENCE), "the host reaches its zones");

        let of_host = listen6();
        let port = of_host.local_addr().expect("bound").port();
        let denied = counted("inet", "host_denied");
        a.namespace.enter(|| {
            for address in [gateway, ip("2001:db8:1::1")] {
                assert!(!connects(SocketAddr::from((address, port)), SILENCE), "port {port} of {address}");
            }
            assert!(!pings6(ip("2001:db8:1::1"), SILENCE), "another address of the host");
            assert!(!pings6(far.six(), SILENCE), "a zone on another segment");
        });
        assert!(counted("inet", "host_denied") > denied);
    });
}

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
const OVERRIDE: u8 = 0x20;

/// What it is, the frame, and bytes to know it by.
type Lie = (&'static str, Vec<u8>, Vec<u8>);

/// Lies of `a` to `b`.
fn lies(a: &Zone, b: &Zone) -> Vec<Lie> {
    let mut all = lies_in_packets(a, b);
    all.extend(lies_in_discovery(a, b));
    all
}

fn lies_in_packets(a: &Zone, b: &Zone) -> Vec<Lie> {
    let other = MacAddr([0x90, 0xb8, 0xd0, 9, 9, 9]);
    let (own, to) = (a.six(), b.six());
    let stolen = ip("fd00:88::dead");
    let packet = |payload: Vec<u8>| frame(b.mac, a.mac, 0x86dd, &payload);
    let mut truncated = icmp6(0, own, to, b"lie by a header that ends early");
    truncated[6] = 60;
    truncated[40..42].copy_from_slice(&[58, 200]);
    vec![
        ("another address", packet(udp6((stolen, 5), (to, 5), b"lie by ip")), b"lie by ip".to_vec()),
        ("another MAC", frame(b.mac, other, 0x86dd, &udp6((own, 5), (to, 5), b"lie by mac")), b"lie by mac".to_vec()),
        (
            "a link-local address beyond neighbour discovery",
            packet(udp6((a.mac.link_local(), 5), (to, 5), b"lie by link")),
            b"lie by link".to_vec(),
        ),
        (
            "a DHCP server's answer",
            packet(udp6((own, 547), (to, 546), b"lie of a server")),
            b"lie of a server".to_vec(),
        ),
        (
            "a router's advertisement",
            packet(icmp6(134, own, ALL_NODES, b"lie of a router")),
            b"lie of a router".to_vec(),
        ),
        ("a redirect", packet(icmp6(137, own, to, b"lie of a redirect")), b"lie of a redirect".to_vec()),
        ("a header that ends early", packet(truncated), b"ends early".to_vec()),
    ]
}

fn lies_in_discovery(a: &Zone, b: &Zone) -> Vec<Lie> {
    let other = MacAddr([0x90, 0xb8, 0xd0, 9, 9, 9]);
    let (own, to) = (a.six(), b.six());
    let packet = |payload: Vec<u8>| frame(b.mac, a.mac, 0x86dd, &payload);
    let mark = |last: u16| ip(&format!("fd00:88:0:0:7777::{last:x}"));
    let says = |flags, target, options: &[(u8, MacAddr)]| discovery(flags, target, options);
    // Marks stand in a target where that is the lie, and else behind what the packet is about, as a third option would.
    let marked = |body: Vec<u8>, text: &[u8; 6]| [&body[..], &[200, 1], text].concat();
    vec![
        (
            "advertising another's address",
            packet(icmp6(ADVERTISEMENT, own, to, &says(OVERRIDE, mark(1), &[(TARGET_MAC, a.mac)]))),
            mark(1).octets().to_vec(),
        ),
        (
            "advertising another's address in its name",
            packet(icmp6(ADVERTISEMENT, mark(2), to, &says(OVERRIDE, mark(2), &[(TARGET_MAC, a.mac)]))),
            mark(2).octets().to_vec(),
        ),
        (
            "advertising another's address without an option",
            packet(icmp6(ADVERTISEMENT, own, to, &says(OVERRIDE, mark(3), &[]))),
            mark(3).octets().to_vec(),
        ),
        (
            "advertising another's Ethernet address",
            packet(icmp6(ADVERTISEMENT, own, to, &says(OVERRIDE, own, &[(TARGET_MAC, other)]))),
            [&[TARGET_MAC, 1][..], &other.0].concat(),
        ),
        (
            "a second option",
            packet(icmp6(ADVERTISEMENT, own, to, &marked(says(OVERRIDE, own, &[(TARGET_MAC, a.mac)]), b"second"))),
            b"second".to_vec(),
        ),
        (
            "asking with another's Ethernet address",
            packet(icmp6(SOLICITATION, own, to, &says(0, to, &[(SOURCE_MAC, other)]))),
            [&[SOURCE_MAC, 1][..], &other.0].concat(),
        ),
        (
            "asking in another's name",
            packet(icmp6(SOLICITATION, mark(4), to, &says(0, to, &[(SOURCE_MAC, a.mac)]))),
            mark(4).octets().to_vec(),
        ),
        (
            "asking whether another's address is free",
            packet(icmp6(SOLICITATION, Ipv6Addr::UNSPECIFIED, to, &says(0, mark(5), &[]))),
            mark(5).octets().to_vec(),
        ),
    ]
}

/// Sends every lie, then a truth, and returns the names of the lies that were heard before the truth.
fn heard(a: &Zone, b: &Zone) -> Vec<&'static str> {
    let (ear, mouth) = (b.namespace.enter(Wire::open), a.namespace.enter(Wire::open));
    for (_, lie, _) in lies(a, b) {
        mouth.send(&lie);
    }
    mouth.send(&frame(b.mac, a.mac, 0x86dd, &udp6((a.six(), 5), (b.six(), 5), b"the truth")));
    let frames = ear.hear_until(b"the truth", PATIENCE);
    let got = |mark: &[u8]| frames.iter().any(|frame| contains(frame, mark));
    lies(a, b).into_iter().filter(|(_, _, mark)| got(mark)).map(|(name, _, _)| name).collect()
}

#[test]
fn lies_in_ipv6_are_dropped_and_counted() {
    lies_are_dropped(|network| network);
}

#[test]
fn lies_on_a_network_without_ipv4_are_dropped_and_counted() {
    lies_are_dropped(without4);
}

fn lies_are_dropped(shape: Shape) {
    in_host(|| {
        let ext = shape(network6("ext", "10.88.0.0/16", SUBNET));
        let mut site = Site::new();
        site.bridge(&ext);
        let (a, b) = (site.zone(&ext), site.zone(&ext));
        let before = ["spoofed", "dhcp_server", "router"].map(|name| counted("bridge", name));
        assert_eq!(heard(&a, &b), Vec::<&str>::new());
        let after = ["spoofed", "dhcp_server", "router"].map(|name| counted("bridge", name));
        assert!(after[0] >= before[0] + 11, "{before:?} {after:?}");
        assert_eq!((after[1], after[2]), (before[1] + 1, before[2] + 2));
        b.namespace.enter(|| assert!(pings6(a.six(), PATIENCE), "honest questions and answers pass"));

        // Without filters the same lies arrive: it is the filters that stop them.
        site.filters.clear().expect("no filters");
        assert_eq!(heard(&a, &b).len(), lies(&a, &b).len());
        site.filters.apply(&site.set).expect("filters");
        assert_eq!(heard(&a, &b), Vec::<&str>::new());
    });
}

#[test]
fn a_nic_speaks_as_every_address_of_its_list_and_as_no_other() {
    in_host(|| {
        let ext = without4(network6("ext", "10.88.0.0/16", SUBNET));
        let mut site = Site::new();
        site.bridge(&ext);
        let b = site.zone(&ext);
        let (mut listed, _) = nic_on(&ext, 77, 77);
        let own = ["fd00:88::77", "fd00:88::1:77", "fd00:88::2:77"];
        listed.addresses6 = own.iter().map(|ip| format!("{ip}/64").parse().expect("a net")).collect();
        let (namespace, mac) = (Namespace::new(), listed.mac);
        let setup = host::link::NetworkSetup { nics: vec![(listed, ext.clone())], routes: Default::default() };
        site.links.attach(InstanceId::random(), &namespace.path(), &setup).expect("a NIC");
        let addresses = own.iter().map(|address| ip(address).into()).collect();
        site.set.nics.insert(mac, NicFilter { instance: InstanceId::random(), addresses });
        site.filters.apply(&site.set).expect("filters");

        b.namespace.enter(|| {
            for address in own {
                assert!(pings6(ip(address), PATIENCE), "{address} answers");
            }
        });
        let (ear, mouth) = (b.namespace.enter(Wire::open), namespace.enter(Wire::open));
        let says = |from: &str, text: &[u8]| {
            mouth.send(&frame(b.mac, mac, 0x86dd, &udp6((ip(from), 5), (b.six(), 5), text)));
        };
        says("fd00:88::3:77", b"a lie by ip");
        says("fd00:88::77", b"in the first name");
        says("fd00:88::1:77", b"in the second name");
        says("fd00:88::2:77", b"in the last name");
        let frames = ear.hear_until(b"in the last name", PATIENCE);
        let got = |mark: &[u8]| frames.iter().any(|frame| contains(frame, mark));
        assert!(got(b"in the first name") && got(b"in the second name") && got(b"in the last name"));
        assert!(!got(b"a lie by ip"));
    });
}

/// An outside world behind the host's uplink, with a route back to the zones.
fn outside() -> Namespace {
    let outside = Namespace::new();
    outside.run(&["ip", "link", "set", "lo", "up"]);
    run(&["ip", "link", "add", "uplink", "type", "veth", "peer", "name", "world"]);
    let fd = outside.path().to_str().expect("plain text").rsplit('/').next().expect("its number").to_owned();
    run(&["ip", "link", "set", "world", "netns", &format!("/proc/{}/fd/{fd}", std::process::id())]);
    run(&["ip", "addr", "add", "2001:db8:1::1/64", "dev", "uplink", "nodad"]);
    run(&["ip", "link", "set", "uplink", "up"]);
    outside.run(&["ip", "addr", "add", "2001:db8:1::9/64", "dev", "world", "nodad"]);
    outside.run(&["ip", "link", "set", "world", "up"]);
    outside.run(&["ip", "addr", "add", "fd00:ec2::254/128", "dev", "lo"]);
    for subnet in [SUBNET, "2001:db8:88::/64", "fd00:99::/64"] {
        outside.run(&["ip", "-6", "route", "add", subnet, "via", "2001:db8:1::1"]);
    }
    run(&["ip", "-6", "route", "add", "default", "via", "2001:db8:1::9"]);
    outside
}

#[test]
fn ipv6_leads_outside_as_the_network_says() {
    leads_outside(|network| network);
}

#[test]
fn ipv6_leads_outside_without_ipv4_too() {
    leads_outside(without4);
}

fn leads_outside(shape: Shape) {
    in_host(|| {
        let world = outside();
        assert_eq!(run(&["cat", "/proc/sys/net/ipv6/conf/uplink/accept_ra"]).trim(), "1");
        let mut site = Site::new();
        let mut hidden = shape(network6("hid", "10.88.0.0/16", SUBNET));
        hidden.outside6 = Outside6::Masqueraded;
        let mut routed = shape(network6("routed", "10.89.0.0/16", "2001:db8:88::/64"));
        routed.outside6 = Outside6::Routed;
        let closed = shape(network6("closed", "10.90.0.0/16", "fd00:99::/64"));
        let zones = [&hidden, &routed, &closed].map(|network| {
            site.bridge(network);
            site.zone(network)
        });
        assert_eq!(
            run(&["cat", "/proc/sys/net/ipv6/conf/uplink/accept_ra"]).trim(),
            "2",
            "a host that forwards is configured by its own router as before"
        );
        assert_eq!(run(&["cat", "/proc/sys/net/ipv6/conf/nb-hid/accept_ra"]).trim(), "0", "and by no zone");
        let server = world.enter(listen6);
        let at = SocketAddr::from((ip("2001:db8:1::9"), server.local_addr().expect("bound").port()));
        let [masqueraded, open, shut] = &zones;
        for (zone, seen_as) in [(masqueraded, ip("2001:db8:1::1")), (open, open.six())] {
            assert!(zone.namespace.enter(|| connects(at, PATIENCE)), "{seen_as}");
            let (_, from) = server.accept().expect("it arrived");
            assert_eq!(from.ip(), seen_as);
            zone.namespace.enter(|| {
                assert!(!pings6(ip("fd00:ec2::254"), SILENCE), "the host's own cloud is none of a zone's business");
            });
        }
        shut.namespace.enter(|| assert!(!connects(at, SILENCE), "nothing leaves a network that leads nowhere"));

        let servers = zones.each_ref().map(|zone| {
            let server = zone.namespace.enter(listen6);
            (SocketAddr::from((zone.six(), server.local_addr().expect("bound").port())), server)
        });
        world.enter(|| {
            assert!(connects(servers[1].0, PATIENCE), "what has an address that is good everywhere is reached");
            for (at, _) in [&servers[0], &servers[2]] {
                assert!(!connects(*at, SILENCE), "{at} was reached uninvited");
            }
        });
        // Somebody turns forwarding off.
        run(&["sysctl", "-qw", "net.ipv6.conf.all.forwarding=0"]);
        assert!(!site.filters.intact().expect("a look"));
        site.filters.apply(&site.set).expect("filters");
        assert!(masqueraded.namespace.enter(|| connects(at, PATIENCE)));
    });
}
