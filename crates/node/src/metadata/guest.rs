//! What a guest changed of its own metadata and the control plane has not taken over yet.
//!
//! Each change has a number that grows. A change is on disk, safe from the loss of power, before the guest hears that it
//! succeeded; it is visible to the guest from then on; it is reported until the target says it was seen. A newer
//! change of a key replaces an older one that still waits, so the queue is never longer than the keys it touches.

use std::path::{Path, PathBuf};

use model::{id::InstanceId, target::GuestMetadata};
use serde::{Deserialize, Serialize};

use crate::files::{self, Disk, Durability};

/// Changes that may wait. A guest that writes this many different keys while no headnode answers is told to wait.
pub(crate) const PENDING_MAX: usize = 128;

/// Bytes of keys and values that may wait: they travel in every report until they are taken over.
pub(crate) const PENDING_MAX_BYTES: usize = 512 << 10;

/// Version of the file's shape.
const VERSION: u32 = 1;

/// Changes that wait, oldest first. A value: a change makes a new queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Queue {
    version: u32,
    last_sequence: u64,
    pending: Vec<GuestMetadata>,
}

impl Default for Queue {
    fn default() -> Self {
        Self { version: VERSION, last_sequence: 0, pending: Vec::new() }
    }
}

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

impl Queue {
    /// The queue after one more change; `seen` is the number up to which the control plane has taken over.
    pub(crate) fn with(&self, key: &str, value: Option<String>, seen: u64) -> Result<Self, Full> {
        let mut pending = self.unseen(seen);
        pending.retain(|change| change.key != key);
        let sequence = self.last_sequence.max(seen) + 1;
        pending.push(GuestMetadata { sequence, key: key.to_owned(), value });
        let bytes: usize =
            pending.iter().map(|change| change.key.len() + change.value.as_ref().map_or(0, String::len)).sum();
        if pending.len() > PENDING_MAX || bytes > PENDING_MAX_BYTES {
            return Err(Full);
        }
        Ok(Self { version: VERSION, last_sequence: sequence, pending })
    }

    /// Changes that the control plane has not taken over, oldest first.
    pub(crate) fn unseen(&self, seen: u64) -> Vec<GuestMetadata> {
        self.pending.iter().filter(|change| change.sequence > seen).cloned().collect()
    }

    /// What the queue says of a key: nothing, deleted, or a value.
    pub(crate) fn lookup(&self, key: &str, seen: u64) -> Option<Option<&str>> {
        let change = self.pending.iter().rfind(|change| change.sequence > seen && change.key == key)?;
        Some(change.value.as_deref())
    }
}

/// Where an instance's queue lies: beside its ledger.
pub(crate) fn path(directory: &Path, id: InstanceId) -> PathBuf {
    directory.join(format!("{id}.guest"))
}

pub(crate) fn read(path: &Path) -> Queue {
    match files::read(path) {
        Ok(None) => Queue::default(),
        Ok(Some(content)) => serde_json::from_slice(&content).unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), %error, "a queue of guest metadata is damaged; it counts as empty");
            Queue::default()
        }),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "failed to read a queue of guest metadata");
            Queue::default()
        }
    }
}

pub(crate) fn write(disk: &Disk, path: &Path, queue: &Queue) -> std::io::Result<()> {
    disk.replace(path, &serde_json::to_vec(queue)?, Durability::Power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_replace_and_are_taken_over() {
        let queue = Queue::default().with("a", Some("1".to_owned()), 0).unwrap();
        let queue = queue.with("b", Some("2".to_owned()), 0).unwrap();
        let queue = queue.with("a", None, 0).unwrap();
        let names =
            |seen| queue.unseen(seen).iter().map(|change| (change.sequence, change.key.clone())).collect::<Vec<_>>();
        assert_eq!(names(0), [(2, "b".to_owned()), (3, "a".to_owned())]);
        assert_eq!(queue.lookup("a", 0), Some(None));
        assert_eq!(queue.lookup("b", 0), Some(Some("2")));
        assert_eq!(queue.lookup("b", 2), None);
        assert!(queue.unseen(3).is_empty());
        // A queue that was lost does not count backwards.
        assert_eq!(Queue::default().with("c", None, 9).unwrap().unseen(9)[0].sequence, 10);
    }

    #[test]
    fn full_says_so() {
        let mut queue = Queue::default();
        for index in 0..PENDING_MAX {
            queue = queue.with(&index.to_string(), None, 0).unwrap();
        }
        assert_eq!(queue.with("one more", None, 0), Err(Full));
        assert!(queue.with("1", Some("again".to_owned()), 0).is_ok());
        assert!(queue.with("one more", None, 1).is_ok());
        assert_eq!(Queue::default().with("big", Some("x".repeat(PENDING_MAX_BYTES)), 0), Err(Full));
    }
}
