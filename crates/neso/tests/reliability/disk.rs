//! A disk that can be slow, and that loses its power: what was not flushed to it is gone.
//!
//! ```text
//!  ext4 ──► /dev/loopN ──► FUSE file ──► this process ──┬─ writes: kept aside, in memory
//!  (page cache, journal)                                └─ flush: what was kept aside goes to the image file, which is synced; then it is acknowledged
//! ```
//! Nobody above knows: to the kernel it is a block device with a write cache, and everything that is to survive has to be flushed to it, by ext4's journal or by
//! whoever calls fsync. Losing the power ([`Disk::lose_power`]) means that from one instant on nothing is acknowledged any more, and that what was kept aside
//! is dropped; the next mount sees exactly what had been flushed. Killing processes alone would not do: the page cache of a machine survives that.
//!
//! The protocol is the kernel's, spoken without a library: of a file system with one file that is there already little is asked.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};

use crate::fleet::Machine;

/// Size of a machine's disk, bytes.
const DISK_BYTES: u64 = 768 << 20;
/// What is kept aside in pieces of, bytes.
const BLOCK: usize = 4_096;
/// Largest write the kernel may send, bytes; its buffer holds a head beside.
const WRITE_MAX: u32 = 128 << 10;
const BUFFER: usize = WRITE_MAX as usize + BLOCK;
/// Numbers of the directory and of the file in it.
const ROOT: u64 = 1;
const NODE: u64 = 2;
/// The file's name.
const NAME: &str = "disk";
/// What is known of both stays true, seconds.
const VALID_SECONDS: u64 = 86_400;
/// Bytes of a question's head and of an answer's.
const QUESTION_HEAD: usize = 40;
const ANSWER_HEAD: usize = 16;

/// See the head of this file.
pub(crate) struct Disk {
    /// Where the file system with the one file is mounted.
    directory: PathBuf,
    /// The loop device over that file.
    pub(crate) device: String,
    shared: Arc<Shared>,
}

struct Shared {
    platter: Mutex<Platter>,
    /// How much longer a flush takes, milliseconds.
    slow_ms: AtomicU64,
    /// Flushes are acknowledged and not done.
    lies: AtomicBool,
    size: u64,
}

/// What is on the disk, and what is only in its cache.
struct Platter {
    image: File,
    unflushed: BTreeMap<u64, Box<[u8; BLOCK]>>,
    /// Without power nothing is done.
    is_off: bool,
}

impl Disk {
    /// The disk that `image` holds, which is made with a file system on it if it is not there; its file system of one file is mounted at `directory`.
    pub(crate) fn open(image: &Path, directory: &Path, bytes: u64) -> Self {
        let is_new = !image.exists();
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(image);
        let file = file.expect("an image file");
        file.set_len(bytes).expect("an image file");
        fs::create_dir_all(directory).expect("a directory");
        let shared = Arc::new(Shared {
            platter: Mutex::new(Platter { image: file, unflushed: BTreeMap::new(), is_off: false }),
            slow_ms: AtomicU64::new(0),
            lies: AtomicBool::new(false),
            size: bytes,
        });
        let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("neso-disk"), directory, Some("fuse"), flags, Some(options.as_str())).expect("FUSE can be mounted");
        let served = shared.clone();
        // It ends when the file system is unmounted everywhere, or with this process.
        base::task::thread("disk", move || serve(&Arc::new(fuse), &served)).expect("a thread");
        let device = run("losetup", &["--find", "--show", &directory.join(NAME).to_string_lossy()]);
        if is_new {
            run("mkfs.ext4", &["-q", "-F", &device]);
        }
        Self { directory: directory.to_owned(), device, shared }
    }

    /// From now on each flush takes `longer`.
    pub(crate) fn slow_down(&self, longer: Duration) {
        self.shared.slow_ms.store(u64::try_from(longer.as_millis()).unwrap_or(0), Ordering::Relaxed);
    }

    /// From now on flushes are acknowledged and not done: whoever relies on them loses what they say they keep.
    pub(crate) fn lie(&self) {
        self.shared.lies.store(true, Ordering::Relaxed);
    }

    /// The power goes: what was not flushed is lost, and nothing is acknowledged any more.
    pub(crate) fn lose_power(&self) {
        let mut platter = self.shared.platter();
        platter.is_off = true;
        platter.unflushed.clear();
    }

    /// How much would be lost now, bytes.
    pub(crate) fn unflushed(&self) -> usize {
        self.shared.platter().unflushed.len() * BLOCK
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever still has it mounted gets errors from now on, and the rest goes with them.
        self.lose_power();
        self.slow_down(Duration::ZERO);
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
    }
}

impl Shared {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Platter {
    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.image.read_exact_at(&mut bytes, offset)?;
        for (number, from, into) in pieces(offset, length) {
            if let Some(block) = self.unflushed.get(&number) {
                bytes[into.clone()].copy_from_slice(&block[from..from + into.len()]);
            }
        }
        Ok(bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        for (number, from, into) in pieces(offset, bytes.len()) {
            if !self.unflushed.contains_key(&number) {
                let mut block = Box::new([0; BLOCK]);
                self.image.read_exact_at(&mut block[..], number * BLOCK as u64)?;
                self.unflushed.insert(number, block);
            }
            let block = self.unflushed.get_mut(&number).expect("it was just put there");
            block[from..from + into.len()].copy_from_slice(&bytes[into]);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        for (number, block) in &self.unflushed {
            self.image.write_all_at(&block[..], number * BLOCK as u64)?;
        }
        self.unflushed.clear();
        self.image.sync_data()
    }
}

/// Of a span of the disk: each block's number, where in it the span goes on, and which part of the span that is.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let from = usize::try_from(at % BLOCK as u64).expect("less than a block");
        let part = (BLOCK - from).min(length - done);
        let piece = (at / BLOCK as u64, from, done..done + part);
        done += part;
        (part > 0).then_some(piece)
    })
}

/// Answers the kernel until the file system is gone.
fn serve(fuse: &Arc<File>, shared: &Arc<Shared>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match (&**fuse).read(&mut buffer) {
            Ok(length) => length,
            // A signal, or a question that was taken back.
            Err(error)
                if [Errno::EINTR, Errno::ENOENT].iter().any(|errno| error.raw_os_error() == Some(*errno as i32)) =>
            {
                continue;
            }
            Err(_) => return,
        };
        let Some(question) = Question::read(&buffer[..length]) else { return };
        let slow_ms = shared.slow_ms.load(Ordering::Relaxed);
        let Some(outcome) = answer(&question, shared) else { continue };
        let (bytes, fuse) = (framed(question.unique, outcome), fuse.clone());
        // Who asked is gone, if it is not taken.
        let say = move || drop((&*fuse).write(&bytes));
        match question.operation {
            operation::FSYNC if slow_ms > 0 => {
                let later = move || {
                    std::thread::sleep(Duration::from_millis(slow_ms));
                    say();
                };
                base::task::thread("slow flush", later).map(drop).expect("a thread");
            }
            _ => say(),
        }
    }
}

/// The kernel's numbers.
mod operation {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const INIT: u32 = 26;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const BATCH_FORGET: u32 = 42;
}

/// What the kernel asks.
struct Question<'a> {
    operation: u32,
    unique: u64,
    node: u64,
    body: &'a [u8],
}

impl<'a> Question<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (operation, unique, node) = (number32(bytes, 4)?, number64(bytes, 8)?, number64(bytes, 16)?);
        Some(Self { operation, unique, node, body: bytes.get(QUESTION_HEAD..)? })
    }
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn number64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// `None` where no answer is wanted.
fn answer(question: &Question<'_>, shared: &Shared) -> Option<Result<Vec<u8>, Errno>> {
    let Question { operation, node, body, .. } = *question;
    let span = || Some((number64(body, 8)?, usize::try_from(number32(body, 16)?).ok()?));
    let powered = || Some(shared.platter()).filter(|platter| !platter.is_off).ok_or(Errno::EIO);
    let failed = |_: io::Error| Errno::EIO;
    Some(match operation {
        operation::FORGET | operation::BATCH_FORGET | operation::INTERRUPT => return None,
        operation::INIT => Ok(introduction()),
        operation::LOOKUP if body.strip_suffix(b"\0") == Some(NAME.as_bytes()) => {
            let mut entry = Vec::new();
            for number in [NODE, 0, VALID_SECONDS, VALID_SECONDS, 0] {
                entry.extend(number.to_le_bytes());
            }
            entry.extend(attributes(NODE, shared.size));
            Ok(entry)
        }
        operation::LOOKUP => Err(Errno::ENOENT),
        operation::GETATTR => {
            let mut all = Vec::new();
            for number in [VALID_SECONDS, 0] {
                all.extend(number.to_le_bytes());
            }
            all.extend(attributes(node, shared.size));
            Ok(all)
        }
        operation::OPEN => Ok(vec![0; 16]),
        operation::READ => span().ok_or(Errno::EINVAL).and_then(|(offset, length)| {
            let left = usize::try_from(shared.size.saturating_sub(offset)).unwrap_or(usize::MAX);
            powered()?.read(offset, length.min(left)).map_err(failed)
        }),
        operation::WRITE => span().ok_or(Errno::EINVAL).and_then(|(offset, length)| {
            let bytes = body.get(40..40 + length).ok_or(Errno::EINVAL)?;
            powered()?.write(offset, bytes).map_err(failed)?;
            Ok(u64::try_from(length).unwrap_or(0).to_le_bytes().to_vec())
        }),
        operation::FSYNC if shared.lies.load(Ordering::Relaxed) => powered().map(|_| Vec::new()),
        operation::FSYNC => powered().and_then(|mut platter| platter.flush().map_err(failed)).map(|()| Vec::new()),
        operation::RELEASE | operation::DESTROY => Ok(Vec::new()),
        _ => Err(Errno::ENOSYS),
    })
}

/// Which protocol we speak, and how much may come at once.
fn introduction() -> Vec<u8> {
    const VERSION: [u32; 2] = [7, 31];
    const BIG_WRITES: u32 = 1 << 5;
    let mut all = Vec::new();
    for number in [VERSION[0], VERSION[1], WRITE_MAX, BIG_WRITES, 0, WRITE_MAX, 1] {
        all.extend(number.to_le_bytes());
    }
    all.resize(64, 0);
    all
}

fn attributes(node: u64, size: u64) -> Vec<u8> {
    const DIRECTORY: u32 = 0o040_700;
    const FILE: u32 = 0o100_600;
    let (mode, size) = if node == ROOT { (DIRECTORY, 0) } else { (FILE, size) };
    let mut all = Vec::new();
    for number in [node, size, size / 512, 0, 0, 0] {
        all.extend(number.to_le_bytes());
    }
    for number in [0, 0, 0, mode, 1, 0, 0, 0, 4_096, 0_u32] {
        all.extend(number.to_le_bytes());
    }
    all
}

fn framed(unique: u64, outcome: Result<Vec<u8>, Errno>) -> Vec<u8> {
    let (error, body) = outcome.map_or_else(|errno| (-(errno as i32), Vec::new()), |body| (0, body));
    let length = u32::try_from(ANSWER_HEAD + body.len()).expect("an answer is small");
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(error.to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.extend(body);
    bytes
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A machine's disks: of its headnode and member, and of its node. Its instances have another.
pub(crate) struct Disks {
    pub(crate) headnode: Disk,
    pub(crate) node: Disk,
}

impl Disks {
    pub(crate) fn open(machine: &Machine, images: &Path, incarnation: usize) -> Self {
        let disk = |of: &str| {
            let name = format!("{}-{of}", machine.name);
            Disk::open(&images.join(&name), &images.join(format!("{name}-fuse-{incarnation}")), DISK_BYTES)
        };
        Self { headnode: disk("headnode"), node: disk("node") }
    }

    /// Mounts them on the machine, and there alone.
    pub(crate) fn mount(&self, machine: &Machine) {
        let settings = machine.settings();
        for (disk, directory) in [(&self.headnode, settings.headnode_dir()), (&self.node, settings.node_dir())] {
            if !machine.space.output(&format!("mountpoint -q {}", directory.display())).status.success() {
                fs::create_dir_all(&directory).expect("a directory");
                machine.space.run(&format!("mount {} {}", disk.device, directory.display()));
            }
        }
    }

    /// How much was lost by it, bytes.
    pub(crate) fn lose_power(&self) -> usize {
        let lost = self.headnode.unflushed() + self.node.unflushed();
        self.headnode.lose_power();
        self.node.lose_power();
        lost
    }
}

/// What a disk keeps and what it loses, tried on one.
pub(crate) mod trial {
    use super::*;

    pub(crate) fn run() {
        let base = tempfile::Builder::new().prefix("neso-disk-").tempdir().expect("a directory");
        let (image, at, files) = (base.path().join("image"), base.path().join("fuse"), base.path().join("files"));
        fs::create_dir_all(&files).expect("a directory");
        let disk = Disk::open(&image, &at, 32 << 20);
        super::run("mount", &[&disk.device, &files.to_string_lossy()]);
        let kept = File::create(files.join("kept")).expect("a file");
        (&kept).write_all(b"flushed").expect("it is written");
        kept.sync_all().expect("it is flushed");
        File::open(&files).expect("the directory").sync_all().expect("so is its entry");
        fs::write(files.join("lost"), b"not flushed").expect("it is written");
        assert_eq!(fs::read(files.join("lost")).expect("it is there"), b"not flushed");
        disk.lose_power();
        assert!(kept.sync_all().is_err() || (&kept).write_all(b"more").and_then(|()| kept.sync_all()).is_err());
        drop(kept);
        super::run("umount", &["-l", &files.to_string_lossy()]);
        drop(disk);
        let disk = Disk::open(&image, &base.path().join("again"), 32 << 20);
        super::run("mount", &[&disk.device, &files.to_string_lossy()]);
        assert_eq!(fs::read(files.join("kept")).expect("it survived"), b"flushed");
        assert!(!files.join("lost").exists(), "nobody flushed it");
        super::run("umount", &[&files.to_string_lossy()]);
        println!("test disk::what_is_flushed_survives_and_nothing_else ... ok");
    }
}
