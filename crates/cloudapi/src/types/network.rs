//! Networks and the addresses on them.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use model::id::{AccountId, InstanceId, NetworkId};
use serde::{Deserialize, Serialize};

/// A network. The fields below `description` are shown for networks that belong to somebody.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network<'a> {
    /// Identity.
    pub id: NetworkId,
    /// What tenants call it.
    pub name: Cow<'a, str>,
    /// Reachable from outside the datacenter.
    pub public: bool,
    /// Made by a tenant on an overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fabric: Option<bool>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Cow<'a, str>>,
    /// e.g. `10.0.0.0/24`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Cow<'a, str>>,
    /// First address given out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provision_start_ip: Option<Ipv4Addr>,
    /// Last address given out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provision_end_ip: Option<Ipv4Addr>,
    /// Next hop to everywhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Name servers, at most 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolvers: Option<Cow<'a, [IpAddr]>>,
    /// Destination subnet to next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<BTreeMap<String, IpAddr>>,
    /// Whether instances reach outside through translation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internet_nat: Option<bool>,
    /// Addresses the outside sees instead of its instances': those of the machines they are on. Our addition: of one network, not
    /// in lists, and absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat_ips: Option<Vec<IpAddr>>,
    /// Number of the tenant's VLAN it is on, for fabrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan_id: Option<u16>,
    /// Traffic is routed between this network and its owner's other routed ones. Our addition: absent when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routed: Option<bool>,
    /// The IPv6 subnet, e.g. `fd00:1::/64`. Our addition, as the three below: absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<String>,
    /// First IPv6 address given out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provision_start_ip6: Option<Ipv6Addr>,
    /// Last IPv6 address given out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provision_end_ip6: Option<Ipv6Addr>,
    /// Next hop for IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
    /// Suffixes of DNS names on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffixes: Option<Vec<String>>,
}

/// A tenant's VLAN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricVlan<'a> {
    /// 0 to 4095.
    pub vlan_id: u16,
    /// What the tenant calls it.
    pub name: Cow<'a, str>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Cow<'a, str>>,
}

/// An address that is in use or reserved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkIp {
    /// The address.
    pub ip: IpAddr,
    /// Never given out automatically.
    pub reserved: bool,
    /// Held by the datacenter itself (gateway, resolvers).
    pub managed: bool,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_uuid: Option<AccountId>,
    /// The instance that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub belongs_to_uuid: Option<InstanceId>,
}
