//! `neso up`: from a bare machine to a running datacenter, and nothing when it runs already.
//!
//! ```text
//! machine checks ─► settings ─► certificates ─► supervisor ─► ops API answers ─► setup ─► what to type next
//! ```
//! Every stage looks first and acts only on what is missing, so the command may be cut anywhere and typed again. Setup
//! ([`setup`]) goes through the same doors as everybody: operators' work over the ops API, the first instance over CloudAPI
//! with the tenant's own key.

mod farewell;
pub(crate) mod key;
mod setup;

use std::{path::Path, time::Duration};

use base::{daemon, daemon::PidFile, shutdown::Shutdown};
use headnode::Settings;
use model::time::Timestamp;
use opsapi::Client;
use tokio::time::Instant;

use crate::{
    context::Place,
    doctor::{Severity, machine},
    failure::{Failure, Outcome},
    install::{is_installed, systemctl, unit_names},
    progress::Progress,
    supervise::{self, children},
};

/// The ops API gets this long to answer after a start.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Processes whose supervisor is gone get this long to notice.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(20);
/// How often we look whether it does.
const START_POLL: Duration = Duration::from_millis(100);
/// How often processes that go away while we wait for them are started again: once for a supervisor that was dying when we came.
const STARTS_MAX: u32 = 3;

/// Brings the datacenter up. In the foreground, supervises until told to stop.
pub(crate) async fn run(place: &Place, foreground: bool, shutdown: Shutdown) -> Outcome {
    let progress = Progress::new();
    let settings = prepare(place, &progress)?;
    if !foreground {
        return in_background(place, &settings, &progress).await;
    }
    let supervisor = {
        let (place, settings, shutdown) = (place.clone(), settings.clone(), shutdown.clone());
        base::task::spawn("supervisor", async move { supervise::run(&place, &settings, shutdown).await })
    };
    tokio::select! {
        ended = finish(place, &settings, &progress) => if let Err(failure) = ended {
            eprintln!("neso: {failure}");
        },
        () = shutdown.wait() => (),
    }
    supervisor.await.map_err(|error| Failure::new(format!("the supervisor broke: {error}")))?
}

/// What must be there before anything runs: a fit machine, settings, certificates.
pub(crate) fn prepare(place: &Place, progress: &Progress) -> Outcome<Settings> {
    let settings = prepare_node(place, progress)?;
    ensure_certificates(&settings, progress)?;
    Ok(settings)
}

/// What must be there before a node runs: a fit machine and settings.
pub(crate) fn prepare_node(place: &Place, progress: &Progress) -> Outcome<Settings> {
    preflight(place)?;
    let settings = ensure_settings(place, progress)?;
    check_machine(&settings)?;
    Ok(settings)
}

/// `neso supervise`: what `neso up` leaves behind in the background.
pub(crate) async fn supervise(place: &Place, shutdown: Shutdown) -> Outcome {
    let settings = place.settings()?;
    supervise::run(place, &settings, shutdown).await
}

/// Everything the machine must have before a file is written; says all that is missing at once.
fn preflight(place: &Place) -> Outcome {
    let settings = match place.settings_path().exists() {
        true => Some(place.settings()?),
        false => None,
    };
    match settings {
        Some(settings) => check_machine(&settings),
        None => complain(machine::check(None)),
    }
}

fn check_machine(settings: &Settings) -> Outcome {
    complain(machine::check(Some(settings)))
}

fn complain(findings: Vec<crate::doctor::Finding>) -> Outcome {
    let fatal: Vec<String> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Fatal)
        .map(|finding| format!("\n  {}: {}\n  → {}", finding.check, finding.found, finding.remedy))
        .collect();
    match fatal.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(format!("this machine is not ready for a datacenter:{}", fatal.concat()))),
    }
}

/// Settings as they are, or freshly written.
fn ensure_settings(place: &Place, progress: &Progress) -> Outcome<Settings> {
    let path = place.settings_path();
    if !path.exists() {
        let step = progress.step(format!("Writing settings {}", path.display()));
        let text = Settings::generate(place.root.as_deref())?;
        write_whole(&path, &text)?;
        step.done("edit it for other ports, subnets or paths");
    }
    place.settings()
}

/// Replaces a file of settings; a reader sees the old one or the new one.
pub(crate) fn write_whole(path: &Path, text: &str) -> Outcome {
    let fail = |error: std::io::Error| Failure::new(format!("failed to write `{}`: {error}", path.display()));
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(fail)?;
    }
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).map_err(fail)?;
    std::fs::rename(&beside, path).map_err(fail)
}

fn ensure_certificates(settings: &Settings, progress: &Progress) -> Outcome {
    let step = progress.step(match settings.join {
        None => "Making certificates",
        Some(_) => "Looking at the certificate",
    });
    let now = Timestamp(base::clock::Clock::now_ms(&base::clock::SystemClock));
    if settings.join.is_some() {
        let member = headnode::pki::member(settings, now)?;
        step.done(&format!("server {}", member.server_id));
        return Ok(());
    }
    let (_, made) = headnode::pki::ensure(settings, now)?;
    match made.0.is_empty() {
        true => step.unchanged(),
        false => step.done(&made.0.join(", ")),
    }
    Ok(())
}

/// Starts what does not run, and sees it through. A supervisor that ends meanwhile, such as one that was being killed when we found
/// it, is followed by another.
async fn in_background(place: &Place, settings: &Settings, progress: &Progress) -> Outcome {
    for _ in 1..STARTS_MAX {
        start_in_background(place, settings, progress).await?;
        tokio::select! {
            biased;
            () = abandoned(place, settings) => progress.step("The supervisor that ran is gone").done("starting another"),
            result = finish(place, settings, progress) => return result,
        }
    }
    start_in_background(place, settings, progress).await?;
    finish(place, settings, progress).await
}

/// Resolves when no supervisor runs any more. Under systemd nobody misses one.
async fn abandoned(place: &Place, settings: &Settings) {
    while is_installed(place) || PidFile::holder(&supervise::pid_file(settings, "supervisor")).is_some() {
        tokio::time::sleep(START_POLL).await;
    }
}

/// Starts a supervisor unless one runs; where `neso install` made units, systemd starts the two processes itself.
pub(crate) async fn start_in_background(place: &Place, settings: &Settings, progress: &Progress) -> Outcome {
    let runs = |name: &str| PidFile::holder(&supervise::pid_file(settings, name)).is_some();
    if runs("supervisor") {
        return Ok(());
    }
    if is_installed(place) {
        return match children(settings).iter().all(|name| runs(name)) {
            true => Ok(()),
            false => {
                let step = progress.step("Starting under systemd");
                systemctl(&[&["start"], unit_names(settings)].concat()).await?;
                step.done(&format!("logs in {}", settings.paths.log.display()));
                Ok(())
            }
        };
    }
    if children(settings).iter().any(|name| runs(name)) {
        // Their supervisor is gone and they are about to follow it: starting before they did would find taken ports.
        for name in children(settings) {
            let path = supervise::pid_file(settings, name);
            if !PidFile::wait_released(&path, ORPHAN_PATIENCE) {
                return Err(Failure::new(format!("a {name} without a supervisor runs and does not end"))
                    .mend("run `neso down --keep-instances`, then `neso up` again"));
            }
        }
    }
    let step = progress.step(format!("Starting {}", children(settings).join(" and ")));
    let mut arguments = place.arguments();
    arguments.push("supervise".into());
    let log = supervise::log_file(settings, "supervisor");
    let pid = daemon::spawn_detached(&std::env::current_exe()?, arguments, &log)
        .map_err(|error| Failure::new(format!("failed to start the supervisor: {error}")))?;
    let begun = Instant::now();
    while !runs("supervisor") {
        if begun.elapsed() > START_PATIENCE {
            return Err(Failure::new("the supervisor does not come up").mend(format!("look at `{}`", log.display())));
        }
        tokio::time::sleep(START_POLL).await;
    }
    step.done(&format!("supervisor is process {pid}, logs in {}", settings.paths.log.display()));
    Ok(())
}

/// From running processes to a datacenter somebody can use.
pub(crate) async fn finish(place: &Place, settings: &Settings, progress: &Progress) -> Outcome {
    if settings.join.is_some() {
        return crate::join::wait_for_word(settings, progress).await;
    }
    let client = crate::adm::client(settings)?;
    wait_for_ops(settings, &client, progress).await?;
    if let Some(waiting) = client.headnodes().await?.waiting {
        return Err(Failure::new(waiting.text).mend(
            "everything on this machine was started, and reading works; all goes on by itself as soon as enough of them answer",
        ));
    }
    let result = setup::run(settings, &client, progress).await?;
    farewell::print(place, settings, &result);
    Ok(())
}

async fn wait_for_ops(settings: &Settings, client: &Client, progress: &Progress) -> Outcome {
    let step = progress.step("Waiting for the headnode");
    let start = Instant::now();
    loop {
        match client.datacenter().await {
            Ok(_) => {
                step.unchanged();
                return Ok(());
            }
            Err(error) if error.is_connect() && start.elapsed() < START_PATIENCE => (),
            Err(error) => {
                let log = supervise::log_file(settings, "headnode");
                return Err(Failure::from(error).mend(format!("look at `{}`", log.display())));
            }
        }
        tokio::time::sleep(START_POLL).await;
    }
}
