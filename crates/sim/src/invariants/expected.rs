//! What machines should hear of each other, from nothing but the records: slow and plain.

use std::collections::{BTreeMap, BTreeSet};

use control::tables::{INSTANCES, NETWORKS, SERVERS};
use model::{
    id::{AccountId, MacAddr, NetworkId, ServerId},
    network::Network,
    peers::Peer,
};
use store::Snapshot;

/// NICs on other machines, by machine and VNI.
pub(crate) type Heard = BTreeMap<ServerId, BTreeMap<u32, BTreeMap<MacAddr, Peer>>>;

/// Whose NICs each machine should know: those on segments it has a member of, and on those its members are routed to.
pub(crate) fn peers(snapshot: &Snapshot) -> Heard {
    let networks: BTreeMap<NetworkId, Network> =
        snapshot.scan(&NETWORKS).filter(|it| it.fabric.is_some()).map(|it| (it.id, it.value.clone())).collect();
    let vni_of = |network: &Network| network.fabric.map_or(0, |fabric| fabric.vni);
    // Segments with a routed network lead to all the owner's other routed networks.
    let mut routed: BTreeMap<AccountId, BTreeSet<u32>> = BTreeMap::new();
    for network in networks.values().filter(|network| network.fabric.is_some_and(|fabric| fabric.routed)) {
        routed.entry(network.owners[0]).or_default().insert(vni_of(network));
    }
    let mut members: Vec<(ServerId, u32, MacAddr, Peer)> = Vec::new();
    let mut here: BTreeMap<ServerId, BTreeSet<u32>> = BTreeMap::new();
    for instance in snapshot.scan(&INSTANCES).filter(|instance| instance.is_on_machine()) {
        let server = snapshot.get(&SERVERS, &instance.server.to_string());
        for (nic, network) in instance.nics.iter().filter_map(|nic| Some((nic, networks.get(&nic.network)?))) {
            here.entry(instance.server).or_default().insert(vni_of(network));
            if let Some(underlay) = server.as_ref().and_then(|server| server.underlay) {
                let peer = Peer { addresses: nic.addresses().collect(), underlay };
                members.push((instance.server, vni_of(network), nic.mac, peer));
            }
        }
    }
    let mut heard = Heard::new();
    for (server, vnis) in here {
        let led = routed.values().filter(|all| !all.is_disjoint(&vnis)).flatten();
        let concerned: BTreeSet<u32> = vnis.iter().chain(led).copied().collect();
        for (_, vni, mac, peer) in members.iter().filter(|(on, vni, ..)| *on != server && concerned.contains(vni)) {
            heard.entry(server).or_default().entry(*vni).or_default().insert(*mac, peer.clone());
        }
    }
    heard
}
