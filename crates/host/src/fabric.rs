//! Fabrics: tenants' segments between machines, as one value.
//!
//! ```text
//!   zone ── nv<mac> ─┐                                   ┌─ VXLAN, unicast to known machines only
//!                    ├── bridge nb-x<vni> ── nx<vni> ────┘
//!   router ─ ng<vni>─┘      (entries, all static: MAC → port, MAC → machine, address → MAC)
//! ```
//! [`Links::program`](crate::link::Links::program) makes the kernel equal to a [`FabricSet`] by difference, so one peer more is three
//! entries more. Nothing is learned and nothing is flooded to other machines: the bridge itself answers ARP and neighbour
//! solicitations for peers, and what it cannot answer stays on this machine.
//!
//! A tenant with networks that are routed or translated has a *router* here: a network namespace of its own, so that tenants'
//! equal subnets never meet. It holds the gateways' addresses with the same Ethernet address on every machine, which works because no
//! machine hears of another's router.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    id::{AccountId, MacAddr},
    network::VXLAN_PORT,
    peers::Peer,
    target::{NetworkTarget, Target},
};

use crate::filter::BridgeFilter;

/// All fabrics on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FabricSet {
    /// This machine's address between machines; without one no segment leaves it.
    pub underlay: Option<IpAddr>,
    /// UDP port of what machines send each other.
    pub port: u16,
    /// By VNI.
    pub segments: BTreeMap<u32, Segment>,
    /// Routed networks by their owner; each network's segment is among `segments`.
    pub routers: BTreeMap<AccountId, Vec<NetworkTarget>>,
    /// Whether the machine tracks connections for something else than these routers: then what machines send each other is exempt.
    pub tracks: bool,
}

/// One segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// One of its networks; its bridge is made from it.
    pub network: NetworkTarget,
    /// NICs on other machines.
    pub peers: BTreeMap<MacAddr, Peer>,
}

impl Default for FabricSet {
    fn default() -> Self {
        Self { underlay: None, port: VXLAN_PORT, segments: BTreeMap::new(), routers: BTreeMap::new(), tracks: false }
    }
}

impl FabricSet {
    /// What `target` asks for.
    pub fn of(target: &Target) -> Self {
        let tracks = !target.firewall.instances.is_empty()
            || target.networks.values().any(|network| BridgeFilter::of(network).tracks());
        let mut set = Self { underlay: target.underlay, port: target.vxlan_port, tracks, ..Self::default() };
        for network in target.networks.values() {
            let Some(fabric) = &network.fabric else { continue };
            set.segments.entry(fabric.vni).or_insert_with(|| Segment {
                network: network.clone(),
                peers: target.peers.get(&fabric.vni).map(|peers| peers.iter().collect()).unwrap_or_default(),
            });
            if network.is_routed() {
                set.routers.entry(fabric.owner).or_default().push(network.clone());
            }
        }
        set
    }
}

/// The Ethernet address of a segment's gateway, the same on every machine: locally administered, ending in the VNI.
pub fn gateway_mac(vni: u32) -> MacAddr {
    let [_, a, b, c] = vni.to_be_bytes();
    MacAddr([0x02, 0x4e, 0x73, a, b, c])
}
