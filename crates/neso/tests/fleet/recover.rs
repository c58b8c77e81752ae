//! Two of three headnodes are gone for good: the third begins anew, and those that come back all the same do no harm.

use std::{fs, process::Child};

use etcd::{Admin, Tls};
use headnode::{members::file::ClusterFile, pki::StorePki};
use model::role::HeadnodeState;

use crate::{
    cold::{start, three, waiting},
    fleet::{Fleet, Machine},
    headnodes::{active, kill_all, status, write},
    space::enter_network,
};

/// Where whoever begins anew is killed.
const POINTS: [&str; 9] = [
    "headnode.recover.aside",
    "neso.recover.aside",
    "headnode.recover.identity",
    "neso.recover.identity",
    "headnode.recover.alone",
    "headnode.recover.filled",
    "headnode.recover.records",
    "neso.recover.fill",
    "neso.recover.switch",
];
const RECOVER: [&str; 3] = ["adm", "recover", "--from-this-member"];

#[test]
fn the_former_leader_begins_anew() {
    let Some((fleet, instances)) = three() else { return };
    begin_anew(&fleet, &instances, true, &[]);
}

#[test]
fn a_former_follower_begins_anew_and_dies_at_every_step_of_it() {
    let Some((fleet, instances)) = three() else { return };
    begin_anew(&fleet, &instances, false, &POINTS);
}

/// Number of a machine whose member leads, or does not.
pub(crate) fn find(fleet: &Fleet, leads: bool) -> usize {
    let view = status(&fleet.head).expect("it answers");
    let all = view["headnodes"].as_array().expect("a list");
    let found = all.iter().find(|one| one["member"]["leads"] == leads).expect("one leads and others do not");
    (0..3).find(|number| found["id"] == fleet.machine(*number).server_id()).expect("a machine of ours")
}

fn revision(machine: &Machine) -> u64 {
    let info: serde_json::Value = serde_json::from_str(&machine.good(&["adm", "-j", "info"])).expect("JSON");
    info["store_revision"].as_u64().expect("a revision")
}

fn begin_anew(fleet: &Fleet, instances: &[String], leads: bool, points: &[&str]) {
    let number = find(fleet, leads);
    let survivor = fleet.machine(number);
    let others = [(number + 1) % 3, (number + 2) % 3].map(|number| fleet.machine(number));
    let server = others[0].server_id();
    let refused = survivor.bad(&RECOVER);
    assert!(refused.contains("answers") && refused.contains("majority"), "{refused}");
    let inits = || -> Vec<Option<u64>> {
        instances.iter().map(|id| (0..3).find_map(|number| fleet.machine(number).init(id))).collect()
    };
    let before = (revision(survivor), inits());
    write(survivor, &server, "before they were lost");
    // Who leads has what was acknowledged, however young it is. Another one may not hear of it before the next commit: beats go on.
    if !leads {
        fleet.wait("everybody to be further", || revision(survivor) > before.0 + 6);
    }
    for machine in [survivor].into_iter().chain(others) {
        kill_all(machine);
    }
    let start_alone = || start(survivor).wait().expect("our own process");
    if !leads {
        // What waits for the others is ended; where nothing runs there is nothing to end.
        start_alone();
        fleet.wait("it to say that it waits for two", || {
            waiting(survivor).is_some_and(|view| view["missing"].as_array().is_some_and(|missing| missing.len() == 2))
        });
    }

    look(survivor, others);
    let deaths = recover(survivor, points);
    assert_eq!(deaths, points.len(), "it died at each point");
    if leads {
        start_alone();
    }
    fleet.wait("it to go on alone", || active(survivor) == 1 && waiting(survivor).is_none());
    let view = status(survivor).expect("it answers");
    assert_eq!(view["headnodes"].as_array().map(Vec::len), Some(1), "{view}");
    let kept = survivor.good(&["adm", "-j", "server", "get", &server]);
    assert!(kept.contains("before they were lost"), "{kept}");
    assert!(revision(survivor) > before.0 + (1 << 40), "revisions are far above those of before");
    write(survivor, &server, "after the new beginning");
    let again = survivor.bad(&RECOVER);
    assert!(again.contains("needs nobody"), "{again}");

    // The others were not gone. A headnode of before finds out by itself, whatever its node hears.
    let told = others[0].bad(&["headnode"]);
    assert!(told.contains("was begun anew without this headnode") && told.contains("neso adm ha add"), "{told}");
    let mut started: Vec<Child> = others.iter().map(|machine| start(machine)).collect();
    for machine in others {
        fleet.wait("it to put its headnode away", || {
            headnode::role::read(&machine.settings()).is_some_and(|role| role.state == HeadnodeState::Absent)
        });
    }
    assert!(others[0].settings().headnode_dir().join("member.left-behind-1").exists(), "its member's data are kept");
    for up in &mut started {
        up.wait().expect("our own process");
    }
    fleet.wait("they to be its nodes", || nodes_of(survivor) == 3);
    assert_eq!(inits(), before.1, "instances noticed nothing");
    survivor.good(&["adm", "ha", "add", &others[0].server_id(), &others[1].server_id()]);
    for number in 0..3 {
        fleet.wait("everybody to see three headnodes", || active(fleet.machine(number)) == 3);
    }
    let kept = others[1].good(&["adm", "-j", "server", "get", &server]);
    assert!(kept.contains("after the new beginning"), "{kept}");
    await_equal(fleet, 3);
}

/// How many machines run and are reachable, by the word of `machine`.
fn nodes_of(machine: &Machine) -> usize {
    let listed = machine.run(&["adm", "-j", "server", "list"]);
    let servers: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
    let is_running =
        |server: &&serde_json::Value| server["condition"]["state"] == "running" && server["reachable"] == true;
    servers.as_array().map_or(0, |all| all.iter().filter(is_running).count())
}

/// Waits until the store has `count` members, all with the same keys, values and history.
pub(crate) fn await_equal(fleet: &Fleet, count: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let settings = fleet.machine(0).settings();
    let pki = StorePki::of(&settings);
    let tls =
        Tls { authority: pki.authority, certificate: pki.client.certificate.clone(), key: pki.client.key.clone() };
    let load = || ClusterFile::load(&settings).expect("it is readable").expect("the store is in members");
    fleet.wait("the members to be known where they are started from", || load().endpoints.len() == count);
    let file = load();
    let admin = Admin::new(&file.endpoints, Some(tls)).expect("an endpoint");
    let ask = || -> Option<Vec<(u32, u64)>> {
        runtime.block_on(async {
            let revision = admin.status(&file.endpoints[0]).await.ok()?.revision;
            let mut hashes = Vec::new();
            for endpoint in &file.endpoints {
                hashes.push(admin.hash(endpoint, revision).await.ok()?);
            }
            Some(hashes)
        })
    };
    // One may be a moment behind, or forget history a moment later.
    fleet.wait("equal members", || {
        let said = enter_network(fleet.machine(0).space.pid().into(), ask).unwrap_or_default();
        said.len() == count && said.windows(2).all(|pair| pair[0] == pair[1])
    });
}

/// Only looks, and nothing is changed by it.
fn look(survivor: &Machine, others: [&Machine; 2]) {
    let looked = survivor.good(&RECOVER);
    let names = [others[0].name.as_str(), &others[1].name];
    for word in ["Nothing was changed", "may be lost", "newest backup", "more in its log", "this machine: stays"]
        .iter()
        .chain(&names)
    {
        assert!(looked.contains(word), "{word}: {looked}");
    }
    assert!(!looked.contains("cannot be read"), "{looked}");
    assert!(!survivor.settings().headnode_dir().join("recover.json").exists());
}

/// Begins anew, dying at each of `points`, and says how often it died.
fn recover(machine: &Machine, points: &[&str]) -> usize {
    if !points.is_empty() {
        fs::create_dir(machine.crash_dir()).expect("a directory for crash points");
    }
    let mut deaths = 0;
    for point in points {
        fs::write(machine.crash_dir().join(point), "").expect("a crash point is armed");
        let output = machine.run(&[&RECOVER[..], &["--yes"]].concat());
        assert!(!output.status.success(), "{point}");
        deaths += usize::from(!machine.crash_dir().join(point).exists());
        let told = machine.bad(&RECOVER);
        assert!(told.contains("under way since") && told.contains("--yes"), "{point}: {told}");
    }
    let _ = fs::remove_dir_all(machine.crash_dir());
    machine.good(&[&RECOVER[..], &["--yes"]].concat());
    deaths
}
