//! Backups: everything a headnode cannot be made anew without, in one file, of one moment.
//!
//! ```text
//!  snapshot of the store ─┐
//!  authority, keys        ├─► lines ─► gzip ─► sealed if there is a key ─► file ─► read back, opened as a store ─► copies
//!  settings               ┘                                                          only then is it one
//! ```
//! A snapshot never changes, so taking a backup stops nobody. What was written is read back and opened as a store before it counts
//! ([`verify`]): a backup nobody has tried is a hope. Image files are not in it; they are large, and every machine has those it uses.
//!
//! - [`file`]: the lines.
//! - [`sealed`]: what is around them when there is a key.
//! - [`restore`]: the way back, on a machine without a headnode.
//! - [`cluster`]: the way back into etcd.
//! - [`push`]: to other machines, by a command.
//! - [`others`]: to the other headnodes, which fetch them.
//! - [`standing`]: how old the newest is, and where it lies.

pub(crate) mod cluster;
pub mod file;
mod others;
mod push;
pub mod restore;
mod schedule;
pub mod sealed;
mod standing;

use std::{
    fs,
    io::{self, BufReader, BufWriter, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use model::time::Timestamp;
use serde::Serialize;
use store::{DecodeError, Fill, FillError, Snapshot, Trial};
use tokio::sync::Mutex;

use crate::{
    pki::{PkiError, make_directory},
    settings::Settings,
};
use file::{End, Head, Item, Writer};
use sealed::SealKey;

pub use others::{KeepOthers, Offers};
pub use schedule::TakeBackups;
pub use standing::{Kept, Standing};

/// How files of ours end.
const EXTENSION: &str = "neso-backup";
/// What follows on the name of one that is not finished.
const UNFINISHED: &str = ".new";
/// Records read before they are handed over, while a backup is read on a thread of its own.
const AHEAD: usize = 1024;
/// Files of the certificates' directory that belong to the datacenter, and where its machine is said.
const PKI_FILES: [&str; 7] = ["ca.pem", "ca.key", "server.pem", "server.key", "node.pem", "node.key", "server-id"];
/// Files of the operator's directory.
const OPERATOR_FILES: [&str; 2] = ["operator.pem", "operator.key"];

/// Why a backup was not taken, read or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file could not be read or written.
    #[error("failed to {doing} `{path}`")]
    Io {
        /// Operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The backup could not be written.
    #[error("failed to write the backup")]
    Write(#[source] io::Error),
    /// The library of ciphers refused.
    #[error("failed to {0}")]
    Cipher(&'static str),
    /// The file of a key holds none.
    #[error("`{0}` is not a key of backups: 64 hexadecimal digits; `neso adm backup key FILE` makes one")]
    NotAKey(PathBuf),
    /// It is something else.
    #[error("this is not a backup of Neso's")]
    NotABackup,
    /// It needs a key and there is none.
    #[error("the backup is sealed; name the file of its key with --key")]
    Sealed,
    /// It needs another key.
    #[error("the backup is sealed with another key: {needed}, not {given}")]
    OtherKey {
        /// What tells the needed key from others.
        needed: String,
        /// The same of the one at hand.
        given: String,
    },
    /// A later program wrote it.
    #[error(
        "the backup has format {found}, this program knows {known}; use the program it was taken with, or a newer one"
    )]
    Newer {
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// It was changed or cut off.
    #[error("the backup is damaged at line {line}: {why}; take another one")]
    Damaged {
        /// Where; 0 is outside all lines.
        line: u64,
        /// In words.
        why: String,
    },
    /// A store cannot be made of its records.
    #[error("a store cannot be made of the backup")]
    Fill(#[from] FillError),
    /// A record is not one this program can read.
    #[error("the backup holds a record that cannot be read")]
    Record(#[from] DecodeError),
    /// The store made of its records is not one this program can use.
    #[error("a store made of the backup cannot be used")]
    Store(#[from] store::Error),
    /// What was read back is not what was written.
    #[error("what was read back from `{path}` is not what was written; the file was removed")]
    Differs {
        /// The file.
        path: PathBuf,
    },
    /// The etcd that records are to go into cannot be used.
    #[error(
        "the settings say that records are in etcd at {endpoints}, which cannot be used; put settings with engine = \"sqlite\" below [store] \
         in place first to have them in a file"
    )]
    Etcd {
        /// Where it should be.
        endpoints: String,
        /// What is wrong.
        #[source]
        source: etcd::OpenError,
    },
    /// A directory or a file beside it could not be made.
    #[error(transparent)]
    Files(#[from] PkiError),
    /// There is something where the backup should go.
    #[error("{0}")]
    InTheWay(String),
}

impl BackupError {
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }

    fn damaged(line: u64, error: impl std::fmt::Display) -> Self {
        Self::Damaged { line, why: error.to_string() }
    }
}

/// A backup that was taken and tried.
#[derive(Debug, Clone, Serialize)]
pub struct Taken {
    /// Where it is.
    pub path: PathBuf,
    /// Its length, bytes.
    pub bytes: u64,
    /// Whether it needs a key.
    pub sealed: bool,
    /// Its first line.
    pub head: Head,
    /// Its last line.
    pub end: End,
    /// Copies that could not be made: where, and why.
    pub failed_copies: Vec<(PathBuf, String)>,
}

/// A backup as its name tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Where it is.
    pub path: PathBuf,
    /// Its length, bytes.
    pub bytes: u64,
    /// When it was taken.
    pub taken_at: Timestamp,
    /// Revision of the store.
    pub revision: u64,
}

/// One at a time in this process: two of one moment would write one file, and what lies beside is then nobody's.
static TURN: Mutex<()> = Mutex::const_new(());

/// Takes a backup of `snapshot` into `to`, a file that must not be there, or into the directory of the settings; tries it, and copies it.
///
/// # Errors
/// When it cannot be written, or was tried in vain: then there is no file.
pub async fn take(
    settings: &Settings,
    snapshot: Snapshot,
    now: Timestamp,
    to: Option<PathBuf>,
) -> Result<Taken, BackupError> {
    let _turn = TURN.lock().await;
    let settings = settings.clone();
    base::task::blocking("backup", move || take_now(&settings, &snapshot, now, to)).await
}

fn take_now(
    settings: &Settings,
    snapshot: &Snapshot,
    now: Timestamp,
    to: Option<PathBuf>,
) -> Result<Taken, BackupError> {
    let key = settings.backup.key_file.as_deref().map(SealKey::load).transpose()?;
    let head = Head::new(&settings.datacenter.name, now, snapshot.revision().0);
    let (path, copies) = match to {
        Some(path) => (path, &[][..]),
        None => {
            let directory = settings.backup_dir();
            make_directory(&directory)?;
            sweep(&directory, &[])?;
            (directory.join(name(&head)), &*settings.backup.copies)
        }
    };
    let beside = with_suffix(&path, UNFINISHED);
    let end = write(settings, snapshot, key.as_ref(), &head, &path, &beside)?;
    match verify(&beside, key.as_ref()) {
        Ok(tried) if tried == (head.clone(), end.clone()) => {}
        outcome => {
            // It is no backup; what is wrong with it is in the error.
            let _ = fs::remove_file(&beside);
            return Err(outcome.err().unwrap_or(BackupError::Differs { path }));
        }
    }
    fs::rename(&beside, &path).map_err(|source| BackupError::io("put in place", &path, source))?;
    sync_directory_of(&path)?;
    let bytes = fs::metadata(&path).map_err(|source| BackupError::io("look at", &path, source))?.len();
    let failed_copies = copies
        .iter()
        .filter_map(|directory| Some((directory.clone(), base::errors::chain(&copy(&path, directory).err()?))))
        .collect();
    Ok(Taken { path, bytes, sealed: key.is_some(), head, end, failed_copies })
}

/// Removes what a headnode that was killed has left half written, but for `kept`.
fn sweep(directory: &Path, kept: &[PathBuf]) -> Result<(), BackupError> {
    let half = format!(".{EXTENSION}{UNFINISHED}");
    let entries = fs::read_dir(directory).map_err(|source| BackupError::io("list", directory, source))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.to_str().is_some_and(|path| path.ends_with(&half)) && !kept.contains(&path) {
            fs::remove_file(&path).map_err(|source| BackupError::io("remove", &path, source))?;
        }
    }
    Ok(())
}

/// Reads a backup whole, and every record in it as a store that is opened would.
///
/// # Errors
/// What is wrong with it.
pub fn verify(path: &Path, key: Option<&SealKey>) -> Result<(Head, End), BackupError> {
    look(path, key).map(|(head, end, _)| (head, end))
}

/// A file out of a backup.
#[derive(Debug)]
struct BackedFile {
    name: String,
    mode: u32,
    content: Vec<u8>,
}

/// [`verify`], and the files in it.
fn look(path: &Path, key: Option<&SealKey>) -> Result<(Head, End, Vec<BackedFile>), BackupError> {
    let (mut trial, mut files) = (Trial::new(control::schema()), Vec::new());
    let (head, end) = file::read(open(path)?, key, &mut |item| {
        match item {
            Item::File { name, mode, content } => files.push(BackedFile { name, mode, content }),
            Item::Record { key, value } => trial.read(&key, &value)?,
        }
        Ok(())
    })?;
    Ok((head, end, files))
}

/// Fills `engine` with a backup's records, after `first`. What was filled in is good only if this returns no error.
async fn fill(
    path: &Path,
    key: Option<SealKey>,
    engine: &dyn store::Engine,
    first: Option<(String, Bytes)>,
) -> Result<(), BackupError> {
    let mut fill = Fill::begin(engine).await?;
    if let Some((key, value)) = first {
        fill.add(key, value).await?;
    }
    let (send, mut receive) = tokio::sync::mpsc::channel(AHEAD);
    let path = path.to_owned();
    let reading = base::task::blocking("backup-read", move || {
        file::read(open(&path)?, key.as_ref(), &mut |item| {
            let Item::Record { key, value } = item else { return Ok(()) };
            // Who filled has failed and says why.
            let unwanted = |_| BackupError::damaged(0, "its records could not be taken in");
            send.blocking_send((key, value)).map_err(unwanted)
        })
    });
    let filling = async move {
        while let Some((key, value)) = receive.recv().await {
            fill.add(key, value).await?;
        }
        fill.finish().await
    };
    let (read, filled) = tokio::join!(reading, filling);
    filled?;
    read.map(|_| ())
}

fn open(path: &Path) -> Result<BufReader<fs::File>, BackupError> {
    fs::File::open(path).map(BufReader::new).map_err(|source| BackupError::io("open", path, source))
}

/// Backups in a directory, oldest first.
pub fn list(directory: &Path) -> Result<Vec<Listed>, BackupError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(BackupError::io("list", directory, source)),
    };
    let mut found: Vec<Listed> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let (taken_at, revision) = parse_name(entry.file_name().to_str()?)?;
            Some(Listed { path: entry.path(), bytes: entry.metadata().ok()?.len(), taken_at, revision })
        })
        .collect();
    found.sort_by_key(|backup| (backup.taken_at, backup.revision));
    Ok(found)
}

/// The newest backup in a directory, or among those that it keeps for other headnodes, that is whole; and the newer ones that are not.
///
/// # Errors
/// When none is: what is wrong with the newest.
pub fn newest_whole(
    directory: &Path,
    key: Option<&SealKey>,
) -> Result<(PathBuf, Vec<(PathBuf, BackupError)>), BackupError> {
    let mut all = list(directory)?;
    let entries = fs::read_dir(directory.join(others::DIRECTORY)).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.path().is_dir()) {
        all.extend(list(&entry.path())?);
    }
    all.sort_by_key(|backup| (backup.taken_at, backup.revision));
    let mut unfit = Vec::new();
    for backup in all.into_iter().rev() {
        match verify(&backup.path, key) {
            Ok(_) => return Ok((backup.path, unfit)),
            Err(why) => unfit.push((backup.path, why)),
        }
    }
    let none = || BackupError::InTheWay(format!("there is no backup in `{}`", directory.display()));
    Err(unfit.into_iter().next().map_or_else(none, |(_, why)| why))
}

fn write(
    settings: &Settings,
    snapshot: &Snapshot,
    key: Option<&SealKey>,
    head: &Head,
    path: &Path,
    beside: &Path,
) -> Result<End, BackupError> {
    if path.exists() {
        return Err(BackupError::InTheWay(format!("`{}` exists; a backup takes nobody's place", path.display())));
    }
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(beside);
    let file = file.map_err(|source| BackupError::io("make", beside, source))?;
    let write = || {
        let mut writer = Writer::begin(BufWriter::new(file), key, head)?;
        for (name, file) in files(settings) {
            let content = match fs::read(&file) {
                Ok(content) => content,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(BackupError::io("read", &file, source)),
            };
            let mode = fs::metadata(&file).map_or(0o600, |about| about.permissions().mode() & 0o777);
            writer.file(&name, mode, &content).map_err(BackupError::Write)?;
        }
        let settings = toml::to_string(settings).map_err(|error| BackupError::Write(io::Error::other(error)))?;
        writer.file(restore::SETTINGS, 0o644, settings.as_bytes()).map_err(BackupError::Write)?;
        let all = snapshot.each_stored(&mut |key, value| writer.record(key, &value));
        all.map_err(BackupError::Write)?;
        let (mut to, end) = writer.finish().map_err(BackupError::Write)?;
        to.flush().and_then(|()| to.get_ref().sync_all()).map_err(BackupError::Write)?;
        Ok(end)
    };
    let end = write();
    if end.is_err() {
        // The error says more than a failure to remove what is left would.
        let _ = fs::remove_file(beside);
    }
    end
}

/// What of the headnode's files goes into a backup: name in it, and where it is.
fn files(settings: &Settings) -> Vec<(String, PathBuf)> {
    let pki = PKI_FILES.map(|name| (format!("pki/{name}"), settings.pki_dir().join(name)));
    let operator = OPERATOR_FILES.map(|name| (format!("operator/{name}"), settings.paths.operator.join(name)));
    pki.into_iter().chain(operator).collect()
}

/// `dc-1-20261128T065900Z-r4711.neso-backup`.
fn name(head: &Head) -> String {
    let at: String = head.taken_at.to_string().chars().filter(|it| !matches!(it, '-' | ':')).collect();
    let at = at.split('.').next().unwrap_or_default();
    let safe = |it: char| if it.is_ascii_alphanumeric() || it == '-' || it == '_' { it } else { '_' };
    let datacenter: String = head.datacenter.chars().map(safe).collect();
    format!("{datacenter}-{at}Z-r{}.{EXTENSION}", head.revision)
}

fn parse_name(name: &str) -> Option<(Timestamp, u64)> {
    let (rest, revision) = name.strip_suffix(EXTENSION)?.strip_suffix('.')?.rsplit_once("-r")?;
    let at = rest.rsplit_once('-')?.1;
    if at.len() != "20261128T065900Z".len() || !at.is_ascii() {
        return None;
    }
    let (day, time) = at.strip_suffix('Z')?.split_once('T')?;
    let text = format!(
        "{}-{}-{}T{}:{}:{}Z",
        day.get(..4)?,
        day.get(4..6)?,
        day.get(6..)?,
        time.get(..2)?,
        time.get(2..4)?,
        time.get(4..)?
    );
    Some((text.parse().ok()?, revision.parse().ok()?))
}

/// Copies a backup into another directory, whole or not at all.
fn copy(path: &Path, directory: &Path) -> Result<(), BackupError> {
    let to = directory.join(path.file_name().unwrap_or_default());
    let beside = with_suffix(&to, UNFINISHED);
    let copied = (|| {
        fs::copy(path, &beside)?;
        fs::File::open(&beside)?.sync_all()?;
        fs::rename(&beside, &to)
    })();
    if copied.is_err() {
        let _ = fs::remove_file(&beside);
    }
    copied.map_err(|source| BackupError::io("copy to", &to, source))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn sync_directory_of(path: &Path) -> Result<(), BackupError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|source| BackupError::io("write through", directory, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_when_and_of_what() {
        let at: Timestamp = "2026-11-28T06:59:00Z".parse().unwrap();
        let name = name(&Head::new("dc/1", at, 4711));
        assert_eq!(name, "dc_1-20261128T065900Z-r4711.neso-backup");
        assert_eq!(parse_name(&name), Some((at, 4711)));
        for other in [
            "",
            ".neso-backup",
            "a-r1.neso-backup",
            "a-20261128T065900Z-r.neso-backup",
            "a-2026é128T06590Z-r1.neso-backup",
        ] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }

    #[test]
    fn the_newest_that_is_whole_is_found() {
        let root = tempfile::tempdir().unwrap();
        let of = |day: i64, key: Option<&SealKey>, to: PathBuf| {
            let head = Head::new("dc", Timestamp(1_800_000_000_000 + day * 86_400_000), 1);
            fs::create_dir_all(&to).unwrap();
            let path = to.join(name(&head));
            let writer = Writer::begin(Vec::new(), key, &head).unwrap();
            fs::write(&path, writer.finish().unwrap().0).unwrap();
            path
        };
        let (here, there) = (root.path().to_owned(), root.path().join(others::DIRECTORY).join("one"));
        assert!(newest_whole(&here, None).unwrap_err().to_string().contains("there is no backup"));
        let key = SealKey::generate().unwrap();
        let sealed = of(1, Some(&key), here.clone());
        assert!(matches!(newest_whole(&here, None), Err(BackupError::Sealed)));
        assert_eq!(newest_whole(&here, Some(&key)).unwrap().0, sealed);
        let whole = of(2, None, there);
        let cut = of(3, None, here.clone());
        fs::write(&cut, &fs::read(&cut).unwrap()[..20]).unwrap();
        let (found, unfit) = newest_whole(&here, Some(&key)).unwrap();
        assert_eq!((found, unfit.len(), &unfit[0].0), (whole, 1, &cut));
    }

    #[test]
    fn what_was_left_half_written_goes_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let kept = ["a.neso-backup", "notes.new"];
        for name in ["a.neso-backup", "b.neso-backup.new", "notes.new"] {
            fs::write(directory.path().join(name), "x").unwrap();
        }
        sweep(directory.path(), &[]).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, kept);
    }
}
