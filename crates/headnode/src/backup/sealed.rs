//! A stream that only the holder of a key can read, and in which every change is noticed.
//!
//! ```text
//! "neso sealed backup 1\n"  21 bytes
//! who can open it            8 bytes   the first of the key's SHA-256
//! salt                      32 bytes   of this stream; the stream's own key is HKDF-SHA256(key, salt)
//! chunks                    64 KiB of content each and 16 bytes of tag, AES-256-GCM; the last may be shorter, even empty
//! ```
//! A chunk's nonce is its number and whether it is the last, so chunks cannot be left out, repeated, put in another order or cut off at
//! the end. That is the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár 2015); a stream's key seals nothing else, so
//! numbers that start at zero are safe.

use std::{
    fs,
    io::{self, BufRead, Read, Write},
    path::Path,
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    digest,
    hkdf::{HKDF_SHA256, KeyType, Salt},
    rand,
};

use super::BackupError;

/// How a sealed file begins.
pub(super) const MAGIC: &[u8; 21] = b"neso sealed backup 1\n";
/// Bytes of content in a chunk.
const CHUNK: usize = 64 << 10;
/// Bytes that sealing adds to a chunk.
const TAG: usize = 16;
/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Bytes of a stream's salt.
const SALT_BYTES: usize = 32;
/// Bytes that tell keys from each other.
const NAME_BYTES: usize = 8;

/// A key that seals backups.
#[derive(Clone)]
pub struct SealKey {
    bytes: [u8; KEY_BYTES],
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealKey").field("name", &hex(&self.name())).finish_non_exhaustive()
    }
}

impl SealKey {
    /// A new key.
    pub fn generate() -> Result<Self, BackupError> {
        let mut bytes = [0; KEY_BYTES];
        rand::fill(&mut bytes).map_err(|_| BackupError::Cipher("draw a key"))?;
        Ok(Self { bytes })
    }

    /// Reads the key in `path`: 64 hexadecimal digits.
    pub fn load(path: &Path) -> Result<Self, BackupError> {
        let text = fs::read_to_string(path).map_err(|source| BackupError::io("read", path, source))?;
        Self::parse(text.trim()).ok_or_else(|| BackupError::NotAKey(path.to_owned()))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; KEY_BYTES];
        if text.len() != 2 * KEY_BYTES || !text.is_ascii() {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self { bytes })
    }

    /// The key as text, for its file.
    pub fn to_text(&self) -> String {
        format!("{}\n", hex(&self.bytes))
    }

    /// What tells it from other keys, and nothing of what it is.
    fn name(&self) -> [u8; NAME_BYTES] {
        let hash = digest::digest(&digest::SHA256, &self.bytes);
        let mut name = [0; NAME_BYTES];
        name.copy_from_slice(&hash.as_ref()[..NAME_BYTES]);
        name
    }

    /// The key of one stream.
    fn of_stream(&self, salt: &[u8]) -> Result<LessSafeKey, BackupError> {
        struct Length;
        impl KeyType for Length {
            fn len(&self) -> usize {
                KEY_BYTES
            }
        }
        let mut key = [0; KEY_BYTES];
        let derived = Salt::new(HKDF_SHA256, salt).extract(&self.bytes);
        let filled = derived.expand(&[b"neso backup"], Length).and_then(|okm| okm.fill(&mut key));
        filled.map_err(|_| BackupError::Cipher("derive a key"))?;
        let key = UnboundKey::new(&AES_256_GCM, &key).map_err(|_| BackupError::Cipher("use a key"))?;
        Ok(LessSafeKey::new(key))
    }
}

/// The nonce of a chunk.
fn nonce(number: u64, last: bool) -> Nonce {
    let mut bytes = [0; 12];
    bytes[3..11].copy_from_slice(&number.to_be_bytes());
    bytes[11] = u8::from(last);
    Nonce::assume_unique_for_key(bytes)
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Seals what is written.
pub(super) struct Seal<W> {
    to: W,
    key: LessSafeKey,
    number: u64,
    chunk: Vec<u8>,
}

impl<W: Write> Seal<W> {
    /// Begins a stream.
    pub(super) fn begin(mut to: W, key: &SealKey) -> Result<Self, BackupError> {
        let mut salt = [0; SALT_BYTES];
        rand::fill(&mut salt).map_err(|_| BackupError::Cipher("draw a salt"))?;
        let stream = key.of_stream(&salt)?;
        let head = [MAGIC.as_slice(), &key.name(), &salt].concat();
        to.write_all(&head).map_err(BackupError::Write)?;
        Ok(Self { to, key: stream, number: 0, chunk: Vec::with_capacity(CHUNK + TAG) })
    }

    /// Ends the stream. Without this it cannot be opened.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.send(true)?;
        Ok(self.to)
    }

    fn send(&mut self, last: bool) -> io::Result<()> {
        let sealed = self.key.seal_in_place_append_tag(nonce(self.number, last), Aad::empty(), &mut self.chunk);
        sealed.map_err(|_| io::Error::other("sealing failed"))?;
        self.number += 1;
        self.to.write_all(&self.chunk)?;
        self.chunk.clear();
        Ok(())
    }
}

impl<W: Write> Write for Seal<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Full ones leave when more comes: the last is marked as such.
        if self.chunk.len() == CHUNK {
            self.send(false)?;
        }
        let taken = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Opens what was sealed. Content leaves it only once its chunk was found unchanged.
pub(super) struct Open<R> {
    from: R,
    key: LessSafeKey,
    number: u64,
    chunk: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl<R: BufRead> Open<R> {
    /// Reads the head, [`MAGIC`] included.
    pub(super) fn begin(mut from: R, key: &SealKey) -> Result<Self, BackupError> {
        let mut head = [0; MAGIC.len() + NAME_BYTES + SALT_BYTES];
        from.read_exact(&mut head).map_err(|error| BackupError::damaged(0, error))?;
        let (magic, rest) = head.split_at(MAGIC.len());
        let (name, salt) = rest.split_at(NAME_BYTES);
        if magic != MAGIC {
            return Err(BackupError::NotABackup);
        }
        if name != key.name() {
            return Err(BackupError::OtherKey { needed: hex(name), given: hex(&key.name()) });
        }
        Ok(Self { key: key.of_stream(salt)?, from, number: 0, chunk: Vec::new(), taken: 0, ended: false })
    }

    fn fetch(&mut self) -> io::Result<()> {
        self.chunk.clear();
        self.taken = 0;
        (&mut self.from).take((CHUNK + TAG) as u64).read_to_end(&mut self.chunk)?;
        let last = self.from.fill_buf()?.is_empty();
        let opened = self.key.open_in_place(nonce(self.number, last), Aad::empty(), &mut self.chunk);
        let length = opened
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a sealed part was changed or cut off"))?
            .len();
        self.chunk.truncate(length);
        self.number += 1;
        self.ended = last;
        Ok(())
    }
}

impl<R: BufRead> Read for Open<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.chunk.len() && !self.ended {
            self.fetch()?;
        }
        let length = into.len().min(self.chunk.len() - self.taken);
        into[..length].copy_from_slice(&self.chunk[self.taken..self.taken + length]);
        self.taken += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealed(key: &SealKey, content: &[u8]) -> Vec<u8> {
        let mut seal = Seal::begin(Vec::new(), key).unwrap();
        seal.write_all(content).unwrap();
        seal.finish().unwrap()
    }

    fn opened(key: &SealKey, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        Open::begin(bytes, key).ok()?.read_to_end(&mut content).ok()?;
        Some(content)
    }

    #[test]
    fn keys_are_texts_that_are_checked() {
        let key = SealKey::generate().unwrap();
        assert_eq!(SealKey::parse(key.to_text().trim()).unwrap().bytes, key.bytes);
        for wrong in ["", "00", &"g".repeat(64), &"0".repeat(63), &"é".repeat(32)] {
            assert!(SealKey::parse(wrong).is_none(), "{wrong}");
        }
        assert!(!format!("{key:?}").contains(key.to_text().trim()));
    }

    #[test]
    fn another_key_is_told_from_damage() {
        let (key, other) = (SealKey::generate().unwrap(), SealKey::generate().unwrap());
        let bytes = sealed(&key, b"content");
        assert!(matches!(Open::begin(&*bytes, &other), Err(BackupError::OtherKey { .. })));
        assert!(matches!(
            Open::begin(&b"not sealed, but as long as the head of what is: sixty-one bytes"[..], &key),
            Err(BackupError::NotABackup)
        ));
    }

    #[test]
    fn nothing_may_be_cut_off_between_chunks() {
        let key = SealKey::generate().unwrap();
        let content = vec![7; 2 * CHUNK];
        let bytes = sealed(&key, &content);
        assert_eq!(opened(&key, &bytes).unwrap(), content);
        let head = MAGIC.len() + NAME_BYTES + SALT_BYTES;
        for chunks in 0..2 {
            assert_eq!(opened(&key, &bytes[..head + chunks * (CHUNK + TAG)]), None);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn what_was_sealed_comes_back(length in 0..3 * CHUNK, byte: u8) {
            let (key, content) = (SealKey::generate().unwrap(), vec![byte; length]);
            let bytes = sealed(&key, &content);
            prop_assert!(length < 32 || !bytes.windows(32).any(|window| window == &content[..32]));
            prop_assert_eq!(opened(&key, &bytes), Some(content));
        }

        #[test]
        fn every_change_is_noticed(length in 0..2 * CHUNK, at in 0.0..1.0_f64, flip in 1..=255_u8, cut: bool) {
            let key = SealKey::generate().unwrap();
            let mut bytes = sealed(&key, &vec![1; length]);
            let at = (at * bytes.len() as f64) as usize;
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= flip;
            }
            prop_assert_eq!(opened(&key, &bytes), None);
        }

        #[test]
        fn any_bytes_end(bytes: Vec<u8>) {
            prop_assert_eq!(opened(&SealKey::generate().unwrap(), &bytes), None);
        }
    }
}
