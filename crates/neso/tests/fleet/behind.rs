//! A member of the store that falls behind while its headnode lives and works through the others: it is frozen, or cut off from the other members alone.

use model::headnode::COPY_BEHIND_MS;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    cold::three,
    fleet::{Fleet, Machine},
    headnodes::{status, write},
    recover::find,
};

/// What is said of a member that is behind.
const BEHIND: &str = "its member of the store is behind";

/// What `by` says of the headnode on `of`.
fn seen(by: &Machine, of: &Machine) -> Option<Value> {
    let id = of.server_id();
    status(by)?["headnodes"].as_array()?.iter().find(|one| one["id"] == id.as_str()).cloned()
}

/// The state that whoever moves traffic is told by a headnode's `CloudAPI`.
fn ping(machine: &Machine) -> String {
    let url = format!("https://127.0.0.1:{}/--ping", machine.settings().listen.cloudapi.port());
    let asked = machine.space.command("curl").args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", &url]).output();
    String::from_utf8_lossy(&asked.expect("curl runs").stdout).into_owned()
}

/// Waits until the headnode on machine `number` has given up work, traffic and the store's lead, and all say why, with the measurement.
fn gives_up(fleet: &Fleet, number: usize) {
    let machine = fleet.machine(number);
    for by in (0..3).map(|number| fleet.machine(number)) {
        fleet.wait("everybody to say that its member is behind", || {
            seen(by, machine).is_some_and(|one| {
                let told = one["health"]["sick"].as_str().is_some_and(|why| why.contains(BEHIND));
                let measured = one["health"]["member_behind_ms"].as_u64() > Some(COPY_BEHIND_MS);
                told && measured && one["fresh"] == true && one["works"] == false && one["member"]["leads"] != true
            })
        });
    }
    fleet.wait("tenants to be sent elsewhere", || ping(machine) == "503");
    let others = [(number + 1) % 3, (number + 2) % 3].map(|number| fleet.machine(number));
    for other in others {
        let one = seen(other, other).expect("it answers");
        assert!(one["health"]["sick"].is_null() && one["works"] == true && ping(other) == "200", "{one}");
    }
    let doctor = others[0].bad_or_good(&["doctor", "-j"]);
    assert!(doctor.contains(BEHIND), "{doctor}");
    let took = write(others[1], &others[0].server_id(), "while a member is behind");
    println!("a write took {took:?} while the member of {} was behind", machine.name);
}

/// Waits until it has its share again.
fn comes_back(fleet: &Fleet, number: usize) {
    let machine = fleet.machine(number);
    for by in (0..3).map(|number| fleet.machine(number)) {
        fleet.wait("everybody to say that it is well", || {
            seen(by, machine).is_some_and(|one| {
                one["health"]["sick"].is_null() && one["works"] == true && one["health"]["member_behind_ms"] == 0
            })
        });
    }
    fleet.wait("tenants to be welcome", || ping(machine) == "200");
}

#[test]
fn a_headnode_whose_member_falls_behind_leaves_the_work_to_others_and_comes_back() {
    let Some((fleet, _)) = three() else { return };
    let follower = find(&fleet, false);
    let member = fleet.machine(follower).pid("member").expect("it runs");
    let tell = |signal: Signal| {
        let pid = Pid::from_raw(i32::try_from(member).expect("a process id"));
        kill(pid, signal).expect("our own process");
    };
    tell(Signal::SIGSTOP);
    gives_up(&fleet, follower);
    tell(Signal::SIGCONT);
    comes_back(&fleet, follower);

    // The leader's member hears no other one, and its clients still reach it.
    let leader = find(&fleet, true);
    fleet.machine(leader).part_member();
    gives_up(&fleet, leader);
    fleet.machine(leader).space.run("nft delete table inet cut");
    comes_back(&fleet, leader);
}
