//! A firewall that was changed step by step is the one that would be made as a whole.
//!
//! Changes are netlink messages of ours, a whole table is text for `nft`: what `nft` lists must not tell which it was.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use host::{
    filter::{Filters, Firewall, Place},
    link::LinkNames,
    linux::filter::LinuxFilters,
};
use model::{
    firewall::{Directory, FirewallRule, InstanceView, Language, Rule, compile},
    id::{AccountId, FirewallRuleId, InstanceId, MacAddr},
    time::Timestamp,
};

use super::site::{in_host, run};

struct World {
    owner: AccountId,
    rules: Vec<FirewallRule>,
    views: Vec<InstanceView>,
    /// How many of the instances are on this machine.
    here: usize,
}

impl World {
    fn new(texts: &[&str]) -> Self {
        let mut world = Self { owner: AccountId::random(), rules: Vec::new(), views: Vec::new(), here: 4 };
        for number in 0..8 {
            world.views.push(InstanceView {
                id: InstanceId::random(),
                owner: world.owner,
                tags: BTreeMap::new(),
                addresses: vec![v4(number), v6(number)],
                firewall_enabled: true,
            });
        }
        for (number, tag) in ["web", "db", "web", "idle", "web", "db", "mail", "mail"].into_iter().enumerate() {
            world.tag(number, &[tag]);
        }
        texts.iter().for_each(|text| world.rule(text));
        world
    }

    fn tag(&mut self, number: usize, tags: &[&str]) {
        self.views[number].tags = tags.iter().map(|tag| ((*tag).to_owned(), "1".to_owned())).collect();
    }

    fn rule(&mut self, text: &str) {
        self.rules.push(FirewallRule {
            id: FirewallRuleId::random(),
            owner: Some(self.owner),
            rule: Rule::parse_as(text, Language::CURRENT).expect("a rule"),
            enabled: true,
            log: false,
            description: None,
            created_by: None,
            version: 1,
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
        });
    }

    fn firewall(&self) -> Firewall {
        let here = &self.views[..self.here.min(self.views.len())];
        let target = compile(&self.rules, &Directory::new(self.views.iter().cloned()), here);
        target.check().expect("it fits together");
        let places = here.iter().enumerate().map(|(number, view)| {
            let mac = MacAddr::from_suffix(u32::try_from(number).expect("few"));
            let place = |address: &IpAddr| Place { bridge: "nb-ext".to_owned(), mac, address: *address };
            (view.id, view.addresses.iter().map(place).collect())
        });
        Firewall { target: Arc::new(target), places: places.collect(), separate: Default::default() }
    }
}

fn v4(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a58_0000 + number))
}

fn v6(number: u32) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(0xfd00_0088 << 96 | u128::from(number)))
}

/// Every kind of traffic and of peers, with subnets that hold each other, touch, begin and end where addresses do.
const RULES: [&str; 14] = [
    "FROM tag web TO tag db ALLOW tcp (PORT 80 AND PORT 443)",
    "FROM any TO tag web ALLOW tcp PORT 80",
    "FROM any TO tag web ALLOW tcp PORTS 1-10, 20 - 30, 31, 65535",
    "FROM any TO tag web ALLOW udp PORTS 5000 - 6000",
    "FROM (ip 10.1.0.1 OR subnet 10.1.0.0/16 OR ip 10.2.0.1 OR ip fd00::1 OR subnet fd00::/64) TO tag db ALLOW tcp PORT 23",
    "FROM (ip 10.2.0.1 OR ip 10.2.0.2 OR ip 10.2.0.7) TO tag db ALLOW udp PORT 1",
    "FROM (subnet 0.0.0.0/1 OR subnet 192.0.0.0/2) TO tag db ALLOW udp PORT 2",
    "FROM (subnet 10.0.0.0/8) TO tag db ALLOW udp PORT 3",
    "FROM (subnet 10.64.0.0/11 OR ip 10.99.0.7) TO tag db ALLOW icmp TYPE 8 CODE 0",
    "FROM (subnet fd00::/13 OR subnet fd10::/12) TO tag db ALLOW icmp6 TYPE 128",
    "FROM any TO tag db ALLOW icmp6 TYPE ALL",
    "FROM any TO tag db ALLOW ah PRIORITY 7",
    "FROM tag db TO (ip 10.9.9.9 OR tag web) BLOCK esp",
    "FROM tag db TO any BLOCK udp PORT ALL PRIORITY 3",
];

/// What is in the order of hashes, in another; and nothing of names and stamps.
fn listed(family: &str, table: &str) -> String {
    let text = run(&["nft", "list", "table", family, table]);
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ").replace(table, "TABLE");
    let mut text = sorted(&text).0;
    while let Some(at) = text.find("0x") {
        let digits = text[at + 2..].find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(text.len() - at - 2);
        text.replace_range(at..at + 2 + digits, "STAMP");
    }
    text
}

/// A text with what is between braces in order, as far as order means nothing: lists, sets and chains, not the rules of a chain. And
/// what is behind its closing brace.
fn sorted(text: &str) -> (String, &str) {
    let (mut parts, mut part, mut rest) = (Vec::new(), String::new(), text);
    loop {
        let Some(at) = rest.find(['{', '}', ',']) else {
            part.push_str(rest);
            rest = "";
            break;
        };
        part.push_str(&rest[..at]);
        let sign = &rest[at..=at];
        rest = &rest[at + 1..];
        match sign {
            "{" => {
                let (inner, behind) = sorted(rest);
                part.push_str(&format!("{{{inner}}}"));
                rest = behind;
                let word = part.trim_start();
                if ["set ", "map ", "chain "].iter().any(|kind| word.starts_with(kind)) {
                    parts.push(std::mem::take(&mut part).trim().to_owned());
                }
            }
            "," => parts.push(std::mem::take(&mut part).trim().to_owned()),
            _ => break,
        }
    }
    parts.push(part.trim().to_owned());
    parts.sort();
    (parts.join(","), rest)
}

/// Applies and compares; whether the tables that were there were changed and not made anew.
fn follows(changed: &LinuxFilters, world: &World, what: &str) -> bool {
    let handle = || {
        let text = run(&["nft", "-a", "-t", "list", "ruleset"]);
        text.lines().find(|line| line.starts_with("table inet neso_fw ")).map(str::to_owned)
    };
    let before = handle();
    changed.apply_firewall(&world.firewall()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let after = handle();
    let whole = LinuxFilters::new("another", LinkNames::default());
    whole.apply_firewall(&world.firewall()).expect("a whole table");
    for family in ["inet", "bridge"] {
        let (changed, whole) = (listed(family, "neso_fw"), listed(family, "another_fw"));
        assert!(
            changed == whole,
            "{what}: the table {family} that was changed is\n{changed}\nand made as a whole it is\n{whole}"
        );
        assert!(whole.contains("10.88.0") || family == "bridge", "something is in it: {whole}");
    }
    whole.clear().expect("away with it");
    before.is_some() && before == after
}

#[test]
fn changes_make_what_a_whole_table_is() {
    in_host(|| {
        let filters = LinuxFilters::new("neso", LinkNames::default());
        let mut world = World::new(&RULES[..1]);
        assert!(!follows(&filters, &world, "the first"));
        for text in &RULES[1..] {
            world.rule(text);
            assert!(follows(&filters, &world, text), "a rule more is a change: {text}");
        }
        world.rules[1].log = true;
        assert!(follows(&filters, &world, "a rule that logs"));
        world.tag(4, &["mail", "db"]);
        assert!(follows(&filters, &world, "a tag elsewhere"));
        world.tag(0, &["db"]);
        assert!(follows(&filters, &world, "a tag here"));
        world.views[1].addresses = vec![v4(77), v6(78), v4(79)];
        assert!(follows(&filters, &world, "addresses here"));
        world.views[5].addresses = vec![v6(80)];
        assert!(follows(&filters, &world, "addresses elsewhere"));
        world.views[2].firewall_enabled = false;
        assert!(follows(&filters, &world, "one less is filtered"));
        world.views.remove(0);
        assert!(follows(&filters, &world, "an instance is gone, and another here"));
        let swapped = world.views[0].addresses.clone();
        world.views[0].addresses = std::mem::replace(&mut world.views[2].addresses, swapped);
        assert!(follows(&filters, &world, "addresses change hands"));
        while world.rules.len() > 2 {
            let rule = world.rules.remove(1);
            assert!(follows(&filters, &world, &format!("without {}", rule.rule)));
        }
    });
}

#[test]
fn what_somebody_took_away_is_put_back_whole() {
    in_host(|| {
        let filters = LinuxFilters::new("neso", LinkNames::default());
        let mut world = World::new(&RULES);
        follows(&filters, &world, "the first");
        let text = run(&["nft", "list", "table", "inet", "neso_fw"]);
        let set = text.split("set ").find(|set| set.contains(&v4(4).to_string())).expect("a set of web's addresses");
        let name = set.split_whitespace().next().expect("its name");
        run(&["nft", "delete", "element", "inet", "neso_fw", name, "{", &v4(4).to_string(), "}"]);
        // The kernel refuses to delete what is not there.
        world.tag(4, &["mail"]);
        assert!(!follows(&filters, &world, "a change that is refused"), "then everything is written again");
        world.tag(4, &["web"]);
        assert!(follows(&filters, &world, "the next"));
    });
}
