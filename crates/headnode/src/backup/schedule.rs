//! Backups by themselves: one every so many hours, and the old ones dropped.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use control::{Control, tables::ACCOUNTS};
use flow::loops::Loop;
use model::time::Timestamp;
use store::BoxFuture;

use super::{BackupError, Listed, copy, list, push, standing::holds, take};
use crate::settings::Settings;

/// Between two looks at whether one is due.
const PERIOD: Duration = Duration::from_secs(600);
/// How long a pass may take besides what the operator's command is given: a large store, and slow disks.
const DEADLINE: Duration = Duration::from_secs(3_600);
/// What the command is called where places are listed.
pub(super) const CARRIED: &str = "backup.command";
/// Milliseconds of an hour.
const HOUR_MS: u64 = 3_600_000;
/// The newest, which stay however old they are.
const KEPT_IN_ANY_CASE: usize = 3;

/// Takes backups when they are due, and copies the newest where it is missing.
pub struct TakeBackups {
    control: Control,
    settings: Settings,
    /// Where copies failed last, so that each is logged once. Leaf data.
    failing: Mutex<BTreeSet<PathBuf>>,
}

impl TakeBackups {
    /// For the headnode of `settings`.
    pub fn new(control: Control, settings: Settings) -> Self {
        Self { control, settings, failing: Mutex::default() }
    }

    async fn pass(&self) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        let (now, settings) = (self.control.now(), &self.settings);
        let directory = settings.backup_dir();
        let there = list(&directory)?;
        let used = self.control.snapshot().count(&ACCOUNTS) > 0;
        let mut said = String::new();
        if is_due(&there, used, now, settings.backup.every_hours) {
            let taken = take(settings, self.control.snapshot(), now, None).await?;
            let mut dropped = 0;
            for old in too_old(&list(&directory)?, now, settings.backup.keep_days) {
                fs::remove_file(&old.path)?;
                dropped += 1;
            }
            said = format!("took `{}`, dropped {dropped} old ones", taken.path.display());
        }
        let copying = settings.clone();
        let mut failed = base::task::blocking("backup-copies", move || copy_missing(&copying, now)).await?;
        if let Err(error) = self.carry_away().await {
            failed.insert(CARRIED.into(), base::errors::chain(&error));
        }
        self.note(&failed);
        // A copy that failed is a failure of the pass, told on the board of loops, and tried with the next one.
        match failed.into_values().next() {
            Some(why) => Err(why.into()),
            None => Ok(said),
        }
    }

    /// Has the operator's command carry the newest away, unless it did.
    async fn carry_away(&self) -> Result<(), push::PushError> {
        let settings = &self.settings;
        let newest = list(&settings.backup_dir()).ok().and_then(|mut there| there.pop());
        let Some(newest) = newest.filter(|_| !settings.backup.command.is_empty()) else { return Ok(()) };
        match push::done(settings).iter().any(|name| newest.path.ends_with(name)) {
            true => Ok(()),
            false => push::push(settings, &newest).await,
        }
    }

    /// Logs what has begun to fail, and what does not any more.
    fn note(&self, failed: &BTreeMap<PathBuf, String>) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, why) in failed.iter().filter(|(place, _)| !failing.contains(*place)) {
            tracing::warn!(place = %place.display(), why, "no copy of the newest backup can be made there; it is tried again");
        }
        for place in failing.iter().filter(|place| !failed.contains_key(*place)) {
            tracing::info!(place = %place.display(), "the newest backup has its copy there again");
        }
        *failing = failed.keys().cloned().collect();
    }
}

impl Loop for TakeBackups {
    fn name(&self) -> &'static str {
        "take backups"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    fn deadline(&self) -> Duration {
        DEADLINE + Duration::from_secs(u64::from(self.settings.backup.command_minutes) * 60)
    }

    fn pass(&self) -> BoxFuture<'_, Result<String, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(self.pass())
    }
}

/// Copies the newest backup to where it is missing and drops old ones there; where that failed, and why.
fn copy_missing(settings: &Settings, now: Timestamp) -> Result<BTreeMap<PathBuf, String>, BackupError> {
    let there = list(&settings.backup_dir())?;
    let Some(newest) = there.last() else { return Ok(BTreeMap::new()) };
    let mut failed = BTreeMap::new();
    for place in &settings.backup.copies {
        let one = || {
            if !holds(place, newest) {
                copy(&newest.path, place)?;
            }
            for old in too_old(&list(place)?, now, settings.backup.keep_days) {
                fs::remove_file(&old.path).map_err(|source| BackupError::io("remove", &old.path, source))?;
            }
            Ok::<_, BackupError>(())
        };
        if let Err(error) = one() {
            failed.insert(place.clone(), base::errors::chain(&error));
        }
    }
    Ok(failed)
}

/// Whether it is time for the next. A store that nobody has used yet waits: its backup would be worth nothing, and put the next one
/// off for as long as a good one.
fn is_due(there: &[Listed], used: bool, now: Timestamp, every_hours: u32) -> bool {
    let newest = there.last().map(|backup| now.millis_since(backup.taken_at));
    used && every_hours > 0 && newest.is_none_or(|age| age >= u64::from(every_hours) * HOUR_MS)
}

/// Those to drop of `there`, which is in the order of age; 0 days keeps all.
fn too_old(there: &[Listed], now: Timestamp, keep_days: u32) -> &[Listed] {
    let keep = u64::from(keep_days) * 24 * HOUR_MS;
    let candidates = &there[..there.len().saturating_sub(KEPT_IN_ANY_CASE)];
    let old = candidates.partition_point(|backup| keep > 0 && now.millis_since(backup.taken_at) > keep);
    &candidates[..old]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: u64) -> Listed {
        let taken_at = Timestamp(i64::try_from(hours * HOUR_MS).unwrap());
        Listed { path: format!("{hours}").into(), bytes: 1, taken_at, revision: 1 }
    }

    #[test]
    fn a_copy_that_failed_is_made_later() {
        let root = tempfile::tempdir().unwrap();
        let mut settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
        let place = root.path().join("disk");
        settings.backup.copies = vec![place.clone()];
        fs::create_dir_all(settings.backup_dir()).unwrap();
        let name = "dc-1-20261128T065900Z-r1.neso-backup";
        fs::write(settings.backup_dir().join(name), "whole").unwrap();
        let now = at(100).taken_at;
        let failed = copy_missing(&settings, now).unwrap();
        assert!(failed[&place].contains(name), "{failed:?}");
        fs::create_dir(&place).unwrap();
        assert!(copy_missing(&settings, now).unwrap().is_empty());
        assert_eq!(fs::read(place.join(name)).unwrap(), b"whole");
    }

    #[test]
    fn due_after_so_many_hours() {
        let now = at(100).taken_at;
        assert!(is_due(&[], true, now, 24) && !is_due(&[], true, now, 0));
        assert!(!is_due(&[at(1), at(77)], true, now, 24));
        assert!(is_due(&[at(1), at(76)], true, now, 24));
        assert!(!is_due(&[], false, now, 24), "nobody has used it yet");
    }

    #[test]
    fn old_ones_go_and_the_newest_stay() {
        let there: Vec<Listed> = [0, 24, 48, 72, 96, 120].map(at).into();
        let now = at(120).taken_at;
        assert_eq!(too_old(&there, now, 3).len(), 2);
        assert_eq!(too_old(&there, now, 1).len(), 3);
        assert_eq!(too_old(&there, now, 0).len(), 0);
        assert_eq!(too_old(&there[4..], now, 1).len(), 0);
    }
}
