//! Control groups of zones, on cgroup v2, v1 and the hybrid of both.
//!
//! libcontainer can make control groups itself, but on v1 it makes one in every hierarchy the host has mounted, each with
//! an `mkdir` and a migration under a machine-wide lock. A zone needs three controllers, so we make exactly those groups,
//! and a process moves *itself* in, which takes no global lock:
//!
//! ```text
//! <memory>/<parent>/zone-<id>    <cpu>/<parent>/zone-<id>    <pids>/<parent>/zone-<id>      v1
//! <unified>/<parent>/zone-<id>   the same three on v2, and always: kill, "populated", CPU time used
//! <unified>/<parent>/supervisors every supervisor, so that stopping the agent's unit never reaches one
//! ```
//! Each root is found in the mount table, never assumed.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use model::{meters::ZoneMeters, target::Limits};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::{Deserialize, Serialize};

use super::meters::{self, Places};
use crate::error::{Error, Result};

/// Period of the CPU ceiling, microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// `cpu.shares` of v1 that stands for 100 of ours, an ordinary instance.
const V1_SHARES_OF_ORDINARY: u64 = 1024;

/// How long a group may stay busy after its last process ended; the kernel lets go of it a little later.
const BUSY_DEADLINE: Duration = Duration::from_secs(2);

/// Pause between two tries to remove a busy group.
const BUSY_PAUSE: Duration = Duration::from_millis(2);

/// How deep groups are removed below ours; a zone cannot make any, so this only bounds the walk.
const MAX_DEPTH: usize = 8;

/// Which interface a controller speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Version {
    V1,
    V2,
}

/// Where a controller is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Controller {
    pub(crate) version: Version,
    /// Mount point of its hierarchy.
    pub(crate) root: PathBuf,
}

/// Where this machine has what zones need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// Mount point of cgroup v2, with or without controllers.
    pub(crate) unified: PathBuf,
    pub(crate) memory: Controller,
    pub(crate) cpu: Controller,
    pub(crate) pids: Controller,
    /// v1 hierarchy a service manager tracks units by, if there is one.
    pub(crate) named: Option<PathBuf>,
}

impl Layout {
    /// Reads it from the mount table (`/proc/self/mountinfo`) and the list of v2 controllers.
    pub(crate) fn find(mountinfo: &str, v2_controllers: impl Fn(&Path) -> String) -> Result<Self> {
        let mut unified = None;
        let mut v1: Vec<(PathBuf, Vec<String>)> = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount_point) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
            match kind {
                "cgroup2" if unified.is_none() => unified = Some(PathBuf::from(mount_point)),
                "cgroup" => v1.push((PathBuf::from(mount_point), options.split(',').map(str::to_owned).collect())),
                _ => {}
            }
        }
        let unified = unified.ok_or_else(|| Error::Lacking {
            what: "a mounted cgroup v2 hierarchy".to_owned(),
            remedy: "mount it: `mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`"
                .to_owned(),
        })?;
        let of_v2 = v2_controllers(&unified);
        let controller = |name: &str| {
            if let Some((root, _)) = v1.iter().find(|(_, options)| options.iter().any(|option| option == name)) {
                return Ok(Controller { version: Version::V1, root: root.clone() });
            }
            if of_v2.split_whitespace().any(|available| available == name) {
                return Ok(Controller { version: Version::V2, root: unified.clone() });
            }
            Err(Error::Lacking {
                what: format!("the `{name}` cgroup controller"),
                remedy: format!("enable it on the kernel's command line (`cgroup_enable={name}`)"),
            })
        };
        Ok(Self {
            memory: controller("memory")?,
            cpu: controller("cpu")?,
            pids: controller("pids")?,
            named: v1
                .iter()
                .find(|(_, options)| options.iter().any(|option| option.starts_with("name=")))
                .map(|(root, _)| root.clone()),
            unified,
        })
    }

    /// The layout of this machine.
    pub(crate) fn of_this_machine() -> Result<Self> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|source| Error::os("read `/proc/self/mountinfo`", source))?;
        Self::find(&mountinfo, |root| fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default())
    }

    /// The distinct hierarchies a zone is in.
    pub(crate) fn roots(&self) -> Vec<&Path> {
        let mut roots = vec![self.unified.as_path()];
        for root in [&self.memory.root, &self.cpu.root, &self.pids.root] {
            if !roots.contains(&root.as_path()) {
                roots.push(root);
            }
        }
        roots
    }

    /// The same layout as seen where each hierarchy is mounted elsewhere.
    pub(crate) fn moved(&self, to: impl Fn(&Path) -> PathBuf) -> Self {
        let controller = |at: &Controller| Controller { version: at.version, root: to(&at.root) };
        Self {
            unified: to(&self.unified),
            memory: controller(&self.memory),
            cpu: controller(&self.cpu),
            pids: controller(&self.pids),
            named: self.named.as_deref().map(to),
        }
    }

    /// Makes the parent groups, hands v2 controllers down to them, and makes the group of supervisors.
    pub(crate) fn ensure_parent(&self, parent: &str) -> Result<()> {
        for root in self.roots() {
            make_dir(&root.join(parent))?;
        }
        let wanted: Vec<&str> = [("memory", &self.memory), ("cpu", &self.cpu), ("pids", &self.pids)]
            .into_iter()
            .filter(|(_, controller)| controller.version == Version::V2)
            .map(|(name, _)| name)
            .collect();
        for name in wanted {
            for group in [self.unified.clone(), self.unified.join(parent)] {
                write(&group.join("cgroup.subtree_control"), &format!("+{name}"))?;
            }
        }
        make_dir(&self.unified.join(parent).join("supervisors"))?;
        if let Some(named) = &self.named {
            make_dir(&named.join(parent).join("supervisors"))?;
        }
        Ok(())
    }

    /// Moves the calling process, which must have one thread, among the supervisors.
    pub(crate) fn enter_supervisors(&self, parent: &str) -> Result<()> {
        enter(&self.unified.join(parent).join("supervisors"), Version::V2)?;
        match &self.named {
            Some(named) => enter(&named.join(parent).join("supervisors"), Version::V1),
            None => Ok(()),
        }
    }

    /// Removes the parent groups if nothing is left in them.
    pub(crate) fn remove_parent(&self, parent: &str) {
        for root in self.roots().into_iter().chain(self.named.as_deref()) {
            // Busy means somebody else's zones or supervisors are in there: then they stay.
            let _ = fs::remove_dir(root.join(parent).join("supervisors"));
            let _ = fs::remove_dir(root.join(parent));
        }
    }

    /// Names of the zone groups under `parent`, in any hierarchy.
    pub(crate) fn zone_names(&self, parent: &str) -> Vec<String> {
        let mut names = Vec::new();
        for root in self.roots() {
            let Ok(entries) = fs::read_dir(root.join(parent)) else { continue };
            for entry in entries.flatten() {
                if let Some(name) = entry.file_name().to_str().and_then(|name| name.strip_prefix("zone-"))
                    && !names.iter().any(|known| known == name)
                {
                    names.push(name.to_owned());
                }
            }
        }
        names
    }
}

/// The groups of one zone.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    layout: Layout,
    /// Path below each root.
    below: PathBuf,
}

impl Group {
    pub(crate) fn new(layout: &Layout, parent: &str, name: &str) -> Self {
        Self { layout: layout.clone(), below: Path::new(parent).join(format!("zone-{name}")) }
    }

    /// Path below each hierarchy's root.
    pub(crate) fn below(&self) -> &Path {
        &self.below
    }

    /// Makes them, if they are not there.
    pub(crate) fn create(&self) -> Result<()> {
        self.layout.roots().into_iter().try_for_each(|root| make_dir(&root.join(&self.below)))
    }

    /// Sets every limit. Memory that is in use above a lower limit is reclaimed; what cannot be is a refusal, not a kill.
    pub(crate) fn apply(&self, limits: &Limits) -> Result<()> {
        let (memory, swap) = (limits.memory.bytes(), limits.swap.bytes().max(limits.memory.bytes()));
        let group = self.at(&self.layout.memory);
        match self.layout.memory.version {
            Version::V1 => set_memory_v1(&group, memory, swap)?,
            Version::V2 => set_memory_v2(&group, memory, swap)?,
        }
        let group = self.at(&self.layout.cpu);
        let quota = limits.cpu_cap.map(|cap| u64::from(cap.0) * CPU_PERIOD_US / 100);
        let shares = u64::from(limits.cpu_shares.0);
        match self.layout.cpu.version {
            Version::V1 => {
                let shares = (shares * V1_SHARES_OF_ORDINARY / 100).clamp(2, 262_144);
                write(&group.join("cpu.shares"), &shares.to_string())?;
                let quota = quota.map_or_else(|| "-1".to_owned(), |quota| quota.to_string());
                write(&group.join("cpu.cfs_quota_us"), &quota)?;
            }
            Version::V2 => {
                write(&group.join("cpu.weight"), &shares.clamp(1, 10_000).to_string())?;
                let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
                write(&group.join("cpu.max"), &format!("{quota} {CPU_PERIOD_US}"))?;
            }
        }
        write(&self.at(&self.layout.pids).join("pids.max"), &limits.max_processes.to_string())
    }

    /// Moves the calling process, which must have one thread, into those of v1. Into the one of v2 a process is born
    /// ([`Group::open_unified`]): moving there would take the lock that every fork on the machine waits for.
    pub(crate) fn enter_v1(&self) -> Result<()> {
        let roots = self.layout.roots().into_iter().filter(|root| *root != self.layout.unified);
        roots.into_iter().try_for_each(|root| enter(&root.join(&self.below), Version::V1))
    }

    /// The directory of the one of v2, for a process to be born in.
    pub(crate) fn open_unified(&self) -> Result<fs::File> {
        let path = self.layout.unified.join(&self.below);
        fs::File::open(&path).map_err(|source| Error::os(format!("open `{}`", path.display()), source))
    }

    /// How many processes were killed for lack of memory since the groups were made.
    pub(crate) fn oom_kills(&self) -> u64 {
        let file = match self.layout.memory.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(self.at(&self.layout.memory).join(file)).unwrap_or_default();
        field(&text, "oom_kill").unwrap_or(0)
    }

    /// What its processes use and used.
    pub(crate) fn meters(&self) -> Result<ZoneMeters> {
        let (memory, cpu) = (self.at(&self.layout.memory), self.at(&self.layout.cpu));
        let unified = self.layout.unified.join(&self.below);
        meters::of_group(
            &Places { memory: &memory, cpu: &cpu, pids: &self.at(&self.layout.pids), unified: &unified },
            (self.layout.memory.version, self.layout.cpu.version),
            self.oom_kills(),
        )
    }

    /// Whether any process is in it. A group that is not there has none; of one that cannot be read nobody knows.
    pub(crate) fn is_populated(&self) -> Result<bool> {
        let path = self.layout.unified.join(&self.below).join("cgroup.events");
        match fs::read_to_string(&path) {
            Ok(events) => Ok(field(&events, "populated") == Some(1)),
            // The latter where the group goes while its file is open.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32) =>
            {
                Ok(false)
            }
            Err(source) => Err(Error::os(format!("read `{}`", path.display()), source)),
        }
    }

    /// Whether any of its directories is there.
    pub(crate) fn exists(&self) -> bool {
        self.layout.roots().into_iter().any(|root| root.join(&self.below).exists())
    }

    /// Kills every process in it and waits until none is left.
    pub(crate) fn kill(&self, deadline: Instant) -> Result<()> {
        let group = self.layout.unified.join(&self.below);
        if !group.exists() {
            return Ok(());
        }
        write(&group.join("cgroup.kill"), "1")?;
        let events = group.join("cgroup.events");
        let file =
            fs::File::open(&events).map_err(|source| Error::os(format!("open `{}`", events.display()), source))?;
        while self.is_populated()? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Library {
                    doing: format!("kill the processes of `{}`", group.display()),
                    why: "some are still there after SIGKILL; they hang in the kernel".to_owned(),
                });
            }
            // The kernel raises POLLPRI when `populated` changes after the file was opened.
            let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            let timeout = PollTimeout::try_from(left.min(Duration::from_millis(50))).unwrap_or(PollTimeout::ZERO);
            let _ = poll(&mut fds, timeout);
        }
        Ok(())
    }

    /// Removes all its directories. Nothing may run in it.
    pub(crate) fn remove(&self) -> Result<()> {
        self.layout.roots().into_iter().try_for_each(|root| remove_tree(&root.join(&self.below), MAX_DEPTH))
    }

    fn at(&self, controller: &Controller) -> PathBuf {
        controller.root.join(&self.below)
    }
}

fn set_memory_v1(group: &Path, memory: u64, swap: u64) -> Result<()> {
    let (plain, with_swap) = (group.join("memory.limit_in_bytes"), group.join("memory.memsw.limit_in_bytes"));
    let swap_accounted = with_swap.exists();
    // The kernel holds memory <= memory+swap at every moment, so a rise begins with the larger one, a fall with the smaller.
    let rises = swap_accounted && read_number(&with_swap)? < swap;
    if rises {
        write(&with_swap, &swap.to_string())?;
    }
    write(&plain, &memory.to_string()).map_err(|error| in_use(error, memory))?;
    if swap_accounted && !rises {
        write(&with_swap, &swap.to_string()).map_err(|error| in_use(error, swap))?;
    }
    Ok(())
}

fn set_memory_v2(group: &Path, memory: u64, swap: u64) -> Result<()> {
    let current = read_number(&group.join("memory.current"))?;
    if current > memory {
        // Setting `memory.max` below what is in use would kill; asking first does not. EAGAIN says it gave less than asked.
        let _ = fs::write(group.join("memory.reclaim"), (current - memory).to_string());
        if read_number(&group.join("memory.current"))? > memory {
            return Err(refused_in_use(memory));
        }
    }
    write(&group.join("memory.max"), &memory.to_string())?;
    let swap_file = group.join("memory.swap.max");
    if swap_file.exists() {
        write(&swap_file, &(swap - memory).to_string())?;
    }
    Ok(())
}

fn in_use(error: Error, limit: u64) -> Error {
    match error {
        Error::Os { source, .. } if source.raw_os_error() == Some(nix::libc::EBUSY) => refused_in_use(limit),
        other => other,
    }
}

fn refused_in_use(limit: u64) -> Error {
    Error::Refused {
        what: format!("a memory limit of {} MiB", limit >> 20),
        why: "the zone uses more than that and it cannot be reclaimed".to_owned(),
    }
}

/// Moves the calling thread's process. A process that moves itself, alone in its thread group, needs no machine-wide lock.
fn enter(group: &Path, version: Version) -> Result<()> {
    let file = match version {
        Version::V1 => "tasks",
        Version::V2 => "cgroup.procs",
    };
    write(&group.join(file), "0")
}

fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
    .map_err(|source| Error::os(format!("make control group `{}`", path.display()), source))
}

fn remove_tree(group: &Path, depth: usize) -> Result<()> {
    if depth > 0
        && let Ok(entries) = fs::read_dir(group)
    {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path(), depth - 1)?;
            }
        }
    }
    let deadline = Instant::now() + BUSY_DEADLINE;
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(BUSY_PAUSE);
            }
            other => {
                return other
                    .map_err(|source| Error::os(format!("remove control group `{}`", group.display()), source));
            }
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(|source| Error::os(format!("write `{text}` to `{}`", path.display()), source))
}

pub(super) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| Error::os(format!("read `{}`", path.display()), source))
}

pub(super) fn read_number(path: &Path) -> Result<u64> {
    let text = read(path)?;
    text.trim()
        .parse()
        .map_err(|_| Error::Damaged { path: path.to_owned(), why: format!("`{}` is no number", text.trim()) })
}

/// The number after `name` in a flat-keyed file.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";

    #[test]
    fn hybrid_layout_takes_controllers_from_v1_and_the_rest_from_v2() {
        let layout = Layout::find(HYBRID, |_| "hugetlb".to_owned()).expect("complete");
        assert_eq!(layout.unified, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(layout.cpu, Controller { version: Version::V1, root: "/sys/fs/cgroup/cpu,cpuacct".into() });
        assert_eq!(layout.named.as_deref(), Some(Path::new("/sys/fs/cgroup/systemd")));
        assert_eq!(layout.roots().len(), 4);
    }

    #[test]
    fn unified_layout_has_one_root() {
        let table = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
        let layout = Layout::find(table, |_| "cpuset cpu io memory pids".to_owned()).expect("complete");
        assert_eq!(layout.roots(), [Path::new("/sys/fs/cgroup")]);
        assert_eq!(layout.memory.version, Version::V2);
    }

    #[test]
    fn a_missing_controller_is_named_with_its_remedy() {
        let table = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        let error = Layout::find(table, |_| "cpu pids".to_owned()).expect_err("no memory");
        assert!(error.to_string().contains("`memory` cgroup controller"), "{error}");
    }

    #[test]
    fn a_group_that_cannot_be_read_is_not_taken_for_an_empty_one() {
        let root = tempfile::tempdir().expect("a directory");
        let table = format!("30 23 0:26 / {} rw,nosuid - cgroup2 cgroup2 rw", root.path().display());
        let layout = Layout::find(&table, |_| "cpu memory pids".to_owned()).expect("complete");
        let group = Group::new(&layout, "neso", "one");
        assert!(!group.is_populated().expect("there is none"));
        let path = root.path().join("neso/zone-one");
        fs::create_dir_all(&path).expect("a directory");
        for (events, is_populated) in [("populated 1\nfrozen 0\n", true), ("populated 0\nfrozen 0\n", false)] {
            fs::write(path.join("cgroup.events"), events).expect("its events");
            assert_eq!(group.is_populated().expect("they are read"), is_populated);
        }
        fs::remove_file(path.join("cgroup.events")).expect("they go");
        fs::create_dir(path.join("cgroup.events")).expect("something that no one reads");
        let error = group.is_populated().expect_err("nobody knows");
        assert!(error.to_string().contains("cgroup.events"), "{error}");
    }

    #[test]
    fn fields_are_matched_whole() {
        assert_eq!(field("oom_kill_disable 0\nunder_oom 0\noom_kill 3", "oom_kill"), Some(3));
        assert_eq!(field("oom_kill_disable 1", "oom_kill"), None);
    }
}
