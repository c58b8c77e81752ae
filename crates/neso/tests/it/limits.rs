//! Each limit of a package, exceeded from inside a guest, and moved while the guest runs.

use std::{fs, time::Instant};

use serde_json::Value;

use crate::{datacenter::Datacenter, shell::Guest};

/// Takes 100 MiB of memory at once and gives it back.
const TAKE_100_MIB: &str = "dd if=/dev/zero of=/dev/null bs=100M count=1";
/// Writes 100 MiB into a file.
const WRITE_100_MIB: &str = "dd if=/dev/zero of=/big bs=1M count=100";
/// Starts processes until that fails, says how many there are, ends them, and waits until they are gone. Only what the shell can
/// do without a process of its own comes after the first loop.
const FORK: &str = r#"( i=0; while [ $i -lt 300 ]; do sleep 1000 >/dev/null 2>&1 & echo $! >>/run/pids; i=$((i+1)); done )
set -- /proc/[0-9]*; echo "there are $#"; while read -r pid; do kill -9 $pid; done </run/pids
while [ $# -gt 20 ]; do set -- /proc/[0-9]*; done; :>/run/pids"#;
/// Percent of one core: so little that a guest gets it, and more, on a machine that does much else.
const CAP: &str = "10";
/// Wants two cores for a minute.
const SPIN: &str = "for i in 1 2; do timeout 60 sh -c 'while :; do :; done' >/dev/null 2>&1 & done";

/// A guest takes what its package gives and no more; another package changes that at once, up and down, and never ends it.
#[test]
fn a_guest_cannot_exceed_its_package() {
    let Some(datacenter) = Datacenter::start() else { return };
    for (name, memory, disk, processes, cap) in [("tight", "64", "64", "40", CAP), ("roomy", "192", "160", "90", "150")]
    {
        let sizes = ["--memory", memory, "--swap", memory, "--disk", disk, "--max-processes", processes];
        let mut words = vec!["adm", "package", "create", name, "--cpu-cap", cap];
        words.extend(sizes);
        datacenter.good(&words);
    }
    let guest = Guest::create(&datacenter, "guest", "tight");
    let boot = datacenter.init(&guest.id).expect("it runs");

    // Memory: what takes too much is killed, the rest of the guest is not, and the record counts it.
    assert_eq!(guest.run(TAKE_100_MIB).1, 137, "nothing stopped it");
    guest.wait_record("the record to tell of the killed", |record| record["fact"]["oom_kills"].as_u64() >= Some(1));
    let table = datacenter.good(&["adm", "instance", "get", "guest"]);
    assert!(table.contains("processes killed"), "{table}");

    // Processes.
    let (said, _) = guest.run(FORK);
    let count: u32 = said.rsplit("there are ").next().and_then(|count| count.parse().ok()).expect("a count");
    assert!(said.contains("can't fork") && (25..=40).contains(&count), "{said}");

    // Disk: the guest is told, and can make room; the pool has room for everybody else.
    let (said, status) = guest.run(WRITE_100_MIB);
    assert!(status != 0 && (said.contains("quota exceeded") || said.contains("No space left")), "{said}");
    let probe = datacenter.settings().pool_dir().join("probe");
    fs::write(&probe, vec![7; 1 << 20]).expect("a guest that is full fills nobody else's disk");
    fs::remove_file(probe).expect("ours");
    // What was removed is free once the file system has written that down.
    assert_eq!(guest.run("rm /big; until echo room >/room; do sleep 0.1; done 2>/dev/null; cat /room").0, "room");

    cpu_is_capped(&guest);

    // Another package, while it runs.
    resize(&guest, "roomy");
    assert_eq!(guest.run(TAKE_100_MIB).1, 0, "the new memory cannot be used");
    let (said, _) = guest.run(FORK);
    let count: u32 = said.rsplit("there are ").next().and_then(|count| count.parse().ok()).expect("a count");
    assert!((60..=90).contains(&count), "{said}");
    assert_eq!(guest.run(WRITE_100_MIB).1, 0, "the new disk cannot be used");
    assert_eq!(guest.run("mdata-get sdc:max_physical_memory; mdata-get sdc:package_name").0, "192\nroomy");

    // Back is refused while the disk holds too much, and says so where its tenant looks.
    datacenter.good(&["instance", "resize", "guest", "tight"]);
    datacenter.wait_idle();
    let audit = datacenter.json(&["instance", "audit", "-j", "guest"]);
    let why = audit[0]["error"].as_str().unwrap_or_default();
    assert!(audit[0]["success"] == "no" && why.contains("a disk quota of 64 MiB is refused"), "{audit}");
    assert!(why.contains("remove files inside first"), "{why}");
    guest.wait_record("it to be as before", |record| {
        record["package_name"] == "roomy" && record["state"] == "running" && record["fact"]["error"].is_null()
    });
    assert_eq!(guest.run(TAKE_100_MIB).1, 0, "a refused resize changed the memory");
    assert_eq!(guest.run("rm /big").1, 0);
    resize(&guest, "tight");
    assert_eq!(guest.run(TAKE_100_MIB).1, 137, "the old limit does not hold again");
    assert_eq!(datacenter.init(&guest.id), Some(boot), "it was started again");

    datacenter.good(&["instance", "delete", "-w", "guest"]);
    datacenter.wait_idle();
    datacenter.assert_clean();
}

/// Two loops that would take every core get a tenth of one. How long that takes depends on what else the machine does; that it is
/// never more does not.
fn cpu_is_capped(guest: &Guest<'_>) {
    let used = || guest.group("cpu.stat", Some("usage_usec ")).expect("the kernel counts");
    let held_back = || guest.group("cpu.stat", Some("nr_throttled ")).expect("it counts");
    assert_eq!(guest.run(SPIN).1, 0);
    let (began, before, already) = (Instant::now(), used(), held_back());
    guest.datacenter.wait("the kernel to hold the guest back", || held_back() >= already + 8);
    let (took, used) = (began.elapsed().as_micros(), u128::from(used() - before));
    // One period's share may be left from before.
    assert!(used <= took / 10 + 100_000, "{used} µs of CPU in {took} µs");
    is_metered(guest);
    assert_eq!(guest.run("killall timeout").1, 0);
}

/// What operators and Prometheus read of it is what the kernel counts.
fn is_metered(guest: &Guest<'_>) {
    let servers = guest.datacenter.json(&["adm", "-j", "server", "list"]);
    let server = servers[0]["id"].as_str().expect("an id").to_owned();
    let (mut own, mut machine) = (Value::Null, Value::Null);
    // A reading may be as old as two places keep it.
    guest.datacenter.wait("the time it was held back to be told", || {
        let read = guest.datacenter.json(&["adm", "-j", "server", "metrics", &server]);
        (own, machine) = (read["instances"][&guest.id].clone(), read["machine"].clone());
        own["zone"]["cpu_held_back_ns"].as_u64() > Some(0)
    });
    assert_eq!(own["limits"], guest.record()["limits"], "{own}");
    let counts = ["cpu_user_ns", "memory_bytes", "memory_and_swap_bytes", "processes"];
    assert!(counts.iter().all(|count| own["zone"][count].as_u64() > Some(0)), "{own}");
    assert!(own["disk_bytes"].as_u64() > Some(0) && own["nics"]["net0"]["sent_packets"].is_u64(), "{own}");
    assert!(machine["cpus"][0]["user"].as_u64() > Some(0) && machine["memory"]["MemTotal"].is_u64(), "{machine}");
    let text = guest.datacenter.good(&["adm", "server", "metrics", &server]);
    for name in
        ["mem_limit", "cpucap_above_seconds_total", "tcp_active_open_count", "pressure_cpu_waiting_seconds_total"]
    {
        assert!(text.contains(&format!("\n{name}{{instance=\"{}\"}} ", guest.id)), "{name} is missing in\n{text}");
    }
    assert!(text.contains("\nnode_cpu_seconds_total{cpu=\"0\",mode=\"user\"} "), "{text}");
}

fn resize(guest: &Guest<'_>, package: &str) {
    guest.datacenter.good(&["instance", "resize", guest.name, package]);
    guest.datacenter.wait_idle();
    let record = guest.record();
    assert_eq!(record["package_name"], package, "{record}");
    assert_eq!(record["fact"]["limits"], record["limits"], "{record}");
}
