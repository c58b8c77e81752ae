//! The btrfs ioctls that datasets need, each as one safe function over an open directory.
//!
//! Numbers and layouts are those of the kernel's `linux/btrfs.h` and `linux/btrfs_tree.h`, which are a stable interface.
//! All structures here are plain integers and byte arrays, so any bit pattern the kernel leaves in them is valid.

#![expect(unsafe_code, reason = "ioctls take pointers; each call passes structures of its own that outlive it")]

use std::{
    ffi::OsStr,
    fs::File,
    io,
    mem::size_of,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
};

use nix::errno::Errno;

/// Inode number of every subvolume's root, and number of the first subvolume.
pub(super) const FIRST_FREE_OBJECTID: u64 = 256;
/// The tree of trees, where references between subvolumes are.
const ROOT_TREE: u64 = 1;
/// The tree of quota groups.
const QUOTA_TREE: u64 = 8;
const ROOT_ITEM_KEY: u32 = 132;
/// Where a root item counts references to it: after an inode and seven words.
const ROOT_ITEM_REFS: usize = 160 + 7 * 8;
const ROOT_REF_KEY: u32 = 156;
const QGROUP_STATUS_KEY: u32 = 240;
const QGROUP_INFO_KEY: u32 = 242;
const QGROUP_STATUS_INCONSISTENT: u64 = 1 << 2;
const QGROUP_STATUS_SIMPLE: u64 = 1 << 3;
const SUBVOL_RDONLY: u64 = 1 << 1;
const SUBVOL_QGROUP_INHERIT: u64 = 1 << 2;
const SUBVOL_SPEC_BY_ID: u64 = 1 << 4;
const QGROUP_LIMIT_MAX_RFER: u64 = 1;
const QGROUP_LIMIT_MAX_EXCL: u64 = 1 << 1;
const QUOTA_ENABLE: u64 = 1;
const QUOTA_ENABLE_SIMPLE: u64 = 4;
const NAME_MAX: usize = 255;
/// Bytes of one tree search's answer.
const SEARCH_BYTES: usize = 16 * 1024;

#[repr(C)]
struct VolArgs {
    fd: i64,
    transid: u64,
    flags: u64,
    inherit_size: u64,
    inherit: u64,
    unused: [u64; 2],
    name: [u8; 4040],
}

#[repr(C)]
struct Inherit {
    flags: u64,
    num_qgroups: u64,
    num_ref_copies: u64,
    num_excl_copies: u64,
    limit: Limit,
    qgroup: u64,
}

#[repr(C)]
#[derive(Default)]
struct Limit {
    flags: u64,
    max_rfer: u64,
    max_excl: u64,
    rsv_rfer: u64,
    rsv_excl: u64,
}

#[repr(C)]
struct QgroupLimit {
    qgroup: u64,
    limit: Limit,
}

#[repr(C)]
struct QgroupCreate {
    create: u64,
    qgroup: u64,
}

#[repr(C)]
struct QuotaCtl {
    cmd: u64,
    status: u64,
}

#[repr(C)]
struct QuotaRescan {
    flags: u64,
    progress: u64,
    reserved: [u64; 6],
}

#[repr(C)]
struct InoLookup {
    tree: u64,
    objectid: u64,
    name: [u8; 4080],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SearchKey {
    tree: u64,
    min_objectid: u64,
    max_objectid: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_type: u32,
    max_type: u32,
    nr_items: u32,
    unused: u32,
    unused_more: [u64; 4],
}

/// The fixed head of a tree search, and the size the ioctl's number is made of.
#[repr(C)]
struct SearchHead {
    key: SearchKey,
    buf_size: u64,
}

#[repr(C)]
struct Search {
    head: SearchHead,
    buf: [u8; SEARCH_BYTES],
}

mod raw {
    use super::{InoLookup, QgroupCreate, QgroupLimit, QuotaCtl, QuotaRescan, Search, SearchHead, VolArgs};

    nix::ioctl_write_ptr!(snap_create_v2, 0x94, 23, VolArgs);
    nix::ioctl_write_ptr!(subvol_create_v2, 0x94, 24, VolArgs);
    nix::ioctl_read!(subvol_getflags, 0x94, 25, u64);
    nix::ioctl_write_ptr!(subvol_setflags, 0x94, 26, u64);
    nix::ioctl_readwrite!(quota_ctl, 0x94, 40, QuotaCtl);
    nix::ioctl_write_ptr!(qgroup_create, 0x94, 42, QgroupCreate);
    nix::ioctl_read!(qgroup_limit, 0x94, 43, QgroupLimit);
    nix::ioctl_write_ptr!(quota_rescan, 0x94, 44, QuotaRescan);
    nix::ioctl_readwrite!(ino_lookup, 0x94, 18, InoLookup);
    nix::ioctl_write_ptr!(snap_destroy_v2, 0x94, 63, VolArgs);
    nix::ioctl_write_ptr_bad!(tree_search_v2, nix::request_code_readwrite!(0x94, 17, size_of::<SearchHead>()), Search);
}

/// One found item of a tree.
struct Item {
    objectid: u64,
    kind: u32,
    offset: u64,
    data: Vec<u8>,
}

/// A subvolume directly inside another.
#[derive(Debug)]
pub(super) struct Child {
    /// Where it hangs, from the root of its parent.
    pub(super) path: Vec<u8>,
}

/// How the pool counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QuotaMode {
    /// Whoever allocated an extent owns it: cheap, and what an image holds is not counted to its clones.
    Simple,
    /// Shared and exclusive extents are tracked.
    Full,
}

/// Makes an empty subvolume `name` in `dir`.
pub(super) fn create(dir: &File, name: &str) -> io::Result<()> {
    let args = vol_args(name)?;
    // SAFETY: `args` outlives the call and has the layout the kernel reads.
    unsafe { raw::subvol_create_v2(dir.as_raw_fd(), &*args) }?;
    Ok(())
}

/// Makes a writable snapshot of `source` as `name` in `dir`, born a member of quota group `qgroup` if one is given.
pub(super) fn snapshot(source: &File, dir: &File, name: &str, qgroup: Option<u64>) -> io::Result<()> {
    let inherit = Inherit {
        flags: 0,
        num_qgroups: 1,
        num_ref_copies: 0,
        num_excl_copies: 0,
        limit: Limit::default(),
        qgroup: qgroup.unwrap_or_default(),
    };
    let mut args = vol_args(name)?;
    args.fd = i64::from(source.as_raw_fd());
    if qgroup.is_some() {
        args.flags = SUBVOL_QGROUP_INHERIT;
        args.inherit_size = size_of::<Inherit>() as u64;
        args.inherit = &raw const inherit as u64;
    }
    // SAFETY: `args` and `inherit`, to which it points, outlive the call and have the layouts the kernel reads.
    unsafe { raw::snap_create_v2(dir.as_raw_fd(), &*args) }?;
    Ok(())
}

/// Destroys the subvolume with `id`, which must hold no other; `pool` is any directory of the file system.
pub(super) fn destroy(pool: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let mut args = vol_args("")?;
    args.flags = SUBVOL_SPEC_BY_ID;
    args.name[..8].copy_from_slice(&id.to_ne_bytes());
    // SAFETY: `args` outlives the call and has the layout the kernel reads.
    unsafe { raw::snap_destroy_v2(pool.as_raw_fd(), &*args) }?;
    Ok(())
}

/// Makes a subvolume read-only or writable.
pub(super) fn set_read_only(subvolume: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let mut flags = 0_u64;
    // SAFETY: `flags` outlives the call and is the one word the kernel writes.
    unsafe { raw::subvol_getflags(subvolume.as_raw_fd(), &mut flags) }?;
    let wanted = if read_only { flags | SUBVOL_RDONLY } else { flags & !SUBVOL_RDONLY };
    if wanted != flags {
        // SAFETY: `wanted` outlives the call and is the one word the kernel reads.
        unsafe { raw::subvol_setflags(subvolume.as_raw_fd(), &wanted) }?;
    }
    Ok(())
}

/// Id of the subvolume that holds `dir`.
pub(super) fn id_of(dir: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(lookup(dir, 0, FIRST_FREE_OBJECTID)?.0)
}

/// Subvolumes directly inside the subvolume with `id`.
pub(super) fn children(pool: BorrowedFd<'_>, id: u64) -> io::Result<Vec<Child>> {
    let mut children = Vec::new();
    for item in search(pool, ROOT_TREE, (id, ROOT_REF_KEY), (id, ROOT_REF_KEY))? {
        if item.objectid != id || item.kind != ROOT_REF_KEY || item.data.len() < 18 {
            continue;
        }
        // Layout: directory's inode (8 bytes), sequence (8), length of the name (2), name; little-endian.
        let (_, mut path) = lookup(pool, id, word(&item.data, 0))?;
        path.extend_from_slice(&item.data[18..]);
        children.push(Child { path });
    }
    Ok(children)
}

/// Whether a subvolume with `id` is there, and not on its way out.
pub(super) fn lives(pool: BorrowedFd<'_>, id: u64) -> io::Result<bool> {
    let found = search(pool, ROOT_TREE, (id, ROOT_ITEM_KEY), (id, ROOT_ITEM_KEY))?;
    let referenced = |data: &[u8]| data.get(ROOT_ITEM_REFS..ROOT_ITEM_REFS + 4).is_none_or(|refs| refs != [0; 4]);
    Ok(found.iter().any(|item| item.objectid == id && item.kind == ROOT_ITEM_KEY && referenced(&item.data)))
}

/// Turns quotas on where they are off, simple ones where the kernel has them, and says how the pool counts. Full quotas that
/// lost count are counted anew: until that is done, nothing is limited.
pub(super) fn enable_quota(pool: BorrowedFd<'_>) -> io::Result<QuotaMode> {
    for cmd in [QUOTA_ENABLE_SIMPLE, QUOTA_ENABLE] {
        let mut args = QuotaCtl { cmd, status: 0 };
        // SAFETY: `args` outlives the call and has the layout the kernel reads and writes.
        match unsafe { raw::quota_ctl(pool.as_raw_fd(), &mut args) } {
            Ok(_) | Err(Errno::EEXIST) => break,
            Err(Errno::EINVAL | Errno::ENOTTY | Errno::EOPNOTSUPP) if cmd == QUOTA_ENABLE_SIMPLE => {}
            Err(error) => return Err(error.into()),
        }
    }
    let status = search(pool, QUOTA_TREE, (0, QGROUP_STATUS_KEY), (0, QGROUP_STATUS_KEY))?;
    let flags = status.first().filter(|item| item.data.len() >= 24).map_or(0, |item| word(&item.data, 16));
    if flags & QGROUP_STATUS_SIMPLE != 0 {
        return Ok(QuotaMode::Simple);
    }
    if flags & QGROUP_STATUS_INCONSISTENT != 0 {
        let args = QuotaRescan { flags: 0, progress: 0, reserved: [0; 6] };
        // SAFETY: `args` outlives the call and has the layout the kernel reads.
        match unsafe { raw::quota_rescan(pool.as_raw_fd(), &args) } {
            // One that was begun earlier goes on.
            Ok(_) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(QuotaMode::Full)
}

/// Makes a quota group; one that is there is left alone.
pub(super) fn create_qgroup(pool: BorrowedFd<'_>, qgroup: u64) -> io::Result<()> {
    let args = QgroupCreate { create: 1, qgroup };
    // SAFETY: `args` outlives the call and has the layout the kernel reads.
    match unsafe { raw::qgroup_create(pool.as_raw_fd(), &args) } {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a quota group; false while something is still counted to it.
pub(super) fn remove_qgroup(pool: BorrowedFd<'_>, qgroup: u64) -> io::Result<bool> {
    let args = QgroupCreate { create: 0, qgroup };
    // SAFETY: `args` outlives the call and has the layout the kernel reads.
    match unsafe { raw::qgroup_create(pool.as_raw_fd(), &args) } {
        Ok(_) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::EBUSY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Sets how much may be counted to a quota group.
pub(super) fn limit_qgroup(pool: BorrowedFd<'_>, qgroup: u64, bytes: u64, mode: QuotaMode) -> io::Result<()> {
    let limit = match mode {
        QuotaMode::Simple => Limit { flags: QGROUP_LIMIT_MAX_RFER, max_rfer: bytes, ..Limit::default() },
        // What is shared with the image would count to the referenced bytes; only the instance's own shall.
        QuotaMode::Full => Limit { flags: QGROUP_LIMIT_MAX_EXCL, max_excl: bytes, ..Limit::default() },
    };
    let mut args = QgroupLimit { qgroup, limit };
    // SAFETY: `args` outlives the call and has the layout the kernel reads.
    unsafe { raw::qgroup_limit(pool.as_raw_fd(), &mut args) }?;
    Ok(())
}

/// Takes the limit off a quota group; one that is gone has none.
pub(super) fn lift_limit(pool: BorrowedFd<'_>, qgroup: u64, mode: QuotaMode) -> io::Result<()> {
    // The largest number is how the kernel is told "none".
    match limit_qgroup(pool, qgroup, u64::MAX, mode) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(()),
        other => other,
    }
}

/// Quota groups of one level, each with the bytes counted to it alone.
pub(super) fn qgroups(pool: BorrowedFd<'_>, from: u64, to: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    for item in search_range(pool, QUOTA_TREE, (0, QGROUP_INFO_KEY, from), (0, QGROUP_INFO_KEY, to))? {
        if item.kind == QGROUP_INFO_KEY && item.data.len() >= 40 {
            // Layout: generation, referenced, referenced compressed, exclusive, exclusive compressed.
            found.push((item.offset, word(&item.data, 24)));
        }
    }
    Ok(found)
}

fn vol_args(name: &str) -> io::Result<Box<VolArgs>> {
    if name.len() > NAME_MAX || OsStr::new(name).as_bytes().contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut args =
        Box::new(VolArgs { fd: 0, transid: 0, flags: 0, inherit_size: 0, inherit: 0, unused: [0; 2], name: [0; 4040] });
    args.name[..name.len()].copy_from_slice(name.as_bytes());
    Ok(args)
}

/// Tree of `objectid` (the caller's own when `tree` is 0), and its path with a slash at the end.
fn lookup(dir: BorrowedFd<'_>, tree: u64, objectid: u64) -> io::Result<(u64, Vec<u8>)> {
    let mut args = Box::new(InoLookup { tree, objectid, name: [0; 4080] });
    // SAFETY: `args` outlives the call and has the layout the kernel reads and writes.
    unsafe { raw::ino_lookup(dir.as_raw_fd(), &mut *args) }?;
    let end = args.name.iter().position(|byte| *byte == 0).unwrap_or(args.name.len());
    Ok((args.tree, args.name[..end].to_vec()))
}

fn search(dir: BorrowedFd<'_>, tree: u64, from: (u64, u32), to: (u64, u32)) -> io::Result<Vec<Item>> {
    search_range(dir, tree, (from.0, from.1, 0), (to.0, to.1, u64::MAX))
}

/// Items from key `from` to key `to`; all of one objectid and type, so that the next key is one more in the offset.
fn search_range(dir: BorrowedFd<'_>, tree: u64, from: (u64, u32, u64), to: (u64, u32, u64)) -> io::Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut key = SearchKey {
        tree,
        min_objectid: from.0,
        max_objectid: to.0,
        min_offset: from.2,
        max_offset: to.2,
        min_transid: 0,
        max_transid: u64::MAX,
        min_type: from.1,
        max_type: to.1,
        nr_items: 0,
        unused: 0,
        unused_more: [0; 4],
    };
    loop {
        key.nr_items = u32::MAX;
        let head = SearchHead { key, buf_size: SEARCH_BYTES as u64 };
        let mut search = Box::new(Search { head, buf: [0; SEARCH_BYTES] });
        let pointer = &raw mut *search;
        // SAFETY: the kernel reads the head and writes head and buffer, at most `buf_size` bytes of it; `search` is
        // that large, outlives the call, and the pointer was made from an exclusive borrow.
        unsafe { raw::tree_search_v2(dir.as_fd().as_raw_fd(), pointer) }?;
        let found = search.head.key.nr_items;
        if found == 0 {
            return Ok(items);
        }
        let mut at = 0_usize;
        for _ in 0..found {
            // Layout of an item's head: transid (8 bytes), objectid (8), offset (8), type (4), length (4).
            if at + 32 > SEARCH_BYTES {
                break;
            }
            let head = &search.buf[at..at + 32];
            let length = u32::from_ne_bytes([head[28], head[29], head[30], head[31]]) as usize;
            let kind = u32::from_ne_bytes([head[24], head[25], head[26], head[27]]);
            let end = (at + 32 + length).min(SEARCH_BYTES);
            items.push(Item {
                objectid: word(head, 8),
                kind,
                offset: word(head, 16),
                data: search.buf[at + 32..end].to_vec(),
            });
            at = end;
        }
        let Some(next) = items.last().and_then(|item| item.offset.checked_add(1)) else { return Ok(items) };
        if next > key.max_offset {
            return Ok(items);
        }
        key.min_offset = next;
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
