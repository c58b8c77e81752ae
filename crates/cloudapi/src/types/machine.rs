//! Instances: "machines" in the contract.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use model::{
    id::{ImageId, InstanceId, MacAddr, NetworkId, ServerId},
    instance::{Caller, TagValue},
    pairs::Pairs,
    target::Phase,
    time::Timestamp,
    unit::Mib,
};
use serde::{Deserialize, Serialize};

/// An instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine<'a> {
    /// Identity.
    pub id: InstanceId,
    /// Alias.
    pub name: Cow<'a, str>,
    /// `smartmachine` for containers, `virtualmachine` for the rest.
    #[serde(rename = "type")]
    pub kind: Cow<'a, str>,
    /// `lx`, `kvm` …; shown from API version 8.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub brand: Cow<'a, str>,
    /// See [`model::state::PublicState`].
    pub state: Cow<'a, str>,
    /// What its root started from.
    pub image: ImageId,
    /// Addresses in the order of the NICs; of each NIC, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// MiB.
    pub memory: Mib,
    /// MiB.
    pub disk: Mib,
    /// Refuses deletion.
    pub deletion_protection: bool,
    /// Tenant's metadata; with `?credentials=true` also an object `credentials`.
    pub metadata: Metadata<'a>,
    /// Tenant's tags.
    pub tags: Cow<'a, Pairs<String, TagValue>>,
    /// When it was asked for.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
    /// Networks in the order of the NICs; absent before API version 7.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<NetworkId>>,
    /// Absent while it has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
    /// Address of the primary NIC.
    #[serde(rename = "primaryIp", default, skip_serializing_if = "Option::is_none")]
    pub primary_ip: Option<IpAddr>,
    /// Whether the firewall applies.
    #[serde(default)]
    pub firewall_enabled: bool,
    /// On how many compute nodes its tags, addresses and firewall are in force; on `GET` of one with `wait=enforced`. Our addition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced: Option<super::Enforced>,
    /// The server it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_node: Option<ServerId>,
    /// Name of its package.
    pub package: Cow<'a, str>,
    /// DNS names, on `GET` of one, when the account uses them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_names: Option<Vec<String>>,
    /// Why the state is `failed`. Our addition: absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Cow<'a, str>>,
    /// When the state is `offline`: when its machine was last heard of. Our addition: absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    /// How long each phase of provisioning took, for operators. Our addition.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub timeline: Cow<'a, [Phase]>,
}

/// Metadata as it is shown inside an instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metadata<'a> {
    /// Generated passwords by user, when they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<BTreeMap<String, String>>,
    /// The rest.
    #[serde(flatten)]
    pub entries: Cow<'a, Pairs<String, String>>,
}

/// A NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its address: of IPv4 where it has one.
    pub ip: IpAddr,
    /// Ethernet address with colons; paths take it without.
    pub mac: MacAddr,
    /// The default route goes here.
    #[serde(default)]
    pub primary: bool,
    /// Of `ip`, e.g. `255.255.255.0`.
    pub netmask: IpAddr,
    /// Next hop, of the family of `ip`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Its IPv6 address. Our addition, as the three below: absent when it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Addr>,
    /// All its IPv6 addresses, where it has more than one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips6: Vec<Ipv6Addr>,
    /// Bits of the IPv6 subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix6: Option<u8>,
    /// Next hop for IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
    /// The network it is on.
    pub network: NetworkId,
    /// `running`, or `provisioning` while it is being added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Cow<'static, str>>,
}

/// `POST /:account/machines`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateMachine {
    /// Alias; may contain `{{shortId}}`, and is the short id when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Id or name.
    pub package: String,
    /// Id.
    pub image: String,
    /// Where its NICs go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkChoice>,
    /// Rules of placement.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<String>,
    /// Tenant's metadata.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Tenant's tags.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, TagValue>,
    /// Whether the firewall applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firewall_enabled: Option<bool>,
    /// Refuses deletion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_protection: Option<bool>,
}

/// A network of an instance to be: its id, or an object with wishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NetworkChoice {
    /// Any address on it.
    Id(NetworkId),
    /// With wishes.
    Object {
        /// The network.
        ipv4_uuid: NetworkId,
        /// At most one address.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ipv4_ips: Vec<Ipv4Addr>,
        /// At most 8 addresses. Our addition.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ipv6_ips: Vec<Ipv6Addr>,
        /// The default route goes here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        primary: Option<bool>,
    },
}

/// One line of `GET /:account/machines/:id/audit`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Audit<'a> {
    /// `yes` or `no`.
    pub success: Cow<'a, str>,
    /// When it ended.
    pub time: Timestamp,
    /// `provision`, `start`, `stop`, `reboot`, `resize`, `rename`, `destroy` …
    pub action: Cow<'a, str>,
    /// Who asked.
    pub caller: Cow<'a, Caller>,
    /// Why it failed. Our addition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Cow<'a, str>>,
    /// Phases with their durations. Our addition, on `provision`.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub timeline: Cow<'a, [Phase]>,
}
