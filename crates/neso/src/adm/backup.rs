//! `neso adm backup`: take backups, look at them, make the key they are sealed with. `neso restore` is the way back.

use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf};

use headnode::backup::{self, sealed::SealKey};
use model::time::Timestamp;
use opsapi::{BackupStanding, NewBackup};
use serde::Serialize;

use super::{Output, ago, bytes, details, or_dash, table};
use crate::{context::Place, failure::Outcome, progress::Progress};

/// Commands about backups.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the backups in the headnode's directory, oldest first.
    #[command(visible_alias = "ls")]
    List,
    /// Take one now, read it back, and copy it where the settings say.
    Create {
        /// Into this file, which must not be there, and nowhere else.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Read a backup whole, and every record in it as a headnode would.
    Verify {
        /// The backup.
        file: PathBuf,
        /// File of the key it is sealed with; by default that of the settings.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Make a key to seal backups with, in a new file. Name it as `backup.key_file` in the settings, and keep a copy elsewhere.
    Key {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Serialize)]
struct Verified {
    head: backup::file::Head,
    end: backup::file::End,
}

/// Runs it.
pub(crate) async fn run(place: &Place, output: Output, command: Command) -> Outcome {
    match command {
        Command::List => {
            let client = super::client(&place.settings()?)?;
            let (found, datacenter) = (client.backups().await?, client.datacenter().await?);
            let now = datacenter.now;
            output.show(&found, |found| {
                let rows = found.iter().map(|one| {
                    let path = one.path.display().to_string();
                    vec![
                        one.taken_at.to_string(),
                        ago(now, Some(one.taken_at)),
                        one.revision.to_string(),
                        bytes(one.bytes),
                        path,
                        or_dash((!one.copies.is_empty()).then(|| one.copies.join("\n"))),
                    ]
                });
                table(&["taken", "age", "revision", "size", "file", "copies"], rows)
            })?;
            for place in &datacenter.backups.missing {
                output.say(format!("The newest has no copy in {place}."))?;
            }
            Ok(())
        }
        Command::Create { to } => {
            let client = super::client(&place.settings()?)?;
            let to = to.map(std::path::absolute).transpose()?;
            let step = Progress::new().step("Taking a backup and reading it back");
            let taken = client.take_backup(&NewBackup { to }).await?;
            step.done(&format!("{} records", taken.records));
            output.show(&taken, |taken| {
                let mut lines = vec![
                    ("file", taken.path.display().to_string()),
                    ("size", bytes(taken.bytes)),
                    ("sealed", if taken.sealed { "yes" } else { "no; it holds the datacenter's keys" }.to_owned()),
                    ("revision", taken.revision.to_string()),
                    ("records, files", format!("{}, {}", taken.records, taken.files)),
                ];
                lines.extend(taken.failed_copies.iter().map(|failed| ("copy failed", failed.clone())));
                details(&lines)
            })
        }
        Command::Verify { file, key } => {
            let key = key_for(place, key)?;
            let step = Progress::new().step("Reading the backup");
            let (head, end) = backup::verify(&file, key.as_ref())?;
            step.done("it is whole");
            output.show(&Verified { head, end }, |read| details(&contents(&read.head, &read.end)))
        }
        Command::Key { file } => {
            let key = SealKey::generate()?;
            let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
            let mut made = made.map_err(|error| {
                crate::failure::Failure::new(format!("failed to make `{}`: {error}", file.display()))
            })?;
            made.write_all(key.to_text().as_bytes())?;
            made.sync_all()?;
            output.say(format!(
                "made `{}`. Set `key_file` below [backup] in `{}` to it, and keep a copy where the backups are not",
                file.display(),
                place.settings_path().display()
            ))
        }
    }
}

/// The key somebody named, or that of the settings when there are any.
pub(crate) fn key_for(place: &Place, named: Option<PathBuf>) -> Outcome<Option<SealKey>> {
    let of_settings = || Some(place.settings().ok()?.backup.key_file?).filter(|path| path.exists());
    Ok(named.or_else(of_settings).map(|path| SealKey::load(&path)).transpose()?)
}

/// What stands in a backup, for a table.
pub(crate) fn contents(head: &backup::file::Head, end: &backup::file::End) -> Vec<(&'static str, String)> {
    vec![
        ("datacenter", head.datacenter.clone()),
        ("taken", head.taken_at.to_string()),
        ("by version", head.program.clone()),
        ("revision", head.revision.to_string()),
        ("records, files", format!("{}, {}", end.records, end.files)),
    ]
}

/// How the backups stand, in one line.
pub(super) fn summary(standing: &BackupStanding, now: Timestamp) -> String {
    let Some(at) = standing.newest_at else { return "none".to_owned() };
    let late = if standing.overdue { ", overdue" } else { "" };
    format!("{at} ({}){late}, {} copies", ago(now, Some(at)), standing.copies)
}
