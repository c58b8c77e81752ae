//! IPv6: what machines are told of it, networks that have nothing else, lists of addresses, and which layouts make sense.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use control::{
    Error,
    fabrics::{self, NewFabricNetwork, NewVlan},
    instances::{self, NetworkChoice, nics},
    networks::{self, NewNetwork, pools},
};
use ipnet::IpNet;
use model::{id::NetworkId, layout::Layout, state::PublicState, target::Outside6};

use crate::world::{Laid as _, Machine, World, caller, network};

/// A network beside that of the world, numbered.
fn dual(number: u8, subnet6: &str) -> NewNetwork {
    let subnet6: ipnet::Ipv6Net = subnet6.parse().expect("a subnet");
    let base = network(&format!("dual{number}"), Ipv4Addr::UNSPECIFIED);
    NewNetwork {
        nic_tag: format!("dual{number}"),
        layout: Layout {
            subnet: Some(format!("10.20.{number}.0/24").parse().expect("a subnet")),
            range_start: None,
            range_end: None,
            gateway: Some(Ipv4Addr::new(10, 20, number, 1)),
            subnet6: Some(subnet6),
            gateway6: subnet6.hosts().nth(1),
            ..base.layout
        },
        ..base
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
        new.layout.routes = [route("10.99.0.0/16", &format!("10.20.{number}.9"))].into();
        if number == 1 {
            new.layout.routes.extend([route("fd99::/16", "fd00:1::9")]);
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
        let new = NewNetwork {
            layout: Layout { routes: [route(to, via)].into(), ..dual(1, "fd00:1::/64").layout },
            ..dual(1, "fd00:1::/64")
        };
        let refused = networks::create(&world.control, new).await.expect_err(words);
        assert_eq!(refused.to_string(), format!("routes: {words}"));
    }
    let four = NewNetwork {
        layout: Layout {
            subnet6: None,
            gateway6: None,
            routes: [route("fd99::/16", "fd00:1::9")].into(),
            ..dual(1, "fd00:1::/64").layout
        },
        ..dual(1, "fd00:1::/64")
    };
    let refused = networks::create(&world.control, four).await.expect_err("no IPv6 there");
    assert!(refused.to_string().contains("and there is no IPv6 subnet"), "{refused}");
}

/// A network of the operator's without IPv4.
fn six(name: &str, subnet6: &str) -> NewNetwork {
    let subnet6: ipnet::Ipv6Net = subnet6.parse().expect("a subnet");
    let base = dual(1, "fd00::/64");
    NewNetwork {
        nic_tag: name.to_owned(),
        name: name.to_owned(),
        nat: true,
        layout: Layout {
            subnet: None,
            gateway: None,
            subnet6: Some(subnet6),
            gateway6: subnet6.hosts().nth(1),
            ..base.layout
        },
        ..base
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
        internet_nat: true,
        routed: true,
        layout: Layout {
            subnet6: "fd00:7::/64".parse().ok(),
            gateway6: Some(ip6("fd00:7::1")),
            routes: [route("fd99::/16", "fd00:7::9")].into(),
            ..Layout::default()
        },
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

/// The list of a NIC that is there: the machine is told, what is taken away is free when it says so, and the rest stays.
#[tokio::test]
async fn the_ipv6_addresses_of_a_nic_change_while_it_runs() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    vlan(&world).await;
    let layout =
        Layout { subnet: "10.7.0.0/24".parse().ok(), subnet6: "fd00:7::/64".parse().ok(), ..Layout::default() };
    let own =
        fabric6(&world, "own", NewFabricNetwork { layout, ..NewFabricNetwork::default() }).await.expect("a network");
    let id = world.running(&mut machine, "web").await;
    let control = &world.control;
    let added = nics::add(control, &caller(), world.scope, id, NetworkChoice::any(own)).await.expect("added").nic;
    assert_eq!(added.ip6, Some(ip6("fd00:7::1")));
    let set = async |ips: &[&str]| {
        let ips: Vec<Ipv6Addr> = ips.iter().map(|ip| ip6(ip)).collect();
        nics::set_addresses6(control, &caller(), world.scope, id, added.mac, &ips).await
    };
    let settle = async |machine: &mut Machine, count: usize| {
        while machine.told(id).is_none_or(|zone| zone.nics.last().is_none_or(|nic| nic.addresses6.len() != count)) {
            machine.fetch(&world).await;
        }
        machine.converge();
        machine.report(&world).await;
        world.until(id, |view| view.instance.flow.is_none()).await;
    };
    settle(&mut machine, 1).await;
    let held = world.held().2;

    let changed = set(&["fd00:7::b", "fd00:7::1", "fd00:7::a"]).await.expect("changed").nic;
    assert_eq!(changed.ip, added.ip, "the other family stays");
    assert_eq!(changed.addresses6().collect::<Vec<_>>(), ["fd00:7::b", "fd00:7::1", "fd00:7::a"].map(ip6));
    let last = |view: &instances::InstanceView| view.instance.history.last().map(|entry| entry.action.clone());
    assert_eq!(world.held().2, held + 2);
    settle(&mut machine, 3).await;
    assert_eq!(last(&world.view(id)).as_deref(), Some("update_nics"));
    set(&["fd00:7::b", "fd00:7::1", "fd00:7::a"]).await.expect("nothing to do");
    assert_eq!(world.view(id).instance.flow, None, "and nothing is done");

    // What is taken away is not free before the machine says so, however often it reports.
    set(&["fd00:7::a"]).await.expect("changed");
    machine.report(&world).await;
    assert_eq!(world.held().2, held + 2, "they may be in force still");
    let choice = NetworkChoice { ips6: vec![ip6("fd00:7::b")], ..NetworkChoice::any(own) };
    let mut request = world.request("other");
    request.networks = vec![choice];
    let taken = instances::create(control, &caller(), world.owner, request.clone()).await.expect_err("in use");
    assert!(taken.to_string().contains("fd00:7::b is in use"), "{taken}");
    settle(&mut machine, 1).await;
    assert_eq!(world.held().2, held, "and come back then");
    instances::create(control, &caller(), world.owner, request).await.expect("it is free");

    for (ips, words) in [
        (&[][..], "ipv6_ips: must name at least one address"),
        (&["fd00:7::b"], "ipv6_ips: fd00:7::b is in use on network \"own\""),
        (&["fd00:8::1"], "ipv6_ips: fd00:8::1 cannot be held by an instance of network \"own\""),
        (&["fd00:7::c", "fd00:7::c"], "ipv6_ips: names fd00:7::c twice"),
        (&["fd00:7::c"; 9], "ipv6_ips: has more than 8"),
    ] {
        let refused = set(ips).await.expect_err(words).to_string();
        assert!(refused.starts_with(words), "{refused}");
    }
    let primary = world.view(id).instance.nics[0].mac;
    let none = nics::set_addresses6(control, &caller(), world.scope, id, primary, &[ip6("fd00::1")]).await;
    assert!(none.expect_err("IPv4 alone").to_string().contains("has no IPv6 subnet"));
}

#[tokio::test]
async fn a_nic_may_have_a_list_of_ipv6_addresses() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    vlan(&world).await;
    let layout = NewFabricNetwork {
        layout: Layout { subnet: "10.7.0.0/24".parse().ok(), subnet6: "fd00:7::/64".parse().ok(), ..Layout::default() },
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
        let layout = NewFabricNetwork {
            layout: Layout { subnet6: format!("fd00:{number}::/64").parse().ok(), ..Layout::default() },
            ..NewFabricNetwork::default()
        };
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
    let new = NewNetwork {
        layout: Layout { range6_end: Some(ip6("fd00:6::3")), ..six("six", "fd00:6::/64").layout },
        ..six("six", "fd00:6::/64")
    };
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
    let good = || six("six", "fd00:6::/64");
    let net6 = |text: &str| text.parse().ok();
    for (words, new) in [
        (
            "subnet: a network needs a subnet",
            good().laid(|layout| {
                layout.subnet6 = None;
                layout.gateway6 = None;
            }),
        ),
        (
            "subnet: has to be given when there is an IPv4 range or gateway",
            good().laid(|layout| layout.gateway = Some(Ipv4Addr::new(10, 0, 0, 1))),
        ),
        (
            "subnet6: fd00:6::1/64 has host bits set; write fd00:6::/64",
            good().laid(|layout| layout.subnet6 = net6("fd00:6::1/64")),
        ),
        (
            "subnet6: fd00::/47 must have a prefix length from 48 to 126",
            good().laid(|layout| layout.subnet6 = net6("fd00::/47")),
        ),
        (
            "subnet6: ff02::/64 is no range of ordinary addresses",
            good().laid(|layout| {
                layout.subnet6 = net6("ff02::/64");
                layout.gateway6 = Some(ip6("ff02::1"));
            }),
        ),
        (
            "range6_start: fd00:5::5 does not lie in fd00:6::/64",
            good().laid(|layout| layout.range6_start = Some(ip6("fd00:5::5"))),
        ),
        (
            "range6_end: fd00:6::4 comes before the start of the range",
            good().laid(|layout| {
                layout.range6_start = Some(ip6("fd00:6::5"));
                layout.range6_end = Some(ip6("fd00:6::4"));
            }),
        ),
        ("gateway6: fd00:7::1 does not lie in", good().laid(|layout| layout.gateway6 = Some(ip6("fd00:7::1")))),
        ("gateway: a network whose gateway the node holds needs", good().laid(|layout| layout.gateway6 = None)),
        ("mtu: must be at least 1280", good().laid(|layout| layout.mtu = 1_000)),
        (
            "routes: the next hop to 10.0.0.0/8, 10.1.0.1, is an IPv4 address, and there is no IPv4 subnet",
            good().laid(|layout| layout.routes = [route("10.0.0.0/8", "10.1.0.1")].into()),
        ),
    ] {
        let refused = networks::create(&world.control, new).await.expect_err(words);
        assert!(refused.to_string().contains(words), "{refused}, not {words}");
    }
}

#[tokio::test]
async fn layouts_of_tenants_ipv6_that_make_no_sense_are_refused_likewise() {
    let world = World::new().await;
    vlan(&world).await;
    let net6 = |text: &str| text.parse().ok();
    let good = || NewFabricNetwork {
        layout: Layout { subnet6: net6("fd00:7::/64"), ..Layout::default() },
        ..NewFabricNetwork::default()
    };
    fabric6(&world, "first", good()).await.expect("made");
    for (words, new) in [
        ("subnet: a network needs a subnet", NewFabricNetwork::default()),
        ("subnet6: 2001:db8::/64 must lie in fc00::/7", good().laid(|layout| layout.subnet6 = net6("2001:db8::/64"))),
        (
            "subnet6: overlaps fd00:7::/64 of network \"first\" on the same VLAN",
            good().laid(|layout| layout.subnet6 = net6("fd00:7::/96")),
        ),
        (
            "provision_end_ip6: fd00:8::1 does not lie in",
            good().laid(|layout| layout.range6_end = Some(ip6("fd00:8::1"))),
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
