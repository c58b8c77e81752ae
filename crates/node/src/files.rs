//! Files that are replaced whole: written beside, renamed over, so that a reader sees the old or the new one.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

/// How much a write must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// The death of this process: the page cache has it.
    Process,
    /// The loss of power: the disk has it.
    Power,
}

/// Replaces `path` with `content`.
pub(crate) fn replace(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    let mut beside = OsString::from(path);
    beside.push(".new");
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

/// Removes `path`; one that is gone is fine.
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
