//! A headnode is lost with everything it had, and made anew of a backup while the instances run.

use std::fs;

use crate::datacenter::Datacenter;

#[test]
fn a_lost_headnode_comes_back_from_a_sealed_backup() {
    let Some(datacenter) = Datacenter::start() else { return };
    let file = |name: &str| datacenter.root().join(name).display().to_string();
    datacenter.good(&["instance", "create", "-w", "--name", "kept", "minimal", "g1-nano"]);
    datacenter.wait_idle();
    let kept = datacenter.json(&["adm", "-j", "instance", "get", "kept"]);
    let id = kept["id"].as_str().expect("an id").to_owned();
    let runs = datacenter.init(&id);
    assert!(runs.is_some());

    seal_backups(&datacenter);
    let backup = file("a.neso-backup");
    let taken = datacenter.json(&["adm", "-j", "backup", "create", "--to", &backup]);
    assert_eq!(taken["sealed"], true, "{taken}");
    assert!(taken["records"].as_u64().is_some_and(|records| records > 20), "{taken}");
    assert!(!datacenter.run(&["adm", "backup", "create", "--to", &backup]).status.success(), "it takes nobody's place");
    let content = fs::read(&backup).expect("the backup");
    let read = datacenter.json(&["adm", "-j", "backup", "verify", &backup]);
    assert_eq!(read["end"]["records"], taken["records"]);

    // The schedule's first one is there by itself, in the directory of the settings.
    datacenter.wait("a backup by itself", || {
        datacenter
            .ask(&["adm", "-j", "backup", "list"])
            .is_some_and(|found| !found.as_array().is_some_and(Vec::is_empty))
    });

    was_carried_away(&datacenter);

    // What must be refused is, and nothing is written.
    let says = |arguments: &[&str]| {
        let output = datacenter.run(arguments);
        assert!(!output.status.success(), "{arguments:?} passed");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(says(&["restore", &backup]).contains("a supervisor runs here"));
    datacenter.end_control();
    assert!(says(&["restore", &backup]).contains("has a headnode already"));
    let mut flipped = content.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let damaged = file("damaged.neso-backup");
    fs::write(&damaged, &flipped).expect("a damaged backup");
    let other = file("other.key");
    datacenter.good(&["adm", "backup", "key", &other]);

    // The headnode is lost: store, images, certificates and all.
    let place = datacenter.settings();
    fs::remove_dir_all(place.headnode_dir()).expect("the headnode is lost");
    fs::remove_dir_all(place.pki_dir()).expect("its keys too");
    fs::remove_dir_all(&place.paths.operator).expect("and the operator's");
    assert!(says(&["restore", &damaged]).contains("damaged"));
    assert!(says(&["restore", &backup, "--key", &other]).contains("another key"));
    datacenter.good(&["restore", &backup, "--same-machine", "--dry-run"]);
    assert!(!place.headnode_dir().exists() && !place.pki_dir().exists(), "something was written");

    // It comes from elsewhere.
    let input = fs::File::open(&backup).expect("the backup");
    let restored = datacenter.command(&["restore", "-", "--same-machine"]).stdin(input).output().expect("it runs");
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let nothing = datacenter.run(&["restore", "-"]);
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("nothing came on standard input"));
    datacenter.good(&["up"]);
    goes_on(&datacenter, &kept, runs);
}

/// What a headnode that came back knows and can do, of an instance that runs as `runs`.
fn goes_on(datacenter: &Datacenter, kept: &serde_json::Value, runs: Option<(u64, String)>) {
    let id = kept["id"].as_str().expect("an id");
    datacenter.wait("the instance to be seen", || {
        datacenter.ask(&["adm", "-j", "instance", "get", "kept"]).is_some_and(|now| now["state"] == "running")
    });
    let now = datacenter.json(&["adm", "-j", "instance", "get", "kept"]);
    for field in ["id", "owner", "alias", "server", "nics"] {
        assert_eq!(now[field], kept[field], "{field}");
    }
    assert_eq!(datacenter.init(id), runs, "the instance was touched");
    // Tenants' keys, quotas and addresses are known again, and machines listen.
    datacenter.good(&["instance", "stop", "-w", "kept"]);
    assert_eq!(datacenter.init(id), None);
    datacenter.good(&["instance", "start", "-w", "kept"]);
    datacenter.good(&["instance", "create", "-w", "--name", "young", "minimal", "g1-nano"]);
    for name in ["kept", "young"] {
        datacenter.good(&["instance", "delete", "-w", name]);
    }
    datacenter.wait_idle();
}

/// The operator's command was given the newest backup.
fn was_carried_away(datacenter: &Datacenter) {
    let last = |found: serde_json::Value| found.as_array().and_then(|all| all.last().cloned()).unwrap_or_default();
    let listed = || last(datacenter.ask(&["adm", "-j", "backup", "list"]).unwrap_or_default());
    datacenter.wait("it to be carried away", || listed()["copies"] == serde_json::json!(["backup.command"]));
    let newest = std::path::PathBuf::from(listed()["path"].as_str().expect("a path"));
    let carried = datacenter.root().join("elsewhere").join(newest.file_name().expect("a name"));
    assert_eq!(fs::read(&carried).expect("what was carried away"), fs::read(&newest).expect("the backup"));
}

/// Makes a key and names it in the settings: from here on every backup is sealed.
fn seal_backups(datacenter: &Datacenter) {
    let key = datacenter.root().join("backup.key").display().to_string();
    datacenter.good(&["adm", "backup", "key", &key]);
    datacenter.end_control();
    let settings = datacenter.root().join("etc/neso/neso.toml");
    let text = fs::read_to_string(&settings).expect("settings");
    let named = text.replace("# key_file = \"/etc/neso/backup.key\"", &format!("key_file = {key:?}"));
    assert_ne!(named, text, "the settings file does not speak of keys");
    let elsewhere = datacenter.root().join("elsewhere");
    fs::create_dir(&elsewhere).expect("another machine's disk");
    let nobody = nix::unistd::User::from_name("nobody").expect("users are known").expect("nobody is a user");
    nix::unistd::chown(&elsewhere, Some(nobody.uid), None).expect("it is nobody's");
    let carry = format!("copies = []\ncommand = [\"/bin/sh\", \"-c\", \"cat > {}/{{name}}\"]", elsewhere.display());
    let named = named.replace("copies = []", &carry);
    fs::write(&settings, named).expect("settings");
    datacenter.good(&["up"]);
}
