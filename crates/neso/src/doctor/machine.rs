//! Checks of the machine: what the kernel and the system offer, without changing anything.

use std::{
    fs,
    path::{Path, PathBuf},
};

use headnode::Settings;

use super::Finding;

/// Id-mapped mounts of btrfs came with 5.15.
const KERNEL_LEAST: (u32, u32) = (5, 15);
/// Below this much free space under the data directory nothing useful fits, bytes.
const DISK_LEAST_BYTES: u64 = 2 << 30;
/// Below this, somebody should know, bytes.
const DISK_GOOD_BYTES: u64 = 10 << 30;
/// A clock before this is wrong: 2026-01-01, seconds since the epoch.
const CLOCK_LEAST_SECONDS: i64 = 1_767_225_600;

/// All machine checks.
pub(crate) fn check(settings: Option<&Settings>) -> Vec<Finding> {
    let data = settings.map_or_else(|| PathBuf::from("/var/lib/neso"), |settings| settings.paths.data.clone());
    let mut findings = vec![root(), kernel(), user_namespaces(), tool("nftables", "nft", "apt install nftables")];
    findings.extend(cgroups());
    let mkfs_needed = settings.is_none_or(|settings| settings.pool.directory.is_none());
    findings.push(file_system("btrfs"));
    if mkfs_needed {
        findings.push(tool("mkfs.btrfs", "mkfs.btrfs", "apt install btrfs-progs"));
        findings.push(match settings.and_then(|settings| settings.pool.device.as_ref()) {
            Some(disk) => device("pool's disk", disk, "mend pool.device in the settings, or attach the disk"),
            None => device("loop devices", Path::new("/dev/loop-control"), "modprobe loop"),
        });
    }
    findings.push(tun());
    findings.push(disk(&data));
    findings.push(bridged_traffic());
    findings.push(clock());
    findings
}

fn root() -> Finding {
    match base::daemon::is_root() {
        true => Finding::ok("root", "this process is root"),
        false => Finding::fatal(
            "root",
            "this process is not root: it may not make namespaces, bridges, mounts or cgroups",
            "run it as root, for example with sudo",
        ),
    }
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let (major, minor) = KERNEL_LEAST;
    match parse_release(release) {
        Some(version) if version >= KERNEL_LEAST => Finding::ok("kernel", release),
        _ => Finding::fatal(
            "kernel",
            format!("`{release}` is older than {major}.{minor}, the first that maps user ids on btrfs"),
            "boot a newer kernel (Debian 12's own is new enough)",
        ),
    }
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn user_namespaces() -> Finding {
    let path = "/proc/sys/user/max_user_namespaces";
    let most: u64 = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    match most {
        0 => Finding::fatal("user namespaces", "the kernel allows none", "sysctl -w user.max_user_namespaces=100000"),
        1..=500 => Finding::warning(
            "user namespaces",
            format!("the kernel allows only {most}, one per instance"),
            "sysctl -w user.max_user_namespaces=100000",
        ),
        most => Finding::ok("user namespaces", format!("up to {most}")),
    }
}

/// Which layout, and whether every controller we enforce limits with is there.
fn cgroups() -> Vec<Finding> {
    let wanted = ["cpu", "memory", "pids"];
    let unified = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok();
    let (layout, present): (&str, Vec<String>) = match unified {
        Some(text) => ("version 2", text.split_whitespace().map(str::to_owned).collect()),
        None => {
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
            let options: Vec<String> = mounts
                .lines()
                .filter(|line| line.split(' ').nth(2) == Some("cgroup"))
                .flat_map(|line| line.split(' ').nth(3).unwrap_or("").split(','))
                .map(str::to_owned)
                .collect();
            ("version 1", options)
        }
    };
    let missing: Vec<&str> = wanted.into_iter().filter(|name| !present.iter().any(|have| have == name)).collect();
    let mut findings = vec![match missing.as_slice() {
        [] => Finding::ok("cgroups", format!("{layout} with {}", wanted.join(", "))),
        missing => Finding::fatal(
            "cgroups",
            format!("{layout} without {}: limits cannot be enforced", missing.join(", ")),
            "boot with cgroup_enable=memory, or mount /sys/fs/cgroup (type cgroup2)",
        ),
    }];
    let swap_v1 = Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes");
    if layout == "version 1" && Path::new("/sys/fs/cgroup/memory").exists() && !swap_v1.exists() {
        findings.push(Finding::warning(
            "swap accounting",
            "off: an instance's memory limit leaves out swap",
            "boot with swapaccount=1",
        ));
    }
    findings
}

fn tool(check: &'static str, program: &str, remedy: &str) -> Finding {
    let directories = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
    let found = directories.iter().map(|directory| Path::new(directory).join(program)).find(|path| path.exists());
    match found {
        Some(path) => Finding::ok(check, path.display().to_string()),
        None => Finding::fatal(check, format!("the command `{program}` is not installed"), remedy),
    }
}

fn file_system(name: &'static str) -> Finding {
    let list = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if list.lines().any(|line| line.split_whitespace().next_back() == Some(name)) {
        return Finding::ok(name, "the kernel has it");
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let module = Path::new("/lib/modules").join(release.trim()).join("kernel/fs").join(name);
    match module.exists() {
        true => Finding::ok(name, "available as a module"),
        false => Finding::fatal(
            name,
            format!("the kernel does not have {name}, which instances' disks live on"),
            format!("modprobe {name}, or boot a kernel that has it"),
        ),
    }
}

fn device(check: &'static str, path: &Path, remedy: &str) -> Finding {
    match path.exists() {
        true => Finding::ok(check, path.display().to_string()),
        false => Finding::fatal(check, format!("`{}` is missing", path.display()), remedy),
    }
}

fn tun() -> Finding {
    match Path::new("/dev/net/tun").exists() {
        true => Finding::ok("/dev/net/tun", "present"),
        false => Finding::warning("/dev/net/tun", "missing: virtual machines will have no network", "modprobe tun"),
    }
}

/// Space where `path` will be: at the nearest directory that exists.
fn disk(path: &Path) -> Finding {
    let there = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let free = match nix::sys::statvfs::statvfs(there) {
        Ok(stat) => stat.blocks_available() * stat.fragment_size(),
        Err(error) => {
            return Finding::fatal("disk space", format!("cannot look at `{}`: {error}", there.display()), "mount it");
        }
    };
    let found = format!("{} free at `{}`", crate::adm::bytes(free), there.display());
    let remedy = "free some space, or move paths.data in the settings to a larger disk";
    if free < DISK_LEAST_BYTES {
        Finding::fatal("disk space", found, remedy)
    } else if free < DISK_GOOD_BYTES {
        Finding::warning("disk space", found, remedy)
    } else {
        Finding::ok("disk space", found)
    }
}

/// Docker makes the kernel push bridged frames through iptables, whose FORWARD chain it sets to drop: then not even two
/// instances on one bridge reach each other.
fn bridged_traffic() -> Finding {
    let switch = fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables").unwrap_or_default();
    match switch.trim() {
        "1" => Finding::warning(
            "bridged traffic",
            "it passes iptables (Docker switches that on), whose rules may cut instances off from each other",
            "sysctl -w net.bridge.bridge-nf-call-iptables=0, or accept our bridges in DOCKER-USER: `neso manual networks`",
        ),
        _ => Finding::ok("bridged traffic", "stays on its bridge"),
    }
}

fn clock() -> Finding {
    let now = base::clock::Clock::now_ms(&base::clock::SystemClock);
    match now / 1_000 >= CLOCK_LEAST_SECONDS {
        true => Finding::ok("clock", model::time::Timestamp(now).to_string()),
        false => Finding::fatal(
            "clock",
            format!("says {}: signatures and certificates need the right time", model::time::Timestamp(now)),
            "set it, e.g. `timedatectl set-ntp true` or `date -s …`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(parse_release("6.1.0-31-amd64"), Some((6, 1)));
        assert_eq!(parse_release("5.15"), Some((5, 15)));
        assert_eq!(parse_release("x"), None);
    }
}
