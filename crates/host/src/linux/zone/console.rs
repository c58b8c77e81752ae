//! The console log of a zone: two files of bounded size, the newer one written to, the older one kept.
//!
//! A tenant decides how much is written here, so both the size on disk and the rate are limited: the reader of the
//! terminal asks [`Budget`] how much it may take now, and a zone that floods its console waits for itself.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::zone::{ConsoleMark, ConsolePiece};

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

/// At most `max_bytes` of the log at `path`: those that follow `after`, or else, or when that place is gone, the last ones.
pub(crate) fn read(path: &Path, after: Option<ConsoleMark>, max_bytes: usize) -> io::Result<ConsolePiece> {
    // The newer one first: a page that is turned in between is then seen twice, which can be told, rather than not at all.
    let newer = Page::open(path)?;
    let older = Page::open(&older_path(path))?.filter(|older| newer.as_ref().is_none_or(|newer| !newer.is(older.mark)));
    if let Some(after) = after {
        let holds = |page: &Option<Page>| page.as_ref().is_some_and(|page| page.is(after) && after.offset <= page.size);
        if holds(&newer) {
            return forward(newer, after.offset, max_bytes);
        }
        if holds(&older) {
            let rest = forward(older, after.offset, max_bytes)?;
            return if rest.bytes.is_empty() { forward(newer, 0, max_bytes) } else { Ok(rest) };
        }
    }
    let of_newer = newer.as_ref().map_or(0, |page| page.size.min(max_bytes as u64));
    let of_older = older.as_ref().map_or(0, |page| page.size.min(max_bytes as u64 - of_newer));
    let end = newer.as_ref().or(older.as_ref()).map(|page| ConsoleMark { offset: page.size, ..page.mark });
    let mut bytes = Vec::new();
    for (page, wanted) in [(older, of_older), (newer, of_newer)] {
        if let Some(mut page) = page {
            page.read(page.size - wanted, wanted, &mut bytes)?;
        }
    }
    Ok(ConsolePiece { bytes, end, lost: after.is_some() })
}

/// One of the two files, as large as it was when it was opened.
struct Page {
    file: File,
    mark: ConsoleMark,
    size: u64,
}

impl Page {
    fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let about = file.metadata()?;
        // Not every file system knows when a file was made; then its number alone has to do.
        let made = about.created().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        let born = made.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0));
        Ok(Some(Self { file, mark: ConsoleMark { file: about.ino(), born, offset: 0 }, size: about.len() }))
    }

    /// Whether a place is in this file.
    fn is(&self, mark: ConsoleMark) -> bool {
        (self.mark.file, self.mark.born) == (mark.file, mark.born)
    }

    fn read(&mut self, from: u64, count: u64, into: &mut Vec<u8>) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(from))?;
        (&self.file).take(count).read_to_end(into).map(drop)
    }
}

/// What follows a place in one file.
fn forward(page: Option<Page>, from: u64, max_bytes: usize) -> io::Result<ConsolePiece> {
    let mut bytes = Vec::new();
    let Some(mut page) = page else { return Ok(ConsolePiece { bytes, end: None, lost: false }) };
    page.read(from, (page.size - from).min(max_bytes as u64), &mut bytes)?;
    let end = ConsoleMark { offset: from + bytes.len() as u64, ..page.mark };
    Ok(ConsolePiece { bytes, end: Some(end), lost: false })
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
        let tail = |bytes| read(&path, None, bytes).expect("tail").bytes;
        assert_eq!(tail(10), b"xxxthe end");
        let all = tail(1 << 20);
        assert!(all.len() as u64 > FILE_BYTES && all.ends_with(b"the end"), "{}", all.len());
        remove(&path).expect("remove");
        assert_eq!(std::fs::read_dir(directory.path()).expect("list").count(), 0);
    }

    #[test]
    fn a_reader_that_follows_sees_every_byte_once_or_hears_that_some_are_lost() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("console.log");
        let nothing = read(&path, None, 100).expect("nothing");
        assert_eq!(nothing, ConsolePiece { bytes: Vec::new(), end: None, lost: false });
        let mut writer = Writer::open(open_directory(directory.path()).expect("open"), "console.log").expect("open");
        let (mut written, mut seen, mut mark) = (Vec::new(), Vec::new(), None);
        // More than a page, less than two, read in pieces that fit nothing.
        for number in 0..4000 {
            let line = format!("{number:0100}");
            writer.write(line.as_bytes()).expect("write");
            written.extend_from_slice(line.as_bytes());
            if number % 7 == 0 {
                let piece = read(&path, mark, 777).expect("read");
                assert!(!piece.lost);
                seen.extend_from_slice(&piece.bytes);
                mark = piece.end;
            }
        }
        loop {
            let piece = read(&path, mark, 777).expect("read");
            seen.extend_from_slice(&piece.bytes);
            assert!(!piece.lost && piece.bytes.len() <= 777);
            mark = piece.end;
            if piece.bytes.is_empty() {
                break;
            }
        }
        assert!(seen == written, "{} of {} bytes", seen.len(), written.len());
        for _ in 0..8000 {
            writer.write(&[b'y'; 100]).expect("write");
        }
        let late = read(&path, mark, 50).expect("read");
        assert!(late.lost && late.bytes == [b'y'; 50], "{late:?}");
        assert_eq!(late.end.expect("a place").to_string().parse(), Ok(late.end.expect("a place")));
        for wrong in ["", "1-2", "1-2-3-4", "a-b-c", "1-2--3"] {
            assert!(wrong.parse::<ConsoleMark>().is_err(), "{wrong}");
        }
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
