//! Trying wires: echo requests that may not be cut into pieces, and listening for what comes back.
//!
//! ICMP and not a datagram to the other's agent: the other kernel answers whether its agent runs or not, nothing of ours has to listen, and
//! a packet of any size comes back whole. A raw socket, because the kernel's own for pings are closed to everybody unless somebody opened
//! them. One socket serves a whole batch; it hears every echo reply that reaches the machine and counts those that are its own.

#![expect(unsafe_code, reason = "four socket options have no safe wrapper")]

use std::{
    io::IoSliceMut,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, recvmsg, sendto, socket,
    },
};

use crate::{
    echo::{Echo, Family},
    error::{Error, Result},
    link::{Packet, Probe},
};

/// How often a packet is sent before it counts as lost.
const TRIES: u32 = 2;
/// How long an answer may take: far longer than any two machines that share a network are apart.
const PATIENCE: Duration = Duration::from_millis(250);
/// Packets read for one try at most, so that a flood of strangers' replies keeps nobody for long.
const HEARD_MAX: usize = 8_192;
/// Bytes of the largest packet there is.
const PACKET_BYTES: usize = 65_536;

/// Sends each packet, and again if need be; which of them came back whole.
pub(super) fn probe(probe: &Probe) -> Result<Vec<bool>> {
    let family = Family::of(probe.from);
    let doing = |what: &str| format!("{what} for echo requests from {}", probe.from);
    let fd = open(probe.from, family).map_err(|errno| Error::os(doing("open a socket"), errno.into()))?;
    let [a, b, ..] = probe.token.to_be_bytes();
    let asker = Asker { fd, family, identifier: u16::from_be_bytes([a, b]), probe };
    let mut passed = vec![Outcome::Open; probe.packets.len()];
    for _ in 0..TRIES {
        asker.send(&mut passed);
        asker.listen(&mut passed).map_err(|errno| Error::os(doing("listen"), errno.into()))?;
        if !passed.contains(&Outcome::Open) {
            break;
        }
    }
    Ok(passed.into_iter().map(|outcome| outcome == Outcome::Passed).collect())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Open,
    Passed,
    /// This machine's own interface does not take it.
    TooLarge,
}

struct Asker<'a> {
    fd: OwnedFd,
    family: Family,
    identifier: u16,
    probe: &'a Probe,
}

impl Asker<'_> {
    fn echo(&self, at: usize, packet: &Packet) -> Option<Echo> {
        let (identifier, token) = (self.identifier, self.probe.token);
        Some(Echo { identifier, sequence: u16::try_from(at).ok()?, token, size: packet.size })
    }

    fn send(&self, passed: &mut [Outcome]) {
        for (at, packet) in self.probe.packets.iter().enumerate() {
            let Some(echo) = self.echo(at, packet).filter(|_| passed[at] == Outcome::Open) else { continue };
            let to = SockaddrStorage::from(SocketAddr::new(packet.to, 0));
            let sent = sendto(self.fd.as_raw_fd(), &echo.request(self.family), &to, MsgFlags::MSG_DONTWAIT);
            // Any other trouble (no route, no room in the queue, an interface that is down) is as if it were lost on the way.
            if sent == Err(Errno::EMSGSIZE) {
                passed[at] = Outcome::TooLarge;
            }
        }
    }

    fn listen(&self, passed: &mut [Outcome]) -> nix::Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut buffer = vec![0; PACKET_BYTES];
        for _ in 0..HEARD_MAX {
            if !passed.contains(&Outcome::Open) {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            // Rounded up: less than a millisecond left must not become a loop without a pause.
            let wait = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::ZERO);
            let mut ready = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            if left.is_zero() || poll(&mut ready, wait)? == 0 {
                return Ok(());
            }
            self.hear(&mut buffer, passed)?;
        }
        Ok(())
    }

    fn hear(&self, buffer: &mut [u8], passed: &mut [Outcome]) -> nix::Result<()> {
        let mut parts = [IoSliceMut::new(buffer)];
        let heard = recvmsg::<SockaddrStorage>(self.fd.as_raw_fd(), &mut parts, None, MsgFlags::MSG_DONTWAIT);
        let (length, from) = match heard {
            Ok(heard) => (heard.bytes, heard.address.and_then(|from| address(&from))),
            // What a router or a neighbour said of an earlier packet is not an answer to this one.
            Err(Errno::EAGAIN | Errno::EINTR | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::ECONNREFUSED) => {
                return Ok(());
            }
            Err(errno) => return Err(errno),
        };
        let Some(reply) = Echo::read_reply(self.family, &buffer[..length]) else { return Ok(()) };
        let at = usize::from(reply.sequence);
        if let Some(packet) = self.probe.packets.get(at)
            && from == Some(packet.to)
            && self.echo(at, packet) == Some(reply)
        {
            passed[at] = Outcome::Passed;
        }
        Ok(())
    }
}

fn address(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|from| IpAddr::V4(from.ip()));
    v4.or_else(|| from.as_sockaddr_in6().map(|from| IpAddr::V6(from.ip())))
}

/// A socket that sends from `from`, never in pieces, and hears echo replies alone.
fn open(from: IpAddr, family: Family) -> nix::Result<OwnedFd> {
    let (domain, protocol) = match family {
        Family::V4 => (AddressFamily::Inet, SockProtocol::Icmp),
        Family::V6 => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let fd = socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol)?;
    match family {
        Family::V4 => {
            set(&fd, libc::SOL_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_PROBE)?;
            // All kinds but one are kept out: a bit each.
            let kept_out: u32 = !1;
            set(&fd, SOL_RAW, ICMP_FILTER, &kept_out)?;
        }
        Family::V6 => {
            set(&fd, libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, &libc::IPV6_PMTUDISC_PROBE)?;
            set(&fd, libc::SOL_IPV6, libc::IPV6_DONTFRAG, &1_i32)?;
            let mut kept_out = [u32::MAX; 8];
            kept_out[129 / 32] &= !(1 << (129 % 32));
            set(&fd, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &kept_out)?;
        }
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    Ok(fd)
}

const SOL_RAW: libc::c_int = 255;
const ICMP_FILTER: libc::c_int = 1;
const ICMPV6_FILTER: libc::c_int = 1;

fn set<T: Copy>(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> nix::Result<()> {
    // SAFETY: the pointer and length are those of `value`, which outlives the call, and the kernel only reads there; each caller
    // passes the plain integers its option is documented with.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    Errno::result(done).map(drop)
}
