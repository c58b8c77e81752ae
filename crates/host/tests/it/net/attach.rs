//! Attaching is exact: what differs inside is changed, what a tenant did to our NICs is undone, the rest is left alone.

use std::collections::BTreeMap;

use host::{
    Error,
    link::{LinkNames, Links, NetworkSetup},
    linux::link::LinuxLinks,
};
use model::id::InstanceId;
use serde_json::Value;

use super::site::{Namespace, in_host, network, nic, run};

/// One line per interface and per route inside, sorted: name, MAC, MTU, state, IPv4 addresses.
fn inside(zone: &Namespace) -> String {
    let parse = |text: String| -> Vec<Value> { serde_json::from_str(&text).expect("JSON of `ip`") };
    let mut lines: Vec<String> = Vec::new();
    for link in parse(zone.run(&["ip", "-j", "addr", "show"])) {
        let addresses = link["addr_info"].as_array().expect("a list").iter().filter(|info| info["family"] == "inet");
        let addresses: Vec<String> =
            addresses.map(|info| format!("{}/{}", info["local"].as_str().expect("text"), info["prefixlen"])).collect();
        let up = link["flags"].as_array().expect("a list").iter().any(|flag| flag == "UP");
        lines.push(format!(
            "{} {} {} {} {}",
            link["ifname"].as_str().expect("text"),
            link["address"].as_str().unwrap_or("-"),
            link["mtu"],
            if up { "up" } else { "down" },
            addresses.join(",")
        ));
    }
    for route in parse(zone.run(&["ip", "-j", "-4", "route", "show"])) {
        if route["protocol"] == "kernel" {
            continue;
        }
        let text = |key: &str| route[key].as_str().unwrap_or("-").to_owned();
        lines.push(format!("route {} via {} dev {}", text("dst"), text("gateway"), text("dev")));
    }
    lines.sort_unstable();
    lines.join("\n")
}

const TWO_NICS: &str = "\
eth0 90:b8:d0:00:00:01 1500 up 10.88.0.5/16
eth1 90:b8:d0:00:00:02 1400 up 192.168.128.5/22
lo 00:00:00:00:00:00 65536 up 127.0.0.1/8
route 172.16.0.0/12 via 192.168.128.9 dev eth1
route default via 10.88.0.1 dev eth0";

fn two_nics() -> NetworkSetup {
    let mut second = nic(2, "eth1", "192.168.128.5/22");
    second.mtu = 1400;
    NetworkSetup {
        nics: vec![
            (nic(1, "eth0", "10.88.0.5/16"), network("ext", "10.88.0.0/16")),
            (second, network("priv", "192.168.128.0/22")),
        ],
        routes: [("172.16.0.0/12".parse().expect("a subnet"), "192.168.128.9".parse().expect("an address"))].into(),
    }
}

fn bridged() -> LinuxLinks {
    let links = LinuxLinks::new(LinkNames::default());
    for (_, network) in &two_nics().nics {
        links.ensure_bridge(network).expect("a bridge");
    }
    links
}

#[test]
fn nics_have_their_addresses_and_routes() {
    in_host(|| {
        let (links, zone, instance) = (bridged(), Namespace::new(), InstanceId::random());
        for _ in 0..2 {
            links.attach(instance, &zone.path(), &two_nics()).expect("an attachment");
            assert_eq!(inside(&zone), TWO_NICS);
        }
        let port = run(&["ip", "-d", "link", "show", "nv90b8d0000001"]);
        for wanted in ["master nb-ext", "learning off", "flood off", "guard on", &format!("alias neso {instance}")] {
            assert!(port.contains(wanted), "{wanted} is missing in {port}");
        }
        assert!(!run(&["ip", "addr", "show", "nv90b8d0000001"]).contains("inet"), "host ends have no address");
        let bridge = run(&["ip", "addr", "show", "nb-ext"]);
        assert!(bridge.contains("inet 10.88.0.1/16") && !bridge.contains("inet6"), "{bridge}");
    });
}

#[test]
fn what_differs_is_changed() {
    in_host(|| {
        let (links, zone, instance) = (bridged(), Namespace::new(), InstanceId::random());
        links.attach(instance, &zone.path(), &two_nics()).expect("an attachment");

        // Another address, another MTU, no static route, the second NIC replaced by a third of the same name.
        let mut setup = two_nics();
        setup.nics[0].0 = nic(1, "eth0", "10.88.7.7/16");
        setup.nics[0].0.mtu = 1300;
        setup.nics[1].0 = nic(3, "eth1", "192.168.129.9/22");
        setup.routes = BTreeMap::new();
        links.attach(instance, &zone.path(), &setup).expect("a change");
        assert_eq!(
            inside(&zone),
            "eth0 90:b8:d0:00:00:01 1300 up 10.88.7.7/16\n\
             eth1 90:b8:d0:00:00:03 1500 up 192.168.129.9/22\n\
             lo 00:00:00:00:00:00 65536 up 127.0.0.1/8\n\
             route default via 10.88.0.1 dev eth0"
        );
        // The NIC moves to the other segment.
        setup.nics[1].1 = network("ext", "10.88.0.0/16");
        links.attach(instance, &zone.path(), &setup).expect("a move");
        assert!(run(&["ip", "link", "show", "nv90b8d0000003"]).contains("master nb-ext"));
        assert!(run(&["ip", "-d", "link", "show", "nv90b8d0000003"]).contains("learning off"), "and keeps its manners");
    });
}

#[test]
fn what_a_tenant_did_is_undone_and_its_own_left_alone() {
    in_host(|| {
        let (links, zone, instance) = (bridged(), Namespace::new(), InstanceId::random());
        links.attach(instance, &zone.path(), &two_nics()).expect("an attachment");
        for command in [
            "ip link set eth0 down",
            "ip link set eth0 name mine",
            "ip addr add 10.88.9.9/16 dev eth1",
            "ip addr del 192.168.128.5/22 dev eth1",
            "ip link add own type veth peer name vz",
            "ip addr add 10.1.1.1/24 dev own",
            "ip link set own up",
            "ip route add 10.2.0.0/16 dev own",
            "ip link set vz up",
            "ip link add vx type veth peer name vy",
        ] {
            zone.run(&command.split(' ').collect::<Vec<_>>());
        }
        links.attach(instance, &zone.path(), &two_nics()).expect("a repair");
        let found = inside(&zone);
        let kept = |line: &&str| !["own ", "vx ", "vy ", "vz "].iter().any(|theirs| line.starts_with(theirs));
        let ours: Vec<&str> = found.lines().filter(kept).filter(|line| !line.contains("10.2.0.0")).collect();
        assert_eq!(ours.join("\n"), TWO_NICS);
        assert!(found.contains("10.1.1.1/24") && found.contains("route 10.2.0.0/16"), "{found}");

        // A NIC deleted from inside is made again.
        zone.run(&["ip", "link", "del", "eth1"]);
        links.attach(instance, &zone.path(), &two_nics()).expect("a repair");
        assert_eq!(links.nics().expect("a list").len(), 2);
    });
}

#[test]
fn a_leftover_of_an_earlier_life_is_in_nobodys_way() {
    in_host(|| {
        let (links, instance) = (bridged(), InstanceId::random());
        let earlier = Namespace::new();
        links.attach(instance, &earlier.path(), &two_nics()).expect("an attachment");
        let zone = Namespace::new();
        links.attach(instance, &zone.path(), &two_nics()).expect("in another namespace, the first still there");
        assert_eq!(inside(&zone), TWO_NICS);
    });
}

#[test]
fn trouble_is_told_in_words() {
    in_host(|| {
        let (links, zone, instance) = (bridged(), Namespace::new(), InstanceId::random());
        zone.run(&["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other"]);
        let taken = links.attach(instance, &zone.path(), &two_nics()).expect_err("the name is taken inside");
        assert!(taken.to_string().contains("make NIC `nv90b8d0000001`"), "{taken}");

        let mut astray = two_nics();
        astray.nics.remove(0);
        astray.routes = [("172.16.0.0/12".parse().expect("a subnet"), "9.9.9.9".parse().expect("an address"))].into();
        let refused = links.attach(instance, &zone.path(), &astray).expect_err("no NIC leads there");
        assert!(matches!(&refused, Error::Refused { what, .. } if what.contains("9.9.9.9")), "{refused}");
        let gone = links.attach(instance, std::path::Path::new("/nowhere"), &two_nics()).expect_err("no namespace");
        assert!(gone.to_string().contains("/nowhere"), "{gone}");
    });
}

#[test]
fn removal_leaves_no_trace() {
    in_host(|| {
        let state =
            || run(&["ip", "-o", "link"]) + &run(&["ip", "route", "show", "table", "all"]) + &run(&["ip", "neigh"]);
        let before = state();
        let links = bridged();
        let zones: Vec<(InstanceId, Namespace)> = (0..4).map(|_| (InstanceId::random(), Namespace::new())).collect();
        for (at, (instance, zone)) in zones.iter().enumerate() {
            let mut setup = two_nics();
            for (nic, _) in &mut setup.nics {
                nic.mac.0[4] = u8::try_from(at).expect("a few zones");
            }
            links.attach(*instance, &zone.path(), &setup).expect("an attachment");
        }
        for (instance, _) in &zones {
            links.detach(*instance).expect("a removal");
        }
        links.remove_bridges_except(&[]).expect("a removal");
        assert_eq!(state(), before);
    });
}
