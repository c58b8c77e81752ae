//! Frames in which an instance lies about who it is, and those in which it does not.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::wire::Nic;

/// Everybody.
pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];
const IPV4: [u8; 2] = [8, 0];
const ARP: [u8; 2] = [8, 6];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// All nodes of a link.
const EVERYBODY6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A lie and how to know it when it is heard.
pub(crate) struct Lie {
    pub(crate) name: &'static str,
    pub(crate) frame: Vec<u8>,
    pub(crate) mark: Vec<u8>,
}

/// An honest frame with `text` in it.
pub(crate) fn truth(from: Nic, to: [u8; 6], text: &[u8]) -> Vec<u8> {
    frame(to, from.mac, IPV4, &udp((from.ip, 5_000), ([255; 4].into(), 5_000), text))
}

/// The lies of `from`, told to `victim` alone and to everybody. `gateway` is the gateway of their network.
pub(crate) fn all(from: Nic, victim: Nic, gateway: Ipv4Addr) -> Vec<Lie> {
    let nobody = [0x90, 0xb8, 0xd0, 9, 9, 9];
    let mut lies = Vec::new();
    for to in [victim.mac, BROADCAST] {
        let mut lie = |name, frame: Vec<u8>, mark: &[u8]| lies.push(Lie { name, frame, mark: mark.to_vec() });
        let mut said = |name, mac: [u8; 6], ip: Ipv4Addr, mark: &[u8]| {
            lie(name, frame(to, mac, IPV4, &udp((ip, 5_000), (victim.ip, 5_000), mark)), mark);
        };
        said("another MAC", nobody, from.ip, b"lie: another mac");
        said("the victim's MAC", victim.mac, from.ip, b"lie: mac of the victim");
        said("the gateway's address", from.mac, gateway, b"lie: address of the gateway");
        said("the victim's address", from.mac, victim.ip, b"lie: address of the victim");
        said("no address", from.mac, Ipv4Addr::UNSPECIFIED, b"lie: no address");
        let dhcp = udp((from.ip, 67), ([255; 4].into(), 68), b"lie: a server of addresses");
        lie("an answer of a DHCP server", frame(to, from.mac, IPV4, &dhcp), b"lie: a server of addresses");

        for (name, mac, ip) in [
            ("ARP: I am the gateway", from.mac, gateway),
            ("ARP: I am the victim", from.mac, victim.ip),
            ("ARP: my address is at another MAC", nobody, from.ip),
        ] {
            for operation in [1, 2] {
                // Asking for one's own address and answering unasked: both are believed by many.
                let claim = arp(operation, (mac, ip), ip);
                lie(name, frame(to, from.mac, ARP, &claim), &claim);
            }
        }

        let six = |text: &'static [u8], icmp: u8| {
            let router = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            let everybody = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            let length = u8::try_from(4 + text.len()).expect("a short text");
            let packet =
                [&[0x60, 0, 0, 0, 0, length, 58, 255][..], &router, &everybody, &[icmp, 0, 0, 0], text].concat();
            (frame(to, from.mac, [0x86, 0xdd], &packet), text)
        };
        let (packet, mark) = six(b"lie: a router of v6", 134);
        lie("an IPv6 router's advertisement", packet, mark);
        let (packet, mark) = six(b"lie: a neighbour of v6", 136);
        lie("an IPv6 neighbour's advertisement", packet, mark);
        for (name, kind) in [("a tag", [0x81, 0]), ("an outer tag", [0x88, 0xa8])] {
            let inner = udp((from.ip, 5_000), (victim.ip, 5_000), name.as_bytes());
            let tagged = [&[0, 7, 8, 0][..], &inner].concat();
            lie(name, frame(to, from.mac, kind, &tagged), name.as_bytes());
        }
        lie("no protocol at all", frame(to, from.mac, [0x88, 0xb5], b"lie: another kind"), b"lie: another kind");
    }
    lies
}

/// An honest frame for everybody in IPv6, sent to `to`, with `text` in it.
pub(crate) fn truth6(from: Nic, to: [u8; 6], text: &[u8]) -> Vec<u8> {
    frame(to, from.mac, IPV6, &udp6((from.six(), 5_000), (EVERYBODY6, 5_000), text))
}

/// The lies of `from` in IPv6, likewise.
pub(crate) fn all6(from: Nic, victim: Nic, gateway: Ipv6Addr) -> Vec<Lie> {
    let nobody = [0x90, 0xb8, 0xd0, 9, 9, 9];
    let mut lies = Vec::new();
    for (to, address) in [(victim.mac, victim.six()), (BROADCAST, EVERYBODY6)] {
        let mut lie = |name, mac, packet: Vec<u8>, mark: &[u8]| {
            lies.push(Lie { name, frame: frame(to, mac, IPV6, &packet), mark: mark.to_vec() });
        };
        let said = |ip, port, mark: &[u8]| udp6((ip, port), (address, 546), mark);
        for (name, mac, ip, port, mark) in [
            ("another MAC", nobody, from.six(), 5_000, &b"six: another mac"[..]),
            ("the gateway's address", from.mac, gateway, 5_000, b"six: address of the gateway"),
            ("the victim's address", from.mac, victim.six(), 5_000, b"six: address of the victim"),
            ("an answer of a DHCP server", from.mac, from.six(), 547, b"six: a server of addresses"),
        ] {
            lie(name, mac, said(ip, port, mark), mark);
        }
        for (name, kind) in [("a router's advertisement", 134), ("a redirect", 137)] {
            let text: &[u8] = if kind == 134 { b"six: a router" } else { b"six: a redirect" };
            lie(name, from.mac, icmp6(kind, from.six(), address, text), text);
        }
        for (name, owner, mac, sought) in [
            ("I am the gateway", gateway, from.mac, 1),
            ("I am the victim", victim.six(), from.mac, 2),
            ("my address is at another MAC", from.six(), nobody, 3),
        ] {
            // Answering unasked, with the flag to believe it over what was known, and asking in that name.
            let claim = [&owner.octets()[..], &[2, 1], &mac].concat();
            lie(name, from.mac, icmp6(136, from.six(), address, &[&[0x20, 0, 0, 0][..], &claim].concat()), &claim);
            // For somebody nobody else asks for, to know the question by.
            let sought = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0x7777, sought);
            let asking = [&[0; 4][..], &sought.octets(), &[1, 1], &mac].concat();
            lie(name, from.mac, icmp6(135, owner, address, &asking), &sought.octets());
        }
    }
    lies
}

/// An IPv6 packet; `next` says what `payload` is, and that has room for a checksum at `sum_at`.
fn packet6(from: Ipv6Addr, to: Ipv6Addr, next: u8, mut payload: Vec<u8>, sum_at: usize) -> Vec<u8> {
    let [high, low] = u16::try_from(payload.len()).expect("a short payload").to_be_bytes();
    let ends = [from.octets(), to.octets()].concat();
    let sum = checksum(&[&ends[..], &[0, 0, high, low, 0, 0, 0, next], &payload].concat());
    payload[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
    [&[0x60, 0, 0, 0, high, low, next, 255][..], &ends, &payload].concat()
}

/// An IPv6 packet with a UDP datagram.
fn udp6(from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), text: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + text.len()).expect("a short text");
    let head = [from.1, to.1, length, 0].map(u16::to_be_bytes).concat();
    packet6(from.0, to.0, 17, [&head[..], text].concat(), 6)
}

/// An ICMPv6 packet; `body` is what follows the checksum.
fn icmp6(kind: u8, from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> Vec<u8> {
    packet6(from, to, 58, [&[kind, 0, 0, 0][..], body].concat(), 2)
}

fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

fn frame(to: [u8; 6], from: [u8; 6], kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind, payload].concat()
}

/// An ARP packet of `sender`, about `target`.
fn arp(operation: u8, sender: ([u8; 6], Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, operation][..], &sender.0, &sender.1.octets(), &[0; 6], &target.octets()].concat()
}

/// An IPv4 packet with a UDP datagram.
fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), text: &[u8]) -> Vec<u8> {
    let length = u16::try_from(28 + text.len()).expect("a short text");
    let mut head = vec![0x45, 0];
    head.extend(length.to_be_bytes());
    head.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    head.extend(from.0.octets());
    head.extend(to.0.octets());
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    for word in [from.1, to.1, length - 20, 0] {
        head.extend(word.to_be_bytes());
    }
    head.extend(text);
    head
}
