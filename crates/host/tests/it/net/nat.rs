//! To the outside and back: masquerade where the operator says so, nothing where not, nothing in uninvited.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
};

use super::{
    frames::pings,
    site::{Namespace, PATIENCE, SILENCE, Site, connects, in_host, listen, network, run},
};

const UPLINK: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// An outside world behind the host's uplink, which has a route back to the zones for the test of what is uninvited.
fn outside() -> Namespace {
    let outside = Namespace::new();
    outside.run(&["ip", "link", "set", "lo", "up"]);
    let path = outside.path();
    let namespace = path.to_str().expect("plain text");
    run(&["ip", "link", "add", "uplink", "type", "veth", "peer", "name", "world"]);
    // `ip` opens files by its own descriptors, so the namespace is named by a pid that is ours.
    let fd = namespace.rsplit('/').next().expect("its number");
    let named = format!("/proc/{}/fd/{fd}", std::process::id());
    run(&["ip", "link", "set", "world", "netns", &named]);
    run(&["ip", "addr", "add", "203.0.113.1/24", "dev", "uplink"]);
    run(&["ip", "link", "set", "uplink", "up"]);
    outside.run(&["ip", "addr", "add", "203.0.113.9/24", "dev", "world"]);
    outside.run(&["ip", "link", "set", "world", "up"]);
    outside.run(&["ip", "addr", "add", "169.254.169.254/32", "dev", "lo"]);
    outside.run(&["ip", "route", "add", "10.88.0.0/16", "via", "203.0.113.1"]);
    outside.run(&["ip", "route", "add", "192.168.128.0/22", "via", "203.0.113.1"]);
    run(&["ip", "route", "add", "169.254.169.254/32", "via", "203.0.113.9"]);
    outside
}

#[test]
fn a_segment_with_nat_reaches_the_outside_as_the_host_and_no_other_does() {
    in_host(|| {
        let mut ext = network("ext", "10.88.0.0/16");
        ext.nat = true;
        let private = network("priv", "192.168.128.0/22");
        let world = outside();
        let mut site = Site::new();
        site.bridge(&ext);
        site.bridge(&private);
        let (zone, hidden) = (site.zone(&ext), site.zone(&private));

        let server = world.enter(listen);
        let at = SocketAddr::from((OUTSIDE, server.local_addr().expect("bound").port()));
        zone.namespace.enter(|| {
            let mut talk = TcpStream::connect_timeout(&at, PATIENCE).expect("NAT leads outside");
            let (mut heard, from) = server.accept().expect("it arrived");
            assert_eq!(from.ip(), IpAddr::V4(UPLINK), "the outside sees the host's address");
            talk.write_all(b"hello").expect("there");
            let mut got = [0; 5];
            heard.read_exact(&mut got).expect("it arrived");
            heard.write_all(&got).expect("and back");
            talk.read_exact(&mut got).expect("it came back");
            assert_eq!(&got, b"hello");
            assert!(pings(OUTSIDE, PATIENCE));
            assert!(
                !pings(Ipv4Addr::new(169, 254, 169, 254), SILENCE),
                "the host's own cloud is none of a zone's business"
            );
        });
        hidden.namespace.enter(|| {
            assert!(!connects(at, SILENCE), "a segment without NAT reaches nothing outside");
            assert!(!pings(OUTSIDE, SILENCE));
        });

        let inside = [(zone.address, zone.namespace.enter(listen)), (hidden.address, hidden.namespace.enter(listen))];
        world.enter(|| {
            for (address, server) in &inside {
                let to = SocketAddr::from((*address, server.local_addr().expect("bound").port()));
                assert!(!connects(to, SILENCE), "{to} was reached uninvited");
            }
            assert!(pings(UPLINK, PATIENCE), "the host's own business is its own");
        });
    });
}
