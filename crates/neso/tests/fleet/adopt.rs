//! A datacenter is lost with every backup, and a machine of it brings its instances to another one.

use serde_json::Value;

use crate::{
    fleet::{Fleet, Machine, reachable},
    rebuild::{create, destroy_head, doors, enable_firewall, ids, make_rule, rule},
};

/// Joins with the instances the machine has; what was said against it.
#[track_caller]
fn refused(machine: &Machine, invitation: &[String], options: &[&str]) -> String {
    let output = machine.try_join_with(invitation, options);
    assert!(!output.status.success(), "it was let in");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn address(instance: &Value) -> &str {
    instance["nics"][0]["ip"].as_str().expect("an address")
}

#[test]
fn a_machine_brings_its_instances_when_everything_else_is_lost() {
    let Some(fleet) = Fleet::start(1) else { return };
    let machine = &fleet.machines[0];
    let kept = create(&fleet, "kept");
    fleet.good(&["instance", "tags", "kept", "role=web"]);
    fleet.wait("the tag to be told", || fleet.instance("kept").is_some_and(|it| it["tags"]["role"] == "web"));
    enable_firewall(&fleet, &kept);
    let text = "FROM any TO tag \"role\" = \"web\" ALLOW tcp PORT 4102";
    let own = make_rule(&fleet, text, Some("demo"));
    let rules = || fleet.ask(&["adm", "-j", "firewall", "list"]).and_then(|all| all.as_array().map(Vec::len));
    assert_eq!(rules(), Some(3), "one, and the two that each datacenter begins with");
    let before = fleet.instance("kept").expect("an instance");
    let (was, runs) = (machine.server_id(), machine.init(&kept));
    assert!(runs.is_some());
    let old = fleet.invite(&["--adopt"]);
    assert!(refused(machine, &old, &["--adopt"]).contains("is of that datacenter already"));
    assert!(refused(&fleet.head, &old, &["--adopt"]).contains("records of this machine's datacenter are here"));

    // Another datacenter on the machine of the lost one: nothing is known there.
    destroy_head(&fleet);
    fleet
        .head
        .settle(|text| reachable(text).replace("headnode_takes_instances = true", "headnode_takes_instances = false"));
    fleet.good(&["up"]);
    let servers = || fleet.ask(&["adm", "-j", "server", "list"]).and_then(|all| all.as_array().map(Vec::len));
    fleet.wait("a headnode of another datacenter", || servers() == Some(1));

    let invitation = invite(&fleet, &old);
    assert_eq!((machine.server_id(), machine.init(&kept), servers()), (was.clone(), runs, Some(1)));

    let joined = machine.try_join_with(&invitation, &["--adopt"]);
    assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    assert!(String::from_utf8_lossy(&joined.stdout).contains("neso adm rebuild"));
    assert_eq!((machine.server_id(), machine.init(&kept)), (was, runs), "it is who it was, and its instance runs on");
    assert!(refused(machine, &fleet.invite(&["--adopt"]), &["--adopt"]).contains("is of that datacenter already"));

    let look = || fleet.ask(&["adm", "-j", "rebuild"]).unwrap_or_default();
    fleet.wait("the machine to say what it has", || ids(&look(), "found") == [kept.clone()]);
    let seen = look();
    assert_eq!((&seen["found"][0]["refused"], &seen["waiting"][0]["brought"]), (&Value::Null, &true.into()), "{seen}");
    assert!(fleet.instance("kept").is_none(), "looking changes nothing");
    let owner = before["owner"].as_str().expect("an owner");
    assert_eq!(seen["found"][0]["owner"], owner, "{seen}");
    fleet.good(&["adm", "account", "create", "alice", "--email", "alice@example.com", "--id", owner]);
    fleet.good(&["adm", "rebuild", "--yes"]);

    let now = fleet.instance("kept").expect("it is known");
    for field in ["id", "owner", "alias", "package", "image", "server", "nics", "tags", "limits"] {
        assert_eq!(now[field], before[field], "{field}");
    }
    assert_eq!(now["owner_login"], "alice");
    let made = rule(&fleet, &own);
    assert!(made["owner"] == owner && made["rule"] == text && made["enabled"] == true, "{made}");
    assert_eq!(rules(), Some(3), "those that each datacenter begins with are there once");
    fleet.wait("the machine to be told again", || {
        fleet.server(machine)["restored"].is_null() && fleet.instance("kept").is_some_and(|it| it["state"] == "running")
    });
    assert_eq!(doors(machine), [false, true, false], "the rule is in force");

    // The other datacenter's own networks have the same subnets, and nobody gets the address that is in use.
    as_tenant(&fleet, &["instance", "create", "-w", "--name", "young", "minimal", "g1-nano"]);
    let made = fleet.instance("young").expect("an instance");
    assert_ne!(address(&made), address(&before));
    assert_eq!(machine.init(&kept), runs, "the instance was touched");
    obeys(&fleet, &kept);
    as_tenant(&fleet, &["instance", "delete", "-w", "young"]);
}

/// An invitation for the machine that brings its instances. What must not be is not, and changes nothing.
fn invite(fleet: &Fleet, old: &[String]) -> Vec<String> {
    let (machine, stranger) = (&fleet.machines[0], fleet.new_machine(2));
    let plain = fleet.invite(&[]);
    assert!(refused(&stranger, &plain, &["--adopt"]).contains("is no part of any datacenter"));
    assert!(refused(machine, &plain, &["--adopt"]).contains("does not allow a machine to bring instances"));
    assert!(refused(machine, &plain, &[]).contains("joined already"));
    let invitation = fleet.invite(&["--adopt"]);
    let elsewhere = [invitation[0].clone(), invitation[1].clone(), old[2].clone()];
    assert!(refused(machine, &elsewhere, &["--adopt"]).contains("belongs to another authority"));
    invitation
}

/// Runs a tenant's command at the other datacenter, which listens elsewhere.
#[track_caller]
fn as_tenant(fleet: &Fleet, arguments: &[&str]) {
    let url = fleet.head.settings().cloudapi_url();
    let output = fleet.head.command(arguments).env("TRITON_URL", url).output().expect("the binary under test runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An instance that is known again can be stopped, started and deleted.
fn obeys(fleet: &Fleet, kept: &str) {
    let machine = &fleet.machines[0];
    for verb in ["stop", "start", "stop"] {
        fleet.good(&["adm", "instance", verb, kept]);
        let state = if verb == "stop" { "stopped" } else { "running" };
        fleet.wait("it to obey", || fleet.instance(kept).is_some_and(|it| it["state"] == state));
    }
    assert_eq!(machine.init(kept), None);
    fleet.good(&["adm", "instance", "delete", kept]);
    fleet.wait("it to be gone", || fleet.instance(kept).is_none_or(|it| it["state"] == "deleted"));
}
