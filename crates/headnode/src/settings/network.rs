//! The networks that the first `neso up` makes.

use std::net::IpAddr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// A network made by the first `neso up`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSettings {
    /// The subnet; the first address is the gateway, if there is one.
    pub subnet: Ipv4Net,
    /// The IPv6 subnet beside it, if there is to be one; the first address after its own is the gateway, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Ipv6Net>,
    /// Masquerade towards the outside; IPv6 addresses that are good everywhere are routed instead.
    #[serde(default)]
    pub nat: bool,
    /// Name servers for instances; empty takes the machine's own when they can be reached from an instance.
    #[serde(default)]
    pub resolvers: Vec<IpAddr>,
}

/// Whether both make sense, and beside each other.
pub(super) fn check(external: &NetworkSettings, private: &NetworkSettings) -> Result<(), String> {
    for (name, network) in [("external", external), ("private", private)] {
        if !(8..=29).contains(&network.subnet.prefix_len()) {
            return Err(format!("{name}.subnet must be between /8 and /29, not {}", network.subnet));
        }
        if let Some(subnet) = network.subnet6 {
            if subnet.addr() != subnet.network() {
                return Err(format!("{name}.subnet6 has host bits set; write {}", subnet.trunc()));
            }
            if !(48..=124).contains(&subnet.prefix_len()) {
                return Err(format!("{name}.subnet6 must be between /48 and /124, not {subnet}"));
            }
        }
        if network.resolvers.len() > 4 {
            return Err(format!("{name}.resolvers may be 4 at most, not {}", network.resolvers.len()));
        }
    }
    if external.subnet.contains(&private.subnet) || private.subnet.contains(&external.subnet) {
        return Err("external.subnet and private.subnet overlap; give each a range of its own".into());
    }
    if let (Some(external), Some(private)) = (external.subnet6, private.subnet6)
        && (external.contains(&private) || private.contains(&external))
    {
        return Err("external.subnet6 and private.subnet6 overlap; give each a range of its own".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(subnet: &str, subnet6: &str) -> NetworkSettings {
        let (subnet, subnet6) = (subnet.parse().expect("a subnet"), subnet6.parse().ok());
        NetworkSettings { subnet, subnet6, nat: false, resolvers: Vec::new() }
    }

    #[test]
    fn each_fault_is_named() {
        let good = network("10.80.0.0/16", "fd00:80::/64");
        assert_eq!(check(&good, &network("10.192.0.0/16", "fd00:c0::/64")), Ok(()));
        assert_eq!(check(&good, &network("10.192.0.0/16", "")), Ok(()), "one of them may be without");
        for (private, words) in [
            (network("10.192.0.0/30", ""), "private.subnet must be between /8 and /29"),
            (network("10.80.1.0/24", ""), "external.subnet and private.subnet overlap"),
            (network("10.192.0.0/16", "fd00:c0::1/64"), "private.subnet6 has host bits set; write fd00:c0::/64"),
            (network("10.192.0.0/16", "fd00:c0::/40"), "private.subnet6 must be between /48 and /124"),
            (network("10.192.0.0/16", "fd00:80::/60"), "external.subnet6 and private.subnet6 overlap"),
        ] {
            let why = check(&good, &private).expect_err(words);
            assert!(why.contains(words), "{why}");
        }
    }
}
