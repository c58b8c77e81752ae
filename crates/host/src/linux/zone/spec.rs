//! From what a zone should be to a runtime specification (OCI), purely.
//!
//! The specification is for libcontainer, which a zone's supervisor calls from inside its own small private root; so every
//! host path in it is a path in *that* root ([`Inside`]). Control groups are not in it: see [`super::cgroup`].
//!
//! # Capabilities
//! All of them count inside the zone's user namespace only; none reaches the host.
//! - The usual ones of a Unix userland: file ownership and modes, killing, changing ids, chroot, low ports, raw sockets for
//!   `ping`, file capabilities for package managers, audit messages for login programs.
//! - `CAP_SYS_BOOT`: in a pid namespace `reboot(2)` ends the namespace's init and nothing else; this is how a zone halts.
//! - `CAP_SYS_PTRACE`: root of a zone debugs the zone's own services.
//! - Not `CAP_SYS_ADMIN`: it would let a zone mount, and mounting is where most escapes began. Inits that need it (systemd)
//!   do not run in such a zone; busybox, sysvinit, OpenRC, runit and plain programs do.
//! - Not `CAP_NET_ADMIN`: addresses and routes are the host's to set, and it would open nftables to a zone, the part of the
//!   kernel with the most escapes after mounts.
//! - Not `CAP_MKNOD`: device files do not work in a user namespace anyhow.

use std::path::Path;

use serde_json::{Value, json};

use super::seccomp;
use crate::zone::ZoneSpec;

/// Capabilities of a zone's root; the reasons stand above.
const CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
];

/// Files that tell of the host or act on it: covered by `/dev/null`, directories by an empty read-only one.
const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel",
];

/// Files that may be read, never written.
const READ_ONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Ceiling on `/run` in a zone, MiB: sockets and pid files.
const RUN_MIB: u64 = 64;

/// Where things are as libcontainer sees them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inside<'a> {
    /// The zone's root, id-mapped.
    pub(super) root: &'a Path,
    /// The control directory.
    pub(super) control: &'a Path,
    /// The user namespace's file.
    pub(super) user_ns: &'a Path,
    /// The network namespace's file.
    pub(super) net_ns: &'a Path,
    /// Path of the zone's group below the root of cgroup v2.
    pub(super) cgroup: &'a Path,
}

/// The specification of a zone.
pub(super) fn build(zone: &ZoneSpec, inside: Inside<'_>) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "hostname": zone.hostname,
        "root": {"path": inside.root, "readonly": false},
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": zone.init,
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=linux",
                // The agreed sign by which inits and scripts know that they are in a container.
                "container=neso",
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
            // `noNewPrivileges` is left out: `su` and `sudo` work inside.
            "oomScoreAdj": 0,
        },
        "mounts": mounts(zone, inside.control),
        "linux": {
            "namespaces": [
                {"type": "user", "path": inside.user_ns},
                {"type": "network", "path": inside.net_ns},
                {"type": "pid"},
                {"type": "mount"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "cgroup"},
            ],
            "cgroupsPath": Path::new("/").join(inside.cgroup),
            "rootfsPropagation": "private",
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READ_ONLY_PATHS,
            "seccomp": seccomp::filter(),
        },
    })
}

fn mounts(zone: &ZoneSpec, control: &Path) -> Value {
    // Shared memory is the zone's own memory; half of it, as Linux does by default, but of the zone's, not the host's.
    let shm_mib = (zone.limits.memory.0 / 2).max(1);
    let run_mib = RUN_MIB.min(shm_mib);
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "noexec", "mode=755", "size=64k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "noexec", "nodev", "mode=1777", format!("size={shm_mib}m")]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "nodev", "mode=755", format!("size={run_mib}m")]},
        {"destination": "/.zonecontrol", "type": "bind", "source": control,
         "options": ["bind", "ro", "nosuid", "noexec", "nodev"]},
    ])
}

#[cfg(test)]
mod tests {
    use model::{
        id::InstanceId,
        target::Limits,
        unit::{CpuCap, CpuShares, Mib},
    };

    use super::*;
    use crate::zone::IdRange;

    fn example() -> Value {
        let zone = ZoneSpec {
            instance: "6f1a4d2e-53c8-4d0f-9d1b-0c6a7b2e8f10".parse::<InstanceId>().expect("an id"),
            hostname: "web0".to_owned(),
            ids: IdRange { first: IdRange::BASE, count: IdRange::COUNT },
            root: "/pool/roots/web0".into(),
            init: vec!["/sbin/init".to_owned()],
            limits: Limits {
                memory: Mib(256),
                swap: Mib(512),
                disk: Mib(10_240),
                max_processes: 500,
                cpu_cap: Some(CpuCap(150)),
                cpu_shares: CpuShares(100),
            },
            control_dir: "/run/neso/control/web0".into(),
            resolv_conf: None,
            hosts: None,
        };
        let inside = Inside {
            root: Path::new("/zone"),
            control: Path::new("/control"),
            user_ns: Path::new("/ns/user"),
            net_ns: Path::new("/ns/net"),
            cgroup: Path::new("neso/zone-web0"),
        };
        build(&zone, inside)
    }

    #[test]
    fn the_specification_is_the_reviewed_one() {
        let found = serde_json::to_string_pretty(&example()).expect("JSON") + "\n";
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/linux/zone/golden/spec.json");
            std::fs::write(path, &found).expect("write the golden file");
            return;
        }
        assert_eq!(found, include_str!("golden/spec.json"), "review, then run with UPDATE_GOLDEN=1");
    }

    #[test]
    fn it_is_a_specification_libcontainer_reads() {
        let spec: oci_spec::runtime::Spec = serde_json::from_value(example()).expect("a specification");
        let linux = spec.linux().as_ref().expect("Linux");
        assert!(linux.seccomp().is_some());
        let process = spec.process().as_ref().expect("a process");
        // Set to anything, it would make libcontainer load the filter after the capability to load it is gone.
        assert_eq!(process.no_new_privileges(), None);
    }

    #[test]
    fn no_capability_reaches_mounts_networks_or_modules() {
        for forbidden in ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_MKNOD", "CAP_BPF"] {
            assert!(!CAPABILITIES.contains(&forbidden), "{forbidden}");
        }
    }
}
