//! Unpacks a checked archive below a directory, letting the kernel refuse whatever would leave it.
//!
//! Every member's parent is opened with `openat2` beneath the root, following no symbolic link at all, and the member
//! itself is made by its last name in that open directory. So a link in the archive cannot redirect what comes after it;
//! archives that need that (a member reached through a link) are refused, which none made from a directory tree is.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::{
        stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, mkdirat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, mkfifoat, symlinkat, unlinkat},
};
use xattr::FileExt;

use crate::{
    archive::{Member, MemberKind, MemberPath, Sink, display},
    error::{Error, Result},
};

/// Bytes copied at a time.
const COPY_BYTES: usize = 64 * 1024;

/// Permissions of directories that no member describes.
const IMPLIED_DIRECTORY_MODE: u32 = 0o755;

/// A directory that members are unpacked below.
pub(super) struct Unpacker {
    root: File,
    /// The parent opened last: members come directory by directory.
    parent: Option<(MemberPath, Arc<OwnedFd>)>,
    /// Times of directories, set when nothing more is put into them.
    directory_times: Vec<(MemberPath, u64)>,
    buffer: Vec<u8>,
}

impl Unpacker {
    /// Unpacks below `root`, which should be empty.
    pub(super) fn new(root: &Path) -> Result<Self> {
        let opened = File::open(root).map_err(|source| Error::os(format!("open `{}`", root.display()), source))?;
        Ok(Self { root: opened, parent: None, directory_times: Vec::new(), buffer: vec![0; COPY_BYTES] })
    }

    /// Sets what had to wait for the last member.
    pub(super) fn finish(mut self) -> Result<()> {
        for (path, mtime) in std::mem::take(&mut self.directory_times) {
            let doing = || format!("set the time of `{}`", display(&path));
            let (parent, name) = self.locate(&path)?;
            set_time(&parent, &name, mtime).map_err(|errno| Error::os(doing(), errno.into()))?;
        }
        Ok(())
    }

    /// The open parent of `path`, made if need be, and the last name.
    fn locate(&mut self, path: &MemberPath) -> Result<(Arc<OwnedFd>, Vec<u8>)> {
        let (name, parents) = match path.split_last() {
            Some((name, parents)) => (name.clone(), parents),
            None => (b".".to_vec(), &path[..]),
        };
        if let Some((held, parent)) = &self.parent
            && held == parents
        {
            return Ok((parent.clone(), name));
        }
        let opened = Arc::new(self.open_directory(parents, true)?);
        self.parent = Some((parents.to_vec(), opened.clone()));
        Ok((opened, name))
    }

    fn open_directory(&self, path: &[Vec<u8>], make: bool) -> Result<OwnedFd> {
        match beneath(&self.root, path) {
            Ok(opened) => Ok(opened),
            Err(Errno::ENOENT) if make => {
                for depth in 1..=path.len() {
                    let parent = beneath(&self.root, &path[..depth - 1]).map_err(|errno| trouble(path, errno))?;
                    let mode = Mode::from_bits_truncate(IMPLIED_DIRECTORY_MODE);
                    let name = path[depth - 1].as_slice();
                    // The mode again, whatever our umask is; what was just made is a directory and no link.
                    match mkdirat(&parent, name, mode)
                        .and_then(|()| fchmodat(&parent, name, mode, FchmodatFlags::FollowSymlink))
                    {
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(errno) => return Err(trouble(path, errno)),
                    }
                }
                beneath(&self.root, path).map_err(|errno| trouble(path, errno))
            }
            Err(errno) => Err(trouble(path, errno)),
        }
    }

    fn make(&mut self, member: &Member, content: &mut dyn Read) -> Result<()> {
        let linked = match &member.kind {
            MemberKind::Hardlink(target) => {
                let (name, parents) = target.split_last().expect("a link to the root was refused");
                Some((self.open_directory(parents, false)?, name.clone()))
            }
            _ => None,
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let (parent, name) = self.locate(&member.path)?;
        let parent = parent.as_ref();
        let fails = |errno: Errno| trouble(&member.path, errno);
        if !member.path.is_empty() {
            clear_the_way(parent, &name, &member.kind).map_err(fails)?;
        }
        match &member.kind {
            MemberKind::Directory => {
                match mkdirat(parent, name.as_slice(), Mode::from_bits_truncate(IMPLIED_DIRECTORY_MODE)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(fails(errno)),
                }
                let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let opened = openat(parent, name.as_slice(), flags, Mode::empty()).map_err(fails)?;
                dress(&File::from(opened), member)?;
                self.directory_times.push((member.path.clone(), member.mtime));
            }
            MemberKind::File(size) => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let opened = openat(parent, name.as_slice(), flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(fails)?;
                let mut file = File::from(opened);
                fill(&mut file, content, *size, &mut buffer, &member.path)?;
                dress(&file, member)?;
                set_time(parent, &name, member.mtime).map_err(fails)?;
            }
            MemberKind::Symlink(target) => {
                symlinkat(target.as_slice(), parent, name.as_slice()).map_err(fails)?;
                own(parent, &name, member).map_err(fails)?;
                set_time(parent, &name, member.mtime).map_err(fails)?;
            }
            MemberKind::Fifo => {
                mkfifoat(parent, name.as_slice(), Mode::from_bits_truncate(member.mode)).map_err(fails)?;
                own(parent, &name, member).map_err(fails)?;
                let mode = Mode::from_bits_truncate(member.mode);
                // A pipe that was just made here, as root, in a directory nobody else can reach: not a link.
                fchmodat(parent, name.as_slice(), mode, FchmodatFlags::FollowSymlink).map_err(fails)?;
            }
            MemberKind::Hardlink(_) => {
                let (directory, target) = linked.expect("it was opened above");
                linkat(&directory, target.as_slice(), parent, name.as_slice(), LinkatFlags::empty()).map_err(fails)?;
            }
        }
        self.buffer = buffer;
        Ok(())
    }
}

impl Sink for Unpacker {
    fn member(&mut self, member: &Member, content: &mut dyn Read) -> Result<()> {
        self.make(member, content)
    }
}

fn beneath(root: &File, path: &[Vec<u8>]) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let joined = if path.is_empty() { b".".to_vec() } else { path.join(&b'/') };
    openat2(root, joined.as_slice(), OpenHow::new().flags(flags).resolve(resolve))
}

/// Removes what an earlier member left under this name; directories stay.
fn clear_the_way(parent: &OwnedFd, name: &[u8], kind: &MemberKind) -> nix::Result<()> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
        Ok(found) => match SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
            true if *kind == MemberKind::Directory => Ok(()),
            true => Err(Errno::EISDIR),
            false => unlinkat(parent, name, UnlinkatFlags::NoRemoveDir),
        },
    }
}

fn fill(file: &mut File, content: &mut dyn Read, size: u64, buffer: &mut [u8], path: &MemberPath) -> Result<()> {
    let mut left = size;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = match content.read(&mut buffer[..most]) {
            Ok(0) => return Err(refused(path, "it ends early")),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(refused(path, error.to_string())),
        };
        io::Write::write_all(file, &buffer[..count])
            .map_err(|source| Error::os(format!("write `{}`", display(path)), source))?;
        left -= count as u64;
    }
    Ok(())
}

/// Owner, attributes, mode, in this order: a change of owner clears set-id bits and capabilities.
fn dress(file: &File, member: &Member) -> Result<()> {
    let fails = |errno: Errno| trouble(&member.path, errno);
    nix::unistd::fchown(file.as_fd(), Some(Uid::from_raw(member.uid)), Some(Gid::from_raw(member.gid)))
        .map_err(fails)?;
    for (name, value) in &member.xattrs {
        file.set_xattr(name, value)
            .map_err(|source| Error::os(format!("set `{name}` of `{}`", display(&member.path)), source))?;
    }
    fchmod(file.as_fd(), Mode::from_bits_truncate(member.mode)).map_err(fails)
}

fn own(parent: &OwnedFd, name: &[u8], member: &Member) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
    fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
}

fn set_time(parent: &OwnedFd, name: &[u8], mtime: u64) -> nix::Result<()> {
    let time = TimeSpec::new(i64::try_from(mtime).unwrap_or(0), 0);
    utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)
}

/// What the kernel's answer means: of the image, or of the machine.
fn trouble(path: &[Vec<u8>], errno: Errno) -> Error {
    let path = path.to_vec();
    match errno {
        Errno::ELOOP | Errno::EXDEV => refused(&path, "it is reached through a symbolic link"),
        Errno::ENOTDIR => refused(&path, "it lies below something that is no directory"),
        Errno::EISDIR => refused(&path, "a directory of that name came before it"),
        Errno::ENOENT => refused(&path, "what it links to did not come before it"),
        Errno::EPERM => refused(&path, "it links to a directory"),
        errno => Error::os(format!("unpack `{}`", display(&path)), errno.into()),
    }
}

fn refused(path: &MemberPath, why: impl Into<String>) -> Error {
    Error::Refused { what: format!("archive member `{}`", display(path)), why: why.into() }
}
