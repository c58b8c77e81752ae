//! The supervisor: keeps the headnode, the node and the store's member running, each in a process of its own.
//!
//! A child that ends is started again, after a delay that grows while it does not come up and is short again once it did.
//! No child's end touches another. Which there are follows the machine's role ([`headnode::role`]), which is looked at while it
//! supervises: a node that becomes a headnode gets another child, one that ceases to be one loses it. A
//! headnode that keeps a part of the store has a third child, etcd ([`headnode::members`]), one that an operator asked to watch the datacenter
//! Prometheus, and Alertmanager where somebody is told ([`headnode::monitoring`]). The supervisor is told to stop by SIGTERM or SIGINT; it passes that on and
//! waits. When the supervisor itself is killed, its children see their standard input close (other programs are told by the kernel) and end by themselves, so the
//! next supervisor never finds strangers on its ports; instances have supervisors of their own and notice nothing.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use base::{
    backoff::Backoff,
    daemon::{self, PidFile},
    shutdown::{Shutdown, Trigger},
};
use headnode::{Settings, members, monitoring, role};
use tokio::{process::Child, task::JoinHandle, time::Instant};

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

/// How often we look which children there should be: reads a small file.
pub(crate) const ROLE_POLL: Duration = Duration::from_millis(500);

/// The processes of this machine: a node, and a headnode where its role is to run one.
pub(crate) fn children(settings: &Settings) -> Vec<&'static str> {
    let mut names = Vec::new();
    if role::runs_headnode(settings) {
        names.push("headnode");
    }
    names.push("node");
    names
}

/// This machine's member of the store's cluster, where it has one.
pub(crate) const MEMBER: &str = "member";

/// Whether this machine is to run a member now.
pub(crate) fn has_member(settings: &Settings) -> bool {
    role::runs_headnode(settings) && members::process::is_wanted(settings)
}

pub(crate) use headnode::monitoring::{MONITOR, NOTIFIER};

/// Whether this machine is to run Prometheus now.
pub(crate) fn has_monitor(settings: &Settings) -> bool {
    role::runs_headnode(settings) && monitoring::is_wanted(settings)
}

/// Whether this machine is to run Alertmanager now.
pub(crate) fn has_notifier(settings: &Settings) -> bool {
    role::runs_headnode(settings) && monitoring::notify::is_wanted(settings)
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
    let mut kept: BTreeMap<&'static str, Kept> = BTreeMap::new();
    while !shutdown.is_set() {
        let mut wanted = children(settings);
        if has_member(settings) {
            wanted.push(MEMBER);
        }
        if has_monitor(settings) {
            wanted.push(MONITOR);
        }
        if has_notifier(settings) {
            wanted.push(NOTIFIER);
        }
        let unwanted: Vec<&str> = kept.keys().filter(|name| !wanted.contains(*name)).copied().collect();
        for name in unwanted {
            if let Some(kept) = kept.remove(name) {
                tracing::info!(process = name, "no longer part of what this machine does");
                kept.end().await;
            }
        }
        for name in wanted {
            kept.entry(name).or_insert_with(|| {
                let mut arguments = place.arguments();
                arguments.extend([name.into(), "--supervised".into()]);
                let (trigger, shutdown) = Shutdown::new();
                let log = log_file(settings, name);
                let keeper = Keeper { name, program: program.clone(), arguments, log, shutdown };
                Kept { trigger, keeper: base::task::spawn(name, keeper.run()) }
            });
        }
        // The end of the wait is looked at above.
        let _ = shutdown.unless(tokio::time::sleep(ROLE_POLL)).await;
    }
    for kept in kept.values() {
        kept.trigger.fire();
    }
    for (_, kept) in kept {
        kept.end().await;
    }
    Ok(())
}

/// A child and who keeps it running.
struct Kept {
    trigger: Trigger,
    keeper: JoinHandle<()>,
}

impl Kept {
    /// Ends the child.
    async fn end(self) {
        self.trigger.fire();
        // A keeper that panicked has said so in the log; the other child goes on until shutdown.
        let _ = self.keeper.await;
    }
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
