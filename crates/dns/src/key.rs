//! The keys a zone is signed with, as DNSSEC knows them. One key signs everything of a zone; to roll it, a zone is signed with two for a
//! time. Private halves are never printed.

use std::fmt;

use aws_lc_rs::{
    digest,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};

use crate::name::Name;

/// A zone's key that the parent's digest may name, and that signs.
const FLAGS: u16 = 257;
const PROTOCOL: u8 = 3;
const DIGEST_SHA256: u8 = 2;

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

/// A key pair of a zone.
pub struct ZoneKey {
    pair: Pair,
    data: Vec<u8>,
    tag: u16,
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

    /// The key of what [`ZoneKey::generate`] gave.
    pub fn read(signing: Signing, secret: &[u8]) -> Result<Self, KeyError> {
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
        let mut data = FLAGS.to_be_bytes().to_vec();
        data.extend_from_slice(&[PROTOCOL, signing.number()]);
        data.extend_from_slice(&public);
        let tag = tag(&data);
        Ok(Self { pair, data, tag })
    }

    /// The short number by which signatures and the parent name it.
    pub fn tag(&self) -> u16 {
        self.tag
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
        let bytes = [apex.as_wire(), &self.data].concat();
        let digest = digest::digest(&digest::SHA256, &bytes);
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        format!("{apex}. IN DS {} {} {DIGEST_SHA256} {hex}", self.tag, self.signing().number())
    }

    /// The data of its record in the zone.
    pub(crate) fn data(&self) -> &[u8] {
        &self.data
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
        write!(formatter, "ZoneKey({} {})", self.signing().number(), self.tag)
    }
}

/// RFC 4034, appendix B.
fn tag(data: &[u8]) -> u16 {
    let sum: u32 =
        (0..).zip(data).map(|(at, byte)| if at % 2 == 0 { u32::from(*byte) << 8 } else { u32::from(*byte) }).sum();
    let sum = sum + (sum >> 16);
    u16::try_from(sum & 0xffff).unwrap_or(0)
}
