//! NIC tags and pools of networks.

use std::net::Ipv4Addr;

use control::{
    Error, Scope,
    instances::{self, NetworkChoice, nics},
    networks::{
        self, NewNetwork,
        pools::{self, NewPool},
        tags,
    },
};
use model::{id::NetworkId, layout::Layout};

use crate::world::{Machine, World, caller, network};

/// A network with one address to give.
async fn narrow(world: &World, number: u8) -> NetworkId {
    let ip = |last| Some(Ipv4Addr::new(10, 20, number, last));
    let base = network(&format!("rack{number}"), Ipv4Addr::UNSPECIFIED);
    let new = NewNetwork {
        nic_tag: format!("rack{number}"),
        host_gateway: false,
        layout: Layout {
            subnet: Some(format!("10.20.{number}.0/24").parse().expect("a subnet")),
            range_start: ip(5),
            range_end: ip(5),
            gateway: ip(1),
            ..base.layout
        },
        ..base
    };
    networks::create(&world.control, new).await.expect("made").id
}

#[tokio::test]
async fn a_pool_gives_of_its_networks_in_turn() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let control = &world.control;
    let (one, two) = (narrow(&world, 1).await, narrow(&world, 2).await);
    let new = NewPool { name: "racks".to_owned(), networks: vec![one, two], ..NewPool::default() };
    let pool = pools::create(control, new.clone()).await.expect("made");
    let pool_as_network = NetworkId::new(pool.pool.id.uuid());
    let asked = |name: &str| {
        let mut request = world.request(name);
        request.networks = vec![NetworkChoice::any(pool_as_network)];
        request
    };
    let mut given = Vec::new();
    for name in ["a", "b"] {
        let view = instances::create(control, &caller(), world.owner, asked(name)).await.expect("there is one left");
        given.push(view.networks().next().expect("a NIC"));
    }
    assert_eq!(given, [one, two], "in order, until the first is full");
    let full = instances::create(control, &caller(), world.owner, asked("c")).await.expect_err("full");
    assert!(matches!(&full, Error::NoAddress { network } if network == "racks"), "{full}");
    let three = narrow(&world, 3).await;
    pools::set_networks(control, pool.pool.id, vec![one, two, three]).await.expect("changed");
    let mut certain = asked("d");
    certain.networks[0].ip = Some(Ipv4Addr::new(10, 20, 1, 9));
    let refused = instances::create(control, &caller(), world.owner, certain).await.expect_err("of which network?");
    assert!(refused.to_string().contains("not on a pool"), "{refused}");
    let id = world.running(&mut machine, "web").await;
    let nic = nics::add(control, &caller(), world.scope, id, NetworkChoice::any(pool_as_network)).await.expect("room");
    assert_eq!(nic.nic.network, three);
    let used = networks::delete(control, three).await.expect_err("used");
    assert!(matches!(used, Error::InUse(_)), "{used}");
    let twice = NewPool { name: "other".to_owned(), networks: vec![one, one], ..NewPool::default() };
    let cases = [
        (new, "network or pool \"racks\" already exists"),
        (twice, "networks: \"rack1\" is named twice"),
        (NewPool { name: "none".to_owned(), ..NewPool::default() }, "networks: must have 1 to 64 entries"),
    ];
    for (new, expected) in cases {
        let refused = pools::create(control, new).await.expect_err(expected);
        assert_eq!(refused.to_string(), expected);
    }
    pools::delete(control, pool.pool.id).await.expect("nobody needs it");
    assert!(pools::list(control, Scope::All).is_empty());
}

#[tokio::test]
async fn a_tag_carries_what_its_networks_need() {
    let world = World::new().await;
    let control = &world.control;
    let seen = tags::list(control);
    assert_eq!((seen.len(), seen[0].tag.name.as_str(), seen[0].tag.mtu), (1, "ext", 1_500), "made with its network");
    for (name, mtu, field) in [("big", 9_001, "mtu"), ("big", 1_499, "mtu"), ("x0000ff", 1_500, "name")] {
        let refused = tags::create(control, name, mtu, None).await.expect_err("wrong");
        assert!(refused.to_string().starts_with(field), "{refused}");
    }
    tags::create(control, "big", 9_000, None).await.expect("made");
    let jumbo = |tag: &str| NewNetwork {
        nic_tag: tag.to_owned(),
        host_gateway: false,
        layout: Layout {
            mtu: 8_900,
            subnet: Some("10.30.0.0/24".parse().expect("a subnet")),
            gateway: None,
            range_start: None,
            range_end: None,
            ..network("jumbo", Ipv4Addr::UNSPECIFIED).layout
        },
        ..network("jumbo", Ipv4Addr::UNSPECIFIED)
    };
    let small = NewNetwork { vlan: 9, ..jumbo("ext") };
    let refused = networks::create(control, small).await.expect_err("too large a frame");
    assert_eq!(refused.to_string(), "mtu: NIC tag \"ext\" carries 1500 bytes at most; raise its MTU first");
    let made = networks::create(control, jumbo("big")).await.expect("made").id;
    let refused = tags::set_mtu(control, "big", 2_000).await.expect_err("a network needs more");
    assert!(refused.to_string().contains("has an MTU of 8900"), "{refused}");
    let refused = tags::delete(control, "big").await.expect_err("used");
    assert_eq!(refused.to_string(), "NIC tag \"big\" carries 1 network");
    networks::delete(control, made).await.expect("nobody uses it");
    tags::delete(control, "big").await.expect("nobody uses it");
}
