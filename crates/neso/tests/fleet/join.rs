//! Machines come, are cut off, come back, and go.

use std::fs;

use serde_json::Value;

use crate::fleet::{Fleet, Machine};

/// What `neso node join` complained of.
fn refused(machine: &Machine, invitation: &[String]) -> String {
    let output = machine.try_join(invitation);
    assert!(!output.status.success(), "it was let in: {}", String::from_utf8_lossy(&output.stdout));
    assert!(!machine.settings().pki_dir().join("server-id").exists(), "it thinks it joined");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn create(fleet: &Fleet, name: &str) -> String {
    fleet.good(&["instance", "create", "-w", "--name", name, "minimal", "g1-nano"]);
    fleet.instance(name).expect("an instance")["id"].as_str().expect("an id").to_owned()
}

/// Wrong invitations let nobody in, a right one lets in one machine, which takes instances; its certificate is renewed while it runs,
/// is worth nothing elsewhere, and nothing at all when the machine was forgotten.
#[test]
fn a_machine_joins_serves_and_is_forgotten() {
    let Some(fleet) = Fleet::start(1) else { return };
    let machine = &fleet.machines[0];
    let server = fleet.server(machine);
    assert_eq!(server["underlay"], machine.address.as_str());
    assert_eq!(server["underlay_mtu"], 1_500);

    let (stranger, late, good) =
        (fleet.new_machine(9), fleet.new_machine(8), fleet.invite(&["--rack", "r9", "--trait", "ssd"]));
    only_the_right_invitation_counts(&fleet, &stranger, &late, &good);

    // Renewed while it runs, by the same process.
    let (pid, id) = (machine.pid("node"), machine.server_id());
    machine.good(&["node", "renew"]);
    fleet.wait("the new certificate to be shown", || machine.log("node").contains("certificate was renewed"));
    let shown = || {
        fleet
            .head
            .log("headnode")
            .lines()
            .filter(|line| line.contains("certificate it did not") && line.contains(&id))
            .count()
    };
    fleet.wait("the headnode to see it", || shown() == 2);
    assert_eq!(machine.pid("node"), pid, "the agent was restarted");

    // Copied to another machine it is worth nothing.
    let path = |machine: &Machine| machine.settings().pki_dir();
    fs::create_dir_all(path(&late)).expect("a directory");
    for name in ["ca.pem", "node.pem", "node.key", "server-id"] {
        fs::copy(path(machine).join(name), path(&late).join(name)).expect("a copy");
    }
    let settings = late.root.join(headnode::settings::DEFAULT_FILE);
    let text = fs::read_to_string(&settings).expect("settings");
    fs::write(&settings, format!("{text}\n[join]\nheadnodes = [\"{}\"]\n", good[1])).expect("settings");
    let mut thief = late.command(&["node"]);
    let log = fs::File::create(late.root.join("thief.log")).expect("a log");
    let mut thief = thief.stderr(log).spawn().expect("the binary under test runs");
    let log = || fs::read_to_string(late.root.join("thief.log")).unwrap_or_default();
    fleet.wait("the copy to be refused", || log().contains("is not the machine that joined"));
    thief.kill().expect("our own process");
    thief.wait().expect("our own process");

    // An operator takes it out.
    create(&fleet, "one");
    fleet.good(&["adm", "server", "cordon", &stranger.server_id()]);
    let host = if fleet.instance("one").expect("it")["server"] == id.as_str() { machine } else { &stranger };
    let host_id = host.server_id();
    assert!(fleet.head.bad(&["adm", "server", "forget", &host_id]).contains("delete them first"));
    let left = fleet.json(&["adm", "-j", "server", "drain", &host_id, "--reason", "new disks"]);
    assert_eq!(left.as_array().map(Vec::len), Some(1));
    fleet.good(&["instance", "delete", "-w", "one"]);
    fleet.wait("it to be drained", || fleet.server(host)["condition"]["state"] == "drained");
    fleet.good(&["adm", "server", "forget", &host_id]);
    fleet.wait("it to be told", || host.log("node").contains("an operator forgot it"));
}

/// A machine is cut off while one of its instances is deleted, another loses its power while no headnode runs.
#[test]
fn machines_are_cut_off_and_come_back() {
    let Some(mut fleet) = Fleet::start(2) else { return };
    let (one, other) = (create(&fleet, "one"), create(&fleet, "other"));
    let host = fleet.machine_of("one");
    fleet.plug(host, false);
    fleet.wait("its instance to be offline", || fleet.instance("one").is_some_and(|one| one["state"] == "offline"));
    let server = fleet.server(host);
    assert_eq!(server["condition"]["state"], "unreachable", "{server}");
    let tenant = fleet.json(&["instance", "get", "-j", "one"]);
    assert_eq!(tenant["state"], "offline");
    assert!(tenant["last_seen"].is_string(), "{tenant}");
    let seen = fleet.instance("one").expect("an instance")["last_seen"].clone();
    assert!(seen["age_ms"].as_u64().is_some_and(|age| age >= 30_000) && seen["by"].is_string(), "{seen}");
    assert!(host.init(&one).is_some(), "the cut stops nothing");
    fleet.good(&["instance", "delete", "one"]);
    assert!(host.init(&one).is_some(), "nobody can have told it");
    fleet.plug(host, true);
    fleet.wait("what was deleted to go", || host.init(&one).is_none());
    fleet.wait("its machine to be empty of it", || {
        !host.settings().node_dir().join(format!("zones/{one}.json")).exists()
    });

    fleet.good(&["down", "--keep-instances"]);
    let index = fleet.machines.iter().position(|machine| machine.init(&other).is_some()).expect("it runs on one");
    let before = fleet.machines[index].init(&other);
    let Fleet { machines, switch, .. } = &mut fleet;
    machines[index].power_cycle(switch);
    let mut agent = machines[index].command(&["node"]);
    let mut agent = agent.stderr(std::process::Stdio::null()).spawn().expect("the binary under test runs");
    let machine = &fleet.machines[index];
    fleet.wait("it to run again", || machine.init(&other).is_some_and(|pid| Some(pid) != before));
    let began = machine.init(&other);
    fleet.good(&["up"]);
    let running = |view: Option<Value>| view.is_some_and(|view| view["state"] == "running");
    fleet.wait("the records to agree", || running(fleet.instance("other")));
    assert_eq!(machine.init(&other), began, "the headnode's return restarted it");
    agent.kill().expect("our own process");
    agent.wait().expect("our own process");
}

fn only_the_right_invitation_counts(fleet: &Fleet, stranger: &Machine, late: &Machine, good: &[String]) {
    let with = |part: usize, text: String| {
        let mut other = good.to_vec();
        other[part] = text;
        other
    };
    assert!(refused(stranger, &with(0, "neso-join-1234".into())).contains("none of this datacenter's"));
    assert!(refused(stranger, &with(0, String::new())).contains("no token on standard input"));
    let elsewhere = format!("SHA256:{}", "0".repeat(64));
    assert!(refused(stranger, &with(2, elsewhere)).contains("belongs to another authority"));
    assert!(refused(stranger, &with(1, "10.77.0.99".into())).contains("not HOST:PORT"));
    stranger.join(good);
    assert_eq!(fleet.server(stranger)["rack"], "r9");
    assert!(refused(late, good).contains("was used by server"));
    let withdrawn = fleet.invite(&[]);
    let invites = fleet.json(&["adm", "-j", "node", "invites"]);
    fleet.good(&["adm", "node", "withdraw", invites[0]["id"].as_str().expect("an id")]);
    assert!(refused(late, &withdrawn).contains("none of this datacenter's"));
}
