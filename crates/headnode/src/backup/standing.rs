//! How the backups stand: how old the newest is, where its copies are, and where one is missing.
//!
//! Next to nothing of it is remembered: it is looked up on the disks each time, so what somebody removed is missing at once. What other headnodes hold
//! they say whenever they look for more.

use std::path::Path;

use model::time::Timestamp;

use super::{BackupError, Listed, list, push, schedule::CARRIED};
use crate::settings::Settings;

/// Milliseconds of an hour.
const HOUR_MS: u64 = 3_600_000;
/// The first backup of a headnode that started is not missed for so long, milliseconds.
const FIRST_WITHIN_MS: u64 = HOUR_MS;

/// A backup, and where it lies besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// In the directory of the settings.
    pub backup: Listed,
    /// Elsewhere.
    pub copies: Vec<String>,
}

/// Another headnode, and what it said it holds of our backups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// What its machine calls itself.
    pub hostname: String,
    /// Names of files.
    pub names: Vec<String>,
}

impl Other {
    fn holds(&self, backup: &Listed) -> bool {
        self.names.iter().any(|name| backup.path.ends_with(name))
    }
}

/// See the head of this file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// All of them, oldest first.
    pub kept: Vec<Kept>,
    /// Where the newest should lie too and does not.
    pub missing: Vec<String>,
}

impl Standing {
    /// Looks at the disks, and at what the other headnodes said last.
    ///
    /// # Errors
    /// When the directory of the settings cannot be read.
    pub fn look(settings: &Settings, others: &[Other]) -> Result<Self, BackupError> {
        let backups = list(&settings.backup_dir())?;
        let (carried, has_command) = (push::done(settings), !settings.backup.command.is_empty());
        let places = |backup: &Listed| {
            let disks = settings.backup.copies.iter().map(|place| (place.display().to_string(), holds(place, backup)));
            let command =
                has_command.then(|| (CARRIED.to_owned(), carried.iter().any(|name| backup.path.ends_with(name))));
            let others = others.iter().map(|other| (format!("headnode {}", other.hostname), other.holds(backup)));
            disks.chain(command).chain(others).collect::<Vec<_>>()
        };
        let missing = backups.last().map_or_else(Vec::new, places).into_iter().filter(|(_, there)| !there);
        let missing = missing.map(|(place, _)| place).collect();
        let kept = backups.into_iter().map(|backup| {
            let with = places(&backup).into_iter().filter(|(_, there)| *there);
            Kept { copies: with.map(|(place, _)| place).collect(), backup }
        });
        Ok(Self { kept: kept.collect(), missing })
    }

    /// When the newest was taken.
    pub fn newest_at(&self) -> Option<Timestamp> {
        self.kept.last().map(|kept| kept.backup.taken_at)
    }

    /// Whether the newest is older than it should be: by half of the time between two. A headnode that started just now gets time for its
    /// first, and one that nobody uses needs none.
    pub fn is_overdue(&self, now: Timestamp, started_at: Timestamp, used: bool, every_hours: u32) -> bool {
        let late_ms = u64::from(every_hours) * HOUR_MS / 2 * 3;
        let is_late = match self.newest_at() {
            Some(newest) => now.millis_since(newest) > late_ms,
            None => true,
        };
        used && every_hours > 0 && is_late && now.millis_since(started_at) > FIRST_WITHIN_MS
    }
}

/// Whether `backup` lies in `place`, whole.
pub(super) fn holds(place: &Path, backup: &Listed) -> bool {
    let name = backup.path.file_name().unwrap_or_default();
    std::fs::metadata(place.join(name)).is_ok_and(|there| there.len() == backup.bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    #[test]
    fn a_copy_that_is_missing_or_cut_off_is_told() {
        let root = tempfile::tempdir().unwrap();
        let mut settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
        let places = ["near", "far"].map(|name| root.path().join(name));
        settings.backup.copies = places.to_vec();
        assert_eq!(Standing::look(&settings, &[]).unwrap(), Standing::default());
        let names = ["dc-1-20261128T065900Z-r1.neso-backup", "dc-1-20261129T065900Z-r2.neso-backup"];
        for directory in places.iter().chain([&settings.backup_dir()]) {
            fs::create_dir_all(directory).unwrap();
            for name in names {
                fs::write(directory.join(name), "whole").unwrap();
            }
        }
        let said = |settings: &Settings| {
            let standing = Standing::look(settings, &[]).unwrap();
            (standing.missing, standing.kept.into_iter().map(|kept| kept.copies.len()).collect::<Vec<_>>())
        };
        assert_eq!(said(&settings), (Vec::new(), vec![2, 2]));
        fs::write(places[1].join(names[1]), "cut").unwrap();
        fs::remove_file(places[0].join(names[0])).unwrap();
        assert_eq!(said(&settings), (vec![places[1].display().to_string()], vec![1, 1]));
        settings.backup.copies.clear();
        settings.backup.command = vec!["/bin/true".to_owned()];
        let other = Other { hostname: "two".to_owned(), names: vec![names[0].to_owned()] };
        let standing = Standing::look(&settings, &[other]).unwrap();
        assert_eq!(standing.missing, ["backup.command", "headnode two"]);
        assert_eq!(standing.kept[0].copies, ["headnode two"]);
    }

    #[test]
    fn overdue_after_half_a_period_more() {
        let at = |hours: u64| Timestamp(i64::try_from(hours * HOUR_MS).unwrap());
        let with = |hours| {
            let backup = Listed { path: PathBuf::new(), bytes: 1, taken_at: at(hours), revision: 1 };
            Standing { kept: vec![Kept { backup, copies: Vec::new() }], missing: Vec::new() }
        };
        let start = at(10);
        assert!(!with(0).is_overdue(at(36), start, true, 24));
        assert!(with(0).is_overdue(at(37), start, true, 24));
        assert!(!with(0).is_overdue(at(37), start, true, 0), "none are taken");
        assert!(!with(0).is_overdue(at(37), at(36), true, 24), "it has started just now");
        let none = Standing::default();
        assert!(none.is_overdue(at(12), start, true, 24) && !none.is_overdue(at(12), start, false, 24));
    }
}
