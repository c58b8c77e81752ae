//! The names of instances: which there should be, and the records that keep them.
//!
//! ```text
//! <alias|id>.inst.<login|account id>.<datacenter>.<suffix>     A AAAA TXT        whatever runs in it
//! <service>.svc.<login|account id>.<datacenter>.<suffix>       A AAAA TXT SRV    those of its members that run
//! _acme-challenge.<any of these>                               TXT
//! <instance id|machine id>.cmon.<datacenter>.<suffix>          A AAAA            the headnodes, who are asked what it uses
//! 7.2.80.10.in-addr.arpa                                       PTR
//! ```
//! [`tags`] reads what tenants say of names in tags and metadata, [`Plan`] says which networks are in which zone, [`Subject::parts`] works
//! out what one instance has, and [`reverse`] where its addresses are found. Nothing here looks at another instance: what several have in
//! common (the members of a service) is put together by whoever reads their records, so that an instance that comes or goes changes one
//! record however large its service is.
//!
//! Triton's names, with two differences. A login becomes a label by replacing what a label may not have, so that two logins may become the
//! same one: here the older account has it and the other is known by its id alone, because otherwise each could put members into the other's
//! services. And an address of a tenant's own network has no reverse name, because it is not one machine's alone.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    id::{InstanceId, NetworkId},
    pairs::{Pairs, exact},
    time::Timestamp,
};

pub mod dnssec;
pub mod reverse;
pub mod tags;
mod wanted;

pub use self::wanted::{Plan, Subject, label_of, label_owner, merged, suffixes};

/// Label of the container monitor in every zone that leads to addresses; each headnode is one. Below it stands the id of what is watched.
pub const MONITOR_LABEL: &str = "cmon";
/// Characters of a label at most.
pub const LABEL_MAX: usize = 63;
/// Characters of a name at most, without the dot at its end.
pub const NAME_MAX: usize = 253;
/// Values of one type a name is answered with at most: they fit into one message whatever they are, and BIND as a secondary refuses a whole
/// zone for one more. Of more the first by their order are taken.
pub const VALUES_MAX: usize = 100;
/// Seconds a zone's serial may run ahead of the clock: several changes a second are possible for a while, and a store that is restored
/// has a clock that is later than every serial it ever gave.
pub const SERIAL_AHEAD_MAX: u32 = 600;

/// What one instance has of names. Record of table `names`, key the instance's id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// Whose they are.
    pub instance: InstanceId,
    /// By the zone they are in. None is empty.
    pub parts: Pairs<String, Vec<Group>>,
}

/// Names with the same content.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Group {
    /// Without the zone's own name, all lower-case. Not empty.
    #[serde(deserialize_with = "exact")]
    pub names: Vec<String>,
    /// Whether other instances may have the same names; then all of them, by the first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// What they are answered with.
    #[serde(deserialize_with = "exact")]
    pub data: Vec<Data>,
}

/// What a name is answered with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Data {
    /// An address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// A text of 255 bytes at most.
    Txt(String),
    /// Where a service is to be had.
    Srv {
        /// Lower ones are tried first.
        priority: u16,
        /// How often among those of one priority.
        weight: u16,
        /// The port.
        port: u16,
        /// The whole name of the host, without a dot at its end.
        target: String,
    },
    /// The whole name an address stands for, likewise.
    Ptr(String),
}

/// A zone. Record of table `zones`, key its name. It is never deleted, so that its serial never falls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// Its name, lower-case, without a dot at its end.
    pub apex: String,
    /// Grows with every change of its content: see [`next_serial`].
    pub serial: u32,
    /// When that was.
    pub changed_at: Timestamp,
    /// What it has beside names of instances; `None`: it is a zone no more.
    pub head: Option<ZoneHead>,
}

/// What a zone has beside names of instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneHead {
    /// Whether names lead to addresses or addresses to names.
    pub kind: ZoneKind,
    /// The networks whose addresses are in it, of one that leads to addresses; `None`: all that no other zone lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<NetworkId>>,
    /// Names of the name servers, without a dot at their end; the first stands in the SOA record.
    pub name_servers: Vec<String>,
    /// Where mail about it goes, as a name: `hostmaster.example.com`.
    pub hostmaster: String,
    /// Addresses of those name servers whose names are in this zone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub glue: Vec<Group>,
    /// Seconds a record may be remembered.
    pub ttl_seconds: u32,
    /// Seconds the list of name servers may be remembered.
    pub ns_ttl_seconds: u32,
    /// Who may ask; everybody when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<IpNet>,
    /// Whether it is to be signed: see [`dnssec`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub signed: bool,
}

impl ZoneHead {
    /// The longest that anything in it may be remembered, seconds.
    pub fn longest_ttl_seconds(&self) -> u32 {
        self.ttl_seconds.max(self.ns_ttl_seconds)
    }
}

/// Which way a zone leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ZoneKind {
    /// From names to addresses.
    Forward,
    /// From addresses to names.
    Reverse,
}

/// The serial after `before` of a zone that changes at `now`. It only grows, and not only in one history: one that is made from an older copy
/// goes on at the clock's time.
pub fn next_serial(before: u32, now: Timestamp) -> u32 {
    let seconds = u32::try_from(now.0 / 1_000).unwrap_or(0);
    before.saturating_add(1).max(seconds)
}

/// Whether the serial is so far ahead of the clock that the next change should wait.
pub fn is_ahead(serial: u32, now: Timestamp) -> bool {
    let seconds = u32::try_from(now.0 / 1_000).unwrap_or(0);
    serial > seconds.saturating_add(SERIAL_AHEAD_MAX)
}

/// Checks the whole name of a zone or a name server: labels of letters, digits and hyphens with dots between them.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty".to_owned());
    }
    if name.len() > NAME_MAX {
        return Err(format!("has {} characters; at most {NAME_MAX} are allowed", name.len()));
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err(format!("\"{name}\" has an empty label"));
        }
        if label.len() > LABEL_MAX {
            return Err(format!("label \"{label}\" has {} characters; at most {LABEL_MAX} are allowed", label.len()));
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if !label.bytes().all(fits) || label.starts_with('-') {
            return Err(format!("label \"{label}\" may only have letters, digits and \"-\", and not begin with \"-\""));
        }
    }
    Ok(())
}

impl Published {
    /// All names with their zones, but those that exist for a moment's proof or for addresses: what a tenant is told.
    pub fn shown(&self) -> Vec<String> {
        let forward = self.parts.iter().filter(|(apex, _)| !reverse::is_reverse(apex));
        let names = forward.flat_map(|(apex, groups)| {
            let names = groups.iter().flat_map(|group| &group.names).filter(|name| !name.starts_with(tags::ACME_LABEL));
            names.map(move |name| format!("{name}.{apex}"))
        });
        names.collect()
    }
}

impl Group {
    /// The name of its family of groups in a zone, when there are more than this one: see [`Group::shared`].
    pub fn family(&self) -> Option<&str> {
        if self.shared { self.names.first().map(String::as_str) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_only_grow_and_follow_the_clock() {
        let at = |seconds: i64| Timestamp(seconds * 1_000 + 999);
        assert_eq!(next_serial(0, at(1_700_000_000)), 1_700_000_000);
        assert_eq!(next_serial(1_700_000_000, at(1_700_000_000)), 1_700_000_001);
        assert_eq!(next_serial(1_700_000_500, at(1_700_000_000)), 1_700_000_501, "a clock that was turned back");
        assert_eq!(next_serial(1_600_000_000, at(1_700_000_000)), 1_700_000_000, "a store that was restored");
        assert_eq!(next_serial(7, Timestamp(-5_000)), 8);
        assert!(!is_ahead(1_700_000_600, at(1_700_000_000)));
        assert!(is_ahead(1_700_000_601, at(1_700_000_000)));
    }

    #[test]
    fn zones_have_names() {
        for name in ["cns.example.com", "dc-1.neso.internal", "10.in-addr.arpa", "a"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        let long = format!("{}.com", "a".repeat(64));
        let longer = vec!["abcdefg"; 40].join(".");
        for (name, word) in [
            ("", "empty"),
            ("a..b", "empty label"),
            ("a.b.", "empty label"),
            ("a_b.c", "a_b"),
            ("-a.c", "-a"),
            (long.as_str(), "64 characters"),
            (longer.as_str(), "319 characters"),
        ] {
            let why = check_name(name).expect_err(name);
            assert!(why.contains(word), "{name}: {why}");
        }
    }
}
