//! Filters: what may leave a NIC, what may reach the host, what is masqueraded.
//!
//! The whole rule set is one value, [`FilterSet`]. [`Filters::apply`] makes the kernel's set equal to it; an
//! implementation works out the difference itself, so that one NIC more is one set element more and not a reload.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use base::channel::Receiver;
use ipnet::{Ipv4Net, Ipv6Net};
use model::{
    firewall::{Action, Direction, FirewallTarget},
    id::{FirewallRuleId, InstanceId, MacAddr},
    target::{NetworkTarget, Outside6},
};

use crate::error::Result;

/// All filtering on a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterSet {
    /// One entry per NIC, by its Ethernet address.
    pub nics: BTreeMap<MacAddr, NicFilter>,
    /// One entry per bridge, by its name.
    pub bridges: BTreeMap<String, BridgeFilter>,
}

/// Anti-spoofing of one NIC: frames that do not carry exactly these addresses are dropped at the host's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicFilter {
    /// Whose.
    pub instance: InstanceId,
    /// Source addresses it may use, also in ARP and neighbour discovery.
    pub addresses: Vec<IpAddr>,
}

/// How a segment relates to the machine and the outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BridgeFilter {
    /// The IPv4 subnet, if there is one.
    pub subnet: Option<Ipv4Net>,
    /// The host's address there: instances may ping it, and reach nothing else of the host through any address.
    pub host_address: Option<Ipv4Addr>,
    /// Masquerade and forward what leaves the subnet; otherwise nothing is forwarded out of it.
    pub nat: bool,
    /// The IPv6 subnet, if there is one.
    pub subnet6: Option<Ipv6Net>,
    /// The host's IPv6 address there, as above.
    pub host_address6: Option<Ipv6Addr>,
    /// What becomes of IPv6 that leaves the subnet.
    pub outside6: Outside6,
}

impl BridgeFilter {
    /// What `network` asks for.
    pub fn of(network: &NetworkTarget) -> Self {
        Self {
            subnet: network.subnet,
            host_address: network.host_address,
            nat: network.nat,
            subnet6: network.subnet6,
            host_address6: network.host_address6,
            outside6: network.outside6,
        }
    }

    /// Whether the host itself takes part: has an address there, or routes. Only then connections are tracked for it.
    pub(crate) fn tracks(&self) -> bool {
        self.host_address.is_some() || self.host_address6.is_some() || self.nat || !self.outside6.is_none()
    }

    /// Whether the host hides the segment behind its own address.
    pub(crate) fn translates(&self) -> bool {
        self.nat || self.outside6 == Outside6::Masqueraded
    }

    /// The IPv6 subnet if the host forwards for it as `outside` says.
    pub(crate) fn forwards6(&self, outside: impl Fn(Outside6) -> bool) -> Option<Ipv6Net> {
        self.subnet6.filter(|_| outside(self.outside6)).map(|subnet| subnet.trunc())
    }
}

/// The distributed firewall on a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firewall {
    /// What is let through and what is dropped. Instances that are not in it are not filtered.
    pub target: Arc<FirewallTarget>,
    /// Where instances have NICs.
    pub places: BTreeMap<InstanceId, Vec<Place>>,
    /// Bridges whose addresses may also be in use on other bridges, by other owners.
    pub separate: BTreeSet<String>,
}

/// One address of a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of the bridge the NIC is a port of.
    pub bridge: String,
    /// The NIC.
    pub mac: MacAddr,
    /// The address.
    pub address: IpAddr,
}

/// News of what rules log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogNews {
    /// A rule decided about a packet.
    Packet(Logged),
    /// There was more than could be taken: at least so many lines.
    Lost(u64),
}

/// A packet that a rule with logging decided about. Of a connection that is let through only its first is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// The rule.
    pub rule: FirewallRuleId,
    /// What it decided.
    pub action: Action,
    /// Which way the packet goes, as the instance sees it.
    pub direction: Direction,
    /// The instance whose firewall it is.
    pub instance: InstanceId,
    /// What the packet says.
    pub packet: LoggedPacket,
}

/// What a packet says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoggedPacket {
    /// Where it says it comes from.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: IpAddr,
    /// Number of its transport protocol.
    pub protocol: u8,
    /// Source and destination port of TCP and UDP, unless it is a later fragment or too short.
    pub ports: Option<(u16, u16)>,
    /// Type and code of ICMP, likewise.
    pub icmp: Option<(u8, u8)>,
}

/// Anti-spoofing, NAT and protection of the host.
pub trait Filters: Send + Sync {
    /// Makes the kernel's rules equal to `wanted`.
    fn apply(&self, wanted: &FilterSet) -> Result<()>;

    /// Makes the kernel enforce `wanted`. Open connections are judged again, each with its next packet.
    fn apply_firewall(&self, wanted: &Firewall) -> Result<()>;

    /// What rules log from the next [`Filters::apply_firewall`] on, for one reader, as long as it reads. Before somebody asks for it, and where the
    /// kernel cannot hand it out, they log to the machine's kernel log; rules that do when it is first handed out are not [`Filters::intact`].
    fn logged(&self) -> Result<Receiver<LogNews>>;

    /// Whether what the last [`Filters::apply`] and [`Filters::apply_firewall`] made is still in force, all of it. Others flush rule sets: a restart of
    /// a firewall's service is enough. Cheap when nobody changed anything.
    fn intact(&self) -> Result<bool>;

    /// Removes every rule of ours.
    fn clear(&self) -> Result<()>;
}
