//! The ledgers: one small file per instance with what the agent must remember about it.
//!
//! When must a ledger survive the loss of power, which costs a write-through, and when is the page cache enough? A power loss
//! ends every zone. The id range only matters while a zone runs: roots are id-mapped at mount time and never changed
//! on disk, so a forgotten range is simply chosen again. Forgotten counters make a start of a zone that would be started
//! anyway. Only the mark that removal has begun must not be lost: the control plane forgets an instance once it is gone,
//! and a root that comes back after a power loss would be nobody's. So: power for the mark, process for the rest.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use host::zone::IdRange;
use model::{
    diff::Remembered,
    id::InstanceId,
    target::{Exit, Phase},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{
    error::AgentError,
    files::{self, Disk, Durability},
};

/// Version of the file's shape.
const VERSION: u32 = 1;

/// Suffix of a ledger's file name after the instance's id.
const SUFFIX: &str = ".json";

/// What a ledger that cannot be read is called instead.
const DAMAGED: &str = "damaged";

/// What is remembered about an instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    /// Its private range of ids.
    pub(crate) ids: Option<IdRange>,
    /// What decisions need.
    pub(crate) remembered: Remembered,
    /// How the last boot ended.
    pub(crate) exit: Option<Exit>,
    /// Whether that end was ours: asked for by the target.
    #[serde(default)]
    pub(crate) exit_was_asked: bool,
    /// Phases of making and booting it for the first time.
    pub(crate) timeline: Vec<Phase>,
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    #[serde(flatten)]
    ledger: &'a Ledger,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The directory of all ledgers.
#[derive(Debug, Clone)]
pub(crate) struct Ledgers {
    directory: PathBuf,
    disk: Disk,
}

impl Ledgers {
    pub(crate) fn new(data_dir: &Path, disk: Disk) -> Self {
        Self { directory: data_dir.join("zones"), disk }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// When an instance's ledger was last written, by the disk's own clock.
    pub(crate) fn modified_at(&self, id: InstanceId) -> Option<Timestamp> {
        let about = fs::metadata(self.directory.join(format!("{id}{SUFFIX}"))).ok()?;
        let since = about.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
        i64::try_from(since.as_millis()).ok().map(Timestamp)
    }

    /// Every ledger that can be read. A damaged one is set aside under another name and counts as none; see above why
    /// that harms nothing.
    pub(crate) fn load(&self) -> Result<Vec<(InstanceId, Ledger)>, AgentError> {
        let file = |doing, path: &Path, source| AgentError::File { doing, path: path.to_owned(), source };
        fs::create_dir_all(&self.directory).map_err(|source| file("create", &self.directory, source))?;
        let mut found: Vec<(InstanceId, Ledger)> = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(|source| file("list", &self.directory, source))? {
            let path = entry.map_err(|source| file("list", &self.directory, source))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(id) = name.strip_suffix(SUFFIX).and_then(|id| id.parse().ok()) else { continue };
            let content = fs::read(&path).map_err(|source| file("read", &path, source))?;
            match serde_json::from_slice::<Version>(&content) {
                Ok(Version { version }) if version > VERSION => {
                    return Err(AgentError::Newer { path, found: version, known: VERSION });
                }
                _ => {}
            }
            match serde_json::from_slice(&content) {
                Ok(ledger) => found.push((id, ledger)),
                Err(error) => {
                    let aside = path.with_extension(DAMAGED);
                    tracing::error!(path = %path.display(), %error, "a ledger is damaged; set aside");
                    fs::rename(&path, &aside).map_err(|source| file("rename", &path, source))?;
                }
            }
        }
        // A directory lists in an order of its own; whatever follows from the ledgers should not.
        found.sort_by_key(|(id, _)| *id);
        Ok(found)
    }

    /// One ledger, if it is there and can be read.
    pub(crate) fn read(&self, id: InstanceId) -> Option<Ledger> {
        serde_json::from_slice(&fs::read(self.path(id)).ok()?).ok()
    }

    pub(crate) fn save(&self, id: InstanceId, ledger: &Ledger, durability: Durability) -> io::Result<()> {
        let content = serde_json::to_vec(&Written { version: VERSION, ledger })?;
        self.disk.replace(&self.path(id), &content, durability)
    }

    pub(crate) fn remove(&self, id: InstanceId) -> io::Result<()> {
        self.disk.remove(&self.path(id))?;
        // What was damaged has served its purpose once the instance is gone.
        files::remove(&self.path(id).with_extension(DAMAGED))
    }

    fn path(&self, id: InstanceId) -> PathBuf {
        self.directory.join(format!("{id}{SUFFIX}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_damage_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let ledgers = Ledgers::new(directory.path(), Disk::default());
        assert!(ledgers.load().unwrap().is_empty());
        let (good, bad) = (InstanceId::random(), InstanceId::random());
        let ledger = Ledger {
            ids: Some(IdRange { first: IdRange::BASE, count: IdRange::COUNT }),
            remembered: Remembered { starts_done: 3, boot_id: Some("b".to_owned()), ..Remembered::default() },
            ..Ledger::default()
        };
        ledgers.save(good, &ledger, Durability::Process).unwrap();
        ledgers.save(bad, &ledger, Durability::Power).unwrap();
        fs::write(ledgers.path(bad), b"").unwrap();
        assert_eq!(ledgers.load().unwrap(), [(good, ledger)]);
        assert!(ledgers.directory().join(format!("{bad}.damaged")).exists());
        ledgers.remove(bad).unwrap();
        assert!(!ledgers.directory().join(format!("{bad}.damaged")).exists());
        ledgers.remove(good).unwrap();
        ledgers.remove(good).unwrap();
        assert!(ledgers.load().unwrap().is_empty());
    }
}
