//! The small private root a supervisor works in.
//!
//! A copy of the host's mount table would keep every mount of the host busy for as long as the zone runs, among them the
//! pinned namespaces of other zones, which then could not die. So the supervisor leaves it: a tmpfs of its own holds what
//! libcontainer needs and nothing else. This also makes the zone's own mount namespace, a copy of this one, cheap.
//!
//! ```text
//! /zone     the zone's root, ids shifted      /proc /sys /dev   of the host, the first two fresh
//! /control  its control directory             /sys/fs/cgroup    cgroup v2, whatever the host has there
//! /bundle /state                              libcontainer's papers
//! ```
//! `/proc` and `/sys` must be whole: the kernel lets a user namespace mount its own only where it sees unobscured ones.
//! cgroup v2 alone at `/sys/fs/cgroup` makes libcontainer leave the v1 hierarchies to us.

use std::{fs, os::fd::OwnedFd, path::Path};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{chdir, pivot_root},
};

use super::super::{files::ZoneDir, namespaces};
use crate::{
    error::{Error, Result},
    zone::ZoneSpec,
};

/// The zone's root.
pub(super) const ZONE: &str = "/zone";
/// The zone's control directory.
pub(super) const CONTROL: &str = "/control";
/// Where the specification lies.
pub(super) const BUNDLE: &str = "/bundle";
/// Where libcontainer keeps its state.
pub(super) const STATE: &str = "/state";
/// The socket that receives the zone's terminal.
pub(super) const CONSOLE: &str = "/console.sock";

/// Room for the specification and libcontainer's state; a few pages are used.
const SIZE: &str = "mode=755,size=4m";

/// Makes the root and moves into it.
pub(super) fn enter(zone: &ZoneDir, spec: &ZoneSpec, user_ns: &OwnedFd) -> Result<()> {
    let tree = zone.tree();
    super::super::files::make_passable(&tree)?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| Error::os("leave the host's mount namespace", error.into()))?;
    attach(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    attach(Some(Path::new("tmpfs")), &tree, Some("tmpfs"), MsFlags::MS_NOSUID, Some(SIZE))?;
    for name in ["zone", "control", "bundle", "state", "proc", "sys", "dev"] {
        fs::create_dir(tree.join(name))
            .map_err(|source| Error::os(format!("make `{name}` in the private root"), source))?;
    }
    namespaces::mount_shifted(&spec.root, &tree.join("zone"), user_ns)?;
    attach(Some(&spec.control_dir), &tree.join("control"), None, MsFlags::MS_BIND, None)?;
    attach(Some(Path::new("/dev")), &tree.join("dev"), None, MsFlags::MS_BIND, None)?;
    attach(Some(Path::new("proc")), &tree.join("proc"), Some("proc"), quiet, None)?;
    attach(Some(Path::new("sysfs")), &tree.join("sys"), Some("sysfs"), quiet, None)?;
    attach(Some(Path::new("cgroup2")), &tree.join("sys/fs/cgroup"), Some("cgroup2"), quiet, None)?;
    let fail = |error: nix::Error| Error::os("move into the private root", error.into());
    chdir(&tree).map_err(fail)?;
    // The old root ends up on top of the new one, and is let go of there.
    pivot_root(".", ".").map_err(fail)?;
    umount2(".", MntFlags::MNT_DETACH).map_err(fail)?;
    chdir("/").map_err(fail)
}

fn attach(
    source: Option<&Path>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<()> {
    mount(source, target, kind, flags, options).map_err(|error| {
        let what = source.map_or_else(String::new, |source| format!(" `{}`", source.display()));
        Error::os(format!("mount{what} on `{}`", target.display()), error.into())
    })
}
