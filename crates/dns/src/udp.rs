//! Datagrams: threads that each take what has come, up to a batch with one system call, answer it, and do nothing else. Several
//! threads of one address have a socket each; the kernel spreads clients among them.

use std::{
    io::{ErrorKind, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use base::{clock::Clock, shutdown::Shutdown, watch};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt,
};

use crate::{
    answer,
    counters::{Outcome, Transport, add},
    handle::{Context, Handled},
    limit::{Says, Verdict},
    message,
    server::Shared,
    settings::Policy,
    zones::Zones,
};

/// Messages taken with one system call.
const BATCH: usize = 32;
/// Bytes of a question over UDP at most: a whole name, the extension and a signature. More is cut off, and malformed then.
const QUESTION_BYTES: usize = 1500;
/// Bytes of a buffer for an answer beyond the limit of answers: the signature of a short one is not cut.
pub(crate) const ROOM_BYTES: usize = 512;
/// A thread looks this often whether it should end.
const LOOK: Duration = Duration::from_millis(200);
/// Bytes the kernel keeps for us while we are busy; it may give less.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// A socket of an address that others of this process have as well.
pub(crate) fn bind(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket::socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    // A smaller one works too.
    let _ = setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES);
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(LOOK))?;
    Ok(socket)
}

/// What a thread answers from.
pub(crate) struct Worker {
    pub(crate) socket: UdpSocket,
    pub(crate) shared: Arc<Shared>,
    pub(crate) zones: watch::Receiver<Arc<Zones>>,
    pub(crate) policy: watch::Receiver<Arc<Policy>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) shutdown: Shutdown,
    pub(crate) datagram_bytes: usize,
}

impl Worker {
    /// Answers until the end comes.
    pub(crate) fn run(mut self) {
        let started = Instant::now();
        let mut buffers = vec![[0_u8; QUESTION_BYTES]; BATCH];
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
        let mut came: Vec<(usize, SocketAddr)> = Vec::with_capacity(BATCH);
        let mut reply = vec![0_u8; self.datagram_bytes + ROOM_BYTES];
        let mut zones = self.zones.borrow_and_update().clone();
        let mut policy = self.policy.borrow_and_update().clone();
        while !self.shutdown.is_set() {
            came.clear();
            match receive(&self.socket, &mut headers, &mut buffers, &mut came) {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
                // An error of an earlier answer, as some kernels tell it here. Never more than one of them in a while.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
            }
            if self.zones.has_changed() == Ok(true) {
                zones = self.zones.borrow_and_update().clone();
            }
            if self.policy.has_changed() == Ok(true) {
                policy = self.policy.borrow_and_update().clone();
            }
            let now_s = u64::try_from(self.clock.now_ms() / 1000).unwrap_or(0);
            let now_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            for ((len, client), message) in came.iter().zip(&buffers) {
                let context = Context {
                    zones: &zones,
                    policy: &policy,
                    counters: &self.shared.counters,
                    strangers: &self.shared.strangers,
                    client: client.ip(),
                    transport: Transport::Udp,
                    datagram_bytes: self.datagram_bytes,
                    now_s,
                };
                if let Some(len) = self.answer(&context, &message[..*len], &mut reply, now_us) {
                    // What cannot be sent is lost, as datagrams are.
                    let _ = self.socket.send_to(&reply[..len], client);
                }
            }
        }
    }

    /// How long the answer in `reply` is, if one is to be sent.
    fn answer(&self, context: &Context<'_>, message: &[u8], reply: &mut [u8], now_us: u64) -> Option<usize> {
        let (answered, query) = match message::read(message) {
            Err(unreadable) => (context.refuse(unreadable, reply)?, None),
            Ok(query) => match context.handle(&query, message, reply) {
                Handled::Answer(answered) => (answered, Some(query)),
                // Over UDP there is none.
                Handled::Transfer(_) => return None,
            },
        };
        let Some(limit) = context.policy.rate else { return Some(answered.len) };
        let says = match (answered.outcome, &query) {
            (Outcome::Good, Some(_)) if answered.by_star => Says::Star,
            (Outcome::Good, Some(query)) => Says::Name(query.name.as_wire()),
            (Outcome::NoSuchName, _) => Says::NoSuchName,
            _ => Says::Error,
        };
        let verdict = self.shared.limiter.judge(limit, context.client, says, now_us);
        if verdict == Verdict::Send {
            return Some(answered.len);
        }
        add(&context.counters.limited);
        match (verdict, query) {
            (Verdict::Cut, Some(query)) => Some(answer::cut(context.asked(0), &query, reply).len),
            _ => None,
        }
    }
}

/// Takes what has come, at least one message: its length and where from, in the order of `buffers`.
fn receive(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<SockaddrStorage>,
    buffers: &mut [[u8; QUESTION_BYTES]],
    came: &mut Vec<(usize, SocketAddr)>,
) -> std::io::Result<()> {
    let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
    let messages = socket::recvmmsg(socket.as_raw_fd(), headers, &mut slices, MsgFlags::MSG_WAITFORONE, None)?;
    for message in messages {
        // Without a port there is nobody to answer; a message of no length is malformed and not answered either.
        let client = message.address.as_ref().and_then(client_of).filter(|client| client.port() != 0);
        came.push(match client {
            Some(client) => (message.bytes, client),
            None => (0, SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0)),
        });
    }
    Ok(())
}

fn client_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into()))
}
