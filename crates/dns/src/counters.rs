//! What a server has done, in numbers that others read whenever they like.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::rrset::Kind;

/// The kinds whose questions are counted apart; the last place counts all others.
pub const KINDS_COUNTED: [Kind; 10] =
    [Kind::A, Kind::AAAA, Kind::TXT, Kind::SRV, Kind::PTR, Kind::NS, Kind::SOA, Kind::CNAME, Kind::DNSKEY, Kind(255)];

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// As a datagram.
    Udp,
    /// Over a connection.
    Tcp,
}

/// How an answer ended: the response codes there are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// NOERROR.
    Good,
    /// FORMERR.
    Malformed,
    /// SERVFAIL.
    Failed,
    /// NXDOMAIN.
    NoSuchName,
    /// NOTIMP.
    NotImplemented,
    /// REFUSED.
    Refused,
    /// NOTAUTH, and with it BADKEY, BADSIG and BADTIME.
    NotAuthentic,
    /// BADVERS.
    BadVersion,
}

impl Outcome {
    /// All of them, in the order of [`Counters::outcomes`].
    pub const ALL: [Self; 8] = [
        Self::Good,
        Self::Malformed,
        Self::Failed,
        Self::NoSuchName,
        Self::NotImplemented,
        Self::Refused,
        Self::NotAuthentic,
        Self::BadVersion,
    ];

    /// The response code's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "NOERROR",
            Self::Malformed => "FORMERR",
            Self::Failed => "SERVFAIL",
            Self::NoSuchName => "NXDOMAIN",
            Self::NotImplemented => "NOTIMP",
            Self::Refused => "REFUSED",
            Self::NotAuthentic => "NOTAUTH",
            Self::BadVersion => "BADVERS",
        }
    }

    /// The response code, as far as it fits the header, and the four bits that stand in the extension's record.
    pub(crate) fn code(self) -> (u8, u8) {
        match self {
            Self::Good => (0, 0),
            Self::Malformed => (1, 0),
            Self::Failed => (2, 0),
            Self::NoSuchName => (3, 0),
            Self::NotImplemented => (4, 0),
            Self::Refused => (5, 0),
            Self::NotAuthentic => (9, 0),
            Self::BadVersion => (0, 1),
        }
    }
}

/// Numbers that only grow, since the server was started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Questions that came as datagrams.
    pub udp: AtomicU64,
    /// Questions that came over connections.
    pub tcp: AtomicU64,
    /// Questions by kind, as in [`KINDS_COUNTED`]; the last are all others.
    pub kinds: [AtomicU64; KINDS_COUNTED.len() + 1],
    /// Answers by response code, as in [`Outcome::ALL`].
    pub outcomes: [AtomicU64; Outcome::ALL.len()],
    /// Answers over UDP that said "come again over TCP".
    pub truncated: AtomicU64,
    /// Answers that were not sent because there were too many equal ones.
    pub limited: AtomicU64,
    /// Messages that are no question: answers, or less than a header. They are not answered.
    pub dropped: AtomicU64,
    /// Connections that were closed at once because there were too many.
    pub connections_refused: AtomicU64,
    /// Whole zones sent to the end.
    pub transfers_whole: AtomicU64,
    /// Differences of zones sent to the end.
    pub transfers_differences: AtomicU64,
    /// Transfers refused to strangers.
    pub transfers_refused: AtomicU64,
    /// Transfers that ended before their end.
    pub transfers_failed: AtomicU64,
    /// Messages that told secondaries of a change, repetitions among them.
    pub notify_sent: AtomicU64,
    /// Secondaries told of a change that have said so.
    pub notify_answered: AtomicU64,
    /// Secondaries given up on until the next change.
    pub notify_failed: AtomicU64,
    /// Messages that told us of a change. We are nobody's secondary; they are refused.
    pub notify_received: AtomicU64,
}

impl Counters {
    /// One more question and its answer.
    pub(crate) fn answered(&self, transport: Transport, kind: Option<Kind>, outcome: Outcome) {
        match transport {
            Transport::Udp => add(&self.udp),
            Transport::Tcp => add(&self.tcp),
        }
        if let Some(kind) = kind {
            let place = KINDS_COUNTED.iter().position(|counted| *counted == kind).unwrap_or(KINDS_COUNTED.len());
            add(&self.kinds[place]);
        }
        let place = Outcome::ALL.iter().position(|counted| *counted == outcome).unwrap_or(0);
        add(&self.outcomes[place]);
    }
}

/// One more.
pub(crate) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
