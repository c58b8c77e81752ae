//! What a zone has on the host's disk, who writes it, and files written into its root.
//!
//! ```text
//! <run>/zones/<id>/ids.json        agent       the id range its user namespace was made with
//!                  ns/user, ns/net agent       pinned namespaces
//!                  launch.json     agent       everything its supervisor needs, before it is started
//!                  limits.json     agent       limits in force
//!                  because         agent       why it kills the zone, in words, before it does
//!                  status.json     supervisor  what runs, or how the last boot ended
//!                  supervisor.log  supervisor  its last words, when it dies of a mistake of ours
//! <run>/tree/                      nursery     mount point of its private root, empty as seen from outside
//! <run>/nursery.log                nursery     its last words
//! <log>/<id>.console.log, .1       supervisor  the console
//! ```
//! Each document is replaced whole by a rename, so a reader never sees half of one. Run files live on a tmpfs and vanish
//! with the machine's boot, as what they speak of does.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use model::{
    id::InstanceId,
    target::{Exit, Limits},
    time::Timestamp,
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag, OpenHow, ResolveFlag, openat2, renameat},
    sys::stat::Mode,
    unistd::{UnlinkatFlags, unlinkat},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::process::ProcessRef;
use crate::{
    error::{Error, Result},
    zone::{IdRange, ZoneSpec},
};

/// Largest document read back: a specification with its `hosts` file is far smaller.
const MAX_DOCUMENT_BYTES: u64 = 1 << 20;

/// How often a directory another process holds is tried again.
const LOCK_PERIOD: Duration = Duration::from_millis(10);

/// Largest file of an image compared with what we would write; a larger one is simply replaced.
const MAX_COMPARED_BYTES: u64 = 1 << 20;

/// The runtime directory of one zone.
#[derive(Debug, Clone)]
pub(super) struct ZoneDir(PathBuf);

impl ZoneDir {
    pub(super) fn new(run_dir: &Path, instance: InstanceId) -> Self {
        Self(run_dir.join("zones").join(instance.to_string()))
    }

    /// A zone's directory that is known by its path.
    pub(super) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn user_ns(&self) -> PathBuf {
        self.0.join("ns/user")
    }

    pub(super) fn net_ns(&self) -> PathBuf {
        self.0.join("ns/net")
    }

    pub(super) fn supervisor_log(&self) -> PathBuf {
        self.0.join("supervisor.log")
    }

    /// Keeps other processes from writing a supervisor's orders into this directory, until the lock is dropped or this process
    /// ends. A zone that was never prepared is missing; one that stays locked for `patience` is refused.
    pub(super) fn lock(&self, patience: Duration) -> Result<Flock<File>> {
        let path = self.0.join("ns");
        let deadline = Instant::now() + patience;
        let mut directory = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Missing(format!("prepared zone `{}`", self.0.display())));
            }
            other => other.map_err(|source| Error::os(format!("open `{}`", path.display()), source))?,
        };
        loop {
            directory = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((directory, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < deadline => directory,
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(Error::Refused {
                        what: format!("the start of zone `{}`", self.0.display()),
                        why: "another agent on this machine is still starting it".to_owned(),
                    });
                }
                Err((_, error)) => return Err(Error::os(format!("lock `{}`", path.display()), error.into())),
            };
            std::thread::sleep(LOCK_PERIOD);
        }
    }
}

/// A file of a zone's runtime directory that holds one JSON document.
pub(super) trait Document: Serialize + DeserializeOwned {
    /// Its name in the directory.
    const NAME: &'static str;

    /// Reads it; `None` if it is not there.
    fn load(zone: &ZoneDir) -> Result<Option<Self>> {
        let path = zone.path().join(Self::NAME);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|source| Error::os(format!("open `{}`", path.display()), source))?,
        };
        serde_json::from_reader(io::BufReader::new(io::Read::take(file, MAX_DOCUMENT_BYTES)))
            .map(Some)
            .map_err(|error| Error::Damaged { path, why: error.to_string() })
    }

    /// Replaces it.
    fn store(&self, zone: &ZoneDir) -> Result<()> {
        let directory =
            File::open(zone.path()).map_err(|source| Error::os(format!("open `{}`", zone.path().display()), source))?;
        self.store_in(&directory)
    }

    /// Replaces it, in a directory that is held open.
    fn store_in(&self, directory: &File) -> Result<()> {
        let doing = || format!("write `{}`", Self::NAME);
        let bytes = serde_json::to_vec(self).map_err(|error| Error::os(doing(), error.into()))?;
        replace_in(directory, Self::NAME, &bytes, 0o600).map_err(|source| Error::os(doing(), source))
    }
}

/// The id range a zone was prepared with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Prepared {
    pub(super) ids: IdRange,
}

impl Document for Prepared {
    const NAME: &'static str = "ids.json";
}

/// Orders for a supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Launch {
    pub(super) spec: ZoneSpec,
    /// Directory of console logs.
    pub(super) log_dir: PathBuf,
}

impl Document for Launch {
    const NAME: &'static str = "launch.json";
}

/// Limits in force.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct InForce(pub(super) Limits);

impl Document for InForce {
    const NAME: &'static str = "limits.json";
}

/// Why the agent kills a zone.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Because(pub(super) String);

impl Document for Because {
    const NAME: &'static str = "because";
}

/// What a supervisor says of its zone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Status {
    pub(super) supervisor: ProcessRef,
    pub(super) init: ProcessRef,
    pub(super) started_at: Timestamp,
    /// How the boot ended, once it has.
    pub(super) exit: Option<Exit>,
}

impl Document for Status {
    const NAME: &'static str = "status.json";
}

/// Name of a zone's console log.
pub(super) fn console_name(instance: InstanceId) -> String {
    format!("{instance}.console.log")
}

/// Makes a file of a zone's root say `content`. No path of the image can lead outside: it is resolved as if the root were
/// `/`, and the file itself is replaced by a rename, whatever it was. An equal one is left alone.
pub(super) fn write_in_root(root: &Path, directory: &str, name: &str, content: &str) -> Result<()> {
    let doing = || format!("write `/{directory}/{name}` into `{}`", root.display());
    let fail = |source: io::Error| Error::os(doing(), source);
    let root_dir = File::open(root).map_err(fail)?;
    let resolved = |path: &str, flags: OFlag| {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&root_dir, path, how).map(File::from)
    };
    if !directory_exists(resolved(directory, OFlag::O_PATH | OFlag::O_DIRECTORY)).map_err(fail)? {
        // An image without `/etc` reads none of its files either.
        return Ok(());
    }
    let parent = resolved(directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(|error| fail(error.into()))?;
    let how = OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK);
    if let Ok(present) = openat2(&parent, name, how) {
        let mut found = Vec::new();
        let read = io::Read::read_to_end(&mut io::Read::take(File::from(present), MAX_COMPARED_BYTES), &mut found);
        if read.is_ok() && found == content.as_bytes() {
            return Ok(());
        }
    }
    match replace_in(&parent, name, content.as_bytes(), 0o644) {
        // A tenant that filled its disk must still be able to start and clean it up.
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            tracing::warn!(root = %root.display(), name, "no space left in the zone for this file; the old one stays");
            Ok(())
        }
        other => other.map_err(fail),
    }
}

fn directory_exists(opened: nix::Result<File>) -> io::Result<bool> {
    match opened {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Writes `name` in a directory by way of a temporary file and a rename.
fn replace_in(directory: &File, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = format!(".{name}.new");
    let remove = || match unlinkat(directory, temporary.as_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error),
    };
    remove()?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file =
        File::from(nix::fcntl::openat(directory, temporary.as_str(), flags, Mode::from_bits_truncate(mode))?);
    let written = file.write_all(bytes).and_then(|()| {
        renameat(directory, temporary.as_str(), directory, name)?;
        Ok(())
    });
    if written.is_err() {
        let _ = remove();
    }
    written
}

/// Makes a directory others may pass through but not list: the zone's own users reach what is pinned below it.
pub(super) fn make_passable(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(|source| Error::os(format!("make directory `{}`", path.display()), source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_a_root_is_replaced_and_never_followed() {
        let outside = tempfile::tempdir().expect("temporary directory");
        let root = tempfile::tempdir().expect("temporary directory");
        let victim = outside.path().join("victim");
        fs::write(&victim, "untouched").expect("write");
        fs::create_dir(root.path().join("etc")).expect("mkdir");
        std::os::unix::fs::symlink(&victim, root.path().join("etc/resolv.conf")).expect("symlink");
        write_in_root(root.path(), "etc", "resolv.conf", "nameserver 1.2.3.4\n").expect("write");
        assert_eq!(fs::read_to_string(&victim).expect("read"), "untouched");
        assert_eq!(fs::read_to_string(root.path().join("etc/resolv.conf")).expect("read"), "nameserver 1.2.3.4\n");
    }

    #[test]
    fn a_directory_that_is_a_link_out_of_the_root_stays_inside() {
        let outside = tempfile::tempdir().expect("temporary directory");
        let root = tempfile::tempdir().expect("temporary directory");
        std::os::unix::fs::symlink(outside.path(), root.path().join("etc")).expect("symlink");
        write_in_root(root.path(), "etc", "hosts", "127.0.0.1 localhost\n").expect("skipped");
        let up = root.path().join("etc");
        fs::remove_file(&up).expect("remove");
        std::os::unix::fs::symlink("../../../../../../tmp", &up).expect("symlink");
        fs::create_dir(root.path().join("tmp")).expect("mkdir");
        write_in_root(root.path(), "etc", "hosts", "127.0.0.1 localhost\n").expect("written inside");
        assert!(root.path().join("tmp/hosts").exists());
        assert_eq!(fs::read_dir(outside.path()).expect("list").count(), 0);
    }

    #[test]
    fn a_fifo_in_the_way_does_not_hang() {
        let root = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(root.path().join("etc")).expect("mkdir");
        nix::unistd::mkfifo(&root.path().join("etc/hosts"), Mode::from_bits_truncate(0o644)).expect("mkfifo");
        write_in_root(root.path(), "etc", "hosts", "x").expect("replaced");
        assert_eq!(fs::read_to_string(root.path().join("etc/hosts")).expect("read"), "x");
    }
}
