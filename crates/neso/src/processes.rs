//! The long-lived processes: `neso headnode`, `neso node`, `neso supervise`, and `neso member`, `neso monitor` and `neso notifier`, which become other programs. Each takes its pid file, sets up its log and
//! a runtime fit for its work, and runs until SIGTERM, SIGINT, or the end of its supervisor.

use std::sync::Arc;

use base::{
    clock::{Clock as _, SystemClock},
    daemon::{self, PidFile},
    shutdown::{self, Trigger},
};
use headnode::{
    Settings,
    members::{process, recover},
    monitoring,
};
use model::time::Timestamp;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Builder;

use crate::{
    cli,
    context::Place,
    failure::{Failure, Outcome},
    machine, supervise, up,
};

/// Threads of the headnode's runtime that do work; waiting threads come on top as needed.
const HEADNODE_THREADS: usize = 2;
/// Threads of the node's runtime; zones start on waiting threads.
const NODE_THREADS: usize = 2;
/// Most waiting threads of a process: each file or host verb under way holds one.
const WAITING_THREADS: usize = 64;
/// Log filter unless NESO_LOG says otherwise.
const LOG_FILTER: &str = "info";

/// `neso headnode`.
pub(crate) fn headnode(place: &Place, supervised: bool) -> Outcome {
    let settings = place.settings()?;
    base::log::init(LOG_FILTER);
    let _held = PidFile::take(&supervise::pid_file(&settings, "headnode"))?;
    if recover::is_under_way(&settings) {
        return Err(Failure::new("the store is being begun anew from this machine's member")
            .mend("`neso adm recover --from-this-member --yes` goes on with that"));
    }
    // Looked at while the file is held: whoever removes a headnode's files holds it too.
    if !headnode::role::runs_headnode(&settings) {
        return Err(Failure::new("this machine is a node of a datacenter and runs no headnode")
            .mend("`neso adm ha add`, typed at a headnode, makes it one"));
    }
    open_many_files();
    let runtime = runtime(HEADNODE_THREADS, "headnode")?;
    let outcome = cli::on(&runtime, |shutdown| async move {
        end_with(headnode::run(settings, Arc::new(SystemClock), shutdown), supervised).await
    });
    runtime.shutdown_background();
    outcome
}

/// Each connection is a file, and a Prometheus holds one for every instance it watches; shells let a process have a thousand.
fn open_many_files() {
    let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, most, most) {
        tracing::warn!(%error, most, "failed to allow more open files");
    }
}

/// `neso node`.
pub(crate) fn node(place: &Place, supervised: bool) -> Outcome {
    let settings = place.settings()?;
    base::log::init(LOG_FILTER);
    let _held = PidFile::take(&supervise::pid_file(&settings, "node"))?;
    let runtime = runtime(NODE_THREADS, "node")?;
    let outcome = cli::on(&runtime, |shutdown| async move {
        end_with(machine::run_agent(place, &settings, shutdown), supervised).await
    });
    runtime.shutdown_background();
    outcome
}

/// `neso member`: becomes etcd, and holds the pid file as such.
pub(crate) fn member(place: &Place, supervised: bool, wait: bool) -> Outcome {
    let settings = place.settings()?;
    base::log::init(LOG_FILTER);
    while wait && !supervise::has_member(&settings) {
        std::thread::sleep(supervise::ROLE_POLL);
    }
    if supervised {
        daemon::end_with_parent()?;
    }
    let held = PidFile::take(&supervise::pid_file(&settings, supervise::MEMBER))?;
    let command = process::command(&settings, Timestamp(SystemClock.now_ms()))?;
    tracing::info!(program = %command.program.display(), "becoming the store's member");
    held.hand_over()?;
    let error = base::process::become_program(&command.program, &command.arguments);
    Err(Failure::new(format!("failed to become `{}`: {error}", command.program.display())))
}

/// `neso monitor`: becomes Prometheus.
pub(crate) fn monitor(place: &Place, supervised: bool, wait: bool) -> Outcome {
    let command = |settings: &Settings| monitoring::command(settings, Timestamp(SystemClock.now_ms()));
    watch(place, supervise::MONITOR, (supervised, wait), supervise::has_monitor, command)
}

/// `neso notifier`: becomes Alertmanager.
pub(crate) fn notifier(place: &Place, supervised: bool, wait: bool) -> Outcome {
    watch(place, supervise::NOTIFIER, (supervised, wait), supervise::has_notifier, monitoring::notify::command)
}

/// Becomes another program, as a user who may do nothing else here, and holds the pid file as such.
fn watch(
    place: &Place,
    name: &str,
    (supervised, wait): (bool, bool),
    is_wanted: impl Fn(&Settings) -> bool,
    command: impl Fn(&Settings) -> Result<monitoring::Start, monitoring::MonitoringError>,
) -> Outcome {
    let settings = place.settings()?;
    base::log::init(LOG_FILTER);
    while wait && !is_wanted(&settings) {
        std::thread::sleep(supervise::ROLE_POLL);
    }
    if supervised {
        daemon::end_with_parent()?;
    }
    let held = PidFile::take(&supervise::pid_file(&settings, name))?;
    let command = command(&settings)?;
    // Paths are told from here: the user it becomes may not look into the directories above.
    std::env::set_current_dir(monitoring::directory(&settings))?;
    tracing::info!(program = %command.program.display(), "becoming another program");
    held.hand_over()?;
    if let Some((uid, gid)) = monitoring::user()? {
        base::process::become_user(uid, gid)?;
        if supervised {
            // Becoming another user has undone it.
            daemon::end_with_parent()?;
        }
    }
    let error = base::process::become_program(&command.program, &command.arguments);
    Err(Failure::new(format!("failed to become `{}`: {error}", command.program.display())))
}

/// `neso supervise`.
pub(crate) fn supervisor(place: &Place) -> Outcome {
    // Fails when we lead a session already, which is as good.
    let _ = daemon::leave_session();
    base::log::init(LOG_FILTER);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    cli::on(&runtime, |shutdown| async move { up::supervise(place, shutdown).await })
}

fn runtime(threads: usize, name: &str) -> Outcome<tokio::runtime::Runtime> {
    Ok(Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(WAITING_THREADS)
        .thread_name(name)
        .enable_all()
        .build()?)
}

/// Runs `work`; under a supervisor, also ends when that is gone.
async fn end_with<E: Into<Failure>>(work: impl Future<Output = Result<(), E>>, supervised: bool) -> Outcome {
    let orphaned = async {
        match supervised {
            true => daemon::parent_gone().await,
            false => std::future::pending().await,
        }
    };
    tokio::select! {
        done = work => done.map_err(Into::into),
        gone = orphaned => {
            tracing::warn!("the supervisor is gone; ending");
            gone.map_err(|error| Failure::new(format!("failed to watch the supervisor: {error}")))
        }
    }
}

/// Fires `trigger` on SIGTERM or SIGINT; a second one ends the process at once.
pub(crate) fn listen_for_signals(trigger: Trigger) {
    base::task::spawn("signals", async move {
        match shutdown::signal().await {
            Ok(signal) => tracing::info!(?signal, "asked to end"),
            Err(error) => {
                tracing::error!(%error, "failed to listen for signals");
                std::future::pending::<()>().await;
            }
        }
        trigger.fire();
        if shutdown::signal().await.is_ok() {
            std::process::exit(130);
        }
    });
}
