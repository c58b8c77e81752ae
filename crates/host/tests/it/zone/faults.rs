//! Death of the agent, death of a supervisor, and what is left after all.

use std::{collections::BTreeSet, fs, time::Duration};

use host::{linux::zone::LinuxZones, zone::Zones};
use nix::{sys::signal::Signal, unistd::Pid};

use super::site::{Site, hierarchies, until};

const RUNS: &str = "echo up; while :; do sleep 1000; done";

/// Everything of these tests that the kernel knows: mounts, control groups, named namespaces, runtime files.
fn traces() -> BTreeSet<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let mut found: BTreeSet<String> =
        mounts.lines().filter(|line| line.contains("neso-zones-")).map(|line| format!("mount {line}")).collect();
    let mine = format!("nztest-{}-", std::process::id());
    for root in hierarchies() {
        let parents = fs::read_dir(&root).expect("a hierarchy").flatten();
        for parent in parents.filter(|entry| entry.file_name().to_string_lossy().starts_with(&mine)) {
            for group in fs::read_dir(parent.path()).into_iter().flatten().flatten() {
                if group.file_name().to_string_lossy().starts_with("zone-") {
                    found.insert(format!("group {}", group.path().display()));
                }
            }
        }
    }
    found
}

/// Traces of one site alone; others run at the same time.
pub(super) fn traces_of(site: &Site) -> BTreeSet<String> {
    let (directory, parent) =
        (site.directory.path().display().to_string(), format!("{}/", site.config().cgroup_parent));
    traces().into_iter().filter(|trace| trace.contains(&directory) || trace.contains(&parent)).collect()
}

fn supervisor_of(site: &Site, instance: model::id::InstanceId) -> i32 {
    let papers = site.config().run_dir.join("zones").join(instance.to_string()).join("status.json");
    let papers: serde_json::Value = serde_json::from_slice(&fs::read(papers).expect("papers")).expect("JSON");
    i32::try_from(papers["supervisor"]["pid"].as_i64().expect("a pid")).expect("a pid")
}

#[test]
fn a_zone_outlives_its_agent_and_is_found_again() {
    let mut site = Site::new();
    let spec = site.spec("outlives", RUNS);
    let started = site.run(&spec);
    site.agent_starts();
    let found = site.zones().list().expect("list");
    assert_eq!(found.as_slice(), std::slice::from_ref(&started));
    let mut events = site.zones().events();
    let init = Pid::from_raw(i32::try_from(started.pid.expect("runs")).expect("a pid"));
    nix::sys::signal::kill(init, Signal::SIGKILL).expect("kill");
    assert_eq!(until("an event comes", || events.try_recv().ok()).instance, spec.instance);
    assert_eq!(site.zones().status(spec.instance).expect("status").exit.expect("ended").reason, "killed by SIGKILL");
}

#[test]
fn a_supervisor_has_left_the_agents_session_and_groups() {
    let site = Site::new();
    let spec = site.spec("session", RUNS);
    site.run(&spec);
    let supervisor = supervisor_of(&site, spec.instance);
    let session = nix::unistd::getsid(Some(Pid::from_raw(supervisor))).expect("a session");
    assert_eq!(session.as_raw(), supervisor);
    let groups = fs::read_to_string(format!("/proc/{supervisor}/cgroup")).expect("groups");
    assert!(groups.contains("/supervisors"), "{groups}");
    let mounts = fs::read_to_string(format!("/proc/{supervisor}/mounts")).expect("mounts");
    assert!(mounts.lines().count() < 12 && !mounts.contains("/ns/net"), "no mount of the host is held: {mounts}");
}

#[test]
fn a_zone_without_its_supervisor_runs_on_and_can_be_stopped() {
    let site = Site::new();
    let spec = site.spec("orphan", RUNS);
    site.run(&spec);
    let mut events = site.zones().events();
    nix::sys::signal::kill(Pid::from_raw(supervisor_of(&site, spec.instance)), Signal::SIGKILL).expect("kill");
    until("the agent is told", || events.try_recv().ok());
    assert!(site.zones().status(spec.instance).expect("status").running);
    let stopped = site.zones().stop(spec.instance, Duration::ZERO).expect("stop");
    assert!(!stopped.running && stopped.exit.is_some());
    assert!(site.groups(spec.instance).is_empty());
    assert!(site.zones().start(&spec).expect("start again").running);
}

#[test]
fn a_nursery_that_dies_takes_no_zone_with_it_and_is_replaced() {
    let site = Site::new();
    let (one, other) = (site.spec("before", RUNS), site.spec("after", RUNS));
    let first = site.run(&one);
    let nursery = until("the nursery is there", || nursery_of(&site));
    site.zones().prepare(other.instance, other.ids).expect("prepare");
    nix::sys::signal::kill(Pid::from_raw(nursery), Signal::SIGKILL).expect("kill");
    assert!(site.zones().start(&other).expect("start, by another nursery").running);
    assert_eq!(site.zones().status(one.instance).expect("status").pid, first.pid);
    assert_ne!(until("another nursery is there", || nursery_of(&site)), nursery);
}

/// The process of this test's own that supervisors of the site are forked from.
fn nursery_of(site: &Site) -> Option<i32> {
    let run_dir = site.config().run_dir.display().to_string();
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).find(|pid| {
        let of = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        of("comm").trim() == "zone-nursery" && of("cmdline").contains(&run_dir) && !of("stat").contains(") Z ")
    })
}

#[test]
fn a_zone_that_died_with_its_supervisor_is_found_dead() {
    let mut site = Site::new();
    let spec = site.spec("both", RUNS);
    let started = site.run(&spec);
    nix::sys::signal::kill(Pid::from_raw(supervisor_of(&site, spec.instance)), Signal::SIGKILL).expect("kill");
    let init = Pid::from_raw(i32::try_from(started.pid.expect("runs")).expect("a pid"));
    nix::sys::signal::kill(init, Signal::SIGKILL).expect("kill");
    site.agent_starts();
    let status =
        until("it is found dead", || site.zones().list().expect("list").into_iter().find(|zone| !zone.running));
    assert!(status.exit.expect("an end").reason.contains("ended unseen"));
    assert!(site.groups(spec.instance).is_empty());
    assert!(site.zones().start(&spec).expect("start again").running);
}

#[test]
fn leftovers_without_papers_are_listed_and_destroyed() {
    let site = Site::new();
    let spec = site.spec("leftover", RUNS);
    site.run(&spec);
    let directory = site.config().run_dir.join("zones").join(spec.instance.to_string());
    fs::remove_file(directory.join("status.json")).expect("papers");
    assert_eq!(site.zones().list().expect("list").len(), 1);
    site.zones().destroy(spec.instance).expect("destroy");
    assert_eq!(traces_of(&site), BTreeSet::new());
}

#[test]
fn destroying_leaves_no_trace() {
    let site = Site::new();
    let spec = site.spec("traceless", RUNS);
    let pid = site.run(&spec).pid.expect("runs");
    let supervisor = supervisor_of(&site, spec.instance);
    assert!(!traces_of(&site).is_empty());
    site.zones().destroy(spec.instance).expect("destroy");
    assert_eq!(traces_of(&site), BTreeSet::new());
    for process in [pid.to_string(), supervisor.to_string()] {
        until("its processes are gone", || {
            let stat = fs::read_to_string(format!("/proc/{process}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z ")).then_some(())
        });
    }
    assert_eq!(fs::read_dir(site.config().run_dir.join("zones")).expect("list").count(), 0);
    assert_eq!(fs::read_dir(site.config().log_dir).expect("list").count(), 0);
}

#[test]
fn a_reboot_of_the_machine_leaves_pins_that_are_made_anew() {
    let site = Site::new();
    let spec = site.spec("reboot", RUNS);
    let netns = site.zones().prepare(spec.instance, spec.ids).expect("prepare");
    // What a boot leaves when the runtime directory is on a disk: the files, and no namespace on them.
    for name in ["user", "net"] {
        nix::mount::umount(&netns.with_file_name(name)).expect("unmount");
    }
    assert!(site.zones().start(&spec).is_err());
    assert!(site.run(&spec).running);
}

#[test]
fn two_agents_that_start_one_zone_get_one_zone() {
    let site = Site::new();
    let other = LinuxZones::new(site.config()).expect("another agent");
    let spec = site.spec("twice", RUNS);
    site.zones().prepare(spec.instance, spec.ids).expect("prepare");
    let started = std::thread::scope(|scope| {
        let attempts = [site.zones(), &other].map(|zones| scope.spawn(|| zones.start(&spec)));
        attempts.map(|attempt| attempt.join().expect("no panic").expect("started, or found running"))
    });
    let now = site.zones().status(spec.instance).expect("status");
    assert!(now.running);
    for seen in started {
        assert_eq!(seen.pid, now.pid);
    }
}
