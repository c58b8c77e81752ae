//! Where the headnodes are, on a machine that runs none.

use serde::{Deserialize, Serialize};

/// Makes this a machine with a node and no headnode. Written by `neso node join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// `host:port` of the node link of every headnode.
    pub headnodes: Vec<String>,
}

impl Join {
    pub(super) fn check(&self) -> Result<(), String> {
        let most = nodeapi::client::ADDRESSES_MAX;
        if self.headnodes.is_empty() || self.headnodes.len() > most {
            return Err(format!("join.headnodes must have 1 to {most} addresses, not {}", self.headnodes.len()));
        }
        match self.headnodes.iter().find(|address| !is_address(address)) {
            Some(wrong) => Err(format!("join.headnodes must be `host:port`, not `{wrong}`")),
            None => Ok(()),
        }
    }
}

/// Whether a text is a host or an address, a colon and a port.
pub fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let v6 = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let fits =
        v6.map_or_else(|| !host.is_empty() && host.bytes().all(name), |v6| v6.parse::<std::net::Ipv6Addr>().is_ok());
    fits && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        for right in ["10.0.0.1:8444", "head.example.org:1", "[fd00::1]:8444"] {
            assert!(is_address(right), "{right}");
        }
        for wrong in ["", "10.0.0.1", ":8444", "a:0", "a:65536", "a b:1", "fd00::1:8444x", "https://a:1"] {
            assert!(!is_address(wrong), "{wrong}");
        }
    }
}
