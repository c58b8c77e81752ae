//! `neso install`: this machine as a host for good, under systemd. Machines without systemd use `neso up`, which needs none
//! of this.
//!
//! ```text
//! program ─► /usr/local/bin/neso ─► settings, certificates ─► units ─► systemctl enable --now ─► as `neso up`
//! ```
//! - **neso-node** ends alone (`KillMode=process`): zones and their supervisors are in control groups of their own, outside the
//!   unit's, so restarting the agent never touches one.
//! - **neso-instances** does nothing until the machine goes down; then, after the agent ended, it halts the instances and
//!   unmounts the pool. Without it they would be killed with whatever else is left.
//! - **neso-headnode** is the control plane; the others need it for nothing.
//! - **neso-member** waits until this machine keeps a part of the store, and becomes etcd then.
//! - **neso-monitor** and **neso-notifier** wait until an operator asks for Prometheus and Alertmanager here, and become them then.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use headnode::{Settings, role};

use crate::{
    answer,
    context::Place,
    failure::{Failure, Outcome},
    progress::Progress,
    supervise, up,
};

/// The units of the processes.
const UNITS: [&str; 5] = [HEADNODE, MEMBER, MONITOR, NOTIFIER, NODE];
/// Those of them that are a headnode's.
const OF_HEADNODE: [&str; 4] = [HEADNODE, MEMBER, MONITOR, NOTIFIER];
const HEADNODE: &str = "neso-headnode.service";
const MEMBER: &str = "neso-member.service";
const MONITOR: &str = "neso-monitor.service";
const NOTIFIER: &str = "neso-notifier.service";
/// The one that every machine has.
const NODE: &str = "neso-node.service";

/// Those of this machine: most that joined run no headnode.
pub(crate) fn unit_names(settings: &Settings) -> &'static [&'static str] {
    match role::runs_headnode(settings) {
        true => &UNITS,
        false => &[NODE],
    }
}
/// The unit that halts instances when the machine goes down.
const INSTANCES: &str = "neso-instances.service";
/// Where units of the administrator lie.
const UNIT_DIRECTORY: &str = "/etc/systemd/system";
/// Where the program goes: a build directory may be cleaned, and a home is hidden from the headnode.
const PROGRAM: &str = "/usr/local/bin/neso";
/// There while systemd runs the machine.
const SYSTEMD_RUNS: &str = "/run/systemd/system";

/// `systemctl stop` waits for the processes to end, and for instances to halt.
const SYSTEMCTL_PATIENCE: Duration = Duration::from_secs(10 * 60);
/// Instances of a full machine halt in batches, each within its grace; the same as above, in the unit.
const HALT_SECONDS: u64 = 10 * 60;

struct Unit {
    name: &'static str,
    text: String,
}

/// Installs and starts, or prints the units.
pub(crate) async fn run(place: &Place, print: bool) -> Outcome {
    if print {
        let settings = match place.settings_path().exists() {
            true => place.settings()?,
            false => Settings::parse(&Settings::generate(place.root.as_deref())?).map_err(Failure::new)?,
        };
        for unit in units(Path::new(PROGRAM), &place.settings_path(), &settings) {
            answer::print(format_args!("# {UNIT_DIRECTORY}/{}\n{}", unit.name, unit.text))?;
        }
        return Ok(());
    }
    if !base::daemon::is_root() {
        return Err(Failure::new("only root may write systemd units")
            .mend("run `sudo neso install`, or look with `neso install --print`"));
    }
    let progress = Progress::new();
    let settings = up::prepare(place, &progress)?;
    let processes = unit_names(&settings);
    if let Some(pid) = base::daemon::PidFile::holder(&supervise::pid_file(&settings, "supervisor")) {
        return Err(Failure::new(format!("a supervisor started by `neso up` runs as process {pid}"))
            .mend("run `neso down --keep-instances` first; instances go on, systemd takes over"));
    }
    place_program(&progress)?;
    write_units(place, &settings, &progress)?;
    if !Path::new(SYSTEMD_RUNS).exists() {
        return Ok(answer::print("systemd does not run here; the units take effect once it does.")?);
    }
    let step = progress.step("Starting under systemd");
    systemctl(&["daemon-reload"]).await?;
    systemctl(&[&["enable", INSTANCES], processes].concat()).await?;
    // Restarted, not only started: the program or the units may be new.
    systemctl(&[&["restart"], processes].concat()).await?;
    step.done("they start with the machine");
    up::finish(place, &settings, &progress).await
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

/// Whether systemd runs this machine and has units for this very datacenter.
pub(crate) fn is_installed(place: &Place) -> bool {
    let unit = std::fs::read_to_string(Path::new(UNIT_DIRECTORY).join(NODE)).unwrap_or_default();
    let names_us = format!(" --config {} ", quoted(&place.settings_path()));
    Path::new(SYSTEMD_RUNS).exists() && unit.contains(&names_us)
}

/// Follows this machine's role: with a headnode its units are there and run, without one they are gone.
pub(crate) async fn follow_role(place: &Place, settings: &Settings) -> Outcome {
    let wanted = units(Path::new(PROGRAM), &place.settings_path(), settings);
    for name in OF_HEADNODE {
        let path = Path::new(UNIT_DIRECTORY).join(name);
        let fail = |error: std::io::Error| Failure::new(format!("failed to change `{}`: {error}", path.display()));
        match wanted.iter().find(|unit| unit.name == name) {
            Some(unit) => {
                if std::fs::read_to_string(&path).ok().as_ref() != Some(&unit.text) {
                    std::fs::write(&path, &unit.text).map_err(fail)?;
                    systemctl(&["daemon-reload"]).await?;
                }
                systemctl(&["enable", "--now", name]).await?;
            }
            None if path.exists() => {
                systemctl(&["disable", "--now", name]).await?;
                std::fs::remove_file(&path).map_err(fail)?;
                systemctl(&["daemon-reload"]).await?;
            }
            None => {}
        }
    }
    Ok(())
}

/// Takes the units away, halting the instances.
pub(crate) async fn uninstall(settings: &Settings) -> Outcome {
    systemctl(&[&["disable", "--now", INSTANCES], unit_names(settings)].concat()).await?;
    for name in UNITS.into_iter().chain([INSTANCES]) {
        let path = Path::new(UNIT_DIRECTORY).join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::new(format!("failed to remove `{}`: {error}", path.display())));
            }
            _ => (),
        }
    }
    systemctl(&["daemon-reload"]).await
}

/// Puts the running program where units find it for good.
fn place_program(progress: &Progress) -> Outcome {
    let source = std::env::current_exe()?;
    if source == Path::new(PROGRAM) {
        return Ok(());
    }
    let step = progress.step(format!("Installing {PROGRAM}"));
    let fail = |error: std::io::Error| Failure::new(format!("failed to install `{PROGRAM}`: {error}"));
    let target = Path::new(PROGRAM);
    let beside = target.with_extension("new");
    std::fs::create_dir_all(target.parent().unwrap_or(Path::new("/"))).map_err(fail)?;
    std::fs::copy(&source, &beside).map_err(fail)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o755)).map_err(fail)?;
    std::fs::File::open(&beside).and_then(|file| file.sync_all()).map_err(fail)?;
    std::fs::rename(&beside, target).map_err(fail)?;
    step.done(&format!("from {}", source.display()));
    Ok(())
}

fn write_units(place: &Place, settings: &Settings, progress: &Progress) -> Outcome {
    let step = progress.step(format!("Writing units to {UNIT_DIRECTORY}"));
    let fail =
        |path: &Path, error: std::io::Error| Failure::new(format!("failed to write `{}`: {error}", path.display()));
    // systemd opens the logs before our program runs.
    std::fs::create_dir_all(&settings.paths.log).map_err(|error| fail(&settings.paths.log, error))?;
    let directory = Path::new(UNIT_DIRECTORY);
    std::fs::create_dir_all(directory).map_err(|error| fail(directory, error))?;
    let mut names = Vec::new();
    for unit in units(Path::new(PROGRAM), &place.settings_path(), settings) {
        let path = directory.join(unit.name);
        std::fs::write(&path, &unit.text).map_err(|error| fail(&path, error))?;
        names.push(unit.name);
    }
    step.done(&names.join(", "));
    Ok(())
}

fn units(program: &Path, config: &Path, settings: &Settings) -> Vec<Unit> {
    let command = |verb: &str| format!("{} --config {} {verb}", quoted(program), quoted(config));
    let log = |name: &str| {
        let file = supervise::log_file(settings, name).display().to_string().replace('%', "%%");
        format!("StandardOutput=append:{file}\nStandardError=append:{file}\n")
    };
    // However often it fails at first (a port taken, a disk not there yet), it is tried again: never "start-limit-hit".
    let endless = "StartLimitIntervalSec=0";
    let of_headnode = |unit: &'static str, description: &str, verb: &str, name: &str| Unit {
        name: unit,
        text: format!(
            "[Unit]\nDescription={description}\nAfter=network-online.target\nWants=network-online.target\n{endless}\n\n\
             [Service]\nType=exec\nExecStart={}\nRestart=always\nRestartSec=1\nLimitNOFILE=65536\nNoNewPrivileges=yes\n\
             ProtectHome=yes\nPrivateTmp=yes\n{}\n[Install]\nWantedBy=multi-user.target\n",
            command(verb),
            log(name),
        ),
    };
    let units = [
        of_headnode(HEADNODE, "Neso headnode: store, control plane, CloudAPI", "headnode", "headnode"),
        of_headnode(
            MEMBER,
            "Neso member: keeps a part of the store where there are several",
            "member --wait",
            supervise::MEMBER,
        ),
        of_headnode(
            MONITOR,
            "Neso monitor: Prometheus, where an operator wants it",
            "monitor --wait",
            supervise::MONITOR,
        ),
        of_headnode(
            NOTIFIER,
            "Neso notifier: Alertmanager, where somebody is told",
            "notifier --wait",
            supervise::NOTIFIER,
        ),
        Unit {
            name: NODE,
            text: format!(
                "[Unit]\nDescription=Neso node: runs this machine's instances\nAfter=network.target {INSTANCES}\n\
                 Requires={INSTANCES}\n{endless}\n\n[Service]\nType=exec\nExecStart={}\nRestart=always\n\
                 RestartSec=1\nKillMode=process\nLimitNOFILE=65536\nTasksMax=infinity\n{}\n\
                 [Install]\nWantedBy=multi-user.target\n",
                command("node"),
                log("node"),
            ),
        },
        Unit {
            name: INSTANCES,
            text: format!(
                "[Unit]\nDescription=Neso instances: halts them when the machine goes down\nAfter=network.target\n\n\
                 [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\nExecStop={}\n\
                 TimeoutStopSec={HALT_SECONDS}\n\n[Install]\nWantedBy=multi-user.target\n",
                command("halt-instances"),
            ),
        },
    ];
    let runs_here = |unit: &Unit| role::runs_headnode(settings) || !OF_HEADNODE.contains(&unit.name);
    units.into_iter().filter(runs_here).collect()
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

    fn text_of(program: &str, config: &str) -> Vec<Unit> {
        let settings = Settings::parse(&Settings::generate(None).expect("settings")).expect("they are right");
        units(Path::new(program), Path::new(config), &settings)
    }

    #[test]
    fn paths_with_spaces_are_quoted() {
        let units = text_of("/opt/my neso/neso", "/etc/neso/neso.toml");
        assert!(units[0].text.contains("ExecStart=\"/opt/my neso/neso\" --config /etc/neso/neso.toml headnode\n"));
    }

    #[test]
    fn a_machine_that_joined_gets_no_headnode() {
        let mut settings = Settings::parse(&Settings::generate(None).expect("settings")).expect("they are right");
        settings.join = Some(headnode::settings::Join { headnodes: vec!["10.0.0.1:8444".to_owned()] });
        let units = units(Path::new(PROGRAM), Path::new("/etc/neso/neso.toml"), &settings);
        assert_eq!(units.iter().map(|unit| unit.name).collect::<Vec<_>>(), ["neso-node.service", INSTANCES]);
        assert!(units.iter().all(|unit| !unit.text.contains("headnode")), "nothing waits for a unit that is not there");
        assert_eq!(unit_names(&settings), ["neso-node.service"]);
    }

    #[test]
    fn the_agent_ends_alone_and_is_tried_for_ever() {
        let units = text_of(PROGRAM, "/etc/neso/neso.toml");
        let text = |name: &str| &units.iter().find(|unit| unit.name == name).expect("there is such a unit").text;
        assert!(text(NODE).contains("KillMode=process\n"));
        assert!(text(NODE).contains("StandardError=append:/var/log/neso/node.log\n"));
        assert!(UNITS.iter().all(|name| text(name).contains("StartLimitIntervalSec=0\n")));
        for (name, verb) in [(HEADNODE, "headnode"), (MONITOR, "monitor --wait"), (NOTIFIER, "notifier --wait")] {
            assert!(text(name).contains(&format!(" --config /etc/neso/neso.toml {verb}\n")), "{name}");
        }
    }
}
