//! Files that are replaced whole: written beside, renamed over, so that a reader sees the old or the new one.
//!
//! Every file the agent must find again goes through a [`Disk`], which says for each write what it must survive. A simulation
//! watches ([`Watch`]): what was only promised to survive this process may be gone, old or torn when the machine loses power.

use std::{
    ffi::OsString,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::Arc,
};

/// How much a write must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The death of this process: the page cache has it.
    Process,
    /// The loss of power: the disk has it.
    Power,
}

/// Somebody who sees every change of a file and may refuse it, as a disk that is full or failing does.
pub trait Watch: Send + Sync {
    /// `path` is about to have `content`.
    fn replacing(&self, path: &Path, content: &[u8], durability: Durability) -> io::Result<()>;

    /// `path` is about to be removed; no more than the page cache needs to know.
    fn removing(&self, path: &Path) -> io::Result<()>;

    /// `path` is about to be `line` longer, and the disk will have it.
    fn appending(&self, path: &Path, line: &[u8]) -> io::Result<()>;

    /// `path` is about to be there and empty. If it was not there, the disk will have its name.
    fn emptying(&self, path: &Path) -> io::Result<()>;
}

/// Where the files are.
#[derive(Clone, Default)]
pub struct Disk {
    watch: Option<Arc<dyn Watch>>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("watched", &self.watch.is_some()).finish()
    }
}

impl Disk {
    /// A disk that is watched. What survives the loss of power is then the watcher's business: nothing waits for the real one.
    pub fn watched(watch: Arc<dyn Watch>) -> Self {
        Self { watch: Some(watch) }
    }

    /// Replaces `path` with `content`.
    pub(crate) fn replace(&self, path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
        let mut beside = OsString::from(path);
        beside.push(".new");
        if let Some(watch) = &self.watch {
            watch.replacing(path, content, durability)?;
            fs::write(&beside, content)?;
            return fs::rename(&beside, path);
        }
        let mut file = File::create(&beside)?;
        file.write_all(content)?;
        if durability == Durability::Power {
            file.sync_data()?;
        }
        drop(file);
        fs::rename(&beside, path)?;
        match (durability, path.parent()) {
            (Durability::Power, Some(directory)) => File::open(directory)?.sync_all(),
            _ => Ok(()),
        }
    }

    /// Makes `file`, which is `path`, longer by `line`, so that it survives the loss of power. After an error it may end in a part
    /// of the line.
    pub(crate) fn append(&self, file: &mut File, path: &Path, line: &[u8]) -> io::Result<()> {
        let Some(watch) = &self.watch else {
            file.write_all(line)?;
            return file.sync_data();
        };
        let allowed = watch.appending(path, line);
        file.write_all(if allowed.is_ok() { line } else { &line[..line.len() / 2] })?;
        allowed
    }

    /// Opens `path`, empty, for [`Disk::append`]. That it is empty may be forgotten when power is lost, that it is there not.
    pub(crate) fn begin(&self, path: &Path) -> io::Result<File> {
        if let Some(watch) = &self.watch {
            watch.emptying(path)?;
        }
        let is_new = !path.exists();
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        file.set_len(0)?;
        if let Some(directory) = path.parent().filter(|_| is_new && self.watch.is_none()) {
            File::open(directory)?.sync_all()?;
        }
        Ok(file)
    }

    /// Removes `path`; one that is gone is fine.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        if let Some(watch) = &self.watch {
            watch.removing(path)?;
        }
        remove(path)
    }
}

/// Removes `path`, which no disk need remember; one that is gone is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads `path`; `None` when there is none.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
