//! Networks and the addresses on them.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
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
    pub routes: Option<BTreeMap<String, Ipv4Addr>>,
    /// Whether instances reach outside through translation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internet_nat: Option<bool>,
    /// Suffixes of DNS names on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffixes: Option<Vec<String>>,
}

/// An address that is in use or reserved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkIp {
    /// The address.
    pub ip: Ipv4Addr,
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
