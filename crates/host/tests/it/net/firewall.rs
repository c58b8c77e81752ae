//! The distributed firewall in a real kernel: rules by tag, live, on zones of one bridge.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
};

use host::{
    fake::{Faults, filter::FakeFilters, filter::FilterMachine},
    filter::{Filters, Firewall, Place},
    link::LinkNames,
    linux::filter::LinuxFilters,
};
use model::{
    firewall::{Directory, FirewallRule, InstanceView, Language, Rule, compile},
    id::{AccountId, FirewallRuleId, InstanceId},
    time::Timestamp,
};

use super::{
    frames::{pings, pings6},
    site::{PATIENCE, SILENCE, Site, Zone, connects, in_host, listen, listen6, network, network6, run},
};

/// One account's rules and instances, and the zones they are.
pub(super) struct Scene {
    owner: AccountId,
    rules: Vec<FirewallRule>,
    views: Vec<InstanceView>,
    places: BTreeMap<InstanceId, Vec<Place>>,
}

impl Scene {
    pub(super) fn new() -> Self {
        Self { owner: AccountId::random(), rules: Vec::new(), views: Vec::new(), places: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, zone: &Zone, bridge: &str, filtered: bool, tags: &[&str]) -> InstanceId {
        let id = InstanceId::random();
        let tags = tags.iter().map(|tag| ((*tag).to_owned(), "1".to_owned())).collect();
        let addresses = zone.addresses();
        let place = |address: &IpAddr| Place { bridge: bridge.to_owned(), mac: zone.mac, address: *address };
        self.places.insert(id, addresses.iter().map(place).collect());
        self.views.push(InstanceView { id, owner: self.owner, tags, addresses, firewall_enabled: filtered });
        id
    }

    fn rule(&mut self, text: &str) {
        self.rules.push(FirewallRule {
            id: FirewallRuleId::random(),
            owner: Some(self.owner),
            rule: Rule::parse_as(text, Language::CURRENT).expect("a rule"),
            enabled: true,
            log: text.contains("PORT 23"),
            description: None,
            created_by: None,
            version: 1,
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
        });
    }

    /// The same, and it logs.
    pub(super) fn logged_rule(&mut self, text: &str) {
        self.rule(text);
        self.rules.iter_mut().last().expect("it was just added").log = true;
    }

    pub(super) fn rule_ids(&self) -> Vec<FirewallRuleId> {
        self.rules.iter().map(|rule| rule.id).collect()
    }

    fn tags(&mut self, id: InstanceId, tags: &[&str]) {
        let view = self.views.iter_mut().find(|view| view.id == id).expect("it was added");
        view.tags = tags.iter().map(|tag| ((*tag).to_owned(), "1".to_owned())).collect();
    }

    pub(super) fn firewall(&self) -> Firewall {
        let directory = Directory::new(self.views.iter().cloned());
        let target = compile(&self.rules, &directory, &self.views);
        target.check().expect("it fits together");
        Firewall { target: Arc::new(target), places: self.places.clone(), separate: Default::default() }
    }
}

/// Rules that match nothing in the test, of every kind.
const OTHERS: [&str; 6] = [
    "FROM (ip 10.1.0.1 OR subnet 10.1.0.0/16 OR ip 10.2.0.1 OR ip fd00::1 OR subnet fd00::/64) TO tag db ALLOW tcp PORT 23",
    "FROM any TO tag db ALLOW udp PORTS 1-10, 20 - 30",
    "FROM any TO tag db ALLOW icmp6 TYPE ALL",
    "FROM any TO tag db ALLOW ah PRIORITY 7",
    "FROM tag db TO (ip 10.9.9.9 OR tag nobody) BLOCK esp",
    "FROM tag db TO any BLOCK udp PORT ALL PRIORITY 3",
];

/// Whether a line sent on an open connection comes back.
fn echoes(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 2];
    stream.write_all(b"hi").is_ok() && stream.read_exact(&mut answer).is_ok()
}

fn serve_echo(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut from, mut to) = (stream.try_clone().expect("a clone"), stream);
                let _ = std::io::copy(&mut from, &mut to);
            });
        }
    });
}

/// An operator's flush is seen, and put back whole.
fn flushes_are_seen(site: &Site, scene: &Scene) {
    assert!(site.filters.intact().expect("a look"));
    run(&["nft", "flush", "ruleset"]);
    assert!(!site.filters.intact().expect("a look"));
    site.filters.apply(&site.set).expect("filters again");
    site.filters.apply_firewall(&scene.firewall()).expect("the firewall again");
    assert!(site.filters.intact().expect("a look"));
    run(&["nft", "flush", "chain", "inet", "neso_fw", "arriving"]);
    assert!(!site.filters.intact().expect("a look"), "one chain of it is missed too");
    site.filters.apply_firewall(&scene.firewall()).expect("the firewall once more");
}

#[test]
fn firewalls_repeat_and_clear() {
    fn suite(filters: &dyn Filters) {
        filters.apply_firewall(&Firewall::default()).expect("nothing to enforce");
        filters.apply_firewall(&Firewall::default()).expect("again");
        assert!(filters.clear().is_ok());
        filters.apply_firewall(&Firewall::default()).expect("nothing after clearing");
    }
    suite(&FakeFilters::new(FilterMachine::default(), Faults::default()));
    in_host(|| suite(&LinuxFilters::new("neso", LinkNames::default())));
}

#[test]
fn rules_follow_tags_and_reach_open_connections() {
    in_host(|| {
        let ext = network("ext", "10.88.0.0/16");
        let mut site = Site::new();
        site.bridge(&ext);
        let (web, db, idle) = (site.zone(&ext), site.zone(&ext), site.zone(&ext));
        let mut scene = Scene::new();
        let web_id = scene.add(&web, "nb-ext", false, &[]);
        scene.add(&db, "nb-ext", true, &["db"]);
        scene.add(&idle, "nb-ext", false, &[]);
        let served = db.namespace.enter(listen);
        let to = SocketAddr::from((db.address, served.local_addr().expect("bound").port()));
        serve_echo(served);
        let open = |from: &Zone, patience| from.namespace.enter(|| connects(to, patience));
        let elsewhere = idle.namespace.enter(listen);
        let out = SocketAddr::from((idle.address, elsewhere.local_addr().expect("bound").port()));

        assert!(open(&web, PATIENCE), "nothing is filtered yet");
        site.filters.apply_firewall(&scene.firewall()).expect("a firewall");
        assert!(!open(&web, SILENCE), "what no rule lets in is dropped");
        assert!(!connects(to, SILENCE), "from the host too");
        assert!(db.namespace.enter(|| connects(out, PATIENCE)), "what goes out goes out, and its answers come back");
        assert!(!web.namespace.enter(|| pings(db.address, SILENCE)), "no rule about pings");

        scene.rule(&format!("FROM tag web TO tag db ALLOW tcp (PORT {} AND PORT 22)", to.port()));
        scene.rule("FROM any TO all vms ALLOW icmp TYPE 8 CODE 0");
        // Many that match nothing here, of every kind, one that logs, and literals that overlap.
        for text in OTHERS {
            scene.rule(text);
        }
        site.filters.apply_firewall(&scene.firewall()).expect("rules");
        assert!(!open(&web, SILENCE), "web has no tag yet");
        assert!(web.namespace.enter(|| pings(db.address, PATIENCE)), "everybody may ping");

        scene.tags(web_id, &["web"]);
        site.filters.apply_firewall(&scene.firewall()).expect("a tag");
        assert!(open(&web, PATIENCE), "a tag later");
        assert!(!open(&idle, SILENCE), "others not");
        let mut held = web.namespace.enter(|| TcpStream::connect_timeout(&to, PATIENCE).expect("it is let in"));
        held.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        assert!(echoes(&mut held));

        scene.tags(web_id, &[]);
        site.filters.apply_firewall(&scene.firewall()).expect("no tag");
        assert!(!open(&web, SILENCE), "without the tag");
        held.set_read_timeout(Some(SILENCE)).expect("a timeout");
        assert!(!echoes(&mut held), "an open connection is judged again");
        scene.tags(web_id, &["web"]);
        site.filters.apply_firewall(&scene.firewall()).expect("the tag again");
        held.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut lost = [0; 2];
        assert!(held.read_exact(&mut lost).is_ok(), "what was held back is sent again and arrives");

        flushes_are_seen(&site, &scene);
        assert!(open(&web, PATIENCE) && !open(&idle, SILENCE));
        for view in &mut scene.views {
            view.firewall_enabled = false;
        }
        site.filters.apply_firewall(&scene.firewall()).expect("off");
        assert!(open(&idle, PATIENCE), "off at once");
        assert!(!run(&["nft", "list", "tables"]).contains("neso_fw"), "nothing is left of it");
    });
}

#[test]
fn rules_hold_in_ipv6_too() {
    in_host(|| {
        let ext = network6("ext", "10.88.0.0/16", "fd00:88::/64");
        let mut site = Site::new();
        site.bridge(&ext);
        let (web, db, idle) = (site.zone(&ext), site.zone(&ext), site.zone(&ext));
        let mut scene = Scene::new();
        scene.add(&web, "nb-ext", false, &["web"]);
        scene.add(&db, "nb-ext", true, &["db"]);
        scene.add(&idle, "nb-ext", false, &[]);
        // Both families on one port.
        let served = db.namespace.enter(listen6);
        let port = served.local_addr().expect("bound").port();
        let (four, six) = (SocketAddr::from((db.address, port)), SocketAddr::from((db.six(), port)));
        let open = |from: &Zone, to, patience| from.namespace.enter(|| connects(to, patience));
        assert!(open(&web, six, PATIENCE) && open(&web, four, PATIENCE), "nothing is filtered yet");

        site.filters.apply_firewall(&scene.firewall()).expect("a firewall");
        assert!(!open(&web, six, SILENCE), "what no rule lets in is dropped");
        assert!(!web.namespace.enter(|| pings6(db.six(), SILENCE)), "no rule about pings");
        scene.rule(&format!("FROM tag web TO tag db ALLOW tcp PORT {port}"));
        site.filters.apply_firewall(&scene.firewall()).expect("a rule");
        assert!(open(&web, six, PATIENCE) && open(&web, four, PATIENCE), "a tag stands for addresses of both families");
        assert!(!open(&idle, six, SILENCE));

        scene.rule("FROM subnet fd00:88::/64 TO tag db ALLOW icmp6 TYPE 128 CODE 0");
        scene.rule(&format!("FROM ip {} TO tag db ALLOW tcp PORT {port}", idle.six()));
        site.filters.apply_firewall(&scene.firewall()).expect("rules with IPv6 addresses");
        assert!(idle.namespace.enter(|| pings6(db.six(), PATIENCE)), "whoever is in the subnet may ping");
        assert!(!idle.namespace.enter(|| pings(db.address, SILENCE)), "in IPv6");
        assert!(open(&idle, six, PATIENCE) && !open(&idle, four, SILENCE), "by its IPv6 address and no other");

        let elsewhere = idle.namespace.enter(listen6);
        let port = elsewhere.local_addr().expect("bound").port();
        let (four, six) = (SocketAddr::from((idle.address, port)), SocketAddr::from((idle.six(), port)));
        assert!(open(&db, six, PATIENCE), "what goes out goes out");
        scene.rule("FROM tag db TO subnet fd00:88::/64 BLOCK tcp PORT ALL");
        site.filters.apply_firewall(&scene.firewall()).expect("a rule about what goes out");
        assert!(!open(&db, six, SILENCE) && open(&db, four, PATIENCE), "unless a rule says otherwise, in its family");
    });
}
