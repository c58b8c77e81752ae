//! The process supervisors are forked from.
//!
//! It is executed once per agent, puts itself where supervisors live (their control group, a session away from the agent's,
//! the private root of [`tree`]), opens what all of them need, and then only forks. It has one thread and next to no memory;
//! what its children do not write to, they share.

#![expect(unsafe_code, reason = "fork, and descriptors that come as numbers")]

use std::{
    ffi::OsString,
    fs::File,
    io::{self, IoSliceMut},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};

use nix::{
    cmsg_space,
    errno::Errno,
    libc,
    sys::{
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
        socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg},
    },
    unistd::{ForkResult, fork, setsid},
};

use super::{super::cgroup::Layout, by_descriptor, tree};
use crate::error::{Error, Result};

/// How many descriptors come with a request: see [`Request`].
pub(in super::super) const DESCRIPTORS: usize = 8;

/// What every supervisor inherits.
pub(super) struct Nursery {
    /// The hierarchies, by open descriptors.
    pub(super) layout: Layout,
    pub(super) cgroup_parent: String,
    _kept: Vec<File>,
}

/// What the agent asks for: the descriptors of one zone, in this order.
pub(super) struct Request {
    /// Where the supervisor says what came of it.
    pub(super) answer: OwnedFd,
    /// Its standard error.
    pub(super) log: OwnedFd,
    pub(super) zone_dir: OwnedFd,
    pub(super) log_dir: OwnedFd,
    pub(super) user_ns: OwnedFd,
    pub(super) net_ns: OwnedFd,
    /// The zone's root, ids shifted, mounted nowhere yet.
    pub(super) root: OwnedFd,
    /// The zone's control directory, mounted nowhere yet.
    pub(super) control: OwnedFd,
}

/// What this process is after [`Nursery::serve`] returns.
pub(super) enum Role {
    /// The agent is gone; nothing is left to do.
    Done,
    /// A child that is to supervise this zone.
    Supervisor(Box<Request>),
}

impl Nursery {
    /// Makes the calling process, which must have one thread, a nursery.
    pub(super) fn become_one(run_dir: &Path, cgroup_parent: &OsString) -> Result<Self> {
        let cgroup_parent = cgroup_parent.to_string_lossy().into_owned();
        // A leader of a process group cannot; a child of the agent is none.
        let _ = setsid();
        let _ = std::env::set_current_dir("/");
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        // The kernel should take a zone's processes before the one that says why.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
        let _ = std::fs::write("/proc/self/comm", "zone-nursery");
        let on_the_host = Layout::of_this_machine()?;
        on_the_host.ensure_parent(&cgroup_parent)?;
        on_the_host.enter_supervisors(&cgroup_parent)?;
        let mut kept = Vec::new();
        let mut roots = Vec::new();
        for root in on_the_host.roots() {
            let held = File::open(root).map_err(|source| Error::os(format!("open `{}`", root.display()), source))?;
            roots.push((root.to_owned(), by_descriptor(&held)));
            kept.push(held);
        }
        let layout = on_the_host.moved(|from| {
            let found = roots.iter().find(|(root, _)| root == from);
            found.map_or_else(|| from.to_owned(), |(_, held)| held.clone())
        });
        tree::enter(run_dir)?;
        // Supervisors that end are nobody's to wait for.
        on_children(SigHandler::SigIgn);
        Ok(Self { layout, cgroup_parent, _kept: kept })
    }

    /// Forks a child for each request, until the agent closes its end.
    pub(super) fn serve(&self, socket: &OwnedFd) -> Result<Role> {
        loop {
            let Some(request) = receive(socket)? else { return Ok(Role::Done) };
            // SAFETY: this process has one thread, so the child may do whatever the parent may.
            match unsafe { fork() } {
                Ok(ForkResult::Parent { .. }) => {}
                Ok(ForkResult::Child) => {
                    on_children(SigHandler::SigDfl);
                    return Ok(Role::Supervisor(Box::new(request)));
                }
                // The descriptor to answer on closes, and the agent reads our log.
                Err(error) => eprintln!("failed to fork a supervisor: {error}"),
            }
        }
    }
}

/// The next request; `None` when there will be no more.
fn receive(socket: &OwnedFd) -> Result<Option<Request>> {
    let fail = |source: io::Error| Error::os("hear from the agent", source);
    loop {
        let mut byte = [0];
        let mut room = cmsg_space!([RawFd; DESCRIPTORS]);
        let mut pieces = [IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut pieces, Some(&mut room), flags) {
            Err(Errno::EINTR) => continue,
            other => other.map_err(|error| fail(error.into()))?,
        };
        let mut received = Vec::with_capacity(DESCRIPTORS);
        for control in message.cmsgs().map_err(|error| fail(error.into()))? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                // SAFETY: the kernel just installed these descriptors for us; nobody else knows them.
                received.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
            }
        }
        if message.bytes == 0 {
            return Ok(None);
        }
        match <[OwnedFd; DESCRIPTORS]>::try_from(received) {
            Ok([answer, log, zone_dir, log_dir, user_ns, net_ns, root, control]) => {
                return Ok(Some(Request { answer, log, zone_dir, log_dir, user_ns, net_ns, root, control }));
            }
            // Whoever sent it sees the end of its pipe.
            Err(received) => eprintln!("a request came with {} descriptors", received.len()),
        }
    }
}

fn on_children(handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: neither action installs code of ours.
    let _ = unsafe { sigaction(Signal::SIGCHLD, &action) };
}

/// Gives a child the streams of its zone in place of the nursery's.
pub(super) fn take_streams(log: OwnedFd, answer: OwnedFd) {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        // The socket to the agent is standard input: it goes with this.
        let _ = nix::unistd::dup2_stdin(&null);
    }
    let _ = nix::unistd::dup2_stdout(&answer);
    let _ = nix::unistd::dup2_stderr(&log);
    // A leader of its own session.
    let _ = setsid();
    let _ = std::fs::write("/proc/self/comm", "zone-supervisor");
    drop((log, answer));
}

/// Forks into the control group of v2 at `group`: the child is born there, and no lock of the whole machine is taken.
pub(super) fn fork_into(group: &File) -> io::Result<ForkResult> {
    /// `struct clone_args` of `clone3(2)`, as of `CLONE_INTO_CGROUP`.
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let args = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: u64::try_from(group.as_raw_fd()).unwrap_or(u64::MAX),
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM and with no stack this is fork(2); this process has one thread, so the child may do whatever
    // the parent may. `args` outlives the call and has the size told.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match Errno::result(pid)? {
        0 => Ok(ForkResult::Child),
        pid => {
            Ok(ForkResult::Parent { child: nix::unistd::Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?) })
        }
    }
}
