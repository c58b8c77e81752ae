//! Netlink as far as links and filters need it: messages, attributes, one socket that sends a batch and reads the answers.
//!
//! Synchronous on purpose. A socket belongs to the network namespace of the thread that opens it, so the caller decides
//! where a request happens by where it opens the socket ([`Socket::open_in`]); nothing is kept between requests. A whole
//! batch goes out in one system call and is carried out in order, each message with its own answer.

#![expect(unsafe_code, reason = "two socket options have no safe wrapper")]

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvmsg, send, setsockopt,
            socket, sockopt,
        },
        time::TimeVal,
    },
};

/// Longest wait for an answer of the kernel, seconds: it may have to wait for another's change to links to end.
const ANSWER_TIMEOUT_S: i64 = 30;

/// Bytes of one read: the kernel fills at most 32 KiB.
const READ_BYTES: usize = 64 * 1024;

/// Bytes a socket sends at once without being told to: the kernel's own limit is at least this.
const SEND_BYTES: usize = 64 * 1024;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const F_REQUEST: u16 = 1;
const F_ACK: u16 = 4;
const F_ACK_TLVS: u16 = 0x200;
const F_CAPPED: u16 = 0x100;
const F_NESTED: u16 = 0x8000;
const ERROR_ATTR_MESSAGE: u16 = 1;

/// Flags of requests.
pub(super) mod flag {
    /// Replace what exists.
    pub(crate) const REPLACE: u16 = 0x100;
    /// Fail if it exists.
    pub(crate) const EXCL: u16 = 0x200;
    /// Make it if it does not exist.
    pub(crate) const CREATE: u16 = 0x400;
    /// Behind those that exist.
    pub(crate) const APPEND: u16 = 0x800;
    /// All objects.
    pub(crate) const DUMP: u16 = 0x300;
}

/// A request being written.
#[derive(Clone)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of `kind` with the fixed header of its family.
    pub(super) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        // A dump ends with a message of its own; everything else is asked to be acknowledged.
        let ack = if flags & flag::DUMP == flag::DUMP { 0 } else { F_ACK };
        bytes[6..8].copy_from_slice(&(flags | F_REQUEST | ack).to_ne_bytes());
        bytes.extend_from_slice(header);
        Self { bytes }
    }

    /// The same without asking for an answer: for marks around a batch.
    pub(super) fn unanswered(mut self) -> Self {
        self.silence();
        self
    }

    fn silence(&mut self) {
        let flags = self.flags() & !F_ACK;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    }

    /// Adds an attribute.
    pub(super) fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        self.put(kind, |message| message.bytes.extend_from_slice(value));
        self
    }

    /// Adds an attribute with a zero-terminated text.
    pub(super) fn text(self, kind: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.attr(kind, &value)
    }

    /// Adds an attribute that holds attributes, after `prefix` where the kernel wants a header there.
    pub(super) fn nest(mut self, kind: u16, prefix: &[u8], fill: impl FnOnce(Self) -> Self) -> Self {
        self.put(kind | F_NESTED, |message| {
            message.bytes.extend_from_slice(prefix);
            let inner = Self { bytes: std::mem::take(&mut message.bytes) };
            message.bytes = fill(inner).bytes;
        });
        self
    }

    fn put(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).expect("our attributes are far smaller than 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// What is behind the header.
    #[cfg(test)]
    pub(super) fn payload(&self) -> &[u8] {
        &self.bytes[HEADER..]
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn flags(&self) -> u16 {
        u16::from_ne_bytes([self.bytes[6], self.bytes[7]])
    }

    fn wants_answer(&self) -> bool {
        self.flags() & F_ACK != 0 || self.flags() & flag::DUMP == flag::DUMP
    }
}

/// The kernel's refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Why, as a number.
    pub(super) errno: Errno,
    /// Why, in the kernel's words, if it had any.
    pub(super) words: Option<String>,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, words: None }
    }
}

impl Refusal {
    /// As an error of this crate.
    pub(super) fn doing(self, doing: impl Into<String>) -> crate::Error {
        let doing = doing.into();
        match self.words {
            Some(words) => crate::Error::Library { doing, why: format!("{}: {words}", self.errno.desc()) },
            None => crate::Error::os(doing, io::Error::from(self.errno)),
        }
    }
}

/// What came back for one message: the payloads behind the netlink headers.
pub(super) type Answer = Result<Vec<Vec<u8>>, Refusal>;

/// A netlink socket.
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket in the network namespace of this thread.
    pub(super) fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT_S, 0))?;
        let on: nix::libc::c_int = 1;
        for option in [nix::libc::NETLINK_EXT_ACK, nix::libc::NETLINK_CAP_ACK] {
            // Only makes refusals shorter and clearer, so a kernel without it does no harm.
            // SAFETY: the pointer and length are those of `on`, which outlives the call.
            let _ = unsafe {
                nix::libc::setsockopt(
                    fd.as_raw_fd(),
                    nix::libc::SOL_NETLINK,
                    option,
                    (&raw const on).cast(),
                    size_of_val(&on) as nix::libc::socklen_t,
                )
            };
        }
        Ok(Self { fd, sequence: 0, buffer: vec![0; READ_BYTES] })
    }

    /// A socket in another network namespace. A thread that ends at once enters it, so the caller's stays where it is.
    pub(super) fn open_in(netns: impl AsFd + Sync, protocol: SockProtocol) -> io::Result<Self> {
        thread::scope(|scope| {
            let opening = scope.spawn(|| {
                setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Self::open(protocol)
            });
            opening.join().unwrap_or_else(|_| Err(io::Error::other("the thread that enters a namespace died")))
        })
    }

    /// Carries out one message.
    pub(super) fn request(&mut self, message: Message) -> Answer {
        self.batch(vec![message])?.pop().unwrap_or(Ok(Vec::new()))
    }

    /// Carries out messages in order, each whether or not those before it succeeded; one answer for each that asks for
    /// one. The outer error is of the socket itself.
    pub(super) fn batch(&mut self, messages: Vec<Message>) -> Result<Vec<Answer>, Refusal> {
        let waiting = self.send(messages)?;
        self.collect(&waiting)
    }

    /// Carries out messages of which the first and the last mark a transaction: all of them, or none. However many there are,
    /// one answer is waited for: the kernel looks at all of them before it says anything.
    pub(super) fn transaction(&mut self, mut messages: Vec<Message>) -> Result<(), Refusal> {
        let before = self.sequence;
        let count = messages.len();
        for (index, message) in messages.iter_mut().enumerate() {
            if index + 2 != count {
                message.silence();
            }
        }
        let Some(last) = self.send(messages)?.pop() else { return Ok(()) };
        loop {
            let count = match self.receive() {
                // So many complaints that the rest of them was thrown away.
                Err(Refusal { errno: Errno::ENOBUFS, .. }) => return Err(Errno::EINVAL.into()),
                other => other?,
            };
            for (kind, flags, sequence, payload) in messages_in(&self.buffer[..count]) {
                // Those before are answers to a transaction that was given up on.
                if kind != NLMSG_ERROR || sequence.wrapping_sub(before).wrapping_sub(1) >= last.wrapping_sub(before) {
                    continue;
                }
                match refusal(payload, flags) {
                    Some(refusal) => return Err(refusal),
                    None if sequence == last => return Ok(()),
                    None => {}
                }
            }
        }
    }

    /// From now on waits so many seconds for what the kernel says by itself, which may be so many bytes.
    pub(super) fn listen(&mut self, seconds: i64, bytes: usize) -> Result<(), Refusal> {
        setsockopt(&self.fd, sockopt::ReceiveTimeout, &TimeVal::new(seconds, 0))?;
        Ok(setsockopt(&self.fd, sockopt::RcvBufForce, &bytes)?)
    }

    /// What the kernel says by itself: kinds and payloads. [`Errno::ETIMEDOUT`] when it says nothing.
    pub(super) fn heard(&mut self) -> Result<Vec<(u16, Vec<u8>)>, Refusal> {
        let count = self.receive()?;
        Ok(messages_in(&self.buffer[..count]).map(|(kind, _, _, payload)| (kind, payload.to_vec())).collect())
    }

    /// Sends messages in one system call; the numbers of those that ask for an answer.
    fn send(&mut self, messages: Vec<Message>) -> Result<Vec<u32>, Refusal> {
        let mut bytes = Vec::with_capacity(messages.iter().map(Message::len).sum());
        let mut waiting = Vec::new();
        for mut message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            let length = u32::try_from(message.bytes.len()).expect("our messages are far smaller than 4 GiB");
            message.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
            message.bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
            if message.wants_answer() {
                waiting.push(self.sequence);
            }
            bytes.extend_from_slice(&message.bytes);
        }
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        if bytes.len() > SEND_BYTES {
            setsockopt(&self.fd, sockopt::SndBufForce, &bytes.len())?;
        }
        let sent = send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        match sent == bytes.len() {
            true => Ok(waiting),
            false => Err(Errno::EMSGSIZE.into()),
        }
    }

    /// Reads once into the buffer; how many bytes.
    fn receive(&mut self) -> Result<usize, Refusal> {
        loop {
            let mut slices = [IoSliceMut::new(&mut self.buffer)];
            let received = recvmsg::<()>(self.fd.as_raw_fd(), &mut slices, None, MsgFlags::empty());
            match received {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT.into()),
                Err(errno) => return Err(errno.into()),
                Ok(message) if message.flags.contains(MsgFlags::MSG_TRUNC) => return Err(Errno::EMSGSIZE.into()),
                Ok(message) => return Ok(message.bytes),
            }
        }
    }

    fn collect(&mut self, waiting: &[u32]) -> Result<Vec<Answer>, Refusal> {
        let mut answers: Vec<Answer> = waiting.iter().map(|_| Ok(Vec::new())).collect();
        let mut open = waiting.len();
        let mut ended = vec![false; waiting.len()];
        while open > 0 {
            let count = self.receive()?;
            for (kind, flags, sequence, payload) in messages_in(&self.buffer[..count]) {
                // Answers to a batch that was given up on are passed over.
                let Some(index) = waiting.iter().position(|one| *one == sequence) else { continue };
                let end = match kind {
                    NLMSG_ERROR => {
                        if let Some(refusal) = refusal(payload, flags) {
                            answers[index] = Err(refusal);
                        }
                        true
                    }
                    NLMSG_DONE => true,
                    _ => {
                        if let Ok(payloads) = &mut answers[index] {
                            payloads.push(payload.to_vec());
                        }
                        false
                    }
                };
                if end && !ended[index] {
                    ended[index] = true;
                    open -= 1;
                }
            }
        }
        Ok(answers)
    }
}

/// Kind, flags, number and payload of each message.
pub(super) fn messages_in(bytes: &[u8]) -> impl Iterator<Item = (u16, u16, u32, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = (number_of(rest) as usize).min(rest.len());
        if length < HEADER {
            return None;
        }
        let kind = u16::from_ne_bytes([rest[4], rest[5]]);
        let flags = u16::from_ne_bytes([rest[6], rest[7]]);
        let (sequence, payload) = (number_of(&rest[8..]), &rest[HEADER..length]);
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        Some((kind, flags, sequence, payload))
    })
}

fn refusal(payload: &[u8], flags: u16) -> Option<Refusal> {
    let code = payload.get(..4).map_or(0, |code| i32::from_ne_bytes([code[0], code[1], code[2], code[3]]));
    if code == 0 {
        return None;
    }
    // Behind the code comes the head of the request, or all of it on kernels that do not cap, then attributes.
    let mut words = None;
    if flags & F_ACK_TLVS != 0 && flags & F_CAPPED != 0 && payload.len() > 4 + HEADER {
        let found = attrs(&payload[4 + HEADER..]).find(|(kind, _)| *kind == ERROR_ATTR_MESSAGE);
        words = found.map(|(_, text)| text_of(text));
    }
    Some(Refusal { errno: Errno::from_raw(-code), words })
}

/// The attributes in `bytes`, without the flags in their kinds.
pub(super) fn attrs(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.len() < 4 {
            return None;
        }
        let length = (u16::from_ne_bytes([rest[0], rest[1]]) as usize).min(rest.len());
        if length < 4 {
            return None;
        }
        let kind = u16::from_ne_bytes([rest[2], rest[3]]) & 0x3fff;
        let value = &rest[4..length];
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        Some((kind, value))
    })
}

/// A zero-terminated text.
pub(super) fn text_of(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A number of the machine's byte order; zero if it is too short.
pub(super) fn number_of(value: &[u8]) -> u32 {
    value.get(..4).map_or(0, |value| u32::from_ne_bytes([value[0], value[1], value[2], value[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_nest_and_are_padded() {
        let message = Message::new(16, 0, &[9; 4]).text(3, "ab").nest(18, &[7; 4], |inner| inner.attr(1, &[5]));
        let mut found = attrs(&message.bytes[HEADER + 4..]);
        assert_eq!(found.next(), Some((3, &b"ab\0"[..])));
        let (kind, nested) = found.next().expect("the nest");
        assert_eq!((kind, &nested[..4]), (18, &[7; 4][..]));
        assert_eq!(attrs(&nested[4..]).next(), Some((1, &[5][..])));
        assert_eq!(found.next(), None);
        assert_eq!(message.bytes.len() % 4, 0);
    }

    #[test]
    fn broken_attributes_end_the_list() {
        assert_eq!(attrs(&[2, 0, 1, 0]).count(), 0);
        assert_eq!(attrs(&[200, 0, 1, 0, 9]).collect::<Vec<_>>(), vec![(1, &[9][..])]);
    }
}
