//! Links: one bridge per segment that has a local NIC, one veth pair per NIC.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use ipnet::IpNet;
use model::{
    id::{InstanceId, MacAddr},
    meters::LinkMeters,
    path::{Look, Sight},
    target::{NetworkTarget, NicTarget},
};

use crate::{
    error::{Error, Result},
    fabric::FabricSet,
};

/// A NIC as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicStatus {
    /// Whose.
    pub instance: InstanceId,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Name of the host's end, at most 15 characters; derived from the MAC.
    pub host_name: String,
    /// The bridge its host's end is a port of; `None` for one that is down or a port of nothing.
    pub bridge: Option<String>,
}

/// What is set inside a zone's network namespace, all NICs at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSetup {
    /// In order of their interface number, each with the segment it is on.
    pub nics: Vec<(NicTarget, NetworkTarget)>,
    /// Static routes besides the default one.
    pub routes: BTreeMap<IpNet, IpAddr>,
}

/// Packets to try wires with, all at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// This machine's address between machines; all packets are of its family.
    pub from: IpAddr,
    /// What is sent; at most 65,536, and best a few dozen.
    pub packets: Vec<Packet>,
    /// Drawn for this probe alone: answers without it are somebody else's.
    pub token: u64,
    /// The way they take.
    pub through: Through,
}

/// A way from one machine to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Through {
    /// As they are.
    Wire,
    /// In VXLAN, in the machines' own segment ([`crate::fabric::WIRES_VNI`]). A packet's size is that of the inner one then.
    Tunnel,
}

/// One packet to try a wire with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The machine that is to send it back.
    pub to: IpAddr,
    /// All of it, IP header included, bytes.
    pub size: u32,
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

    /// Makes segments between machines, their peers and their routers exactly those of `fabrics`; also their bridges. What
    /// is right already is left as it is.
    fn program(&self, fabrics: &FabricSet) -> Result<()>;

    /// What the kernel has on the way of a packet. What filters are in force is asked of
    /// [`Filters::intact`](crate::filter::Filters::intact) and not known here.
    fn sight(&self, look: &Look) -> Result<Sight>;

    /// Which of the packets other machines sent back whole, in the same order. Takes half a second where some do not. Through the tunnel it
    /// is an error while [`Links::program`] has made none.
    fn probe(&self, probe: &Probe) -> Result<Vec<bool>>;

    /// Every NIC of ours on this machine.
    fn nics(&self) -> Result<Vec<NicStatus>>;

    /// What went through every interface of this machine.
    fn meters(&self) -> Result<Traffic>;
}

/// What went through the interfaces of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// NICs of instances, as seen from inside.
    pub nics: BTreeMap<MacAddr, LinkMeters>,
    /// The machine's own, loopback left out.
    pub others: BTreeMap<String, LinkMeters>,
}

/// Names of our interfaces. The prefix tells datacenters on one machine apart, and ours from everybody else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkNames {
    prefix: String,
}

impl Default for LinkNames {
    fn default() -> Self {
        Self { prefix: "n".to_owned() }
    }
}

impl LinkNames {
    /// Most characters of a prefix: an interface name has 15, of which a MAC and its letter take 13.
    pub const PREFIX_MAX: usize = 2;

    /// Characters of a NIC tag that stand in a bridge's name as they are.
    const TAG_MAX: usize = 7;

    /// Names with `prefix`: one or two lower-case letters or digits, a letter first and no `v` second.
    pub fn new(prefix: &str) -> Result<Self> {
        let fits = (1..=Self::PREFIX_MAX).contains(&prefix.len())
            && prefix.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            && prefix.as_bytes()[0].is_ascii_lowercase()
            // A `v` inside would make one datacenter's bridges look like another's NICs.
            && !prefix[1..].contains('v');
        match fits {
            true => Ok(Self { prefix: prefix.to_owned() }),
            false => Err(Error::Refused {
                what: format!("interface prefix `{prefix}`"),
                why: "it is one or two lower-case letters or digits, a letter first and no `v` second".to_owned(),
            }),
        }
    }

    /// The host's end of a NIC: prefix, `v`, the bare MAC.
    pub fn nic(&self, mac: MacAddr) -> String {
        format!("{}v{}", self.prefix, mac.bare())
    }

    /// The MAC in a name made by [`LinkNames::nic`]; `None` for any other name.
    pub fn mac_of(&self, name: &str) -> Option<MacAddr> {
        let bare = name.strip_prefix(self.prefix.as_str())?.strip_prefix('v')?;
        if bare.len() == 12 { bare.parse().ok() } else { None }
    }

    /// What every name of a NIC's host end starts with.
    pub fn nic_prefix(&self) -> String {
        format!("{}v", self.prefix)
    }

    /// Whether an interface of the host may be one of those named here.
    pub fn is_ours(&self, name: &str) -> bool {
        let starts = [self.nic_prefix(), self.transit_prefix(), self.bridge_prefix()];
        starts.iter().any(|start| name.starts_with(start))
            || self.vni_of_vxlan(name).is_some()
            || self.vni_of_router(name).is_some()
    }

    /// What every name starts with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The VXLAN device of a segment: prefix, `x`, the VNI in hex.
    pub fn vxlan(&self, vni: u32) -> String {
        format!("{}x{vni:06x}", self.prefix)
    }

    /// The VNI in a name made by [`LinkNames::vxlan`].
    pub fn vni_of_vxlan(&self, name: &str) -> Option<u32> {
        hex(name.strip_prefix(self.prefix.as_str())?.strip_prefix('x')?, 6)
    }

    /// The host's end of a router's NIC on a segment: prefix, `g`, the VNI in hex.
    pub fn router_port(&self, vni: u32) -> String {
        format!("{}g{vni:06x}", self.prefix)
    }

    /// The VNI in a name made by [`LinkNames::router_port`].
    pub fn vni_of_router(&self, name: &str) -> Option<u32> {
        hex(name.strip_prefix(self.prefix.as_str())?.strip_prefix('g')?, 6)
    }

    /// What every name of a router's way out starts with.
    pub fn transit_prefix(&self) -> String {
        format!("{}t-", self.prefix)
    }

    /// The host's end of a router's way out.
    pub fn transit(&self, slot: u16) -> String {
        format!("{}{slot:04x}", self.transit_prefix())
    }

    /// The slot in a name made by [`LinkNames::transit`].
    pub fn slot_of_transit(&self, name: &str) -> Option<u16> {
        hex(name.strip_prefix(&self.transit_prefix())?, 4).and_then(|slot| u16::try_from(slot).ok())
    }

    /// What every name of a bridge starts with.
    pub fn bridge_prefix(&self) -> String {
        format!("{}b-", self.prefix)
    }

    /// The bridge of a segment: prefix, `b-`, the tag, and `.` with the VLAN in hex when there is one. A tag that is
    /// too long, or has characters other than letters, digits and `_`, is cut and told apart by a checksum.
    pub fn bridge(&self, network: &NetworkTarget) -> String {
        let tag = network.nic_tag.as_str();
        let plain = !tag.is_empty()
            && tag.len() <= Self::TAG_MAX
            && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let tag = if plain { tag.to_owned() } else { shortened(tag) };
        let prefix = self.bridge_prefix();
        match network.vlan {
            0 => format!("{prefix}{tag}"),
            vlan => format!("{prefix}{tag}.{vlan:x}"),
        }
    }
}

/// A number of exactly `digits` hex digits.
fn hex(text: &str, digits: usize) -> Option<u32> {
    let fits = text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    fits.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

/// Two characters of `tag`, `-` and four hex digits of its FNV-1a checksum: seven characters. `-` keeps it apart from
/// tags that are used as they are.
fn shortened(tag: &str) -> String {
    let head: String = tag.chars().filter(char::is_ascii_alphanumeric).take(2).collect();
    let sum = tag.bytes().fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{head}-{:04x}", (sum >> 16) ^ (sum & 0xffff))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(tag: &str, vlan: u16) -> NetworkTarget {
        NetworkTarget {
            nic_tag: tag.to_owned(),
            vlan,
            subnet: Some("10.0.0.0/24".parse().expect("a subnet")),
            host_address: None,
            nat: false,
            mtu: 1500,
            ..NetworkTarget::default()
        }
    }

    #[test]
    fn names_fit_the_kernel_and_differ() {
        let names = LinkNames::new("zz").expect("a prefix");
        let mac = MacAddr([0x90, 0xb8, 0xd0, 1, 2, 0xff]);
        assert_eq!(names.nic(mac), "zzv90b8d00102ff");
        assert_eq!(names.mac_of("zzv90b8d00102ff"), Some(mac));
        assert_eq!(names.mac_of("zzv90b8d00102"), None);
        assert_eq!(names.bridge(&network("ext", 0)), "zzb-ext");
        assert_eq!(names.bridge(&network("ext", 4094)), "zzb-ext.ffe");
        let long = [names.bridge(&network("external_one", 4094)), names.bridge(&network("external_two", 4094))];
        assert_ne!(long[0], long[1]);
        assert!(long.iter().all(|name| name.len() <= 15), "{long:?}");
        assert!(LinkNames::new("abc").is_err() && LinkNames::new("").is_err() && LinkNames::new("1").is_err());
    }
}
