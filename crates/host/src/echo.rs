//! Echo requests and replies as bytes, of ICMP and of ICMPv6. Pure: [`crate::linux`] sends and listens.
//!
//! ```text
//!  IPv4:  IP header | 8 0 checksum | identifier sequence | token (8 bytes) | zeros
//!  IPv6:            128 0 checksum | identifier sequence | token (8 bytes) | zeros       (the kernel sums and strips)
//! ```
//! A reply is bytes of strangers: anybody may send one, with any sender's address. It counts only with the token of the request,
//! which nobody knows who did not see it, and in the request's whole length.

use std::net::IpAddr;

/// Which of the two protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// ICMP.
    V4,
    /// ICMPv6.
    V6,
}

/// An echo, request or reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Tells one asker from others on its machine.
    pub identifier: u16,
    /// Tells one request from others of the asker.
    pub sequence: u16,
    /// What only asker and answerer know.
    pub token: u64,
    /// The whole packet, IP header and all, bytes.
    pub size: u32,
}

const HEADER: usize = 8;
const TOKEN: usize = 8;
const ICMP: u8 = 1;

impl Family {
    /// Of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Bytes of a plain IP header.
    const fn ip_header(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    const fn kinds(self) -> (u8, u8) {
        match self {
            Self::V4 => (8, 0),
            Self::V6 => (128, 129),
        }
    }
}

/// Smallest packet that holds a header and a token, bytes.
pub const SIZE_MIN: u32 = 56;

impl Echo {
    /// The request, from its ICMP header on: the kernel adds what is before. Smaller than [`SIZE_MIN`] it does not get, nor larger than
    /// an IP packet may be.
    pub fn request(&self, family: Family) -> Vec<u8> {
        let size = usize::try_from(self.size.clamp(SIZE_MIN, u32::from(u16::MAX))).unwrap_or(usize::from(u16::MAX));
        let mut bytes = vec![0; size - family.ip_header()];
        bytes[0] = family.kinds().0;
        bytes[4..6].copy_from_slice(&self.identifier.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[HEADER..HEADER + TOKEN].copy_from_slice(&self.token.to_be_bytes());
        // The kernel sums ICMPv6 itself: the addresses are part of that.
        if family == Family::V4 {
            let sum = !sum(&bytes);
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// The reply in what a raw socket heard; `None` for anything else.
    pub fn read_reply(family: Family, heard: &[u8]) -> Option<Self> {
        let message = match family {
            Family::V4 => payload(heard)?,
            Family::V6 => heard,
        };
        let (header, rest) = message.split_at_checked(HEADER)?;
        let whole = match family {
            Family::V4 => sum(message) == u16::MAX,
            Family::V6 => true,
        };
        if !whole || header[0] != family.kinds().1 || header[1] != 0 {
            return None;
        }
        let token = rest.first_chunk::<TOKEN>()?;
        Some(Self {
            identifier: u16::from_be_bytes([header[4], header[5]]),
            sequence: u16::from_be_bytes([header[6], header[7]]),
            token: u64::from_be_bytes(*token),
            size: u32::try_from(family.ip_header() + message.len()).ok()?,
        })
    }
}

/// What an IPv4 packet of ICMP carries; its options are not counted as its size, because requests have none.
fn payload(packet: &[u8]) -> Option<&[u8]> {
    let first = *packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    let length = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let fits = first >> 4 == 4 && header >= Family::V4.ip_header() && packet.get(9) == Some(&ICMP);
    packet.get(header..length).filter(|_| fits)
}

/// The internet's sum, not yet turned round: all ones over bytes that hold their own.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What comes back for a request, as a raw socket hears it.
    fn reply(family: Family, echo: &Echo) -> Vec<u8> {
        let mut bytes = echo.request(family);
        bytes[0] = family.kinds().1;
        if family == Family::V6 {
            return bytes;
        }
        bytes[2..4].fill(0);
        let sum = !sum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        let length = u16::try_from(bytes.len() + 20).expect("it fits");
        let mut packet = vec![0x45, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, ICMP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(bytes);
        packet
    }

    fn any_echo() -> impl Strategy<Value = Echo> {
        (any::<u16>(), any::<u16>(), any::<u64>(), SIZE_MIN..9_500)
            .prop_map(|(identifier, sequence, token, size)| Echo { identifier, sequence, token, size })
    }

    proptest! {
        #[test]
        fn a_reply_says_what_the_request_said(echo in any_echo(), v6 in any::<bool>()) {
            let family = if v6 { Family::V6 } else { Family::V4 };
            prop_assert_eq!(echo.request(family).len() + family.ip_header(), echo.size as usize);
            prop_assert_eq!(Echo::read_reply(family, &reply(family, &echo)), Some(echo));
            prop_assert_eq!(Echo::read_reply(family, &echo.request(family)), None, "our own request is no answer");
        }

        #[test]
        fn no_bit_may_turn(echo in any_echo(), at in any::<proptest::sample::Index>(), bit in 0..8_u8) {
            let mut heard = reply(Family::V4, &echo);
            let at = 20 + at.index(heard.len() - 20);
            heard[at] ^= 1 << bit;
            prop_assert_eq!(Echo::read_reply(Family::V4, &heard), None);
        }

        #[test]
        fn whatever_is_heard_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..400_usize) {
            for family in [Family::V4, Family::V6] {
                if let Some(echo) = Echo::read_reply(family, &bytes) {
                    prop_assert!(echo.size as usize <= bytes.len() + 40);
                }
                let echo = Echo { identifier: 1, sequence: 2, token: 3, size: 300 };
                let mut whole = reply(family, &echo);
                let is_cut = cut < whole.len();
                whole.truncate(cut);
                // In IPv6 the kernel cut nothing, so a shorter one is a smaller packet.
                let found = Echo::read_reply(family, &whole);
                prop_assert!(!is_cut || found.is_none_or(|found| found.size < echo.size));
            }
        }
    }
}
