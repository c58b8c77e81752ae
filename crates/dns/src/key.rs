//! The keys a zone is signed with, as DNSSEC knows them, and what each of them does. One key may sign everything of a zone; or one that the
//! parent names signs the zone's keys, and another, which is changed without the parent, everything else. To roll a key, a zone has two for a
//! time. Private halves are never printed.

use std::fmt;

use aws_lc_rs::{
    digest,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};

use domain::{
    base::{
        iana::{DigestAlgorithm, SecurityAlgorithm},
        rdata::ComposeRecordData,
    },
    rdata::{Dnskey, Ds},
};

use crate::{name::Name, rrset::Kind};

/// Flags of a key of a zone.
const ZONE: u16 = 256;
/// Of those, of one that the parent's digest may name.
const ENTRY: u16 = 257;
const PROTOCOL: u8 = 3;

/// How a zone is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signing {
    /// ECDSA over P-256 with SHA-256, algorithm 13: understood by every resolver that validates.
    EcdsaP256,
    /// Ed25519, algorithm 15: smaller and faster, not understood by some old resolvers.
    Ed25519,
}

impl Signing {
    /// Its number in the protocol.
    pub fn number(self) -> u8 {
        match self {
            Self::EcdsaP256 => 13,
            Self::Ed25519 => 15,
        }
    }
}

/// What a key does in its zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Signs everything; the parent may name it.
    All,
    /// Signs the zone's keys; the parent may name it.
    Keys,
    /// Signs everything but the zone's keys.
    Records,
    /// Is shown among the zone's keys and signs nothing: not yet, or no more.
    Shown,
}

/// A key pair of a zone.
pub struct ZoneKey {
    pair: Pair,
    duty: Duty,
    record: Dnskey<Vec<u8>>,
    data: Vec<u8>,
}

enum Pair {
    EcdsaP256(Box<EcdsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
}

/// A key cannot be made or read; why is not said, since it would say something about the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a private key for this way of signing")]
pub struct KeyError;

impl ZoneKey {
    /// A new key, as what is to be kept secret of it (PKCS #8).
    pub fn generate(signing: Signing) -> Result<Vec<u8>, KeyError> {
        let random = SystemRandom::new();
        let document = match signing {
            Signing::EcdsaP256 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random),
            Signing::Ed25519 => Ed25519KeyPair::generate_pkcs8(&random),
        };
        document.map(|document| document.as_ref().to_vec()).map_err(|_| KeyError)
    }

    /// The key of what [`ZoneKey::generate`] gave, for everything.
    pub fn read(signing: Signing, secret: &[u8]) -> Result<Self, KeyError> {
        Self::with_duty(signing, secret, Duty::All)
    }

    /// The key of what [`ZoneKey::generate`] gave, for one duty.
    pub fn with_duty(signing: Signing, secret: &[u8], duty: Duty) -> Result<Self, KeyError> {
        let (pair, public) = match signing {
            Signing::EcdsaP256 => {
                let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, secret).map_err(|_| KeyError)?;
                // The point without the byte that says it is not compressed.
                let public = pair.public_key().as_ref().get(1..).ok_or(KeyError)?.to_vec();
                (Pair::EcdsaP256(Box::new(pair)), public)
            }
            Signing::Ed25519 => {
                let pair = Ed25519KeyPair::from_pkcs8(secret).map_err(|_| KeyError)?;
                let public = pair.public_key().as_ref().to_vec();
                (Pair::Ed25519(Box::new(pair)), public)
            }
        };
        let flags = if matches!(duty, Duty::All | Duty::Keys) { ENTRY } else { ZONE };
        let algorithm = SecurityAlgorithm::from_int(signing.number());
        let record = Dnskey::new(flags, PROTOCOL, algorithm, public).map_err(|_| KeyError)?;
        let mut data = Vec::with_capacity(80);
        let Ok(()) = record.compose_rdata(&mut data);
        Ok(Self { pair, duty, record, data })
    }

    /// The short number by which signatures and the parent name it.
    pub fn tag(&self) -> u16 {
        self.record.key_tag()
    }

    /// What it does.
    pub fn duty(&self) -> Duty {
        self.duty
    }

    /// How it signs.
    pub fn signing(&self) -> Signing {
        match self.pair {
            Pair::EcdsaP256(_) => Signing::EcdsaP256,
            Pair::Ed25519(_) => Signing::Ed25519,
        }
    }

    /// The record that goes into the zone's parent, as a zone file has it.
    pub fn parent_record(&self, apex: &Name) -> String {
        let digest = digest::digest(&digest::SHA256, &[apex.as_wire(), &self.data].concat());
        let (tag, algorithm) = (self.tag(), self.record.algorithm());
        let record = Ds::new(tag, algorithm, DigestAlgorithm::SHA256, digest.as_ref().to_vec());
        let record = record.expect("a digest is short");
        let hex: String = record.digest().iter().map(|byte| format!("{byte:02X}")).collect();
        // Numbers and not the library's words, which some registrars' forms do not take.
        format!("{apex}. IN DS {tag} {} {} {hex}", record.algorithm().to_int(), record.digest_type().to_int())
    }

    /// The data of its record in the zone.
    pub(crate) fn data(&self) -> &[u8] {
        &self.data
    }

    /// Whether it signs sets of a kind.
    pub(crate) fn signs(&self, kind: Kind) -> bool {
        match self.duty {
            Duty::All => true,
            Duty::Keys => kind == Kind::DNSKEY,
            Duty::Records => kind != Kind::DNSKEY,
            Duty::Shown => false,
        }
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.pair {
            Pair::EcdsaP256(pair) => {
                pair.sign(&SystemRandom::new(), bytes).map(|signature| signature.as_ref().to_vec())
            }
            Pair::Ed25519(pair) => pair.try_sign(bytes).map(|signature| signature.as_ref().to_vec()),
        }
        .map_err(|_| KeyError)
    }
}

impl fmt::Debug for ZoneKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ZoneKey({} {} {:?})", self.signing().number(), self.tag(), self.duty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_digests_are_the_standards() {
        // RFC 8080, 6.1: the first example, its private half as PKCS #8.
        let begin = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        let secret = [begin.as_slice(), b"82260384628080122645190204142262"].concat();
        let key = ZoneKey::read(Signing::Ed25519, &secret).unwrap();
        assert_eq!(key.tag(), 3613);
        assert_eq!(
            key.parent_record(&"example.com".parse().unwrap()),
            "example.com. IN DS 3613 15 2 3AA5AB37EFCE57F737FC1627013FEE07BDF241BD10F3B1964AB55C78E79A304B"
        );
        let other = ZoneKey::with_duty(Signing::Ed25519, &secret, Duty::Records).unwrap();
        assert_ne!(other.tag(), key.tag(), "the tag is over the flags too");
    }
}
