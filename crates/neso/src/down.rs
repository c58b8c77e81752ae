//! `neso down` and `neso clean-data`: stopping in order, and leaving nothing.
//!
//! ```text
//! down        supervisor, headnode, node ─► instances halted side by side ─► bridges, filters ─► pool unmounted
//! clean-data  down ─► every zone destroyed ─► every directory of the settings removed ─► settings
//! ```
//! A halted instance is still wanted: the next `neso up` starts it again, as a machine that boots does. With
//! `--keep-instances` only our processes end; instances do not notice.

use std::{path::Path, time::Duration};

use base::{daemon, daemon::PidFile};
use headnode::Settings;
use host::linux::mounts;

use crate::{
    context::Place,
    failure::{Failure, Outcome},
    install::{self, is_installed, systemctl, unit_names},
    machine,
    progress::Progress,
    supervise::{self, children},
};

/// A process told to end gets this long: longer than the supervisor gives its children.
const END_PATIENCE: Duration = Duration::from_secs(45);
/// An instance told to halt gets this long.
const HALT_GRACE: Duration = Duration::from_secs(10);

/// Stops the datacenter.
pub(crate) async fn run(place: &Place, keep_instances: bool) -> Outcome {
    need_root("stop the datacenter")?;
    let settings = place.settings()?;
    let progress = Progress::new();
    if !keep_instances {
        machine::begin_end(&settings)?;
    }
    stop_processes(place, &settings, &progress).await?;
    if !keep_instances {
        stop_instances(&settings, &progress).await?;
    }
    Ok(())
}

/// Removes the datacenter.
pub(crate) async fn clean(place: &Place, yes: bool) -> Outcome {
    need_root("remove the datacenter")?;
    let path = place.settings_path();
    if !path.exists() {
        eprintln!("Nothing to remove: `{}` does not exist.", path.display());
        return Ok(());
    }
    let settings = place.settings()?;
    if !yes && !confirmed(&settings)? {
        return Err(Failure::new("nothing was removed").mend("answer with the datacenter's name, or pass --yes"));
    }
    let progress = Progress::new();
    stop_processes(place, &settings, &progress).await?;
    if is_installed(place) {
        let step = progress.step("Removing systemd's units");
        install::uninstall(&settings).await?;
        step.done("done");
    }
    let step = progress.step("Destroying instances");
    let count = machine::wipe(&settings).await?;
    step.done(&format!("{count}"));
    let step = progress.step("Removing files");
    let paths = &settings.paths;
    // A build that was killed leaves the root it was building, with file systems of the machine in it.
    mounts::detach_below(&paths.data.join("images-built"))?;
    for directory in [&paths.data, &paths.run, &paths.log, &paths.operator] {
        remove(directory)?;
    }
    std::fs::remove_file(&path)
        .map_err(|error| Failure::new(format!("failed to remove `{}`: {error}", path.display())))?;
    if let Some(directory) = path.parent().filter(|directory| directory.ends_with("neso")) {
        // It stays when somebody keeps other files there.
        let _ = std::fs::remove_dir(directory);
    }
    step.done("the tenant's SSH key stays");
    Ok(())
}

pub(crate) fn need_root(what: &str) -> Outcome {
    match daemon::is_root() {
        true => Ok(()),
        false => Err(Failure::new(format!("only root may {what}")).mend("run it as root, for example with sudo")),
    }
}

fn confirmed(settings: &Settings) -> Outcome<bool> {
    let name = &settings.datacenter.name;
    eprintln!("This destroys every instance and all data below `{}`.", settings.paths.data.display());
    eprint!("Type the datacenter's name ({name}) to go on: ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == name)
}

/// Halts instances and nothing else: what systemd runs when the machine goes down, after the agent ended.
pub(crate) async fn halt_instances(place: &Place) -> Outcome {
    need_root("halt instances")?;
    stop_instances(&place.settings()?, &Progress::new()).await
}

pub(crate) async fn stop_processes(place: &Place, settings: &Settings, progress: &Progress) -> Outcome {
    let step = progress.step("Stopping headnode and node");
    if is_installed(place) {
        systemctl(&[&["stop"], unit_names(settings)].concat()).await?;
    }
    let mut stopped = Vec::new();
    for name in ["supervisor"].into_iter().chain(children(settings)).chain([
        supervise::NOTIFIER,
        supervise::MONITOR,
        supervise::MEMBER,
    ]) {
        let path = supervise::pid_file(settings, name);
        let Some(pid) = PidFile::holder(&path) else {
            continue;
        };
        // It may have ended since; then its lock is free and the wait below returns at once.
        let _ = daemon::terminate(pid);
        if !PidFile::wait_released(&path, END_PATIENCE) {
            let _ = daemon::kill(pid);
            if !PidFile::wait_released(&path, END_PATIENCE) {
                return Err(Failure::new(format!("process {pid} ({name}) does not end"))
                    .mend(format!("look at it with `ps -fp {pid}`; it may wait for a disk")));
            }
        }
        stopped.push(name);
    }
    match stopped.is_empty() {
        true => step.unchanged(),
        false => step.done("done"),
    }
    Ok(())
}

async fn stop_instances(settings: &Settings, progress: &Progress) -> Outcome {
    let step = progress.step("Halting instances");
    let count = machine::halt(settings, HALT_GRACE).await?;
    match count {
        0 => step.unchanged(),
        count => step.done(&format!("{count} halted; `neso up` starts them again")),
    }
    Ok(())
}

/// Removes a directory with all that is in it, but nothing that only shows through a mount.
fn remove(directory: &Path) -> Outcome {
    if let Some(mount) = mounts::below(directory)?.first() {
        return Err(Failure::new(format!(
            "`{}` is not removed: `{}` is mounted",
            directory.display(),
            mount.display()
        ))
        .mend(format!("see what uses it, then `umount {}` and try again", mount.display())));
    }
    match std::fs::remove_dir_all(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::new(format!("failed to remove `{}`: {error}", directory.display()))
            .mend("see with `ls -la` and `lsattr` why it stays, and try again")),
    }
}
