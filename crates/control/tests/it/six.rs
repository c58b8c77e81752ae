//! IPv6 on the operator's networks: what machines are told of it, and which routes make sense.

use std::net::{IpAddr, Ipv4Addr};

use control::{
    instances::{self, NetworkChoice},
    networks::{self, NewNetwork},
};
use ipnet::IpNet;
use model::{state::PublicState, target::Outside6};

use crate::world::{Machine, World, caller, network};

/// A network beside that of the world, numbered.
fn dual(number: u8, subnet6: &str) -> NewNetwork {
    let subnet6: ipnet::Ipv6Net = subnet6.parse().expect("a subnet");
    NewNetwork {
        nic_tag: format!("dual{number}"),
        subnet: format!("10.20.{number}.0/24").parse().expect("a subnet"),
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
