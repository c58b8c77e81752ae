//! Wires to other machines: those with a peer are tried and told of, at once when asked, and forgotten with the peer.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    id::{AccountId, MacAddr},
    peers::{Peer, Segment},
    target::{FabricTarget, NetworkTarget, Report},
    wire::WireFact,
};
use nodeapi::inquiry::{Answer, Question};

use crate::world::{World, network_id};

const VNI: u32 = 7;

fn machine(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn peers(lasts: &[u8]) -> BTreeMap<u32, Segment> {
    let peer = |last: u8| Peer { addresses: Vec::new(), underlay: machine(last) };
    let peers = lasts.iter().map(|last| (MacAddr::from_suffix(u32::from(*last)), peer(*last)));
    BTreeMap::from([(VNI, peers.collect())])
}

fn mtu(report: &Report, last: u8) -> Option<Option<u32>> {
    Some(report.wires.facts.get(&machine(last))?.mtu)
}

#[tokio::test]
async fn machines_with_a_peer_are_tried_and_told_of() {
    let world = World::new();
    let agent = world.start();
    let fabric = FabricTarget { vni: VNI, owner: AccountId::random(), internet_nat: false, routed: false };
    world.machine.links.narrow_wire(machine(3), 1_300);
    world.machine.links.narrow_wire(machine(4), 0);
    world.headnode.change(|target| {
        let segment = NetworkTarget { mtu: 1_400, fabric: Some(fabric), ..target.networks[&network_id()].clone() };
        target.networks.insert(network_id(), segment);
        target.underlay = Some(machine(1));
        // More than one go.
        target.peers = peers(&(2..60).collect::<Vec<u8>>());
    });
    let report = world.headnode.wait("all wires", |report| report.wires.facts.len() == 58).await;
    assert_eq!(
        (mtu(&report, 2), mtu(&report, 3), mtu(&report, 59)),
        (Some(Some(1_450)), Some(Some(1_300)), Some(Some(1_450)))
    );
    assert!(!report.wires.facts[&machine(4)].reachable);

    // An operator asks: what is told is how it is now, and the next report says so too.
    world.machine.links.narrow_wire(machine(2), 0);
    let since = report.wires.facts[&machine(2)].since;
    let Answer::Wire(fact) = world.headnode.ask(Question::Wire { machine: machine(2) }).await else {
        panic!("another answer")
    };
    assert!(!fact.reachable && fact.since >= since, "{fact:?}");
    world.headnode.wait("the news", |report| report.wires.facts.get(&machine(2)) == Some(&fact)).await;
    world.machine.links.narrow_wire(machine(3), 1_500);
    let Answer::Wire(again) = world.headnode.ask(Question::Wire { machine: machine(3) }).await else {
        panic!("another answer")
    };
    assert_eq!(
        again,
        WireFact { mtu: Some(1_450), ..report.wires.facts[&machine(3)].clone() },
        "it was there all the time"
    );
    let strange = world.headnode.ask(Question::Wire { machine: machine(99) }).await;
    assert!(matches!(&strange, Answer::Refused { why } if why.contains("no peer")), "{strange:?}");

    // VXLAN does not get through to one that answers pings: once may be an accident.
    assert_eq!(again.vxlan, Some(true));
    world.machine.links.close_tunnel(machine(3), true);
    let ask = async || match world.headnode.ask(Question::Wire { machine: machine(3) }).await {
        Answer::Wire(fact) => fact,
        other => panic!("another answer: {other:?}"),
    };
    assert!(ask().await.is_well());
    let closed = ask().await;
    assert!(closed.reachable && closed.vxlan == Some(false) && !closed.is_well(), "{closed:?}");
    world.headnode.wait("that to be told", |report| report.wires.facts.get(&machine(3)) == Some(&closed)).await;
    world.machine.links.close_tunnel(machine(3), false);
    assert!(ask().await.is_well());

    // The last peer on a machine goes, and a network becomes wider.
    world.headnode.change(|target| {
        target.peers = peers(&[3]);
        target.networks.get_mut(&network_id()).expect("it is there").mtu = 1_600;
    });
    let report = world.headnode.wait("one wire", |report| report.wires.facts.len() == 1).await;
    let report = match mtu(&report, 3) {
        Some(Some(1_500)) => report,
        _ => world.headnode.wait("the wider packet", |report| mtu(report, 3) == Some(Some(1_500))).await,
    };
    assert_eq!(report.wires.facts[&machine(3)].needed, 1_650);
    world.headnode.change(|target| target.underlay = None);
    world.headnode.wait("no wire", |report| report.wires.facts.is_empty()).await;
    agent.end().await;
}
