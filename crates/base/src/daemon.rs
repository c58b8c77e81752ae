//! Long-lived processes of our own: starting them with a log, knowing that they run, ending them.
//!
//! Who runs is decided by a lock, not by a number: a process that may exist once holds an exclusive `flock` on its
//! [`PidFile`] for its whole life and has its pid written inside. The kernel drops the lock when the process ends, however
//! it ends, so a pid read from a locked file is alive and right, and a stale file means nothing.
//!
//! A child knows that its parent is gone by its standard input: the parent holds the other end of a pipe and never
//! writes. That works for `kill -9` too, where no signal handler of the parent would run.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::process::Child;

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{self, Signal},
    unistd::Pid,
};

/// How often a wait for another process looks again.
const POLL: Duration = Duration::from_millis(20);

/// How often a held file is looked at again before it counts as held.
const LOOKS: u32 = 5;

/// A file that proves, by a lock, that its process lives.
#[derive(Debug)]
pub struct PidFile {
    // Held, never read: dropping it gives the lock back.
    _lock: Flock<File>,
}

/// Why a pid file could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// Somebody else holds it.
    #[error("`{path}` is held by process {pid}: it runs already")]
    Held {
        /// The file.
        path: PathBuf,
        /// Who holds it; 0 when it has not written its pid yet.
        pid: u32,
    },
    /// The system refused.
    #[error("failed to take pid file `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

impl PidFile {
    /// Takes the file for this process.
    pub fn take(path: &Path) -> Result<Self, PidFileError> {
        let fail = |source| PidFileError::Io { path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(fail)?;
        }
        let mut file = open_pid_file(path).map_err(fail)?;
        let mut looks = 0;
        let mut lock = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                // Somebody may only be looking whether it is held.
                Err((held, nix::errno::Errno::EWOULDBLOCK)) if looks < LOOKS => (file, looks) = (held, looks + 1),
                Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                    return Err(PidFileError::Held { path: path.to_owned(), pid: read_pid(&mut file) });
                }
                Err((_, errno)) => return Err(fail(errno.into())),
            }
            std::thread::sleep(POLL);
        };
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut lock).map_err(fail)?;
        Ok(Self { _lock: lock })
    }

    /// Keeps the file held by the program this process becomes with [`crate::process::become_program`].
    pub fn hand_over(self) -> io::Result<()> {
        nix::fcntl::fcntl(&*self._lock, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
        // Never dropped: dropping it would give the lock back.
        std::mem::forget(self);
        Ok(())
    }

    /// The process that holds the file, if one does.
    pub fn holder(path: &Path) -> Option<u32> {
        let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => None,
            Err((mut file, _)) => Some(read_pid(&mut file)),
        }
    }

    /// Waits until nobody holds the file; false when `patience` ran out. Blocks the thread.
    pub fn wait_released(path: &Path, patience: Duration) -> bool {
        let start = Instant::now();
        while Self::holder(path).is_some() {
            if start.elapsed() > patience {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }
}

fn open_pid_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path)
}

fn read_pid(file: &mut File) -> u32 {
    let mut text = String::new();
    // At most a pid and a newline; an unreadable file counts as "not written yet".
    let _ = file.take(32).read_to_string(&mut text);
    text.trim().parse().unwrap_or(0)
}

/// Asks a process to end.
pub fn terminate(pid: u32) -> io::Result<()> {
    send(pid, Signal::SIGTERM)
}

/// Asks a process to read its configuration again.
pub fn reload(pid: u32) -> io::Result<()> {
    send(pid, Signal::SIGHUP)
}

/// Ends a process at once.
pub fn kill(pid: u32) -> io::Result<()> {
    send(pid, Signal::SIGKILL)
}

fn send(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1).ok_or(io::ErrorKind::InvalidInput)?;
    signal::kill(Pid::from_raw(pid), signal).map_err(io::Error::from)
}

/// Leaves the caller's session and terminal, so that closing them does not end this process.
pub fn leave_session() -> io::Result<()> {
    nix::unistd::setsid().map(|_| ()).map_err(io::Error::from)
}

/// Has the kernel ask this process to end when the one that started it ends, however that ends. It holds for the program this process becomes, too.
pub fn end_with_parent() -> io::Result<()> {
    let parent = nix::unistd::getppid();
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
    match nix::unistd::getppid() == parent {
        true => Ok(()),
        // It ended before we had asked.
        false => Err(io::Error::other("the process that started this one is gone")),
    }
}

/// Whether this process may change the machine.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A child whose output goes to a log file and that sees its standard input end when this process ends.
pub fn spawn_logged(
    program: &Path,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    log: &Path,
) -> io::Result<Child> {
    let (out, err) = log_handles(log)?;
    let mut command = crate::process::command(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(out).stderr(err).current_dir("/");
    command.kill_on_drop(false).spawn()
}

/// A process that goes on when this one ends; it should call [`leave_session`] first thing. Returns its pid.
pub fn spawn_detached(
    program: &Path,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    log: &Path,
) -> io::Result<u32> {
    let (out, err) = log_handles(log)?;
    let mut command = crate::process::command(program);
    command.args(arguments).stdout(out).stderr(err).current_dir("/").kill_on_drop(false);
    let child = command.spawn()?;
    child.id().ok_or_else(|| io::Error::other("the process ended before it had a pid"))
}

/// Runs a program to its end on our own terminal, for tools a person sits in front of (`ssh`). Returns its exit code.
pub async fn run_attached(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> io::Result<i32> {
    let mut command = crate::process::command(program);
    command.args(arguments).stdin(Stdio::inherit());
    Ok(command.status().await?.code().unwrap_or(1))
}

fn log_handles(log: &Path) -> io::Result<(File, File)> {
    if let Some(parent) = log.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o640).open(log)?;
    let copy = file.try_clone()?;
    Ok((file, copy))
}

/// Returns when standard input ends: for a child started by [`spawn_logged`], when its parent is gone. Fails at once when
/// standard input is no pipe.
pub async fn parent_gone() -> io::Result<()> {
    use std::os::fd::AsFd as _;
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let pipe = tokio::net::unix::pipe::Receiver::from_file(input)?;
    let mut byte = [0];
    loop {
        pipe.readable().await?;
        match pipe.try_read(&mut byte) {
            Ok(0) => return Ok(()),
            Ok(_) => (),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_is_held_once_and_released_with_its_holder() {
        let directory = std::env::temp_dir().join(format!("base-pid-{}", std::process::id()));
        let path = directory.join("x.pid");
        let held = PidFile::take(&path).unwrap();
        assert_eq!(PidFile::holder(&path), Some(std::process::id()));
        assert!(matches!(PidFile::take(&path), Err(PidFileError::Held { pid, .. }) if pid == std::process::id()));
        drop(held);
        assert_eq!(PidFile::holder(&path), None);
        assert!(PidFile::wait_released(&path, Duration::ZERO));
        std::fs::remove_dir_all(directory).unwrap();
    }
}
