//! The document a node receives, and the facts it returns.
//!
//! A node is never told "do this". It holds one [`Target`], the whole of what it should be, with a generation that only
//! grows; it writes the target to its disk before it acts, and converges. A zone that is missing from the target is
//! left alone and reported: only an explicit [`Wanted::Absent`] destroys, so that a control plane that lost its memory
//! cannot destroy a fleet.
//!
//! Both documents are made of [`Part`]s, so that copying one, or telling what is new in it ([`crate::delta`]), costs next to nothing
//! however many instances there are.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{
    clock::ClockReading,
    firewall::FirewallTarget,
    id::{AccountId, ImageId, InstanceId, MacAddr, NetworkId, PackageId, ServerId},
    image::Compression,
    instance::{Brand, TagValue, Wanted},
    network::VXLAN_PORT,
    pairs::{Pairs, exact},
    part::Part,
    peers::Segment,
    role::{HeadnodeFact, HeadnodeRole},
    server::{Hardware, Underlay},
    time::Timestamp,
    unit::{CpuCap, CpuShares, Mib},
    wire::Wires,
};

/// All a node should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// The machine it is for; a node refuses another's.
    pub server: ServerId,
    /// Store revision it was computed at. A node refuses a smaller one than it holds.
    pub generation: u64,
    /// Name of the datacenter, for the guests' metadata.
    pub datacenter: String,
    /// Segments this machine needs, because an instance below has a NIC there.
    pub networks: BTreeMap<NetworkId, NetworkTarget>,
    /// Images its instances start from. Others may be dropped when space is needed.
    pub images: BTreeMap<ImageId, ImageTarget>,
    /// Instances that should be here, or be gone from here.
    pub zones: BTreeMap<InstanceId, Part<ZoneTarget>>,
    /// What of their traffic is let through.
    #[serde(default)]
    pub firewall: Part<FirewallTarget>,
    /// The machine's own address between machines; without one, fabrics end at this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<IpAddr>,
    /// UDP port of what machines send each other, the same on all.
    #[serde(default = "vxlan_port")]
    pub vxlan_port: u16,
    /// NICs on other machines that ours may talk to, by VNI: only of VNIs with a member here or routed from here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<u32, Segment>,
    /// Whether the machine runs a headnode; without a word that stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headnode: Option<Box<HeadnodeRole>>,
    /// `host:port` of the node link of every headnode, when there are several; none leaves the machine with those it knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headnodes: Vec<String>,
}

/// How a tenant's own network is carried and where it leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricTarget {
    /// Number of the segment in the datacenter, 24 bits.
    pub vni: u32,
    /// Whose it is: one router serves all networks of an account here.
    pub owner: AccountId,
    /// The machine translates what leaves for the outside.
    pub internet_nat: bool,
    /// The machine routes to the owner's other routed networks.
    pub routed: bool,
}

/// A segment as a node needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkTarget {
    /// See [`crate::network::Network::nic_tag`].
    pub nic_tag: String,
    /// See [`crate::network::Network::vlan`].
    pub vlan: u16,
    /// The IPv4 subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Ipv4Net>,
    /// Address the node itself holds on the bridge, if any.
    pub host_address: Option<Ipv4Addr>,
    /// Masquerade what leaves the subnet.
    pub nat: bool,
    /// Bytes.
    pub mtu: u16,
    /// What makes it a segment between machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fabric: Option<FabricTarget>,
    /// The gateway's address, which a fabric's router holds on every machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// The IPv6 subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Ipv6Net>,
    /// The gateway's IPv6 address, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
    /// IPv6 address the node itself holds on the bridge, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address6: Option<Ipv6Addr>,
    /// What becomes of IPv6 that leaves the subnet.
    #[serde(default, skip_serializing_if = "leads_nowhere")]
    pub outside6: Outside6,
}

/// How the IPv6 subnet of an operator's network relates to the world outside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outside6 {
    /// Nothing leaves it, nothing comes in.
    #[default]
    None,
    /// The machine puts its own address in place of the instance's, as in IPv4.
    Masqueraded,
    /// The addresses are good everywhere: the machine forwards both ways.
    Routed,
}

impl Outside6 {
    /// Whether nothing is forwarded.
    pub const fn is_none(self) -> bool {
        matches!(self, Self::None)
    }
}

impl NetworkTarget {
    /// Whether a router answers for its gateway here.
    pub fn is_routed(&self) -> bool {
        self.fabric.as_ref().is_some_and(|fabric| fabric.internet_nat || fabric.routed)
            && (self.gateway.is_some() || self.gateway6.is_some())
    }
}

/// An image as a node needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageTarget {
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
    /// Bytes of the file.
    pub size: u64,
    /// How the file is packed.
    pub compression: Compression,
}

/// One instance as a node needs it: enough to make, boot, serve metadata and destroy it with no control plane there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ZoneTarget {
    /// On, off or gone.
    pub wanted: Wanted,
    /// See [`crate::instance::Intent::starts`].
    pub starts: u64,
    /// See [`crate::instance::Intent::reboots`].
    pub reboots: u64,
    /// Whose it is.
    pub owner: AccountId,
    /// Name.
    pub alias: String,
    /// Host name inside; the alias when that is a valid one.
    pub hostname: String,
    /// How it runs.
    pub brand: Brand,
    /// What its root starts from.
    pub image: ImageId,
    /// Name of its package, for the guest's metadata.
    pub package_name: String,
    /// The package's version, likewise.
    #[serde(default)]
    pub package_version: Option<String>,
    /// The package itself, likewise: what it is charged as.
    #[serde(default)]
    pub package: Option<PackageId>,
    /// What the kernel enforces.
    pub limits: Limits,
    /// In order of their interface number.
    pub nics: Vec<NicTarget>,
    /// Name servers, at most 4.
    pub resolvers: Vec<IpAddr>,
    /// Search domain.
    pub dns_domain: Option<String>,
    /// Static routes besides the default one.
    pub routes: BTreeMap<IpNet, IpAddr>,
    /// Tenant's metadata.
    pub metadata: Pairs<String, String>,
    /// Metadata the guest may read but tenants do not see.
    pub internal_metadata: Pairs<String, String>,
    /// Tenant's tags.
    pub tags: Pairs<String, TagValue>,
    /// Highest guest metadata change the control plane has taken over; the node forgets those up to it.
    pub guest_metadata_seen: u64,
    /// When it was asked for.
    pub created_at: Timestamp,
}

/// What a machine was told of an instance last, with all that it refers to: enough for records to be made anew of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastTold {
    /// The instance.
    pub zone: ZoneTarget,
    /// Segments of its NICs.
    pub networks: BTreeMap<NetworkId, NetworkTarget>,
    /// Whether its firewall is on.
    pub firewall: bool,
}

impl LastTold {
    /// What `target` says of `instance`.
    pub fn of(target: &Target, instance: InstanceId) -> Option<Self> {
        let zone = ZoneTarget::clone(target.zones.get(&instance)?);
        let networks = zone.nics.iter().filter_map(|nic| target.networks.get_key_value(&nic.network));
        Some(Self {
            networks: networks.map(|(id, network)| (*id, network.clone())).collect(),
            firewall: target.firewall.instances.contains_key(&instance),
            zone,
        })
    }
}

/// What the kernel enforces for an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory.
    pub memory: Mib,
    /// Memory plus swap; at least `memory`.
    pub swap: Mib,
    /// Disk quota.
    pub disk: Mib,
    /// Processes and threads.
    pub max_processes: u32,
    /// Ceiling on CPU time; `None` is no ceiling.
    pub cpu_cap: Option<CpuCap>,
    /// Weight under contention.
    pub cpu_shares: CpuShares,
}

/// A NIC as a node needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicTarget {
    /// Its Ethernet address; nothing else may leave through it.
    pub mac: MacAddr,
    /// Name inside the instance.
    pub interface: String,
    /// The segment; a key of [`Target::networks`].
    pub network: NetworkId,
    /// Its IPv4 address with the subnet's prefix length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Net>,
    /// Next hop of the default route, when this NIC is the primary one.
    pub gateway: Option<Ipv4Addr>,
    /// Its IPv6 addresses with the subnet's prefix length.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses6: Vec<Ipv6Net>,
    /// Next hop of the IPv6 default route, when this NIC is the primary one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
    /// Whether the default route goes here.
    pub primary: bool,
    /// Bytes.
    pub mtu: u16,
}

impl NicTarget {
    /// All its addresses with their prefix lengths, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.address.map(IpNet::V4).into_iter().chain(self.addresses6.iter().copied().map(IpNet::V6))
    }

    /// What a fact says of its IPv6 addresses ([`ZoneFact::addresses6`]), if it has any.
    pub fn held6(&self) -> Option<(MacAddr, Vec<Ipv6Addr>)> {
        let held: Vec<Ipv6Addr> = self.addresses6.iter().map(Ipv6Net::addr).collect();
        (!held.is_empty()).then_some((self.mac, held))
    }

    /// Its link-local address, which the kernel needs for neighbour discovery; only where there is IPv6.
    pub fn link_local(&self) -> Option<Ipv6Net> {
        let address = (!self.addresses6.is_empty()).then(|| self.mac.link_local())?;
        Ipv6Net::new(address, LINK_LOCAL_BITS).ok()
    }
}

/// Prefix length of link-local addresses.
pub const LINK_LOCAL_BITS: u8 = 64;

/// What a node says of itself, on every change and as a heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Who reports.
    pub server: ServerId,
    /// Grows by one with every report of one run of the agent.
    pub sequence: u64,
    /// Host name.
    pub hostname: String,
    /// The kernel's id of the running boot.
    pub boot_id: String,
    /// Generation of the target it has written down.
    pub target_seen: u64,
    /// Generation of the target whose firewall is in force; 0 before the first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub firewall_seen: u64,
    /// What the machine is made of.
    pub hardware: Hardware,
    /// Every instance it knows of, whether in the target or not.
    pub zones: BTreeMap<InstanceId, Part<ZoneFact>>,
    /// Images present as datasets.
    pub images: Vec<ImageId>,
    /// Where other machines meet it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<Underlay>,
    /// Address the outside sees when it translates for instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<IpAddr>,
    /// Its agent ends after this report, as when the machine goes down.
    #[serde(default, skip_serializing_if = "is_false")]
    pub leaving: bool,
    /// Beside `leaving`: this boot of the machine ends, and not its agent alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub goes_down: bool,
    /// Addresses held by instances the target does not speak of, so that they are not given to others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub untold_addresses: BTreeMap<InstanceId, Vec<(NetworkId, IpAddr)>>,
    /// What it found out about its wires to other machines.
    #[serde(default, skip_serializing_if = "Wires::is_empty")]
    pub wires: Wires,
    /// Its clock beside the headnode's; `None` before the first answer that told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<ClockReading>,
    /// How far it is with running a headnode, or with ending one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headnode: Option<HeadnodeFact>,
}

impl Report {
    /// The first of a run, from a machine of which nothing else is known: nothing is on it, and it has found out nothing.
    pub fn bare(server: ServerId, hostname: impl Into<String>) -> Self {
        Self {
            server,
            sequence: 1,
            hostname: hostname.into(),
            boot_id: "boot".to_owned(),
            target_seen: 0,
            firewall_seen: 0,
            hardware: Hardware::default(),
            zones: BTreeMap::new(),
            images: Vec::new(),
            underlay: None,
            outside: None,
            leaving: false,
            goes_down: false,
            untold_addresses: BTreeMap::new(),
            wires: Wires::default(),
            clock: None,
            headnode: None,
        }
    }
}

/// What a node says of one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ZoneFact {
    /// Condition now.
    pub state: ZoneState,
    /// Value of [`ZoneTarget::starts`] that was carried out.
    pub starts_done: u64,
    /// Value of [`ZoneTarget::reboots`] that was carried out.
    pub reboots_done: u64,
    /// When the running boot began.
    pub started_at: Option<Timestamp>,
    /// How the last boot ended.
    pub exit: Option<Exit>,
    /// What stands in the way, in words: the last error, cleared by the next success.
    pub error: Option<String>,
    /// Phases of making and booting it for the first time.
    #[serde(deserialize_with = "exact")]
    pub timeline: Vec<Phase>,
    /// Limits in force; differs from the target until a resize was applied.
    pub limits: Option<Limits>,
    /// MACs of the NICs in force.
    #[serde(deserialize_with = "exact")]
    pub nics: Vec<MacAddr>,
    /// IPv6 addresses in force, by NIC, of those that have any: they may change while the NIC stays.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub addresses6: BTreeMap<MacAddr, Vec<Ipv6Addr>>,
    /// The node tries no longer to make it what it should be, until its target changes: see `error`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub gave_up: bool,
    /// Processes of the running boot that the kernel killed for lack of memory.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub oom_kills: u64,
    /// Metadata changed from inside and not yet taken over by the control plane, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guest_metadata: Vec<GuestMetadata>,
}

/// A change of metadata from inside an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMetadata {
    /// Grows by one with each change of the instance.
    pub sequence: u64,
    /// The key.
    pub key: String,
    /// New value; `None` deletes.
    pub value: Option<String>,
}

/// Whether a metadata key belongs to the half that tenants do not see: generated passwords, and the Docker API's own keys. The
/// guest reads and writes both halves under one roof.
pub fn is_internal_key(key: &str) -> bool {
    key.ends_with("_pw") || key.starts_with("docker:")
}

/// Condition of an instance on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ZoneState {
    /// In the target, nothing made yet; or everything removed.
    Absent,
    /// Image, dataset or network being made.
    Preparing,
    /// There, not running.
    Stopped,
    /// Being started.
    Starting,
    /// Its init runs.
    Running,
    /// Told to stop.
    Stopping,
    /// Traces being removed.
    Removing,
    /// The node gave up until the target changes or the agent restarts; see the fact's `error`.
    Failed,
}

/// How a boot of an instance ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// When.
    pub at: Timestamp,
    /// Exit code of init, when it exited.
    pub code: Option<i32>,
    /// Signal that ended init, when one did.
    pub signal: Option<i32>,
    /// In words: `halted`, `exited with code 1`, `killed: out of memory` …
    pub reason: String,
    /// Whether it was asked for from outside: by a stop, a reboot, a deletion.
    #[serde(default, skip_serializing_if = "is_false")]
    pub asked: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

pub(crate) const fn vxlan_port() -> u16 {
    VXLAN_PORT
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn leads_nowhere(value: &Outside6) -> bool {
    value.is_none()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// One phase of making an instance, with how long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// `queued`, `placed`, `image`, `dataset`, `network`, `zone start`, `ready`.
    pub name: String,
    /// When it began.
    pub at: Timestamp,
    /// Milliseconds it took.
    pub ms: u64,
}
