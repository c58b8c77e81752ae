//! Networks between machines: how they are carried, and what new accounts get of them.

use std::{collections::BTreeSet, net::IpAddr};

use control::fabrics::{FabricConfig, FirstFabric};
use ipnet::{IpNet, Ipv6Net};
use model::{
    layout::{Layout, LayoutFault, Leads},
    network::{FABRIC_VLAN_MAX, VNIS, VXLAN_PORT},
    rules::check_nic_tag,
};
use serde::{Deserialize, Serialize};

/// Smallest packet IPv6 works with, bytes.
const MTU_MIN: u16 = 1_280;
/// Largest packet of a NIC tag less what VXLAN over IPv6 adds, bytes.
const MTU_MAX: u16 = 9_000 - 70;
/// See the head of this file. On a machine without a headnode only the address and the NIC tags count; the rest is the headnode's to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fabric {
    /// Address at which other machines reach this one; when absent, the one it reaches its headnode from, or on the headnode's own
    /// machine the only one it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub underlay_address: Option<IpAddr>,
    /// NIC tags this machine is wired to; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nic_tags: Option<BTreeSet<String>>,
    /// First and last number a tenant's segment may have.
    pub vnis: [u32; 2],
    /// Largest packet of tenants' networks, bytes; networks that are there keep theirs.
    pub mtu: u16,
    /// UDP port of what machines send each other.
    pub vxlan_port: u16,
    /// Whether every new account gets a VLAN and a network.
    pub first_network: bool,
    /// That VLAN's number.
    pub first_vlan: u16,
    /// That network's subnet, of IPv4 or of IPv6; its first address (after IPv6's own) is the gateway.
    pub first_subnet: IpNet,
    /// Its IPv6 subnet beside one of IPv4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_subnet6: Option<Ipv6Net>,
    /// That network's name servers.
    pub first_resolvers: Vec<IpAddr>,
}

impl Default for Fabric {
    fn default() -> Self {
        let (config, first) = (FabricConfig::default(), FirstFabric::default());
        Self {
            underlay_address: None,
            nic_tags: None,
            vnis: [*config.vnis.start(), *config.vnis.end()],
            mtu: config.mtu,
            vxlan_port: VXLAN_PORT,
            first_network: config.first.is_some(),
            first_vlan: first.vlan,
            first_subnet: first.subnet.map_or_else(IpNet::default, IpNet::V4),
            first_subnet6: first.subnet6,
            first_resolvers: first.resolvers,
        }
    }
}

impl Fabric {
    pub(super) fn check(&self) -> Result<(), String> {
        for tag in self.nic_tags.iter().flatten() {
            check_nic_tag(tag).map_err(|why| format!("fabric.nic_tags: \"{tag}\" {why}"))?;
        }
        let [first, last] = self.vnis;
        if first > last || !VNIS.contains(&first) || !VNIS.contains(&last) {
            let (least, most) = (VNIS.start(), VNIS.end());
            return Err(format!(
                "fabric.vnis must be a first and a last between {least} and {most}, not {first}, {last}"
            ));
        }
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            return Err(format!("fabric.mtu must be between {MTU_MIN} and {MTU_MAX}, not {}", self.mtu));
        }
        if self.vxlan_port == 0 {
            return Err("fabric.vxlan_port must be between 1 and 65535, not 0".to_owned());
        }
        if self.first_vlan > FABRIC_VLAN_MAX {
            return Err(format!("fabric.first_vlan must be {FABRIC_VLAN_MAX} at most, not {}", self.first_vlan));
        }
        if let (IpNet::V6(subnet), Some(other)) = (self.first_subnet, self.first_subnet6) {
            return Err(format!(
                "fabric.first_subnet6 is {other}, and fabric.first_subnet is of IPv6 too: {subnet}; leave one out"
            ));
        }
        let layout = Layout { mtu: self.mtu, ..self.first().layout() }.filled();
        let faults = layout.faults(Leads::Fabric { internet_nat: true, routed: false });
        match faults.first() {
            Some(LayoutFault { field: "resolvers", message }) => Err(format!("fabric.first_resolvers {message}")),
            Some(LayoutFault { field: "subnet6", message }) if self.first_subnet6.is_some() => {
                Err(format!("fabric.first_subnet6: {message}"))
            }
            Some(fault) => Err(format!("fabric.first_subnet: {fault}")),
            None => Ok(()),
        }
    }

    /// What every new account gets, if it gets anything.
    fn first(&self) -> FirstFabric {
        let (subnet, subnet6) = match self.first_subnet {
            IpNet::V4(subnet) => (Some(subnet), self.first_subnet6),
            IpNet::V6(subnet) => (None, Some(subnet)),
        };
        FirstFabric { vlan: self.first_vlan, subnet, subnet6, resolvers: self.first_resolvers.clone() }
    }

    /// What the control plane needs of it.
    pub(crate) fn config(&self) -> FabricConfig {
        let [first, last] = self.vnis;
        FabricConfig {
            vnis: first..=last,
            mtu: self.mtu,
            vxlan_port: self.vxlan_port,
            first: self.first_network.then(|| self.first()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Fabric;
    use crate::settings::Settings;

    fn read(from: &str, to: &str) -> Result<Fabric, String> {
        let text = Settings::generate(None).unwrap();
        assert!(text.contains(from), "the template says {from}");
        Settings::parse(&text.replace(from, to)).map(|settings| settings.fabric)
    }

    #[test]
    fn the_template_says_the_defaults() {
        assert_eq!(read("[fabric]", "[fabric]").unwrap(), Fabric::default());
        let text = Settings::generate(None).unwrap();
        let (before, after) = (text.find("[fabric]").unwrap(), text.find("[external]").unwrap());
        let silent = Settings::parse(&format!("{}{}", &text[..before], &text[after..])).unwrap();
        assert_eq!(silent.fabric, Fabric::default());
    }

    #[test]
    fn new_accounts_get_what_the_file_says() {
        assert!(Fabric::default().config().first.is_none());
        let text = Settings::generate(None).unwrap();
        let text = text.replace("first_network = false", "first_network = true");
        let text = text.replace("192.168.128.0/22", "10.9.0.0/24").replace("first_vlan = 2", "first_vlan = 5");
        let config = Settings::parse(&text).unwrap().fabric.config();
        let first = config.first.unwrap();
        assert_eq!((first.vlan, first.subnet, first.subnet6), (5, "10.9.0.0/24".parse().ok(), None));
        let both = text.replace("first_vlan = 5", "first_vlan = 5\nfirst_subnet6 = \"fd00:5::/64\"");
        let first = Settings::parse(&both).unwrap().fabric.config().first.unwrap();
        assert_eq!(first.layout().gateway6, "fd00:5::1".parse().ok());
        assert_eq!(first.layout().gateway, "10.9.0.1".parse().ok());
        let alone = text.replace("10.9.0.0/24", "fd00:5::/64");
        let first = Settings::parse(&alone).unwrap().fabric.config().first.unwrap();
        assert_eq!((first.subnet, first.subnet6), (None, "fd00:5::/64".parse().ok()));
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, field) in [
            ("vnis = [1, 16777215]", "vnis = [0, 9]", "fabric.vnis"),
            ("vnis = [1, 16777215]", "vnis = [9, 8]", "fabric.vnis"),
            ("vnis = [1, 16777215]", "vnis = [9, 16777216]", "fabric.vnis"),
            ("mtu = 1400", "mtu = 1279", "fabric.mtu"),
            ("mtu = 1400", "mtu = 9000", "fabric.mtu"),
            ("vxlan_port = 4789", "vxlan_port = 0", "fabric.vxlan_port"),
            ("first_vlan = 2", "first_vlan = 4096", "fabric.first_vlan"),
            ("192.168.128.0/22", "8.8.8.0/24", "fabric.first_subnet"),
            ("192.168.128.0/22", "10.0.0.0/7", "fabric.first_subnet"),
            ("192.168.128.0/22", "2001:db8::/64", "fabric.first_subnet: 2001:db8::/64 must lie in fc00::/7"),
            (
                "first_vlan = 2",
                "first_vlan = 2\nfirst_subnet6 = \"fd00::/20\"",
                "fabric.first_subnet6: fd00::/20 must have",
            ),
            (
                "first_subnet = \"192.168.128.0/22\"",
                "first_subnet = \"fd00::/64\"\nfirst_subnet6 = \"fd01::/64\"",
                "leave one out",
            ),
            (
                "first_resolvers = []",
                "first_resolvers = [\"::1\", \"::2\", \"::3\", \"::4\", \"::5\"]",
                "first_resolvers",
            ),
        ] {
            let why = read(from, to).unwrap_err();
            assert!(why.contains(field), "{to}: {why}");
        }
    }
}
