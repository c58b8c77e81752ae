//! Backups by themselves: one every so many hours, and the old ones dropped.

use std::{fs, time::Duration};

use control::{Control, tables::ACCOUNTS};
use flow::loops::Loop;
use model::time::Timestamp;
use store::BoxFuture;

use super::{Listed, list, take};
use crate::settings::Settings;

/// Between two looks at whether one is due.
const PERIOD: Duration = Duration::from_secs(600);
/// Milliseconds of an hour.
const HOUR_MS: u64 = 3_600_000;
/// The newest, which stay however old they are.
const KEPT_IN_ANY_CASE: usize = 3;

/// Takes backups when they are due.
pub struct TakeBackups {
    /// The control plane.
    pub control: Control,
    /// Where everything lies.
    pub settings: Settings,
}

impl Loop for TakeBackups {
    fn name(&self) -> &'static str {
        "take backups"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    fn pass(&self) -> BoxFuture<'_, Result<String, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(async {
            let (now, settings) = (self.control.now(), &self.settings);
            let directory = settings.backup_dir();
            let there = list(&directory)?;
            let used = self.control.snapshot().count(&ACCOUNTS) > 0;
            if !is_due(&there, used, now, settings.backup.every_hours) {
                return Ok(String::new());
            }
            let taken = take(settings, self.control.snapshot(), now, None).await?;
            let mut dropped = 0;
            for directory in std::iter::once(&directory).chain(&settings.backup.copies) {
                for old in too_old(&list(directory)?, now, settings.backup.keep_days) {
                    fs::remove_file(&old.path)?;
                    dropped += 1;
                }
            }
            // A copy that failed is a failure of the pass, told on the board of loops, and tried with the next backup.
            match taken.failed_copies.first() {
                Some((_, why)) => Err(why.clone().into()),
                None => Ok(format!("took `{}`, dropped {dropped} old ones", taken.path.display())),
            }
        })
    }
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
