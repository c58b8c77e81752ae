//! Public keys as accounts store them, ready to verify with.
//!
//! OpenSSH text is parsed once; what the crypto library needs is kept parsed per hash, so that a verification costs the
//! curve and nothing else. Signatures of elliptic curves come as DER, as two bare numbers, or as an SSH agent packs them;
//! all are brought to DER first.

use std::{fmt, sync::OnceLock};

use aws_lc_rs::signature::{self as lc, ParsedPublicKey, VerificationAlgorithm};
use md5::{Digest as _, Md5};
use ssh_key::{
    EcdsaCurve,
    public::{EcdsaPublicKey, Ed25519PublicKey, KeyData, RsaPublicKey},
};

use super::SignatureError;

/// Longest line of OpenSSH text we read, bytes; RSA-16384 needs 2,800.
const OPENSSH_MAX: usize = 8_192;

/// How a message is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// PKCS#1 v1.5.
    Rsa(Hash),
    /// NIST curves.
    Ecdsa(Hash),
    /// Ed25519.
    Ed25519,
}

/// Hash of an [`Algorithm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Hash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }
}

impl Algorithm {
    /// Reads the name clients send, in any case.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "rsa-sha1" => Self::Rsa(Hash::Sha1),
            "rsa-sha256" => Self::Rsa(Hash::Sha256),
            "rsa-sha384" => Self::Rsa(Hash::Sha384),
            "rsa-sha512" => Self::Rsa(Hash::Sha512),
            "ecdsa-sha256" => Self::Ecdsa(Hash::Sha256),
            "ecdsa-sha384" => Self::Ecdsa(Hash::Sha384),
            "ecdsa-sha512" => Self::Ecdsa(Hash::Sha512),
            "ed25519-sha512" => Self::Ed25519,
            _ => return Err(SignatureError::UnsupportedAlgorithm(text.chars().take(32).collect())),
        })
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa(hash) => write!(f, "rsa-{}", hash.as_str()),
            Self::Ecdsa(hash) => write!(f, "ecdsa-{}", hash.as_str()),
            Self::Ed25519 => f.write_str("ed25519-sha512"),
        }
    }
}

/// A text that is no public key we can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// Not a line of OpenSSH public key text.
    #[error("this is not an OpenSSH public key")]
    Text,
    /// A kind nobody can sign requests with here.
    #[error("keys of type {0} cannot sign requests; use ed25519, ecdsa or rsa")]
    Kind(String),
}

/// The numbers of a public key, as certificates have them.
#[derive(Debug, Clone, Copy)]
pub enum Numbers<'a> {
    /// RSA: both big-endian.
    Rsa {
        /// The modulus.
        modulus: &'a [u8],
        /// The public exponent.
        exponent: &'a [u8],
    },
    /// A point of a NIST curve as SEC 1 writes it; its length tells the curve.
    Ecdsa(&'a [u8]),
    /// Ed25519.
    Ed25519(&'a [u8]),
}

/// A public key.
pub struct PublicKey {
    material: Material,
    /// MD5 of the key blob as colon-separated hex.
    pub fingerprint_md5: String,
    /// SHA-256 of the key blob as OpenSSH prints it.
    pub fingerprint_sha256: String,
    /// Parsed for each hash on first use.
    parsed: [OnceLock<Option<ParsedPublicKey>>; 4],
}

enum Material {
    /// DER of the two numbers.
    Rsa(Vec<u8>),
    /// The point, uncompressed.
    Ecdsa(Curve, Vec<u8>),
    Ed25519([u8; 32]),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    /// Bytes of a coordinate.
    const fn bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint_sha256)
    }
}

impl PublicKey {
    /// Reads one line of OpenSSH public key text.
    pub fn from_openssh(text: &str) -> Result<Self, InvalidKey> {
        if text.len() > OPENSSH_MAX {
            return Err(InvalidKey::Text);
        }
        let key = ssh_key::PublicKey::from_openssh(text.trim()).map_err(|_| InvalidKey::Text)?;
        Self::from_key_data(key.key_data())
    }

    /// From the numbers of a certificate's key.
    pub fn from_numbers(numbers: Numbers<'_>) -> Result<Self, InvalidKey> {
        let number = |bytes| ssh_key::Mpint::from_positive_bytes(bytes).map_err(|_| InvalidKey::Text);
        let data = match numbers {
            Numbers::Rsa { modulus, exponent } => {
                KeyData::Rsa(RsaPublicKey { e: number(exponent)?, n: number(modulus)? })
            }
            Numbers::Ecdsa(point) => {
                KeyData::Ecdsa(EcdsaPublicKey::from_sec1_bytes(point).map_err(|_| InvalidKey::Text)?)
            }
            Numbers::Ed25519(bytes) => {
                KeyData::Ed25519(Ed25519PublicKey(bytes.try_into().map_err(|_| InvalidKey::Text)?))
            }
        };
        Self::from_key_data(&data)
    }

    /// From a key that was read elsewhere.
    pub fn from_key_data(data: &KeyData) -> Result<Self, InvalidKey> {
        let material = match data {
            KeyData::Rsa(rsa) => {
                let number =
                    |mpint: &ssh_key::Mpint| mpint.as_positive_bytes().map(<[u8]>::to_vec).ok_or(InvalidKey::Text);
                Material::Rsa(der_sequence(&[der_integer(&number(&rsa.n)?), der_integer(&number(&rsa.e)?)]))
            }
            KeyData::Ecdsa(point) => {
                let curve = match point.curve() {
                    EcdsaCurve::NistP256 => Curve::P256,
                    EcdsaCurve::NistP384 => Curve::P384,
                    EcdsaCurve::NistP521 => Curve::P521,
                };
                Material::Ecdsa(curve, point.as_sec1_bytes().to_vec())
            }
            KeyData::Ed25519(key) => Material::Ed25519(key.0),
            other => return Err(InvalidKey::Kind(other.algorithm().as_str().to_owned())),
        };
        let blob = ssh_key::PublicKey::new(data.clone(), "").to_bytes().map_err(|_| InvalidKey::Text)?;
        let md5: Vec<String> = Md5::digest(&blob).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            material,
            fingerprint_md5: md5.join(":"),
            fingerprint_sha256: data.fingerprint(ssh_key::HashAlg::Sha256).to_string(),
            parsed: Default::default(),
        })
    }

    /// Whether `signature` over `message` was made with this key in this way.
    pub fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let Some(key) = self.parsed(algorithm) else {
            return false;
        };
        match &self.material {
            Material::Rsa(_) => key.verify_sig(message, signature).is_ok(),
            Material::Ed25519(_) => {
                let bare = ssh_blob(signature).unwrap_or(signature);
                key.verify_sig(message, bare).is_ok()
            }
            Material::Ecdsa(curve, _) => {
                ecdsa_forms(*curve, signature).iter().any(|der| key.verify_sig(message, der).is_ok())
            }
        }
    }

    fn parsed(&self, algorithm: Algorithm) -> Option<&ParsedPublicKey> {
        let (slot, how, bytes): (usize, &'static dyn VerificationAlgorithm, &[u8]) = match (&self.material, algorithm) {
            (Material::Rsa(der), Algorithm::Rsa(hash)) => (hash as usize, rsa(hash), der),
            (Material::Ecdsa(curve, point), Algorithm::Ecdsa(hash)) => (hash as usize, ecdsa(*curve, hash)?, point),
            (Material::Ed25519(key), Algorithm::Ed25519) => (0, &lc::ED25519, key),
            _ => return None,
        };
        self.parsed[slot].get_or_init(|| ParsedPublicKey::new(how, bytes).ok()).as_ref()
    }
}

fn rsa(hash: Hash) -> &'static dyn VerificationAlgorithm {
    match hash {
        Hash::Sha1 => &lc::RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY,
        Hash::Sha256 => &lc::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
        Hash::Sha384 => &lc::RSA_PKCS1_2048_8192_SHA384,
        Hash::Sha512 => &lc::RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY,
    }
}

fn ecdsa(curve: Curve, hash: Hash) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match (curve, hash) {
        (_, Hash::Sha1) => return None,
        (Curve::P256, Hash::Sha256) => &lc::ECDSA_P256_SHA256_ASN1,
        (Curve::P256, Hash::Sha384) => &lc::ECDSA_P256_SHA384_ASN1,
        (Curve::P256, Hash::Sha512) => &lc::ECDSA_P256_SHA512_ASN1,
        (Curve::P384, Hash::Sha256) => &lc::ECDSA_P384_SHA256_ASN1,
        (Curve::P384, Hash::Sha384) => &lc::ECDSA_P384_SHA384_ASN1,
        (Curve::P384, Hash::Sha512) => &lc::ECDSA_P384_SHA512_ASN1,
        (Curve::P521, Hash::Sha256) => &lc::ECDSA_P521_SHA256_ASN1,
        (Curve::P521, Hash::Sha384) => &lc::ECDSA_P521_SHA384_ASN1,
        (Curve::P521, Hash::Sha512) => &lc::ECDSA_P521_SHA512_ASN1,
    })
}

/// The readings of an elliptic-curve signature, as DER. More than one only when its length and its first byte agree by chance.
fn ecdsa_forms(curve: Curve, signature: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    if signature.first() == Some(&0x30) {
        forms.push(signature.to_vec());
    }
    if signature.len() == 2 * curve.bytes() {
        let (r, s) = signature.split_at(curve.bytes());
        forms.push(der_sequence(&[der_integer(r), der_integer(s)]));
    }
    forms.extend(ecdsa_to_der(ssh_blob(signature).unwrap_or(signature)));
    forms
}

/// DER of a pair of numbers as the SSH protocol packs them.
pub(crate) fn ecdsa_to_der(pair: &[u8]) -> Option<Vec<u8>> {
    let (r, rest) = ssh_string(pair)?;
    let (s, rest) = ssh_string(rest)?;
    let longest = Curve::P521.bytes() + 1;
    let sound = rest.is_empty() && r.len() <= longest && s.len() <= longest;
    sound.then(|| der_sequence(&[der_integer(r), der_integer(s)]))
}

/// The inner bytes of a signature as an SSH agent packs it: type name, then bytes.
fn ssh_blob(signature: &[u8]) -> Option<&[u8]> {
    let (name, rest) = ssh_string(signature)?;
    let known = name == b"ssh-ed25519" || name.starts_with(b"ecdsa-sha2-nistp");
    match ssh_string(rest)? {
        (inner, []) if known => Some(inner),
        _ => None,
    }
}

/// A length-prefixed text of the SSH protocol, and what follows it.
pub(crate) fn ssh_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

/// DER of a positive number given big-endian.
pub(crate) fn der_integer(bytes: &[u8]) -> Vec<u8> {
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    let digits = &bytes[first..];
    let mut content = Vec::with_capacity(digits.len() + 1);
    if digits.first().is_none_or(|byte| byte & 0x80 != 0) {
        content.push(0);
    }
    content.extend_from_slice(digits);
    der(0x02, &content)
}

/// DER of a sequence of encoded members.
pub(crate) fn der_sequence(members: &[Vec<u8>]) -> Vec<u8> {
    der(0x30, &members.concat())
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len().to_be_bytes();
    match content.len() {
        short @ 0..=127 => out.push(short as u8),
        _ => {
            let first = length.iter().position(|byte| *byte != 0).unwrap_or(length.len() - 1);
            out.push(0x80 | (length.len() - first) as u8);
            out.extend_from_slice(&length[first..]);
        }
    }
    out.extend_from_slice(content);
    out
}
