//! What stands in a backup: lines of JSON, packed with gzip, sealed if there is a key.
//!
//! ```text
//! {"neso_backup":1,"datacenter":"dc-1","taken_at":"…","revision":4711,"program":"0.1.0"}
//! {"file":"pki/ca.key","mode":384,"content":"<base64>"}          certificates, keys, settings
//! {"key":"instances/…","value":{"v":1,"d":{…}}}                 every record as the store has it
//! {"end":{"files":7,"records":1234,"sha256":"<of every byte before this line>"}}
//! ```
//! The end says how many there were, so a file that was cut off cannot pass for a smaller one; who reads acts on nothing before the end
//! was seen, so [`read`] is called twice: once to look, once to act.

use std::io::{self, BufRead, Read, Write};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use model::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{
    BackupError,
    sealed::{MAGIC, Open, Seal, SealKey, hex},
};

/// Version of the lines.
const VERSION: u32 = 1;
/// Longest line, bytes: a record may be 2 MiB, and text in it grows a little.
const LINE_MAX: usize = 8 << 20;
/// Most files besides records.
const FILES_MAX: u64 = 64;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Version of the format.
    pub neso_backup: u32,
    /// The datacenter's name.
    pub datacenter: String,
    /// When it was taken.
    pub taken_at: Timestamp,
    /// Revision of the store it is the state of.
    pub revision: u64,
    /// Version of the program that took it.
    pub program: String,
}

impl Head {
    pub(super) fn new(datacenter: &str, taken_at: Timestamp, revision: u64) -> Self {
        let program = env!("CARGO_PKG_VERSION").to_owned();
        Self { neso_backup: VERSION, datacenter: datacenter.to_owned(), taken_at, revision, program }
    }
}

/// The last line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// How many files.
    pub files: u64,
    /// How many records.
    pub records: u64,
    /// SHA-256 of every byte before this line, hexadecimal.
    pub sha256: String,
}

/// Something in a backup.
#[derive(Debug)]
pub enum Item {
    /// A file of the headnode's.
    File {
        /// Where it belongs, e.g. `pki/ca.key`.
        name: String,
        /// Its permissions.
        mode: u32,
        /// What is in it.
        content: Vec<u8>,
    },
    /// A record as the store has it.
    Record {
        /// `<table>/<key>`.
        key: String,
        /// Its value.
        value: Bytes,
    },
}

/// Every line after the first: a file, a record or the end.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    value: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<End>,
}

/// Writes a backup, line by line.
pub(super) struct Writer<W: Write> {
    to: GzEncoder<Outer<W>>,
    sum: Sha256,
    end: End,
}

/// Below the packing.
enum Outer<W: Write> {
    Plain(W),
    Sealed(Seal<W>),
}

impl<W: Write> Write for Outer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(to) => to.write(bytes),
            Self::Sealed(to) => to.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(to) => to.flush(),
            Self::Sealed(to) => to.flush(),
        }
    }
}

impl<W: Write> Writer<W> {
    pub(super) fn begin(to: W, key: Option<&SealKey>, head: &Head) -> Result<Self, BackupError> {
        let outer = match key {
            Some(key) => Outer::Sealed(Seal::begin(to, key)?),
            None => Outer::Plain(to),
        };
        let end = End { files: 0, records: 0, sha256: String::new() };
        let mut writer = Self { to: GzEncoder::new(outer, Compression::default()), sum: Sha256::new(), end };
        writer.line(head).map_err(BackupError::Write)?;
        Ok(writer)
    }

    pub(super) fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.end.files += 1;
        let (file, content) = (Some(name.to_owned()), Some(STANDARD.encode(content)));
        self.line(&Line { file, mode: Some(mode), content, ..Line::default() })
    }

    pub(super) fn record(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        self.end.records += 1;
        let (key, value) = (Some(key.to_owned()), Some(serde_json::from_slice(value)?));
        self.line(&Line { key, value, ..Line::default() })
    }

    /// Writes the end. What was written to, and the end.
    pub(super) fn finish(mut self) -> io::Result<(W, End)> {
        self.end.sha256 = hex(self.sum.finalize_reset().as_ref());
        let end = self.end.clone();
        self.line(&Line { end: Some(end.clone()), ..Line::default() })?;
        match self.to.finish()? {
            Outer::Plain(to) => Ok((to, end)),
            Outer::Sealed(seal) => Ok((seal.finish()?, end)),
        }
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.sum.update(&text);
        self.to.write_all(&text)
    }
}

/// Reads a backup and shows what is in it. Head and end are returned only when every byte was there and unchanged.
///
/// # Errors
/// What is wrong with it; whatever `visit` returns.
pub fn read(
    mut from: impl BufRead,
    key: Option<&SealKey>,
    visit: &mut dyn FnMut(Item) -> Result<(), BackupError>,
) -> Result<(Head, End), BackupError> {
    let begins = from.fill_buf().map_err(|error| BackupError::damaged(0, error))?;
    if begins.starts_with(MAGIC) {
        let key = key.ok_or(BackupError::Sealed)?;
        let sealed = io::BufReader::new(Open::begin(from, key)?);
        // The head said what it is, and with which key.
        return unpack(sealed, visit).map_err(|error| match error {
            BackupError::NotABackup => BackupError::Damaged { line: 1, why: "it was changed or cut off".to_owned() },
            error => error,
        });
    }
    unpack(from, visit)
}

fn unpack(
    mut from: impl BufRead,
    visit: &mut dyn FnMut(Item) -> Result<(), BackupError>,
) -> Result<(Head, End), BackupError> {
    let (head, end) = read_lines(io::BufReader::new(GzDecoder::new(&mut from)), visit)?;
    // Nothing may follow, also not what a reader of one gzip member would not look at.
    match from.fill_buf() {
        Ok([]) => Ok((head, end)),
        Ok(_) => Err(BackupError::Damaged { line: 0, why: "something follows after its end".to_owned() }),
        Err(error) => Err(BackupError::damaged(0, error)),
    }
}

/// Reads the lines alone, as they are below packing and sealing.
///
/// # Errors
/// As [`read`].
pub fn read_lines(
    mut from: impl BufRead,
    visit: &mut dyn FnMut(Item) -> Result<(), BackupError>,
) -> Result<(Head, End), BackupError> {
    let (mut sum, mut text, mut line) = (Sha256::new(), Vec::new(), 1);
    next(&mut from, &mut text, line)?;
    let head: Head = serde_json::from_slice(&text).map_err(|_| BackupError::NotABackup)?;
    if head.neso_backup != VERSION {
        return Err(BackupError::Newer { found: head.neso_backup, known: VERSION });
    }
    let (mut files, mut records) = (0, 0);
    loop {
        sum.update(&text);
        line += 1;
        next(&mut from, &mut text, line)?;
        let damaged = |why: String| BackupError::Damaged { line, why };
        let read: Line<'_> = serde_json::from_slice(&text).map_err(|error| BackupError::damaged(line, error))?;
        match read {
            Line { file: Some(name), mode: Some(mode), content: Some(content), key: None, value: None, end: None } => {
                files += 1;
                if files > FILES_MAX {
                    return Err(damaged(format!("has more than {FILES_MAX} files")));
                }
                let content = STANDARD.decode(content).map_err(|error| BackupError::damaged(line, error))?;
                visit(Item::File { name, mode, content })?;
            }
            Line { key: Some(key), value: Some(value), file: None, mode: None, content: None, end: None } => {
                records += 1;
                visit(Item::Record { key, value: Bytes::copy_from_slice(value.get().as_bytes()) })?;
            }
            Line { end: Some(end), file: None, mode: None, content: None, key: None, value: None } => {
                // The line itself is not part of the sum.
                let found = End { files, records, sha256: hex(sum.finalize().as_ref()) };
                if end != found {
                    return Err(damaged(format!("it says {end:?}, but there is {found:?}")));
                }
                let rest = from.fill_buf().map_err(|error| BackupError::damaged(line, error))?;
                return if rest.is_empty() { Ok((head, end)) } else { Err(damaged("more follows".to_owned())) };
            }
            _ => return Err(damaged("is neither a file nor a record nor the end".to_owned())),
        }
    }
}

/// The next line, with its end.
fn next(from: &mut impl BufRead, text: &mut Vec<u8>, line: u64) -> Result<(), BackupError> {
    text.clear();
    let read = from.by_ref().take(LINE_MAX as u64).read_until(b'\n', text);
    read.map_err(|error| if line == 1 { BackupError::NotABackup } else { BackupError::damaged(line, error) })?;
    match text.last() {
        Some(b'\n') => Ok(()),
        _ if line == 1 => Err(BackupError::NotABackup),
        _ if text.len() >= LINE_MAX => {
            Err(BackupError::Damaged { line, why: format!("is longer than {LINE_MAX} bytes") })
        }
        _ => Err(BackupError::Damaged { line, why: "it ends too early".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(key: Option<&SealKey>, records: u64) -> Vec<u8> {
        let mut writer = Writer::begin(Vec::new(), key, &Head::new("here", Timestamp(1_000), 9)).unwrap();
        writer.file("pki/ca.key", 0o600, b"secret\xff").unwrap();
        for number in 0..records {
            writer.record(&format!("things/{number}"), format!("{{\"v\":1,\"d\":{number}}}").as_bytes()).unwrap();
        }
        writer.finish().unwrap().0
    }

    fn seen(key: Option<&SealKey>, bytes: &[u8]) -> Result<(Head, Vec<String>), BackupError> {
        let mut seen = Vec::new();
        let (head, _) = read(bytes, key, &mut |item| {
            seen.push(match item {
                Item::File { name, mode, content } => format!("{name} {mode:o} {content:?}"),
                Item::Record { key, value } => format!("{key} {}", String::from_utf8_lossy(&value)),
            });
            Ok(())
        })?;
        Ok((head, seen))
    }

    #[test]
    fn what_was_written_is_read() {
        let key = SealKey::generate().unwrap();
        for key in [None, Some(&key)] {
            let (head, seen) = seen(key, &written(key, 3)).unwrap();
            assert_eq!((head.datacenter.as_str(), head.revision, head.taken_at), ("here", 9, Timestamp(1_000)));
            assert_eq!(seen.len(), 4);
            assert_eq!(seen[3], r#"things/2 {"v":1,"d":2}"#);
            assert!(seen[0].starts_with("pki/ca.key 600 "));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let key = SealKey::generate().unwrap();
        assert!(matches!(seen(None, &written(Some(&key), 1)), Err(BackupError::Sealed)));
        assert!(matches!(seen(None, b"something else"), Err(BackupError::NotABackup)));
        assert!(matches!(seen(None, b""), Err(BackupError::NotABackup)));
        let mut twice = written(None, 1);
        twice.extend(written(None, 1));
        assert!(matches!(seen(None, &twice), Err(BackupError::Damaged { .. })));
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        let later = Head { neso_backup: 2, ..Head::new("here", Timestamp(0), 1) };
        packed.write_all(&serde_json::to_vec(&later).unwrap()).unwrap();
        packed.write_all(b"\n").unwrap();
        assert!(matches!(seen(None, &packed.finish().unwrap()), Err(BackupError::Newer { found: 2, .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_cut_is_noticed(records in 0..40_u64, at in 0.0..1.0_f64) {
            let bytes = written(None, records);
            prop_assert!(seen(None, &bytes[..(at * bytes.len() as f64) as usize]).is_err());
        }

        /// Some bits of gzip's own head mean nothing; what is read is what was written all the same.
        #[test]
        fn a_flipped_bit_changes_nothing_unnoticed(records in 0..40_u64, at in 0.0..1.0_f64, bit in 0..8_u32) {
            let mut bytes = written(None, records);
            let whole = seen(None, &bytes).unwrap();
            let at = (at * bytes.len() as f64) as usize;
            bytes[at] ^= 1 << bit;
            if let Ok(read) = seen(None, &bytes) {
                prop_assert_eq!(read, whole);
            }
        }

        #[test]
        fn any_bytes_end(bytes: Vec<u8>) {
            prop_assert!(seen(None, &bytes).is_err());
        }
    }
}
