//! Raw frames: made, sent and listened for inside a zone.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use model::id::MacAddr;
use nix::{
    libc,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recv, sendto,
            setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};

pub(super) const BROADCAST: MacAddr = MacAddr([0xff; 6]);

/// An Ethernet frame, by its fields.
pub(super) fn frame(to: MacAddr, from: MacAddr, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &kind.to_be_bytes(), payload].concat()
}

/// An IPv4 packet with a UDP datagram.
pub(super) fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), text: &[u8]) -> Vec<u8> {
    let length = u16::try_from(28 + text.len()).expect("a short text");
    let mut head = vec![0x45, 0];
    head.extend_from_slice(&length.to_be_bytes());
    head.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
    head.extend_from_slice(&from.0.octets());
    head.extend_from_slice(&to.0.octets());
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    for word in [from.1, to.1, length - 20, 0] {
        head.extend_from_slice(&word.to_be_bytes());
    }
    head.extend_from_slice(text);
    head
}

/// An ARP answer: `sender` says it has `address`.
pub(super) fn arp(sender: MacAddr, address: Ipv4Addr, to: MacAddr, target: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 2];
    packet.extend_from_slice(&sender.0);
    packet.extend_from_slice(&address.octets());
    packet.extend_from_slice(&to.0);
    packet.extend_from_slice(&target.octets());
    packet
}

/// An IPv6 packet: `next` says what `payload` is, and that has room for a checksum at `sum_at`.
fn six(from: Ipv6Addr, to: Ipv6Addr, next: u8, mut payload: Vec<u8>, sum_at: usize) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a short payload");
    let pseudo =
        [&from.octets()[..], &to.octets(), &[0, 0], &length.to_be_bytes(), &[0, 0, 0, next], &payload].concat();
    payload[sum_at..sum_at + 2].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let [high, low] = length.to_be_bytes();
    [&[0x60, 0, 0, 0, high, low, next, 255][..], &from.octets(), &to.octets(), &payload].concat()
}

/// An IPv6 packet with a UDP datagram.
pub(super) fn udp6(from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), text: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + text.len()).expect("a short text");
    let words = [from.1, to.1, length, 0].map(u16::to_be_bytes).concat();
    six(from.0, to.0, 17, [&words[..], text].concat(), 6)
}

/// An ICMPv6 packet of `kind`; `body` is what follows the checksum.
pub(super) fn icmp6(kind: u8, from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> Vec<u8> {
    six(from, to, 58, [&[kind, 0, 0, 0][..], body].concat(), 2)
}

/// What follows the checksum of a neighbour solicitation or advertisement; `options` are pairs of a kind and an Ethernet address.
pub(super) fn discovery(flags: u8, target: Ipv6Addr, options: &[(u8, MacAddr)]) -> Vec<u8> {
    let mut body = [&[flags, 0, 0, 0][..], &target.octets()].concat();
    for (kind, mac) in options {
        body.extend_from_slice(&[*kind, 1]);
        body.extend_from_slice(&mac.0);
    }
    body
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A packet socket on `eth0` of this namespace that hears all frames, also those for others.
pub(super) struct Wire {
    fd: OwnedFd,
}

impl Wire {
    pub(super) fn open() -> Self {
        let index = nix::net::if_::if_nametoindex("eth0").expect("the NIC");
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
            .expect("a packet socket");
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let request = libc::packet_mreq {
            mr_ifindex: index as i32,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        // SAFETY: pointers and lengths are those of two local values that outlive the calls.
        let done = unsafe {
            let bound = libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32);
            let joined = libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                (&raw const request).cast(),
                size_of_val(&request) as u32,
            );
            bound | joined
        };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
        Self { fd }
    }

    pub(super) fn send(&self, frame: &[u8]) {
        nix::sys::socket::send(self.fd.as_raw_fd(), frame, MsgFlags::empty()).expect("a frame is sent");
    }

    /// Frames that arrive until one contains `end`.
    pub(super) fn hear_until(&self, end: &[u8], patience: Duration) -> Vec<Vec<u8>> {
        setsockopt(&self.fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(100)).expect("a timeout");
        let (mut heard, deadline, mut buffer) = (Vec::new(), Instant::now() + patience, [0; 4096]);
        while Instant::now() < deadline {
            let Ok(count) = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) else { continue };
            heard.push(buffer[..count].to_vec());
            if contains(&buffer[..count], end) {
                return heard;
            }
        }
        panic!("nothing with {:?} was heard among {} frames", String::from_utf8_lossy(end), heard.len());
    }
}

/// Whether `bytes` has `part` somewhere.
pub(super) fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Whether `address` answers a ping from this namespace.
pub(super) fn pings(address: Ipv4Addr, patience: Duration) -> bool {
    let fd =
        socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).expect("a raw socket");
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).expect("a timeout");
    let mark = rand_mark();
    let mut echo = vec![8, 0, 0, 0];
    echo.extend_from_slice(&mark);
    let sum = checksum(&echo);
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    let [a, b, c, d] = address.octets();
    let to = SockaddrIn::new(a, b, c, d, 0);
    let (deadline, mut buffer) = (Instant::now() + patience, [0; 2048]);
    while Instant::now() < deadline {
        // No route is an answer too.
        if sendto(fd.as_raw_fd(), &echo, &to, MsgFlags::empty()).is_err() {
            return false;
        }
        while let Ok(count) = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            let from_it = buffer[12..16] == address.octets();
            if count >= 36 && from_it && buffer[20] == 0 && buffer[24..28] == mark[..4] {
                return true;
            }
        }
    }
    false
}

/// The same in IPv6.
pub(super) fn pings6(address: Ipv6Addr, patience: Duration) -> bool {
    let fd = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6)
        .expect("a raw socket");
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).expect("a timeout");
    let mark = rand_mark();
    // The kernel fills in the checksum.
    let echo = [&[128, 0, 0, 0][..], &mark].concat();
    let to = SockaddrIn6::from(std::net::SocketAddrV6::new(address, 0, 0, 0));
    let (deadline, mut buffer) = (Instant::now() + patience, [0; 2048]);
    while Instant::now() < deadline {
        if sendto(fd.as_raw_fd(), &echo, &to, MsgFlags::empty()).is_err() {
            return false;
        }
        while let Ok(count) = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            if count >= 16 && buffer[0] == 129 && buffer[4..16] == mark {
                return true;
            }
        }
    }
    false
}

/// Identifier, sequence and eight more bytes that tell one ping from another.
fn rand_mark() -> [u8; 12] {
    let id = model::id::InstanceId::random().uuid();
    let mut mark = [0; 12];
    mark.copy_from_slice(&id.as_bytes()[..12]);
    mark
}
