//! `neso restore`: a headnode made of a backup, on a machine that has none.

use std::{
    fs,
    io::{self, IsTerminal as _, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use base::daemon::PidFile;
use headnode::backup::{
    newest_whole,
    restore::{self, Restore},
    sealed::SealKey,
};

use crate::{
    adm::{Output, backup, details},
    context::Place,
    down::need_root,
    failure::{Failure, Outcome},
    progress::Progress,
    supervise,
};

/// What to restore, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Command {
    /// The backup: a file that `neso adm backup create` or the headnode made; `-` reads it from standard input, e.g. `ssh HOST cat FILE | neso
    /// restore -`.
    #[arg(required_unless_present = "from")]
    backup: Option<PathBuf>,
    /// The newest backup in this directory that is whole, those that another headnode kept for its fellows among them.
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "backup")]
    from: Option<PathBuf>,
    /// File of the key it is sealed with.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// This machine is the one the backup was taken on, and its pool with the instances is here: it goes on as the same
    /// server. Otherwise it becomes a new one.
    #[arg(long)]
    same_machine: bool,
    /// Only look whether it can be done.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(short, long)]
    json: bool,
}

/// Runs it.
pub(crate) async fn run(place: &Place, command: Command) -> Outcome {
    need_root("restore a headnode")?;
    if let Ok(settings) = place.settings() {
        for name in ["supervisor", "headnode"] {
            if PidFile::holder(&supervise::pid_file(&settings, name)).is_some() {
                return Err(Failure::new(format!("a {name} runs here")).mend("`neso down --keep-instances` stops it"));
            }
        }
    }
    let key = backup::key_for(place, command.key)?;
    let found = find(command.backup, command.from, key.as_ref())?;
    let restore = Restore {
        key,
        backup: found.path().to_owned(),
        settings_file: place.settings_path(),
        same_machine: command.same_machine,
    };
    let step = Progress::new().step("Reading the backup");
    let outcome = match command.dry_run {
        true => restore::dry_run(&restore).await?,
        false => restore::run(&restore).await?,
    };
    step.done("it is whole");
    let output = Output { json: command.json };
    output.show(&outcome, |outcome| {
        let mut lines = backup::contents(&outcome.head, &outcome.end);
        let verb = if command.dry_run { "would write" } else { "written" };
        lines.extend(outcome.written.iter().map(|path| (verb, path.display().to_string())));
        let filling = if command.dry_run { "would fill" } else { "filled" };
        lines.extend(outcome.filled.iter().map(|endpoint| (filling, endpoint.clone())));
        lines.extend(outcome.kept.iter().map(|path| ("kept", path.display().to_string())));
        details(&lines)
    })?;
    output.say(match command.dry_run {
        true => "Nothing was written. Without --dry-run it will be.",
        false => {
            "`neso up` starts the headnode. Machines are told nothing until what they have was compared with the backup: \
                  `neso adm rebuild` shows what happened after it, and makes instances known again. Image files \
                  are not in it: put those of the old headnode's `images` directory back, or import them again."
        }
    })
}

/// Most that is read from standard input, bytes: far more than the largest store makes.
const INPUT_MAX: u64 = 16 << 30;

/// The backup to restore.
enum Found {
    /// A file that stays.
    Here(PathBuf),
    /// One of ours, which goes again.
    Passing(PathBuf),
}

impl Found {
    fn path(&self) -> &Path {
        match self {
            Self::Here(path) | Self::Passing(path) => path,
        }
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        if let Self::Passing(path) = self {
            // It lies in a directory for what may be lost.
            let _ = fs::remove_file(path);
        }
    }
}

fn find(backup: Option<PathBuf>, from: Option<PathBuf>, key: Option<&SealKey>) -> Outcome<Found> {
    match (backup, from) {
        (Some(path), _) if path.as_os_str() == "-" => from_input(),
        (Some(path), _) => Ok(Found::Here(path)),
        (None, Some(directory)) => {
            let (path, unfit) = newest_whole(&directory, key)?;
            for (path, why) in unfit {
                eprintln!("`{}` is left out: {}", path.display(), base::errors::chain(&why));
            }
            eprintln!("The newest that is whole is `{}`.", path.display());
            Ok(Found::Here(path))
        }
        (None, None) => Err(Failure::new("no backup is named")),
    }
}

/// Keeps what comes on standard input: a backup is read twice.
fn from_input() -> Outcome<Found> {
    let input = io::stdin();
    if input.is_terminal() {
        return Err(Failure::new("there is no backup on standard input").mend("`ssh HOST cat FILE | neso restore -`"));
    }
    let path = std::env::temp_dir().join(format!("neso-restore-{:032x}", base::random::wide_bits()));
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let failed = |error: io::Error| Failure::new(format!("failed to keep what came in `{}`: {error}", path.display()));
    let mut made = made.map_err(failed)?;
    let found = Found::Passing(path.clone());
    let bytes = io::copy(&mut input.lock().take(INPUT_MAX), &mut made).map_err(failed)?;
    match bytes {
        0 => Err(Failure::new("nothing came on standard input: whatever should have said it failed")),
        INPUT_MAX => Err(Failure::new(format!("what came on standard input has more than {INPUT_MAX} bytes"))),
        _ => Ok(found),
    }
}
