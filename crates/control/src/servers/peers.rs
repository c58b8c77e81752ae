//! Which machines hear of which NICs: the members of each tenant's segment, by machine.
//!
//! A machine hears of the NICs on other machines in the segments it has a member in, and in those its router leads to: the
//! other routed networks of the same owner. A change of one instance is told to the machines with such an interest and to no
//! other, and costs what the segment's members and machines cost, however many other segments there are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use model::{
    id::{AccountId, InstanceId, MacAddr, NetworkId, ServerId},
    target::Peer,
};

/// A NIC on a segment: VNI, Ethernet address, addresses.
pub(super) type Member = (u32, MacAddr, Vec<IpAddr>);

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Peers {
    segments: HashMap<u32, Segment>,
    /// Where each instance with a NIC on a segment is, and what it has there.
    of_instance: HashMap<InstanceId, (ServerId, Vec<Member>)>,
    underlay: HashMap<ServerId, IpAddr>,
    /// Routed networks with their VNIs, by owner.
    routed: HashMap<AccountId, BTreeMap<NetworkId, u32>>,
    owner_of_routed: HashMap<NetworkId, AccountId>,
    /// Whose routed networks are on a segment; a VNI is one account's.
    owner_on: HashMap<u32, AccountId>,
}

#[derive(Debug, Default)]
struct Segment {
    /// By machine, so that what concerns one machine is found without the others.
    members: BTreeMap<ServerId, BTreeMap<MacAddr, Vec<IpAddr>>>,
}

impl Peers {
    /// Forgets everything, before all is told anew.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes over where an instance is and what it has on segments; `None` for one that is nowhere. Machines that hear of the
    /// difference become dirty.
    pub(super) fn place(
        &mut self,
        id: InstanceId,
        at: Option<(ServerId, Vec<Member>)>,
        dirty: &mut BTreeSet<ServerId>,
    ) {
        let at = at.filter(|(_, members)| !members.is_empty());
        if self.of_instance.get(&id) == at.as_ref() {
            return;
        }
        let mut touched: BTreeSet<u32> = BTreeSet::new();
        if let Some((server, members)) = self.of_instance.remove(&id) {
            for (vni, mac, _) in members {
                touched.insert(vni);
                // Before it goes: its machine may hear of the segment for the last time.
                dirty.extend(self.interested(vni));
                self.remove(vni, server, mac);
            }
        }
        if let Some((server, members)) = at {
            for (vni, mac, addresses) in &members {
                touched.insert(*vni);
                let segment = self.segments.entry(*vni).or_default();
                segment.members.entry(server).or_default().insert(*mac, addresses.clone());
            }
            self.of_instance.insert(id, (server, members));
        }
        for vni in touched {
            dirty.extend(self.interested(vni));
        }
    }

    /// Takes over where a machine is met.
    pub(super) fn meet(&mut self, server: ServerId, underlay: Option<IpAddr>, dirty: &mut BTreeSet<ServerId>) {
        let before = match underlay {
            Some(address) => self.underlay.insert(server, address),
            None => self.underlay.remove(&server),
        };
        if before == underlay {
            return;
        }
        dirty.insert(server);
        let here: Vec<u32> = self
            .segments
            .iter()
            .filter(|(_, segment)| segment.members.contains_key(&server))
            .map(|(vni, _)| *vni)
            .collect();
        for vni in here {
            dirty.extend(self.interested(vni));
        }
    }

    /// Takes over whether a network is routed to its owner's others, and on which segment.
    pub(super) fn lead(
        &mut self,
        network: NetworkId,
        routed: Option<(AccountId, u32)>,
        dirty: &mut BTreeSet<ServerId>,
    ) {
        let before = self.owner_of_routed.get(&network).copied();
        let before = before.and_then(|owner| Some((owner, *self.routed.get(&owner)?.get(&network)?)));
        if before == routed {
            return;
        }
        for (owner, vni) in before.into_iter().chain(routed) {
            // Both before and after the change: whoever gains sight of it or loses it.
            self.add_route(network, owner, vni);
            dirty.extend(self.interested(vni));
            self.forget_route(network, owner);
        }
        if let Some((owner, vni)) = routed {
            self.add_route(network, owner, vni);
        }
    }

    /// Networks that the router of a machine leads to, for one with members on `vnis`.
    pub(super) fn led_to(&self, vnis: &BTreeSet<u32>) -> BTreeSet<NetworkId> {
        let owners: BTreeSet<&AccountId> = vnis.iter().filter_map(|vni| self.owner_on.get(vni)).collect();
        owners.into_iter().filter_map(|owner| self.routed.get(owner)).flat_map(BTreeMap::keys).copied().collect()
    }

    /// What `server` hears of these segments.
    pub(super) fn heard_by(&self, server: ServerId, vnis: &BTreeSet<u32>) -> BTreeMap<u32, BTreeMap<MacAddr, Peer>> {
        let mut heard = BTreeMap::new();
        for vni in vnis {
            let Some(segment) = self.segments.get(vni) else { continue };
            let mut peers = BTreeMap::new();
            for (machine, members) in segment.members.iter().filter(|(machine, _)| **machine != server) {
                // A machine nobody knows how to meet is met by nobody.
                let Some(underlay) = self.underlay.get(machine) else { continue };
                peers.extend(
                    members.iter().map(|(mac, all)| (*mac, Peer { addresses: all.clone(), underlay: *underlay })),
                );
            }
            if !peers.is_empty() {
                heard.insert(*vni, peers);
            }
        }
        heard
    }

    /// Where a machine is met.
    pub(super) fn underlay(&self, server: ServerId) -> Option<IpAddr> {
        self.underlay.get(&server).copied()
    }

    /// Machines that hear of a segment: those with a member there, or on a routed network whose router leads there.
    fn interested(&self, vni: u32) -> BTreeSet<ServerId> {
        let led = self.owner_on.get(&vni).and_then(|owner| self.routed.get(owner));
        let vnis: BTreeSet<u32> = led.into_iter().flat_map(BTreeMap::values).copied().chain([vni]).collect();
        let segments = vnis.iter().filter_map(|vni| self.segments.get(vni));
        segments.flat_map(|segment| segment.members.keys().copied()).collect()
    }

    fn remove(&mut self, vni: u32, server: ServerId, mac: MacAddr) {
        let Some(segment) = self.segments.get_mut(&vni) else { return };
        if let Some(members) = segment.members.get_mut(&server) {
            members.remove(&mac);
            if members.is_empty() {
                segment.members.remove(&server);
            }
        }
        if segment.members.is_empty() {
            self.segments.remove(&vni);
        }
    }

    fn add_route(&mut self, network: NetworkId, owner: AccountId, vni: u32) {
        self.routed.entry(owner).or_default().insert(network, vni);
        self.owner_of_routed.insert(network, owner);
        self.owner_on.insert(vni, owner);
    }

    fn forget_route(&mut self, network: NetworkId, owner: AccountId) {
        self.owner_of_routed.remove(&network);
        if let Some(networks) = self.routed.get_mut(&owner) {
            if let Some(vni) = networks.remove(&network)
                && !networks.values().any(|other| *other == vni)
            {
                self.owner_on.remove(&vni);
            }
            if networks.is_empty() {
                self.routed.remove(&owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(vni: u32, last: u8) -> Member {
        (
            vni,
            MacAddr([2, 0, 0, 0, u8::try_from(vni).expect("a small one"), last]),
            vec![IpAddr::from([10, 0, 0, last])],
        )
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
                fleet.peers.meet(*server, Some(underlay.into()), &mut BTreeSet::new());
            }
            fleet
        }

        fn place(&mut self, id: InstanceId, at: Option<(usize, Vec<Member>)>) -> BTreeSet<ServerId> {
            let mut dirty = BTreeSet::new();
            self.peers.place(id, at.map(|(server, members)| (self.servers[server], members)), &mut dirty);
            dirty
        }

        fn hears(&self, server: usize, vni: u32) -> usize {
            self.peers.heard_by(self.servers[server], &[vni].into()).get(&vni).map_or(0, BTreeMap::len)
        }

        fn set(&self, all: &[usize]) -> BTreeSet<ServerId> {
            all.iter().map(|at| self.servers[*at]).collect()
        }
    }

    #[test]
    fn only_machines_with_a_member_hear() {
        let mut fleet = Fleet::new(4);
        let (a, b, c) = (InstanceId::random(), InstanceId::random(), InstanceId::random());
        assert_eq!(fleet.place(a, Some((0, vec![member(1, 1)]))), fleet.set(&[0]));
        assert_eq!(fleet.place(b, Some((1, vec![member(1, 2)]))), fleet.set(&[0, 1]));
        assert_eq!(
            fleet.place(c, Some((2, vec![member(2, 2)]))),
            fleet.set(&[2]),
            "another segment is nobody's business"
        );
        assert_eq!((fleet.hears(0, 1), fleet.hears(1, 1), fleet.hears(3, 2)), (1, 1, 1));
        assert!(fleet.place(b, Some((1, vec![member(1, 2)]))).is_empty(), "nothing new");
        // A move: the machine it left, the one it came to, and the one that talks to it.
        assert_eq!(fleet.place(b, Some((3, vec![member(1, 2)]))), fleet.set(&[0, 1, 3]));
        assert_eq!(fleet.hears(0, 1), 1);
        assert_eq!(fleet.place(b, None), fleet.set(&[0, 3]));
        assert_eq!(fleet.hears(0, 1), 0, "forgotten everywhere");
    }

    #[test]
    fn a_machine_that_moves_is_met_elsewhere() {
        let mut fleet = Fleet::new(3);
        fleet.place(InstanceId::random(), Some((0, vec![member(1, 1)])));
        fleet.place(InstanceId::random(), Some((1, vec![member(1, 2)])));
        let (mut dirty, moved) = (BTreeSet::new(), fleet.servers[1]);
        fleet.peers.meet(moved, Some([192, 0, 2, 99].into()), &mut dirty);
        assert_eq!(dirty, fleet.set(&[0, 1]));
        let heard = fleet.peers.heard_by(fleet.servers[0], &[1].into());
        assert_eq!(heard[&1].values().next().map(|peer| peer.underlay), Some(IpAddr::from([192, 0, 2, 99])));
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
        assert_eq!(fleet.peers.led_to(&[1].into()), [one, two].into());
        assert_eq!(fleet.place(InstanceId::random(), Some((2, vec![member(2, 3)]))), fleet.set(&[0, 1, 2]));
        dirty.clear();
        fleet.peers.lead(two, None, &mut dirty);
        assert_eq!(dirty, fleet.set(&[0, 1, 2]));
        assert_eq!(fleet.peers.led_to(&[1].into()), [one].into());
    }
}
