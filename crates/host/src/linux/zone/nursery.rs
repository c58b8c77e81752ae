//! The agent's side of the nursery: the one process all supervisors of this agent are forked from.
//!
//! Executing a large program for each zone costs more than all that its supervisor then does, and every move of a process
//! into a control group by its number waits for the whole machine. So one small process, started once, stands ready: in the
//! supervisors' group, in its private root, with the hierarchies open. For each zone it gets one message that carries open
//! descriptors, forks, and the child is the supervisor. What the child needs of the host's tree comes as descriptors, made
//! here, since its own mount namespace shows nothing of the host.
//!
//! The nursery ends when this handle does, or the agent; supervisors stay. One that was killed is started again by the next
//! zone.

#![expect(
    clippy::disallowed_types,
    reason = "this is the crate that runs commands: supervisors must outlive their parent"
)]

use std::{
    ffi::OsString,
    fs::File,
    io::{self, IoSlice, Read},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, setsockopt, socketpair, sockopt,
    },
    sys::time::TimeVal,
    unistd::pipe2,
};

use super::{
    files::{Launch, ZoneDir},
    namespaces,
    supervisor::{Answer, DESCRIPTORS},
};
use crate::error::{Error, Result};

/// How long a supervisor may take to get init to execute; a loaded machine takes a second, a broken one for ever.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// How long one that failed may take to vanish after SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// How long the nursery may leave a message unread before it counts as dead, seconds.
const SEND_DEADLINE_S: i64 = 10;

/// Longest answer read from a supervisor.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Longest part of a dead supervisor's log that is quoted.
const MAX_QUOTED_BYTES: u64 = 2048;

/// See the head of this file.
pub(super) struct Nursery {
    /// Program and arguments before those of the nursery.
    command: Vec<OsString>,
    run_dir: PathBuf,
    cgroup_parent: String,
    running: Mutex<Option<Running>>,
}

struct Running {
    process: Child,
    socket: OwnedFd,
}

/// What came of an attempt.
enum Attempt {
    Answered(Answer),
    /// The nursery died before it began; another may do better.
    NotBegun(String),
}

impl Nursery {
    pub(super) fn new(command: Vec<OsString>, run_dir: PathBuf, cgroup_parent: String) -> Self {
        Self { command, run_dir, cgroup_parent, running: Mutex::default() }
    }

    /// Starts the process, if none runs. It makes itself ready while the caller goes on.
    pub(super) fn ensure(&self) -> Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = running.as_mut() {
            if matches!(held.process.try_wait(), Ok(None)) {
                return Ok(());
            }
            tracing::warn!("the process that supervisors are forked from ended; starting another");
        }
        *running = Some(self.start()?);
        Ok(())
    }

    /// Ends the process. Zones and their supervisors run on.
    pub(super) fn end(&self) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Has a supervisor for `zone` forked, and waits until its init executes.
    pub(super) fn launch(&self, zone: &ZoneDir, orders: &Launch) -> Result<Answer> {
        let mut why = String::new();
        for _ in 0..2 {
            match self.attempt(zone, orders)? {
                Attempt::Answered(answer) => return Ok(answer),
                Attempt::NotBegun(reason) => why = reason,
            }
            self.end();
        }
        Err(Error::Library { doing: "fork a supervisor".to_owned(), why })
    }

    fn start(&self) -> Result<Running> {
        let program = &self.command[0];
        let doing = || format!("run the supervisor `{}`", program.display());
        let fail = |source: io::Error| Error::os(doing(), source);
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|error| fail(error.into()))?;
        setsockopt(&ours, sockopt::SendTimeout, &TimeVal::new(SEND_DEADLINE_S, 0))
            .map_err(|error| fail(error.into()))?;
        let log = File::create(self.log_path()).map_err(fail)?;
        let process = Command::new(program)
            .args(&self.command[1..])
            .arg(&self.run_dir)
            .arg(&self.cgroup_parent)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(fail)?;
        Ok(Running { process, socket: ours })
    }

    fn attempt(&self, zone: &ZoneDir, orders: &Launch) -> Result<Attempt> {
        let doing = || "ask for a supervisor".to_owned();
        let (hearing, answering) = pipe2(OFlag::O_CLOEXEC).map_err(|error| Error::os(doing(), error.into()))?;
        let parcel = pack(zone, orders, answering)?;
        self.ensure()?;
        {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            // Another thread may have ended it again; then this attempt has not begun.
            let Some(held) = running.as_ref() else { return Ok(Attempt::NotBegun("it was ended".to_owned())) };
            if let Err(error) = send(&held.socket, &parcel) {
                return Ok(Attempt::NotBegun(self.last_words(error.desc())));
            }
        }
        drop(parcel);
        let text = read_until_closed(File::from(hearing), Instant::now() + START_DEADLINE);
        let mut begun = None;
        for line in text.as_deref().unwrap_or_default().lines() {
            match serde_json::from_str::<Answer>(line) {
                Ok(Answer::Begun(process)) => begun = Some(process),
                Ok(answer @ Answer::Started(_)) => return Ok(Attempt::Answered(answer)),
                Ok(answer @ Answer::Failed(_)) => {
                    gone(begun, false);
                    return Ok(Attempt::Answered(answer));
                }
                Err(_) => {}
            }
        }
        let heard = match (&text, begun) {
            (Ok(_), None) => return Ok(Attempt::NotBegun(self.last_words("it died"))),
            (Ok(_), Some(_)) => "it died".to_owned(),
            (Err(error), _) => format!("it did not answer: {error}"),
        };
        // One that hangs is ended; what it made is found and removed by the next look.
        gone(begun, true);
        Err(Error::Library { doing: "run a zone's supervisor".to_owned(), why: quoted(&heard, &zone.supervisor_log()) })
    }

    fn last_words(&self, what: &str) -> String {
        quoted(what, &self.log_path())
    }

    fn log_path(&self) -> PathBuf {
        self.run_dir.join("nursery.log")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It holds nothing and ends by itself when our end of the socket closes; killing is only surer.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The descriptors of [`DESCRIPTORS`], in that order.
fn pack(zone: &ZoneDir, orders: &Launch, answering: OwnedFd) -> Result<[OwnedFd; DESCRIPTORS]> {
    let open = |path: &Path| {
        File::open(path).map(OwnedFd::from).map_err(|source| Error::os(format!("open `{}`", path.display()), source))
    };
    let log = zone.supervisor_log();
    let log = File::create(&log).map_err(|source| Error::os(format!("create `{}`", log.display()), source))?.into();
    let user_ns = open(&zone.user_ns())?;
    let root = namespaces::copy_of_mount(&orders.spec.root)?;
    namespaces::shift(&root, &user_ns, &orders.spec.root)?;
    let control = namespaces::copy_of_mount(&orders.spec.control_dir)?;
    Ok([answering, log, open(zone.path())?, open(&orders.log_dir)?, user_ns, open(&zone.net_ns())?, root, control])
}

fn send(socket: &OwnedFd, parcel: &[OwnedFd]) -> nix::Result<()> {
    let numbers: Vec<RawFd> = parcel.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&numbers)];
    loop {
        let flags = MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(b"z")], &control, flags, None) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Makes sure that a supervisor that failed is gone: the next may be started at once.
fn gone(process: Option<super::process::ProcessRef>, kill: bool) {
    let Some(handle) = process.and_then(|process| process.open().ok().flatten()) else { return };
    if kill {
        let _ = handle.signal(libc::SIGKILL);
    }
    if !handle.wait(Instant::now() + KILL_DEADLINE).unwrap_or(true) {
        let _ = handle.signal(libc::SIGKILL);
    }
}

fn quoted(what: &str, log: &Path) -> String {
    let mut words = String::new();
    let _ = File::open(log).and_then(|log| log.take(MAX_QUOTED_BYTES).read_to_string(&mut words));
    match words.trim() {
        "" => format!("{what}, without a word"),
        words => format!("{what}: {words}"),
    }
}

/// Reads what a process writes until it closes its end.
fn read_until_closed(mut output: impl Read + AsFd, deadline: Instant) -> io::Result<String> {
    let mut text = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)).unwrap_or(0) == 0 {
            continue;
        }
        let mut piece = [0; 4096];
        match output.read(&mut piece)? {
            0 => return String::from_utf8(text).map_err(io::Error::other),
            read if text.len() + read > MAX_ANSWER_BYTES => return Err(io::Error::other("its answer is too long")),
            read => text.extend_from_slice(&piece[..read]),
        }
    }
}
