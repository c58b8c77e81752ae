//! Networks, the addresses on them, and the NICs that use the addresses.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{
    id::{AccountId, InstanceId, MacAddr, NetworkId},
    time::Timestamp,
};

/// A network. Record of table `networks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Never changes.
    pub id: NetworkId,
    /// Unique among the networks one account can see.
    pub name: String,
    /// Shown to tenants.
    pub description: Option<String>,
    /// Who sees it; empty means everybody.
    pub owners: Vec<AccountId>,
    /// Reachable from outside the datacenter; `public` in CloudAPI.
    pub public: bool,
    /// Bridge tag: networks with the same tag and VLAN share a segment. At most 10 characters `[a-z0-9]`.
    pub nic_tag: String,
    /// 802.1Q VLAN; 0 is untagged.
    pub vlan: u16,
    /// The subnet.
    pub subnet: Ipv4Net,
    /// First address given out automatically.
    pub range_start: Ipv4Addr,
    /// Last address given out automatically, inclusive.
    pub range_end: Ipv4Addr,
    /// The gateway, if there is one; nodes answer for it when [`Network::nat`] or `host_gateway` is set.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers for instances, at most 4.
    pub resolvers: Vec<IpAddr>,
    /// Static routes: destination subnet to next hop.
    pub routes: BTreeMap<Ipv4Net, Ipv4Addr>,
    /// Bytes; 1500 unless set.
    pub mtu: u16,
    /// The node holds the gateway address on its bridge (a single machine, or an isolated network).
    pub host_gateway: bool,
    /// The node masquerades traffic that leaves the subnet towards the outside.
    pub nat: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

/// One address that is in use or reserved. Record of table `addresses`, key `<network>/<ip>`: its absence is what makes
/// an allocation safe, since two commits cannot both create it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The network it lies on.
    pub network: NetworkId,
    /// The address.
    pub ip: Ipv4Addr,
    /// The instance that holds it, if any.
    pub instance: Option<InstanceId>,
    /// Whose it is, if anybody's.
    pub owner: Option<AccountId>,
    /// Never given out automatically.
    pub reserved: bool,
    /// When the record was made.
    pub created_at: Timestamp,
}

/// A NIC of an instance; part of the instance's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Unique in the datacenter.
    pub mac: MacAddr,
    /// Name inside the instance, `net0`, `net1` …
    pub interface: String,
    /// The network it is on.
    pub network: NetworkId,
    /// Its address on that network.
    pub ip: Ipv4Addr,
    /// The default route and `primaryIp` come from this one; exactly one per instance that has NICs.
    pub primary: bool,
}
