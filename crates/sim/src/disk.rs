//! The disk under an agent's files: what of them would be there after the loss of power.
//!
//! The files themselves lie in a directory of this machine; here is kept which content each of them is sure to have, and what was
//! written since without waiting for the disk. When power goes, each file comes back as one of those, whole or torn.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use node::files::{Durability, Watch};

use crate::chance::Chance;

/// Contents remembered of one file since it was last on the disk: the newest.
const VERSIONS: usize = 8;

/// Files that come back torn, in a hundred of those that come back as something not yet on the disk.
const TORN_PERCENT: u64 = 30;

/// See the head of this file.
#[derive(Default)]
pub(crate) struct SimDisk {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<PathBuf, File>,
    /// How many writes will be refused.
    failing: u32,
}

/// Contents of one file; `None` is no file.
#[derive(Default)]
struct File {
    durable: Option<Vec<u8>>,
    since: Vec<Option<Vec<u8>>>,
}

impl SimDisk {
    /// The next `writes` changes are refused.
    pub(crate) fn fail(&self, writes: u32) {
        self.lock().failing = writes;
    }

    /// Everything is on the disk from here on.
    pub(crate) fn sync(&self) {
        let mut state = self.lock();
        for file in state.files.values_mut() {
            file.settle();
        }
        state.files.retain(|_, file| file.durable.is_some());
    }

    /// Power goes: files have the content that was on the disk, or one that was on its way there. How many differ from what was
    /// last written.
    pub(crate) fn lose_power(&self, chance: &mut Chance) -> io::Result<usize> {
        let mut state = self.lock();
        let mut lost = 0;
        for (path, file) in state.files.iter_mut().filter(|(_, file)| !file.since.is_empty()) {
            let newest = file.since.last().cloned().flatten();
            let sure = file.durable.clone().unwrap_or_default();
            let which = usize::try_from(chance.below(file.since.len() as u64 + 1)).unwrap_or(0);
            let mut content = match which.checked_sub(1) {
                None => file.durable.take(),
                Some(index) => file.since.swap_remove(index),
            };
            if which > 0
                && let Some(bytes) = &mut content
                && chance.percent(TORN_PERCENT)
            {
                // What was only made longer keeps what the disk had of it.
                let least = if bytes.starts_with(&sure) { sure.len() } else { 0 };
                let more = (bytes.len() - least) as u64;
                bytes.truncate(least + usize::try_from(chance.below(more + 1)).unwrap_or(0));
            }
            match &content {
                Some(bytes) => std::fs::write(path, bytes)?,
                None if path.exists() => std::fs::remove_file(path)?,
                None => {}
            }
            lost += usize::from(content != newest);
            *file = File { durable: content, since: Vec::new() };
        }
        state.files.retain(|_, file| file.durable.is_some());
        Ok(lost)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch for SimDisk {
    fn replacing(&self, path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
        let mut state = self.lock();
        state.refuse()?;
        if durability == Durability::Power {
            // Who waits for a directory waits for all names that went out of it.
            let beside = state.files.iter_mut().filter(|(other, _)| other.parent() == path.parent());
            for (_, file) in beside.filter(|(_, file)| matches!(file.since.last(), Some(None))) {
                file.settle();
            }
        }
        let file = state.files.entry(path.to_owned()).or_default();
        file.since.push(Some(content.to_owned()));
        if durability == Durability::Power {
            file.settle();
        } else if file.since.len() > VERSIONS {
            file.since.remove(0);
        }
        Ok(())
    }

    fn appending(&self, path: &Path, line: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        let refused = state.refuse();
        let file = state.files.entry(path.to_owned()).or_default();
        let mut content = file.newest().unwrap_or_default();
        content.extend_from_slice(if refused.is_ok() { line } else { &line[..line.len() / 2] });
        file.since.push(Some(content));
        if refused.is_ok() {
            file.settle();
        }
        refused
    }

    fn emptying(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.refuse()?;
        let file = state.files.entry(path.to_owned()).or_default();
        let is_new = file.newest().is_none();
        file.since.push(Some(Vec::new()));
        if is_new {
            file.settle();
        }
        Ok(())
    }

    fn removing(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.refuse()?;
        if let Some(file) = state.files.get_mut(path) {
            file.since.push(None);
        }
        Ok(())
    }
}

impl State {
    fn refuse(&mut self) -> io::Result<()> {
        if self.failing == 0 {
            return Ok(());
        }
        self.failing -= 1;
        Err(io::Error::from(io::ErrorKind::StorageFull))
    }
}

impl File {
    /// As who reads it now sees it.
    fn newest(&self) -> Option<Vec<u8>> {
        self.since.last().unwrap_or(&self.durable).clone()
    }

    fn settle(&mut self) {
        if let Some(newest) = self.since.pop() {
            self.durable = newest;
        }
        self.since.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_waited_for_stays_and_the_rest_may_go() {
        let directory = tempfile::tempdir().unwrap();
        let (sure, unsure) = (directory.path().join("sure"), directory.path().join("unsure"));
        let (mut chance, mut seen) = (Chance::new(1), std::collections::BTreeSet::new());
        for _ in 0..100 {
            let disk = SimDisk::default();
            let put = |path: &Path, content: &str, durability| {
                disk.replacing(path, content.as_bytes(), durability).unwrap();
                std::fs::write(path, content).unwrap();
            };
            put(&sure, "sure", Durability::Power);
            put(&unsure, "old", Durability::Power);
            put(&unsure, "new", Durability::Process);
            disk.lose_power(&mut chance).unwrap();
            assert_eq!(std::fs::read_to_string(&sure).unwrap(), "sure");
            seen.insert(std::fs::read_to_string(&unsure).unwrap());
        }
        assert!(seen.contains("old") && seen.contains("new") && seen.contains(""), "{seen:?}");
    }

    #[test]
    fn a_line_that_was_refused_takes_none_before_it_along() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let (mut chance, mut seen) = (Chance::new(1), std::collections::BTreeSet::new());
        for _ in 0..100 {
            let disk = SimDisk::default();
            disk.emptying(&path).unwrap();
            disk.appending(&path, b"sure\n").unwrap();
            disk.fail(1);
            assert!(disk.appending(&path, b"refused\n").is_err());
            disk.lose_power(&mut chance).unwrap();
            let back = std::fs::read_to_string(&path).unwrap();
            assert!(back.starts_with("sure\n"), "{back:?}");
            seen.insert(back);
        }
        assert!(seen.len() > 2, "{seen:?}");
    }

    #[test]
    fn what_was_removed_may_come_back_until_its_directory_was_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut chance = Chance::new(1);
        let mut back = |wait: bool| {
            (0..50)
                .filter(|_| {
                    let disk = SimDisk::default();
                    disk.replacing(&path, b"x", Durability::Power).unwrap();
                    disk.removing(&path).unwrap();
                    let _ = std::fs::remove_file(&path);
                    if wait {
                        disk.replacing(&directory.path().join("other"), b"y", Durability::Power).unwrap();
                    }
                    disk.lose_power(&mut chance).unwrap();
                    path.exists()
                })
                .count()
        };
        assert!(back(false) > 0);
        assert_eq!(back(true), 0);
    }
}
