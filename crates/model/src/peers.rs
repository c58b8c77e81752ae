//! Who is on a segment elsewhere, by machine.
//!
//! A machine's document tells it of every NIC on other machines that its own may talk to. A large segment is in the documents of many
//! machines, and they all say nearly the same: so the NICs of one machine on one segment are one [`Part`], which all documents
//! share. One NIC more makes one part anew; every document with the segment then exchanges one pointer, telling what is new looks
//! only at parts that are not the same one, and a digest is made of the parts' digests.
//!
//! On the wire and on disk it stays a plain table from Ethernet address to [`Peer`].

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    delta::Changes,
    id::MacAddr,
    part::{Digest, Part, Sum},
};

/// A NIC on another machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// What it answers ARP and neighbour solicitations for.
    pub addresses: Vec<IpAddr>,
    /// Where its machine is met.
    pub underlay: IpAddr,
}

/// The NICs of one machine on one segment, with what they answer for.
pub type Nics = BTreeMap<MacAddr, Vec<IpAddr>>;

/// NICs on other machines, by where their machine is met. A NIC is behind one machine, and no machine is without one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segment(Part<BTreeMap<IpAddr, Part<Nics>>>);

impl Segment {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many NICs there are.
    pub fn len(&self) -> usize {
        self.0.values().map(|nics| nics.len()).sum()
    }

    /// All of them, by machine.
    pub fn iter(&self) -> impl Iterator<Item = (MacAddr, Peer)> + '_ {
        self.0.iter().flat_map(|(underlay, nics)| {
            nics.iter().map(|(mac, addresses)| (*mac, Peer { addresses: addresses.clone(), underlay: *underlay }))
        })
    }

    /// One of them.
    pub fn get(&self, mac: MacAddr) -> Option<Peer> {
        self.0.iter().find_map(|(underlay, nics)| {
            nics.get(&mac).map(|addresses| Peer { addresses: addresses.clone(), underlay: *underlay })
        })
    }

    /// Where the machines are met that have any.
    pub fn machines(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.0.keys().copied()
    }

    /// Those behind one machine.
    pub fn behind(&self, underlay: IpAddr) -> Option<&Part<Nics>> {
        self.0.get(&underlay)
    }

    /// Takes over which NICs are behind `underlay`; `None` for none. Whether it was another part before.
    pub fn set(&mut self, underlay: IpAddr, nics: Option<Part<Nics>>) -> bool {
        let nics = nics.filter(|nics| !nics.is_empty());
        let is_same = match (self.0.get(&underlay), &nics) {
            (None, None) => true,
            (Some(before), Some(nics)) => before.is(nics),
            _ => false,
        };
        if is_same {
            return false;
        }
        match nics {
            Some(nics) => self.0.insert(underlay, nics),
            None => self.0.remove(&underlay),
        };
        true
    }

    /// What tells its content from others.
    pub(crate) fn digest(&self) -> Digest {
        self.0.digest_by(|machines| {
            let mut sum = Sum::default();
            for (underlay, nics) in machines {
                sum.value(underlay);
                sum.digest(nics.digest());
            }
            sum.done()
        })
    }

    /// What to change in `old` so that it is this one.
    pub(crate) fn changes_from(&self, old: &Self) -> Changes<MacAddr, Peer> {
        let mut changes = Changes::default();
        if self.0.is(&old.0) {
            return changes;
        }
        let none = Part::default();
        for (underlay, nics) in &*self.0 {
            let before = old.0.get(underlay).unwrap_or(&none);
            if !before.is(nics) {
                let new = nics.iter().filter(|(mac, addresses)| before.get(mac) != Some(addresses));
                let peer = |addresses: &Vec<IpAddr>| Peer { addresses: addresses.clone(), underlay: *underlay };
                changes.put.extend(new.map(|(mac, addresses)| (*mac, peer(addresses))));
            }
        }
        for (underlay, before) in &*old.0 {
            let nics = self.0.get(underlay).unwrap_or(&none);
            if !before.is(nics) {
                // What went to another machine has been put there.
                let gone = before.keys().filter(|mac| !nics.contains_key(mac) && !changes.put.contains_key(mac));
                changes.gone.extend(gone.copied());
            }
        }
        changes
    }

    /// Changes it.
    pub(crate) fn apply(&mut self, changes: &Changes<MacAddr, Peer>) {
        let touched = || changes.gone.iter().chain(changes.put.keys());
        let machines: Vec<IpAddr> = self.0.keys().copied().collect();
        for underlay in machines {
            let leaving: Vec<MacAddr> = {
                let nics = &self.0[&underlay];
                touched().filter(|mac| nics.contains_key(mac)).copied().collect()
            };
            if leaving.is_empty() {
                continue;
            }
            // What is put may be behind another machine from now on.
            let nics = self.0.entry(underlay).or_default();
            for mac in leaving {
                nics.remove(&mac);
            }
        }
        let mut new: BTreeMap<IpAddr, Vec<(MacAddr, &Peer)>> = BTreeMap::new();
        for (mac, peer) in &changes.put {
            new.entry(peer.underlay).or_default().push((*mac, peer));
        }
        for (underlay, peers) in new {
            let nics = self.0.entry(underlay).or_default();
            nics.extend(peers.into_iter().map(|(mac, peer)| (mac, peer.addresses.clone())));
        }
        let left: Vec<IpAddr> =
            self.0.iter().filter(|(_, nics)| nics.is_empty()).map(|(underlay, _)| *underlay).collect();
        for underlay in left {
            self.0.remove(&underlay);
        }
    }
}

impl FromIterator<(MacAddr, Peer)> for Segment {
    fn from_iter<I: IntoIterator<Item = (MacAddr, Peer)>>(peers: I) -> Self {
        let mut machines: BTreeMap<IpAddr, Nics> = BTreeMap::new();
        for (mac, peer) in peers {
            machines.entry(peer.underlay).or_default().insert(mac, peer.addresses);
        }
        Self(Part::new(machines.into_iter().map(|(underlay, nics)| (underlay, Part::new(nics))).collect()))
    }
}

impl Serialize for Segment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Segment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Through a table, so that an address that is there twice counts once.
        BTreeMap::<MacAddr, Peer>::deserialize(deserializer).map(Self::from_iter)
    }
}
