//! Wires between machines are tried with packets that nobody may cut: what arrives whole passes, by either protocol.
//!
//! ```text
//!   one 10.98.1.1 ──── 10.98.1.2 between 10.98.2.1 ──── 10.98.2.2 two
//!        fd98:1::1       fd98:1::2       fd98:2::1        fd98:2::2          MTU 1500, and 1400 from the middle on
//! ```

use std::net::IpAddr;

use host::{
    fake::{Faults, link::FakeLinks, link::LinkMachine},
    link::{LinkNames, Links, Packet, Probe, Through},
    linux::link::LinuxLinks,
};

use super::{
    fabric::wire,
    frames::pings6,
    site::{Namespace, PATIENCE, in_host},
};

/// Which packets of these sizes pass.
fn tried(links: &dyn Links, from: &str, to: &str, sizes: &[u32]) -> Vec<bool> {
    let to: IpAddr = to.parse().expect("an address");
    let packets = sizes.iter().map(|size| Packet { to, size: *size }).collect();
    let probe = Probe {
        from: from.parse().expect("an address"),
        packets,
        token: 0x1234_5678_9abc_def0,
        through: Through::Wire,
    };
    links.probe(&probe).expect("a probe")
}

#[test]
fn a_fake_wire_is_as_wide_as_it_is_made() {
    let machine = LinkMachine::default();
    let links = FakeLinks::new(machine.clone(), Faults::default());
    let sizes = [96, 1_400, 1_401];
    assert_eq!(tried(&links, "10.98.1.1", "10.98.2.2", &sizes), [true; 3]);
    machine.narrow_wire([10, 98, 2, 2].into(), 1_400);
    assert_eq!(tried(&links, "10.98.1.1", "10.98.2.2", &sizes), [true, true, false]);
}

#[test]
fn what_arrives_whole_passes() {
    in_host(|| {
        let [one, between, two] = [(); 3].map(|()| Namespace::new());
        wire((&one, "prone", "10.98.1.1/24"), (&between, "prmid1", "10.98.1.2/24"));
        wire((&between, "prmid2", "10.98.2.1/24"), (&two, "prtwo", "10.98.2.2/24"));
        // Addresses are given and nobody else has them, so nobody need be asked.
        let six = |space: &Namespace, name: &str, address: &str| {
            space.run(&["ip", "-6", "addr", "add", address, "dev", name, "nodad"]);
        };
        six(&one, "prone", "fd98:1::1/64");
        six(&between, "prmid1", "fd98:1::2/64");
        six(&between, "prmid2", "fd98:2::1/64");
        six(&two, "prtwo", "fd98:2::2/64");
        one.run(&["ip", "route", "add", "10.98.2.0/24", "via", "10.98.1.2"]);
        one.run(&["ip", "-6", "route", "add", "fd98:2::/64", "via", "fd98:1::2"]);
        two.run(&["ip", "route", "add", "10.98.1.0/24", "via", "10.98.2.1"]);
        two.run(&["ip", "-6", "route", "add", "fd98:1::/64", "via", "fd98:2::1"]);
        between.run(&[
            "sh",
            "-c",
            "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding",
        ]);
        // IPv6 takes a moment on an interface that has just come up.
        let far = "fd98:2::2".parse().expect("an address");
        one.enter(|| assert!(pings6(far, PATIENCE), "the way is there"));
        let links = LinuxLinks::new(LinkNames::new("pr").expect("a prefix"));
        let ends = [("10.98.1.1", "10.98.2.2"), ("fd98:1::1", "fd98:2::2")];
        // An interface receives four bytes more than its MTU, for a VLAN's tag.
        let sizes = [96, 1_280, 1_400, 1_405, 1_500, 1_501];
        let look = |expected: [bool; 6]| {
            for (from, to) in ends {
                // Twice: what a router answered the first time must not be believed the second time either.
                for _ in 0..2 {
                    assert_eq!(one.enter(|| tried(&links, from, to, &sizes)), expected, "to {to}");
                }
            }
        };
        // Larger than the machine's own interface takes is not even sent.
        look([true, true, true, true, true, false]);
        between.run(&["ip", "link", "set", "prmid2", "mtu", "1400"]);
        two.run(&["ip", "link", "set", "prtwo", "mtu", "1400"]);
        look([true, true, true, false, false, false]);
        // The wider end alone finds out what the narrow one cannot receive.
        between.run(&["ip", "link", "set", "prmid2", "mtu", "1500"]);
        look([true, true, true, false, false, false]);
        two.run(&["ip", "link", "set", "prtwo", "down"]);
        look([false; 6]);
        let nowhere = one.enter(|| tried(&links, "10.98.1.1", "10.98.7.7", &[96]));
        assert_eq!(nowhere, [false], "no route is no answer");
        let strange = Probe { from: [10, 98, 77, 1].into(), packets: Vec::new(), token: 1, through: Through::Wire };
        assert!(one.enter(|| links.probe(&strange)).is_err(), "that is not its own address");
    });
}
