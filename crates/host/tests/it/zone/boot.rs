//! Booting, halting, what a zone sees of itself; the shared suite on the real machine and the fake one.

use std::{fs, os::unix::fs::MetadataExt, time::Duration};

use super::site::{Site, limits, until};
use host::{
    Error,
    fake::{
        Faults,
        zone::{FakeZones, ZoneMachine},
    },
    zone::{IdRange, ZoneSpec, Zones},
};

const GRACE: Duration = Duration::from_secs(10);

/// A zone that runs until it is told to halt.
const WAITS: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 1000 & wait; done";

/// What every implementation of the door does.
fn suite(zones: &dyn Zones, spec: &ZoneSpec) {
    let id = spec.instance;
    let missing = |what: Result<_, Error>| matches!(what, Err(Error::Missing(_)));
    assert!(missing(zones.status(id).map(drop)), "no trace, no status");
    assert!(missing(zones.start(spec).map(drop)), "only what is prepared starts");
    let netns = zones.prepare(id, spec.ids).expect("prepare");
    assert_eq!(zones.prepare(id, spec.ids).expect("again"), netns);
    let prepared = zones.status(id).expect("a trace");
    assert!(!prepared.running && prepared.exit.is_none());
    let started = zones.start(spec).expect("start");
    assert!(started.running && started.pid.is_some() && started.started_at.is_some());
    assert_eq!(started.limits.as_ref(), Some(&spec.limits));
    assert_eq!(zones.start(spec).expect("left alone").pid, started.pid);
    let other = IdRange { first: spec.ids.first + IdRange::COUNT, ..spec.ids };
    assert!(zones.prepare(id, other).is_err(), "a running zone keeps its ids");
    let mut more = limits();
    more.max_processes += 1;
    zones.set_limits(id, &more).expect("set limits");
    assert_eq!(zones.status(id).expect("status").limits, Some(more));
    assert!(zones.meters(id).expect("meters").processes >= 1);
    assert_eq!(zones.list().expect("list").len(), 1);
    let stopped = zones.stop(id, GRACE).expect("stop");
    assert!(!stopped.running && stopped.pid.is_none());
    assert!(stopped.exit.is_some(), "an end is told");
    assert_eq!(zones.stop(id, GRACE).expect("again").exit, stopped.exit);
    assert!(missing(zones.meters(id).map(drop)) && missing(zones.set_limits(id, &spec.limits)));
    let again = zones.start(spec).expect("start again");
    assert!(again.running && again.exit.is_none());
    zones.destroy(id).expect("destroy");
    zones.destroy(id).expect("again");
    assert!(missing(zones.status(id).map(drop)) && zones.list().expect("list").is_empty());
    assert!(missing(zones.stop(id, GRACE).map(drop)));
}

#[test]
fn the_real_machine_passes_the_suite() {
    let site = Site::new();
    suite(site.zones(), &site.spec("suite", WAITS));
}

#[test]
fn the_fake_machine_passes_the_suite() {
    let site = Site::new();
    suite(&FakeZones::new(ZoneMachine::default(), Faults::default()), &site.spec("suite", WAITS));
}

#[test]
fn a_zone_boots_with_a_world_of_its_own() {
    let site = Site::new();
    let script = "id -u; hostname; cat /proc/self/uid_map; cat /etc/resolv.conf /etc/hosts; ps; ls -a / /dev; \
        cat /proc/self/cgroup; readlink /proc/self/ns/net; test -c /dev/console && echo console; tty=$(readlink /proc/self/fd/1); \
        echo $tty; stat -c %u /bin/busybox; echo mine > /root/mine; exit 7";
    let spec = site.spec("world", script);
    let text = site.output(&spec);
    let host_net = fs::read_link("/proc/self/ns/net").expect("a namespace").to_string_lossy().into_owned();
    let mut lines = text.lines();
    assert_eq!((lines.next(), lines.next()), (Some("0"), Some("world")), "{text}");
    assert!(text.contains(&format!("0 {:>10} {:>10}", spec.ids.first, spec.ids.count)), "{text}");
    assert!(text.contains("nameserver 192.0.2.1") && text.contains("127.0.0.1 localhost"), "{text}");
    assert!(text.contains(".zonecontrol") && text.contains("\nconsole\n"), "{text}");
    assert!(!text.contains(&host_net), "the network is its own: {text}");
    assert!(
        !text.contains("nztest") && !text.contains(&spec.instance.to_string()),
        "nothing tells where on the host: {text}"
    );
    assert!(!text.contains("zone-supervisor") && !text.contains("cargo"), "no process of the host: {text}");
    // On disk the root is still owned by 0: nothing was chowned, and what the zone wrote is shifted back.
    for path in ["bin/busybox", "root/mine"] {
        assert_eq!(fs::symlink_metadata(spec.root.join(path)).expect("a file").uid(), 0, "{path}");
    }
    let exit = site.zones().status(spec.instance).expect("status").exit.expect("ended");
    assert_eq!((exit.code, exit.signal, exit.reason.as_str()), (Some(7), None, "exited with code 7"));
}

#[test]
fn its_processes_are_nobody_on_the_host() {
    let site = Site::new();
    let spec = site.spec("nobody", WAITS);
    let status = site.run(&spec);
    let pid = status.pid.expect("runs");
    let owner = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let uid = owner.lines().find_map(|line| line.strip_prefix("Uid:\t")).expect("a uid");
    assert!(uid.starts_with(&spec.ids.first.to_string()), "{uid}");
}

#[test]
fn busybox_init_halts_in_its_own_way() {
    let site = Site::new();
    let mut spec = site.spec("halts", "");
    spec.init = vec!["/sbin/init".to_owned()];
    fs::write(spec.root.join("etc/inittab"), "::sysinit:/bin/echo booted\n::shutdown:/bin/echo going down\n")
        .expect("inittab");
    site.run(&spec);
    site.until_console_says(spec.instance, "booted");
    let stopped = site.zones().stop(spec.instance, GRACE).expect("stop");
    let exit = stopped.exit.expect("ended");
    assert_eq!((exit.reason.as_str(), exit.signal), ("halted", Some(2)));
    assert!(site.console(spec.instance).contains("going down"));
}

#[test]
fn halting_and_rebooting_from_inside_are_told_apart() {
    let site = Site::new();
    for (command, reason) in [("poweroff", "halted"), ("reboot", "rebooted")] {
        let spec = site.spec(command, &format!("{command} -f"));
        site.run(&spec);
        assert_eq!(site.until_ended(spec.instance).exit.expect("ended").reason, reason);
    }
}

#[test]
fn an_init_that_does_not_halt_is_killed_and_that_is_said() {
    let site = Site::new();
    let spec = site.spec("deaf", "trap '' TERM; trap 'echo no' USR1; echo up; while :; do sleep 1000; done");
    site.run(&spec);
    site.until_console_says(spec.instance, "up");
    let exit = site.zones().stop(spec.instance, Duration::from_millis(200)).expect("stop").exit.expect("ended");
    assert_eq!((exit.signal, exit.reason.as_str()), (Some(9), "killed: it did not halt in time"));
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    let site = Site::new();
    let mut spec = site.spec("broken", "");
    spec.init = vec!["/sbin/nothing".to_owned()];
    site.zones().prepare(spec.instance, spec.ids).expect("prepare");
    let error = site.zones().start(&spec).expect_err("there is no such program").to_string();
    assert!(error.contains("/sbin/nothing"), "{error}");
    assert!(site.groups(spec.instance).is_empty());
    assert!(!site.zones().status(spec.instance).expect("still prepared").running);
    fs::write(spec.root.join("bin/text"), "#!/bin/absent\n").expect("write");
    fs::set_permissions(spec.root.join("bin/text"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("chmod");
    spec.init = vec!["/bin/text".to_owned()];
    let error = site.zones().start(&spec).expect_err("its interpreter is absent").to_string();
    assert!(error.contains("ENOENT"), "{error}");
}

#[test]
fn the_end_of_a_zone_is_an_event() {
    let site = Site::new();
    let mut events = site.zones().events();
    let spec = site.spec("event", "sleep 0.2; exit 3");
    site.run(&spec);
    let event = until("an event comes", || events.try_recv().ok());
    assert_eq!(event.instance, spec.instance);
    assert_eq!(site.zones().status(spec.instance).expect("status").exit.expect("final").code, Some(3));
}

#[test]
fn the_console_log_has_an_end_of_growth() {
    let site = Site::new();
    let spec = site.spec("floods", "yes 0123456789012345678901234567890123456789 | head -c 700000; echo; echo the-end");
    site.run(&spec);
    site.until_console_says(spec.instance, "the-end");
    let bytes = |name: &str| fs::metadata(site.config().log_dir.join(name)).map_or(0, |file| file.len());
    let name = format!("{}.console.log", spec.instance);
    let (newer, older) = (bytes(&name), bytes(&format!("{name}.1")));
    assert!(newer <= 256 * 1024 && older <= 256 * 1024 && older > 0, "{newer} {older}");
    assert_eq!(site.zones().console_log(spec.instance, 9).expect("tail"), b"the-end\r\n");
}

#[test]
fn many_zones_start_at_once_and_leave_no_trace() {
    let site = Site::new();
    let specs: Vec<_> = (0..6)
        .map(|number| {
            let mut spec = site.spec(&format!("many{number}"), WAITS);
            spec.ids.first += (number + 1) * 4096 * IdRange::COUNT;
            spec
        })
        .collect();
    std::thread::scope(|scope| {
        for spec in &specs {
            scope.spawn(|| assert!(site.run(spec).running));
        }
    });
    assert_eq!(site.zones().list().expect("list").iter().filter(|zone| zone.running).count(), specs.len());
    std::thread::scope(|scope| {
        for spec in &specs {
            scope.spawn(|| site.zones().destroy(spec.instance).expect("destroy"));
        }
    });
    assert_eq!(super::faults::traces_of(&site), std::collections::BTreeSet::new());
    assert!(site.zones().list().expect("list").is_empty());
}
