//! Networks, the addresses on them, and the NICs that use the addresses.
//!
//! There are two kinds. The operator's networks lie on a NIC tag: a wire that machines have or have not. A tenant's own lie on a
//! *fabric*: one of its VLANs, carried between machines inside VXLAN. Such a VLAN is no tag on a wire here: each has a number of its
//! own among the datacenter's 24 bits (its VNI), and so a bridge of its own on every machine with a member, so that tenants
//! never share one whatever subnets and VLAN ids they choose.
//!
//! A network has an IPv4 subnet, an IPv6 subnet, or both; a NIC has an address of each, and may have several IPv6 addresses.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{
    id::{AccountId, InstanceId, MacAddr, NetworkId, PoolId},
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
    /// Bridge tag: networks with the same tag and VLAN share a segment. At most 10 characters `[a-z0-9]`. A fabric's is
    /// [`Fabric::tag`].
    pub nic_tag: String,
    /// 802.1Q VLAN; 0 is untagged. On a fabric the number of the tenant's [`FabricVlan`].
    pub vlan: u16,
    /// The IPv4 subnet, if there is one; without, there is `subnet6`.
    #[serde(default)]
    pub subnet: Option<Ipv4Net>,
    /// First IPv4 address given out automatically; there when `subnet` is.
    #[serde(default)]
    pub range_start: Option<Ipv4Addr>,
    /// Last IPv4 address given out automatically, inclusive; there when `subnet` is.
    #[serde(default)]
    pub range_end: Option<Ipv4Addr>,
    /// The gateway, if there is one; nodes answer for it when [`Network::nat`] or `host_gateway` is set.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers for instances, at most 4.
    pub resolvers: Vec<IpAddr>,
    /// Static routes: destination subnet to next hop, both of one family.
    pub routes: BTreeMap<IpNet, IpAddr>,
    /// Bytes; 1500 unless set.
    pub mtu: u16,
    /// The node holds the gateway address on its bridge (a single machine, or an isolated network).
    pub host_gateway: bool,
    /// The node masquerades traffic that leaves the subnet towards the outside.
    pub nat: bool,
    /// What makes it a tenant's own network; `None` for the operator's.
    #[serde(default)]
    pub fabric: Option<Fabric>,
    /// The IPv6 subnet, if there is one.
    #[serde(default)]
    pub subnet6: Option<Ipv6Net>,
    /// First and last IPv6 address given out automatically, both inclusive; there when `subnet6` is.
    #[serde(default)]
    pub range6: Option<(Ipv6Addr, Ipv6Addr)>,
    /// The IPv6 gateway, if there is one.
    #[serde(default)]
    pub gateway6: Option<Ipv6Addr>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// How a tenant's own network is carried and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fabric {
    /// Number of its VLAN in the datacenter, see [`FabricVlan::vni`].
    pub vni: u32,
    /// Each machine translates what its instances send to the outside.
    pub internet_nat: bool,
    /// The machine routes between this network and its owner's other routed ones.
    #[serde(default)]
    pub routed: bool,
}

impl Network {
    /// One of which nothing is said yet: everybody's, on no wire, without a subnet.
    pub fn bare(id: NetworkId, name: impl Into<String>, created_at: Timestamp) -> Self {
        Self {
            id,
            name: name.into(),
            description: None,
            owners: Vec::new(),
            public: false,
            nic_tag: String::new(),
            vlan: 0,
            subnet: None,
            range_start: None,
            range_end: None,
            gateway: None,
            resolvers: Vec::new(),
            routes: BTreeMap::new(),
            mtu: 1_500,
            host_gateway: false,
            nat: false,
            fabric: None,
            subnet6: None,
            range6: None,
            gateway6: None,
            created_at,
        }
    }

    /// Its subnets, IPv4 first.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.subnet.map(IpNet::V4).into_iter().chain(self.subnet6.map(IpNet::V6))
    }

    /// Its subnet of the family of `ip`.
    pub fn subnet_for(&self, ip: IpAddr) -> Option<IpNet> {
        self.subnets().find(|subnet| subnet.addr().is_ipv4() == ip.is_ipv4())
    }

    /// Whether it has a gateway of any family.
    pub const fn has_gateway(&self) -> bool {
        self.gateway.is_some() || self.gateway6.is_some()
    }
}

impl Fabric {
    /// What stands for a NIC tag: `x` and the VNI as six hex digits. Operators cannot name a tag so.
    pub fn tag(vni: u32) -> String {
        format!("x{vni:06x}")
    }
}

/// The VNIs there are: 24 bits, of which 0 is never used.
pub const VNIS: std::ops::RangeInclusive<u32> = 1..=0xff_ffff;
/// UDP port of VXLAN unless the operator says another.
pub const VXLAN_PORT: u16 = 4_789;
/// Highest VLAN of a tenant's fabric.
pub const FABRIC_VLAN_MAX: u16 = 4_095;

/// A tenant's VLAN. Record of table `vlans`, key `<owner>/<vlan>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricVlan {
    /// Whose it is.
    pub owner: AccountId,
    /// Its number among the owner's, at most [`FABRIC_VLAN_MAX`].
    pub vlan: u16,
    /// What the owner calls it; need not be unique.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// Its number in the datacenter, out of [`VNIS`]; nobody else has it.
    pub vni: u32,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A wire that machines have or have not. Record of table `nic_tags`, key its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicTag {
    /// See [`Network::nic_tag`].
    pub name: String,
    /// Bytes of the largest frame's content; no network on it may have a larger one.
    pub mtu: u16,
    /// For people.
    pub description: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Several networks that are asked for as one. Record of table `pools`.
///
/// Its id stands where the id of a network may; an instance gets an address on the first of them that has a free one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Never changes, and is no network's.
    pub id: PoolId,
    /// Unique among the networks and pools one account can see.
    pub name: String,
    /// Shown to tenants.
    pub description: Option<String>,
    /// Who sees it; empty means everybody.
    pub owners: Vec<AccountId>,
    /// In the order in which they are tried. All are public or none is, and all are of the same families.
    pub networks: Vec<NetworkId>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// One address that is in use or reserved. Record of table `addresses`, key `<network>/<ip>`: its absence is what makes
/// an allocation safe, since two commits cannot both create it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The network it lies on.
    pub network: NetworkId,
    /// The address, of either family.
    pub ip: IpAddr,
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
    /// Its address on that network, when the network has an IPv4 subnet.
    #[serde(default)]
    pub ip: Option<Ipv4Addr>,
    /// Its IPv6 address, when the network has such a subnet.
    #[serde(default)]
    pub ip6: Option<Ipv6Addr>,
    /// IPv6 addresses beside that one, in the order in which they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more6: Vec<Ipv6Addr>,
    /// The default route and `primaryIp` come from this one; exactly one per instance that has NICs.
    pub primary: bool,
}

impl Nic {
    /// All its addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.ip.map(IpAddr::V4).into_iter().chain(self.addresses6().map(IpAddr::V6))
    }

    /// All its IPv6 addresses.
    pub fn addresses6(&self) -> impl Iterator<Item = Ipv6Addr> + '_ {
        self.ip6.into_iter().chain(self.more6.iter().copied())
    }

    /// The address it is called by: of IPv4 where there is one.
    pub fn first_address(&self) -> Option<IpAddr> {
        self.addresses().next()
    }
}
