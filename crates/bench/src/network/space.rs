//! Network namespaces that stand for machines and zones, and wires between them.

use std::{fs::File, os::fd::AsRawFd as _, path::PathBuf, process::Command, thread};

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace that lives as long as the value.
pub(super) struct Space {
    file: File,
}

impl Space {
    /// A new one with nothing but its loopback.
    pub(super) fn new() -> Result<Self, String> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("cannot make a network namespace: {error}"))?;
            File::open("/proc/thread-self/ns/net").map_err(|error| format!("cannot hold a network namespace: {error}"))
        });
        let space = Self { file: made.join().map_err(|_| "a thread panicked")?? };
        space.run("ip link set lo up")?;
        Ok(space)
    }

    /// A path that leads to it for as long as this process has it.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    /// Runs `inside` there.
    pub(super) fn enter<R: Send>(&self, inside: impl FnOnce() -> Result<R, String> + Send) -> Result<R, String> {
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .map_err(|error| format!("cannot enter a network namespace: {error}"))?;
                inside()
            });
            there.join().unwrap_or_else(|_| Err("a thread panicked".to_owned()))
        })
    }

    /// Runs a command there, words parted by spaces, and returns what it wrote.
    pub(super) fn run(&self, command: &str) -> Result<String, String> {
        self.enter(|| run(command))
    }
}

/// Runs a command in this thread's namespace and returns what it wrote.
pub(super) fn run(command: &str) -> Result<String, String> {
    let mut words = command.split(' ');
    let program = words.next().unwrap_or_default();
    let done =
        Command::new(program).args(words).output().map_err(|error| format!("cannot run `{program}`: {error}"))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    Err(format!("`{command}`: {}", String::from_utf8_lossy(&done.stderr).trim()))
}

/// One end of a wire: where, its interface's name, and its address if it has one.
pub(super) type End<'a> = (&'a Space, &'a str, Option<&'a str>);

/// A pair of interfaces, each end in its place, addressed and up.
pub(super) fn wire(one: End<'_>, other: End<'_>, mtu: u16) -> Result<(), String> {
    // Both names are new to the first space; the other end goes from there to where it belongs.
    let (first, second) = (one.0, other.0);
    first.run(&format!(
        "ip link add {} mtu {mtu} type veth peer name {} mtu {mtu} netns {}",
        one.1,
        other.1,
        second.path().display()
    ))?;
    for (space, name, address) in [one, other] {
        if let Some(address) = address {
            space.run(&format!("ip address add {address} dev {name}"))?;
        }
        space.run(&format!("ip link set {name} up"))?;
    }
    Ok(())
}
