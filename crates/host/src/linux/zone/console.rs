//! The console log of a zone: two files of bounded size, the newer one written to, the older one kept.
//!
//! A tenant decides how much is written here, so both the size on disk and the rate are limited: the reader of the
//! terminal asks [`Budget`] how much it may take now, and a zone that floods its console waits for itself.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Bytes per file: enough for the boot of any Linux userland.
pub(crate) const FILE_BYTES: u64 = 256 * 1024;

/// Bytes a zone may write to its console per second: a serial line of the fastest kind, and little work for the host.
const BYTES_PER_SECOND: usize = 512 * 1024;

/// Writes the log.
pub(crate) struct Writer {
    directory: File,
    name: String,
    file: File,
    written: u64,
}

impl Writer {
    /// Opens the log `name` in a directory that is held open, so that it works wherever the process's root is.
    pub(crate) fn open(directory: File, name: &str) -> io::Result<Self> {
        let file = open_in(&directory, name, false)?;
        let written = file.metadata()?.len();
        Ok(Self { directory, name: name.to_owned(), file, written })
    }

    /// Appends; turns the page first when this one is full.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        // One read from a terminal is far smaller than a file; a longer piece keeps its end.
        let bytes = &bytes[bytes.len().saturating_sub(FILE_BYTES as usize)..];
        if self.written + bytes.len() as u64 > FILE_BYTES {
            nix::fcntl::renameat(&self.directory, self.name.as_str(), &self.directory, older(&self.name).as_str())?;
            self.file = open_in(&self.directory, &self.name, true)?;
            self.written = 0;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// The last `max_bytes` of the log at `path`.
pub(crate) fn tail(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    let newer = tail_of_file(path, max_bytes)?;
    let mut all = tail_of_file(&older_path(path), max_bytes - newer.len())?;
    all.extend_from_slice(&newer);
    Ok(all)
}

/// Removes the log at `path`.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    for file in [path.to_owned(), older_path(path)] {
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// How much may be read from a terminal now.
pub(crate) struct Budget {
    since: Instant,
    left: usize,
}

impl Budget {
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, left: BYTES_PER_SECOND }
    }

    /// Bytes that may be taken now, or how long to wait for the next ones.
    pub(crate) fn available(&mut self, now: Instant) -> Result<usize, Duration> {
        let passed = now.saturating_duration_since(self.since);
        if passed >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        match self.left {
            0 => Err(Duration::from_secs(1).saturating_sub(passed)),
            left => Ok(left),
        }
    }

    /// Takes some.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }
}

fn tail_of_file(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let from = file.metadata()?.len().saturating_sub(max_bytes as u64);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(max_bytes as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn older(name: &str) -> String {
    format!("{name}.1")
}

fn older_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

fn open_in(directory: &File, name: &str, fresh: bool) -> io::Result<File> {
    use nix::{fcntl::OFlag, sys::stat::Mode};
    let fresh = if fresh { OFlag::O_TRUNC } else { OFlag::empty() };
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | fresh;
    Ok(nix::fcntl::openat(directory, name, flags, Mode::from_bits_truncate(0o600))?.into())
}

/// Opens a directory to be held.
#[cfg(test)]
fn open_directory(path: &Path) -> io::Result<File> {
    File::open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_the_newest_and_never_exceeds_two_files() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("console.log");
        let mut writer = Writer::open(open_directory(directory.path()).expect("open"), "console.log").expect("open");
        let line = [b'x'; 1000];
        for _ in 0..2000 {
            writer.write(&line).expect("write");
        }
        writer.write(b"the end").expect("write");
        let on_disk: u64 = std::fs::read_dir(directory.path())
            .expect("list")
            .map(|entry| entry.expect("entry").metadata().expect("size").len())
            .sum();
        assert!(on_disk <= 2 * FILE_BYTES, "{on_disk}");
        assert_eq!(tail(&path, 10).expect("tail"), b"xxxthe end");
        let all = tail(&path, 1 << 20).expect("tail");
        assert!(all.len() as u64 > FILE_BYTES && all.ends_with(b"the end"), "{}", all.len());
        remove(&path).expect("remove");
        assert_eq!(std::fs::read_dir(directory.path()).expect("list").count(), 0);
    }

    #[test]
    fn a_flood_waits_for_the_next_second() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        budget.take(usize::MAX);
        let wait = budget.available(start).expect_err("spent");
        assert!(wait <= Duration::from_secs(1));
        assert!(budget.available(start + wait).is_ok());
    }
}
