//! How the backups stand: how old the newest is, where its copies are, and where one is missing.
//!
//! Nothing of it is remembered: it is looked up on the disks each time, so what somebody removed is missing at once.

use std::path::{Path, PathBuf};

use model::time::Timestamp;

use super::{BackupError, Listed, list};
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

/// See the head of this file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// All of them, oldest first.
    pub kept: Vec<Kept>,
    /// Where the newest should lie too and does not.
    pub missing: Vec<String>,
}

impl Standing {
    /// Looks at the disks.
    ///
    /// # Errors
    /// When the directory of the settings cannot be read.
    pub fn look(settings: &Settings) -> Result<Self, BackupError> {
        let backups = list(&settings.backup_dir())?;
        let places: Vec<&PathBuf> = settings.backup.copies.iter().collect();
        let missing = backups.last().map(|newest| {
            let without = places.iter().filter(|place| !holds(place, newest));
            without.map(|place| place.display().to_string()).collect()
        });
        let kept = backups.into_iter().map(|backup| {
            let with = places.iter().filter(|place| holds(place, &backup));
            Kept { copies: with.map(|place| place.display().to_string()).collect(), backup }
        });
        Ok(Self { kept: kept.collect(), missing: missing.unwrap_or_default() })
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
    use std::fs;

    use super::*;

    #[test]
    fn a_copy_that_is_missing_or_cut_off_is_told() {
        let root = tempfile::tempdir().unwrap();
        let mut settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
        let places = ["near", "far"].map(|name| root.path().join(name));
        settings.backup.copies = places.to_vec();
        assert_eq!(Standing::look(&settings).unwrap(), Standing::default());
        let names = ["dc-1-20261128T065900Z-r1.neso-backup", "dc-1-20261129T065900Z-r2.neso-backup"];
        for directory in places.iter().chain([&settings.backup_dir()]) {
            fs::create_dir_all(directory).unwrap();
            for name in names {
                fs::write(directory.join(name), "whole").unwrap();
            }
        }
        let said = |settings: &Settings| {
            let standing = Standing::look(settings).unwrap();
            (standing.missing, standing.kept.into_iter().map(|kept| kept.copies.len()).collect::<Vec<_>>())
        };
        assert_eq!(said(&settings), (Vec::new(), vec![2, 2]));
        fs::write(places[1].join(names[1]), "cut").unwrap();
        fs::remove_file(places[0].join(names[0])).unwrap();
        assert_eq!(said(&settings), (vec![places[1].display().to_string()], vec![1, 1]));
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
