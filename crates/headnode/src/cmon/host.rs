//! Who is asked for, by the name the monitor was called: the first label, as in Triton. What follows is not looked at, so that the names may be
//! in any zone that leads here.

use std::net::IpAddr;

use model::{
    id::{InstanceId, ServerId},
    names::MONITOR_LABEL,
};

/// Bytes of a host with its port at most: a name of DNS, and a port.
const BYTES_MAX: usize = 260;
/// Characters of an id.
const ID_CHARS: usize = 36;

/// What a host stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The monitor itself: its name, or this machine by an address.
    Monitor,
    /// Whatever has this id.
    Id {
        /// As an instance.
        instance: InstanceId,
        /// As a machine.
        server: ServerId,
    },
}

/// Reads a host, with a port or without; `None` when it stands for nothing.
pub fn read(host: &str) -> Option<Asked> {
    if host.len() > BYTES_MAX {
        return None;
    }
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(inside, _)| inside)?,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    if bare.parse::<IpAddr>().is_ok() || bare.eq_ignore_ascii_case("localhost") {
        return Some(Asked::Monitor);
    }
    let label = bare.split('.').next().unwrap_or_default().to_ascii_lowercase();
    if label == MONITOR_LABEL {
        return Some(Asked::Monitor);
    }
    // Ids are read in other forms, which are no labels.
    if label.len() != ID_CHARS {
        return None;
    }
    Some(Asked::Id { instance: label.parse().ok()?, server: label.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "48392ade-b01a-c5f1-f88d-b660cb5e0322";

    #[test]
    fn hosts_stand_for_the_monitor_or_for_an_id() {
        for host in ["cmon.dc-1.neso.internal", "CMON.x:9163", "cmon", "127.0.0.1:9163", "[::1]:9163", "localhost:1"] {
            assert_eq!(read(host), Some(Asked::Monitor), "{host}");
        }
        let id = Some(Asked::Id { instance: ID.parse().unwrap(), server: ID.parse().unwrap() });
        for host in [format!("{ID}.cmon.dc-1.neso.internal:9163"), ID.to_owned(), ID.to_uppercase(), format!("{ID}.x")]
        {
            assert_eq!(read(&host), id, "{host}");
        }
        let simple = ID.replace('-', "");
        for host in ["", ".", "www.example.com", "cmon2.x", &simple, &format!("{{{simple}}}"), "[::1", &"a".repeat(300)]
        {
            assert_eq!(read(host), None, "{host}");
        }
    }

    proptest! {
        #[test]
        fn strange_hosts_stand_for_nothing_or_for_what_they_say(host in ".{0,50}", number: u128) {
            let _ = read(&host);
            let (instance, server) = (InstanceId::from_random(number), ServerId::from_random(number));
            prop_assert_eq!(read(&format!("{instance}.{host}")), Some(Asked::Id { instance, server }));
        }
    }
}
