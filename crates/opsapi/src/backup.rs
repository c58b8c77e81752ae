//! Backups, and the client's verbs for them.

use std::path::PathBuf;

use model::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Client, Error};

/// A backup to take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewBackup {
    /// A file of the headnode's machine, which must not be there; by default one in the directory of the settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<PathBuf>,
}

/// A backup that was taken, and read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupTaken {
    /// Where it is, on the headnode's machine.
    pub path: PathBuf,
    /// Its length, bytes.
    pub bytes: u64,
    /// Whether it needs a key.
    pub sealed: bool,
    /// When.
    pub taken_at: Timestamp,
    /// Revision of the store it is the state of.
    pub revision: u64,
    /// Records in it.
    pub records: u64,
    /// Files in it.
    pub files: u64,
    /// Copies that could not be made, and why.
    pub failed_copies: Vec<String>,
}

/// A backup as its name tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupView {
    /// Where it is, on the headnode's machine.
    pub path: PathBuf,
    /// Its length, bytes.
    pub bytes: u64,
    /// When it was taken.
    pub taken_at: Timestamp,
    /// Revision of the store.
    pub revision: u64,
    /// Where else it lies, whole.
    #[serde(default)]
    pub copies: Vec<String>,
}

/// How a headnode's backups stand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupStanding {
    /// When the newest was taken; there may be none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_at: Option<Timestamp>,
    /// How old it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
    /// Hours from one to the next; 0 takes none by itself.
    pub every_hours: u32,
    /// It is older than it should be, or missing.
    pub overdue: bool,
    /// Backups need a key.
    pub sealed: bool,
    /// How many copies the newest has.
    pub copies: usize,
    /// Where it should lie too and does not, and why.
    pub missing: Vec<String>,
}

impl Client {
    /// Backups in the headnode's directory, oldest first.
    pub async fn backups(&self) -> Result<Vec<BackupView>, Error> {
        self.get("/v1/backups").await
    }

    /// Takes one now.
    pub async fn take_backup(&self, new: &NewBackup) -> Result<BackupTaken, Error> {
        self.post("/v1/backups", new).await
    }
}
