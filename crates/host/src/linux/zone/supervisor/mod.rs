//! The supervisor of one zone: a process of its own that outlives the agent.
//!
//! ```text
//! agent ──exec──► nursery ──fork──► supervisor ──fork──► launcher ──libcontainer──► init of the zone
//!    ◄─two lines─────────────────────┘   │                  └─ ends when init executes
//!                                        ├─ copies the console to its log
//!                                        ├─ waits for init, says in status.json how it ended
//!                                        └─ removes the zone's control groups, and ends
//! ```
//! All supervisors of an agent are forks of one [`nursery`], which ends with the agent; they do not.
//!
//! A supervisor has one thread, no runtime and, once the zone runs, next to no memory of its own: libcontainer works in
//! the launcher, whose heap ends with it, yet init is the supervisor's child (libcontainer clones it as the launcher's
//! sibling). It lives in a mount namespace with a small root of its own ([`tree`]), in a session of its own and in the
//! supervisors' control group, so nothing that befalls the agent reaches it. The agent finds it again by the process named
//! in `status.json`.
//!
//! It takes no orders: the agent stops a zone by signals to init. The only word to it is `because`, which it reads when
//! init was killed, to say why.

#![expect(unsafe_code, reason = "an ioctl nix does not have")]

mod launch;
mod nursery;
mod tree;

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use model::target::Exit;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, Flock, FlockArg, OFlag, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use self::nursery::{Nursery, Request, Role};
pub(super) use self::{nursery::DESCRIPTORS, tree::mount_point as tree_mount_point};
use super::{
    cgroup::Group,
    console::{self, Budget},
    files::{Because, Document, Launch, Status, ZoneDir, console_name},
    halt, now,
    process::{PidFd, ProcessRef},
};
use crate::error::{Error, Result};

/// How long processes a dead init leaves behind may take to end after SIGKILL.
const REMAINS_DEADLINE: Duration = Duration::from_secs(10);

/// Piece read from a terminal at once; the kernel's own buffer for one is 4 KiB.
const CONSOLE_PIECE: usize = 4096;

/// A line a supervisor says to the agent: first that it is there, then what came of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Answer {
    /// This process is at work on it.
    Begun(ProcessRef),
    /// Init executes.
    Started(Status),
    /// It does not, and nothing is left of the attempt.
    Failed(String),
}

/// Runs a nursery, and in each child it forks a supervisor. `args` are those after the program's name and the word that
/// chose this function: the runtime directory and the name of the parent control group; requests come on standard input.
/// To be called first thing in `main`, while the process has one thread.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let (Some(run_dir), Some(cgroup_parent), None) = (args.next(), args.next(), args.next()) else {
        return ExitCode::from(2);
    };
    let role = serve(&PathBuf::from(run_dir), &cgroup_parent);
    let (nursery, request) = match role {
        Ok(Some(supervisor)) => supervisor,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", super::words(&error));
            return ExitCode::FAILURE;
        }
    };
    match supervise(&nursery, *request) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            answer(&Answer::Failed(super::words(&error)));
            ExitCode::FAILURE
        }
    }
}

fn serve(run_dir: &Path, cgroup_parent: &OsString) -> Result<Option<(Nursery, Box<Request>)>> {
    let nursery = Nursery::become_one(run_dir, cgroup_parent)?;
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(|source| Error::os("hold the socket", source))?;
    match nursery.serve(&socket)? {
        Role::Done => Ok(None),
        Role::Supervisor(request) => Ok(Some((nursery, request))),
    }
}

fn supervise(nursery: &Nursery, request: Request) -> Result<()> {
    let Request { answer: answering, log, zone_dir, log_dir, user_ns, net_ns, root, control } = request;
    nursery::take_streams(log, answering);
    let me = ProcessRef::of(std::process::id()).map_err(|source| Error::os("find myself", source))?;
    answer(&Answer::Begun(me));
    let directory = File::from(zone_dir);
    let orders = Launch::load(&ZoneDir::at(by_descriptor(&directory)))?
        .ok_or_else(|| Error::Missing("launch.json".to_owned()))?;
    let place = Place::take(nursery, directory, log_dir.into(), (user_ns, net_ns), &orders)?;
    let booted = tree::add_zone(&root, &control).and_then(|()| boot(&place, &orders, me));
    drop((root, control));
    let mut running = match booted {
        Ok(running) => running,
        Err(error) => {
            let _ = place.group.kill(Instant::now() + REMAINS_DEADLINE);
            let _ = place.group.remove();
            return Err(error);
        }
    };
    running.status.store(&place.zone)?;
    answer(&Answer::Started(running.status.clone()));
    drop_stdio();
    let ended = watch(&place, &mut running)?;
    place.group.kill(Instant::now() + REMAINS_DEADLINE)?;
    let because = Because::load(&place.zone).unwrap_or_default().map(|because| because.0);
    let (code, signal, reason) = halt::ending(ended, place.group.oom_kills(), because.as_deref());
    let exit = Some(Exit { at: now(), code, signal, reason, asked: false });
    // The groups go first: who sees that the zone ended may start it again at once.
    let removed = place.group.remove();
    Status { exit, ..running.status }.store(&place.zone)?;
    removed
}

/// What a supervisor holds of the host: directories, kept open, since its root shows none of them.
struct Place {
    zone: ZoneDir,
    logs: File,
    log_name: String,
    group: Group,
    user_ns: OwnedFd,
    net_ns: OwnedFd,
    _directory: File,
    /// Held until this process ends.
    _sole: Flock<File>,
}

impl Place {
    fn take(
        nursery: &Nursery,
        directory: File,
        logs: File,
        (user_ns, net_ns): (OwnedFd, OwnedFd),
        orders: &Launch,
    ) -> Result<Self> {
        // An agent that was killed between starting a supervisor and hearing from it is followed by one that starts another.
        let sole = Flock::lock(
            File::open(by_descriptor(&directory)).map_err(|source| Error::os("hold the zone", source))?,
            FlockArg::LockExclusiveNonblock,
        )
        .map_err(|(_, error)| Error::os("be the zone's only supervisor", error.into()))?;
        let group = Group::new(&nursery.layout, &nursery.cgroup_parent, &orders.spec.instance.to_string());
        if group.exists() {
            // Left by a supervisor that was killed.
            group.kill(Instant::now() + REMAINS_DEADLINE)?;
            group.remove()?;
        }
        group.create()?;
        let zone = ZoneDir::at(by_descriptor(&directory));
        let log_name = console_name(orders.spec.instance);
        let place = Self { zone, logs, log_name, group, user_ns, net_ns, _directory: directory, _sole: sole };
        let ready = place.group.apply(&orders.spec.limits);
        if ready.is_err() {
            let _ = place.group.remove();
        }
        ready.map(|()| place)
    }
}

/// A booted zone.
struct Running {
    status: Status,
    console: Console,
    init: Init,
}

/// What is known of init.
enum Init {
    /// It ran when it was looked at.
    Runs(PidFd),
    /// It ended as soon as it was started, and is reaped.
    Ended(WaitStatus),
}

/// The host's side of a zone's terminal.
struct Console {
    master: File,
    /// The zone's side, held so that the terminal does not hang up while no process of the zone has it open.
    _slave: Option<OwnedFd>,
}

fn boot(place: &Place, orders: &Launch, supervisor: ProcessRef) -> Result<Running> {
    let launcher = launch::Launcher::start(place, orders)?;
    let outcome = launcher.wait()?;
    let console = Console::open(launcher.console()?)?;
    let init = outcome.init;
    let mut ended = None;
    // The launcher and libcontainer's own helper are our children too.
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => break,
            Ok(status) if status.pid() == Some(init) => ended = Some(status),
            Ok(_) => {}
        }
    }
    let doing = || format!("find init, process {init}");
    let pid = u32::try_from(init.as_raw()).map_err(|error| Error::os(doing(), io::Error::other(error)))?;
    let (init, process) = match ended {
        Some(status) => (Init::Ended(status), ProcessRef { pid, start_ticks: 0 }),
        None => {
            let process = ProcessRef::of(pid).map_err(|source| Error::os(doing(), source))?;
            (Init::Runs(PidFd::of_child(pid).map_err(|source| Error::os(doing(), source))?), process)
        }
    };
    let status = Status { supervisor, init: process, started_at: now(), exit: None };
    Ok(Running { status, console, init })
}

impl Console {
    fn open(master: OwnedFd) -> Result<Self> {
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))
            .map_err(|error| Error::os("set up the console", error.into()))?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: the request takes open flags as an integer and returns a new descriptor or -1.
        let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
        let slave = match Errno::result(slave) {
            // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
            Ok(fd) => Some(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) }),
            Err(_) => None,
        };
        Ok(Self { master: master.into(), _slave: slave })
    }

    /// Copies the last words, as many as a terminal's buffers can hold.
    fn drain(&mut self, log: &mut console::Writer) {
        for _ in 0..16 {
            if self.copy(log, CONSOLE_PIECE).0 == 0 {
                break;
            }
        }
    }

    /// Copies what is there to the log, and tells how much that was. False once the terminal is gone for good.
    fn copy(&mut self, log: &mut console::Writer, limit: usize) -> (usize, bool) {
        let mut piece = [0; CONSOLE_PIECE];
        let wanted = limit.min(piece.len());
        match self.master.read(&mut piece[..wanted]) {
            Ok(0) => (0, false),
            Ok(read) => {
                // A full disk loses console output; the zone must not stop for it.
                let _ = log.write(&piece[..read]);
                (read, true)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => (0, true),
            Err(_) => (0, false),
        }
    }
}

/// Copies the console until init ends, and returns how it ended.
fn watch(place: &Place, running: &mut Running) -> Result<WaitStatus> {
    let fail = |doing: &str, source: io::Error| Error::os(doing.to_owned(), source);
    let logs = place.logs.try_clone().map_err(|source| fail("hold the log directory", source))?;
    let mut log =
        console::Writer::open(logs, &place.log_name).map_err(|source| fail("open the console log", source))?;
    let console = &mut running.console;
    let mut budget = Budget::new(Instant::now());
    let mut open = true;
    let handle = match &running.init {
        Init::Runs(handle) => handle,
        Init::Ended(status) => {
            console.drain(&mut log);
            return Ok(*status);
        }
    };
    loop {
        let (limit, pause) = match budget.available(Instant::now()) {
            Ok(limit) => (limit, None),
            Err(pause) => (0, Some(pause)),
        };
        let mut fds = vec![PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
        if open && limit > 0 {
            fds.push(PollFd::new(console.master.as_fd(), PollFlags::POLLIN));
        }
        let timeout = pause.map_or(PollTimeout::NONE, |pause| {
            PollTimeout::try_from(pause + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(fail("wait for the zone", error.into())),
        }
        let happened: Vec<bool> = fds.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).collect();
        if happened.get(1) == Some(&true) {
            let (read, still_open) = console.copy(&mut log, limit);
            budget.take(read);
            open = still_open;
        }
        if happened[0] {
            console.drain(&mut log);
            let init = Pid::from_raw(i32::try_from(running.status.init.pid).unwrap_or(-1));
            return waitpid(init, None).map_err(|error| fail("reap init", error.into()));
        }
    }
}

fn answer(answer: &Answer) {
    let line = serde_json::to_string(answer).unwrap_or_else(|_| r#"{"failed":"?"}"#.to_owned());
    // An agent that was killed meanwhile does not hear it, and reads status.json later.
    let _ = writeln!(io::stdout(), "{line}");
    let _ = io::stdout().flush();
}

/// Closes what came from the agent: it waits for the end of our output.
fn drop_stdio() {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

/// A path by which an open file is reached wherever the process's root is.
fn by_descriptor(file: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
