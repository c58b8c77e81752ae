//! The headnode is destroyed with everything it had, and made again of a backup that is older than what the machines have.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use crate::{
    fabric::ask,
    fleet::{Fleet, Machine},
    headnodes::{active, etcd_is_here, kill_all},
};

pub(crate) fn create(fleet: &Fleet, name: &str) -> String {
    fleet.good(&["instance", "create", "-w", "--name", name, "minimal", "g1-nano"]);
    fleet.instance(name).expect("an instance")["id"].as_str().expect("an id").to_owned()
}

/// Has a tenant's instance filtered.
pub(crate) fn enable_firewall(fleet: &Fleet, id: &str) {
    let path = format!("/my/machines/{id}?action=enable_firewall");
    ask(fleet, "demo", "POST", &path, &serde_json::json!({}));
}

/// A new rule's id, which is in force.
pub(crate) fn make_rule(fleet: &Fleet, text: &str, owner: Option<&str>) -> String {
    let owner = owner.map(|login| ["--account", login]).into_iter().flatten();
    let line: Vec<&str> = ["adm", "-j", "firewall", "create", text].into_iter().chain(owner).collect();
    let made = fleet.ask(&line).expect("a rule");
    assert_eq!((&made["machines"], &made["live"]), (&1.into(), &1.into()), "{made}");
    made["rule"]["id"].as_str().expect("an id").to_owned()
}

/// The record of a rule; nothing when there is none.
pub(crate) fn rule(fleet: &Fleet, id: &str) -> Value {
    fleet.ask(&["adm", "-j", "firewall", "get", id]).map_or(Value::Null, |it| it["rule"].clone())
}

/// Which of the doors of these tests a machine's kernel opens.
pub(crate) fn doors(machine: &Machine) -> [bool; 3] {
    let table = format!("{}_fw", machine.settings().kernel.nft_table);
    let listed = machine.space.command("nft").args(["list", "table", "inet", &table]).output().expect("`nft` runs");
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    [4101, 4102, 4103].map(|port| text.contains(&port.to_string()))
}

/// Rules that were made and changed after a backup.
struct Rules {
    /// Of everybody, and of an account.
    ids: Vec<String>,
    /// Their records.
    before: Vec<Value>,
}

impl Rules {
    fn in_the_backup(fleet: &Fleet) -> Self {
        Self { ids: vec![make_rule(fleet, "FROM any TO all vms ALLOW tcp PORT 4101", None)], before: Vec::new() }
    }

    /// One is changed, one more is made.
    fn live_on(&mut self, fleet: &Fleet, young: &str) {
        let text = "FROM any TO all vms ALLOW tcp PORT 4102";
        fleet.good(&["adm", "firewall", "set", &self.ids[0], "--rule", text, "--description", "moved"]);
        enable_firewall(fleet, young);
        self.ids.push(make_rule(fleet, &format!("FROM any TO vm {young} ALLOW tcp PORT 4103"), Some("demo")));
        self.before = self.now(fleet);
    }

    fn now(&self, fleet: &Fleet) -> Vec<Value> {
        self.ids.iter().map(|id| rule(fleet, id)).collect()
    }

    /// A look at the rebuild has them, and changed nothing.
    fn are_found(&self, fleet: &Fleet, seen: &Value) {
        let all = seen["rules"].as_array().into_iter().flatten();
        let found: BTreeSet<&str> = all.filter_map(|it| it["rule"].as_str()).collect();
        assert_eq!(found, self.ids.iter().map(String::as_str).collect(), "{seen}");
        let now = self.now(fleet);
        assert!(now[0]["version"] == 1 && now[1].is_null(), "{now:?}");
        assert_eq!(doors(&fleet.machines[0]), [false, true, true], "what it was told last is in force");
    }

    /// They are as they were, and nothing changed in the kernel.
    fn are_back(&self, fleet: &Fleet) {
        for (now, before) in self.now(fleet).iter().zip(&self.before) {
            for field in ["id", "owner", "rule", "version", "enabled", "log", "description", "created_at"] {
                assert_eq!(now[field], before[field], "{field}");
            }
        }
        fleet.wait("the machine to enforce them by the records' word", || {
            let live = |id: &String| fleet.ask(&["adm", "-j", "firewall", "get", id]).is_some_and(|it| it["live"] == 1);
            self.ids.iter().all(live)
        });
        assert_eq!(doors(&fleet.machines[0]), [false, true, true]);
    }
}

/// Ids below `field` of a look at the rebuild.
pub(crate) fn ids(view: &Value, field: &str) -> Vec<String> {
    let all = view[field].as_array().into_iter().flatten();
    all.filter_map(|one| Some(one["instance"].as_str()?.to_owned())).collect()
}

/// All of the headnode's machine is destroyed but the tenant's home, and another one takes its address.
pub(crate) fn destroy_head(fleet: &Fleet) {
    let home = fleet.head.root.join("home");
    let aside = fleet.head.root.with_file_name("home");
    fs::rename(&home, &aside).expect("the tenant is elsewhere");
    fleet.good(&["clean-data", "--yes"]);
    fs::remove_dir_all(&fleet.head.root).expect("everything is gone");
    fs::create_dir_all(&fleet.head.root).expect("a machine");
    fs::rename(&aside, &home).expect("the tenant is here");
}

#[test]
fn what_happened_after_the_backup_is_known_again() {
    let Some(fleet) = Fleet::start(1) else { return };
    let machine = &fleet.machines[0];
    let (kept, gone) = (create(&fleet, "kept"), create(&fleet, "gone"));
    enable_firewall(&fleet, &kept);
    let mut rules = Rules::in_the_backup(&fleet);
    let backup = fleet.head.root.with_file_name("old.neso-backup").display().to_string();
    fleet.good(&["adm", "backup", "create", "--to", &backup]);

    // What the backup does not know: one more instance, one less.
    let young = create(&fleet, "young");
    fleet.good(&["instance", "delete", "-w", "gone"]);
    rules.live_on(&fleet, &young);
    let before = fleet.instance("young").expect("an instance");
    let runs = [&kept, &young].map(|id| machine.init(id));
    assert!(runs.iter().all(Option::is_some), "{runs:?}");
    assert_eq!(machine.init(&gone), None);

    destroy_head(&fleet);
    fleet.good(&["restore", &backup]);
    fleet.good(&["up"]);

    let look = || fleet.ask(&["adm", "-j", "rebuild"]).unwrap_or_default();
    fleet.wait("the machine to say what it has", || !ids(&look(), "found").is_empty());
    let seen = look();
    assert_eq!((ids(&seen, "found"), ids(&seen, "lost")), (vec![young.clone()], vec![gone.clone()]), "{seen}");
    assert_eq!((&seen["found"][0]["alias"], &seen["found"][0]["refused"]), (&"young".into(), &Value::Null), "{seen}");
    assert!(fleet.instance("young").is_none(), "looking changes nothing");
    rules.are_found(&fleet, &seen);
    let doctor = fleet.head.run(&["doctor", "-j"]);
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.contains("is told nothing since the restore"), "{doctor}");

    fleet.good(&["adm", "rebuild", "--yes"]);
    let now = fleet.instance("young").expect("it is known again");
    for field in
        ["id", "owner", "owner_login", "alias", "package", "image", "server", "nics", "metadata", "tags", "limits"]
    {
        assert_eq!(now[field], before[field], "{field}");
    }
    fleet.wait("the machine to be told again", || {
        fleet.server(machine)["restored"].is_null()
            && fleet.instance("young").is_some_and(|it| it["state"] == "running")
    });
    rules.are_back(&fleet);
    let failed = fleet.instance("gone").expect("the backup knows it");
    assert_eq!((&failed["state"], machine.init(&gone)), (&"failed".into(), None));

    // Tenants see it and act on it, and nothing was touched until they do.
    let listed = fleet.good(&["instance", "list"]);
    assert!(listed.contains("young") && listed.contains("kept"), "{listed}");
    fleet.good(&["instance", "delete", "-w", "gone"]);
    assert_eq!([&kept, &young].map(|id| machine.init(id)), runs, "an instance was touched");
    for verb in ["stop", "start"] {
        fleet.good(&["instance", verb, "-w", "young"]);
    }
    assert!(machine.init(&young).is_some_and(|now| Some(now) != runs[1]));
    assert_eq!(machine.init(&kept), runs[0]);
    for name in ["kept", "young"] {
        fleet.good(&["instance", "delete", "-w", name]);
    }
}

/// Three headnodes over members of their own are lost with all they had but a copy of one's backup on another; one is made of it, and then three again.
#[test]
fn three_headnodes_come_back_from_one_backup() {
    if !etcd_is_here() {
        return;
    }
    let Some(fleet) = Fleet::start(3) else { return };
    let ids: Vec<String> = fleet.machines.iter().map(Machine::server_id).collect();
    let [second, third, _] = &fleet.machines[..] else { panic!("three machines") };
    fleet.good(&["adm", "ha", "add", &ids[0], &ids[1]]);
    fleet.wait("three headnodes", || active(&fleet.head) == 3);
    let kept = create(&fleet, "kept");
    fleet.good(&["adm", "backup", "create"]);
    // Each of the others has its copy in a while, and the maker knows.
    let listed = || fleet.ask(&["adm", "-j", "backup", "list"]).unwrap_or_default();
    let copies = || listed().as_array().and_then(|all| all.last()?["copies"].as_array().map(Vec::len));
    fleet.wait("copies on the other headnodes", || copies() == Some(2));
    let info = fleet.ask(&["adm", "-j", "info"]).unwrap_or_default();
    assert!(info["backups"]["age_seconds"].is_u64() && info["backups"]["missing"] == serde_json::json!([]), "{info}");
    let young = create(&fleet, "young");
    let running = || [&kept, &young].map(|id| fleet.machines.iter().find_map(|machine| machine.init(id)));
    let runs = running();
    assert!(runs.iter().all(Option::is_some), "{runs:?}");

    // One machine is gone, one lost its headnode's data, and the third's headnode is alone without a majority.
    destroy_head(&fleet);
    kill_all(second);
    fs::remove_dir_all(second.settings().headnode_dir()).expect("its headnode is lost");
    for key in ["ca.key", "server.key", "server.pem"] {
        fs::remove_file(second.settings().pki_dir().join(key)).expect("a headnode had it");
    }
    second.good(&["up"]);
    assert_eq!(second.pid("headnode"), None, "it is a node and nothing else");
    assert_eq!(running(), runs, "an instance was touched");

    // A copy is all there is.
    let place = second.settings().backup_dir().display().to_string();
    fleet.good(&["restore", "--from", &place]);
    fleet.good(&["up"]);
    let look = || fleet.ask(&["adm", "-j", "rebuild"]).unwrap_or_default();
    fleet.wait("the machines to say what they have", || {
        let seen = look();
        let silent = seen["waiting"].as_array().into_iter().flatten();
        let silent =
            silent.filter(|one| one["has_spoken"] == false && ids.iter().any(|id| one["server"] == id.as_str()));
        ids_are(&seen, &young) && silent.count() == 0
    });
    fleet.good(&["adm", "rebuild", "--yes"]);
    fleet.wait("what is left of the third headnode to be put away", || third.pid("headnode").is_none());
    fleet.wait("its member too", || {
        third.pid("member").is_none() && !third.settings().pki_dir().join("ca.key").exists()
    });
    assert!(
        fleet.head.settings().headnode_dir().join("store.db").exists(),
        "records are in a file, as in the beginning"
    );

    let add = ["adm", "ha", "add", &ids[0], &ids[1]];
    fleet.wait("both to be fit", || fleet.head.run(&add).status.success());
    for machine in [&fleet.head, second, third] {
        fleet.wait("three headnodes again", || active(machine) == 3);
    }
    assert_eq!(running(), runs, "an instance was touched");
    for name in ["kept", "young"] {
        fleet.good(&["instance", "stop", "-w", name]);
        fleet.good(&["instance", "delete", "-w", name]);
    }
}

/// Whether `id` is all that nobody knows.
fn ids_are(view: &Value, id: &str) -> bool {
    ids(view, "found") == [id.to_owned()]
}
