//! Fabrics: tenants' own VLANs, and the networks on them.
//!
//! A tenant may number VLANs and lay out subnets as if nobody else were there. What keeps tenants apart is the VNI: a number out
//! of the datacenter's range that a VLAN takes when it is made and gives back when it goes. A number is looked for from a random one
//! on, so that one that was just given back is not soon another tenant's, while some machine may still carry the old one.

mod networks;
mod vlans;

use std::ops::RangeInclusive;

use ipnet::{Ipv4Net, Ipv6Net};
use model::{
    account::Account,
    id::NetworkId,
    layout::Layout,
    network::{FabricVlan, VNIS, VXLAN_PORT},
    time::Timestamp,
};
use store::{Snapshot, Transaction};

pub use networks::{
    NetworkChange, NewFabricNetwork, network_create, network_delete, network_get, network_list, network_update,
};
pub use vlans::{NewVlan, VlanChange, vlan_create, vlan_delete, vlan_get, vlan_list, vlan_update};

use crate::{
    Result,
    tables::{NETWORKS, VLANS},
};

/// What the operator decides about fabrics.
#[derive(Debug, Clone)]
pub struct FabricConfig {
    /// Numbers VLANs may take, part of [`VNIS`]: where several datacenters share a wire, each has a part.
    pub vnis: RangeInclusive<u32>,
    /// Bytes, of every network on a fabric: what machines can send to each other less what VXLAN adds.
    pub mtu: u16,
    /// UDP port of what machines send each other.
    pub vxlan_port: u16,
    /// What every new account gets; `None` is nothing.
    pub first: Option<FirstFabric>,
}

/// The VLAN and network a new account gets, under the names Triton gives them.
#[derive(Debug, Clone)]
pub struct FirstFabric {
    /// Number of the VLAN.
    pub vlan: u16,
    /// IPv4 subnet of the network; its first address is the gateway. Of one family at least there is a subnet.
    pub subnet: Option<Ipv4Net>,
    /// IPv6 subnet of the network, likewise.
    pub subnet6: Option<Ipv6Net>,
    /// Name servers.
    pub resolvers: Vec<std::net::IpAddr>,
}

impl Default for FabricConfig {
    fn default() -> Self {
        // Wires of 1,500 bytes, VXLAN over IPv6 (70 bytes), and something to spare for what else may lie between.
        Self { vnis: VNIS, mtu: 1_400, vxlan_port: VXLAN_PORT, first: None }
    }
}

impl Default for FirstFabric {
    fn default() -> Self {
        let subnet = Ipv4Net::new_assert(std::net::Ipv4Addr::new(192, 168, 128, 0), 22);
        Self { vlan: 2, subnet: Some(subnet), subnet6: None, resolvers: Vec::new() }
    }
}

impl FirstFabric {
    /// How the network is laid out.
    pub fn layout(&self) -> Layout {
        Layout { resolvers: self.resolvers.clone(), ..Layout::with_first_gateways(self.subnet, self.subnet6) }
    }
}

/// The first VLAN and network of `account`, which becomes its default network.
pub(crate) fn first(
    config: &FabricConfig,
    snapshot: &Snapshot,
    account: &mut Account,
    now: Timestamp,
) -> Result<Transaction> {
    let Some(first) = &config.first else { return Ok(Transaction::new()) };
    let (vni, transaction) = vlans::take_vni(&config.vnis, snapshot, account.id, first.vlan, Transaction::new())?;
    let vlan = FabricVlan {
        owner: account.id,
        vlan: first.vlan,
        name: "My-Fabric-VLAN".to_owned(),
        description: None,
        vni,
        created_at: now,
    };
    let new = NewFabricNetwork {
        name: "My-Fabric-Network".to_owned(),
        layout: first.layout(),
        internet_nat: true,
        ..NewFabricNetwork::default()
    };
    let network = networks::check(config.mtu, &vlan, NetworkId::from_random(base::random::wide_bits()), new, now)?;
    account.default_network = Some(network.id);
    Ok(transaction.create(&VLANS, vlan).create(&NETWORKS, network))
}
