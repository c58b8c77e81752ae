//! History that has left the store: compressed JSON lines in files that are bounded in size, age and number.
//!
//! ```text
//!   <directory>/flows-1795532760000.jsonl.gz     kind, and when the file was begun (milliseconds since the epoch)
//!               └─ gzip members, one per append, each flushed to the disk before the append is answered
//! ```
//!
//! Whoever archives deletes its records after the answer, so a crash in between archives some twice and loses none; readers
//! drop what they have seen. A torn member, the trace of a crash or a full disk, ends its file for readers, and nothing is ever
//! written behind it: a process begins a new file, and begins another after each failure.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};

/// A file that has grown to this is full, bytes: small enough to read through while somebody waits.
pub const FILE_MAX_BYTES: u64 = 8 << 20;
/// A file begun this long ago is full: so that whole files can go when their time has come.
pub const FILE_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long history is kept: a year, and a month to look back at it.
pub const KEPT_FOR: Duration = Duration::from_secs(400 * 24 * 3600);
/// All files of one kind together, bytes.
pub const KIND_MAX_BYTES: u64 = 256 << 20;
/// Files of one kind: each start of the program begins one.
pub const KIND_MAX_FILES: usize = 1_000;
/// Longest line that is read, bytes; longer than any record a store takes.
const LINE_MAX_BYTES: u64 = 4 << 20;
/// How file names end.
const SUFFIX: &str = ".jsonl.gz";

/// Why history could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("failed to {doing} `{path}`")]
pub struct ArchiveError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A directory of history. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Archive(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    file_max_bytes: u64,
    kind_max_bytes: u64,
    // Held while one append is on its way to the disk, on a thread that may wait.
    open: Mutex<Vec<Open>>,
}

/// The file of a kind that is being written.
#[derive(Debug)]
struct Open {
    kind: &'static str,
    file: File,
    begun_ms: i64,
    bytes: u64,
}

impl Archive {
    /// History below `directory`, which is made when something is archived.
    pub fn new(directory: PathBuf) -> Self {
        Self::with_limits(directory, FILE_MAX_BYTES, KIND_MAX_BYTES)
    }

    /// The same with other limits than [`FILE_MAX_BYTES`] and [`KIND_MAX_BYTES`].
    pub fn with_limits(directory: PathBuf, file_max_bytes: u64, kind_max_bytes: u64) -> Self {
        Self(Arc::new(Inner { directory, file_max_bytes, kind_max_bytes, open: Mutex::default() }))
    }

    /// Puts `lines`, each one JSON value without a line break, behind what is archived of `kind`. They are on the disk when this
    /// returns.
    pub async fn append(&self, kind: &'static str, lines: Vec<String>, now_ms: i64) -> Result<(), ArchiveError> {
        let inner = self.0.clone();
        base::task::blocking("archive", move || inner.append(kind, &lines, now_ms)).await
    }

    /// The newest lines of `kind` that are `wanted`, newest first, at most `limit`.
    pub async fn newest(
        &self,
        kind: &'static str,
        limit: usize,
        wanted: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<Vec<String>, ArchiveError> {
        let inner = self.0.clone();
        base::task::blocking("archive", move || inner.newest(kind, limit, &wanted)).await
    }
}

impl Inner {
    fn append(&self, kind: &'static str, lines: &[String], now_ms: i64) -> Result<(), ArchiveError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken out: only a file whose last append went well is written again.
        let held = open.iter().position(|file| file.kind == kind).map(|at| open.swap_remove(at));
        let max_age_ms = i64::try_from(FILE_MAX_AGE.as_millis()).unwrap_or(i64::MAX);
        let fit =
            held.filter(|file| file.bytes < self.file_max_bytes && now_ms.saturating_sub(file.begun_ms) < max_age_ms);
        let mut file = match fit {
            Some(file) => file,
            None => {
                self.sweep(kind, now_ms)?;
                self.begin(kind, now_ms)?
            }
        };
        let mut member = GzEncoder::new(Vec::new(), Compression::default());
        let packed = lines.iter().try_for_each(|line| writeln!(member, "{line}")).and_then(|()| member.finish());
        let written = packed.and_then(|packed| {
            file.file.write_all(&packed)?;
            file.file.sync_data()?;
            Ok(packed.len() as u64)
        });
        file.bytes += written.map_err(|source| self.failed("write", &self.path(kind, file.begun_ms), source))?;
        open.push(file);
        Ok(())
    }

    fn begin(&self, kind: &'static str, now_ms: i64) -> Result<Open, ArchiveError> {
        let directory = &self.directory;
        fs::create_dir_all(directory).map_err(|source| self.failed("make directory", directory, source))?;
        let mut begun_ms = now_ms;
        loop {
            let path = self.path(kind, begun_ms);
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Ok(file) => {
                    let synced = File::open(directory).and_then(|directory| directory.sync_all());
                    synced.map_err(|source| self.failed("flush directory", directory, source))?;
                    return Ok(Open { kind, file, begun_ms, bytes: 0 });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => begun_ms += 1,
                Err(source) => return Err(self.failed("make", &path, source)),
            }
        }
    }

    /// Removes files that are too old, too many or too much.
    fn sweep(&self, kind: &str, now_ms: i64) -> Result<(), ArchiveError> {
        let oldest_ms = now_ms.saturating_sub(i64::try_from(KEPT_FOR.as_millis()).unwrap_or(i64::MAX));
        let mut bytes = 0;
        for (position, (begun_ms, path)) in self.files(kind)?.into_iter().rev().enumerate() {
            bytes += fs::metadata(&path).map_or(0, |metadata| metadata.len());
            // One more is about to be begun.
            if begun_ms >= oldest_ms && position + 1 < KIND_MAX_FILES && bytes <= self.kind_max_bytes {
                continue;
            }
            tracing::info!(path = %path.display(), "history has been kept long enough");
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(self.failed("remove", &path, source));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn newest(&self, kind: &str, limit: usize, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<String>, ArchiveError> {
        let mut found = Vec::new();
        for (_, path) in self.files(kind)?.into_iter().rev() {
            if found.len() >= limit {
                break;
            }
            let file = match File::open(&path) {
                Ok(file) => file,
                // Swept while we looked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(self.failed("read", &path, source)),
            };
            let mut lines = lines_of(file, wanted);
            lines.reverse();
            lines.truncate(limit - found.len());
            found.append(&mut lines);
        }
        Ok(found)
    }

    /// Files of a kind, oldest first.
    fn files(&self, kind: &str) -> Result<Vec<(i64, PathBuf)>, ArchiveError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(self.failed("list", &self.directory, source)),
        };
        let begun = |name: &str| name.strip_prefix(kind)?.strip_prefix('-')?.strip_suffix(SUFFIX)?.parse::<i64>().ok();
        let mut files: Vec<_> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                Some((begun(path.file_name()?.to_str()?)?, path))
            })
            .collect();
        files.sort();
        Ok(files)
    }

    fn path(&self, kind: &str, begun_ms: i64) -> PathBuf {
        self.directory.join(format!("{kind}-{begun_ms}{SUFFIX}"))
    }

    fn failed(&self, doing: &'static str, path: &Path, source: io::Error) -> ArchiveError {
        ArchiveError { doing, path: path.to_owned(), source }
    }
}

/// Whole lines up to the end, or to where the file is torn.
fn lines_of(file: File, wanted: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut reader = BufReader::new(MultiGzDecoder::new(file));
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        let read = (&mut reader).take(LINE_MAX_BYTES).read_until(b'\n', &mut line);
        if !matches!(read, Ok(bytes) if bytes > 0) || line.pop() != Some(b'\n') {
            return lines;
        }
        if let Ok(line) = String::from_utf8(line)
            && wanted(&line)
        {
            lines.push(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(from: usize, to: usize) -> Vec<String> {
        (from..to).map(|number| format!("{{\"n\":{number}}}")).collect()
    }

    async fn read(archive: &Archive, limit: usize) -> Vec<String> {
        let mut found = archive.newest("flows", limit, |_| true).await.unwrap();
        found.reverse();
        found
    }

    #[tokio::test]
    async fn what_is_archived_is_found_also_over_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let archive = Archive::new(directory.path().join("archive"));
        assert!(read(&archive, 10).await.is_empty());
        archive.append("flows", lines(0, 3), 1_000).await.unwrap();
        archive.append("flows", lines(3, 5), 2_000).await.unwrap();
        archive.append("other", lines(90, 91), 2_000).await.unwrap();
        let again = Archive::new(directory.path().join("archive"));
        again.append("flows", lines(5, 6), 2_000).await.unwrap();
        assert_eq!(read(&again, 100).await, lines(0, 6));
        assert_eq!(read(&again, 2).await, lines(4, 6));
        let some = again.newest("flows", 10, |line| line.contains('4')).await.unwrap();
        assert_eq!(some, lines(4, 5));
    }

    #[tokio::test]
    async fn torn_ends_are_skipped_and_never_written_behind() {
        let directory = tempfile::tempdir().unwrap();
        let archive = Archive::new(directory.path().to_owned());
        archive.append("flows", lines(0, 2), 1).await.unwrap();
        let path = directory.path().join("flows-1.jsonl.gz");
        let whole = fs::read(&path).unwrap();
        archive.append("flows", lines(2, 400), 2).await.unwrap();
        let both = fs::read(&path).unwrap();
        for end in whole.len()..both.len() {
            fs::write(&path, &both[..end]).unwrap();
            let found = read(&archive, 1_000).await;
            assert_eq!(found[..2], lines(0, 2), "cut at {end}");
            assert_eq!(found, lines(0, found.len()), "cut at {end}");
        }
        let again = Archive::new(directory.path().to_owned());
        again.append("flows", lines(400, 401), 1).await.unwrap();
        assert_eq!(read(&again, 1_000).await.last(), lines(400, 401).last());
    }

    #[tokio::test]
    async fn files_are_bounded_in_size_age_and_sum() {
        let directory = tempfile::tempdir().unwrap();
        let archive = Archive::with_limits(directory.path().to_owned(), 1, 300);
        for number in 0..40 {
            archive.append("flows", lines(number, number + 1), 1 + i64::try_from(number).unwrap()).await.unwrap();
        }
        let bytes: u64 =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes < 400, "{bytes} bytes are kept");
        let found = read(&archive, 100).await;
        assert_eq!(found.last(), lines(39, 40).last());
        assert!(found.len() > 2 && found.len() < 20, "{found:?}");
        let later = i64::try_from(KEPT_FOR.as_millis()).unwrap() + 1_000;
        archive.append("flows", lines(50, 51), later).await.unwrap();
        assert_eq!(read(&archive, 100).await, lines(50, 51));
    }
}
