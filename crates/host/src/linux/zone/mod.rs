//! Zones on Linux: user namespaces, id-mapped roots, control groups, and a supervisor process per zone.
//!
//! The agent's side is this module: it makes and pins namespaces ([`namespaces`]), writes the orders of a supervisor
//! ([`files`]), has it forked ([`nursery`]), and from then on only reads what it wrote and signals init. All that is known of a zone is on
//! the host, none of it in the agent: a new [`LinuxZones`] over the same configuration finds every zone again, running or
//! not, whoever was killed before.
//!
//! The supervisor's side is [`supervisor`]: the same binary, called with another first word.

mod cgroup;
mod console;
mod files;
mod halt;
pub(in crate::linux) mod meters;
mod namespaces;
mod nursery;
mod process;
mod seccomp;
mod spec;
pub mod supervisor;
mod watch;

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    fs::{self, File},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use base::clock::{Clock, SystemClock};
use model::{
    id::InstanceId,
    meters::ZoneMeters,
    target::{Exit, Limits},
    time::Timestamp,
};
use nix::libc;
use tokio::sync::mpsc;

use self::{
    cgroup::{Group, Layout},
    files::{Because, Document, InForce, Launch, Prepared, Status, ZoneDir},
    nursery::Nursery,
    supervisor::Answer,
    watch::Watch,
};
use crate::{
    error::{Error, Result},
    zone::{ConsoleMark, ConsolePiece, IdRange, ZoneEvent, ZoneSpec, ZoneStatus, Zones},
};

/// In a zone's control directory while it is asked to halt from outside. Some inits cannot tell their scripts whether they go
/// down or come again, and this tells them.
const STOPPING: &str = "stopping";

/// How long a zone may take to vanish after SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(15);

/// How often a directory that somebody wrote to while it was removed is removed again.
const REMOVALS: u32 = 50;

/// How long a start waits for another agent's start of the same zone: longer than one may take.
const START_TURN: Duration = Duration::from_secs(75);

/// How often a stopping zone is looked at whose init did not listen yet.
const LISTEN_PERIOD: Duration = Duration::from_millis(50);

/// How long an init may take to begin to listen.
const LISTEN_PATIENCE: Duration = Duration::from_secs(1);

/// Where zones live on this machine. Two configurations that share nothing live side by side.
#[derive(Debug, Clone)]
pub struct ZonesConfig {
    /// Runtime directory, on a file system that is empty after a boot of the machine; zones are under `zones/`.
    pub run_dir: PathBuf,
    /// Directory of console logs.
    pub log_dir: PathBuf,
    /// Name of the parent control group, e.g. `neso`.
    pub cgroup_parent: String,
    /// Program and arguments that end in [`supervisor::main`], before its own.
    pub supervisor: Vec<OsString>,
}

/// Containers, as the Linux kernel has them.
pub struct LinuxZones {
    config: ZonesConfig,
    layout: Layout,
    watch: Watch,
    nursery: Nursery,
    /// One lock per zone: its verbs come one after another.
    verbs: Mutex<HashMap<InstanceId, Arc<Mutex<()>>>>,
}

impl LinuxZones {
    /// Opens the zones of this machine, and takes over watching those that run.
    pub fn new(config: ZonesConfig) -> Result<Self> {
        if config.supervisor.is_empty() || config.cgroup_parent.is_empty() || config.cgroup_parent.contains('/') {
            return Err(Error::Refused {
                what: "the configuration of zones".to_owned(),
                why: "it needs a supervisor's command and a plain name for the control group".to_owned(),
            });
        }
        files::make_passable(&config.run_dir.join("zones"))?;
        fs::create_dir_all(&config.log_dir)
            .map_err(|source| Error::os(format!("make directory `{}`", config.log_dir.display()), source))?;
        let layout = Layout::of_this_machine()?;
        layout.ensure_parent(&config.cgroup_parent)?;
        let watch = Watch::start().map_err(|source| Error::os("start the thread that watches zones", source))?;
        let nursery = Nursery::new(config.supervisor.clone(), config.run_dir.clone(), config.cgroup_parent.clone());
        let zones = Self { config, layout, watch, nursery, verbs: Mutex::default() };
        for instance in zones.traces() {
            if let Some(status) = Status::load(&zones.dir(instance)).unwrap_or_default() {
                zones.watch_over(instance, &status);
            }
        }
        Ok(zones)
    }

    /// Removes what is there before the first zone and after the last: the parent control groups and empty directories.
    pub fn remove_parent(&self) {
        self.nursery.end();
        self.layout.remove_parent(&self.config.cgroup_parent);
        let _ = fs::remove_dir(supervisor::tree_mount_point(&self.config.run_dir));
        let _ = fs::remove_dir(self.config.run_dir.join("zones"));
    }

    fn dir(&self, instance: InstanceId) -> ZoneDir {
        ZoneDir::new(&self.config.run_dir, instance)
    }

    fn group(&self, instance: InstanceId) -> Group {
        Group::new(&self.layout, &self.config.cgroup_parent, &instance.to_string())
    }

    fn console_path(&self, instance: InstanceId) -> PathBuf {
        self.config.log_dir.join(files::console_name(instance))
    }

    fn verb_lock(&self, instance: InstanceId) -> Arc<Mutex<()>> {
        let mut verbs = self.verbs.lock().unwrap_or_else(PoisonError::into_inner);
        // Zones that are gone leave a lock nobody holds.
        if verbs.len() > 4096 {
            verbs.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        Arc::clone(verbs.entry(instance).or_default())
    }

    /// Every instance with a directory or a control group.
    fn traces(&self) -> BTreeSet<InstanceId> {
        let groups = self.layout.zone_names(&self.config.cgroup_parent);
        let directories = fs::read_dir(self.config.run_dir.join("zones"));
        let directories =
            directories.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        groups.into_iter().chain(directories).filter_map(|name| name.parse().ok()).collect()
    }

    fn watch_over(&self, instance: InstanceId, status: &Status) {
        if status.exit.is_some() && !status.supervisor.is_alive() {
            return;
        }
        // Without its supervisor, init itself is what ends.
        let process = if status.supervisor.is_alive() { status.supervisor } else { status.init };
        if let Err(error) = self.watch.add(instance, process) {
            tracing::warn!(%instance, %error, "the end of this zone is seen by polling only");
        }
    }

    /// What a zone's papers and processes say. A boot whose supervisor was killed is brought to an end here.
    fn look(&self, instance: InstanceId) -> Result<Option<Status>> {
        let zone = self.dir(instance);
        let Some(mut status) = Status::load(&zone)? else { return Ok(None) };
        if status.exit.is_none() && !status.init.is_alive() && !status.supervisor.is_alive() {
            // Once more: the supervisor may have written its last words between the two looks.
            status = Status::load(&zone)?.unwrap_or(status);
            if status.exit.is_none() {
                let oom = self.group(instance).oom_kills() > 0;
                let why =
                    if oom { "killed, after running out of memory" } else { "ended unseen: its supervisor was killed" };
                status.exit = Some(Exit { at: now(), code: None, signal: None, reason: why.to_owned(), asked: false });
                status.store(&zone)?;
                let group = self.group(instance);
                group.kill(Instant::now() + KILL_DEADLINE)?;
                group.remove()?;
            }
        }
        Ok(Some(status))
    }

    fn describe(&self, instance: InstanceId) -> Result<ZoneStatus> {
        let status = self.look(instance)?;
        if status.is_none() && !self.dir(instance).path().exists() && !self.group(instance).exists() {
            return Err(Error::Missing(format!("zone {instance}")));
        }
        // A boot lasts until its end is told: between init's death and the supervisor's last word it still runs, so nobody
        // ever sees a zone that neither runs nor says how it ended.
        let running = status.as_ref().filter(|status| status.exit.is_none());
        Ok(ZoneStatus {
            instance,
            running: running.is_some(),
            started_at: running.map(|status| status.started_at),
            pid: running.map(|status| status.init.pid),
            exit: status.as_ref().filter(|_| running.is_none()).and_then(|status| status.exit.clone()),
            limits: match running {
                Some(_) => InForce::load(&self.dir(instance))?.map(|limits| limits.0),
                None => None,
            },
        })
    }

    fn boot(&self, zone: &ZoneDir, spec: &ZoneSpec) -> Result<Status> {
        for (name, content) in [("resolv.conf", &spec.resolv_conf), ("hosts", &spec.hosts)] {
            if let Some(content) = content {
                files::write_in_root(&spec.root, "etc", name, content)?;
            }
        }
        for name in [Status::NAME, Because::NAME] {
            remove_file(&zone.path().join(name))?;
        }
        remove_file(&spec.control_dir.join(STOPPING))?;
        let launch = Launch { spec: spec.clone(), log_dir: self.config.log_dir.clone() };
        launch.store(zone)?;
        InForce(spec.limits.clone()).store(zone)?;
        let fail = |why| Error::Library { doing: format!("start zone {}", spec.instance), why };
        match self.nursery.launch(zone, &launch)? {
            Answer::Started(status) => Ok(status),
            Answer::Failed(why) => Err(fail(why)),
            Answer::Begun(_) => Err(fail("its supervisor began and said no more".to_owned())),
        }
    }

    /// Asks init to halt and waits. True if it did.
    fn halt(&self, instance: InstanceId, status: &Status, grace: Duration) -> Result<bool> {
        let fail = |source: io::Error| Error::os(format!("ask zone {instance} to halt"), source);
        let deadline = Instant::now() + grace;
        let give_up = (Instant::now() + LISTEN_PATIENCE).min(deadline);
        let Some(init) = status.init.open().map_err(fail)? else { return Ok(true) };
        let executable = fs::read_link(format!("/proc/{}/exe", status.init.pid)).unwrap_or_default();
        let launch = Launch::load(&self.dir(instance))?;
        if let Some(launch) = &launch {
            // Only a help: a guest that does not know it is not told less.
            let _ = File::create(launch.spec.control_dir.join(STOPPING));
        }
        let called = launch.and_then(|launch| launch.spec.init.first().cloned());
        let candidates = halt::candidates(&executable.to_string_lossy(), &called.unwrap_or_default());
        loop {
            // An init may not listen yet, or not at this very moment; one that never does is not worth the grace.
            let of = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", status.init.pid)).unwrap_or_default();
            if let Some(signal) = halt::noticed(&candidates, &of("status"), &of("syscall")) {
                init.signal(signal).map_err(fail)?;
                return init.wait(deadline).map_err(fail);
            }
            if init.wait((Instant::now() + LISTEN_PERIOD).min(give_up)).map_err(fail)? {
                return Ok(true);
            }
            if Instant::now() >= give_up {
                return Ok(false);
            }
        }
    }

    /// Kills a zone and waits until its supervisor has put everything away; puts it away itself if there is none.
    fn kill(&self, instance: InstanceId, status: &Status, because: &str) -> Result<()> {
        let fail = |source: io::Error| Error::os(format!("kill zone {instance}"), source);
        let deadline = Instant::now() + KILL_DEADLINE;
        if let Some(init) = status.init.open().map_err(fail)? {
            Because(because.to_owned()).store(&self.dir(instance))?;
            init.signal(libc::SIGKILL).map_err(fail)?;
            init.wait(deadline).map_err(fail)?;
        }
        self.await_supervisor(instance, status, deadline)
    }

    fn await_supervisor(&self, instance: InstanceId, status: &Status, deadline: Instant) -> Result<()> {
        let fail = |source: io::Error| Error::os(format!("wait for the supervisor of zone {instance}"), source);
        if let Some(supervisor) = status.supervisor.open().map_err(fail)?
            && !supervisor.wait(deadline).map_err(fail)?
        {
            supervisor.signal(libc::SIGKILL).map_err(fail)?;
            supervisor.wait(Instant::now() + KILL_DEADLINE).map_err(fail)?;
        }
        let group = self.group(instance);
        group.kill(deadline)?;
        group.remove()
    }
}

impl Zones for LinuxZones {
    fn prepare(&self, instance: InstanceId, ids: IdRange) -> Result<PathBuf> {
        // A start follows: have the process it needs make itself ready meanwhile.
        self.nursery.ensure()?;
        let lock = self.verb_lock(instance);
        let _held = held(&lock);
        let zone = self.dir(instance);
        let (user, net) = (zone.user_ns(), zone.net_ns());
        let pinned = namespaces::is_pinned(&user) && namespaces::is_pinned(&net);
        if pinned && Prepared::load(&zone)?.is_some_and(|prepared| prepared.ids == ids) {
            return Ok(net);
        }
        if self.look(instance)?.is_some_and(|status| status.exit.is_none() && status.init.is_alive()) {
            return Err(Error::Refused {
                what: format!("another id range for zone {instance}"),
                why: "it runs with the one it has".to_owned(),
            });
        }
        files::make_passable(&zone.path().join("ns"))?;
        namespaces::unpin(&user)?;
        namespaces::unpin(&net)?;
        namespaces::make(ids, &user, &net)?;
        // Last: with it, the namespaces count as whole.
        Prepared { ids }.store(&zone)?;
        Ok(net)
    }

    fn start(&self, spec: &ZoneSpec) -> Result<ZoneStatus> {
        let lock = self.verb_lock(spec.instance);
        let _held = held(&lock);
        let zone = self.dir(spec.instance);
        let _only_agent = zone.lock(START_TURN)?;
        if let Some(status) = self.look(spec.instance)? {
            if status.exit.is_none() && status.init.is_alive() {
                return self.describe(spec.instance);
            }
            // It has said how the zone ended and is about to leave.
            self.await_supervisor(spec.instance, &status, Instant::now() + KILL_DEADLINE)?;
        }
        let prepared = Prepared::load(&zone)?
            .filter(|_| namespaces::is_pinned(&zone.user_ns()) && namespaces::is_pinned(&zone.net_ns()));
        let Some(prepared) = prepared else {
            return Err(Error::Missing(format!("prepared zone {}", spec.instance)));
        };
        if prepared.ids != spec.ids || spec.init.is_empty() {
            return Err(Error::Refused {
                what: format!("the specification of zone {}", spec.instance),
                why: "it names no init, or another id range than the zone was prepared with".to_owned(),
            });
        }
        let status = self.boot(&zone, spec)?;
        self.watch_over(spec.instance, &status);
        self.describe(spec.instance)
    }

    fn stop(&self, instance: InstanceId, grace: Duration) -> Result<ZoneStatus> {
        let lock = self.verb_lock(instance);
        let _held = held(&lock);
        if let Some(status) = self.look(instance)?
            && status.exit.is_none()
        {
            let halted = !grace.is_zero() && self.halt(instance, &status, grace)?;
            if halted {
                self.await_supervisor(instance, &status, Instant::now() + KILL_DEADLINE)?;
            } else {
                self.kill(instance, &status, "killed: it did not halt in time")?;
            }
        }
        self.describe(instance)
    }

    fn set_limits(&self, instance: InstanceId, limits: &Limits) -> Result<()> {
        let lock = self.verb_lock(instance);
        let _held = held(&lock);
        if !self.describe(instance)?.running {
            return Err(Error::Missing(format!("running zone {instance}")));
        }
        self.group(instance).apply(limits)?;
        InForce(limits.clone()).store(&self.dir(instance))
    }

    fn status(&self, instance: InstanceId) -> Result<ZoneStatus> {
        self.describe(instance)
    }

    fn list(&self) -> Result<Vec<ZoneStatus>> {
        let mut found = Vec::new();
        for instance in self.traces() {
            match self.describe(instance) {
                // Gone between the two looks.
                Err(Error::Missing(_)) => {}
                other => found.push(other?),
            }
        }
        Ok(found)
    }

    fn meters(&self, instance: InstanceId) -> Result<ZoneMeters> {
        let group = self.group(instance);
        let missing = || Error::Missing(format!("running zone {instance}"));
        let status = self.look(instance)?.ok_or_else(missing)?;
        if !group.is_populated()? {
            return Err(missing());
        }
        let started_at = Some(status.started_at);
        Ok(ZoneMeters { started_at, tcp: meters::tcp(status.init.pid), ..group.meters()? })
    }

    fn oom_kills(&self, instance: InstanceId) -> Result<u64> {
        let group = self.group(instance);
        if group.exists() { Ok(group.oom_kills()) } else { Err(Error::Missing(format!("running zone {instance}"))) }
    }

    fn console(&self, instance: InstanceId, after: Option<ConsoleMark>, max_bytes: usize) -> Result<ConsolePiece> {
        console::read(&self.console_path(instance), after, max_bytes)
            .map_err(|source| Error::os(format!("read the console log of zone {instance}"), source))
    }

    fn destroy(&self, instance: InstanceId) -> Result<()> {
        let lock = self.verb_lock(instance);
        let _held = held(&lock);
        let zone = self.dir(instance);
        // Papers that cannot be read must not keep a zone alive: the control group knows its processes too.
        if let Some(status) = Status::load(&zone).unwrap_or_default() {
            self.kill(instance, &status, "killed: destroyed")?;
        }
        let group = self.group(instance);
        group.kill(Instant::now() + KILL_DEADLINE)?;
        group.remove()?;
        namespaces::unpin(&zone.user_ns())?;
        namespaces::unpin(&zone.net_ns())?;
        console::remove(&self.console_path(instance))
            .map_err(|source| Error::os(format!("remove the console log of zone {instance}"), source))?;
        remove_papers(zone.path())
    }

    fn events(&self) -> mpsc::Receiver<ZoneEvent> {
        self.watch.subscribe()
    }
}

fn held(lock: &Mutex<()>) -> MutexGuard<'_, ()> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove_file(path: &std::path::Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::os(format!("remove `{}`", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Removes a zone's directory. A supervisor nobody had papers of cannot be waited for, and writes how its init ended while
/// the directory goes: once, so that another attempt finds nobody there.
fn remove_papers(path: &std::path::Path) -> Result<()> {
    let mut attempts = 1..=REMOVALS;
    loop {
        match fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && attempts.next().is_some() => {}
            Err(error) => return Err(Error::os(format!("remove `{}`", path.display()), error)),
        }
    }
}

/// Wall-clock time, for people to read.
fn now() -> Timestamp {
    Timestamp(SystemClock.now_ms())
}

/// An error and its causes in one line; a cause that only repeats what was said is left out.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.replace('\n', " ")
}
