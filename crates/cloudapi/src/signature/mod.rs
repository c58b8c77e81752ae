//! Who signed a request.
//!
//! ```text
//! Authorization: Signature keyId="/ana/keys/…",algorithm="rsa-sha256",headers="(request-target) date",signature="…"
//!    │ header: both grammars, or presigned: the query of a URL
//!    ▼
//! Claim { key id, algorithm, message, signature }  ── Keys::find ──►  PublicKey::verify  ──►  Verified
//! ```
//! [`verify`] is a pure function of the request's head, a key lookup and the time. It decides nothing about accounts:
//! whether the caller may do the deed is the server's business. Two grammars exist in the field and both are accepted: the
//! one of the HTTP Signatures draft, where each signed line carries its header's name, and the older one of the first
//! clients, where bare values are signed and the signature follows the parameters after a space. They cannot be confused
//! with each other: a bare date never starts with `date: `.

mod date;
mod header;
mod key_id;
mod presigned;
mod public_key;

use std::sync::Arc;

use http::{HeaderMap, Method, Version};

pub use date::{http_date, parse_date};
pub use key_id::KeyId;
pub use presigned::presign;
pub use public_key::{Algorithm, Hash, InvalidKey, Numbers, PublicKey};
pub(crate) use public_key::{der_integer, der_sequence, ecdsa_to_der, ssh_string};

use crate::error::Code;

/// How far a request's date may be from our clock, either way, in seconds: the contract's number.
pub const CLOCK_SKEW_SECONDS: u64 = 300;
/// Longest `Authorization` header we read, bytes: an RSA-16384 signature in base64 needs 2,732.
pub const AUTHORIZATION_MAX: usize = 8_192;
/// Most headers one signature may cover; real clients cover three.
pub const SIGNED_HEADERS_MAX: usize = 32;

/// The head of a request, as far as signatures see it.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// `GET` …
    pub method: &'a Method,
    /// Path and query as they came.
    pub target: &'a str,
    /// For `request-line`.
    pub version: Version,
    /// All headers.
    pub headers: &'a HeaderMap,
}

/// Where public keys come from.
pub trait Keys {
    /// Whatever the server knows of a key's holder.
    type Holder;

    /// The key `key` (a fingerprint or a name) of account `login`, and its holder.
    fn find(&self, login: &str, key: &str) -> Option<(Arc<PublicKey>, Self::Holder)>;
}

/// A request whose signature is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<H> {
    /// Whose key it was.
    pub holder: H,
    /// The key id as it was sent.
    pub key_id: String,
}

/// What a request claims: who signed what, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim<'a> {
    /// The key, by its owner and name.
    pub key_id: KeyId<'a>,
    /// The key id as it was sent.
    pub key_id_text: std::borrow::Cow<'a, str>,
    /// How it was signed.
    pub algorithm: Algorithm,
    /// What was signed.
    pub message: Vec<u8>,
    /// The signature's bytes.
    pub signature: Vec<u8>,
}

/// Why a request's signature is no good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Nothing is signed.
    #[error("this API answers signed requests only: send an Authorization header with an HTTP signature")]
    Unsigned,
    /// The header cannot be read.
    #[error("cannot read the Authorization header: {0}")]
    Malformed(String),
    /// A header that is listed as signed did not come.
    #[error("the signature covers the header \"{0}\", which the request does not have")]
    MissingHeader(String),
    /// A signature without a date can be repeated for ever.
    #[error("the signature must cover the header \"{0}\"")]
    DateNotSigned(&'static str),
    /// The date is no date.
    #[error("cannot read the date \"{0}\"; write it as in: Tue, 24 Nov 2026 15:06:00 GMT")]
    InvalidDate(String),
    /// The clocks differ, or somebody repeats an old request.
    #[error("the request's date is {0} s away from this server's clock; at most {CLOCK_SKEW_SECONDS} s are accepted")]
    ClockSkew(u64),
    /// A pre-signed URL is too old.
    #[error("the signed URL expired {0} s ago")]
    Expired(u64),
    /// A pre-signed URL is for other methods.
    #[error("the URL is not signed for the method {0}")]
    MethodNotSigned(String),
    /// An algorithm we do not speak.
    #[error("{0} is not a supported signing algorithm")]
    UnsupportedAlgorithm(String),
    /// A key id in none of the known shapes.
    #[error("invalid keyId \"{0}\": write it as /login/keys/fingerprint")]
    InvalidKeyId(String),
    /// Sub-users do not exist here.
    #[error("invalid keyId \"{0}\": keys of sub-users cannot be used here, sign with a key of the account")]
    SubUser(String),
    /// No such account, no such key, or the signature does not match: deliberately one text for all three.
    #[error("the signature does not match a key of the account named in keyId")]
    NoMatch,
}

impl SignatureError {
    /// The contract's code for it.
    pub const fn code(&self) -> Code {
        match self {
            Self::Malformed(_) | Self::MissingHeader(_) | Self::DateNotSigned(_) => Code::InvalidHeader,
            _ => Code::InvalidCredentials,
        }
    }
}

/// Decides who signed the request with this head, at time `now` (seconds since 1970).
pub fn verify<K: Keys>(head: Head<'_>, keys: &K, now: i64) -> Result<Verified<K::Holder>, SignatureError> {
    let claim = claim(head, now)?;
    let (key, holder) = keys.find(&claim.key_id.login, &claim.key_id.key).ok_or(SignatureError::NoMatch)?;
    if !key.verify(claim.algorithm, &claim.message, &claim.signature) {
        return Err(SignatureError::NoMatch);
    }
    Ok(Verified { holder, key_id: claim.key_id_text.into_owned() })
}

/// What the request claims, before any key is looked at. Date and expiry are already checked.
pub fn claim<'a>(head: Head<'a>, now: i64) -> Result<Claim<'a>, SignatureError> {
    if let Some(claim) = presigned::claim(head, now)? {
        return Ok(claim);
    }
    header::claim(head, now)
}
