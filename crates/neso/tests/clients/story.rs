//! The story: what a tenant does on the first day, command by command.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    datacenter::Datacenter,
    shape::{Kind, check},
};

/// A change of keys gets this long to reach a node and its instances.
const KEY_PATIENCE: Duration = Duration::from_secs(60);

/// Tells all of it.
pub(crate) fn tell(dc: &Datacenter) {
    looking_around(dc);
    keys(dc);
    let package = packages(dc);
    let image = images(dc);
    networks(dc);
    fabrics(dc);
    let id = create(dc, &image, &package);
    reading(dc, &id, &image, &package);
    affinity(dc, &id, &image, &package);
    filters(dc, &id);
    tags_and_metadata(dc, &id);
    nics(dc, &id);
    firewall(dc, &id);
    not_here(dc, &id);
    listening(dc, &id);
    turning_off_and_on(dc, &id);
    changing(dc, &id);
    logging_in(dc);
    deleting(dc, &id);
}

fn looking_around(dc: &Datacenter) {
    dc.triton("profile list").good();
    let info = dc.one("info -j");
    check("info", &info, &[("login", Kind::Text), ("url", Kind::Text), ("totalInstances", Kind::Number)]);
    let account = dc.one("account get -j");
    check(
        "account",
        &account,
        &[
            ("id", Kind::Uuid),
            ("login", Kind::Text),
            ("email", Kind::Text),
            ("created", Kind::Time),
            ("updated", Kind::Time),
            ("triton_cns_enabled?", Kind::Bool),
        ],
    );
    let datacenters = dc.json("datacenters -j");
    assert_eq!(datacenters.len(), 1);
    dc.triton("services").good();
    dc.triton("account update company=nobody").refused("company");
    dc.triton("account update companyName=Example city=Ulm triton_cns_enabled=true").good();
    let account = dc.one("account get -j");
    assert_eq!((&account["companyName"], &account["city"]), (&json!("Example"), &json!("Ulm")));
    assert!(dc.json("account limits -j").is_empty());
    let pong = dc.triton("cloudapi /--ping").good();
    assert!(pong.contains("pong") && pong.contains("9.0.0"), "{pong}");
}

fn keys(dc: &Datacenter) {
    let before = dc.json("key list -j");
    check("key", &before[0], &[("name", Kind::Text), ("fingerprint", Kind::Fingerprint), ("key", Kind::Text)]);
    let file = dc.scratch().join("second.pub");
    // A key nobody holds the other half of; only its public part is ever needed.
    fs::write(
        &file,
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJXhEaD8D8cyXlbCw2PxsFXC21m9F9fHg9AObtFbI0HL second@example\n",
    )
    .expect("the root can be written");
    dc.triton_with(&["key", "add", "-n", "second", &file.display().to_string()]).good();
    assert_eq!(dc.json("key list -j").len(), before.len() + 1);
    assert_eq!(dc.one("key get -j second")["name"], "second");
    dc.triton_with(&["key", "add", "-n", "second", &file.display().to_string()]).refused("");
    dc.triton("key delete -y second").good();
    assert_eq!(dc.json("key list -j").len(), before.len());
}

fn packages(dc: &Datacenter) -> String {
    let packages = dc.json("package list -j");
    for package in &packages {
        check(
            "package",
            package,
            &[
                ("id", Kind::Uuid),
                ("name", Kind::Text),
                ("memory", Kind::Number),
                ("disk", Kind::Number),
                ("swap", Kind::Number),
                ("vcpus", Kind::Number),
                ("lwps", Kind::Number),
            ],
        );
    }
    let smallest = packages.iter().min_by_key(|package| package["memory"].as_u64()).expect("there are packages");
    let name = smallest["name"].as_str().expect("a name");
    assert_eq!(dc.one(&format!("package get -j {name}"))["id"], smallest["id"]);
    name.to_owned()
}

fn images(dc: &Datacenter) -> String {
    let images = dc.json("image list -j");
    let minimal = images.iter().find(|image| image["name"] == "minimal").expect("the minimal image is there");
    check(
        "image",
        minimal,
        &[
            ("id", Kind::Uuid),
            ("owner", Kind::Uuid),
            ("version", Kind::Text),
            ("os", Kind::Text),
            ("type", Kind::Text),
            ("state", Kind::Text),
            ("public", Kind::Bool),
            ("published_at", Kind::Time),
            ("requirements", Kind::Object),
            ("files?", Kind::List),
        ],
    );
    assert_eq!((&minimal["type"], &minimal["state"]), (&json!("lx-dataset"), &json!("active")));
    assert_eq!(dc.one("image get -j minimal")["id"], minimal["id"]);
    dc.triton("image get nothing-like-this").refused("ResourceNotFound");
    assert!(dc.json("image list -j name=no-such-image").is_empty());
    assert_eq!(dc.json("image list -j name=minimal os=linux type=lx-dataset public=true").len(), 1);
    // It belongs to the operator.
    let id = minimal["id"].as_str().expect("an id");
    dc.triton(&format!("image update {id} description=mine")).refused("belongs to another account");
    dc.triton(&format!("image delete -f {id}")).refused("belongs to another account");
    dc.triton(&format!("image export {id} --dry-run /stor/x")).refused("");
    minimal["id"].as_str().expect("an id").to_owned()
}

fn networks(dc: &Datacenter) {
    let networks = dc.json("network list -j");
    for network in &networks {
        check("network", network, &[("id", Kind::Uuid), ("name", Kind::Text), ("public", Kind::Bool)]);
    }
    let external = dc.one("network get -j external");
    assert!(networks.iter().any(|network| network["id"] == external["id"]));
    dc.triton("network ip list external").refused("NotAuthorized");
    if let Some(own) = networks.iter().find(|network| network["public"] == false) {
        let id = own["id"].as_str().expect("an id");
        let addresses = dc.json(&format!("network ip list -j {id}"));
        for address in &addresses {
            check("address", address, &[("ip", Kind::Ip), ("reserved", Kind::Bool), ("managed", Kind::Bool)]);
        }
        if let Some(ip) = addresses.first().and_then(|address| address["ip"].as_str()) {
            assert_eq!(&dc.one(&format!("network ip get -j {id} {ip}")), &addresses[0]);
        }
        dc.triton(&format!("network ip get {id} 192.0.2.1")).refused("");
    }
}

/// Networks of one's own.
fn fabrics(dc: &Datacenter) {
    dc.triton("vlan create -n v3 3").good();
    assert_eq!(dc.one("vlan get -j 3"), json!({"vlan_id": 3, "name": "v3"}));
    assert_eq!(dc.json("vlan list -j").len(), 1);
    dc.triton("vlan create -n v3 3").refused("already exists");
    let network = "network create --name net3 --subnet 10.3.0.0/24 --start_ip 10.3.0.10 --end_ip 10.3.0.99";
    let rest = "--gateway 10.3.0.1 --resolver 8.8.8.8 --route 10.9.0.0/16=10.3.0.2 3";
    dc.triton(&format!("{network} {rest}")).good();
    let mut made = dc.one("network get -j net3");
    // Fabrics' own paths do not tell them, in Triton neither.
    let suffixes = made.as_object_mut().and_then(|network| network.remove("suffixes"));
    assert_eq!(suffixes.as_ref().and_then(Value::as_array).map(Vec::len), Some(2), "{suffixes:?}");
    assert_eq!((&made["fabric"], &made["vlan_id"], &made["internet_nat"]), (&json!(true), &json!(3), &json!(true)));
    assert_eq!(made["routes"], json!({"10.9.0.0/16": "10.3.0.2"}));
    dc.triton(&format!("{network} {rest}")).refused("already exists");
    let public = network.replace("net3", "bad").replace("10.3.0", "8.8.8");
    dc.triton(&format!("{public} --gateway 8.8.8.1 3")).refused("must lie in 10.0.0.0/8");
    assert_eq!(dc.json("vlan networks -j 3"), [made]);
    assert_eq!(dc.one("network ip update -j net3 10.3.0.20 reserved=true")["reserved"], true);
    assert!(dc.json("network ip list -j net3").iter().any(|address| address["ip"] == "10.3.0.20"));
    dc.triton("vlan delete 3").refused("delete what is on it first");
    dc.triton("network delete net3").good();
    dc.triton("vlan delete 3").good();
    assert!(dc.json("vlan list -j").is_empty());
}

fn create(dc: &Datacenter, image: &str, package: &str) -> String {
    let created = dc.json(&format!(
        "instance create -w -j -n story-{{{{shortId}}}} -t role=story -m motto=onward {image} {package}"
    ));
    let last = created.last().expect("create prints the instance");
    assert_eq!(last["state"], "running", "{last}");
    let id = last["id"].as_str().expect("an id").to_owned();
    assert_eq!(last["name"], format!("story-{}", &id[..8]));
    dc.triton(&format!("instance create -n bad {image} no-such-package")).refused("");
    id
}

fn reading(dc: &Datacenter, id: &str, image: &str, package: &str) {
    let machine = dc.one(&format!("instance get -j {}", &id[..8]));
    check(
        "machine",
        &machine,
        &[
            ("id", Kind::Uuid),
            ("name", Kind::Text),
            ("type", Kind::Text),
            ("brand", Kind::Text),
            ("state", Kind::Text),
            ("image", Kind::Uuid),
            ("ips", Kind::List),
            ("memory", Kind::Number),
            ("disk", Kind::Number),
            ("metadata", Kind::Object),
            ("tags", Kind::Object),
            ("created", Kind::Time),
            ("updated", Kind::Time),
            ("docker?", Kind::Bool),
            ("networks", Kind::List),
            ("nics?", Kind::List),
            ("primaryIp", Kind::Ip),
            ("firewall_enabled", Kind::Bool),
            ("deletion_protection", Kind::Bool),
            ("compute_node", Kind::Uuid),
            ("package", Kind::Text),
            ("dns_names", Kind::List),
        ],
    );
    let named = format!("{id}.inst.");
    let has_names = || {
        let machine = dc.one(&format!("instance get -j {id}"));
        let names = machine["dns_names"].as_array().cloned().unwrap_or_default();
        names.iter().any(|name| name.as_str().is_some_and(|name| name.starts_with(&named)))
    };
    for look in 0.. {
        if has_names() {
            break;
        }
        assert!(look < 100, "its names are not shown");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(
        (&machine["image"], &machine["package"]),
        (&json!(image), &json!(package)),
        "a package is named, not numbered"
    );
    assert_eq!((&machine["tags"]["role"], &machine["metadata"]["motto"]), (&json!("story"), &json!("onward")));
    let listed = dc.json("instance list -j");
    assert!(listed.iter().any(|other| other["id"] == id), "{listed:?}");
    assert_eq!(
        dc.triton(&format!("instance ip {id}")).good().trim(),
        machine["primaryIp"].as_str().expect("an address")
    );
    let nics = dc.json(&format!("instance nic list -j {id}"));
    check(
        "nic",
        &nics[0],
        &[
            ("mac", Kind::Mac),
            ("primary", Kind::Bool),
            ("ip", Kind::Ip),
            ("netmask", Kind::Ip),
            ("state", Kind::Text),
            ("network", Kind::Uuid),
        ],
    );
}

/// Rules of affinity on the one machine there is: beside somebody it can be, apart from somebody it cannot.
fn affinity(dc: &Datacenter, id: &str, image: &str, package: &str) {
    let create = |name: &str, rules: &str| format!("instance create -w -j -n {name} {rules} {image} {package}");
    let name = dc.one(&format!("instance get -j {id}"))["name"].as_str().expect("a name").to_owned();
    let near = format!("-a instance=={name} -a role!=~db*");
    let created = dc.json(&create("beside", &near));
    let beside = created.last().expect("create prints the instance");
    assert_eq!(beside["state"], "running", "{beside}");
    let node = |id: &Value| {
        let id = id.as_str().expect("an id");
        dc.one(&format!("instance get -j {id}"))["compute_node"].as_str().expect("a machine").to_owned()
    };
    assert_eq!(node(&beside["id"]), node(&json!(id)), "beside it");
    for (rules, said) in [
        (format!("-a instance!={name}"), "ruled out by affinity"),
        ("-a role!=story".to_owned(), "ruled out by affinity"),
        ("-a instance==nobody".to_owned(), "no instance of yours matches affinity rule"),
        ("-a instance!=/(/".to_owned(), "is no regular expression"),
        (format!("-a instance=={name} -a instance!={name}"), "contradict each other"),
    ] {
        dc.triton(&create("apart", &rules)).refused(said);
    }
    // A wish that cannot be met is none.
    let created = dc.json(&create("wished", &format!("-a instance!=~{name}")));
    assert_eq!(created.last().expect("create prints the instance")["state"], "running");
    for name in ["beside", "wished"] {
        dc.triton(&format!("instance delete -f -w {name}")).good();
    }
}

fn filters(dc: &Datacenter, id: &str) {
    let found = |filters: &str| dc.json(&format!("instance list -j {filters}")).iter().any(|one| one["id"] == id);
    for filters in [
        "state=running",
        "state=provisioning",
        "brand=lx",
        "type=smartmachine",
        "tag.role=story",
        "docker=false",
        "brand=lx state=running tag.role=story",
    ] {
        assert!(found(filters), "instance list {filters}");
    }
    for filters in ["state=stopped", "brand=bhyve", "type=virtualmachine", "tag.role=other", "name=other", "memory=1"] {
        assert!(!found(filters), "instance list {filters}");
    }
    dc.triton("instance list state=odd").refused("not a valid state");
    dc.triton("instance list foo=bar").refused("foo");
    let page = |limit: usize, offset: usize| {
        let out = dc.triton(&format!("cloudapi /my/machines?limit={limit}&offset={offset}")).good();
        serde_json::from_str::<Vec<Value>>(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    };
    let all = page(1000, 0);
    let paged: Vec<Value> = (0..all.len()).flat_map(|offset| page(1, offset)).collect();
    assert_eq!(paged.len(), all.len());
    assert!(page(1, all.len()).is_empty());
    // Headers go to standard error.
    let headers = dc.triton("cloudapi -i /my/machines?limit=1").err.to_lowercase();
    assert!(headers.contains("x-query-limit: 1\n") && headers.contains("x-resource-count: 1\n"), "{headers}");
}

fn nics(dc: &Datacenter, id: &str) {
    let list = || dc.json(&format!("instance nic list -j {id}"));
    let Some(second) = list().into_iter().find(|nic| nic["primary"] == false) else {
        println!("skipped: triton instance nic delete and create, because there is one network only");
        return;
    };
    let text = |nic: &Value, field: &str| nic[field].as_str().expect("text").to_owned();
    let network = text(&second, "network");
    dc.triton(&format!("instance nic create {id} {network}")).refused("already has a NIC on that network");
    dc.triton(&format!("instance nic delete -f {id} {}", text(&second, "mac"))).good();
    dc.triton(&format!("instance nic get {id} {}", text(&second, "mac"))).refused("ResourceNotFound");
    let nic = dc.one(&format!("instance nic create -w -j {id} {network}"));
    check("nic", &nic, &[("mac", Kind::Mac), ("ip", Kind::Ip), ("primary", Kind::Bool), ("state", Kind::Text)]);
    assert_eq!((&nic["state"], &nic["network"]), (&json!("running"), &json!(network)));
    assert_eq!(dc.one(&format!("instance nic get -j {id} {}", text(&nic, "mac"))), nic);
    assert_eq!(list().len(), 2);
    dc.triton(&format!("instance nic create {id} 00000000")).refused("no network with name or short id");
}

fn firewall(dc: &Datacenter, id: &str) {
    let text = format!("FROM any TO vm {id} ALLOW tcp PORT 80");
    dc.triton_with(&["fwrule", "create", &text]).good();
    let named = |listed: &[Value], field: &str, value: &str| listed.iter().any(|one| one[field] == value);
    let rules = dc.json("fwrule list -j");
    let rule = rules.iter().find(|rule| rule["rule"] == text).unwrap_or_else(|| panic!("it is listed: {rules:?}"));
    assert_eq!(rule["enabled"], true, "the command asks for a rule in force");
    let rule = rule["id"].as_str().expect("an id").to_owned();
    dc.triton(&format!("instance enable-firewall -w {id}")).good();
    assert!(named(&dc.json(&format!("fwrule instances -j {rule}")), "id", id));
    assert!(named(&dc.json(&format!("instance fwrules -j {id}")), "id", &rule));
    dc.triton(&format!("fwrule disable {rule}")).good();
    assert_eq!(dc.one(&format!("fwrule get -j {rule}"))["enabled"], false);
    dc.triton(&format!("fwrule enable {rule}")).good();
    dc.triton_with(&["fwrule", "create", "FROM any TO nobody ALLOW tcp PORT 80"]).refused("rule");
    dc.triton(&format!("fwrule delete -f {rule}")).good();
    assert!(!named(&dc.json("fwrule list -j"), "id", &rule));
    dc.triton(&format!("instance disable-firewall -w {id}")).good();
}

/// What this datacenter does not have is an empty list, or a refusal that says so.
fn not_here(dc: &Datacenter, id: &str) {
    for empty in ["volume list", "rbac users", "rbac roles", "rbac policies", "instance migration list"] {
        assert!(dc.json(&format!("{empty} -j")).is_empty(), "{empty}");
    }
    assert!(dc.json(&format!("instance snapshot list -j {id}")).is_empty());
    dc.triton(&format!("instance snapshot create -n one {id}")).refused("does not offer");
    dc.triton(&format!("image create {id} mine 1.0.0")).refused("does not offer");
    dc.triton("volume create -n v -s 10G").refused("does not offer");
    dc.triton(&format!("instance migration begin {id}")).refused("does not offer");
}

/// `triton changefeed` runs until it is interrupted; what it prints comes as things happen.
fn listening(dc: &Datacenter, id: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let heard = directory.path().join("heard");
    let mut command = dc.triton_command(&["changefeed", "-j"]);
    let mut child = command.stdout(fs::File::create(&heard).expect("a file")).spawn().expect("it runs");
    let deadline = Instant::now() + KEY_PATIENCE;
    let told = loop {
        // It says nowhere that it listens, so that things happen until one is told.
        dc.triton(&format!("instance tag set -w {id} heard={}", deadline.duration_since(Instant::now()).as_millis()))
            .good();
        let lines = fs::read_to_string(&heard).expect("what was heard");
        if let Some(line) = lines.lines().find_map(|line| serde_json::from_str::<Value>(line).ok()) {
            break line;
        }
        assert!(Instant::now() < deadline, "nothing is told");
    };
    child.kill().expect("it still listens");
    child.wait().expect("it has ended");
    assert_eq!(told["changedResourceId"], *id);
    assert_eq!(told["changeKind"], json!({"resource": "vm", "subResources": ["tags"]}));
    assert_eq!(told["resourceState"], "running");
    assert!(told["published"].as_str().is_some_and(|at| at.parse::<u64>().is_ok()) && told.get("cursor").is_none());
    check("changefeed", &told["resourceObject"], &[("id", Kind::Uuid), ("state", Kind::Text), ("tags", Kind::Object)]);
    dc.triton(&format!("instance tag delete -w {id} heard")).good();
}

fn tags_and_metadata(dc: &Datacenter, id: &str) {
    dc.triton(&format!("instance tag set -w {id} color=green count=3 live=true")).good();
    let tags = dc.one(&format!("instance tag list -j {id}"));
    assert_eq!(tags, json!({"role": "story", "color": "green", "count": 3, "live": true}), "types are kept");
    assert_eq!(dc.triton(&format!("instance tag get {id} color")).good().trim(), "green");
    dc.triton(&format!("instance tag delete -w {id} count live")).good();
    dc.triton(&format!("instance tag replace-all -w {id} only=this")).good();
    assert_eq!(dc.one(&format!("instance tag list -j {id}")), json!({"only": "this"}));
    // These wait for a line in the audit that is younger than the answer: written when the machine serves the change.
    dc.triton(&format!("instance metadata set -w {id} motto=upward other=x")).good();
    assert_eq!(dc.triton(&format!("instance metadata get {id} motto")).good().trim(), "upward");
    assert_eq!(dc.one(&format!("instance get -j {id}"))["metadata"]["motto"], "upward");
    dc.triton(&format!("instance metadata delete -f -w {id} motto")).good();
    assert_eq!(dc.one(&format!("instance metadata list -j {id}")).get("motto"), None);
    dc.triton(&format!("instance metadata delete -f -w -a {id}")).good();
    assert_eq!(dc.one(&format!("instance metadata list -j {id}")).get("other"), None);
    dc.triton(&format!("instance metadata get {id} other")).refused("ResourceNotFound");
}

fn turning_off_and_on(dc: &Datacenter, id: &str) {
    let state = |wanted: &str| assert_eq!(dc.one(&format!("instance get -j {id}"))["state"], wanted);
    dc.triton(&format!("instance stop -w {id}")).good();
    state("stopped");
    dc.triton(&format!("instance start -w {id}")).good();
    state("running");
    dc.triton(&format!("instance reboot -w {id}")).good();
    state("running");
}

fn changing(dc: &Datacenter, id: &str) {
    let before = dc.one(&format!("instance get -j {id}"));
    let packages = dc.json("package list -j");
    let larger = packages
        .iter()
        .filter(|package| package["memory"].as_u64() > before["memory"].as_u64())
        .min_by_key(|package| package["memory"].as_u64())
        .expect("there is a larger package");
    let name = larger["name"].as_str().expect("a name");
    dc.triton(&format!("instance resize -w {id} {name}")).good();
    let after = dc.one(&format!("instance get -j {id}"));
    assert_eq!((&after["package"], &after["memory"]), (&larger["name"], &larger["memory"]));
    dc.triton(&format!("instance rename -w {id} renamed")).good();
    assert_eq!(dc.one("instance get -j renamed")["id"], id);
    dc.triton("instance rename -w renamed no_such!name").refused("name: may only have letters");
    dc.triton("instance resize renamed no-such-package")
        .refused("no package with name or short id \"no-such-package\"");
    dc.triton("instance get no-such-instance").refused("no instance with name or short id");
    dc.triton("instance get 00000000-0000-0000-0000-000000000001").refused("ResourceNotFound");
    dc.triton(&format!("instance enable-firewall -w {id}")).good();
    assert_eq!(dc.one("instance get -j renamed")["firewall_enabled"], true);
    dc.triton(&format!("instance disable-firewall -w {id}")).good();
}

/// Into the first instance, which has sshd; the small one has none.
fn logging_in(dc: &Datacenter) {
    let Some(debian) = dc.json("instance list -j").into_iter().find(|machine| has_sshd(dc, machine)) else {
        println!("skipped: triton ssh, because no image with sshd was built here");
        return;
    };
    let id = debian["id"].as_str().expect("an id");
    // OpenSSH looks for keys in the home directory of the user database, not in ours.
    let key = dc.key().display().to_string();
    let out = dc.triton_with(&ssh(id, &key)).good();
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), [id, "0"]);

    // A key added while it runs opens the door, and closes it again when it is taken away.
    let late = dc.scratch().join("late");
    let file = late.display().to_string();
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &file]).status();
    assert!(made.is_ok_and(|status| status.success()), "`ssh-keygen` makes a key");
    let opens = |what: &str, expected: bool| {
        let deadline = Instant::now() + KEY_PATIENCE;
        while (dc.triton_with(&ssh(id, &file)).code == Some(0)) != expected {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    opens("a key of nobody's opens the door", false);
    dc.triton_with(&["key", "add", "-n", "late", &format!("{file}.pub")]).good();
    opens("a key that was added does not open the door", true);
    dc.triton("key delete -y late").good();
    opens("a key that was removed still opens the door", false);
}

/// `triton ssh` with one key and no other.
fn ssh<'a>(id: &'a str, key: &'a str) -> Vec<&'a str> {
    let mut words = vec!["instance", "ssh", id, "-i", key];
    for option in ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "IdentitiesOnly=yes"] {
        words.extend(["-o", option]);
    }
    words.push("mdata-get sdc:uuid; id -u");
    words
}

fn has_sshd(dc: &Datacenter, machine: &Value) -> bool {
    let image = machine["image"].as_str().unwrap_or_default();
    dc.one(&format!("image get -j {image}"))["name"] == "debian-12"
}

fn deleting(dc: &Datacenter, id: &str) {
    dc.triton(&format!("instance enable-deletion-protection -w {id}")).good();
    assert_eq!(dc.one(&format!("instance get -j {id}"))["deletion_protection"], true);
    dc.triton(&format!("instance delete -f -w {id}")).refused("");
    dc.triton(&format!("instance disable-deletion-protection -w {id}")).good();

    let audit = dc.json(&format!("instance audit -j {id}"));
    for entry in &audit {
        check(
            "audit",
            entry,
            &[("action", Kind::Text), ("success", Kind::Text), ("time", Kind::Time), ("caller", Kind::Object)],
        );
    }
    let actions: Vec<&str> = audit.iter().filter_map(|entry| entry["action"].as_str()).collect();
    for action in [
        "provision",
        "stop",
        "start",
        "reboot",
        "resize",
        "rename",
        "set_metadata",
        "remove_metadata",
        "replace_metadata",
        "set_tags",
        "remove_tags",
        "replace_tags",
        "add_nics",
        "remove_nics",
        "enable_deletion_protection",
    ] {
        assert!(actions.contains(&action), "the audit has no {action}: {actions:?}");
    }
    assert!(audit.windows(2).all(|pair| pair[0]["time"].as_str() >= pair[1]["time"].as_str()), "newest first");

    dc.triton(&format!("instance delete -f -w {id}")).good();
    assert!(!dc.json("instance list -j").iter().any(|machine| machine["id"] == id));
    // It is shown once more, and the command fails.
    dc.triton(&format!("instance get -j {id}")).refused("was deleted");
}
