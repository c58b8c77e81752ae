//! Names of a running datacenter, asked for with `dig`: they follow what instances are, on every headnode alike.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    datacenter::Datacenter,
    etcd_store::{Cluster, Second},
};

/// The zone of the settings that are generated.
const ZONE: &str = "dc-1.neso.internal";

/// Whether `dig` is here; says so where it is not.
fn dig_is_here() -> bool {
    let is_here = Command::new("dig").arg("-v").output().is_ok();
    if !is_here {
        println!("skipped: names of a datacenter, because dig is not installed (Debian's package bind9-dnsutils)");
    }
    is_here
}

/// A name server that is asked.
#[derive(Clone, Copy)]
struct Server(SocketAddr);

impl Server {
    fn of(settings: &headnode::Settings) -> Self {
        Self(settings.names.addresses(None)[0])
    }

    /// Lines of `dig` with these arguments; none while it does not answer.
    fn dig(self, arguments: &[&str]) -> Vec<String> {
        let (server, port) = (format!("@{}", self.0.ip()), self.0.port().to_string());
        let fixed = [server.as_str(), "-p", &port, "+time=2", "+tries=2"];
        let output = Command::new("dig").args(fixed).args(arguments).stdin(Stdio::null()).output().expect("`dig` runs");
        if !output.status.success() {
            return Vec::new();
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().map(str::to_owned).collect()
    }

    /// The answers to one question.
    fn ask(self, name: &str, kind: &str) -> BTreeSet<String> {
        self.dig(&["+short", name, kind]).into_iter().collect()
    }

    /// How it answers a question: `NOERROR`, `NXDOMAIN`, `REFUSED` …
    fn status(self, name: &str) -> String {
        let lines = self.dig(&[name, "A"]);
        let line = lines.iter().find_map(|line| line.split_once("status: ").map(|(_, rest)| rest));
        line.and_then(|rest| rest.split(',').next()).unwrap_or("nothing").to_owned()
    }

    fn serial(self, zone: &str) -> u64 {
        let answer = self.ask(zone, "SOA");
        answer.iter().next().and_then(|line| line.split(' ').nth(2)?.parse().ok()).unwrap_or(0)
    }

    /// Whether `delv` can check an address of a name from the zone's key on.
    fn validated(self, anchor: &str, name: &str) -> bool {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("anchors");
        fs::write(&file, anchor).expect("the key is written");
        let mut command = Command::new("delv");
        command.args([&format!("@{}", self.0.ip()), "-p", &self.0.port().to_string(), "-a"]).arg(&file);
        command.arg(format!("+root={ZONE}")).args([name, "A"]).stdin(Stdio::null());
        let output = command.output().expect("`delv` runs; it is in bind9-dnsutils as `dig` is");
        String::from_utf8_lossy(&output.stdout).contains("; fully validated")
    }

    /// A whole zone but its own record, in order.
    fn whole(self, zone: &str) -> BTreeSet<String> {
        let lines = self.dig(&["+noall", "+answer", "+onesoa", zone, "AXFR"]);
        let fields = lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        fields.filter(|line| !line.is_empty() && !line.contains(" SOA ")).collect()
    }
}

/// A datacenter whose instances have addresses of both families, and whose zones anybody on this machine may have.
fn settings(datacenter: &Datacenter) {
    let path = datacenter.root().join(headnode::settings::DEFAULT_FILE);
    let text = fs::read_to_string(&path).expect("settings");
    let part = std::process::id() & 0xffff;
    let text = text.replacen("# subnet6 = \"fd00:80::/64\"", &format!("subnet6 = \"fd00:80:{part:x}::/64\""), 1);
    fs::write(&path, open(text)).expect("settings are written");
}

/// Settings by which anybody on this machine may have whole zones.
fn open(text: String) -> String {
    text.replacen("[first_run]\n", "[[names.transfers]]\nnetwork = \"127.0.0.0/8\"\n\n[first_run]\n", 1)
}

/// All IPv4 addresses of an instance; the first NIC's is the first of its record.
fn addresses(instance: &Value) -> BTreeSet<String> {
    let nics = instance["nics"].as_array().expect("NICs");
    nics.iter().map(|nic| nic["ip"].as_str().expect("an address").to_owned()).collect()
}

fn set(answers: &[&str]) -> BTreeSet<String> {
    answers.iter().map(|answer| (*answer).to_owned()).collect()
}

fn of(name: &str) -> String {
    format!("{name}.{ZONE}")
}

fn create(datacenter: &Datacenter, name: &str, services: &str) -> Value {
    let tag = format!("triton.cns.services={services}");
    datacenter.good(&["instance", "create", "-w", "--name", name, "-t", &tag, "minimal", "g1-nano"]);
    datacenter.json(&["instance", "-j", "get", name])
}

#[test]
fn names_follow_instances() {
    if !dig_is_here() {
        return;
    }
    let Some(datacenter) = Datacenter::start_after(|datacenter| settings(datacenter)) else { return };
    let server = Server::of(&datacenter.settings());
    let web = create(&datacenter, "web", "www:80,www:443:priority=5:weight=7");
    answered(&datacenter, server, &web);
    shown(&datacenter, web["nics"][0]["ip"].as_str().expect("an address"));
    left_and_joined(&datacenter, server, &addresses(&web));
    killed(&datacenter, server, &web);
}

/// What is asked for is answered, and nothing else is.
fn answered(datacenter: &Datacenter, server: Server, web: &Value) {
    let id = web["id"].as_str().expect("an id");
    let (address, six) =
        (web["nics"][0]["ip"].as_str().expect("an address"), web["nics"][0]["ip6"].as_str().expect("another"));
    let (service, own, all) = (of("www.svc.demo"), of("web.inst.demo"), addresses(web));
    assert_eq!(all.len(), 2, "the default networks are two");
    datacenter.wait("the service to have its member", || server.ask(&service, "A") == all);
    assert_eq!(server.ask(&own, "A"), all);
    assert_eq!(server.ask(&own, "AAAA"), set(&[six]));
    assert_eq!(server.ask(&service, "AAAA"), set(&[six]));
    assert_eq!(server.ask(&of(&format!("{id}.inst.demo")), "TXT"), set(&[&format!("\"{id}\"")]));
    assert_eq!(server.ask(&service, "SRV"), BTreeSet::from([format!("0 10 80 {own}."), format!("5 7 443 {own}.")]));
    assert_eq!(server.dig(&["+short", "-x", address]), [format!("{own}.")]);
    assert_eq!(server.dig(&["+short", "-x", six]), [format!("{own}.")]);
    assert_eq!(server.dig(&["+short", "+tcp", &own, "AAAA"]), [six]);
    assert_eq!(server.ask(ZONE, "NS"), set(&[&format!("ns.{ZONE}.")]));
    assert!(!server.ask(&of("ns"), "A").is_empty(), "the name server itself has an address");
    let monitors = server.ask(&of("cmon"), "A");
    assert!(!monitors.is_empty(), "the container monitor has an address");
    assert_eq!(server.ask(&of(&format!("{id}.cmon")), "A"), monitors);
    assert_eq!(
        (server.status(&of("nobody.inst.demo")), server.status("example.org")),
        ("NXDOMAIN".into(), "REFUSED".into())
    );
}

/// Tenants and operators see the same names, and hear of what is no list of services.
fn shown(datacenter: &Datacenter, address: &str) {
    let (service, own) = (of("www.svc.demo"), of("web.inst.demo"));
    let again = datacenter.json(&["instance", "-j", "get", "web"]);
    for name in [&service, &own] {
        assert!(
            again["dns_names"].as_array().is_some_and(|all| all.iter().any(|known| known == name.as_str())),
            "{again}"
        );
    }
    let zones = datacenter.json(&["adm", "-j", "names", "zones"]);
    let zone = zones.as_array().expect("a list").iter().find(|view| view["zone"]["apex"] == ZONE).expect("the zone");
    assert_eq!(zone["instances"], 1);
    let content = datacenter.json(&["adm", "-j", "names", "show", ZONE]);
    let answers = content["names"]["www.svc.demo"].as_array().expect("answers");
    assert!(answers.iter().any(|answer| answer["a"] == address), "{content}");
    let refused = datacenter.run(&["instance", "tags", "web", "triton.cns.services=www:http"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("service \"www\" has port \"http\""), "{words}");
}

/// What stops leaves its services and keeps its own names; the guest takes itself out; others come and go.
fn left_and_joined(datacenter: &Datacenter, server: Server, all: &BTreeSet<String>) {
    let (service, own) = (of("www.svc.demo"), of("web.inst.demo"));
    let is_member = || server.ask(&service, "A") == *all;
    let before = server.serial(ZONE);
    datacenter.good(&["instance", "stop", "-w", "web"]);
    datacenter.wait("the service to be empty", || server.status(&service) == "NXDOMAIN");
    assert_eq!(server.ask(&own, "A"), *all);
    assert!(server.serial(ZONE) > before);
    datacenter.good(&["instance", "start", "-w", "web"]);
    datacenter.wait("the service to have its member again", is_member);
    datacenter.good(&["instance", "metadata", "web", "triton.cns.status=down", "triton.cns.acme-challenge=abc_-1"]);
    // The name stays for what is below it.
    datacenter.wait("the service to be empty", || {
        server.status(&service) == "NOERROR" && server.ask(&service, "A").is_empty()
    });
    assert_eq!(server.ask(&of("_acme-challenge.web.inst.demo"), "TXT"), set(&["\"abc_-1\""]));
    datacenter.good(&["instance", "metadata", "web", "triton.cns.status=up"]);
    datacenter.wait("the service to have its member again", is_member);

    let two = create(datacenter, "two", "www");
    let other = addresses(&two);
    let both: BTreeSet<String> = all.union(&other).cloned().collect();
    datacenter.wait("both members", || server.ask(&service, "A") == both);
    datacenter.good(&["instance", "tags", "two", "triton.cns.services=db:5432"]);
    datacenter.wait("the other service", || server.ask(&of("db.svc.demo"), "A") == other);
    datacenter.wait("one member", is_member);
    datacenter.good(&["instance", "rename", "two", "three"]);
    datacenter.wait("another name", || server.ask(&of("three.inst.demo"), "A") == other);
    assert_eq!(server.status(&of("two.inst.demo")), "NXDOMAIN");
}

/// A headnode that is killed comes back with the same, and takes nothing out meanwhile; what is deleted is gone.
fn killed(datacenter: &Datacenter, server: Server, web: &Value) {
    let (service, own) = (of("www.svc.demo"), of("web.inst.demo"));
    let address = web["nics"][0]["ip"].as_str().expect("an address");
    let (serial, whole) = (server.serial(ZONE), server.whole(ZONE));
    assert!(
        whole.iter().any(|line| line.starts_with(&format!("{service}. ")) && line.ends_with(&format!("A {address}"))),
        "{whole:?}"
    );
    datacenter.kill("headnode");
    datacenter.wait("the name server to be back", || server.serial(ZONE) >= serial);
    assert_eq!(server.whole(ZONE), whole);
    datacenter.wait("the headnode to answer", || datacenter.state("web").is_some());
    assert_eq!(server.whole(ZONE), whole);

    datacenter.good(&["instance", "delete", "-w", "web"]);
    datacenter.wait("its names to go", || server.status(&own) == "NXDOMAIN" && server.status(&service) == "NXDOMAIN");
    datacenter.wait("its address to have no name", || server.dig(&["+short", "-x", address]).is_empty());
    datacenter.good(&["instance", "delete", "-w", "three"]);
    // NS, the name server's address, the container monitor's, and that of whatever it is asked for.
    datacenter.wait("only the headnode's own names to be left", || server.whole(ZONE).len() == 4);
    datacenter.wait_idle();
    datacenter.assert_clean();
}

#[test]
fn two_headnodes_answer_the_same_and_silence_empties_services() {
    if !dig_is_here() {
        return;
    }
    let Some(cluster) = Cluster::start(1) else { return };
    let prepared = |datacenter: &mut Datacenter| {
        settings(datacenter);
        let path = datacenter.root().join(headnode::settings::DEFAULT_FILE);
        let text = fs::read_to_string(&path).expect("settings");
        fs::write(&path, signed(text)).expect("settings are written");
        cluster.keep(datacenter);
    };
    let Some(datacenter) = Datacenter::start_after(prepared) else { return };
    let all = addresses(&create(&datacenter, "web", "www:80"));
    let mut second = Second::start(&datacenter, &cluster);
    second.change_settings(&datacenter, |text| signed(open(text)));
    let (one, other) = (Server::of(&datacenter.settings()), Server::of(&second.settings()));
    assert_ne!(one.0, other.0);
    let service = of("www.svc.demo");
    for server in [one, other] {
        datacenter.wait("both to answer", || server.ask(&service, "A") == all);
    }
    let same = || {
        // Between two looks the zone may change; then they are taken again.
        let serial = one.serial(ZONE);
        let zones = (one.whole(ZONE), other.whole(ZONE));
        serial > 0
            && serial == other.serial(ZONE)
            && serial == one.serial(ZONE)
            && zones.0 == zones.1
            && zones.0.len() > 5
    };
    datacenter.wait("both to have the same", same);
    keys_are_known(&datacenter, one, other, &service);
    datacenter.wait("both to have the same", same);

    // The machine is silent: its agent is stopped where it stands, the instance runs on.
    let agent = datacenter.pid("node").expect("it runs");
    signal(agent, "-STOP");
    for server in [one, other] {
        datacenter.wait("the service to be empty", || server.status(&service) == "NXDOMAIN");
        assert_eq!(server.ask(&of("web.inst.demo"), "A"), all);
    }
    signal(agent, "-CONT");
    for server in [one, other] {
        datacenter.wait("it to be back", || server.ask(&service, "A") == all);
    }

    // The first headnode is stopped: the other publishes.
    let first = datacenter.pid("headnode").expect("it runs");
    signal(first, "-STOP");
    second.good(&datacenter, &["instance", "-j", "tags", "web", "triton.cns.services=db"]);
    datacenter.wait("the other to publish", || other.ask(&of("db.svc.demo"), "A") == all);
    let serial = other.serial(ZONE);
    signal(first, "-CONT");
    datacenter.wait("the first to follow", || one.serial(ZONE) >= serial && one.ask(&of("db.svc.demo"), "A") == all);
    datacenter.wait("both to have the same", same);
    assert!(one.validated(&anchor(&datacenter), &of("db.svc.demo")), "what the other published is signed as well");
    datacenter.good(&["instance", "delete", "-w", "web"]);
    datacenter.wait_idle();
    datacenter.assert_clean();
}

/// Settings by which zones are signed.
fn signed(text: String) -> String {
    let signed = text.replacen("\ndnssec = false\n", "\ndnssec = true\n", 1);
    assert_ne!(signed, text);
    signed
}

/// The KSK for the parent zone, as `delv` takes it.
fn anchor(datacenter: &Datacenter) -> String {
    anchor_with(datacenter, str::to_owned)
}

/// The same with another digest.
fn anchor_with(datacenter: &Datacenter, digest: impl Fn(&str) -> String) -> String {
    let zones = datacenter.json(&["adm", "-j", "names", "dnssec", ZONE]);
    let record = zones[0]["keys"][0]["parent_record"].as_str().expect("a record for the parent").to_owned();
    let words: Vec<&str> = record.split(' ').collect();
    let digest = digest(words[6]);
    format!("trust-anchors {{ {ZONE}. static-ds {} {} {} \"{digest}\"; }};\n", words[3], words[4], words[5])
}

/// Both sign with the same keys, everybody can check it, and a new key is shown by both.
fn keys_are_known(datacenter: &Datacenter, one: Server, other: Server, service: &str) {
    let keys = |server: Server| server.ask(ZONE, "DNSKEY");
    datacenter.wait("both to show the keys", || keys(one).len() == 2 && keys(one) == keys(other));
    for server in [one, other] {
        assert!(server.validated(&anchor(datacenter), service));
    }
    let other_key = anchor_with(datacenter, |digest| digest.chars().rev().collect());
    assert!(!one.validated(&other_key, service), "with another key");
    datacenter.good(&["adm", "names", "dnssec", ZONE, "--roll", "zsk"]);
    datacenter.wait("both to show the next key", || keys(one).len() == 3 && keys(one) == keys(other));
    assert!(other.validated(&anchor(datacenter), service));
    let tag = datacenter.json(&["adm", "-j", "names", "dnssec", ZONE])[0]["keys"][0]["tag"].to_string();
    let early = datacenter.run(&["adm", "names", "dnssec", ZONE, "--parent-has", &tag]);
    let words = String::from_utf8_lossy(&early.stderr).into_owned();
    assert!(!early.status.success() && words.contains("is too new"), "{words}");
}

fn signal(pid: u32, signal: &str) {
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "our own process is there");
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill runs");
    assert!(sent.success());
}
