//! What a zone may not ask of the kernel, as a deny list.
//!
//! The user namespace and the small set of capabilities already make most of these fail. The list removes the *code paths*:
//! parts of the kernel where mistakes were found again and again, and which an ordinary program in a container never needs.
//! An allow list would be stricter and would break a program with every new system call; this one fails towards working,
//! with the capabilities behind it.

use nix::libc;
use serde_json::{Value, json};

/// Refused with EPERM, whatever the arguments.
const DENIED: &[&str] = &[
    // The kernel itself: modules, other kernels, its log, its clock, its accounting.
    "init_module",
    "finit_module",
    "delete_module",
    "create_module",
    "query_module",
    "get_kernel_syms",
    "kexec_load",
    "kexec_file_load",
    "syslog",
    "acct",
    "settimeofday",
    "clock_settime",
    "clock_settime64",
    "stime",
    // Mounts, old and new interface: a zone's tree is made before its init runs.
    "mount",
    "umount",
    "umount2",
    "pivot_root",
    "open_tree",
    "move_mount",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
    "swapon",
    "swapoff",
    "quotactl",
    "quotactl_fd",
    "nfsservctl",
    // More namespaces: a nested user namespace would hand back every capability taken away.
    "unshare",
    "setns",
    // Keys are not namespaced well; bpf, perf, userfaultfd and io_uring have the longest lists of past mistakes.
    "add_key",
    "keyctl",
    "request_key",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "fanotify_init",
    // File handles reach outside the root; raw ports and old calls have no user in a container.
    "open_by_handle_at",
    "lookup_dcookie",
    "iopl",
    "ioperm",
    "vm86",
    "vm86old",
    "uselib",
    "ustat",
    "sysfs",
    "_sysctl",
];

/// Flags of `clone` that make a namespace; one rule each, since a mask compares all its bits at once.
const NAMESPACE_FLAGS: &[i32] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Socket families that lead out of the network namespace or into little-walked code: AF_ALG, AF_VSOCK.
const SOCKET_FAMILIES: &[i32] = &[libc::AF_ALG, libc::AF_VSOCK];

/// Requests of `ioctl` that make a subvolume or a snapshot on btrfs: kernels with full quotas would count it to nobody.
const SUBVOLUME_REQUESTS: &[u32] = &[0x5000_9401, 0x5000_940e, 0x5000_9417, 0x5000_9418];

/// The `linux.seccomp` object of a runtime specification.
pub(super) fn filter() -> Value {
    let mut rules = vec![
        json!({"names": DENIED, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM}),
        // Its flags are behind a pointer, out of a filter's reach; ENOSYS makes C libraries fall back to `clone`.
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}),
    ];
    rules.extend(NAMESPACE_FLAGS.iter().map(|flag| {
        json!({"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM, "args": [
            {"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}
        ]})
    }));
    rules.extend(SOCKET_FAMILIES.iter().map(|family| {
        json!({"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EAFNOSUPPORT, "args": [
            {"index": 0, "value": family, "op": "SCMP_CMP_EQ"}
        ]})
    }));
    rules.extend(SUBVOLUME_REQUESTS.iter().map(|request| {
        // ENOTTY is what another file system says; programs make a directory then. The kernel looks at 32 bits only.
        json!({"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOTTY, "args": [
            {"index": 1, "value": u32::MAX, "valueTwo": request, "op": "SCMP_CMP_MASKED_EQ"}
        ]})
    }));
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures(), "syscalls": rules})
}

/// The machine's own architecture and those it also runs: a call in another one's numbering must meet the same list.
fn architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => &["SCMP_ARCH_NATIVE"],
    }
}
