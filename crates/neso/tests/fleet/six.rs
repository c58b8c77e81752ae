//! The same two tenants in IPv6: equal addresses, each meets its own across machines, nobody the other's, nobody speaks in another's name,
//! a rule says who is let in, and the way out leads over the instance's own machine.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use serde_json::json;

use crate::{
    fabric::{FIRST, Site, TENANTS, ask, id},
    fleet::Fleet,
    guest::{Door, Guest, Outside},
    lies,
    space::Space,
    wire::{Wire, contains},
};

/// Subnet of both tenants.
pub(crate) const SUBNET: &str = "fd00:50::/64";
/// Gateway of both.
pub(crate) const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, 1);
/// An address neither has.
const NOBODY: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, 0x99);
/// The world outside, which no machine has a network with.
const WORLD: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 7);
/// A second door the firewall is about.
const SECOND: u16 = 7_008;
/// Bytes sent across in one go, many packets of them.
const TRANSFER: usize = 4 << 20;

/// An address between machines.
const fn underlay(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, last)
}

/// Instances of one tenant meet across machines: pings, and a transfer that arrives whole.
pub(crate) fn reach(site: &Site, fleet: &Fleet) {
    let Site { a1, a2, a3, b1, b2, .. } = site;
    assert_eq!((a1.nic.six(), a2.nic.six()), (b1.nic.six(), b2.nic.six()), "both tenants have the same addresses");
    for (one, other) in [(a1, a2), (a2, a1), (a1, a3), (a3, a2), (b1, b2), (b2, b1)] {
        let what = format!("{} to reach {} in IPv6", one.name, other.name);
        fleet.wait(&what, || one.pings(fleet, other.nic.six()));
    }
    assert!(a1.pings(fleet, GATEWAY) && b2.pings(fleet, GATEWAY), "the gateway is on every machine");

    let listener = a2.enter(fleet, || TcpListener::bind((a2.nic.six(), 0)).expect("a port"));
    let at = listener.local_addr().expect("bound");
    let sent: Vec<u8> = (0..TRANSFER).map(|at| u8::try_from(at * at % 251).expect("small")).collect();
    let received = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = a1.enter(fleet, || TcpStream::connect(at).expect("a connection"));
            stream.write_all(&sent).expect("all is sent");
        });
        let (mut stream, from) = listener.accept().expect("a visitor");
        assert_eq!(from.ip(), IpAddr::V6(a1.nic.six()));
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("all is received");
        received
    });
    assert!(received == sent, "{} bytes arrived of {}, or others", received.len(), sent.len());
}

/// Nobody reaches the other tenant, though the addresses are the same.
pub(crate) fn strangers(site: &Site, fleet: &Fleet) {
    let Site { a1, a2, a3, b1, b2, .. } = site;
    let mark = b"nobody but ours";
    let _doors: Vec<Door> = [a2, b2].map(|guest| guest.serve(fleet, FIRST)).into();
    let ear = b2.enter(fleet, || Wire::open("net0"));
    assert_eq!(a1.asks(fleet, a2.door6(FIRST)).as_deref(), Some("a2"));
    assert_eq!(b1.asks(fleet, b2.door6(FIRST)).as_deref(), Some("b2"), "the same address, another machine's answer");
    assert!(a3.pings(fleet, a2.nic.six()));
    assert!(!b1.pings(fleet, a3.nic.six()), "there is no a3 for the other tenant");
    assert!(!a1.pings(fleet, NOBODY));
    b1.enter(fleet, || Wire::open("net0").send(&lies::truth6(b1.nic, b2.nic.mac, mark)));
    let heard = ear.hear_until(mark);
    for guest in [a1, a2, a3] {
        assert!(!heard.iter().any(|frame| contains(frame, &guest.nic.mac)), "b2 heard {}", guest.name);
    }
}

/// An instance that lies is heard by nobody, here or on another machine.
pub(crate) fn lies(site: &Site, fleet: &Fleet) {
    let Site { a1, a2, vnis, .. } = site;
    let machine = fleet.machine(a1.at);
    let bridge = format!("{}b-x{:06x}", machine.settings().kernel.link_prefix, vnis[0]);
    let here = machine.space.enter(|| Wire::open(&bridge));
    let there = a2.enter(fleet, || Wire::open("net0"));
    let lies = lies::all6(a1.nic, a2.nic, GATEWAY);
    a1.enter(fleet, || {
        let wire = Wire::open("net0");
        lies.iter().for_each(|lie| wire.send(&lie.frame));
        for to in [a2.nic.mac, lies::BROADCAST] {
            wire.send(&lies::truth6(a1.nic, to, b"the truth"));
        }
    });
    for (who, heard) in [("a2", there.hear_until(b"the truth")), ("the machine", here.hear_until(b"the truth"))] {
        for lie in &lies {
            assert!(!heard.iter().any(|frame| contains(frame, &lie.mark)), "{who} heard: {}", lie.name);
        }
    }
    assert!(a1.pings(fleet, a2.nic.six()), "afterwards all is as before");
}

/// Each machine translates for its own instances; nobody comes in that way.
pub(crate) fn outside(site: &Site, fleet: &Fleet, world: &Space) {
    let Site { a1, a2, a3, b1, .. } = site;
    world.run(&format!("ip address add {}/64 dev eth0 nodad", underlay(0x200)));
    world.run(&format!("ip address add {WORLD}/128 dev lo"));
    let address = |guest: &Guest| underlay(u16::try_from(guest.at).expect("few") + 1);
    for guest in [a1, a2, a3] {
        let space = &fleet.machine(guest.at).space;
        space.run(&format!("ip address add {}/64 dev eth0 nodad", address(guest)));
        space.run(&format!("ip -6 route replace default via {}", underlay(0x200)));
    }
    let door = world.enter(|| Outside::open(WORLD));
    for guest in [a1, a2, a3, b1] {
        let mut seen = None;
        let once =
            || guest.enter(fleet, || TcpStream::connect_timeout(&door.address(), Duration::from_secs(1)).is_ok());
        fleet.wait(&format!("{} to reach the outside in IPv6", guest.name), once);
        fleet.wait("the visitor", || {
            seen = door.visitor();
            seen.is_some()
        });
        assert_eq!(seen, Some(IpAddr::V6(address(guest))), "{} comes from its own machine", guest.name);
    }

    // The world knows the way and is not let in.
    let _door = a1.serve(fleet, FIRST);
    world.run(&format!("ip -6 route add {SUBNET} via {}", address(a1)));
    let invited = world.enter(|| TcpStream::connect_timeout(&a1.door6(FIRST), Duration::from_millis(500)).is_ok());
    assert!(!invited, "the outside reaches an instance uninvited");
    assert_eq!(a2.asks(fleet, a1.door6(FIRST)).as_deref(), Some("a1"), "though it listens");
}

/// A rule of tags counts in both families, and one of an address in its own; a1 alone is let in at the first door when this begins.
pub(crate) fn firewall(site: &Site, fleet: &Fleet) {
    let Site { a1, a2, a3, b1, b2, .. } = site;
    let _doors: Vec<Door> =
        [(a2, FIRST), (a2, SECOND), (b2, SECOND)].map(|(guest, port)| guest.serve(fleet, port)).into();
    let let_in = |guest: &Guest, door: SocketAddr| guest.asks(fleet, door).is_some();
    fleet.wait("a1 alone to be let in in IPv6", || let_in(a1, a2.door6(FIRST)) && !let_in(a3, a2.door6(FIRST)));
    assert!(a3.pings(fleet, a2.nic.six()), "the global rule lets everybody ping, and neighbours find each other");
    assert!(!let_in(a1, a2.door6(SECOND)) && !let_in(a3, a2.door6(SECOND)));

    let text = format!("FROM ip {} TO vm {} ALLOW tcp PORT {SECOND}", a3.nic.six(), a2.id);
    let wish = json!({"rule": text, "enabled": true, "wait": "enforced"});
    let rule = ask(fleet, TENANTS[0], "POST", "/my/fwrules", &wish);
    assert_eq!(rule["enforced"]["live"], rule["enforced"]["nodes"], "{rule}");
    assert!(let_in(a3, a2.door6(SECOND)), "it is in force when it is answered");
    assert!(!let_in(a1, a2.door6(SECOND)), "another address");
    assert!(!let_in(a3, a2.door(SECOND)), "the same instance, in IPv4");
    assert!(let_in(b1, b2.door6(SECOND)), "the other tenant has no firewall");
    ask(fleet, TENANTS[0], "DELETE", &format!("/my/fwrules/{}", id(&rule)), &json!({}));
    fleet.wait("a3 to be kept out again", || !let_in(a3, a2.door6(SECOND)));
}

/// What goes on whatever happens.
pub(crate) fn holds(site: &Site, fleet: &Fleet) {
    let Site { a1, a2, a3, b1, b2, .. } = site;
    for (one, other) in [(a1, a2), (a2, a1), (a3, a1), (b1, b2)] {
        assert!(one.pings(fleet, other.nic.six()), "{} reaches {} in IPv6", one.name, other.name);
    }
    assert!(!b1.pings(fleet, a3.nic.six()), "there is no a3 for the other tenant");
    assert_eq!(a1.asks(fleet, a2.door6(FIRST)).as_deref(), Some("a2"), "a1 has the tag");
    assert_eq!(a3.asks(fleet, a2.door6(FIRST)), None, "a3 has no tag");
}
