//! What one instance has of names, as a text that people can read.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::{
    account::Profile,
    id::{ImageId, MacAddr, PackageId, ServerId},
    instance::{Brand, Intent, TagValue},
    network::Fabric,
    pairs::Pairs,
    target::Limits,
    time::Timestamp,
    unit::{CpuShares, Mib},
};

fn id(number: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(0x1111_1111_0000_4000_8000_0000_0000_0000 + number)
}

fn account(login: &str) -> Account {
    Account {
        id: AccountId::new(id(0xacc)),
        login: login.to_owned(),
        profile: Profile::default(),
        operator: false,
        disabled: false,
        names_enabled: true,
        default_network: None,
        created_at: Timestamp(1),
        updated_at: Timestamp(1),
    }
}

fn network(number: u128, name: &str, subnet: &str, subnet6: Option<&str>) -> Network {
    let mut network = Network::bare(NetworkId::new(id(number)), name, Timestamp(0));
    network.subnet = subnet.parse().ok();
    network.subnet6 = subnet6.and_then(|subnet| subnet.parse().ok());
    network
}

fn instance(alias: &str, nics: &[(&Network, &str, Option<&str>)]) -> Instance {
    let limits = Limits {
        memory: Mib(1),
        swap: Mib(1),
        disk: Mib(1),
        max_processes: 1,
        cpu_cap: None,
        cpu_shares: CpuShares(100),
    };
    let nics = nics.iter().enumerate().map(|(at, (network, ip, ip6))| Nic {
        mac: MacAddr::from_suffix(at as u32),
        interface: format!("net{at}"),
        network: network.id,
        ip: ip.parse().ok(),
        ip6: ip6.and_then(|ip| ip.parse().ok()),
        more6: Vec::new(),
        primary: at == 0,
    });
    Instance {
        id: InstanceId::new(id(1)),
        owner: AccountId::new(id(0xacc)),
        alias: alias.to_owned(),
        brand: Brand::Lx,
        image: ImageId::new(id(2)),
        package: PackageId::new(id(3)),
        package_name: "p".to_owned(),
        affinity: Vec::new(),
        limits,
        server: ServerId::new(id(4)),
        nics: nics.collect(),
        metadata: Pairs::default(),
        internal_metadata: Pairs::default(),
        tags: Pairs::default(),
        firewall_enabled: false,
        deletion_protection: false,
        intent: Intent { wanted: Wanted::Running, starts: 1, reboots: 0 },
        fact: None,
        released: false,
        lost_at: None,
        failure: None,
        flow: None,
        timeline: Vec::new(),
        guest_metadata_seen: 0,
        metadata_edits: 0,
        metadata_edits_served: 0,
        history: Vec::new(),
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
        delete_asked_at: None,
        deleted_at: None,
    }
}

fn tagged(mut instance: Instance, tags: &[(&str, &str)]) -> Instance {
    let tags = tags.iter().map(|(key, value)| ((*key).to_owned(), TagValue::Text((*value).to_owned())));
    instance.tags = tags.collect();
    instance
}

fn plan(listed: &[(&Network, &str)]) -> Plan {
    let mut plan = Plan { rest: vec!["dc.cns".to_owned()], ..Plan::default() };
    for (network, zone) in listed {
        plan.listed.entry(network.id).or_default().push((*zone).to_owned());
    }
    plan
}

/// One line a group, ids shortened.
fn shown(parts: &BTreeMap<String, Vec<Group>>) -> String {
    let mut text = String::new();
    for (zone, groups) in parts {
        writeln!(text, "{zone}").expect("strings take everything");
        for group in groups {
            let data: Vec<String> = group
                .data
                .iter()
                .map(|data| match data {
                    Data::A(address) => format!("A {address}"),
                    Data::Aaaa(address) => format!("AAAA {address}"),
                    Data::Txt(text) => format!("TXT {text}"),
                    Data::Srv { priority, weight, port, target } => format!("SRV {priority} {weight} {port} {target}"),
                    Data::Ptr(target) => format!("PTR {target}"),
                })
                .collect();
            let kind = if group.shared { "shared" } else { "own" };
            writeln!(text, "  {} ({kind}): {}", group.names.join(" "), data.join(", ")).expect("likewise");
        }
    }
    text.replace(&id(1).to_string(), "ID").replace(&id(0xacc).to_string(), "OWNER")
}

fn names(instance: &Instance, owner: &Account, state: PublicState, plan: &Plan, networks: &[&Network]) -> String {
    shown(&Subject { instance, owner, owns_label: true, state, networks }.parts(plan))
}

#[test]
fn an_instance_with_services() {
    let (outside, inside) =
        (network(10, "external", "10.80.0.0/16", Some("fd00:80::/64")), network(11, "private", "10.192.0.0/16", None));
    let web = instance("Web_1", &[(&outside, "10.80.0.7", Some("fd00:80::7")), (&inside, "10.192.0.7", None)]);
    let web = tagged(web, &[("triton.cns.services", "www:80,www:443:priority=5,ssh")]);
    let (owner, plan) = (account("demo"), plan(&[(&outside, "pub.example")]));
    let running = names(&web, &owner, PublicState::Running, &plan, &[&outside, &inside]);
    assert_eq!(
        running,
        "\
0.0.0.0.0.0.0.0.0.8.0.0.0.0.d.f.ip6.arpa
  7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0 (shared): PTR web-1.inst.demo.pub.example
192.10.in-addr.arpa
  7.0 (shared): PTR web-1.inst.demo.dc.cns
80.10.in-addr.arpa
  7.0 (shared): PTR web-1.inst.demo.pub.example
dc.cns
  ID.inst.OWNER ID.inst.demo (own): A 10.192.0.7, TXT ID
  ssh.svc.OWNER ssh.svc.demo (shared): A 10.192.0.7, TXT ID
  web-1.inst.OWNER web-1.inst.demo (shared): A 10.192.0.7, TXT ID
  www.svc.OWNER www.svc.demo (shared): A 10.192.0.7, TXT ID, SRV 0 10 80 web-1.inst.demo.dc.cns, SRV 5 10 443 web-1.inst.demo.dc.cns
pub.example
  ID.inst.OWNER ID.inst.demo (own): A 10.80.0.7, AAAA fd00:80::7, TXT ID
  ssh.svc.OWNER ssh.svc.demo (shared): A 10.80.0.7, AAAA fd00:80::7, TXT ID
  web-1.inst.OWNER web-1.inst.demo (shared): A 10.80.0.7, AAAA fd00:80::7, TXT ID
  www.svc.OWNER www.svc.demo (shared): A 10.80.0.7, AAAA fd00:80::7, TXT ID, SRV 0 10 80 web-1.inst.demo.pub.example, SRV 5 10 443 web-1.inst.demo.pub.example
"
    );
    for state in [PublicState::Stopped, PublicState::Stopping, PublicState::Offline, PublicState::Provisioning] {
        let without: String =
            running.lines().filter(|line| !line.contains(".svc.")).map(|line| format!("{line}\n")).collect();
        assert_eq!(names(&web, &owner, state, &plan, &[&outside, &inside]), without, "{}", state.as_str());
    }
    for state in [PublicState::Deleted, PublicState::Failed] {
        assert_eq!(names(&web, &owner, state, &plan, &[&outside, &inside]), "", "{}", state.as_str());
    }
    let mut leaving = web.clone();
    leaving.intent.wanted = Wanted::Absent;
    assert_eq!(names(&leaving, &owner, PublicState::Stopping, &plan, &[&outside, &inside]), "");
}

#[test]
fn what_tenants_say() {
    let outside = network(10, "external", "10.80.0.0/16", None);
    let plain = instance("web", &[(&outside, "10.80.0.7", None)]);
    let (owner, plan) = (account("a.b@c"), plan(&[]));
    let says = |instance: &Instance, owner: &Account| names(instance, owner, PublicState::Running, &plan, &[&outside]);
    let usual = "\
80.10.in-addr.arpa
  7.0 (shared): PTR web.inst.a-b-c.dc.cns
dc.cns
  ID.inst.OWNER ID.inst.a-b-c (own): A 10.80.0.7, TXT ID
  web.inst.OWNER web.inst.a-b-c (shared): A 10.80.0.7, TXT ID
";
    assert_eq!(says(&plain, &owner), usual);
    assert_eq!(says(&tagged(plain.clone(), &[("triton.cns.disable", "yes")]), &owner), "");
    assert_eq!(says(&tagged(plain.clone(), &[("triton.cns.disable", "false")]), &owner), usual);
    assert_eq!(says(&tagged(plain.clone(), &[("triton.cns.services", "Not A List")]), &owner), usual);
    let mail = tagged(plain.clone(), &[("triton.cns.reverse_ptr", "Mail.Example.com"), ("triton.cns.services", "mx")]);
    assert!(says(&mail, &owner).contains("7.0 (shared): PTR mail.example.com"));
    assert!(says(&mail, &owner).contains("mx.svc"));

    let off = Account { names_enabled: false, ..owner.clone() };
    assert_eq!(says(&plain, &off), "");
    let forced = says(&mail, &off);
    assert!(forced.contains("PTR mail.example.com") && forced.contains("ID.inst.OWNER"), "{forced}");
    assert!(!forced.contains("svc"), "{forced}");

    let mut quiet = tagged(plain.clone(), &[("triton.cns.services", "web:80")]);
    assert!(says(&quiet, &owner).contains("web.svc.OWNER"));
    quiet.metadata = [("triton.cns.status".to_owned(), "down".to_owned())].into();
    assert_eq!(says(&quiet, &owner), usual);

    let mut proving = tagged(plain, &[("triton.cns.services", "web")]);
    proving.metadata = [
        ("triton.cns.acme-challenge".to_owned(), "one two".to_owned()),
        ("triton.cns.status".to_owned(), "down".to_owned()),
    ]
    .into();
    let said = says(&proving, &owner);
    for line in [
        "_acme-challenge.ID.inst.OWNER _acme-challenge.ID.inst.a-b-c (own): TXT one, TXT two",
        "_acme-challenge.web.inst.OWNER _acme-challenge.web.inst.a-b-c (shared): TXT one, TXT two",
        "_acme-challenge.web.svc.OWNER _acme-challenge.web.svc.a-b-c (shared): TXT one, TXT two",
    ] {
        assert!(said.contains(line), "{line}\n{said}");
    }
}

#[test]
fn a_tenants_own_network() {
    let mut own = network(12, "My Net", "192.168.128.0/22", None);
    own.owners = vec![AccountId::new(id(0xacc))];
    own.fabric = Some(Fabric { vni: 7, internet_nat: true, routed: false });
    let db = tagged(instance("db", &[(&own, "192.168.128.9", None)]), &[("triton.cns.services", "pg:5432")]);
    let said = names(&db, &account("demo"), PublicState::Running, &plan(&[]), &[&own]);
    assert_eq!(
        said,
        "\
dc.cns
  ID.inst.OWNER ID.inst.demo (own): A 192.168.128.9, TXT ID
  db.inst.OWNER db.inst.demo (shared): A 192.168.128.9, TXT ID
  my-net.ID.inst.OWNER my-net.ID.inst.demo (own): A 192.168.128.9, TXT ID
  my-net.db.inst.OWNER my-net.db.inst.demo (shared): A 192.168.128.9, TXT ID
  my-net.pg.svc.OWNER my-net.pg.svc.demo (shared): A 192.168.128.9, TXT ID, SRV 0 10 5432 db.inst.demo.dc.cns
  pg.svc.OWNER pg.svc.demo (shared): A 192.168.128.9, TXT ID, SRV 0 10 5432 db.inst.demo.dc.cns
"
    );
    let elsewhere = names(&db, &account("demo"), PublicState::Running, &plan(&[(&own, "x.example")]), &[&own]);
    assert!(!elsewhere.contains("my-net"), "only zones with the rest tell networks apart\n{elsewhere}");
}

#[test]
fn a_label_has_one_owner() {
    let (mut first, mut second) = (account("a.b"), account("a-b"));
    second.id = AccountId::new(id(0xadd));
    (first.created_at, second.created_at) = (Timestamp(5), Timestamp(4));
    assert_eq!(label_owner([&first, &second].into_iter()), Some(second.id));
    second.created_at = Timestamp(5);
    assert_eq!(label_owner([&second, &first].into_iter()), Some(first.id));
    let outside = network(10, "external", "10.80.0.0/16", None);
    let web = instance("web", &[(&outside, "10.80.0.7", None)]);
    let networks = [&outside];
    let subject = |owns_label| Subject {
        instance: &web,
        owner: &first,
        owns_label,
        state: PublicState::Running,
        networks: &networks,
    };
    assert!(shown(&subject(true).parts(&plan(&[]))).contains("web.inst.a-b"));
    let without = shown(&subject(false).parts(&plan(&[])));
    assert!(!without.contains("a-b") && without.contains("PTR web.inst.OWNER.dc.cns"), "{without}");
    assert_eq!(suffixes(&plan(&[]), outside.id, &first, true), ["svc.a-b.dc.cns", "inst.a-b.dc.cns"]);
    let id = first.id;
    assert_eq!(suffixes(&plan(&[]), outside.id, &first, false)[0], format!("svc.{id}.dc.cns"));
}

#[test]
fn many_members_are_answered_up_to_a_bound() {
    let group = |number: u32| Group {
        names: vec!["web.svc.demo".to_owned()],
        shared: true,
        data: vec![Data::A(std::net::Ipv4Addr::from_bits(number)), Data::Txt(format!("{number:05}"))],
    };
    let groups: Vec<Group> = (0..700).rev().map(group).collect();
    let data = merged("web.svc.demo", groups.iter().chain(&groups));
    assert_eq!(data.len(), 2 * VALUES_MAX);
    assert_eq!(data[0], Data::A(std::net::Ipv4Addr::from_bits(0)));
    assert_eq!(data[VALUES_MAX], Data::Txt("00000".to_owned()));
    assert_eq!(merged("other.svc.demo", groups.iter()), []);
}

proptest! {
    #[test]
    fn every_name_is_one_dns_has_room_for(
        alias in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,188}",
        login in "[a-z][a-zA-Z0-9_.@-]{2,31}",
        network_name in "[a-zA-Z ._é]{1,80}",
        zone in "[a-z]{1,60}(\\.[a-z]{1,60}){0,3}",
        services in "[a-z]{1,63}(,[a-z]{1,63}(:[1-9]){0,1}){0,3}",
        owned: bool,
    ) {
        let mut outside = network(10, &network_name, "10.80.0.0/16", Some("fd00::/64"));
        if owned {
            outside.owners = vec![AccountId::new(id(0xacc))];
        }
        let web = instance(&alias, &[(&outside, "10.80.0.7", Some("fd00::7"))]);
        let web = tagged(web, &[("triton.cns.services", services.as_str())]);
        let owner = account(&login);
        let plan = Plan { rest: vec![zone], ..Plan::default() };
        let networks = [&outside];
        let subject = Subject { instance: &web, owner: &owner, owns_label: true, state: PublicState::Running, networks: &networks };
        let parts = subject.parts(&plan);
        for (zone, groups) in &parts {
            prop_assert!(!groups.is_empty());
            for group in groups {
                prop_assert!(!group.names.is_empty() && !group.data.is_empty());
                prop_assert!(group.data.windows(2).all(|two| two[0] < two[1]));
                for name in &group.names {
                    let whole = format!("{name}.{zone}");
                    prop_assert!(whole.len() <= NAME_MAX);
                    prop_assert!(whole.split('.').all(|label| (1..=LABEL_MAX).contains(&label.len())), "{}", whole);
                    prop_assert_eq!(whole.to_ascii_lowercase(), whole.clone());
                }
            }
            let mut names: Vec<&String> = groups.iter().flat_map(|group| &group.names).collect();
            let count = names.len();
            names.sort();
            names.dedup();
            prop_assert_eq!(names.len(), count, "no name is in two groups of one instance");
        }
        let kept = serde_json::to_string(&subject.published(&plan)).expect("plain data");
        let read: Published = serde_json::from_str(&kept).expect("what was written");
        prop_assert_eq!(read, subject.published(&plan));
    }
}
