//! Each limit, shown by exceeding it.

use std::fs;

use host::zone::Zones;
use model::unit::{CpuCap, CpuShares, Mib};

use super::site::{Site, limits, until};

#[test]
fn memory_beyond_the_limit_kills_and_that_is_said() {
    let site = Site::new();
    // `head -c` of one line makes busybox hold it all; init itself is the one that grows.
    let mut spec = site.spec("memory", "");
    spec.init = vec!["/bin/sh".to_owned(), "-c".to_owned(), "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done".to_owned()];
    spec.limits.memory = Mib(32);
    spec.limits.swap = Mib(32);
    site.run(&spec);
    let exit = site.until_ended(spec.instance).exit.expect("ended");
    assert_eq!(exit.reason, "killed: out of memory", "{exit:?}");
}

#[test]
fn a_child_beyond_the_memory_limit_dies_and_the_zone_tells() {
    let site = Site::new();
    let script = "sh -c 'x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done'; echo child $?; exit 4";
    let mut spec = site.spec("child", script);
    spec.limits.memory = Mib(32);
    spec.limits.swap = Mib(32);
    let text = site.output(&spec);
    assert!(text.contains("child 137"), "{text}");
    let exit = site.zones().status(spec.instance).expect("status").exit.expect("ended");
    assert!(exit.reason.contains("out of memory") && exit.code == Some(4), "{exit:?}");
}

#[test]
fn files_in_memory_count_as_memory() {
    let site = Site::new();
    let mut spec = site.spec("shm", "dd if=/dev/zero of=/dev/shm/big bs=1M count=200; echo dd $?");
    spec.limits.memory = Mib(40);
    spec.limits.swap = Mib(40);
    let text = site.output(&spec);
    assert!(text.contains("No space left") || text.contains("dd 137"), "{text}");
}

#[test]
fn processes_beyond_the_limit_are_refused() {
    let site = Site::new();
    let mut spec = site.spec("pids", "i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i+1)); done; echo made $i");
    spec.limits.max_processes = 12;
    site.run(&spec);
    site.until_console_says(spec.instance, "fork");
    let used = site.zones().meters(spec.instance).map_or(0, |meters| meters.processes);
    assert!(used <= 12, "{used}");
}

#[test]
fn the_cpu_cap_throttles() {
    let site = Site::new();
    let mut spec = site.spec("cpu", "while :; do :; done");
    spec.limits.cpu_cap = Some(CpuCap(10));
    site.run(&spec);
    let throttled = || {
        site.groups(spec.instance).iter().find_map(|group| {
            let text = fs::read_to_string(group.join("cpu.stat")).ok()?;
            let count: u64 = text.lines().find_map(|line| line.strip_prefix("nr_throttled "))?.parse().ok()?;
            (count > 3).then_some(count)
        })
    };
    until("the kernel holds it back", throttled);
    let used = site.zones().meters(spec.instance).expect("meters");
    assert!(used.cpu_user_ns > 0 && used.cpu_held_back_ns > Some(0), "{used:?}");
}

#[test]
fn limits_change_while_a_zone_runs() {
    let site = Site::new();
    let spec = site.spec("resize", "while :; do sleep 1000; done");
    site.run(&spec);
    for (memory, swap, shares) in [(Mib(256), Mib(512), 400), (Mib(48), Mib(48), 50), (Mib(64), Mib(128), 100)] {
        let mut wanted = limits();
        (wanted.memory, wanted.swap, wanted.cpu_shares) = (memory, swap, CpuShares(shares));
        wanted.cpu_cap = Some(CpuCap(150));
        site.zones().set_limits(spec.instance, &wanted).expect("set limits");
        let of =
            |name: &str| site.groups(spec.instance).iter().find_map(|group| fs::read_to_string(group.join(name)).ok());
        let bytes = of("memory.limit_in_bytes").or_else(|| of("memory.max")).expect("a memory limit");
        assert_eq!(bytes.trim(), memory.bytes().to_string());
        if let Some(both) = of("memory.memsw.limit_in_bytes") {
            assert_eq!(both.trim(), swap.bytes().to_string());
        }
        if let Some(quota) = of("cpu.cfs_quota_us") {
            assert_eq!(quota.trim(), "150000");
        }
    }
}

#[test]
fn a_limit_below_what_is_in_use_is_refused_and_kills_nothing() {
    let site = Site::new();
    // 40 MiB that cannot be reclaimed: there is no swap for a tmpfs beyond the limit.
    let mut spec = site.spec(
        "shrink",
        "dd if=/dev/zero of=/dev/shm/big bs=1M count=40 2>/dev/null; echo full; while :; do sleep 1000; done",
    );
    spec.limits.memory = Mib(128);
    spec.limits.swap = Mib(128);
    site.run(&spec);
    site.until_console_says(spec.instance, "full");
    let mut less = spec.limits.clone();
    (less.memory, less.swap) = (Mib(16), Mib(16));
    let refused = site.zones().set_limits(spec.instance, &less).expect_err("40 MiB are in use");
    assert!(refused.to_string().contains("a memory limit of 16 MiB is refused"), "{refused}");
    let status = site.zones().status(spec.instance).expect("status");
    assert!(status.running);
    assert_eq!(status.limits, Some(spec.limits));
}
