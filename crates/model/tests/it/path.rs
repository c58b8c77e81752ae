//! Where a packet stops: a way that is whole, and every way to break it.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    firewall::{FirewallTarget, InstanceFilter, PacketKind},
    id::{AccountId, InstanceId, MacAddr, NetworkId, ServerId},
    part::Part,
    path::{End, Far, Sight, Tunnel, Verdict, walk},
    peers::Peer,
    state::PublicState,
    target::{FabricTarget, NetworkTarget, Target},
    time::Timestamp,
    wire::{STALE_MS, Tried, WireFact, wanted},
};
use serde_json::json;

const VNI: u32 = 7;
const PING: PacketKind = PacketKind::Icmp(8, 0);

/// Two machines with an instance each on one tenant's segment, and all as it should be.
struct Scene {
    network: NetworkId,
    names: [InstanceId; 2],
    servers: [ServerId; 2],
    targets: [Target; 2],
    sights: [Result<Sight, String>; 2],
    wires: [Result<Tried, String>; 2],
    seen: [u64; 2],
    mtu: u32,
}

fn underlay(at: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, at as u8 + 1])
}

fn mac(at: usize) -> MacAddr {
    MacAddr::from_suffix(at as u32 + 1)
}

fn address(at: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, at as u8 + 5])
}

impl Scene {
    fn new() -> Self {
        let (network, servers) = (NetworkId::random(), [ServerId::random(), ServerId::random()]);
        let fabric = FabricTarget { vni: VNI, owner: AccountId::random(), internet_nat: false, routed: false };
        let segment = NetworkTarget {
            nic_tag: "x000007".to_owned(),
            subnet: Some("10.0.0.0/24".parse().unwrap()),
            mtu: 1400,
            fabric: Some(fabric),
            ..NetworkTarget::default()
        };
        let target = |at: usize| {
            let document = json!({
                "server": servers[at], "generation": 9, "datacenter": "x", "networks": {}, "images": {}, "zones": {}
            });
            let mut target: Target = serde_json::from_value(document).unwrap();
            let peer = Peer { addresses: vec![address(1 - at)], underlay: underlay(1 - at) };
            target.networks.insert(network, segment.clone());
            target.underlay = Some(underlay(at));
            target.peers = BTreeMap::from([(VNI, [(mac(1 - at), peer)].into_iter().collect())]);
            target
        };
        let sight = |at: usize| {
            let tunnel =
                Tunnel { device: true, machine: Some(underlay(1 - at)), port: true, neighbour: Some(mac(1 - at)) };
            Ok(Sight { nic: Some(true), filters: Some(true), router: false, tunnel: Some(tunnel) })
        };
        let wire = || {
            let fact =
                WireFact { reachable: true, since: Timestamp(0), mtu: Some(1_450), needed: 1_450, vxlan: Some(true) };
            Ok(Tried { fact, age_ms: 12_000 })
        };
        Self {
            network,
            names: [InstanceId::random(), InstanceId::random()],
            servers,
            targets: [target(0), target(1)],
            sights: [sight(0), sight(1)],
            wires: [wire(), wire()],
            seen: [9, 9],
            mtu: 1500,
        }
    }

    fn end(&self, at: usize) -> End<'_> {
        End {
            instance: self.names[at],
            alias: ["a", "b"][at],
            state: PublicState::Running,
            mac: mac(at),
            address: address(at),
            network: self.network,
            server: self.servers[at],
            host: ["one", "two"][at],
            target: &self.targets[at],
            seen: self.seen[at],
            firewall_seen: self.seen[at],
            underlay_mtu: Some(self.mtu),
            sight: &self.sights[at],
            wire: &self.wires[at],
        }
    }

    /// Where it stops: machine, hop and why.
    fn stops(&self) -> Vec<(String, String, String)> {
        let hops = walk(&self.end(0), &Far::Instance(self.end(1)), PING);
        let stops = hops.into_iter().filter(|hop| hop.verdict == Verdict::Stops);
        stops.map(|hop| (hop.host, hop.what, hop.says)).collect()
    }

    fn one_stop(&self, host: &str, what: &str, says: &str) {
        let stops = self.stops();
        assert!(matches!(&stops[..], [(at, hop, why)] if at == host && hop == what && why.contains(says)), "{stops:?}");
    }

    fn wire(&mut self, at: usize) -> &mut Tried {
        self.wires[at].as_mut().unwrap()
    }

    fn tunnel(&mut self, at: usize) -> &mut Tunnel {
        self.sights[at].as_mut().unwrap().tunnel.as_mut().unwrap()
    }
}

#[test]
fn a_way_that_is_whole_is_whole() {
    let scene = Scene::new();
    assert_eq!(scene.stops(), []);
    let hops = walk(&scene.end(0), &Far::Instance(scene.end(1)), PING);
    let unknown: Vec<&str> =
        hops.iter().filter(|hop| hop.verdict == Verdict::Unknown).map(|hop| hop.what.as_str()).collect();
    assert_eq!(unknown, Vec::<&str>::new(), "and everything was looked at");
}

#[test]
fn each_thing_that_is_wrong_is_named_where_it_is() {
    let mut scene = Scene::new();
    scene.tunnel(0).machine = None;
    scene.one_stop("one", "peer entry", "no entry says where");
    let mut scene = Scene::new();
    scene.tunnel(0).machine = Some([192, 0, 2, 9].into());
    scene.one_stop("one", "peer entry", "is sent to 192.0.2.9");
    let mut scene = Scene::new();
    scene.tunnel(1).neighbour = None;
    scene.one_stop("two", "peer entry back", "nobody answers for 10.0.0.5");
    let mut scene = Scene::new();
    scene.tunnel(1).device = false;
    scene.one_stop("two", "peer entry back", "no VXLAN device");
    let mut scene = Scene::new();
    scene.sights[1].as_mut().unwrap().nic = None;
    scene.one_stop("two", "NIC", "no interface");
    let mut scene = Scene::new();
    scene.targets[0].underlay = None;
    scene.one_stop("one", "peer entry", "fabrics end at it");
    let mut scene = Scene::new();
    scene.targets[0].peers.clear();
    scene.one_stop("one", "peer entry", "does not say where");
    let mut scene = Scene::new();
    scene.mtu = 1449;
    assert_eq!(scene.stops().len(), 2, "each way");
    scene.mtu = 1450;
    assert_eq!(scene.stops(), []);
}

#[test]
fn what_machines_found_out_about_the_wire_counts_while_it_is_young() {
    let mut scene = Scene::new();
    scene.wire(0).fact.mtu = Some(1_449);
    scene.one_stop("one", "wire", "up to 1449 bytes arrive at two, and those of 1400 bytes need 1450");
    let mut scene = Scene::new();
    let fact = &mut scene.wire(1).fact;
    (fact.reachable, fact.mtu, fact.since) = (false, None, Timestamp(60_000));
    scene.one_stop("two", "wire back", "one does not answer since 1970-01-01T00:01:00.000Z; tried 12 s ago");
    scene.wire(1).age_ms = STALE_MS + 1;
    assert_eq!(scene.stops(), [], "nobody knows how it is now");
    scene.wires[1] = Err("not tried".to_owned());
    let hops = walk(&scene.end(0), &Far::Instance(scene.end(1)), PING);
    let unknown: Vec<_> = hops.iter().filter(|hop| hop.verdict == Verdict::Unknown).collect();
    assert!(matches!(&unknown[..], [hop] if hop.what == "wire back" && hop.says == "not tried"), "{unknown:?}");
}

#[test]
fn machines_with_a_peer_are_tried_with_the_widest_of_common_networks() {
    let mut scene = Scene::new();
    let other = underlay(1);
    assert_eq!(wanted(&scene.targets[0]), BTreeMap::from([(other, 1_450)]));
    let mut wide = scene.targets[0].networks[&scene.network].clone();
    wide.mtu = 8_000;
    wide.fabric.as_mut().unwrap().vni = 8;
    scene.targets[0].networks.insert(NetworkId::random(), wide.clone());
    assert_eq!(wanted(&scene.targets[0])[&other], 1_450, "nobody there has it");
    let peers = &mut scene.targets[0].peers;
    let peer = |at: IpAddr| Peer { addresses: Vec::new(), underlay: at };
    peers.insert(8, [(mac(7), peer(other)), (mac(8), peer("fd00::9".parse().unwrap()))].into_iter().collect());
    peers.insert(9, [(mac(9), peer([192, 0, 2, 9].into()))].into_iter().collect());
    assert_eq!(wanted(&scene.targets[0]), BTreeMap::from([(other, 8_050)]), "one family, and networks of ours");
    scene.targets[0].underlay = None;
    assert_eq!(wanted(&scene.targets[0]), BTreeMap::new());
}

#[test]
fn a_machine_that_says_nothing_is_not_believed_to_be_well() {
    let mut scene = Scene::new();
    scene.sights[1] = Err("server two did not answer".to_owned());
    let hops = walk(&scene.end(0), &Far::Instance(scene.end(1)), PING);
    let of_two = hops.iter().filter(|hop| hop.host == "two" && hop.verdict == Verdict::Unknown);
    assert_eq!(of_two.filter(|hop| hop.says.contains("did not answer")).count(), 3);
}

#[test]
fn the_firewall_decides_and_is_believed_when_it_is_confirmed() {
    let mut scene = Scene::new();
    let filters = FirewallTarget {
        instances: BTreeMap::from([(scene.names[1], InstanceFilter::default())]),
        ..FirewallTarget::default()
    };
    scene.targets[1].firewall = Part::new(filters);
    scene.one_stop("two", "firewall in", "no rule matches");
    scene.seen[1] = 8;
    assert_eq!(scene.stops(), [], "it may not be in force");
}

#[test]
fn other_networks_and_the_outside_need_a_way() {
    let mut scene = Scene::new();
    let mut other = scene.targets[1].networks.remove(&scene.network).unwrap();
    other.fabric.as_mut().unwrap().vni = 8;
    scene.targets[1].networks.insert(scene.network, other);
    scene.one_stop("one", "network", "share no network");
    let hops = walk(&scene.end(0), &Far::Address([198, 51, 100, 1].into()), PING);
    assert!(hops.iter().any(|hop| hop.verdict == Verdict::Stops && hop.says.contains("no internet NAT")), "{hops:?}");
}
