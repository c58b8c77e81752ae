//! IPv6 of a running datacenter: an operator's network gives addresses of both families, instances reach each other and their
//! gateway by them, and nobody else in their name.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener},
    process::Command,
};

use serde_json::Value;

use crate::{
    datacenter::Datacenter,
    inside::{Guest, READY, to_hex},
    lies,
    network::{Outside, run},
    signed::Tenant,
    wire::{Wire, contains},
};

#[test]
fn instances_speak_ipv6_in_their_own_name() {
    let Some(datacenter) = Datacenter::start() else { return };
    let site = Site::make(&datacenter);
    site.addresses();
    site.reach();
    site.spoofing();
    site.powers();
    site.repair();
    site.relist();
    for name in ["ada", "ben"] {
        datacenter.good(&["instance", "delete", name]);
    }
    datacenter.wait("all to be gone", || datacenter.instances().is_empty());
    datacenter.wait_idle();
    datacenter.assert_clean();
}

/// A network a tenant drew: its own subnet, a gateway that is a router of its own, and a way out.
#[test]
fn a_tenants_own_network_speaks_ipv6() {
    let Some(datacenter) = Datacenter::start() else { return };
    let outside = Outside::new();
    let own = u16::try_from(std::process::id() & 0xfff).expect("twelve bits");
    let world = |last| Ipv6Addr::new(0x2001, 0xdb8, own, 0, 0, 0, 0, last);
    let at = |last| format!("{}/64", world(last));
    run(&["ip", "-6", "address", "add", &at(1), "dev", &outside.link, "nodad"]);
    outside.enter(|| run(&["ip", "-6", "address", "add", &at(2), "dev", "world", "nodad"]));

    let tenant = Tenant::of(&datacenter);
    let made = |path: &str| {
        let (status, body) = tenant.ask("POST", path);
        assert_eq!(status, 201, "{path}: {body}");
        serde_json::from_str::<Value>(&body).expect("an object")
    };
    made("/fabrics/default/vlans?vlan_id=7&name=dmz");
    let network = made(
        "/fabrics/default/vlans/7/networks?name=dual&subnet=10.3.0.0%2F24&provision_start_ip=10.3.0.10\
         &provision_end_ip=10.3.0.99&gateway=10.3.0.1&subnet6=fd00%3A3%3A%3A%2F64&gateway6=fd00%3A3%3A%3A1",
    );
    let id = network["id"].as_str().expect("an id");
    Guest::order(&datacenter, "ada", &[id]);
    Guest::order(&datacenter, "ben", &[id]);
    let (ada, ben) = (Guest::meet(&datacenter, "ada"), Guest::meet(&datacenter, "ben"));
    let gateway: Ipv6Addr = "fd00:3::1".parse().expect("an address");
    assert!(ada.pings(ben.nic(0).six()), "neighbours reach each other");
    datacenter.wait("the router to answer", || ada.pings(gateway));
    assert!(ada.shell("ip -6 route").1.contains("default via fd00:3::1 dev net0"));
    let server = outside.enter(|| TcpListener::bind((world(2), 0)).expect("a port"));
    assert!(ada.connects(server.local_addr().expect("bound")), "its router and the machine translate");
    let (_, from) = server.accept().expect("it arrived");
    assert_eq!(from.ip(), IpAddr::V6(world(1)), "the outside sees the machine's address");

    // Another without IPv4.
    let network =
        made("/fabrics/default/vlans/7/networks?name=alone&subnet6=fd00%3A4%3A%3A%2F64&gateway6=fd00%3A4%3A%3A1");
    let id = network["id"].as_str().expect("an id");
    Guest::order(&datacenter, "cay", &[id]);
    let cay = Guest::meet(&datacenter, "cay");
    let shown = cay.shell("ip addr show dev net0").1;
    assert!(shown.contains(&format!("inet6 {}/64", cay.nic(0).six())) && !shown.contains("inet "), "{shown}");
    assert_eq!(cay.shell("mdata-get sdc:nics.0.ip").1.trim(), cay.nic(0).six().to_string());
    let gateway: Ipv6Addr = "fd00:4::1".parse().expect("an address");
    datacenter.wait("the router to answer there too", || cay.pings(gateway));
    assert!(cay.connects(server.local_addr().expect("bound")), "it leads outside");
    assert_eq!(server.accept().expect("it arrived").1.ip(), IpAddr::V6(world(1)));
    for name in ["ada", "ben", "cay"] {
        datacenter.good(&["instance", "delete", name]);
    }
    datacenter.wait("all to be gone", || datacenter.instances().is_empty());
    datacenter.wait_idle();
    datacenter.assert_clean();
}

/// Two instances on `six`, which has a gateway, and on `lone`, which has none.
struct Site<'a> {
    datacenter: &'a Datacenter,
    gateway: Ipv6Addr,
    ada: Guest<'a>,
    ben: Guest<'a>,
}

impl<'a> Site<'a> {
    fn make(datacenter: &'a Datacenter) -> Self {
        // Subnets of this process alone: tests of several run side by side.
        let own = u16::try_from(std::process::id() & 0xfff).expect("twelve bits");
        let [a, b] = (own << 4).to_be_bytes();
        let six = |last: u16| Ipv6Addr::new(0xfd4e, 0x6974, own, last, 0, 0, 0, 0);
        let gateway = Ipv6Addr::from_bits(six(1).to_bits() + 1);
        let network = |name: &str, third: u8, last: u16, more: &[&str]| {
            let (subnet, subnet6) = (format!("100.{third}.{a}.{b}/28"), format!("{}/64", six(last)));
            let line =
                ["adm", "network", "create", name, "--nic-tag", name, "--subnet", &subnet, "--subnet6", &subnet6];
            datacenter.good(&[&line[..], more].concat());
        };
        let v4 = format!("100.80.{a}.{}", b + 1);
        let route = format!("fd4e:6974:ffff::/48={}", Ipv6Addr::from_bits(six(1).to_bits() + 7));
        let gateways =
            ["--gateway", &v4, "--gateway6", &gateway.to_string(), "--host-gateway", "--nat"].map(str::to_owned);
        let more: Vec<&str> = gateways.iter().map(String::as_str).chain(["--route", &route]).collect();
        network("six", 80, 1, &more);
        network("lone", 81, 2, &[]);
        for name in ["ada", "ben"] {
            Guest::order(datacenter, name, &["six", "lone"]);
        }
        Self { datacenter, gateway, ada: Guest::meet(datacenter, "ada"), ben: Guest::meet(datacenter, "ben") }
    }

    /// What records, the API, the instance's metadata and its interfaces say is one thing.
    fn addresses(&self) {
        let Self { datacenter, gateway, ada, .. } = self;
        let (first, second) = (ada.nic(0), ada.nic(1));
        let shown = datacenter.json(&["instance", "-j", "get", "ada"]);
        let ips: Vec<IpAddr> = shown["ips"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|ip| ip.as_str().and_then(|ip| ip.parse().ok()).expect("an address"))
            .collect();
        for nic in [first, second] {
            assert!(ips.contains(&nic.ip.into()) && ips.contains(&nic.six().into()), "{shown}");
        }
        assert_eq!(shown["primaryIp"], first.ip.to_string());
        let nics: serde_json::Value = serde_json::from_str(&ada.shell("mdata-get sdc:nics").1).expect("JSON");
        assert_eq!(nics[0]["ips"][1], format!("{}/64", first.six()), "{nics}");
        assert_eq!(nics[0]["gateways"][1], gateway.to_string(), "{nics}");
        for (interface, nic) in [("net0", first), ("net1", second)] {
            let shown = ada.shell(&format!("ip -6 addr show {interface}")).1;
            assert!(shown.contains(&format!("inet6 {}/64", nic.six())) && !shown.contains("tentative"), "{shown}");
        }
        let routes = ada.shell("ip -6 route").1;
        assert!(routes.contains(&format!("default via {gateway} dev net0")), "{routes}");
        assert!(routes.contains("fd4e:6974:ffff::/48 via"), "{routes}");
    }

    fn reach(&self) {
        let Self { gateway, ada, ben, .. } = self;
        assert!(ada.pings(ben.nic(0).six()), "neighbours reach each other");
        assert!(ada.pings(ben.nic(1).six()), "on the network without a gateway too");
        assert!(ben.pings(*gateway), "the gateway answers a ping");
        let everywhere = TcpListener::bind("[::]:0").expect("a port");
        let door = SocketAddr::from((*gateway, everywhere.local_addr().expect("bound").port()));
        assert_eq!(ada.opens(&[door]), Vec::<String>::new(), "doors of the machine that an instance can open");
    }

    fn bridge(&self) -> String {
        format!("{}b-six", self.datacenter.settings().kernel.link_prefix)
    }

    /// An instance lies: nobody hears it, neither its neighbour nor the machine.
    fn spoofing(&self) {
        let Self { gateway, ada, ben, .. } = self;
        let host = Wire::open(&self.bridge());
        let ear = ben.begin_probe(&format!("hear net0 {}", to_hex(b"the truth")));
        ear.wait_for(READY);
        let lies = lies::all6(ada.nic(0), ben.nic(0), *gateway);
        let mut frames: Vec<String> = lies.iter().map(|lie| to_hex(&lie.frame)).collect();
        frames.push(to_hex(&lies::truth6(ada.nic(0), lies::BROADCAST, b"the truth")));
        ada.probe(&format!("send net0 {}", frames.join(" ")));
        for (who, heard) in [("ben", ear.heard()), ("the machine", host.hear_until(b"the truth"))] {
            for lie in &lies {
                assert!(!heard.iter().any(|frame| contains(frame, &lie.mark)), "{who} heard: {}", lie.name);
            }
        }
        assert!(ben.pings(*gateway) && ada.pings(ben.nic(0).six()), "afterwards all is as before");
    }

    /// An instance has no say in its own addresses.
    fn powers(&self) {
        let taken = self.ben.nic(0).six();
        for line in [
            format!("ip addr add {taken}/64 dev net0"),
            "ip -6 route add default via fe80::1 dev net1".to_owned(),
            "echo 1 >/proc/sys/net/ipv6/conf/net0/accept_ra".to_owned(),
        ] {
            let (done, said) = self.ada.shell(&line);
            assert!(!done, "ada may `{line}`: {said}");
        }
    }

    /// The IPv6 addresses of a NIC change while the instance runs: by its owner, then by an operator.
    fn relist(&self) {
        let Self { datacenter, ada, ben, .. } = self;
        let old = ada.nic(1);
        let [one, two] = [0x77, 0x88].map(|last| Ipv6Addr::from_bits((old.six().to_bits() & !0xffff_u128) + last));
        let mac = old.mac.map(|byte| format!("{byte:02x}")).join(":");
        let boot = || datacenter.json(&["adm", "-j", "instance", "get", "ada"])["fact"]["started_at"].clone();
        let before = boot();
        let refused = |list: String| {
            let output = datacenter.run(&["instance", "nics", "ada", "--set", &format!("{mac}={list}")]);
            assert!(!output.status.success(), "{list} was taken");
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let strange = refused(format!("{one},fd00:dead::1"));
        assert!(strange.contains("fd00:dead::1 cannot be held by an instance of network \"lone\""), "{strange}");
        let taken = refused(ben.nic(1).six().to_string());
        assert!(taken.contains("is in use on network \"lone\""), "{taken}");
        datacenter.good(&["instance", "nics", "ada", "--set", &format!("{mac}={},{one},{two}", old.six())]);
        datacenter.wait("the new addresses to answer", || ben.pings(one) && ben.pings(two) && ben.pings(old.six()));

        let shown = datacenter.good(&["adm", "instance", "nics", "ada", "--set", &format!("{mac}={two}")]);
        assert!(shown.contains(&two.to_string()) && !shown.contains(&one.to_string()), "{shown}");
        datacenter.wait("the old ones to be gone", || !ben.pings(one) && !ben.pings(old.six()));
        assert!(ben.pings(two), "the one that stays answers");
        assert_eq!(boot(), before, "it ran on");
        let inside = ada.shell("ip -6 addr show net1").1;
        assert!(inside.contains(&two.to_string()) && !inside.contains(&one.to_string()), "{inside}");

        // It may speak from what it has, and not from what it had.
        let host = Wire::open(&format!("{}b-lone", datacenter.settings().kernel.link_prefix));
        let from = |ip6, text: &[u8]| {
            let nic = crate::wire::Nic { ip6: Some(ip6), ..old };
            to_hex(&lies::truth6(nic, lies::BROADCAST, text))
        };
        let frames = [from(one, b"lie: an address it had"), from(two, b"the truth of today")];
        ada.probe(&format!("send net1 {}", frames.join(" ")));
        let heard = host.hear_until(b"the truth of today");
        assert!(!heard.iter().any(|frame| contains(frame, b"lie: an address it had")), "it speaks in an old name");
    }

    /// Somebody takes away addresses and rules: they come back by themselves.
    fn repair(&self) {
        let Self { datacenter, gateway, ada, .. } = self;
        let table = datacenter.settings().kernel.nft_table;
        for damage in [
            format!("ip -6 address flush dev {}", self.bridge()),
            format!("nft flush set bridge {table} nic_ip6 && nft flush set bridge {table} nic_nd"),
        ] {
            let done = Command::new("sh").args(["-c", &damage]).output().expect("a shell");
            assert!(done.status.success(), "{damage}: {}", String::from_utf8_lossy(&done.stderr));
            datacenter.wait(&format!("all to be well after `{damage}`"), || ada.pings(*gateway));
        }
        self.spoofing();
    }
}
