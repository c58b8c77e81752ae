//! When backups are taken, where they go and how long they stay.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Most directories copies go to.
const COPIES_MAX: usize = 8;

/// See the head of this file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Backup {
    /// Hours from one backup to the next; 0 takes none by itself.
    pub every_hours: u32,
    /// Days a backup is kept; the newest three stay in any case, and 0 keeps all.
    pub keep_days: u32,
    /// Where they go; `backups` below `paths.data` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// Directories every backup is copied to, e.g. one of another machine that is mounted there.
    pub copies: Vec<PathBuf>,
    /// File of the key they are sealed with; without one everybody who has a backup has the datacenter's keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

impl Default for Backup {
    fn default() -> Self {
        Self { every_hours: 24, keep_days: 30, directory: None, copies: Vec::new(), key_file: None }
    }
}

impl Backup {
    pub(super) fn check(&self) -> Result<(), String> {
        let paths = [("directory", &self.directory), ("key_file", &self.key_file)];
        let paths = paths.into_iter().filter_map(|(name, path)| Some((name, path.as_ref()?)));
        for (name, path) in paths.chain(self.copies.iter().map(|path| ("copies", path))) {
            if !path.is_absolute() {
                return Err(format!("backup.{name} must be an absolute path, not `{}`", path.display()));
            }
        }
        if self.copies.len() > COPIES_MAX {
            return Err(format!("backup.copies may be {COPIES_MAX} at most, not {}", self.copies.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::Settings;

    #[test]
    fn the_file_says_what_the_program_takes_for_granted() {
        let text = Settings::generate(None).unwrap();
        let said = Settings::parse(&text).unwrap();
        let (before, after) = (text.find("[backup]").unwrap(), text.find("[first_run]").unwrap());
        let silent = Settings::parse(&format!("{}{}", &text[..before], &text[after..])).unwrap();
        assert_eq!(silent.backup, said.backup);
        let wrong = text.replace("copies = []", "copies = [\"elsewhere\"]");
        assert!(Settings::parse(&wrong).unwrap_err().contains("backup.copies"));
    }
}
