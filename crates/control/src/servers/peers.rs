//! Which machines hear of which NICs: the members of each tenant's segment, by machine, and what each machine hears.
//!
//! A machine hears of the NICs on other machines in the segments it has a member in, and in those its router leads to: the
//! other routed networks of the same owner.
//!
//! Changes are taken in one by one ([`Peers::place`], [`Peers::meet`], [`Peers::lead`]), which only notes what they touch, and carried
//! into what the machines hear in one step ([`Peers::settle`]). The NICs of one machine on one segment are one part, shared by all who
//! hear of them: a change of a NIC makes one part anew, and costs each machine that hears of it a pointer, however many others
//! there are on the segment.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use model::{
    id::{AccountId, InstanceId, MacAddr, NetworkId, ServerId},
    instance::Instance,
    network::Network,
    part::Part,
    peers::{Nics, Segment},
};
use store::{Entry, Snapshot};

use crate::tables::{ACCOUNTS, IMAGES, NETWORKS};

/// A NIC on a segment: VNI, Ethernet address, addresses.
pub(super) type Member = (u32, MacAddr, Vec<IpAddr>);

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// NICs on each segment, by machine.
    members: HashMap<u32, BTreeMap<ServerId, Part<Nics>>>,
    /// Segments each machine has members on.
    segments_of: HashMap<ServerId, BTreeSet<u32>>,
    /// Where each instance with a NIC on a segment is, and what it has there.
    of_instance: HashMap<InstanceId, (ServerId, Vec<Member>)>,
    underlay: HashMap<ServerId, IpAddr>,
    /// Who is met at an address: one, unless somebody's settings are wrong.
    met_at: HashMap<IpAddr, BTreeSet<ServerId>>,
    /// Routed networks with their VNIs, by owner.
    routed: HashMap<AccountId, BTreeMap<NetworkId, u32>>,
    owner_of_routed: HashMap<NetworkId, AccountId>,
    /// Whose routed networks are on a segment; a VNI is one account's.
    owner_on: HashMap<u32, AccountId>,

    /// Segments each machine hears of, as of the last settling; and the same by segment.
    heard_by: HashMap<ServerId, BTreeSet<u32>>,
    hearers: HashMap<u32, BTreeSet<ServerId>>,
    /// What each machine hears of them, those left out that it hears nothing of.
    heard: HashMap<ServerId, BTreeMap<u32, Segment>>,

    /// What the next settling looks at: places on segments, by address between machines;
    touched: BTreeSet<(u32, IpAddr)>,
    /// and machines that may hear of other segments than before.
    turned: BTreeSet<ServerId>,
}

impl Peers {
    /// Forgets everything, before all is told anew.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes over where an instance is and what it has on segments; `None` for one that is nowhere.
    pub(super) fn place(&mut self, id: InstanceId, at: Option<(ServerId, Vec<Member>)>) {
        let at = at.filter(|(_, members)| !members.is_empty());
        if self.of_instance.get(&id) == at.as_ref() {
            return;
        }
        if let Some((server, members)) = self.of_instance.remove(&id) {
            for (vni, mac, _) in members {
                self.remove(vni, server, mac);
            }
        }
        if let Some((server, members)) = at {
            for (vni, mac, addresses) in &members {
                let nics = self.members.entry(*vni).or_default().entry(server).or_default();
                nics.insert(*mac, addresses.clone());
                self.touch(*vni, server);
                if self.segments_of.entry(server).or_default().insert(*vni) {
                    self.turned.insert(server);
                }
            }
            self.of_instance.insert(id, (server, members));
        }
    }

    /// Takes over where a machine is met, and says whether that is elsewhere than before.
    pub(super) fn meet(&mut self, server: ServerId, underlay: Option<IpAddr>) -> bool {
        let before = self.underlay.get(&server).copied();
        if before == underlay {
            return false;
        }
        let here: Vec<u32> = self.segments_of.get(&server).into_iter().flatten().copied().collect();
        for address in before.into_iter().chain(underlay) {
            self.touched.extend(here.iter().map(|vni| (*vni, address)));
        }
        if let Some(before) = before
            && let Some(met) = self.met_at.get_mut(&before)
        {
            met.remove(&server);
            if met.is_empty() {
                self.met_at.remove(&before);
            }
        }
        match underlay {
            Some(address) => {
                self.underlay.insert(server, address);
                self.met_at.entry(address).or_default().insert(server);
            }
            None => drop(self.underlay.remove(&server)),
        }
        true
    }

    /// Takes over whether a network is routed to its owner's others, and on which segment. Machines whose router leads elsewhere now
    /// become dirty.
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
        let mut concerned = BTreeSet::new();
        for (owner, vni) in before.into_iter().chain(routed) {
            // Both before and after the change: whoever gains sight of it or loses it.
            self.add_route(network, owner, vni);
            concerned.extend(self.interested(vni));
            self.forget_route(network, owner);
        }
        if let Some((owner, vni)) = routed {
            self.add_route(network, owner, vni);
        }
        dirty.extend(&concerned);
        self.turned.append(&mut concerned);
    }

    /// Carries what was taken in into what machines hear, and says whose that changed.
    pub(super) fn settle(&mut self) -> BTreeSet<ServerId> {
        let mut changed = BTreeSet::new();
        for server in std::mem::take(&mut self.turned) {
            let before = self.heard_by.remove(&server).unwrap_or_default();
            let now = self.listens_to(server);
            for vni in now.difference(&before) {
                self.hearers.entry(*vni).or_default().insert(server);
                let segment = self.segment(*vni, server);
                if !segment.is_empty() {
                    self.heard.entry(server).or_default().insert(*vni, segment);
                    changed.insert(server);
                }
            }
            for vni in before.difference(&now) {
                if let Some(hearers) = self.hearers.get_mut(vni) {
                    hearers.remove(&server);
                    if hearers.is_empty() {
                        self.hearers.remove(vni);
                    }
                }
                if let Some(heard) = self.heard.get_mut(&server)
                    && heard.remove(vni).is_some()
                {
                    changed.insert(server);
                    if heard.is_empty() {
                        self.heard.remove(&server);
                    }
                }
            }
            if !now.is_empty() {
                self.heard_by.insert(server, now);
            }
        }
        for (vni, address) in std::mem::take(&mut self.touched) {
            for server in self.hearers.get(&vni).into_iter().flatten() {
                let nics = self.nics(vni, address, *server);
                let heard = self.heard.entry(*server).or_default();
                let segment = heard.entry(vni).or_default();
                if segment.set(address, nics) {
                    changed.insert(*server);
                }
                if segment.is_empty() {
                    heard.remove(&vni);
                }
                if heard.is_empty() {
                    self.heard.remove(server);
                }
            }
        }
        changed
    }

    /// Networks that the router of a machine leads to.
    pub(super) fn led_to(&self, server: ServerId) -> BTreeSet<NetworkId> {
        self.routes_of(server).flat_map(BTreeMap::keys).copied().collect()
    }

    /// What a machine hears of, by VNI.
    pub(super) fn heard(&self, server: ServerId) -> BTreeMap<u32, Segment> {
        self.heard.get(&server).cloned().unwrap_or_default()
    }

    /// Where a machine is met.
    pub(super) fn underlay(&self, server: ServerId) -> Option<IpAddr> {
        self.underlay.get(&server).copied()
    }

    /// Routed networks, with their VNIs, of those on whose segments a machine has members.
    fn routes_of(&self, server: ServerId) -> impl Iterator<Item = &BTreeMap<NetworkId, u32>> {
        let here = self.segments_of.get(&server).into_iter().flatten();
        let owners: BTreeSet<&AccountId> = here.filter_map(|vni| self.owner_on.get(vni)).collect();
        owners.into_iter().filter_map(|owner| self.routed.get(owner))
    }

    /// Segments a machine should hear of.
    fn listens_to(&self, server: ServerId) -> BTreeSet<u32> {
        let led = self.routes_of(server).flat_map(BTreeMap::values);
        self.segments_of.get(&server).into_iter().flatten().chain(led).copied().collect()
    }

    /// A segment as a machine hears of it.
    fn segment(&self, vni: u32, server: ServerId) -> Segment {
        let mut segment = Segment::default();
        // A machine nobody knows how to meet is met by nobody.
        let machines = self.members.get(&vni).into_iter().flat_map(BTreeMap::keys);
        for address in machines.filter_map(|machine| self.underlay.get(machine)) {
            segment.set(*address, self.nics(vni, *address, server));
        }
        segment
    }

    /// What a machine hears of a segment from an address.
    fn nics(&self, vni: u32, address: IpAddr, server: ServerId) -> Option<Part<Nics>> {
        let members = self.members.get(&vni)?;
        let met = self.met_at.get(&address)?.iter().filter(|machine| **machine != server);
        let mut all = met.filter_map(|machine| members.get(machine));
        let first = all.next()?;
        let mut others = all.peekable();
        if others.peek().is_none() {
            return Some(first.clone());
        }
        let mut together = first.clone();
        for nics in others {
            together.extend(nics.iter().map(|(mac, addresses)| (*mac, addresses.clone())));
        }
        Some(together)
    }

    /// Machines that hear of a segment: those with a member there, or on a routed network whose router leads there.
    fn interested(&self, vni: u32) -> BTreeSet<ServerId> {
        let led = self.owner_on.get(&vni).and_then(|owner| self.routed.get(owner));
        let vnis: BTreeSet<u32> = led.into_iter().flat_map(BTreeMap::values).copied().chain([vni]).collect();
        let segments = vnis.iter().filter_map(|vni| self.members.get(vni));
        segments.flat_map(BTreeMap::keys).copied().collect()
    }

    fn touch(&mut self, vni: u32, server: ServerId) {
        if let Some(address) = self.underlay.get(&server) {
            self.touched.insert((vni, *address));
        }
    }

    fn remove(&mut self, vni: u32, server: ServerId, mac: MacAddr) {
        self.touch(vni, server);
        let Some(segment) = self.members.get_mut(&vni) else { return };
        let Some(nics) = segment.get_mut(&server) else { return };
        nics.remove(&mac);
        if !nics.is_empty() {
            return;
        }
        segment.remove(&server);
        if segment.is_empty() {
            self.members.remove(&vni);
        }
        self.turned.insert(server);
        if let Some(here) = self.segments_of.get_mut(&server) {
            here.remove(&vni);
            if here.is_empty() {
                self.segments_of.remove(&server);
            }
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

/// What an instance has on tenants' segments.
pub(super) fn members(snapshot: &Snapshot, instance: &Instance) -> Vec<Member> {
    let nics = instance.nics.iter().filter_map(|nic| {
        let network = snapshot.get(&NETWORKS, &nic.network.to_string())?;
        Some((network.fabric.as_ref()?.vni, nic.mac, nic.addresses().collect()))
    });
    nics.collect()
}

/// The owner and segment of a network that its router leads to from the owner's others.
pub(super) fn routed(network: &Network) -> Option<(AccountId, u32)> {
    let fabric = network.fabric.as_ref().filter(|fabric| fabric.routed)?;
    Some((*network.owners.first()?, fabric.vni))
}

/// The highest revision of any record that goes into the part of `entry`.
pub(super) fn newest_revision(snapshot: &Snapshot, entry: &Entry<Instance>) -> u64 {
    let networks = entry.nics.iter().filter_map(|nic| snapshot.get(&NETWORKS, &nic.network.to_string()));
    let image = snapshot.get(&IMAGES, &entry.image.to_string()).map_or(0, |image| image.revision().0);
    let account = snapshot.get(&ACCOUNTS, &entry.owner.to_string()).map_or(0, |account| account.revision().0);
    networks.map(|network| network.revision().0).fold(entry.revision().0.max(image).max(account), u64::max)
}

#[cfg(test)]
mod tests;
