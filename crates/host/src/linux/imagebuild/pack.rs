//! Tar archives written here, and their compression; every time is [`super::EPOCH`], so equal content is equal bytes.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, GzBuilder, write::GzEncoder};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use tar::{EntryType, Header};

use super::{EPOCH, guest::GuestFile};
use crate::error::{Error, Result};

/// Bytes handled at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// A tar archive being written: everything belongs to root.
pub(super) struct Archive {
    tar: tar::Builder<BufWriter<File>>,
    path: PathBuf,
}

impl Archive {
    /// Begins an archive at `path`.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| Error::os(format!("create `{}`", path.display()), error))?;
        Ok(Self { tar: tar::Builder::new(BufWriter::new(file)), path: path.to_owned() })
    }

    /// Adds a directory.
    pub(super) fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        let header = header(EntryType::Directory, mode, 0);
        self.append(header, &format!("{path}/"), io::empty())
    }

    /// Adds a file.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.append(header(EntryType::Regular, mode, content.len() as u64), path, content)
    }

    /// Adds guest files.
    pub(super) fn files(&mut self, files: &[GuestFile]) -> Result<()> {
        files.iter().try_for_each(|file| self.file(file.path, file.mode, file.content.as_bytes()))
    }

    /// Adds a symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, path, target).map_err(|error| self.broken(path, error))
    }

    /// Ends the archive.
    pub(super) fn finish(self) -> Result<PathBuf> {
        let path = self.path;
        let doing = || format!("write `{}`", path.display());
        let mut file = self.tar.into_inner().map_err(|error| Error::os(doing(), error))?;
        file.flush().map_err(|error| Error::os(doing(), error))?;
        Ok(path)
    }

    fn append(&mut self, mut header: Header, path: &str, content: impl Read) -> Result<()> {
        self.tar.append_data(&mut header, path, content).map_err(|error| self.broken(path, error))
    }

    fn broken(&self, member: &str, error: io::Error) -> Error {
        Error::os(format!("add `{member}` to `{}`", self.path.display()), error)
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(EPOCH);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// A compressed file and what a manifest says of it.
pub(super) struct Packed {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Bytes.
    pub(super) size: u64,
    /// Lower-case hex.
    pub(super) sha1: String,
    /// Lower-case hex.
    pub(super) sha256: String,
}

/// Compresses `from` into `to`. No name and no time go into the result.
pub(super) fn gzip(from: &Path, to: &Path) -> Result<Packed> {
    let doing = || format!("compress `{}`", from.display());
    let os = |error| Error::os(doing(), error);
    let mut input = BufReader::with_capacity(CHUNK_BYTES, File::open(from).map_err(os)?);
    let sink = Hashing { out: File::create(to).map_err(os)?, sha1: Sha1::new(), sha256: Sha256::new(), size: 0 };
    let buffered = BufWriter::with_capacity(CHUNK_BYTES, sink);
    let mut encoder: GzEncoder<_> = GzBuilder::new().mtime(0).write(buffered, Compression::new(6));
    io::copy(&mut input, &mut encoder).map_err(os)?;
    let sink = encoder.finish().map_err(os)?.into_inner().map_err(|error| os(error.into_error()))?;
    sink.out.sync_all().map_err(os)?;
    Ok(Packed {
        path: to.to_owned(),
        size: sink.size,
        sha1: hex(&sink.sha1.finalize()),
        sha256: hex(&sink.sha256.finalize()),
    })
}

/// A file that is hashed while it is written.
struct Hashing {
    out: File,
    sha1: Sha1,
    sha256: Sha256,
    size: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sha1.update(&bytes[..written]);
        self.sha256.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
