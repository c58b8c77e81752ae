//! `neso restore`: a headnode made of a backup, on a machine that has none.

use std::path::PathBuf;

use base::daemon::PidFile;
use headnode::backup::restore::{self, Restore};

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
    /// The backup: a file that `neso adm backup create` or the headnode made.
    backup: PathBuf,
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
    let restore = Restore {
        key: backup::key_for(place, command.key)?,
        backup: command.backup,
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
