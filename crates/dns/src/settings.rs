//! What a server is told: where it listens, whom it hands whole zones, whom it tells of changes, and its limits.

use std::{fmt, net::SocketAddr, time::Duration};

use ipnet::IpNet;

use crate::name::Name;

/// What a server is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens, over UDP and TCP. An answer leaves from the address that was asked, so name each address, not "any".
    pub addresses: Vec<SocketAddr>,
    /// Threads that answer over UDP, an address; at least one.
    pub threads: usize,
    /// Limits that hold as long as it runs.
    pub limits: Limits,
    /// What may be changed while it runs.
    pub policy: Policy,
}

/// Limits of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections at once; more are closed at once.
    pub connections: usize,
    /// TCP connections of one client at once.
    pub connections_of_one: usize,
    /// A TCP connection that asks nothing for so long is closed.
    pub idle: Duration,
    /// A peer must have taken what was sent to it within this time.
    pub patience: Duration,
    /// Zone transfers at once; more wait.
    pub transfers: usize,
    /// Bytes of an answer over UDP at most, whatever a client says it can take: larger packets are lost on the way in pieces.
    pub datagram_bytes: usize,
}

/// What may be changed while a server runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Who may have whole zones: whom one of these fits. None: nobody.
    pub transfers: Vec<TransferRule>,
    /// The keys that requests may be signed with.
    pub keys: Vec<TsigKey>,
    /// Whom to tell when a zone has changed.
    pub notify: Vec<NotifyTarget>,
    /// How many equal answers one client gets over UDP; none: no limit.
    pub rate: Option<RateLimit>,
}

/// Who may have whole zones. Where zones have views, a secondary gets those that its address sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferRule {
    /// The request must come from here.
    pub network: IpNet,
    /// And be signed with the key of this name, if one is named.
    pub key: Option<Name>,
}

/// Somebody who is told of changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NotifyTarget {
    /// Where.
    pub address: SocketAddr,
    /// The name of the key the message is signed with, if any.
    pub key: Option<Name>,
}

/// The limit on equal answers over UDP. Equal are: answers about one name; denials in one zone; errors. One client is a /24 of IPv4 or a /56
/// of IPv6, because whoever abuses a server to flood another invents addresses near it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Equal answers a second; a burst of one second's worth is fine.
    pub per_second: u32,
    /// Of the answers above the limit, each so-manieth is sent, empty and marked as cut, so that a real client comes again over TCP; 0: none.
    pub slip: u32,
}

/// A key that both sides of a transfer know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TsigKey {
    /// Its name; both sides call it so.
    pub name: Name,
    /// What is computed with it.
    pub algorithm: Algorithm,
    /// The key.
    pub secret: Secret,
}

/// The ways to sign a message. MD5 and SHA-1 are not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC-SHA-256.
    HmacSha256,
    /// HMAC-SHA-384.
    HmacSha384,
    /// HMAC-SHA-512.
    HmacSha512,
}

/// Bytes that are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_of_one: 64,
            idle: Duration::from_secs(10),
            patience: Duration::from_secs(30),
            transfers: 8,
            // What passes everywhere: the size agreed on at the DNS flag day of 2020.
            datagram_bytes: 1232,
        }
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { per_second: 200, slip: 2 }
    }
}

impl Algorithm {
    /// Its name in settings and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::HmacSha384 => "hmac-sha384",
            Self::HmacSha512 => "hmac-sha512",
        }
    }

    /// The one of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::HmacSha256, Self::HmacSha384, Self::HmacSha512].into_iter().find(|algorithm| algorithm.name() == name)
    }
}

impl Secret {
    /// Keeps `bytes` to itself.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// For those who compute with it.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("…")
    }
}
