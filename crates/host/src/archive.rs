//! Image archives, read as strangers' bytes.
//!
//! ```text
//! file ─► SHA-256 ─► gzip ─► tar blocks ─► Member (checked) ─► Sink
//! ```
//! [`read`] walks an archive and hands each member to a [`Sink`] only after it was checked: its path has no root, no
//! `..`, no empty or overlong part; ids fit a zone; extension records are small. Nothing here touches a file system, so
//! the whole of it can be fuzzed. What a path means once directories and symbolic links exist is the sink's business:
//! see the Linux one, which lets the kernel refuse.
//!
//! The tar library's own extension handling is switched off, because it reads extension members into memory whatever
//! size they claim; the two kinds that matter (GNU long names, PAX records) are read here, with a limit.

use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use model::image::Compression;
use sha2::{Digest, Sha256};
use tar::{EntryType, PaxExtensions};

use crate::error::{Error, Result};

/// Most members of an archive: a full desktop has half a million files.
pub const MEMBERS_MAX: u64 = 4_000_000;

/// Most bytes an archive may unpack to: 256 GiB, so that a small file cannot keep a node writing for days.
pub const UNPACKED_BYTES_MAX: u64 = 256 << 30;

/// Most bytes of one extension member (long name, PAX records): names are 4 KiB, attributes 64 KiB at most.
pub const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// Most bytes of a path, as the kernel has it.
pub const PATH_BYTES_MAX: usize = 4095;

/// Most bytes of one part of a path, as file systems have it.
pub const NAME_BYTES_MAX: usize = 255;

/// Ids below this exist in a zone; see [`crate::zone::IdRange::COUNT`].
pub const ID_END: u64 = crate::zone::IdRange::COUNT as u64;

/// Bytes read from the file at a time.
const BUFFER_BYTES: usize = 128 * 1024;

/// A path inside the archive: its parts, none of them empty, `.`, `..` or with a `/`. No parts at all is the root.
pub type MemberPath = Vec<Vec<u8>>;

/// One member, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where.
    pub path: MemberPath,
    /// What.
    pub kind: MemberKind,
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    /// Owner inside the zone.
    pub uid: u32,
    /// Group inside the zone.
    pub gid: u32,
    /// Seconds since the epoch.
    pub mtime: u64,
    /// Extended attributes worth keeping (`user.…`, `security.capability`).
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    /// A directory.
    Directory,
    /// A file of so many bytes.
    File(u64),
    /// A symbolic link; its text is kept as it is, since nobody here follows it.
    Symlink(Vec<u8>),
    /// Another name of a member that came before.
    Hardlink(MemberPath),
    /// A named pipe.
    Fifo,
}

/// Where members go.
pub trait Sink {
    /// Takes one member; `content` yields the bytes of a file and nothing for the rest.
    fn member(&mut self, member: &Member, content: &mut dyn Read) -> Result<()>;
}

/// Walks an archive into `sink` and checks the file's SHA-256 (lower-case hex) at its end; until this returns, what the
/// sink holds is not to be trusted. Device nodes are skipped. Returns the sum of the files' sizes in bytes.
pub fn read(source: &mut dyn Read, sha256: &str, compression: Compression, sink: &mut dyn Sink) -> Result<u64> {
    let mut hashing = Hashing { inner: source, hasher: Sha256::new(), failure: None };
    let walked = {
        let buffered = BufReader::with_capacity(BUFFER_BYTES, &mut hashing);
        match compression {
            Compression::None => walk(buffered, sink),
            Compression::Gzip => walk(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(buffered)), sink),
        }
    };
    // A transfer that broke is not a bad archive: say so before blaming the bytes.
    if let Some(failure) = hashing.failure.take() {
        return Err(Error::os("read an image archive", failure));
    }
    // The sink's own trouble (a full pool) comes first; of a refusal, the wrong checksum is the better explanation.
    if let Err(error) = &walked
        && !matches!(error, Error::Refused { .. })
    {
        return walked;
    }
    io::copy(&mut hashing, &mut io::sink()).map_err(|source| Error::os("read an image archive", source))?;
    let found: String = hashing.hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found != sha256 {
        return Err(Error::Refused {
            what: "image archive".to_owned(),
            why: format!("its SHA-256 is {found}, not {sha256}"),
        });
    }
    walked
}

/// Walks an archive without unpacking it; the same checks and answers as [`read`].
pub fn check(source: &mut dyn Read, sha256: &str, compression: Compression) -> Result<u64> {
    struct Nowhere;
    impl Sink for Nowhere {
        fn member(&mut self, member: &Member, content: &mut dyn Read) -> Result<()> {
            let copied = io::copy(content, &mut io::sink()).map_err(|source| refused("archive", source.to_string()))?;
            match member.kind {
                MemberKind::File(size) if copied != size => {
                    Err(refused(&format!("archive member `{}`", display(&member.path)), "it ends early"))
                }
                _ => Ok(()),
            }
        }
    }
    read(source, sha256, compression, &mut Nowhere)
}

/// Reads a path of an archive. Leading `./` and doubled slashes are harmless and dropped.
pub fn member_path(bytes: &[u8]) -> Result<MemberPath> {
    let shown = || format!("archive member `{}`", shown(bytes));
    if bytes.len() > PATH_BYTES_MAX {
        return Err(refused(&shown(), format!("its path is longer than {PATH_BYTES_MAX} bytes")));
    }
    if bytes.first() == Some(&b'/') {
        return Err(refused(&shown(), "its path is absolute"));
    }
    if bytes.contains(&0) {
        return Err(refused(&shown(), "its path holds a zero byte"));
    }
    let mut path = MemberPath::new();
    for part in bytes.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(refused(&shown(), "its path climbs with `..`")),
            part if part.len() > NAME_BYTES_MAX => {
                return Err(refused(&shown(), format!("a part of its path is longer than {NAME_BYTES_MAX} bytes")));
            }
            part => path.push(part.to_vec()),
        }
    }
    Ok(path)
}

/// Text form of a path, for messages.
pub fn display(path: &MemberPath) -> String {
    shown(&path.join(&b'/'))
}

/// What extension members said about the next real one.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<u64>,
    size: Option<u64>,
    xattrs: Vec<(String, Vec<u8>)>,
}

fn walk(reader: impl Read, sink: &mut dyn Sink) -> Result<u64> {
    let bad = |source: io::Error| refused("image archive", source.to_string());
    let mut archive = tar::Archive::new(reader);
    let mut extensions = Extensions::default();
    let (mut members, mut bytes) = (0_u64, 0_u64);
    for entry in archive.entries().map_err(bad)?.raw(true) {
        let mut entry = entry.map_err(bad)?;
        members += 1;
        if members > MEMBERS_MAX {
            return Err(refused("image archive", format!("it has more than {MEMBERS_MAX} members")));
        }
        let kind = entry.header().entry_type();
        match kind {
            EntryType::XGlobalHeader => {}
            EntryType::GNULongName => extensions.path = Some(until_zero(extension(&mut entry)?)),
            EntryType::GNULongLink => extensions.link = Some(until_zero(extension(&mut entry)?)),
            EntryType::XHeader => extensions.read_pax(&extension(&mut entry)?)?,
            _ => {
                let said = std::mem::take(&mut extensions);
                let Some(member) = member(entry.header(), said)? else { continue };
                if let MemberKind::File(size) = member.kind {
                    bytes = bytes.saturating_add(size);
                }
                if bytes > UNPACKED_BYTES_MAX {
                    return Err(refused(
                        "image archive",
                        format!("it unpacks to more than {UNPACKED_BYTES_MAX} bytes"),
                    ));
                }
                sink.member(&member, &mut entry)?;
            }
        }
    }
    Ok(bytes)
}

fn extension(entry: &mut impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut limited = entry.take(EXTENSION_BYTES_MAX + 1);
    limited.read_to_end(&mut bytes).map_err(|source| refused("image archive", source.to_string()))?;
    if bytes.len() as u64 > EXTENSION_BYTES_MAX {
        return Err(refused("image archive", format!("an extension member is over {EXTENSION_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

impl Extensions {
    fn read_pax(&mut self, bytes: &[u8]) -> Result<()> {
        for record in PaxExtensions::new(bytes) {
            let record = record.map_err(|source| refused("PAX record", source.to_string()))?;
            let key = record.key().map_err(|source| refused("PAX record", source.to_string()))?;
            let value = record.value_bytes();
            let number = || -> Result<u64> {
                let text = std::str::from_utf8(value).ok().and_then(|text| text.split('.').next());
                text.and_then(|text| text.parse().ok())
                    .ok_or_else(|| refused(&format!("PAX record `{key}`"), "it is no number"))
            };
            match key {
                "path" => self.path = Some(value.to_vec()),
                "linkpath" => self.link = Some(value.to_vec()),
                "uid" => self.uid = Some(number()?),
                "gid" => self.gid = Some(number()?),
                "size" => self.size = Some(number()?),
                // Times before 1970 are no reason to refuse an image.
                "mtime" => self.mtime = Some(number().unwrap_or(0)),
                key if key.starts_with("GNU.sparse.") => {
                    return Err(refused("image archive", "it has sparse members; pack it without `--sparse`"));
                }
                key => {
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.")
                        && (name.starts_with("user.") || name == "security.capability")
                    {
                        self.xattrs.push((name.to_owned(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Checks one header; `None` for kinds that are skipped.
fn member(header: &tar::Header, said: Extensions) -> Result<Option<Member>> {
    let raw_path = said.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let path = member_path(&raw_path)?;
    let what = format!("archive member `{}`", shown(&raw_path));
    let bad = |source: io::Error| refused(&what, source.to_string());
    let size = header.entry_size().map_err(bad)?;
    if said.size.is_some_and(|told| told != size) {
        return Err(refused(&what, "it is larger than 8 GiB"));
    }
    let link = || said.link.clone().or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
    let kind = match header.entry_type() {
        // Archives older than POSIX mark directories by a slash alone.
        EntryType::Regular | EntryType::Continuous if raw_path.ends_with(b"/") && size == 0 => MemberKind::Directory,
        EntryType::Regular | EntryType::Continuous => MemberKind::File(size),
        EntryType::Directory => MemberKind::Directory,
        EntryType::Fifo => MemberKind::Fifo,
        EntryType::Symlink => match link() {
            Some(target) if !target.is_empty() && target.len() <= PATH_BYTES_MAX && !target.contains(&0) => {
                MemberKind::Symlink(target)
            }
            _ => return Err(refused(&what, "its link text is empty, too long or holds a zero byte")),
        },
        EntryType::Link => match member_path(&link().unwrap_or_default())? {
            target if target.is_empty() => return Err(refused(&what, "it links to the root")),
            target => MemberKind::Hardlink(target),
        },
        EntryType::Char | EntryType::Block => return Ok(None),
        other => return Err(refused(&what, format!("its kind {:?} is unknown", char::from(other.as_byte())))),
    };
    if path.is_empty() && kind != MemberKind::Directory {
        return Err(refused(&what, "the root is a directory"));
    }
    let id = |told: Option<u64>, header: io::Result<u64>| -> Result<u32> {
        let id = told.map_or(header, Ok).map_err(bad)?;
        match u32::try_from(id) {
            Ok(id) if u64::from(id) < ID_END => Ok(id),
            _ => Err(refused(&what, format!("its owner {id} is not below {ID_END}"))),
        }
    };
    Ok(Some(Member {
        mode: header.mode().map_err(bad)? & 0o7777,
        uid: id(said.uid, header.uid())?,
        gid: id(said.gid, header.gid())?,
        mtime: said.mtime.map_or_else(|| header.mtime(), Ok).map_err(bad)?,
        xattrs: said.xattrs,
        path,
        kind,
    }))
}

fn until_zero(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(200).collect()
}

fn refused(what: &str, why: impl Into<String>) -> Error {
    Error::Refused { what: what.to_owned(), why: why.into() }
}

/// Hashes what passes, and keeps the error of a source that broke.
struct Hashing<'a> {
    inner: &'a mut dyn Read,
    hasher: Sha256,
    failure: Option<io::Error>,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(count) => {
                self.hasher.update(&buffer[..count]);
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failure = Some(error);
                Err(kind.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_stay_inside() {
        assert_eq!(member_path(b"./a//b/").expect("inside"), vec![b"a".to_vec(), b"b".to_vec()]);
        assert!(member_path(b".").expect("the root").is_empty());
        for outside in [&b"/etc/passwd"[..], b"a/../../b", b"..", b"a/..", b"a\0b", &[b'a'; 300], &[b'/'; 5000]] {
            assert!(member_path(outside).is_err(), "{}", shown(outside));
        }
    }

    proptest! {
        #[test]
        fn any_path_is_refused_or_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(path) = member_path(&bytes) {
                for part in path {
                    prop_assert!(!part.is_empty() && part != b".." && part != b"." && !part.contains(&b'/'));
                }
            }
        }

        #[test]
        fn any_bytes_end_in_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let sum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            for compression in [Compression::None, Compression::Gzip] {
                let _ = check(&mut bytes.as_slice(), &sum, compression);
            }
        }

        #[test]
        fn a_damaged_archive_ends_in_an_answer(at in 0_usize..1536, value: u8) {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(5);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append_data(&mut header, "a".repeat(120), &b"hello"[..]).expect("in memory");
            let mut bytes = builder.into_inner().expect("in memory");
            bytes[at] = value;
            let sum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = check(&mut bytes.as_slice(), &sum, Compression::None);
        }
    }
}
