//! NICs added to and removed from what runs.

use std::net::Ipv4Addr;

use control::{
    Error,
    instances::{NetworkChoice, NicState, nics},
    networks,
};
use model::{id::NetworkId, state::PublicState};

use crate::world::{Machine, World, caller, network};

async fn second_network(world: &World) -> NetworkId {
    let mut new = network("private", Ipv4Addr::new(10, 8, 0, 9));
    new.nic_tag = "priv".to_owned();
    new.layout.subnet = "10.8.0.0/24".parse().ok();
    new.layout.range_start = Some(Ipv4Addr::new(10, 8, 0, 5));
    (new.layout.gateway, new.host_gateway) = (None, false);
    networks::create(&world.control, new).await.expect("a network").id
}

#[tokio::test]
async fn a_nic_comes_and_goes() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    let network = second_network(&world).await;
    let choice = NetworkChoice { ip: Some(Ipv4Addr::new(10, 8, 0, 77)), ..NetworkChoice::any(network) };
    let nic = nics::add(&world.control, &caller(), world.scope, id, choice.clone()).await.expect("added");
    assert_eq!((nic.nic.interface.as_str(), nic.state), ("net1", NicState::Provisioning));
    let twice = nics::add(&world.control, &caller(), world.scope, id, choice).await.expect_err("one per network");
    assert!(matches!(twice, Error::Invalid(_)));
    while machine.told(id).is_none_or(|zone| zone.nics.len() != 2) {
        machine.fetch(&world).await;
    }
    machine.converge();
    machine.report(&world).await;
    world.until(id, |view| view.instance.flow.is_none()).await;
    let mac = nic.nic.mac;
    assert_eq!(nics::get(&world.control, world.scope, id, mac).expect("it is there").state, NicState::Running);
    assert_eq!(world.held(), (1, 256, 2, 2, 1));
    nics::remove(&world.control, &caller(), world.scope, id, mac).await.expect("removed");
    assert_eq!(world.held(), (1, 256, 2, 2, 1), "the address stays taken while the NIC may be in force");
    machine.fetch(&world).await;
    machine.converge();
    machine.report(&world).await;
    world.until(id, |view| view.instance.flow.is_none() && view.state == PublicState::Running).await;
    assert_eq!(world.held(), (1, 256, 1, 1, 1));
    let gone = nics::remove(&world.control, &caller(), world.scope, id, mac).await.expect_err("it is gone");
    assert!(matches!(gone, Error::NotFound { what: "NIC", .. }));
}

#[tokio::test]
async fn addresses_can_be_reserved_and_asked_for() {
    let world = World::new().await;
    let ip = Ipv4Addr::new(10, 9, 0, 2);
    let refused = networks::reserve_ip(&world.control, world.scope, world.network, ip.into(), true).await;
    assert!(matches!(refused, Err(Error::NotAuthorized(_))), "the network is the datacenter's");
    networks::reserve_ip(&world.control, control::Scope::All, world.network, ip.into(), true).await.expect("reserved");
    let view = world.create("web").await.expect("it is asked for");
    assert_eq!(view.primary_ip(), Some(Ipv4Addr::new(10, 9, 0, 3).into()), "a reserved one is not given by itself");
    let mut request = world.request("db");
    request.networks[0].ip = Some(ip);
    let view = control::instances::create(&world.control, &caller(), world.owner, request).await.expect("by name");
    assert_eq!(view.primary_ip(), Some(ip.into()));
    for taken in [ip, Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 255), Ipv4Addr::new(10, 1, 1, 1)] {
        let mut request = world.request("third");
        request.networks[0].ip = Some(taken);
        let refused = control::instances::create(&world.control, &caller(), world.owner, request).await;
        assert!(matches!(refused, Err(Error::Invalid(_))), "{taken}: {refused:?}");
    }
    let ips = networks::ips(&world.control, world.scope, world.network).expect("they can be listed");
    let managed: Vec<_> = ips.iter().filter(|ip| ip.managed).map(|ip| ip.ip.to_string()).collect();
    assert_eq!(managed, ["10.9.0.0", "10.9.0.1", "10.9.0.255"]);
    let used = networks::delete(&world.control, world.network).await.expect_err("it is used");
    assert!(matches!(used, Error::InUse(_)));
}
