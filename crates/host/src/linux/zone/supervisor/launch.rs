//! The launcher: a fork of the supervisor in which libcontainer makes the zone.
//!
//! It is born in the zone's control group of v2 and moves itself into those of v1 first; libcontainer's own processes are
//! its children, so everything that becomes the zone is counted and limited. The launcher and
//! the init-to-be report on one pipe whose end closes when init executes: a line `init <pid>`, or a line `error <words>`.

#![expect(unsafe_code, reason = "signals, and descriptors that come as numbers")]

use std::{
    fs::{self, File},
    io::{IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    path::Path,
};

use libcontainer::{
    container::builder::ContainerBuilder,
    syscall::syscall::SyscallType,
    workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError, default::get_executor},
};
use nix::{
    cmsg_space,
    fcntl::OFlag,
    libc,
    sys::{
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
        socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg},
    },
    unistd::{ForkResult, Pid, pipe2},
};
use oci_spec::runtime::Spec;

use super::{
    super::{
        files::Launch,
        spec::{self, Inside},
        words,
    },
    Place, by_descriptor, nursery, tree,
};
use crate::error::{Error, Result};

/// Longest report read: a pid and an error with its causes.
const MAX_REPORT_BYTES: u64 = 64 * 1024;

/// What came of it.
pub(super) struct Outcome {
    /// Init, as the host counts processes.
    pub(super) init: Pid,
}

/// A launcher at work.
pub(super) struct Launcher {
    report: File,
    console: UnixListener,
}

impl Launcher {
    pub(super) fn start(place: &Place, orders: &Launch) -> Result<Self> {
        let console =
            UnixListener::bind(tree::CONSOLE).map_err(|source| Error::os("make the console's socket", source))?;
        let inside = Inside {
            root: Path::new(tree::ZONE),
            control: Path::new(tree::CONTROL),
            user_ns: &by_descriptor(&place.user_ns),
            net_ns: &by_descriptor(&place.net_ns),
            cgroup: place.group.below(),
        };
        let specification = spec::build(&orders.spec, inside).to_string();
        fs::write(Path::new(tree::BUNDLE).join("config.json"), specification)
            .map_err(|source| Error::os("write the zone's specification", source))?;
        let (report, reporting) = pipe2(OFlag::O_CLOEXEC).map_err(|error| Error::os("make a pipe", error.into()))?;
        let group = place.group.open_unified()?;
        match nursery::fork_into(&group).map_err(|source| Error::os("fork the launcher", source))? {
            ForkResult::Parent { .. } => Ok(Self { report: report.into(), console }),
            ForkResult::Child => {
                drop(report);
                let mut reporting = File::from(reporting);
                let line = match launch(place, orders, reporting.as_raw_fd()) {
                    Ok(init) => format!("init {init}\n"),
                    Err(why) => format!("error {why}\n"),
                };
                let _ = reporting.write_all(line.as_bytes());
                // SAFETY: ends this process at once; nothing of the parent's may be flushed or removed twice.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Waits until init executes, or the attempt failed.
    pub(super) fn wait(&self) -> Result<Outcome> {
        let mut text = String::new();
        (&self.report)
            .take(MAX_REPORT_BYTES)
            .read_to_string(&mut text)
            .map_err(|source| Error::os("hear from the launcher", source))?;
        let fail = |why: String| Error::Library { doing: "make the container".to_owned(), why };
        let mut init = None;
        for line in text.lines() {
            if let Some(why) = line.strip_prefix("error ") {
                return Err(fail(why.to_owned()));
            }
            init = init.or_else(|| line.strip_prefix("init ")?.parse().ok().map(Pid::from_raw));
        }
        init.map(|init| Outcome { init }).ok_or_else(|| fail("the launcher died without a word".to_owned()))
    }

    /// The host's side of the zone's terminal.
    pub(super) fn console(&self) -> Result<OwnedFd> {
        let fail = |source| Error::os("receive the zone's console", source);
        self.console.set_nonblocking(true).map_err(fail)?;
        let (stream, _) = self.console.accept().map_err(fail)?;
        let mut name = [0; 64];
        let mut room = cmsg_space!([RawFd; 1]);
        let mut pieces = [IoSliceMut::new(&mut name)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut pieces, Some(&mut room), flags)
            .map_err(|error| fail(error.into()))?;
        let received = message.cmsgs().map_err(|error| fail(error.into()))?.find_map(|control| match control {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
            _ => None,
        });
        let fd = received.ok_or_else(|| fail(std::io::Error::other("no descriptor came with it")))?;
        // SAFETY: the kernel just installed this descriptor for us; nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// In the launcher: makes the zone and lets its init go.
fn launch(place: &Place, orders: &Launch, reporting: RawFd) -> std::result::Result<Pid, String> {
    place.group.enter_v1().map_err(|error| words(&error))?;
    plain_signals();
    let builder = ContainerBuilder::new(orders.spec.instance.to_string(), SyscallType::Linux)
        .with_root_path(tree::STATE)
        .map_err(|error| words(&error))?
        .with_console_socket(Some(tree::CONSOLE))
        .with_executor(Init { reporting });
    let mut container = builder
        .as_init(tree::BUNDLE)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(|error| words(&error))?;
    let init = container.pid().ok_or("libcontainer names no init")?;
    container.start().map_err(|error| words(&error))?;
    Ok(Pid::from_raw(init.as_raw()))
}

/// A Rust program ignores SIGPIPE, and what is ignored stays so across `exec`; a zone's init must start as after a boot.
fn plain_signals() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGPIPE, Signal::SIGHUP, Signal::SIGCHLD] {
        // SAFETY: restoring the default action installs no code of ours.
        let _ = unsafe { sigaction(signal, &default) };
    }
    let _ = SigSet::empty().thread_set_mask();
}

/// Executes init as libcontainer would, and reports on the pipe if that fails: nobody else hears of it.
#[derive(Clone)]
struct Init {
    reporting: RawFd,
}

impl Executor for Init {
    fn exec(&self, spec: &Spec) -> std::result::Result<(), ExecutorError> {
        let result = get_executor().exec(spec);
        if let Err(error) = &result {
            let line = format!("error {}\n", words(error));
            // SAFETY: the descriptor was opened by the launcher, is inherited, and is open until `exec` succeeds; it is
            // borrowed here for one write and not closed.
            let mut pipe = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(self.reporting) });
            let _ = pipe.write_all(line.as_bytes());
        }
        result
    }

    fn validate(&self, spec: &Spec) -> std::result::Result<(), ExecutorValidationError> {
        get_executor().validate(spec)
    }

    fn setup_envs(
        &self,
        envs: std::collections::HashMap<String, String>,
    ) -> std::result::Result<(), ExecutorSetEnvsError> {
        get_executor().setup_envs(envs)
    }
}
