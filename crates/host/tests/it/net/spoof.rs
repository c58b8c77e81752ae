//! A zone that lies about who it is: nothing of it reaches another zone, and it is counted.

use host::filter::Filters;
use model::id::MacAddr;

use super::{
    frames::{BROADCAST, Wire, arp, contains, frame, udp},
    site::{PATIENCE, Site, Zone, counted, in_host, network},
};

/// Lies, each with a text to know it by; ARP is known by the address it claims.
fn lies(a: &Zone, b: &Zone) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let other = MacAddr([0x90, 0xb8, 0xd0, 9, 9, 9]);
    let stolen = "10.88.200.1".parse().expect("an address");
    let ip = |from, text: &'static [u8]| udp((from, 5000), (b.address, 5000), text);
    let mut tagged = vec![0, 7, 8, 0];
    tagged.extend_from_slice(&ip(a.address, b"lie with a tag"));
    let six = [&[0x60, 0, 0, 0, 0, 9, 59, 64][..], &[0; 32], b"lie in v6"].concat();
    let dhcp = udp((a.address, 67), (b.address, 68), b"lie of a server");
    vec![
        ("another MAC", frame(b.mac, other, 0x0800, &ip(a.address, b"lie by mac")), b"lie by mac".to_vec()),
        ("another address", frame(b.mac, a.mac, 0x0800, &ip(stolen, b"lie by ip")), b"lie by ip".to_vec()),
        ("b's MAC", frame(BROADCAST, b.mac, 0x0800, &ip(a.address, b"lie as b")), b"lie as b".to_vec()),
        (
            "ARP for another's address",
            frame(b.mac, a.mac, 0x0806, &arp(a.mac, stolen, b.mac, b.address)),
            vec![10, 88, 200, 1],
        ),
        (
            "ARP from another's MAC",
            frame(b.mac, a.mac, 0x0806, &arp(other, a.address, b.mac, b.address)),
            other.0.to_vec(),
        ),
        ("a tag", frame(b.mac, a.mac, 0x8100, &tagged), b"lie with a tag".to_vec()),
        ("IPv6", frame(b.mac, a.mac, 0x86dd, &six), b"lie in v6".to_vec()),
        ("a DHCP server's answer", frame(b.mac, a.mac, 0x0800, &dhcp), b"lie of a server".to_vec()),
        ("no protocol at all", frame(b.mac, a.mac, 0x88b5, b"lie of another kind"), b"lie of another kind".to_vec()),
    ]
}

/// Sends every lie, then a truth, and returns the names of the lies that were heard before the truth.
fn heard(a: &Zone, b: &Zone) -> Vec<&'static str> {
    let (ear, mouth) = (b.namespace.enter(Wire::open), a.namespace.enter(Wire::open));
    for (_, lie, _) in lies(a, b) {
        mouth.send(&lie);
    }
    mouth.send(&frame(b.mac, a.mac, 0x0800, &udp((a.address, 5000), (b.address, 5000), b"the truth")));
    let frames = ear.hear_until(b"the truth", PATIENCE);
    let got = |mark: &[u8]| frames.iter().any(|frame| contains(frame, mark));
    lies(a, b).into_iter().filter(|(_, _, mark)| got(mark)).map(|(name, _, _)| name).collect()
}

#[test]
fn lies_are_dropped_and_counted() {
    in_host(|| {
        let ext = network("ext", "10.88.0.0/16");
        let mut site = Site::new();
        site.bridge(&ext);
        let (a, b) = (site.zone(&ext), site.zone(&ext));
        let before = [counted("bridge", "spoofed"), counted("bridge", "other"), counted("bridge", "dhcp_server")];
        assert_eq!(heard(&a, &b), Vec::<&str>::new());
        assert!(counted("bridge", "spoofed") >= before[0] + 6);
        assert!(counted("bridge", "other") >= before[1] + 2);
        assert_eq!(counted("bridge", "dhcp_server"), before[2] + 1);

        // Without filters the same lies arrive: it is the filters that stop them.
        site.filters.clear().expect("no filters");
        assert_eq!(heard(&a, &b).len(), lies(&a, &b).len());
        site.filters.apply(&site.set).expect("filters");
        assert_eq!(heard(&a, &b), Vec::<&str>::new());
    });
}

#[test]
fn a_nic_without_filters_may_send_nothing() {
    in_host(|| {
        let ext = network("ext", "10.88.0.0/16");
        let mut site = Site::new();
        site.bridge(&ext);
        let (a, b) = (site.zone(&ext), site.zone(&ext));
        let unknown = site.unfiltered_zone(&ext);
        let (ear, mouth) = (b.namespace.enter(Wire::open), unknown.namespace.enter(Wire::open));
        let honest = udp((unknown.address, 5000), (b.address, 5000), b"from nobody known");
        mouth.send(&frame(b.mac, unknown.mac, 0x0800, &honest));
        let known = a.namespace.enter(Wire::open);
        known.send(&frame(b.mac, a.mac, 0x0800, &udp((a.address, 5000), (b.address, 5000), b"the truth")));
        let frames = ear.hear_until(b"the truth", PATIENCE);
        assert!(!frames.iter().any(|frame| contains(frame, b"from nobody known")));
    });
}
