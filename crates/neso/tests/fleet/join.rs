//! Machines come, are cut off, come back, and go.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::Command,
};

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

/// The headnode takes a machine in and the answer is lost: the same line lets the same machine in, and no other.
#[test]
fn a_machine_whose_answer_was_lost_joins_again() {
    let Some(fleet) = Fleet::start(0) else { return };
    let (machine, thief, invitation) = (fleet.new_machine(1), fleet.new_machine(2), fleet.invite(&[]));
    let servers = || fleet.json(&["adm", "-j", "server", "list"]).as_array().map_or(0, Vec::len);
    let listener = machine.space.enter(|| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let through = listener.local_addr().expect("bound").to_string();
    std::thread::scope(|scope| {
        // Answers are passed on only while the machine is not known: the one that says it joined is the first that is not.
        scope.spawn(|| {
            while let Ok((near, _)) = listener.accept() {
                let far = machine.space.enter(|| TcpStream::connect(&invitation[1]).expect("the headnode listens"));
                let (mut asking, mut asked) = (near.try_clone().expect("a handle"), far.try_clone().expect("a handle"));
                scope.spawn(move || io::copy(&mut asking, &mut asked));
                let (mut far, mut near, mut bytes) = (far, near, [0; 65_536]);
                while let Ok(count @ 1..) = far.read(&mut bytes) {
                    if servers() > 1 {
                        let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
                        return;
                    }
                    let _ = near.write_all(&bytes[..count]);
                }
            }
        });
        let lost = refused(&machine, &[invitation[0].clone(), through, invitation[2].clone()]);
        assert!(!lost.contains("was used"), "{lost}");
        let _ = nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    });
    assert_eq!(servers(), 2, "it was taken in");
    let other = refused(&thief, &invitation);
    assert!(other.contains("was used by"), "{other}");
    machine.join(&invitation);
    fleet.wait("it to run", || fleet.server(&machine)["condition"]["state"] == "running");
    assert_eq!(servers(), 2, "it is one server");
    assert!(!machine.settings().pki_dir().join("join.key").exists(), "the key is in use and lies nowhere else");
}

/// A machine is emptied with all that runs on it, and gets other hardware: then it is refused until an operator says so.
#[test]
fn a_machine_is_emptied_and_rebuilt() {
    let Some(fleet) = Fleet::start(1) else { return };
    let machine = &fleet.machines[0];
    only_units_of_a_node(machine);
    let (id, one) = (machine.server_id(), create(&fleet, "one"));
    create(&fleet, "two");
    fleet.good(&["instance", "stop", "-w", "two"]);

    let left = fleet.json(&["adm", "-j", "server", "drain", &id, "--reason", "another board"]);
    assert_eq!(left.as_array().map(Vec::len), Some(2), "{left}");
    assert!(machine.init(&one).is_some(), "nothing was said of stopping it");
    fleet.good(&["adm", "server", "drain", &id, "--reason", "another board", "--stop"]);
    fleet.wait("it to stop", || fleet.instance("one").is_some_and(|view| view["state"] == "stopped"));
    assert!(machine.init(&one).is_none(), "it stopped");
    let server = fleet.server(machine);
    assert_eq!((&server["accepts_instances"], &server["drain"]["reason"]), (&false.into(), &"another board".into()));

    restarts_are_told_apart(&fleet, machine);

    machine.good(&["down"]);
    machine.replace_hardware();
    machine.good(&["up"]);
    fleet.wait("it to be refused", || machine.log("node").contains("is not the machine that joined"));
    assert!(fleet.head.log("headnode").contains(&id));
    let known = fleet.server(machine)["identity"].clone();
    let shown = fleet.json(&["adm", "-j", "server", "set", &id, "--new-hardware"]);
    assert!(shown["identity"].is_null(), "{shown}");
    fleet.wait("it to be taken as it is", || {
        let server = fleet.server(machine);
        server["identity"].is_object() && server["identity"] != known && server["reachable"] == true
    });
    fleet.good(&["adm", "server", "uncordon", &id]);
    fleet.good(&["instance", "start", "-w", "one"]);
    assert!(machine.init(&one).is_some(), "it is the machine");
}

/// An agent that ends is told from a machine that goes down, and when it is back, by its boot, whether it was one or the other.
fn restarts_are_told_apart(fleet: &Fleet, machine: &Machine) {
    let boot = || fleet.server(machine)["boot_id"].clone();
    let before = boot();
    for (verb, state, is_another) in
        [(&["down", "--keep-instances"][..], "restarting", false), (&["down"], "rebooting", true)]
    {
        // Its last word may come too late on a busy machine.
        let said = (0..5).any(|_| {
            machine.good(verb);
            let said = fleet.server(machine)["condition"]["state"] == state;
            machine.good(&["up"]);
            let heard = || fleet.server(machine)["reachable"] == true;
            fleet.wait("it to be heard of again", heard);
            said
        });
        assert!(said, "{verb:?} was never taken for {state}");
        fleet.wait("its boot to be known", || (boot() != before) == is_another);
    }
}

/// `neso install` on a machine that joined makes a node's units and no headnode's; systemd understands them.
fn only_units_of_a_node(machine: &Machine) {
    let text = machine.good(&["install", "--print"]);
    let units: Vec<(&str, &str)> =
        text.split("# /etc/systemd/system/").skip(1).filter_map(|unit| unit.split_once('\n')).collect();
    let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["neso-node.service", "neso-instances.service"]);
    assert!(!text.contains("headnode"), "{text}");
    let directory = machine.root.join("units");
    fs::create_dir_all(&directory).expect("a directory");
    for (name, text) in &units {
        // The program is not installed here.
        let text = text.replace("/usr/local/bin/neso", env!("CARGO_BIN_EXE_neso"));
        fs::write(directory.join(name), text).expect("a unit");
    }
    let paths = names.iter().map(|name| directory.join(name));
    match Command::new("systemd-analyze").arg("verify").args(paths).output() {
        Err(error) => println!("skipped: systemd's own look at the units, because it is not installed: {error}"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            // It may complain of units of the machine the test runs on.
            let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("neso-")).collect();
            assert!(of_ours.is_empty(), "{said}");
        }
    }
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
