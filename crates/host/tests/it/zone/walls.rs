//! What a zone cannot do, tried from inside as its root.

use super::site::Site;

/// Runs each command as the zone's root; returns what was said, per command.
fn tried(name: &str, commands: &[&str]) -> String {
    let site = Site::new();
    let script: String =
        commands.iter().map(|command| format!("echo \"[{command}]\"; {command} 2>&1; echo \"= $?\"; ")).collect();
    site.output(&site.spec(name, &script))
}

fn succeeded(text: &str) -> usize {
    text.lines().filter(|line| *line == "= 0").count()
}

#[test]
fn nothing_is_mounted_and_no_namespace_made() {
    let text = tried(
        "mounts",
        &[
            "mount -t tmpfs none /tmp",
            "mount -t proc none /tmp",
            "mount -o remount,rw /sys",
            "mount -o bind / /tmp",
            "umount /proc/kcore",
            "umount /sys",
            "unshare -U true",
            "unshare -m true",
            "unshare -n true",
        ],
    );
    assert_eq!(succeeded(&text), 0, "{text}");
    assert!(text.contains("= "), "{text}");
}

#[test]
fn the_host_is_neither_seen_nor_changed() {
    let text = tried(
        "host",
        &[
            "echo 1 > /proc/sys/kernel/panic",
            "echo c > /proc/sysrq-trigger",
            "echo 1 > /sys/class/net/lo/mtu",
            "touch /sys/x",
            "mknod /tmp/disk b 8 0",
            "mknod /dev/mem c 1 1",
            "touch /.zonecontrol/x",
            "hostname other",
            "ip link set lo mtu 1000",
            "chown 70000 /tmp",
        ],
    );
    assert_eq!(succeeded(&text), 0, "{text}");
    let read = tried(
        "masked",
        &[
            "wc -c < /proc/keys",
            "wc -c < /proc/kallsyms",
            "wc -c < /proc/timer_list",
            "ls -A /sys/firmware /proc/acpi /sys/kernel | grep -v :",
            "ls /sys/class/net",
            "ls /proc | grep -c '^[0-9]'",
        ],
    );
    assert!(read.lines().filter(|line| *line == "0").count() >= 3, "masked files are empty: {read}");
    assert!(!read.contains("eth0") && !read.contains("mm\n"), "{read}");
}

#[test]
fn a_device_file_of_the_image_does_not_work() {
    let site = Site::new();
    let spec = site.spec("device", "cat /root/zero | head -c 1; echo; dd if=/root/zero of=/tmp/x count=1; echo = $?");
    nix::sys::stat::mknod(
        &spec.root.join("root/zero"),
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        nix::sys::stat::makedev(1, 5),
    )
    .expect("mknod");
    let text = site.output(&spec);
    assert!(text.contains("ermission denied") && text.contains("= 1"), "{text}");
}

#[test]
#[expect(clippy::disallowed_types, reason = "`ldd` tells which libraries the probe needs")]
fn system_calls_of_the_list_are_refused() {
    // The calls themselves, by a program of this test's own: see `calls`.
    let site = Site::new();
    let mut spec = site.spec("calls", "");
    std::fs::copy(std::env::current_exe().expect("this program"), spec.root.join("bin/calls")).expect("copy");
    for directory in ["lib", "lib64", "usr/lib"] {
        std::fs::create_dir_all(spec.root.join(directory)).expect("mkdir");
    }
    let libraries =
        std::process::Command::new("ldd").arg(std::env::current_exe().expect("this program")).output().expect("ldd");
    for word in String::from_utf8_lossy(&libraries.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
        let target = spec.root.join(word.trim_start_matches('/'));
        std::fs::create_dir_all(target.parent().expect("a parent")).expect("mkdir");
        std::fs::copy(word, target).expect("copy a library");
    }
    spec.limits.memory = model::unit::Mib(256);
    spec.limits.swap = model::unit::Mib(256);
    spec.init =
        ["/bin/calls", "--exact", "zone::walls::calls", "--nocapture", "--include-ignored"].map(str::to_owned).to_vec();
    let text = site.output(&spec);
    for call in CALLS {
        assert!(text.contains(&format!("{}=EPERM", call.0)), "{}: {text}", call.0);
    }
    assert!(text.contains("clone3=ENOSYS") && text.contains("clone_newuser=EPERM"), "{text}");
    assert!(text.contains("af_alg=EAFNOSUPPORT") && text.contains("af_vsock=EAFNOSUPPORT"), "{text}");
    assert!(text.contains("no_dumb_caps=ok"), "{text}");
}

const CALLS: &[(&str, nix::libc::c_long)] = &[
    ("keyctl", nix::libc::SYS_keyctl),
    ("add_key", nix::libc::SYS_add_key),
    ("kexec_load", nix::libc::SYS_kexec_load),
    ("bpf", nix::libc::SYS_bpf),
    ("perf_event_open", nix::libc::SYS_perf_event_open),
    ("io_uring_setup", nix::libc::SYS_io_uring_setup),
    ("init_module", nix::libc::SYS_init_module),
    ("mount", nix::libc::SYS_mount),
    ("fsopen", nix::libc::SYS_fsopen),
    ("mount_setattr", nix::libc::SYS_mount_setattr),
    ("setns", nix::libc::SYS_setns),
    ("userfaultfd", nix::libc::SYS_userfaultfd),
    ("open_by_handle_at", nix::libc::SYS_open_by_handle_at),
    ("swapon", nix::libc::SYS_swapon),
    ("syslog", nix::libc::SYS_syslog),
];

/// Runs inside a zone, as its init: makes the calls and prints what the kernel says. On the host it does nothing.
#[test]
fn calls() {
    if std::env::var_os("container").is_none() {
        return;
    }
    let errno = |result: nix::libc::c_long| match nix::errno::Errno::result(result) {
        Ok(_) => "done".to_owned(),
        Err(error) => format!("{error:?}"),
    };
    for (name, number) in CALLS {
        // SAFETY: null pointers and zeros; were a call allowed, it would fail on them.
        let result = unsafe { nix::libc::syscall(*number, 0, 0, 0, 0, 0) };
        println!("{name}={}", errno(result));
    }
    // SAFETY: as above; a `clone3` of size zero makes nothing.
    println!("clone3={}", errno(unsafe { nix::libc::syscall(nix::libc::SYS_clone3, 0, 0) }));
    let flags = nix::libc::CLONE_NEWUSER | nix::libc::SIGCHLD;
    // SAFETY: refused by the filter; were it not, the child would only run on to the end of this test.
    println!("clone_newuser={}", errno(unsafe { nix::libc::syscall(nix::libc::SYS_clone, flags, 0, 0, 0, 0) }));
    for (name, family) in [("af_alg", nix::libc::AF_ALG), ("af_vsock", nix::libc::AF_VSOCK)] {
        // SAFETY: opening a socket touches no memory.
        let answer = unsafe { nix::libc::syscall(nix::libc::SYS_socket, family, nix::libc::SOCK_STREAM, 0) };
        println!("{name}={}", errno(answer));
    }
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a mask");
        u64::from_str_radix(line.trim(), 16).expect("hex")
    };
    let (sys_admin, net_admin, sys_module) = (1 << 21, 1 << 12, 1 << 16);
    let held = mask("CapBnd:") | mask("CapEff:") | mask("CapInh:") | mask("CapAmb:");
    println!("no_dumb_caps={}", if held & (sys_admin | net_admin | sys_module) == 0 { "ok" } else { "too many" });
}
