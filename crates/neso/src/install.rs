//! `neso install`: systemd units for real hosts. Machines without systemd use `neso up`, which needs none of this.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    answer,
    context::Place,
    failure::{Failure, Outcome},
};

/// The units this writes.
pub(crate) const UNITS: [&str; 2] = ["neso-headnode.service", "neso-node.service"];
/// Where units of the administrator lie.
const UNIT_DIRECTORY: &str = "/etc/systemd/system";

/// `systemctl stop` waits for the processes to end.
const SYSTEMCTL_PATIENCE: Duration = Duration::from_secs(90);

struct Unit {
    name: &'static str,
    text: String,
}

/// Writes the units and tells systemd, or prints them.
pub(crate) async fn run(place: &Place, print: bool) -> Outcome {
    let program = std::env::current_exe()?;
    let units = units(&program, &place.settings_path());
    if print {
        for unit in units {
            answer::print(format_args!("# {UNIT_DIRECTORY}/{}\n{}", unit.name, unit.text))?;
        }
        return Ok(());
    }
    if !base::daemon::is_root() {
        return Err(Failure::new("only root may write systemd units")
            .mend("run `sudo neso install`, or look with `neso install --print`"));
    }
    let settings = place.settings()?;
    if let Some(pid) = base::daemon::PidFile::holder(&crate::supervise::pid_file(&settings, "supervisor")) {
        return Err(Failure::new(format!("a supervisor started by `neso up` runs as process {pid}"))
            .mend("run `neso down --keep-instances` first; instances go on, systemd takes over"));
    }
    let directory = Path::new(UNIT_DIRECTORY);
    std::fs::create_dir_all(directory)?;
    for unit in &units {
        let path = directory.join(unit.name);
        std::fs::write(&path, &unit.text)
            .map_err(|error| Failure::new(format!("failed to write `{}`: {error}", path.display())))?;
        answer::print(format_args!("Wrote {}", path.display()))?;
    }
    if Path::new("/run/systemd/system").exists() {
        systemctl(&["daemon-reload"]).await?;
        systemctl(&["enable", "--now", UNITS[0], UNITS[1]]).await?;
        answer::print("Enabled and started neso-headnode and neso-node.")?;
    } else {
        answer::print("systemd does not run here; the units take effect once it does.")?;
    }
    Ok(())
}

/// Runs `systemctl`; a failure is told in its own words.
pub(crate) async fn systemctl(arguments: &[&str]) -> Outcome {
    let mut command = base::process::command("systemctl");
    command.args(arguments);
    let output = base::process::output(command, SYSTEMCTL_PATIENCE).await?;
    match output.success() {
        true => Ok(()),
        false => Err(Failure::new(format!("`systemctl {}` failed: {}", arguments.join(" "), output.reason()))),
    }
}

/// Whether systemd runs our processes on this machine.
pub(crate) async fn units_run() -> bool {
    Path::new("/run/systemd/system").exists() && systemctl(&["is-active", "--quiet", UNITS[0]]).await.is_ok()
}

fn units(program: &Path, config: &Path) -> Vec<Unit> {
    let command = |verb: &str| format!("{} --config {} {verb}", quoted(program), quoted(config));
    vec![
        Unit {
            name: UNITS[0],
            text: format!(
                "[Unit]\nDescription=Neso headnode: store, control plane, CloudAPI\nAfter=network-online.target\n\
                 Wants=network-online.target\n\n[Service]\nExecStart={}\nRestart=always\nRestartSec=1\n\
                 LimitNOFILE=65536\nNoNewPrivileges=yes\nProtectHome=yes\nPrivateTmp=yes\n\n\
                 [Install]\nWantedBy=multi-user.target\n",
                command("headnode")
            ),
        },
        Unit {
            name: UNITS[1],
            // KillMode=process: instances' supervisors are children of nobody here and must outlive the agent.
            text: format!(
                "[Unit]\nDescription=Neso node: runs this machine's instances\nAfter=network.target\n\n\
                 [Service]\nExecStart={}\nRestart=always\nRestartSec=1\nKillMode=process\nDelegate=yes\n\
                 LimitNOFILE=65536\nTasksMax=infinity\n\n[Install]\nWantedBy=multi-user.target\n",
                command("node")
            ),
        },
    ]
}

/// A path as systemd reads it in `ExecStart`.
fn quoted(path: &Path) -> String {
    let path: PathBuf = path.into();
    let text = path.display().to_string().replace('%', "%%");
    match text.contains([' ', '"', '\\']) {
        true => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_spaces_are_quoted() {
        let units = units(Path::new("/opt/my neso/neso"), Path::new("/etc/neso/neso.toml"));
        assert!(units[0].text.contains("ExecStart=\"/opt/my neso/neso\" --config /etc/neso/neso.toml headnode\n"));
        assert!(units[1].text.contains("KillMode=process"));
    }
}
