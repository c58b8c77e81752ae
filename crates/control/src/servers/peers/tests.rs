//! Who hears of whom, told plainly and by difference.

use proptest::{collection::vec, prelude::*};

use super::*;

fn member(vni: u32, last: u8) -> Member {
    (vni, MacAddr([2, 0, 0, 0, u8::try_from(vni).expect("a small one"), last]), vec![IpAddr::from([10, 0, 0, last])])
}

struct Fleet {
    peers: Peers,
    servers: Vec<ServerId>,
}

impl Fleet {
    fn new(count: u8) -> Self {
        let mut fleet = Self { peers: Peers::default(), servers: (0..count).map(|_| ServerId::random()).collect() };
        for (at, server) in fleet.servers.iter().enumerate() {
            let underlay = [192, 0, 2, u8::try_from(at).expect("few")];
            fleet.peers.meet(*server, Some(underlay.into()));
        }
        fleet
    }

    /// Whose hearing changed.
    fn place(&mut self, id: InstanceId, at: Option<(usize, Vec<Member>)>) -> BTreeSet<ServerId> {
        self.peers.place(id, at.map(|(server, members)| (self.servers[server], members)));
        self.peers.settle()
    }

    fn hears(&self, server: usize, vni: u32) -> usize {
        self.peers.heard(self.servers[server]).get(&vni).map_or(0, Segment::len)
    }

    fn set(&self, all: &[usize]) -> BTreeSet<ServerId> {
        all.iter().map(|at| self.servers[*at]).collect()
    }
}

#[test]
fn only_machines_with_a_member_hear() {
    let mut fleet = Fleet::new(4);
    let (a, b, c) = (InstanceId::random(), InstanceId::random(), InstanceId::random());
    assert!(fleet.place(a, Some((0, vec![member(1, 1)]))).is_empty(), "nobody is there to hear");
    assert_eq!(fleet.place(b, Some((1, vec![member(1, 2)]))), fleet.set(&[0, 1]));
    assert!(fleet.place(c, Some((2, vec![member(2, 2)]))).is_empty(), "another segment is nobody's business");
    assert_eq!((fleet.hears(0, 1), fleet.hears(1, 1), fleet.hears(3, 2)), (1, 1, 0));
    assert!(fleet.place(b, Some((1, vec![member(1, 2)]))).is_empty(), "nothing new");
    // A move: the machine it left, the one it came to, and the one that talks to it.
    assert_eq!(fleet.place(b, Some((3, vec![member(1, 2)]))), fleet.set(&[0, 1, 3]));
    assert_eq!((fleet.hears(0, 1), fleet.hears(1, 1)), (1, 0));
    assert_eq!(fleet.place(b, None), fleet.set(&[0, 3]));
    assert_eq!(fleet.hears(0, 1), 0, "forgotten everywhere");
}

#[test]
fn a_machine_that_moves_is_met_elsewhere() {
    let mut fleet = Fleet::new(3);
    fleet.place(InstanceId::random(), Some((0, vec![member(1, 1)])));
    fleet.place(InstanceId::random(), Some((1, vec![member(1, 2)])));
    let moved = fleet.servers[1];
    assert!(fleet.peers.meet(moved, Some([192, 0, 2, 99].into())));
    assert_eq!(fleet.peers.settle(), fleet.set(&[0]), "what it hears itself is as it was");
    let heard = fleet.peers.heard(fleet.servers[0]);
    assert_eq!(heard[&1].iter().next().map(|(_, peer)| peer.underlay), Some(IpAddr::from([192, 0, 2, 99])));
}

#[test]
fn a_router_hears_of_the_networks_it_leads_to() {
    let mut fleet = Fleet::new(3);
    let (owner, one, two) = (AccountId::random(), NetworkId::random(), NetworkId::random());
    fleet.place(InstanceId::random(), Some((0, vec![member(1, 1)])));
    fleet.place(InstanceId::random(), Some((1, vec![member(2, 2)])));
    let mut dirty = BTreeSet::new();
    fleet.peers.lead(one, Some((owner, 1)), &mut dirty);
    fleet.peers.lead(two, Some((owner, 2)), &mut dirty);
    assert_eq!(dirty, fleet.set(&[0, 1]));
    assert_eq!(fleet.peers.settle(), fleet.set(&[0, 1]));
    assert_eq!(fleet.peers.led_to(fleet.servers[0]), [one, two].into());
    assert_eq!(fleet.place(InstanceId::random(), Some((2, vec![member(2, 3)]))), fleet.set(&[0, 1, 2]));
    dirty.clear();
    fleet.peers.lead(two, None, &mut dirty);
    assert_eq!(dirty, fleet.set(&[0, 1, 2]));
    assert_eq!(fleet.peers.settle(), fleet.set(&[0, 1, 2]));
    assert_eq!(fleet.peers.led_to(fleet.servers[0]), [one].into());
}

#[test]
fn those_who_hear_share_what_they_hear() {
    let mut fleet = Fleet::new(4);
    for server in 0..4_u8 {
        let members = (0..5).map(|nic| member(1, server * 5 + nic)).collect();
        fleet.place(InstanceId::random(), Some((server.into(), members)));
    }
    let heard = |fleet: &Fleet, server: usize| fleet.peers.heard(fleet.servers[server])[&1].clone();
    let before = heard(&fleet, 0);
    fleet.place(InstanceId::random(), Some((3, vec![member(1, 100)])));
    let after = heard(&fleet, 0);
    let address = |server| fleet.peers.underlay(fleet.servers[server]).expect("it is known");
    let same = |server| after.behind(address(server)).zip(before.behind(address(server))).is_some_and(|(a, b)| a.is(b));
    assert_eq!([same(1), same(2), same(3)], [true, true, false], "one part was made anew");
    let (zero, one) = (after.behind(address(3)).expect("there"), heard(&fleet, 1));
    assert!(zero.is(one.behind(address(3)).expect("there")), "and is the same for all");
}

/// What there is, told plainly.
#[derive(Debug, Default)]
struct Plain {
    places: BTreeMap<u8, (u8, Vec<Member>)>,
    underlay: BTreeMap<u8, IpAddr>,
    routed: BTreeMap<u8, (u8, u32)>,
}

impl Plain {
    /// What a machine should hear: all looked through each time.
    fn heard(&self, server: u8) -> BTreeMap<u32, Segment> {
        let on =
            |server: u8| self.places.values().filter(move |(at, _)| *at == server).flat_map(|(_, members)| members);
        let here: BTreeSet<u32> = on(server).map(|(vni, ..)| *vni).collect();
        let owners: BTreeSet<u8> =
            self.routed.values().filter(|(_, vni)| here.contains(vni)).map(|(owner, _)| *owner).collect();
        let led = self.routed.values().filter(|(owner, _)| owners.contains(owner)).map(|(_, vni)| *vni);
        let mut heard: BTreeMap<u32, BTreeMap<MacAddr, model::peers::Peer>> = BTreeMap::new();
        for vni in here.iter().copied().chain(led) {
            for (other, underlay) in self.underlay.iter().filter(|(other, _)| **other != server) {
                for (_, mac, addresses) in on(*other).filter(|(on, ..)| *on == vni) {
                    let peer = model::peers::Peer { addresses: addresses.clone(), underlay: *underlay };
                    heard.entry(vni).or_default().insert(*mac, peer);
                }
            }
        }
        heard.into_iter().map(|(vni, peers)| (vni, peers.into_iter().collect())).collect()
    }
}

/// One thing that happens: an instance is somewhere or nowhere, a machine is met somewhere or nowhere, a network is routed or not,
/// or everybody is told.
#[derive(Debug, Clone)]
enum Event {
    Place(u8, Option<(u8, Vec<(u32, u8)>)>),
    Meet(u8, Option<u8>),
    Lead(u8, bool),
    Settle,
}

const SERVERS: u8 = 5;
/// Each on a segment of its own or shared: two owners, three segments each.
const NETWORKS: u8 = 8;

fn events() -> impl Strategy<Value = Vec<Event>> {
    let nics = vec((1..7_u32, 0..3_u8), 0..3);
    let event = prop_oneof![
        4 => (0..12_u8, proptest::option::weighted(0.8, (0..SERVERS, nics))).prop_map(|(id, at)| Event::Place(id, at)),
        // Fewer addresses than machines: two may be met at one.
        1 => (0..SERVERS, proptest::option::weighted(0.8, 0..4_u8)).prop_map(|(server, at)| Event::Meet(server, at)),
        1 => (0..NETWORKS, any::<bool>()).prop_map(|(network, routed)| Event::Lead(network, routed)),
        2 => Just(Event::Settle),
    ];
    vec(event, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever happened in whatever order, machines hear what they would be told from nothing, and those and only those whose hearing
    /// changed are said to be changed.
    #[test]
    fn by_difference_is_from_scratch(events in events()) {
        let uuid = |number: u8| uuid::Uuid::from_u128(u128::from(number) + 1);
        let (mut peers, mut plain) = (Peers::default(), Plain::default());
        let mut before: Vec<BTreeMap<u32, Segment>> = vec![BTreeMap::new(); SERVERS.into()];
        for event in events.into_iter().chain([Event::Settle]) {
            match event {
                Event::Place(id, at) => {
                    // An instance's NICs are its own, wherever they are.
                    let nics = |nics: Vec<(u32, u8)>| {
                        let nic = |(at, (vni, address)): (u8, (u32, u8))| {
                            (vni, MacAddr([2, 0, 0, 0, id, at]), vec![IpAddr::from([10, 0, address, id])])
                        };
                        (0..).zip(nics).map(nic).collect::<Vec<Member>>()
                    };
                    let at = at.map(|(server, all)| (server, nics(all)));
                    peers.place(InstanceId::new(uuid(id)), at.clone().map(|(server, all)| (ServerId::new(uuid(server)), all)));
                    match at {
                        Some(at) => drop(plain.places.insert(id, at)),
                        None => drop(plain.places.remove(&id)),
                    }
                }
                Event::Meet(server, at) => {
                    let at = at.map(|last| IpAddr::from([192, 0, 2, last]));
                    peers.meet(ServerId::new(uuid(server)), at);
                    match at {
                        Some(at) => drop(plain.underlay.insert(server, at)),
                        None => drop(plain.underlay.remove(&server)),
                    }
                }
                Event::Lead(network, routed) => {
                    let at = (network % 2, 1 + u32::from(network % 2) * 3 + u32::from(network / 2) % 3);
                    let told = routed.then(|| (AccountId::new(uuid(at.0)), at.1));
                    peers.lead(NetworkId::new(uuid(network)), told, &mut BTreeSet::new());
                    match routed {
                        true => drop(plain.routed.insert(network, at)),
                        false => drop(plain.routed.remove(&network)),
                    }
                }
                Event::Settle => {
                    let changed = peers.settle();
                    for server in 0..SERVERS {
                        let id = ServerId::new(uuid(server));
                        let (heard, wanted) = (peers.heard(id), plain.heard(server));
                        prop_assert_eq!(&heard, &wanted, "machine {}", server);
                        let (is_said, is_other) = (changed.contains(&id), before[usize::from(server)] != heard);
                        prop_assert!(is_said || !is_other, "machine {} is not said to hear something else", server);
                        before[usize::from(server)] = heard;
                    }
                }
            }
        }
        // A history that ends with nothing leaves nothing.
        for id in 0..12 {
            peers.place(InstanceId::new(uuid(id)), None);
        }
        peers.settle();
        prop_assert!(peers.members.is_empty() && peers.segments_of.is_empty() && peers.of_instance.is_empty());
        prop_assert!(peers.heard.is_empty() && peers.heard_by.is_empty() && peers.hearers.is_empty());
    }
}
