//! Links: one bridge per segment that has a local NIC, one veth pair per NIC.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::Path,
};

use ipnet::Ipv4Net;
use model::{
    id::{InstanceId, MacAddr},
    target::{NetworkTarget, NicTarget},
};

use crate::error::Result;

/// A NIC as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicStatus {
    /// Whose.
    pub instance: InstanceId,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Name of the host's end, at most 15 characters; derived from the MAC.
    pub host_name: String,
}

/// What is set inside a zone's network namespace, all NICs at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSetup {
    /// In order of their interface number, each with the segment it is on.
    pub nics: Vec<(NicTarget, NetworkTarget)>,
    /// Static routes besides the default one.
    pub routes: BTreeMap<Ipv4Net, Ipv4Addr>,
}

/// Bridges, veth pairs, addresses.
pub trait Links: Send + Sync {
    /// Makes the bridge of a segment, with the host's address on it if it has one. Returns the bridge's name.
    fn ensure_bridge(&self, network: &NetworkTarget) -> Result<String>;

    /// Removes bridges of ours that belong to none of `needed`.
    fn remove_bridges_except(&self, needed: &[NetworkTarget]) -> Result<()>;

    /// Makes the NICs of a zone in its network namespace exactly `setup`: adds, removes and changes what differs, with
    /// addresses, routes and loopback up. Bridges must exist.
    fn attach(&self, instance: InstanceId, netns: &Path, setup: &NetworkSetup) -> Result<()>;

    /// Removes all NICs of an instance.
    fn detach(&self, instance: InstanceId) -> Result<()>;

    /// Every NIC of ours on this machine.
    fn nics(&self) -> Result<Vec<NicStatus>>;
}

/// Name of the host's end of a NIC: `v` and the bare MAC, 13 characters.
pub fn host_name(mac: MacAddr) -> String {
    format!("v{}", mac.bare())
}

/// Name of a segment's bridge: `nb-<tag>` or `nb-<tag>.<vlan>`, at most 15 characters.
pub fn bridge_name(network: &NetworkTarget) -> String {
    let tag: String = network.nic_tag.chars().take(7).collect();
    match network.vlan {
        0 => format!("nb-{tag}"),
        vlan => format!("nb-{tag}.{vlan:x}"),
    }
}
