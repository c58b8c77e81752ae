//! The small private root supervisors work in.
//!
//! A copy of the host's mount table would keep every mount of the host busy for as long as a zone runs, among them the
//! pinned namespaces of other zones, which then could not die; and it costs more the more zones there are. So the nursery
//! leaves it once: a tmpfs of its own holds what libcontainer needs and nothing else. Each supervisor copies those few
//! mounts and adds its own zone's, which come as descriptors; the zone's own mount namespace, a copy of that, is cheap too.
//!
//! ```text
//! of the nursery                              of each supervisor
//! /proc /sys  fresh                           /zone     the zone's root, ids shifted
//! /dev        of the host                     /control  its control directory
//! /sys/fs/cgroup  an empty tmpfs              /own      the specification, libcontainer's papers, the console's socket
//! ```
//! `/proc` and `/sys` must be whole: the kernel lets a user namespace mount its own only where it sees unobscured ones.
//! libcontainer takes an empty tmpfs at `/sys/fs/cgroup` for a host without any controller and leaves all groups to us.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{chdir, pivot_root},
};

use super::super::{files::make_passable, namespaces};
use crate::error::{Error, Result};

/// The zone's root.
pub(super) const ZONE: &str = "/zone";
/// The zone's control directory.
pub(super) const CONTROL: &str = "/control";
/// Where the specification lies.
pub(super) const BUNDLE: &str = "/own/bundle";
/// Where libcontainer keeps its state.
pub(super) const STATE: &str = "/own/state";
/// The socket that receives the zone's terminal.
pub(super) const CONSOLE: &str = "/own/console.sock";

/// A supervisor's file system.
const OWN: &str = "/own";
/// Room for the specification and libcontainer's state; a few pages are used.
const OWN_SIZE: &str = "mode=755,size=4m";
/// Room for the directories that are mounted on.
const TREE_SIZE: &str = "mode=755,size=64k";

/// Where a nursery mounts its root before it moves in.
pub(in super::super) fn mount_point(run_dir: &Path) -> PathBuf {
    run_dir.join("tree")
}

/// Makes the nursery's root and moves into it.
pub(super) fn enter(run_dir: &Path) -> Result<()> {
    let tree = mount_point(run_dir);
    make_passable(&tree)?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| Error::os("leave the host's mount namespace", error.into()))?;
    attach(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    attach(Some("tmpfs"), &tree, Some("tmpfs"), MsFlags::MS_NOSUID, Some(TREE_SIZE))?;
    for name in ["zone", "control", "own", "proc", "sys", "dev"] {
        fs::create_dir(tree.join(name))
            .map_err(|source| Error::os(format!("make `{name}` in the private root"), source))?;
    }
    attach(Some("/dev"), &tree.join("dev"), None, MsFlags::MS_BIND, None)?;
    attach(Some("proc"), &tree.join("proc"), Some("proc"), quiet, None)?;
    attach(Some("sysfs"), &tree.join("sys"), Some("sysfs"), quiet, None)?;
    attach(Some("tmpfs"), &tree.join("sys/fs/cgroup"), Some("tmpfs"), quiet, Some(TREE_SIZE))?;
    let fail = |error: nix::Error| Error::os("move into the private root", error.into());
    chdir(&tree).map_err(fail)?;
    // The old root ends up on top of the new one, and is let go of there.
    pivot_root(".", ".").map_err(fail)?;
    umount2(".", MntFlags::MNT_DETACH).map_err(fail)?;
    chdir("/").map_err(fail)
}

/// In a supervisor: a namespace of its own, with its zone in it.
pub(super) fn add_zone(root: &OwnedFd, control: &OwnedFd) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| Error::os("make a mount namespace", error.into()))?;
    attach(Some("tmpfs"), Path::new(OWN), Some("tmpfs"), MsFlags::MS_NOSUID, Some(OWN_SIZE))?;
    for path in [BUNDLE, STATE] {
        fs::create_dir(path).map_err(|source| Error::os(format!("make `{path}`"), source))?;
    }
    namespaces::hang(root, Path::new(ZONE))?;
    namespaces::hang(control, Path::new(CONTROL))
}

fn attach(
    source: Option<&str>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<()> {
    mount(source, target, kind, flags, options).map_err(|error| {
        let what = source.map_or_else(String::new, |source| format!(" `{source}`"));
        Error::os(format!("mount{what} on `{}`", target.display()), error.into())
    })
}
