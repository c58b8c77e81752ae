//! Processes named so that a reused pid is never mistaken: pid and start time, and pidfds to wait on and signal.
//!
//! `nix` has no pidfds yet, so the four calls are made here.

#![expect(unsafe_code, reason = "pidfds, which nix does not have")]

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::{Deserialize, Serialize};

/// A process of this boot of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessRef {
    pub(crate) pid: u32,
    /// Clock ticks from the machine's boot to the process's start.
    pub(crate) start_ticks: u64,
}

impl ProcessRef {
    /// The process with this pid now.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, start_ticks) =
            parse_stat(&stat).ok_or_else(|| io::Error::other(format!("`{stat}` is no process status")))?;
        Ok(Self { pid, start_ticks })
    }

    /// Whether this very process exists and is not merely waiting to be reaped.
    pub(crate) fn is_alive(&self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        parse_stat(&stat).is_some_and(|(state, start)| start == self.start_ticks && !matches!(state, 'Z' | 'X'))
    }

    /// A handle on it; `None` if it is gone.
    pub(crate) fn open(&self) -> io::Result<Option<PidFd>> {
        match PidFd::open(self.pid) {
            Ok(handle) if self.is_alive() => Ok(Some(handle)),
            Ok(_) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// State letter and start time out of `/proc/<pid>/stat`. The name in parentheses may hold anything, parentheses too.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// A handle on a process that cannot come to mean another.
#[derive(Debug)]
pub(crate) struct PidFd(OwnedFd);

impl PidFd {
    /// A handle on a child that is not reaped, whose pid therefore is its own.
    pub(crate) fn of_child(pid: u32) -> io::Result<Self> {
        Self::open(pid)
    }

    fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: the call takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
        // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a signal; a process that is gone is no error.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null `siginfo` asks the kernel to fill in its own; the descriptor is open as long as `self` is.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, no_info, 0) };
        match Errno::result(result) {
            Err(Errno::ESRCH) | Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it ended or `deadline` passed; true if it ended.
    pub(crate) fn wait(&self, deadline: Instant) -> io::Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left.min(Duration::from_secs(3600))).unwrap_or(PollTimeout::ZERO);
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reaps it if it is a child of ours that ended; anything else is left alone.
    pub(crate) fn reap(&self) {
        // SAFETY: `info` outlives the call and is only written to; an all-zero `siginfo_t` is a valid value of it.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PIDFD, self.0.as_raw_fd() as libc::id_t, &raw mut info, libc::WEXITED | libc::WNOHANG);
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_of_hostile_names_are_read() {
        let stat = "42 (a) R (x) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 2 3 4";
        assert_eq!(parse_stat(stat), Some(('S', 987_654)));
        assert_eq!(parse_stat("nonsense"), None);
        assert_eq!(parse_stat("1 (x)"), None);
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_taken_for_it() {
        let me = ProcessRef::of(std::process::id()).expect("I exist");
        assert!(me.is_alive());
        assert!(!ProcessRef { start_ticks: me.start_ticks + 1, ..me }.is_alive());
        assert!(ProcessRef { start_ticks: me.start_ticks + 1, ..me }.open().expect("no error").is_none());
    }
}
