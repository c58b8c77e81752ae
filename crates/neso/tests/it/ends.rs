//! How instances end by themselves, what is said of it, and what they wrote to their consoles.

use serde_json::Value;

use crate::{datacenter::Datacenter, shell::Guest};

/// Halted, powered off, rebooted and crashed from inside: the state, the reason in the record, and the entry in the history that
/// its tenant reads. The console tells the rest, of a stopped instance too.
#[test]
fn ends_from_inside_are_told() {
    let Some(datacenter) = Datacenter::start() else { return };
    let guest = Guest::create(&datacenter, "guest", "g1-nano");

    for (command, marker) in [("halt", "one"), ("poweroff", "two")] {
        guest.tell(&format!("echo marker-{marker} >/dev/console; {command}"));
        let record = guest.wait_record("it to be off", |record| record["state"] == "stopped");
        assert_eq!(record["fact"]["exit"]["reason"], "halted", "{record}");
        told(&guest, "stop", "yes", &Value::Null);
        let console = datacenter.good(&["adm", "instance", "console", "guest"]);
        assert!(console.contains(&format!("marker-{marker}")), "{console}");
        datacenter.good(&["instance", "start", "-w", "guest"]);
    }

    let before = datacenter.init(&guest.id).expect("it runs");
    guest.tell("reboot");
    let record = guest.wait_record("it to have rebooted", |record| record["fact"]["exit"]["reason"] == "rebooted");
    assert_eq!(record["state"], "running", "{record}");
    assert_ne!(datacenter.init(&guest.id).expect("it runs"), before);
    told(&guest, "reboot", "yes", &Value::Null);
    // How the boot before ended is its own to read, too.
    assert_eq!(guest.run("mdata-get sdc:exit_status").0, "129");
    let table = datacenter.good(&["adm", "instance", "get", "guest"]);
    assert!(table.contains("last exit") && table.contains("rebooted"), "{table}");

    // A reboot that its tenant asks for is in the history once.
    datacenter.good(&["instance", "reboot", "-w", "guest"]);
    datacenter.wait_idle();
    let audit = datacenter.json(&["instance", "audit", "-j", "guest"]);
    let reboots = audit.as_array().expect("a list").iter().filter(|entry| entry["action"] == "reboot").count();
    assert_eq!(reboots, 2, "{audit}");

    // Init dies.
    let (pid, _) = datacenter.init(&guest.id).expect("it runs");
    base::daemon::kill(u32::try_from(pid).expect("a pid")).expect("a process of ours");
    let record = guest.wait_record("it to be off", |record| record["state"] == "stopped");
    let reason = record["fact"]["exit"]["reason"].clone();
    assert_eq!(reason, "killed by SIGKILL", "{record}");
    told(&guest, "stop", "no", &reason);

    console_is_bounded(&guest);
    datacenter.good(&["instance", "delete", "-w", "guest"]);
    datacenter.wait_idle();
    let gone = datacenter.run(&["adm", "instance", "console", &guest.id]);
    assert!(!gone.status.success(), "the console of a deleted instance is still told");
    datacenter.assert_clean();
}

/// Checks the newest entry of the history as its tenant reads it.
#[track_caller]
fn told(guest: &Guest<'_>, action: &str, success: &str, error: &Value) {
    let audit = guest.datacenter.json(&["instance", "audit", "-j", guest.name]);
    let told = audit.as_array().expect("a list").iter().find(|entry| entry["action"] == action).expect("an entry");
    assert_eq!((&told["success"], &told["error"]), (&success.into(), error), "{audit}");
}

/// The console of an instance that floods it has an end, hides what would drive a terminal, and a piece goes on where the last
/// one ended.
fn console_is_bounded(guest: &Guest<'_>) {
    let datacenter = guest.datacenter;
    datacenter.good(&["instance", "start", "-w", guest.name]);
    guest.run(r"printf 'bell\007escape\033[2J\n' >/dev/console");
    let mut shown = String::new();
    datacenter.wait("the console to have it", || {
        shown = datacenter.good(&["adm", "instance", "console", guest.name]);
        shown.contains("bell")
    });
    assert!(shown.contains("bell^Gescape^[[2J"), "{shown}");
    let first = datacenter.json(&["adm", "-j", "instance", "console", "--kib", "1", guest.name]);
    assert!(first["text"].as_str().expect("text").len() <= 1024 && first["next"].is_string(), "{first}");
    // A script that fails says so there.
    let script = "user-script=#!/bin/sh\necho secret-word\nnonsense-command\nexit 3";
    datacenter.good(&["instance", "metadata", guest.name, script]);
    datacenter.good(&["instance", "reboot", "-w", guest.name]);
    datacenter.wait("the script's end on the console", || {
        let shown = datacenter.good(&["adm", "instance", "console", guest.name]);
        shown.contains("user-script ended with 3") && shown.contains("nonsense-command: not found")
    });
    let wrong = datacenter.run(&["adm", "instance", "console", "--kib", "9999", guest.name]);
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("512"), "{wrong:?}");
}
