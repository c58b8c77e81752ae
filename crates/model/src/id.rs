//! Typed identifiers: an [`InstanceId`] is not a [`ServerId`], and the compiler says so.
//!
//! All are UUIDs on the wire and in the store. A bare `Uuid` does not leave this module.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that was made or read elsewhere.
            pub const fn new(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// A fresh random identifier (UUID version 4) from the system's chance, which no seed repeats. The only chance in this
            /// crate: call it at the edge, and in tests.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// The identifier (UUID version 4) that random `bits` make: for callers whose chance has an owner.
            pub const fn from_random(bits: u128) -> Self {
                Self(uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid())
            }

            /// The first eight hex digits: what people type, and the default name of an instance.
            pub fn short(&self) -> String {
                self.0.simple().to_string()[..8].to_owned()
            }

            /// The UUID inside.
            pub const fn uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            /// Accepts the hyphenated form only, as CloudAPI does.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                if text.len() != 36 {
                    // A length that no hyphenated UUID has; `Uuid` would also take braces and bare hex.
                    return Uuid::parse_str("").map(Self);
                }
                Uuid::parse_str(text).map(Self)
            }
        }
    )*};
}

ids! {
    /// A tenant or an operator.
    AccountId;
    /// A size an instance can have.
    PackageId;
    /// A network: addresses, gateway, the segment they live on.
    NetworkId;
    /// Several networks that are asked for as one.
    PoolId;
    /// An image: what a root file system starts from.
    ImageId;
    /// An instance: a zone or a virtual machine.
    InstanceId;
    /// A machine of the fleet.
    ServerId;
    /// A rule of the distributed firewall.
    FirewallRuleId;
    /// A journaled job.
    FlowId;
    /// A question a headnode asks a node; lives no longer than its answer.
    InquiryId;
    /// What lets a machine in.
    InviteId;
}

/// An Ethernet address. Text form is lower-case hex with colons; [`MacAddr::bare`] is CloudAPI's form in paths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The prefix of every address we hand out (Triton's own OUI, so that tools that know it still do).
    pub const OUI: [u8; 3] = [0x90, 0xb8, 0xd0];

    /// An address under [`MacAddr::OUI`] whose last three bytes are the low 24 bits of `suffix`.
    pub const fn from_suffix(suffix: u32) -> Self {
        let [_, a, b, c] = suffix.to_be_bytes();
        Self([Self::OUI[0], Self::OUI[1], Self::OUI[2], a, b, c])
    }

    /// The link-local IPv6 address of an interface with this address: RFC 4291's modified EUI-64.
    pub fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let part = |high, low| u16::from_be_bytes([high, low]);
        Ipv6Addr::new(0xfe80, 0, 0, 0, part(a ^ 2, b), part(c, 0xff), part(0xfe, d), part(e, f))
    }

    /// Twelve hex digits without separators, as in `/machines/:id/nics/:mac`.
    pub fn bare(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MacAddr({self})")
    }
}

/// A text that is no Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an Ethernet address (12 hex digits, colons allowed)")]
pub struct InvalidMac(String);

impl FromStr for MacAddr {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMac(text.chars().take(32).collect());
        let digits: String = match text.len() {
            12 => text.to_owned(),
            17 if text.bytes().skip(2).step_by(3).all(|separator| separator == b':') => text.replace(':', ""),
            _ => return Err(invalid()),
        };
        if digits.len() != 12 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let mut bytes = [0; 6];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| invalid())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| invalid())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
