//! The supervisor: keeps the headnode and the node running, each in a process of its own.
//!
//! A child that ends is started again, after a delay that grows while it does not come up and is short again once it did.
//! Neither child's end touches the other. The supervisor is told to stop by SIGTERM or SIGINT; it passes that on and
//! waits. When the supervisor itself is killed, its children see their standard input close and end by themselves, so the
//! next supervisor never finds strangers on its ports; instances have supervisors of their own and notice nothing.

use std::{path::PathBuf, time::Duration};

use base::{
    backoff::Backoff,
    daemon::{self, PidFile},
    shutdown::Shutdown,
};
use headnode::Settings;
use tokio::{process::Child, time::Instant};

use crate::{context::Place, failure::Outcome};

/// A child that ran this long has come up: what keeps one from it (settings, ports, a damaged store) shows sooner.
/// Its next restart is quick again, however often it is killed.
const STAYED_UP: Duration = Duration::from_millis(500);
/// First and longest delay before a restart.
const RESTART_FLOOR: Duration = Duration::from_millis(200);
/// See [`RESTART_FLOOR`].
const RESTART_CEILING: Duration = Duration::from_secs(5);
/// A child told to end gets this long.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// The processes of a datacenter on one machine.
const CHILDREN: [&str; 2] = ["headnode", "node"];

/// Those of this machine: one that joined runs no headnode.
pub(crate) fn children(settings: &Settings) -> &'static [&'static str] {
    match settings.join {
        None => &CHILDREN,
        Some(_) => &CHILDREN[1..],
    }
}

/// The pid file of `name` (`supervisor`, `headnode`, `node`).
pub(crate) fn pid_file(settings: &Settings, name: &str) -> PathBuf {
    settings.paths.run.join(format!("{name}.pid"))
}

/// The log file of `name`.
pub(crate) fn log_file(settings: &Settings, name: &str) -> PathBuf {
    settings.paths.log.join(format!("{name}.log"))
}

/// Supervises until told to stop.
pub(crate) async fn run(place: &Place, settings: &Settings, shutdown: Shutdown) -> Outcome {
    let _held = PidFile::take(&pid_file(settings, "supervisor"))?;
    let program = std::env::current_exe()?;
    let keepers: Vec<_> = children(settings)
        .iter()
        .map(|name| {
            let mut arguments = place.arguments();
            arguments.extend([(*name).into(), "--supervised".into()]);
            let keeper = Keeper {
                name,
                program: program.clone(),
                arguments,
                log: log_file(settings, name),
                shutdown: shutdown.clone(),
            };
            base::task::spawn(name, keeper.run())
        })
        .collect();
    for keeper in keepers {
        // A keeper that panicked has said so in the log; the other child goes on until shutdown.
        let _ = keeper.await;
    }
    Ok(())
}

struct Keeper {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<std::ffi::OsString>,
    log: PathBuf,
    shutdown: Shutdown,
}

impl Keeper {
    async fn run(self) {
        let mut backoff = Backoff::new(RESTART_FLOOR, RESTART_CEILING);
        while !self.shutdown.is_set() {
            let started = Instant::now();
            match daemon::spawn_logged(&self.program, &self.arguments, &self.log) {
                Ok(child) => self.watch(child).await,
                Err(error) => tracing::error!(process = self.name, %error, "failed to start"),
            }
            if self.shutdown.is_set() {
                break;
            }
            if started.elapsed() > STAYED_UP {
                backoff.reset();
            }
            let delay = backoff.next_delay();
            tracing::warn!(process = self.name, ?delay, "starting again");
            tokio::select! {
                () = tokio::time::sleep(delay) => (),
                () = self.shutdown.wait() => (),
            }
        }
    }

    /// Waits for the child's end, or ends it at shutdown.
    async fn watch(&self, mut child: Child) {
        // Held as long as the child is watched: waiting for a child would close it, and that tells the child to end.
        let _input = child.stdin.take();
        tracing::info!(process = self.name, pid = child.id(), "started");
        tokio::select! {
            ended = child.wait() => {
                match ended {
                    Ok(status) => tracing::warn!(process = self.name, %status, "ended"),
                    Err(error) => tracing::error!(process = self.name, %error, "lost"),
                }
                return;
            }
            () = self.shutdown.wait() => (),
        }
        if let Some(pid) = child.id() {
            // It may end between the two calls; then there is nobody to tell.
            let _ = daemon::terminate(pid);
        }
        if tokio::time::timeout(END_PATIENCE, child.wait()).await.is_err() {
            tracing::warn!(process = self.name, "did not end in time; killing it");
            let _ = child.kill().await;
        }
    }
}
