//! IPv6: what machines are told of it, networks that have nothing else, lists of addresses, and which layouts make sense.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use control::{
    Error,
    fabrics::{self, NewFabricNetwork, NewVlan},
    instances::{self, NetworkChoice, nics},
    networks::{self, NewNetwork, pools},
};
use ipnet::IpNet;
use model::{id::NetworkId, state::PublicState, target::Outside6};

use crate::world::{Machine, World, caller, network};

/// A network beside that of the world, numbered.
fn dual(number: u8, subnet6: &str) -> NewNetwork {
    let subnet6: ipnet::Ipv6Net = subnet6.parse().expect("a subnet");
    NewNetwork {
        nic_tag: format!("dual{number}"),
        subnet: Some(format!("10.20.{number}.0/24").parse().expect("a subnet")),
        range_start: None,
        range_end: None,
        gateway: Some(Ipv4Addr::new(10, 20, number, 1)),
        subnet6: Some(subnet6),
        gateway6: subnet6.hosts().nth(1),
        ..network(&format!("dual{number}"), Ipv4Addr::UNSPECIFIED)
    }
}

fn route(to: &str, via: &str) -> (IpNet, IpAddr) {
    (to.parse().expect("a subnet"), via.parse().expect("an address"))
}

#[tokio::test]
async fn machines_are_told_of_both_families() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let mut ids = Vec::new();
    for (number, subnet6, nat) in [(1, "fd00:1::/64", true), (2, "2001:db8:2::/64", true), (3, "fd00:3::/64", false)] {
        let mut new = dual(number, subnet6);
        new.nat = nat;
        new.routes = [route("10.99.0.0/16", &format!("10.20.{number}.9"))].into();
        if number == 1 {
            new.routes.extend([route("fd99::/16", "fd00:1::9")]);
        }
        ids.push(networks::create(&world.control, new).await.expect("a network").id);
    }
    let mut request = world.request("web");
    request.networks = ids.iter().copied().map(NetworkChoice::any).collect();
    let id = instances::create(&world.control, &caller(), world.owner, request).await.expect("asked for").instance.id;
    machine.obey(&world, id).await;
    world.until(id, |view| view.state == PublicState::Running).await;
    let told = machine.told(id).expect("told").clone();
    let addresses: Vec<String> =
        told.nics.iter().flat_map(model::target::NicTarget::addresses).map(|net| net.to_string()).collect();
    let expected = ["10.20.1.2/24", "fd00:1::2/64", "10.20.2.2/24", "2001:db8:2::2/64", "10.20.3.2/24", "fd00:3::2/64"];
    assert_eq!(addresses, expected);
    let gateways: Vec<_> = told.nics.iter().map(|nic| (nic.gateway.is_some(), nic.gateway6)).collect();
    assert_eq!(gateways, [(true, "fd00:1::1".parse().ok()), (false, None), (false, None)], "the primary one's alone");
    assert_eq!(told.routes, [route("10.99.0.0/16", "10.20.1.9"), route("fd99::/16", "fd00:1::9")].into());
    let target = machine.target.as_ref().expect("a target");
    let segments: Vec<_> = ids.iter().map(|id| &target.networks[id]).collect();
    let outside: Vec<_> = segments.iter().map(|segment| segment.outside6).collect();
    assert_eq!(outside, [Outside6::Masqueraded, Outside6::Routed, Outside6::None]);
    assert_eq!(segments[2].host_address6, "fd00:3::1".parse().ok(), "the machine holds the gateway's address");

    // An older machine's document says nothing of IPv6, and is read.
    let mut old = serde_json::to_value(target).expect("a document");
    for key in ["addresses6", "gateway6"] {
        let nics = old["zones"][id.to_string()]["nics"].as_array_mut().expect("NICs");
        nics.iter_mut().for_each(|nic| drop(nic.as_object_mut().expect("a NIC").remove(key)));
    }
    let read: model::target::Target = serde_json::from_value(old).expect("it is read");
    assert!(read.zones[&id].nics.iter().all(|nic| nic.addresses6.is_empty() && nic.link_local().is_none()));
}

#[tokio::test]
async fn addresses_strangers_hold_are_not_given_in_either_family() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let network = networks::create(&world.control, dual(1, "fd00:1::/64")).await.expect("a network").id;
    world.running(&mut machine, "known").await;
    let (stranger, fact) =
        (model::id::InstanceId::random(), machine.zones.values().next().expect("the known one").clone());
    machine.zones.insert(stranger, fact);
    let held = [[10, 20, 1, 2].into(), "fd00:1::2".parse().expect("an address")];
    machine.untold.insert(stranger, held.map(|ip: IpAddr| (network, ip)).into());
    machine.report(&world).await;
    let mut request = world.request("web");
    request.networks = vec![NetworkChoice::any(network)];
    let view = instances::create(&world.control, &caller(), world.owner, request).await.expect("asked for");
    let given: Vec<String> = view.ips().map(|ip| ip.to_string()).collect();
    assert_eq!(given, ["10.20.1.3", "fd00:1::3"]);
}

#[tokio::test]
async fn routes_nobody_could_take_are_refused() {
    let world = World::new().await;
    for (to, via, words) in [
        ("10.99.0.0/16", "10.21.0.1", "the next hop to 10.99.0.0/16, 10.21.0.1, does not lie in 10.20.1.0/24"),
        ("10.99.0.1/16", "10.20.1.9", "10.99.0.1/16 has host bits set; write 10.99.0.0/16"),
        ("10.99.0.0/16", "fd00:1::9", "the next hop to 10.99.0.0/16, fd00:1::9, is of the other family"),
        ("fd99::/16", "fd00:2::9", "the next hop to fd99::/16, fd00:2::9, does not lie in fd00:1::/64"),
    ] {
        let new = NewNetwork { routes: [route(to, via)].into(), ..dual(1, "fd00:1::/64") };
        let refused = networks::create(&world.control, new).await.expect_err(words);
        assert_eq!(refused.to_string(), format!("routes: {words}"));
    }
    let four = NewNetwork {
        subnet6: None,
        gateway6: None,
        routes: [route("fd99::/16", "fd00:1::9")].into(),
        ..dual(1, "fd00:1::/64")
    };
    let refused = networks::create(&world.control, four).await.expect_err("no IPv6 there");
    assert!(refused.to_string().contains("and there is no IPv6 subnet"), "{refused}");
}

/// A network of the operator's without IPv4.
fn six(name: &str, subnet6: &str) -> NewNetwork {
    let subnet6: ipnet::Ipv6Net = subnet6.parse().expect("a subnet");
    NewNetwork {
        subnet: None,
        gateway: None,
        nic_tag: name.to_owned(),
        name: name.to_owned(),
        subnet6: Some(subnet6),
        gateway6: subnet6.hosts().nth(1),
        nat: true,
        ..dual(1, "fd00::/64")
    }
}

fn ip6(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

/// A network of the tenant's without IPv4.
async fn fabric6(world: &World, name: &str, new: NewFabricNetwork) -> control::Result<NetworkId> {
    let new = NewFabricNetwork { name: name.to_owned(), ..new };
    fabrics::network_create(&world.control, world.owner, 2, new).await.map(|network| network.id)
}

async fn vlan(world: &World) {
    let new = NewVlan { vlan: 2, name: "two".to_owned(), description: None };
    fabrics::vlan_create(&world.control, world.owner, new).await.expect("a VLAN");
}

#[tokio::test]
async fn a_network_may_have_nothing_but_ipv6() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    vlan(&world).await;
    let external = networks::create(&world.control, six("six", "fd00:6::/64")).await.expect("a network").id;
    let layout = NewFabricNetwork {
        subnet6: "fd00:7::/64".parse().ok(),
        gateway6: Some(ip6("fd00:7::1")),
        internet_nat: true,
        routed: true,
        routes: [route("fd99::/16", "fd00:7::9")].into(),
        ..NewFabricNetwork::default()
    };
    let fabric = fabric6(&world, "own", layout).await.expect("a network");
    let mut request = world.request("web");
    request.networks = vec![NetworkChoice::any(external), NetworkChoice::any(fabric)];
    let view = instances::create(&world.control, &caller(), world.owner, request).await.expect("asked for");
    let id = view.instance.id;
    assert_eq!(view.primary_ip(), Some(ip6("fd00:6::2").into()));
    assert_eq!(view.ips().collect::<Vec<_>>(), [IpAddr::from(ip6("fd00:6::2")), ip6("fd00:7::2").into()]);
    machine.obey(&world, id).await;
    world.until(id, |view| view.state == PublicState::Running && view.instance.flow.is_none()).await;
    let told = machine.told(id).expect("told");
    assert!(told.nics.iter().all(|nic| nic.address.is_none() && nic.gateway.is_none()));
    assert_eq!(told.nics[0].gateway6, Some(ip6("fd00:6::1")));
    assert_eq!(told.routes, [route("fd99::/16", "fd00:7::9")].into());
    let target = machine.target.as_ref().expect("a target");
    let (outer, inner) = (&target.networks[&external], &target.networks[&fabric]);
    assert_eq!((outer.subnet, outer.host_address, outer.nat), (None, None, false), "no IPv4 of the machine's either");
    assert_eq!((outer.host_address6, outer.outside6), (Some(ip6("fd00:6::1")), Outside6::Masqueraded));
    assert!(inner.is_routed() && inner.gateway6 == Some(ip6("fd00:7::1")) && inner.subnet.is_none());
    // The document is read as it was written, and names no IPv4 address at all.
    let text = serde_json::to_string(&told.nics).expect("JSON");
    assert!(!text.contains("\"address\":"), "{text}");
    let read: model::target::Target =
        serde_json::from_str(&serde_json::to_string(target).expect("JSON")).expect("read");
    assert_eq!(&read, target);

    let held = world.held().2;
    instances::delete(&world.control, &caller(), world.scope, id).await.expect("asked for");
    machine.obey(&world, id).await;
    world.until(id, |view| view.state == PublicState::Deleted).await;
    assert_eq!(world.held().2, held - 2, "both come back");
}

#[tokio::test]
async fn a_nic_may_have_a_list_of_ipv6_addresses() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    vlan(&world).await;
    let layout = NewFabricNetwork {
        subnet: "10.7.0.0/24".parse().ok(),
        subnet6: "fd00:7::/64".parse().ok(),
        ..NewFabricNetwork::default()
    };
    let network = fabric6(&world, "own", layout).await.expect("a network");
    let list =
        |all: &[&str]| NetworkChoice { ips6: all.iter().map(|ip| ip6(ip)).collect(), ..NetworkChoice::any(network) };
    let id = world.running(&mut machine, "web").await;
    let choice = list(&["fd00:7::b", "fd00:7::a", "fd00:7::c"]);
    let nic = nics::add(&world.control, &caller(), world.scope, id, choice).await.expect("added").nic;
    let expected: Vec<IpAddr> =
        ["10.7.0.1", "fd00:7::b", "fd00:7::a", "fd00:7::c"].map(|ip| ip.parse().expect("one")).into();
    assert_eq!(nic.addresses().collect::<Vec<_>>(), expected, "in the order in which they were asked for");
    while machine.told(id).is_none_or(|zone| zone.nics.len() != 2) {
        machine.fetch(&world).await;
    }
    machine.converge();
    machine.report(&world).await;
    world.until(id, |view| view.instance.flow.is_none()).await;
    let told: Vec<IpAddr> = machine.told(id).expect("told").nics[1].addresses().map(|net| net.addr()).collect();
    assert_eq!(told, expected, "the machine lets it use all of them and no other");

    // Somebody has them.
    let mut request = world.request("other");
    request.networks = vec![list(&["fd00:7::d", "fd00:7::a"])];
    let refused = instances::create(&world.control, &caller(), world.owner, request.clone()).await.expect_err("taken");
    assert!(refused.to_string().contains("fd00:7::a is in use on network \"own\""), "{refused}");
    assert!(
        networks::ip(&world.control, world.scope, network, ip6("fd00:7::d").into()).expect("there").record.is_none()
    );
    for (wrong, words) in [
        (vec!["fd00:7::e", "fd00:7::e"], "names fd00:7::e twice"),
        (vec!["fd00:7::"], "fd00:7:: cannot be held by an instance of network \"own\" (fd00:7::/64)"),
        (vec!["fd00:7::11"; 9], "has more than 8 IPv6 addresses for one NIC"),
    ] {
        request.networks = vec![list(&wrong)];
        let refused =
            instances::create(&world.control, &caller(), world.owner, request.clone()).await.expect_err(words);
        assert!(refused.to_string().contains(words), "{refused}");
    }

    // They are free again with the NIC, when the machine says that it is gone.
    nics::remove(&world.control, &caller(), world.scope, id, nic.mac).await.expect("asked for");
    while machine.told(id).is_none_or(|zone| zone.nics.len() != 1) {
        machine.fetch(&world).await;
    }
    machine.converge();
    machine.report(&world).await;
    world.until(id, |view| view.instance.flow.is_none()).await;
    request.networks = vec![list(&["fd00:7::c", "fd00:7::a"])];
    instances::create(&world.control, &caller(), world.owner, request).await.expect("they are free");
}

#[tokio::test]
async fn no_instance_holds_more_than_one_commit_gives_back() {
    let world = World::new().await;
    vlan(&world).await;
    let mut request = world.request("greedy");
    request.networks = Vec::new();
    for number in 0..7 {
        let layout =
            NewFabricNetwork { subnet6: format!("fd00:{number}::/64").parse().ok(), ..NewFabricNetwork::default() };
        let network = fabric6(&world, &format!("own{number}"), layout).await.expect("a network");
        let ips6 = (1..9).map(|last| ip6(&format!("fd00:{number}::{last}"))).collect();
        request.networks.push(NetworkChoice { ips6, ..NetworkChoice::any(network) });
    }
    let refused =
        instances::create(&world.control, &caller(), world.owner, request.clone()).await.expect_err("too many");
    assert!(refused.to_string().contains("54 addresses at most"), "{refused}");
    request.networks.pop();
    instances::create(&world.control, &caller(), world.owner, request).await.expect("54 of them");
}

#[tokio::test]
async fn an_exhausted_ipv6_range_is_said() {
    let world = World::new().await;
    let new = NewNetwork { range6_end: Some(ip6("fd00:6::3")), ..six("six", "fd00:6::/64") };
    let network = networks::create(&world.control, new).await.expect("a network").id;
    let mut request = world.request("one");
    request.networks = vec![NetworkChoice::any(network)];
    for name in ["one", "two"] {
        request.alias = Some(name.to_owned());
        instances::create(&world.control, &caller(), world.owner, request.clone()).await.expect("there is room");
    }
    request.alias = Some("three".to_owned());
    let full = instances::create(&world.control, &caller(), world.owner, request).await.expect_err("there is none");
    assert!(matches!(&full, Error::NoAddress { network } if network == "six"), "{full}");
}

#[tokio::test]
async fn layouts_of_ipv6_that_make_no_sense_are_refused_by_the_name_of_their_field() {
    let world = World::new().await;
    vlan(&world).await;
    let good = || six("six", "fd00:6::/64");
    let net6 = |text: &str| text.parse().ok();
    for (words, new) in [
        ("subnet: a network needs a subnet", NewNetwork { subnet6: None, gateway6: None, ..good() }),
        (
            "subnet: has to be given when there is an IPv4 range or gateway",
            NewNetwork { gateway: Some(Ipv4Addr::new(10, 0, 0, 1)), ..good() },
        ),
        (
            "subnet6: fd00:6::1/64 has host bits set; write fd00:6::/64",
            NewNetwork { subnet6: net6("fd00:6::1/64"), ..good() },
        ),
        (
            "subnet6: fd00::/47 must have a prefix length from 48 to 126",
            NewNetwork { subnet6: net6("fd00::/47"), ..good() },
        ),
        (
            "subnet6: ff02::/64 is no range of ordinary addresses",
            NewNetwork { subnet6: net6("ff02::/64"), gateway6: Some(ip6("ff02::1")), ..good() },
        ),
        (
            "range6_start: fd00:5::5 does not lie in fd00:6::/64",
            NewNetwork { range6_start: Some(ip6("fd00:5::5")), ..good() },
        ),
        (
            "range6_end: fd00:6::4 comes before the start of the range",
            NewNetwork { range6_start: Some(ip6("fd00:6::5")), range6_end: Some(ip6("fd00:6::4")), ..good() },
        ),
        ("gateway6: fd00:7::1 does not lie in", NewNetwork { gateway6: Some(ip6("fd00:7::1")), ..good() }),
        ("gateway: a network whose gateway the node holds needs", NewNetwork { gateway6: None, ..good() }),
        ("mtu: must be at least 1280", NewNetwork { mtu: 1_000, ..good() }),
        (
            "routes: the next hop to 10.0.0.0/8, 10.1.0.1, is an IPv4 address, and there is no IPv4 subnet",
            NewNetwork { routes: [route("10.0.0.0/8", "10.1.0.1")].into(), ..good() },
        ),
    ] {
        let refused = networks::create(&world.control, new).await.expect_err(words);
        assert!(refused.to_string().contains(words), "{refused}, not {words}");
    }
    let good = || NewFabricNetwork { subnet6: net6("fd00:7::/64"), ..NewFabricNetwork::default() };
    fabric6(&world, "first", good()).await.expect("made");
    for (words, new) in [
        ("subnet: a network needs a subnet", NewFabricNetwork::default()),
        ("subnet6: 2001:db8::/64 must lie in fc00::/7", NewFabricNetwork { subnet6: net6("2001:db8::/64"), ..good() }),
        (
            "subnet6: overlaps fd00:7::/64 of network \"first\" on the same VLAN",
            NewFabricNetwork { subnet6: net6("fd00:7::/96"), ..good() },
        ),
        (
            "provision_end_ip6: fd00:8::1 does not lie in",
            NewFabricNetwork { range6_end: Some(ip6("fd00:8::1")), ..good() },
        ),
        ("internet_nat: a network without a gateway", NewFabricNetwork { internet_nat: true, ..good() }),
        ("routed: a network without a gateway cannot be routed", NewFabricNetwork { routed: true, ..good() }),
    ] {
        let refused = fabric6(&world, "second", new).await.expect_err(words);
        assert!(refused.to_string().contains(words), "{refused}, not {words}");
    }
}

#[tokio::test]
async fn a_pool_has_networks_of_the_same_families() {
    let world = World::new().await;
    let one = networks::create(&world.control, six("six1", "fd00:1::/64")).await.expect("a network").id;
    let two = networks::create(&world.control, six("six2", "fd00:2::/64")).await.expect("a network").id;
    let both = networks::create(&world.control, dual(3, "fd00:3::/64")).await.expect("a network").id;
    let new =
        |networks: Vec<NetworkId>| pools::NewPool { name: "pool".to_owned(), networks, ..pools::NewPool::default() };
    let refused = pools::create(&world.control, new(vec![one, both])).await.expect_err("they differ");
    assert!(refused.to_string().starts_with("networks: "), "{refused}");
    let pool = pools::create(&world.control, new(vec![one, two])).await.expect("alike");
    let mut request = world.request("web");
    request.networks = vec![NetworkChoice::any(NetworkId::new(pool.pool.id.uuid()))];
    let view = instances::create(&world.control, &caller(), world.owner, request).await.expect("asked for");
    assert_eq!(view.ips().collect::<Vec<_>>(), [IpAddr::from(ip6("fd00:1::2"))]);
}
