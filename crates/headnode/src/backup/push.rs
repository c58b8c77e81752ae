//! Carrying backups to another machine by a command of the operator's.
//!
//! The program gets the file as its standard input, and nothing of ours: no environment, no name but that of a user without rights. That it ended
//! well is all that is known of what became of the file, and is written down beside the backups; a backup that was not carried away is
//! tried again with every look until a newer one takes its place.

use std::{fs, io, process::Stdio, time::Duration};

use nix::unistd::User;
use serde::{Deserialize, Serialize};

use super::{BackupError, Listed};
use crate::{pki::write_file, settings::Settings};

/// Beside the backups: names of those that were carried away.
const DONE: &str = "carried-away.json";
/// Names that are remembered.
const DONE_MAX: usize = 256;
/// In an argument: the file's name.
const NAME: &str = "{name}";
/// Bytes of what the program complains of that are told.
const WORDS_MAX: usize = 300;

/// Why a backup was not carried away.
#[derive(Debug, thiserror::Error)]
pub(super) enum PushError {
    /// The file.
    #[error("failed to read the backup")]
    Read(#[source] io::Error),
    /// Who should run the command.
    #[error("backup.command_user: there is no user `{0}`")]
    NoUser(String),
    /// He may do everything.
    #[error("backup.command_user: `{0}` is root under another name")]
    Root(String),
    /// The command could not be run to its end.
    #[error("failed to run backup.command")]
    Run(#[from] base::process::Error),
    /// It was run, and did not do it.
    #[error("backup.command ended with {code}: {words}")]
    Failed {
        /// How it ended.
        code: String,
        /// The last it said.
        words: String,
    },
    /// It could not be written down that it did.
    #[error("failed to write down that a backup was carried away")]
    Note(#[source] BackupError),
}

#[derive(Default, Serialize, Deserialize)]
struct Done {
    names: Vec<String>,
}

/// Names of the backups that were carried away, as far as they are remembered.
pub(super) fn done(settings: &Settings) -> Vec<String> {
    let text = fs::read(settings.backup_dir().join(DONE)).unwrap_or_default();
    serde_json::from_slice::<Done>(&text).unwrap_or_default().names
}

/// Carries `backup` away and writes that down.
pub(super) async fn push(settings: &Settings, backup: &Listed) -> Result<(), PushError> {
    let of = &settings.backup;
    let name = backup.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let user = User::from_name(&of.command_user).ok().flatten();
    let user = user.ok_or_else(|| PushError::NoUser(of.command_user.clone()))?;
    if user.uid.is_root() {
        return Err(PushError::Root(of.command_user.clone()));
    }
    let file = fs::File::open(&backup.path).map_err(PushError::Read)?;
    let mut command = base::process::command(of.command.first().map(String::as_str).unwrap_or_default());
    command.args(of.command.iter().skip(1).map(|argument| argument.replace(NAME, &name)));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", &user.dir).current_dir("/").stdin(Stdio::from(file));
    if base::daemon::is_root() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let deadline = Duration::from_secs(u64::from(of.command_minutes) * 60);
    let output = base::process::output(command, deadline).await?;
    if !output.success() {
        let code = output.code.map_or_else(|| "a signal".to_owned(), |code| format!("code {code}"));
        return Err(PushError::Failed { code, words: output.reason().chars().take(WORDS_MAX).collect() });
    }
    let mut names = done(settings);
    names.push(name);
    names.drain(..names.len().saturating_sub(DONE_MAX));
    let text = serde_json::to_vec(&Done { names }).expect("plain data");
    write_file(&settings.backup_dir().join(DONE), &text, 0o600).map_err(|error| PushError::Note(error.into()))
}

#[cfg(test)]
mod tests {
    use model::time::Timestamp;

    use super::*;

    fn site(command: &[&str]) -> (tempfile::TempDir, Settings, Listed) {
        let root = tempfile::tempdir().unwrap();
        let mut settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
        settings.backup.command = command.iter().map(|word| (*word).to_owned()).collect();
        fs::create_dir_all(settings.backup_dir()).unwrap();
        let path = settings.backup_dir().join("dc-1-20261128T065900Z-r1.neso-backup");
        fs::write(&path, "whole").unwrap();
        let backup = Listed { path, bytes: 5, taken_at: Timestamp(1), revision: 1 };
        (root, settings, backup)
    }

    #[tokio::test]
    async fn a_backup_goes_through_the_command_as_nobody_and_is_written_down() {
        let there = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(there.path(), Some(User::from_name("nobody").unwrap().unwrap().uid.as_raw()), None)
            .or_else(|error| if base::daemon::is_root() { Err(error) } else { Ok(()) })
            .unwrap();
        let to =
            format!("umask 077; id -u > {0}/who; env > {0}/environment; cat > {0}/{{name}}", there.path().display());
        let (_root, settings, backup) = site(&["/bin/sh", "-c", &to]);
        assert!(done(&settings).is_empty());
        push(&settings, &backup).await.unwrap();
        let name = "dc-1-20261128T065900Z-r1.neso-backup";
        assert_eq!(fs::read(there.path().join(name)).unwrap(), b"whole");
        assert_eq!(done(&settings), [name]);
        if base::daemon::is_root() {
            let who = fs::read_to_string(there.path().join("who")).unwrap();
            assert_ne!(who.trim(), "0", "root ran it");
        }
        let environment = fs::read_to_string(there.path().join("environment")).unwrap();
        assert!(!environment.contains("CARGO"), "{environment}");
    }

    #[tokio::test]
    async fn what_goes_wrong_is_said_and_not_written_down() {
        let (_root, settings, backup) = site(&["/bin/sh", "-c", "echo no room >&2; exit 7"]);
        let why = push(&settings, &backup).await.unwrap_err().to_string();
        assert!(why.contains("code 7: no room"), "{why}");
        let (_root, mut settings, backup) = site(&["/no/such/program"]);
        assert!(matches!(push(&settings, &backup).await, Err(PushError::Run(_))));
        settings.backup.command_user = "nobody-of-this-name".to_owned();
        assert!(matches!(push(&settings, &backup).await, Err(PushError::NoUser(_))));
        assert!(done(&settings).is_empty());
    }
}
