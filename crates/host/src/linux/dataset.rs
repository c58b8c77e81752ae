//! Datasets as btrfs subvolumes.
//!
//! ```text
//! <pool>/images/<image>              read-only subvolume
//! <pool>/images/.importing-<image>-… being unpacked; swept when the pool is opened
//! <pool>/roots/<instance>            writable snapshot of an image
//! ```
//! With simple quotas (Linux 6.7) a root's quota hangs on a quota group of its own, one level above the subvolume's. The
//! group is made with its limit before the snapshot, which is born a member; subvolumes made inside inherit it, so there
//! is no moment and no place without a limit. An extent belongs to whoever wrote it: a fresh clone uses nothing, and the
//! quota counts what the instance wrote.
//!
//! Full quotas of older kernels lose count of the whole pool, and with it every limit, when a snapshot is born into a
//! higher group. There the limit hangs on the subvolume's own group and counts exclusive bytes; it is set between snapshot
//! and start, and zones cannot make subvolumes (a rule of their seccomp filter), which would have groups without a limit.
//!
//! A quota group can only go when the last extent counted to it is gone, which the kernel sees to later; groups left so
//! are collected by the next removal.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read},
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use model::{
    id::{ImageId, InstanceId},
    image::Compression,
    unit::Mib,
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2},
    sys::statvfs::fstatvfs,
    unistd::syncfs,
};

use super::{
    archive::Unpacker,
    dataset_btrfs::{self as btrfs, QuotaMode},
    pool::{self, PoolConfig},
};
use crate::{
    archive,
    dataset::{Datasets, PoolUsage, room_for},
    error::{Error, Result},
};

/// Level of our quota groups, far from those people make by hand.
const QGROUP_LEVEL: u64 = 0x4e45;

/// Free bytes of the pool below which no clone is made: room for what a first boot writes, and for removing roots.
const CLONE_ROOM_BYTES: u64 = 16 << 20;

/// Deepest nesting of subvolumes that is followed when a root is destroyed.
const NESTING_MAX: usize = 64;

/// The pool, opened.
pub struct LinuxDatasets {
    pool: File,
    images: File,
    roots: File,
    images_path: PathBuf,
    roots_path: PathBuf,
    quota: QuotaMode,
    /// Tells imports apart that run at once.
    imports: AtomicU64,
    /// Quota groups made for a snapshot that is not there yet.
    cloning: Mutex<BTreeSet<u64>>,
    /// Own groups of destroyed roots that the kernel still counts to; with full quotas nobody else removes them.
    leaving: Mutex<BTreeSet<u64>>,
}

impl LinuxDatasets {
    /// Makes the pool be there ([`pool::ensure`]), turns quotas on, and removes what an import left that was killed.
    pub fn open(config: &PoolConfig) -> Result<Self> {
        pool::ensure(config)?;
        let open = |path: &Path| {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            File::open(path)
        };
        let (images_path, roots_path) = (config.dir.join("images"), config.dir.join("roots"));
        let fails = |source| Error::os(format!("open the pool `{}`", config.dir.display()), source);
        let pool = open(&config.dir).map_err(fails)?;
        let quota = btrfs::enable_quota(pool.as_fd())
            .map_err(|source| Error::os(format!("turn on quotas in `{}`", config.dir.display()), source))?;
        let datasets = Self {
            images: open(&images_path).map_err(fails)?,
            roots: open(&roots_path).map_err(fails)?,
            pool,
            images_path,
            roots_path,
            quota,
            imports: AtomicU64::new(0),
            cloning: Mutex::new(BTreeSet::new()),
            leaving: Mutex::new(BTreeSet::new()),
        };
        for name in names(&datasets.images_path)? {
            if name.starts_with(".importing-") {
                datasets.destroy(&datasets.images, &name)?;
            }
        }
        datasets.find_leaving().map_err(fails)?;
        datasets.collect_qgroups()?;
        Ok(datasets)
    }

    fn unpack(&self, name: &str, sha256: &str, compression: Compression, source: &mut dyn Read) -> Result<()> {
        let mut unpacker = Unpacker::new(&self.images_path.join(name))?;
        archive::read(source, sha256, compression, &mut unpacker)?;
        unpacker.finish()
    }

    /// Makes an unpacked staging subvolume the image: durable first, then read-only, then under its name.
    fn publish(&self, staging: &str, name: &str) -> Result<()> {
        let doing = || format!("finish image {name}");
        let fails = |errno: Errno| Error::os(doing(), errno.into());
        syncfs(self.pool.as_fd()).map_err(fails)?;
        let opened = open_subvolume(&self.images, staging.as_bytes()).map_err(fails)?;
        btrfs::set_read_only(opened.as_fd(), true).map_err(|source| Error::os(doing(), source))?;
        match renameat2(&self.images, staging, &self.images, name, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => syncfs(self.pool.as_fd()).map_err(fails),
            Err(errno) => Err(fails(errno)),
        }
    }

    /// Destroys subvolume `name` of `dir` with all inside it; one that is gone is fine.
    fn destroy(&self, dir: &File, name: &str) -> Result<()> {
        let fails = |source| Error::os(format!("destroy subvolume `{name}`"), source);
        match open_subvolume(dir, name.as_bytes()) {
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(fails(errno.into())),
            Ok(opened) => self.destroy_tree(opened, NESTING_MAX).map_err(fails),
        }
    }

    fn destroy_tree(&self, subvolume: File, depth: usize) -> io::Result<()> {
        let id = btrfs::id_of(subvolume.as_fd())?;
        let children = btrfs::children(self.pool.as_fd(), id)?;
        if !children.is_empty() {
            if depth == 0 {
                return Err(io::Error::other("subvolumes are nested too deep"));
            }
            // A zone's root may have made its subvolume read-only, which would keep those inside from going.
            btrfs::set_read_only(subvolume.as_fd(), false)?;
        }
        for child in children {
            self.destroy_tree(open_subvolume(&subvolume, &child.path)?, depth - 1)?;
        }
        drop(subvolume);
        btrfs::destroy(self.pool.as_fd(), id)
    }

    /// With full quotas, finds the own groups of destroyed subvolumes that nobody removed so far.
    fn find_leaving(&self) -> io::Result<()> {
        if self.quota == QuotaMode::Simple {
            return Ok(());
        }
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        for (qgroup, _) in btrfs::qgroups(self.pool.as_fd(), btrfs::FIRST_FREE_OBJECTID, (1 << 48) - 1)? {
            if !btrfs::lives(self.pool.as_fd(), qgroup)? {
                leaving.insert(qgroup);
            }
        }
        Ok(())
    }

    /// Removes quota groups of ours that belong to no root any more, as far as the kernel is done with them.
    fn collect_qgroups(&self) -> Result<()> {
        let fails = |source| Error::os("collect quota groups", source);
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        for qgroup in leaving.clone() {
            if btrfs::remove_qgroup(self.pool.as_fd(), qgroup).map_err(fails)? {
                leaving.remove(&qgroup);
            }
        }
        drop(leaving);
        let cloning = self.cloning.lock().unwrap_or_else(PoisonError::into_inner);
        let mut used: BTreeSet<u64> = self.roots()?.into_iter().map(qgroup_of).collect();
        used.extend(cloning.iter());
        let (from, to) = (QGROUP_LEVEL << 48, (QGROUP_LEVEL + 1) << 48);
        for (qgroup, _) in btrfs::qgroups(self.pool.as_fd(), from, to - 1).map_err(fails)? {
            if !used.contains(&qgroup) {
                btrfs::remove_qgroup(self.pool.as_fd(), qgroup).map_err(fails)?;
            }
        }
        Ok(())
    }

    /// A clone itself takes next to nothing, so one made in a full pool would come to be and then miss the files that are
    /// written into it. Better to say so at once.
    fn check_room(&self, doing: impl Fn() -> String) -> Result<()> {
        let pool = fstatvfs(&self.pool).map_err(|errno| Error::os(doing(), errno.into()))?;
        match pool.blocks_available() * pool.fragment_size() < CLONE_ROOM_BYTES {
            true => Err(Error::NoSpace { doing: doing() }),
            false => Ok(()),
        }
    }

    fn snapshot(&self, image: ImageId, instance: InstanceId, quota: Mib) -> Result<()> {
        let doing = || format!("clone image {image} for {instance}");
        let source = match open_subvolume(&self.images, image.to_string().as_bytes()) {
            Err(Errno::ENOENT) => return Err(Error::Missing(format!("image {image}"))),
            other => other.map_err(|errno| Error::os(doing(), errno.into()))?,
        };
        self.check_room(doing)?;
        let name = instance.to_string();
        let made = match self.quota {
            QuotaMode::Simple => {
                let qgroup = qgroup_of(instance);
                self.cloning.lock().unwrap_or_else(PoisonError::into_inner).insert(qgroup);
                let made = btrfs::create_qgroup(self.pool.as_fd(), qgroup)
                    .and_then(|()| btrfs::limit_qgroup(self.pool.as_fd(), qgroup, quota.bytes(), self.quota))
                    .and_then(|()| btrfs::snapshot(&source, &self.roots, &name, Some(qgroup)));
                self.cloning.lock().unwrap_or_else(PoisonError::into_inner).remove(&qgroup);
                made
            }
            QuotaMode::Full => btrfs::snapshot(&source, &self.roots, &name, None),
        };
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(|source| Error::os(doing(), source)),
        }
    }

    fn limit(&self, qgroup: u64, instance: InstanceId, quota: Mib) -> Result<()> {
        btrfs::limit_qgroup(self.pool.as_fd(), qgroup, quota.bytes(), self.quota)
            .map_err(|source| Error::os(format!("set the quota of {instance} to {quota}"), source))
    }

    /// The quota group a root's limit hangs on.
    fn qgroup(&self, instance: InstanceId) -> Result<u64> {
        let missing = || Error::Missing(format!("root of {instance}"));
        if self.quota == QuotaMode::Simple {
            let there = self.roots_path.join(instance.to_string()).exists();
            return there.then(|| qgroup_of(instance)).ok_or_else(missing);
        }
        match open_subvolume(&self.roots, instance.to_string().as_bytes()) {
            Err(Errno::ENOENT) => Err(missing()),
            // A subvolume's own group has its number.
            opened => opened
                .map_err(io::Error::from)
                .and_then(|opened| btrfs::id_of(opened.as_fd()))
                .map_err(|source| Error::os(format!("find the quota group of {instance}"), source)),
        }
    }
}

// === impl Datasets ===

impl Datasets for LinuxDatasets {
    fn import(&self, image: ImageId, sha256: &str, compression: Compression, source: &mut dyn Read) -> Result<()> {
        let name = image.to_string();
        if self.images_path.join(&name).exists() {
            return Ok(());
        }
        let staging = format!(".importing-{name}-{}", self.imports.fetch_add(1, Ordering::Relaxed));
        btrfs::create(&self.images, &staging)
            .map_err(|source| Error::os(format!("create subvolume `{staging}`"), source))?;
        let done = self.unpack(&staging, sha256, compression, source).and_then(|()| self.publish(&staging, &name));
        if let Err(error) = done {
            // The first error is the one to tell; what could not be removed now is swept at the next start.
            if let Err(also) = self.destroy(&self.images, &staging) {
                tracing::warn!(error = %also, staging, "an import left its staging subvolume");
            }
            // Another import of the same image may have been faster.
            return if self.images_path.join(&name).exists() { Ok(()) } else { Err(error) };
        }
        Ok(())
    }

    fn images(&self) -> Result<Vec<ImageId>> {
        ids(&self.images_path)
    }

    fn remove_image(&self, image: ImageId) -> Result<()> {
        let name = image.to_string();
        let own = match open_subvolume(&self.images, name.as_bytes()) {
            Ok(opened) if self.quota == QuotaMode::Full => btrfs::id_of(opened.as_fd()).ok(),
            _ => None,
        };
        self.destroy(&self.images, &name)?;
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner).extend(own);
        Ok(())
    }

    fn clone_image(&self, image: ImageId, instance: InstanceId, quota: Mib) -> Result<PathBuf> {
        let path = self.roots_path.join(instance.to_string());
        if !path.exists() {
            self.snapshot(image, instance, quota)?;
        }
        if self.quota == QuotaMode::Full {
            // Also when the root was there: we may have been killed before this line.
            self.limit(self.qgroup(instance)?, instance, quota)?;
        }
        Ok(path)
    }

    fn set_quota(&self, instance: InstanceId, quota: Mib) -> Result<()> {
        let qgroup = self.qgroup(instance)?;
        // What was written a moment ago is counted once it is on its way to the disk.
        syncfs(&self.pool).map_err(|errno| Error::os("write out the pool", errno.into()))?;
        room_for(self.used_bytes(instance)?, quota)?;
        self.limit(qgroup, instance, quota)
    }

    fn roots(&self) -> Result<Vec<InstanceId>> {
        ids(&self.roots_path)
    }

    fn used_bytes(&self, instance: InstanceId) -> Result<u64> {
        let qgroup = self.qgroup(instance)?;
        let found = btrfs::qgroups(self.pool.as_fd(), qgroup, qgroup)
            .map_err(|source| Error::os(format!("read the use of {instance}"), source))?;
        match found.first() {
            Some((_, bytes)) => Ok(*bytes),
            None => Err(Error::Missing(format!("root of {instance}"))),
        }
    }

    fn used_by_roots(&self) -> Result<BTreeMap<InstanceId, u64>> {
        let roots = self.roots()?;
        let mut used = BTreeMap::new();
        if self.quota == QuotaMode::Full {
            for instance in roots {
                match self.used_bytes(instance) {
                    // Gone between the two looks.
                    Err(Error::Missing(_)) => {}
                    found => drop(used.insert(instance, found?)),
                }
            }
            return Ok(used);
        }
        let all = btrfs::qgroups(self.pool.as_fd(), QGROUP_LEVEL << 48, (QGROUP_LEVEL << 48) | ((1 << 48) - 1))
            .map_err(|source| Error::os("read the use of the pool", source))?;
        let all: BTreeMap<u64, u64> = all.into_iter().collect();
        used.extend(roots.into_iter().filter_map(|root| Some((root, *all.get(&qgroup_of(root))?))));
        Ok(used)
    }

    fn remove_root(&self, instance: InstanceId) -> Result<()> {
        let qgroup = match self.qgroup(instance) {
            Err(Error::Missing(_)) => None,
            found => Some(found?),
        };
        if let Some(qgroup) = qgroup {
            // Taking a nested subvolume out of a root writes to that root, which may have no byte left of its quota.
            btrfs::lift_limit(self.pool.as_fd(), qgroup, self.quota)
                .map_err(|source| Error::os(format!("lift the quota of {instance}"), source))?;
        }
        self.destroy(&self.roots, &instance.to_string())?;
        if self.quota == QuotaMode::Full {
            self.leaving.lock().unwrap_or_else(PoisonError::into_inner).extend(qgroup);
        }
        self.collect_qgroups()
    }

    fn pool(&self) -> Result<PoolUsage> {
        let found = fstatvfs(&self.pool).map_err(|errno| Error::os("read the size of the pool", errno.into()))?;
        let unit = found.fragment_size();
        let (size, free) = (found.blocks() * unit, found.blocks_free() * unit);
        Ok(PoolUsage { size_bytes: size, used_bytes: size.saturating_sub(free) })
    }
}

/// The quota group of a root: our level, and the last 48 bits of the instance's id, which are random.
fn qgroup_of(instance: InstanceId) -> u64 {
    let low = instance.uuid().as_u128() & ((1 << 48) - 1);
    (QGROUP_LEVEL << 48) | u64::try_from(low).expect("48 bits fit")
}

/// Opens a subvolume beneath `dir`, following no link.
fn open_subvolume(dir: &File, path: &[u8]) -> nix::Result<File> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    openat2(dir, path, OpenHow::new().flags(flags).resolve(resolve)).map(File::from)
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let list = || -> io::Result<Vec<String>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    list().map_err(|source| Error::os(format!("list `{}`", dir.display()), source))
}

fn ids<T: FromStr + Ord>(dir: &Path) -> Result<Vec<T>> {
    let mut ids: Vec<T> = names(dir)?.iter().filter_map(|name| name.parse().ok()).collect();
    ids.sort_unstable();
    Ok(ids)
}
