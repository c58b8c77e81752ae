//! When backups are taken, where they go and how long they stay.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Most directories copies go to.
const COPIES_MAX: usize = 8;
/// Most words of the command.
const ARGUMENTS_MAX: usize = 64;
/// Longest time the command may be given, minutes: a day, since there is another backup then.
const MINUTES_MAX: u32 = 1_440;

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
    /// A program and its arguments that carry every backup to another machine: it is run with the file as its standard input, and `{name}` in an
    /// argument is the file's name. Nothing is run when empty.
    pub command: Vec<String>,
    /// Who runs it; never root.
    pub command_user: String,
    /// Minutes it may take.
    pub command_minutes: u32,
    /// File of the key they are sealed with; without one everybody who has a backup has the datacenter's keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

impl Default for Backup {
    fn default() -> Self {
        Self {
            every_hours: 24,
            keep_days: 30,
            directory: None,
            copies: Vec::new(),
            command: Vec::new(),
            command_user: "nobody".to_owned(),
            command_minutes: 60,
            key_file: None,
        }
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
        if self.command.first().is_some_and(|program| !program.starts_with('/')) {
            return Err(format!(
                "backup.command must begin with the absolute path of a program, not `{}`",
                self.command[0]
            ));
        }
        if self.command.len() > ARGUMENTS_MAX {
            return Err(format!("backup.command may have {ARGUMENTS_MAX} words at most, not {}", self.command.len()));
        }
        if !(1..=MINUTES_MAX).contains(&self.command_minutes) {
            return Err(format!("backup.command_minutes must be 1 to {MINUTES_MAX}, not {}", self.command_minutes));
        }
        if self.command_user.is_empty() || self.command_user == "root" {
            return Err(format!("backup.command_user must be a user other than root, not `{}`", self.command_user));
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
        for (wrong, field) in [
            ("command = [\"ssh\"]", "backup.command "),
            ("command_user = \"root\"", "backup.command_user"),
            ("command_minutes = 0", "backup.command_minutes"),
        ] {
            let text = text.replace("copies = []", &format!("copies = []\n{wrong}"));
            let why = Settings::parse(&text).unwrap_err();
            assert!(why.contains(field), "{why}");
        }
    }
}
