//! Milliseconds of each verb of a zone on this machine, and the memory its supervisor keeps to itself.
//!
//! `cargo run --release -p host --example zone_times [rounds] [supervisor program and arguments…]`, as root. Run with `rounds`
//! of 15 or more and compare medians with another runtime's on the same machine at the same time; the numbers mean nothing
//! alone.
#![expect(clippy::print_stdout, reason = "a measurement prints")]

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use host::{
    linux::zone::{LinuxZones, ZonesConfig},
    zone::{IdRange, ZoneSpec, Zones},
};
use model::{
    id::InstanceId,
    target::Limits,
    unit::{CpuShares, Mib},
};

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let rounds: usize = arguments.next().and_then(|text| text.to_str()?.parse().ok()).unwrap_or(15);
    let supervisor: Vec<_> = arguments.collect();
    assert!(!supervisor.is_empty(), "name the supervisor's command");
    let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let zones = LinuxZones::new(ZonesConfig {
        run_dir: directory.path().join("run"),
        log_dir: directory.path().join("log"),
        cgroup_parent: format!("zone-times-{}", std::process::id()),
        supervisor,
    })
    .expect("this machine can hold zones");
    let mut times: [Vec<Duration>; 4] = Default::default();
    let mut memory = Vec::new();
    for round in 0..rounds {
        let spec = specification(directory.path(), round);
        let mut timed = |index: usize, verb: &dyn Fn()| {
            let begin = Instant::now();
            verb();
            times[index].push(begin.elapsed());
        };
        timed(0, &|| drop(zones.prepare(spec.instance, spec.ids).expect("prepare")));
        timed(1, &|| drop(zones.start(&spec).expect("start")));
        let papers = directory.path().join("run/zones").join(spec.instance.to_string()).join("status.json");
        let papers: serde_json::Value = serde_json::from_slice(&fs::read(papers).expect("papers")).expect("JSON");
        memory.push(dirty_kib(papers["supervisor"]["pid"].as_u64().expect("a pid")));
        timed(2, &|| drop(zones.stop(spec.instance, Duration::ZERO).expect("stop")));
        timed(3, &|| zones.destroy(spec.instance).expect("destroy"));
    }
    zones.remove_parent();
    for (name, mut taken) in ["prepare", "start", "stop (killed)", "destroy"].into_iter().zip(times) {
        taken.sort();
        println!("{name:14} median {:6.2?}  worst {:6.2?}", taken[taken.len() / 2], taken[taken.len() - 1]);
    }
    memory.sort_unstable();
    println!("supervisor     memory of its own (private dirty), median {} KiB", memory[memory.len() / 2]);
}

fn specification(directory: &Path, round: usize) -> ZoneSpec {
    let root = directory.join(format!("root{round}"));
    for name in ["bin", "etc", "proc", "sys", "dev", "run"] {
        fs::create_dir_all(root.join(name)).expect("make a directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    let control_dir = directory.join(format!("control{round}"));
    fs::create_dir_all(&control_dir).expect("make a directory");
    let memory = Mib(64);
    ZoneSpec {
        instance: InstanceId::random(),
        hostname: format!("round{round}"),
        ids: IdRange { first: IdRange::BASE + 0x2000 * IdRange::COUNT, count: IdRange::COUNT },
        root,
        init: ["/bin/busybox", "sleep", "1000"].map(str::to_owned).to_vec(),
        limits: Limits {
            memory,
            swap: memory,
            disk: Mib(100),
            max_processes: 100,
            cpu_cap: None,
            cpu_shares: CpuShares(100),
        },
        control_dir,
        resolv_conf: Some("nameserver 192.0.2.1\n".to_owned()),
        hosts: None,
    }
}

fn dirty_kib(pid: u64) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps");
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    };
    of("Private_Dirty:")
}
