//! Namespaces that exist before any process of a zone does, and the mounts a zone's root is made of.
//!
//! A user namespace must be entered by a process with one thread, and the agent has many; so a short-lived child is
//! cloned straight into the two new namespaces, its ids are mapped from outside, its namespaces are pinned by bind mounts
//! of their files, and it is killed. The network namespace is made in the same call, hence owned by the user namespace:
//! only then may the zone mount `/sys` and open raw sockets.

#![expect(unsafe_code, reason = "calls nix has no words for: open_tree, mount_setattr, move_mount, clone")]

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use nix::{
    errno::Errno,
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::statfs,
    sys::wait::waitpid,
    unistd::Pid,
};

use crate::{
    error::{Error, Result},
    zone::IdRange,
};

/// `struct mount_attr` of `mount_setattr(2)`, first version.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
const OPEN_TREE_CLONE: u64 = 1;
const OPEN_TREE_CLOEXEC: u64 = libc::O_CLOEXEC as u64;
const MOVE_MOUNT_F_EMPTY_PATH: u64 = 4;

/// Makes a user namespace with the given ids and a network namespace it owns, and pins both at the given paths.
pub(crate) fn make(ids: IdRange, user: &Path, net: &Path) -> Result<()> {
    let holder = Holder::clone().map_err(|source| Error::os("make a user and a network namespace", source))?;
    let map = format!("0 {} {}\n", ids.first, ids.count);
    for (file, what) in [("uid_map", "user"), ("gid_map", "group")] {
        fs::write(format!("/proc/{}/{file}", holder.pid), &map).map_err(|source| {
            Error::os(format!("map {what} ids {}..{}", ids.first, u64::from(ids.first) + u64::from(ids.count)), source)
        })?;
    }
    for (name, path) in [("user", user), ("net", net)] {
        pin(&format!("/proc/{}/ns/{name}", holder.pid), path)?;
    }
    Ok(())
}

/// Whether a namespace is pinned at `path`.
pub(crate) fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type().0 == libc::NSFS_MAGIC)
}

/// Lets go of a pinned namespace and removes its file. One that is not there is no error.
pub(crate) fn unpin(path: &Path) -> Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Once more: an agent killed half-way may have pinned twice.
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(error) => return Err(Error::os(format!("unmount `{}`", path.display()), error.into())),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::os(format!("remove `{}`", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// A copy of the mount at `source` that hangs nowhere yet. It can be passed to a process in another mount namespace.
pub(crate) fn copy_of_mount(source: &Path) -> Result<OwnedFd> {
    let source_text = c_path(source)?;
    let tree_flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, source_text.as_ptr(), tree_flags) };
    owned(tree).map_err(|error| Error::os(format!("copy the mount of `{}`", source.display()), error))
}

/// Shifts the ids of a mount that hangs nowhere yet into a user namespace: what is owned by 0 on disk is owned by the
/// namespace's root. Device files on it do not work. `source` is what errors call it.
pub(crate) fn shift(tree: &OwnedFd, user: &OwnedFd, source: &Path) -> Result<()> {
    let attr = MountAttr {
        set: MOUNT_ATTR_IDMAP | MOUNT_ATTR_NODEV,
        clear: 0,
        propagation: 0,
        userns_fd: u64::try_from(user.as_raw_fd()).unwrap_or(u64::MAX),
    };
    // SAFETY: an empty path with AT_EMPTY_PATH means the descriptor itself; `attr` has the size told and outlives the call.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    Errno::result(set).map(drop).map_err(|error| match error {
        Errno::EINVAL => Error::Lacking {
            what: format!("id-mapped mounts on the file system of `{}`", source.display()),
            remedy: "put the pool on btrfs, ext4 or xfs".to_owned(),
        },
        other => Error::os(format!("shift the ids of `{}`", source.display()), other.into()),
    })
}

/// Hangs such a mount on `target`.
pub(crate) fn hang(tree: &OwnedFd, target: &Path) -> Result<()> {
    let target_text = c_path(target)?;
    // SAFETY: both paths are NUL-terminated and outlive the call, the descriptor is open.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target_text.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(moved).map(drop).map_err(|error| Error::os(format!("mount on `{}`", target.display()), error.into()))
}

fn pin(namespace: &str, path: &Path) -> Result<()> {
    let doing = || format!("pin `{namespace}` at `{}`", path.display());
    fs::File::create(path).map_err(|source| Error::os(doing(), source))?;
    mount(Some(namespace), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|error| Error::os(doing(), error.into()))
}

/// A child that does nothing but live in its new namespaces until it is dropped.
///
/// It shares the agent's memory: a copy, however lazy, costs page tables now and a fault for every page the agent touches
/// afterwards, more with every zone the agent knows of. So it has a stack of its own, which outlives it, and its body makes
/// system calls and nothing else.
struct Holder {
    pid: Pid,
    _stack: Box<[u128]>,
}

/// Bytes of a holder's stack: two system calls deep.
const HOLDER_STACK_BYTES: usize = 16 << 10;

impl Holder {
    fn clone() -> io::Result<Self> {
        let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_VM | libc::SIGCHLD;
        let mut stack = vec![0_u128; HOLDER_STACK_BYTES / size_of::<u128>()].into_boxed_slice();
        let top = stack.as_mut_ptr_range().end;
        // SAFETY: the child runs `hold` on `stack`, whose end is aligned and which is dropped only after the child was reaped.
        let pid = unsafe { libc::clone(hold, top.cast(), flags, std::ptr::null_mut()) };
        Ok(Self { pid: Pid::from_raw(Errno::result(pid)?), _stack: stack })
    }
}

/// All a holder ever does.
extern "C" fn hold(_: *mut libc::c_void) -> libc::c_int {
    static EVERY_SIGNAL: u64 = u64::MAX;
    // SAFETY: plain system calls with numbers and the address of a static, neither of which fails and would write to the `errno`
    // of the thread that made this child. No signal that can be blocked runs a handler here. If that thread dies first, the kernel
    // ends the child.
    unsafe {
        libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        loop {
            libc::syscall(libc::SYS_ppoll, 0, 0, 0, &raw const EVERY_SIGNAL, size_of::<u64>());
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It is our child and not yet reaped, so the pid is still its own.
        let _ = nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::Refused {
        what: format!("path `{}`", path.display()),
        why: "it holds a NUL byte".to_owned(),
    })
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(Errno::result(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
