//! What zones reach: each other and the gateway's ping; of the host nothing else, and not each other's frames.

use std::net::SocketAddr;

use super::{
    frames::{BROADCAST, Wire, contains, frame, pings, udp},
    site::{PATIENCE, SILENCE, Site, connects, in_host, listen, network, run},
};

#[test]
fn zones_reach_each_other_and_the_gateway_and_nothing_of_the_host() {
    in_host(|| {
        let (ext, private) = (network("ext", "10.88.0.0/16"), network("priv", "192.168.128.0/22"));
        let mut site = Site::new();
        site.bridge(&ext);
        site.bridge(&private);
        run(&["ip", "link", "add", "uplink", "type", "veth", "peer", "name", "world"]);
        run(&["ip", "addr", "add", "203.0.113.1/24", "dev", "uplink"]);
        run(&["ip", "link", "set", "uplink", "up"]);
        let (a, b) = (site.zone(&ext), site.zone(&ext));
        let far = site.zone(&private);
        let gateway = ext.host_address.expect("it has one");

        let served = b.namespace.enter(listen);
        let port = served.local_addr().expect("bound").port();
        a.namespace.enter(|| {
            assert!(pings(b.address, PATIENCE), "zones of a segment reach each other");
            assert!(connects(SocketAddr::from((b.address, port)), PATIENCE));
            assert!(pings(gateway, PATIENCE), "the gateway answers a ping");
        });
        assert!(connects(SocketAddr::from((b.address, port)), PATIENCE), "the host reaches its zones");

        let of_host = listen();
        let port = of_host.local_addr().expect("bound").port();
        let denied = super::site::counted("inet", "host_denied");
        a.namespace.enter(|| {
            for address in [gateway, "203.0.113.1".parse().expect("an address"), private.host_address.expect("one")] {
                assert!(!connects(SocketAddr::from((address, port)), SILENCE), "port {port} of {address}");
            }
            assert!(!pings("203.0.113.1".parse().expect("an address"), SILENCE), "another address of the host");
            assert!(!pings(private.host_address.expect("one"), SILENCE), "the host's address on another segment");
            assert!(!pings(far.address, SILENCE), "a zone on another segment");
        });
        assert!(super::site::counted("inet", "host_denied") > denied);
    });
}

#[test]
fn a_zone_sees_no_frames_of_others() {
    in_host(|| {
        let ext = network("ext", "10.88.0.0/16");
        let mut site = Site::new();
        site.bridge(&ext);
        let (a, b, c) = (site.zone(&ext), site.zone(&ext), site.zone(&ext));
        let listener = c.namespace.enter(Wire::open);
        let heard_by_b = b.namespace.enter(Wire::open);
        let sender = a.namespace.enter(Wire::open);
        let nobody = model::id::MacAddr([0x90, 0xb8, 0xd0, 0xaa, 0xaa, 0xaa]);
        let send = |to, text: &[u8]| {
            sender.send(&frame(to, a.mac, 0x0800, &udp((a.address, 9), (b.address, 9), text)));
        };
        send(b.mac, b"for b alone");
        send(nobody, b"for nobody here");
        send(BROADCAST, b"for everybody");
        let heard = heard_by_b.hear_until(b"for everybody", PATIENCE);
        assert!(heard.iter().any(|frame| contains(frame, b"for b alone")));
        let heard = listener.hear_until(b"for everybody", PATIENCE);
        for secret in [&b"for b alone"[..], b"for nobody here"] {
            assert!(!heard.iter().any(|frame| contains(frame, secret)), "{}", String::from_utf8_lossy(secret));
        }
    });
}
