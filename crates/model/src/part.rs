//! Parts of documents, shared and known by their digest.
//!
//! The documents between headnode and node are made of parts, one per instance and a few for everything else. One change of the
//! datacenter makes one part anew; the next document shares all others with the one before. A [`Part`] makes that cheap: copying
//! it copies a pointer, comparing it with itself looks at nothing, and its [`Digest`] is computed once.
//!
//! A digest is the SHA-256 of the part's JSON, cut to 128 bits: both sides compute it from what *they* understood, so an older
//! program that drops a field it does not know comes to another digest, and is sent the whole.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    str::FromStr,
    sync::{Arc, OnceLock},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// Bytes of a digest: chance meets it once in 2^64 documents.
const DIGEST_BYTES: usize = 16;

/// What tells one content from another. As text, 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; DIGEST_BYTES]);

impl Digest {
    /// Of a text.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self::cut(&Sha256::digest(bytes))
    }

    /// Of a value's JSON.
    pub fn of(value: &impl Serialize) -> Self {
        Self::of_bytes(&serde_json::to_vec(value).expect("documents are plain data"))
    }

    fn cut(whole: &[u8]) -> Self {
        let mut cut = [0; DIGEST_BYTES];
        cut.copy_from_slice(&whole[..DIGEST_BYTES]);
        Self(cut)
    }
}

/// Makes the digest of a document from those of its parts.
#[derive(Default)]
pub(crate) struct Sum(Sha256);

impl Sum {
    /// Adds a value by its JSON.
    pub(crate) fn value(&mut self, value: &impl Serialize) {
        self.digest(Digest::of(value));
    }

    /// Adds a part under its key, both of which have a fixed size.
    pub(crate) fn part<T: Serialize>(&mut self, key: &[u8; 16], part: &Part<T>) {
        self.0.update(key);
        self.digest(part.digest());
    }

    /// Adds a digest.
    pub(crate) fn digest(&mut self, digest: Digest) {
        self.0.update(digest.0);
    }

    pub(crate) fn done(self) -> Digest {
        Digest::cut(&self.0.finalize())
    }
}

/// See the head of this file.
pub struct Part<T>(Arc<Inner<T>>);

struct Inner<T> {
    value: T,
    digest: OnceLock<Digest>,
}

// === impl Digest ===

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 32 hexadecimal digits, lower case")]
pub struct NoDigest;

impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(NoDigest),
        };
        if text.len() != 2 * DIGEST_BYTES {
            return Err(NoDigest);
        }
        let mut digest = [0; DIGEST_BYTES];
        for (to, from) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *to = digit(from[0])? << 4 | digit(from[1])?;
        }
        Ok(Self(digest))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

// === impl Part ===

impl<T> Part<T> {
    /// A part of its own.
    pub fn new(value: T) -> Self {
        Self(Arc::new(Inner { value, digest: OnceLock::new() }))
    }

    /// Whether both are one and the same, so that comparing them needs no look.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Part<T> {
    /// The same made in another way, always the same one for a type.
    pub(crate) fn digest_by(&self, make: impl FnOnce(&T) -> Digest) -> Digest {
        *self.0.digest.get_or_init(|| make(&self.0.value))
    }
}

impl<T: Serialize> Part<T> {
    /// What tells its content from others.
    pub fn digest(&self) -> Digest {
        *self.0.digest.get_or_init(|| Digest::of(&self.0.value))
    }
}

impl<T: Clone> Clone for Inner<T> {
    /// Only made to be changed.
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), digest: OnceLock::new() }
    }
}

impl<T> Clone for Part<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> From<T> for Part<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: Default> Default for Part<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Deref for Part<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: Clone> DerefMut for Part<T> {
    /// Copies what others share first.
    fn deref_mut(&mut self) -> &mut T {
        let inner = Arc::make_mut(&mut self.0);
        inner.digest = OnceLock::new();
        &mut inner.value
    }
}

impl<T: PartialEq> PartialEq for Part<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is(other) || self.0.value == other.0.value
    }
}

impl<T: Eq> Eq for Part<T> {}

impl<T: fmt::Debug> fmt::Debug for Part<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.value.fmt(f)
    }
}

impl<T: Serialize> Serialize for Part<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.value.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Part<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_text_and_back() {
        let digest = Digest::of_bytes(b"abc");
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for wrong in [
            "",
            "ba7816bf8f01cfea414140de5dae222",
            "BA7816bf8f01cfea414140de5dae2223",
            "ba7816bf8f01cfea414140de5dae222é",
        ] {
            assert_eq!(wrong.parse::<Digest>(), Err(NoDigest), "{wrong}");
        }
    }

    #[test]
    fn a_change_is_the_changers_alone_and_changes_the_digest() {
        let one = Part::new(vec![1, 2]);
        let mut other = one.clone();
        assert!(other.is(&one));
        let before = one.digest();
        other.push(3);
        assert_eq!((&*one, &*other), (&vec![1, 2], &vec![1, 2, 3]));
        assert_eq!((one.digest(), other.digest()), (before, Digest::of(&[1, 2, 3])));
        other.pop();
        assert!(other == one && !other.is(&one), "the same content in another place");
        assert_eq!(other.digest(), before);
    }
}
