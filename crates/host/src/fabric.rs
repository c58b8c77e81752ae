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
//!
//! Beside the tenants' segments there is one of the machines' own, number [`WIRES_VNI`], in a network namespace with nothing else in
//! it. Machines that share a segment reach each other there at addresses that follow from those between machines ([`WireEnd`]), and each
//! kernel answers pings: so a machine can tell whether VXLAN gets through, and not just packets of any kind.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

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

/// Number of the machines' own segment: no tenant's has it.
pub const WIRES_VNI: u32 = 0;

/// What the addresses in the machines' own segment begin with: 64 bits of a unique local network.
const WIRES_NET: [u16; 4] = [0xfd4e, 0x7769, 0x7265, 0];

/// A machine's end in the machines' own segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WireEnd {
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its address there.
    pub address: Ipv6Addr,
}

impl WireEnd {
    /// Bits of the network all ends lie in.
    pub const NET_BITS: u8 = 64;

    /// That of the machine that is met at an address. Of the FNV-1a checksum of the address, so that everybody knows it of everybody; that
    /// two of the machines with a common neighbour have the same is as unlikely as 40 bits are.
    pub fn of(machine: IpAddr) -> Self {
        let sum = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let sum = match machine {
            IpAddr::V4(machine) => machine.octets().iter().fold(0xcbf2_9ce4_8422_2325, sum),
            IpAddr::V6(machine) => machine.octets().iter().fold(0xcbf2_9ce4_8422_2325, sum),
        };
        let [_, _, _, a, b, c, d, e] = sum.to_be_bytes();
        let host = [48, 32, 16, 0].map(|shift| u16::try_from(sum >> shift & 0xffff).unwrap_or(0));
        let ([n, o, p, q], [r, s, t, u]) = (WIRES_NET, host);
        Self { mac: MacAddr([0x02, a, b, c, d, e]), address: Ipv6Addr::new(n, o, p, q, r, s, t, u) }
    }
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

impl FabricSet {
    /// Machines with a peer, by the addresses at which they are met: of the family of this machine's own.
    pub fn machines(&self) -> BTreeSet<IpAddr> {
        let own = self.underlay.is_some_and(|own| own.is_ipv4());
        let peers = self.segments.values().flat_map(|segment| segment.peers.values());
        peers.map(|peer| peer.underlay).filter(|machine| machine.is_ipv4() == own).collect()
    }
}

/// The Ethernet address of a segment's gateway, the same on every machine: locally administered, ending in the VNI.
pub fn gateway_mac(vni: u32) -> MacAddr {
    let [_, a, b, c] = vni.to_be_bytes();
    MacAddr([0x02, 0x4e, 0x73, a, b, c])
}
