//! The pool: a mounted btrfs file system for datasets, on a file, on a disk, or one the operator mounted.
//!
//! [`ensure`] may be called at every start. It makes what is missing (file, file system, loop device, mount) and leaves
//! alone what is there; it never formats anything that holds a file system. The loop device detaches itself when the
//! pool is unmounted, so nothing of it is left after a reboot but the file.

#![expect(unsafe_code, reason = "loop devices are attached by ioctl, which takes pointers")]

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
};

use model::unit::Mib;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BTRFS_SUPER_MAGIC, statfs},
};

use super::command;
use crate::error::{Error, Result};

/// What carries the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// A sparse file of this size, made if absent; the size of one that exists is left alone.
    File {
        /// Where.
        path: PathBuf,
        /// Size when it is made; at least [`SIZE_MIN`].
        size: Mib,
    },
    /// A block device; formatted only if it is blank.
    Device(PathBuf),
    /// Nothing of ours: the directory is on a btrfs file system already.
    Directory,
}

/// Where the pool is and what carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// The directory it is mounted on.
    pub dir: PathBuf,
    /// What is mounted there.
    pub backing: Backing,
}

/// Smallest pool: btrfs wants 109 MiB, images some more.
pub const SIZE_MIN: Mib = Mib(256);

/// Tries to get a loop device while others take them too.
const LOOP_TRIES: usize = 16;

/// Makes the pool be there, mounted.
pub fn ensure(config: &PoolConfig) -> Result<()> {
    let dir = &config.dir;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| Error::os(format!("make `{}`", dir.display()), source))?;
    if config.backing == Backing::Directory {
        return match on_btrfs(dir)? {
            true => Ok(()),
            false => Err(Error::Lacking {
                what: format!("a btrfs file system at `{}`", dir.display()),
                remedy: "mount one there, or let the pool be a file or a disk".to_owned(),
            }),
        };
    }
    if is_mount_point(dir)? {
        return match on_btrfs(dir)? {
            true => Ok(()),
            false => Err(Error::Refused {
                what: format!("pool at `{}`", dir.display()),
                why: "something other than btrfs is mounted there".to_owned(),
            }),
        };
    }
    match &config.backing {
        Backing::File { path, size } => {
            make_file(path, *size)?;
            // Held until it is mounted: a loop device that nobody uses detaches itself.
            let (_held, device) = attach_loop(path)?;
            mount_at(&device, dir)?;
            close(dir)
        }
        Backing::Device(device) => match mount_at(device, dir) {
            Err(Error::Os { source, .. }) if source.raw_os_error() == Some(Errno::EINVAL as i32) => {
                // Refuses by itself when the disk holds anything it knows.
                format(device)?;
                mount_at(device, dir)?;
                close(dir)
            }
            other => other.and_then(|()| close(dir)),
        },
        Backing::Directory => unreachable!("answered above"),
    }
}

/// Unmounts the pool; one that is not mounted is fine.
pub fn release(config: &PoolConfig) -> Result<()> {
    if config.backing == Backing::Directory || !config.dir.exists() || !is_mount_point(&config.dir)? {
        return Ok(());
    }
    umount2(&config.dir, MntFlags::empty())
        .map_err(|errno| Error::os(format!("unmount `{}`", config.dir.display()), errno.into()))
}

fn on_btrfs(dir: &Path) -> Result<bool> {
    let found = statfs(dir).map_err(|errno| Error::os(format!("look at `{}`", dir.display()), errno.into()))?;
    Ok(found.filesystem_type() == BTRFS_SUPER_MAGIC)
}

fn is_mount_point(dir: &Path) -> Result<bool> {
    let doing = || format!("look at `{}`", dir.display());
    let (here, above) = (fs::metadata(dir), fs::metadata(dir.join("..")));
    let (here, above) = (here.map_err(|e| Error::os(doing(), e))?, above.map_err(|e| Error::os(doing(), e))?);
    Ok(here.dev() != above.dev())
}

/// Makes the file with a file system in it, under another name until it is whole.
fn make_file(path: &Path, size: Mib) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    if size < SIZE_MIN {
        return Err(Error::Refused {
            what: format!("pool of {size}"),
            why: format!("it would be smaller than {SIZE_MIN}"),
        });
    }
    let doing = || format!("make the pool's file `{}`", path.display());
    let fails = |source| Error::os(doing(), source);
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(fails)?;
    let making = path.with_extension("making");
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&making).map_err(fails)?;
    file.set_len(size.bytes()).map_err(fails)?;
    format(&making)?;
    file.sync_all().map_err(fails)?;
    fs::rename(&making, path).map_err(fails)?;
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(fails)
}

fn format(target: &Path) -> Result<()> {
    // Metadata once, as data: whatever carries one copy carries two no better, and half the writes are saved.
    let options = ["--quiet", "--label", "neso-pool", "--metadata", "single", "--data", "single"];
    let mut arguments: Vec<&std::ffi::OsStr> = options.iter().map(std::ffi::OsStr::new).collect();
    arguments.push(target.as_os_str());
    command::run("mkfs.btrfs", &arguments, "").map(drop)
}

/// Lets nobody but root into the pool: what tenants keep in their roots is theirs.
fn close(dir: &Path) -> Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
        .map_err(|source| Error::os(format!("close `{}`", dir.display()), source))
}

fn mount_at(device: &Path, dir: &Path) -> Result<()> {
    let flags = MsFlags::MS_NOATIME | MsFlags::MS_NODEV;
    mount(Some(device), dir, Some("btrfs"), flags, Some("discard=async")).map_err(|errno| {
        let doing = format!("mount `{}` on `{}`", device.display(), dir.display());
        match errno {
            Errno::ENODEV => Error::Lacking {
                what: "btrfs in its kernel".to_owned(),
                remedy: "load or build the `btrfs` module".to_owned(),
            },
            errno => Error::os(doing, errno.into()),
        }
    })
}

// === Loop devices: numbers and layouts of the kernel's `linux/loop.h` ===

const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

mod raw {
    use super::LoopConfig;

    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4c82);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4c0a, LoopConfig);
}

/// Attaches a file to a loop device, direct where the file system below can; returns the open device, which keeps it
/// attached, and its path. A file that is attached already keeps its device: a second one would be a second, unaware
/// copy of the same blocks.
fn attach_loop(path: &Path) -> Result<(File, PathBuf)> {
    let doing = || format!("attach `{}` to a loop device", path.display());
    let fails = |source: io::Error| Error::os(doing(), source);
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    if let Some(device) = attached(path).map_err(fails)? {
        return Ok((open(&device).map_err(fails)?, device));
    }
    let backing = open(path).map_err(fails)?;
    let control = open(Path::new("/dev/loop-control")).map_err(|_| Error::Lacking {
        what: "loop devices (`/dev/loop-control`)".to_owned(),
        remedy: "load the `loop` module, or give the pool a disk".to_owned(),
    })?;
    for _ in 0..LOOP_TRIES {
        // SAFETY: this ioctl has no argument.
        let number = unsafe { raw::loop_ctl_get_free(control.as_raw_fd()) }.map_err(|errno| fails(errno.into()))?;
        let device = PathBuf::from(format!("/dev/loop{number}"));
        let opened = open(&device).map_err(fails)?;
        let mut file_name = [0; 64];
        let name = path.as_os_str().as_bytes();
        let kept = name.len().min(63);
        file_name[..kept].copy_from_slice(&name[name.len() - kept..]);
        let config = LoopConfig {
            fd: u32::try_from(backing.as_raw_fd()).expect("an open file's number is not negative"),
            block_size: 0,
            info: LoopInfo {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                size_limit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
                file_name,
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: `config` outlives the call and has the layout the kernel reads.
        match unsafe { raw::loop_configure(opened.as_raw_fd(), &config) } {
            Ok(_) => return Ok((opened, device)),
            // Another program was faster.
            Err(Errno::EBUSY) => {}
            Err(errno) => return Err(fails(errno.into())),
        }
    }
    Err(fails(Errno::EBUSY.into()))
}

/// The loop device a file is attached to, if it is.
fn attached(path: &Path) -> io::Result<Option<PathBuf>> {
    let wanted = fs::canonicalize(path)?;
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.as_bytes().starts_with(b"loop") {
            continue;
        }
        // Absent while a device is free.
        let Ok(backing) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        if Path::new(backing.trim_end_matches('\n')) == wanted {
            return Ok(Some(Path::new("/dev").join(name)));
        }
    }
    Ok(None)
}
