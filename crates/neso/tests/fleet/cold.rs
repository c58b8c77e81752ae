//! Three headnodes lose their power at once and come back one after the other, in every order.

use std::{
    process::{Child, Stdio},
    time::Instant,
};

use serde_json::Value;

use crate::{
    fleet::{Fleet, Machine},
    headnodes::{active, create, etcd_is_here, status, write},
};

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// A fleet of three headnodes over members of their own, with two instances.
pub(crate) fn three() -> Option<(Fleet, [String; 2])> {
    if !etcd_is_here() {
        return None;
    }
    let edit = |text: String| text.replace("headnode_takes_instances = true", "headnode_takes_instances = false");
    let fleet = Fleet::start_prepared(2, edit, |_| ())?;
    let instances = [create(&fleet, "one"), create(&fleet, "two")];
    let ids: Vec<String> = fleet.machines.iter().map(Machine::server_id).collect();
    fleet.good(&["adm", "ha", "add", &ids[0], &ids[1]]);
    for number in 0..3 {
        fleet.wait("everybody to see three headnodes", || active(fleet.machine(number)) == 3);
    }
    Some((fleet, instances))
}

/// Starts a machine's processes; who types that waits for nothing.
pub(crate) fn start(machine: &Machine) -> Child {
    let mut command = machine.command(&["up"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary under test runs")
}

/// Whom the store waits for, by the word of `machine`.
pub(crate) fn waiting(machine: &Machine) -> Option<Value> {
    status(machine).map(|view| view["waiting"].clone()).filter(Value::is_object)
}

/// Each machine's node alone, until what ran before runs again; no headnode is there meanwhile.
fn instances_run_first(fleet: &Fleet, instances: &[String]) {
    let machines = [0, 1, 2].map(|number| fleet.machine(number));
    let mut agents: Vec<Child> = machines
        .iter()
        .map(|machine| {
            let mut command = machine.command(&["node"]);
            command.stderr(Stdio::null()).spawn().expect("the binary under test runs")
        })
        .collect();
    let is_up = |id: &String| machines.iter().any(|machine| machine.init(id).is_some());
    fleet.wait("instances to run", || instances.iter().all(is_up));
    assert!(machines.iter().all(|machine| machine.pid("headnode").is_none() && machine.pid("member").is_none()));
    for agent in &mut agents {
        agent.kill().expect("our own process");
        agent.wait().expect("our own process");
    }
}

/// What whoever asks the first one alone is told.
fn read_only(fleet: &Fleet, first: &Machine, others: [&Machine; 2]) {
    fleet.wait("the first one to say whom it waits for", || {
        waiting(first).is_some_and(|waiting| waiting["missing"].as_array().is_some_and(|missing| missing.len() == 2))
    });
    let said = waiting(first).expect("it still waits");
    let text = said["text"].as_str().expect("a sentence");
    for other in others {
        let missing = said["missing"].as_array().expect("a list");
        let named = missing.iter().find(|one| one["name"] == other.name.as_str()).expect("its machine is named");
        assert!(named["server"] == other.server_id() && named["last_beat"].is_string(), "{said}");
        assert!(named["address"].as_str().is_some_and(|at| at.starts_with(&other.address)), "{said}");
        assert!(text.contains(&format!("{} (", other.name)), "{text}");
    }
    assert!(text.contains("1 of 3 members answers, 2 are needed") && said["since"].is_string(), "{text}");

    let listed = first.run(&["adm", "-j", "server", "list"]);
    let servers: Value = serde_json::from_slice(&listed.stdout).expect("servers are listed");
    assert_eq!(servers.as_array().map(Vec::len), Some(3));
    assert!(String::from_utf8_lossy(&listed.stderr).contains("may be old"));
    let refused = first.bad(&["adm", "server", "set", &others[0].server_id(), "--comments", "no"]);
    assert!(refused.contains("has no majority since") && refused.contains(&others[1].name), "{refused}");
    let url = format!("https://127.0.0.1:{}/--ping", first.settings().listen.cloudapi.port());
    let ping = first.space.command("curl").args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", &url]).output();
    assert_eq!(ping.expect("curl runs").stdout, b"503", "whoever moves traffic is told");
}

#[test]
fn a_datacenter_comes_back_in_every_order() {
    let Some((mut fleet, instances)) = three() else { return };
    let server = fleet.machines[0].server_id();
    for (number, order) in ORDERS.into_iter().enumerate() {
        let begun = Instant::now();
        let text = format!("before power was cut the {number}th time");
        write(&fleet.head, &server, &text);
        fleet.power_cycle();
        instances_run_first(&fleet, &instances);
        let cut = begun.elapsed();
        let [first, second, third] = order.map(|number| fleet.machine(number));
        let mut started = vec![start(first)];
        read_only(&fleet, first, [second, third]);
        let alone = begun.elapsed();
        if number == 0 {
            let tenant = first.run(&["instance", "list", "-j"]);
            assert!(tenant.status.success() && String::from_utf8_lossy(&tenant.stderr).contains("may be old"));
            let refused = first.bad(&["instance", "stop", "one"]);
            assert!(refused.contains("nothing can be changed since"), "{refused}");
            let doctor = first.bad_or_good(&["doctor", "-j"]);
            assert!(doctor.contains("\"majority\"") && doctor.contains("it waits for"), "{doctor}");
            let log = first.log("headnode");
            let said = log.matches("it waits for").count();
            assert!((1..=3).contains(&said), "it is said when it changes: {log}");
        }
        started.push(start(second));
        fleet.wait("a majority", || waiting(first).is_none() && active(first) == 2);
        let seen = first.run(&["adm", "-j", "server", "get", &server]);
        let seen: Value = serde_json::from_slice(&seen.stdout).expect("a server");
        assert_eq!(seen["comments"], text.as_str(), "what was acknowledged is there");
        write(first, &server, "with a majority");
        let majority = begun.elapsed();
        started.push(start(third));
        fleet.wait("all three", || (0..3).all(|number| active(fleet.machine(number)) == 3));
        for mut up in started {
            up.wait().expect("our own process");
        }
        println!(
            "{order:?}: cut and instances {cut:?}, alone {alone:?}, majority {majority:?}, all {:?}",
            begun.elapsed()
        );
    }
    let running = |name: &str| fleet.instance(name).is_some_and(|view| view["state"] == "running");
    fleet.wait("the records to agree", || ["one", "two"].iter().all(|name| running(name)));
}
