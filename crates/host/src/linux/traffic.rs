//! What went through interfaces, from `/proc/net/dev`: one file for all of them, where netlink would send a kilobyte for each.

use std::fs;

use model::meters::LinkMeters;

use crate::{
    error::{Error, Result},
    link::{LinkNames, Traffic},
};

/// Of the thread's own network namespace.
const TABLE: &str = "/proc/thread-self/net/dev";

/// Reads it.
pub(super) fn read(names: &LinkNames) -> Result<Traffic> {
    let text = fs::read_to_string(TABLE).map_err(|source| Error::os(format!("read `{TABLE}`"), source))?;
    Ok(parse(&text, names))
}

/// Lines are `name: received… sent…`: bytes, packets, errors, drops and four more, twice.
fn parse(text: &str, names: &LinkNames) -> Traffic {
    let mut traffic = Traffic::default();
    for line in text.lines() {
        let Some((name, numbers)) = line.split_once(':') else { continue };
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let (name, Some(numbers)) = (name.trim(), numbers.get(..12)) else { continue };
        let meters = LinkMeters {
            received_bytes: numbers[0],
            received_packets: numbers[1],
            received_drops: numbers[3],
            sent_bytes: numbers[8],
            sent_packets: numbers[9],
            sent_drops: numbers[11],
        };
        match names.mac_of(name) {
            Some(mac) => drop(traffic.nics.insert(mac, turned(meters))),
            None if name == "lo" => {}
            None => drop(traffic.others.insert(name.to_owned(), meters)),
        }
    }
    traffic
}

/// As the other end of a cable sees it: what this one sends arrives there.
fn turned(meters: LinkMeters) -> LinkMeters {
    LinkMeters {
        received_bytes: meters.sent_bytes,
        received_packets: meters.sent_packets,
        received_drops: meters.sent_drops,
        sent_bytes: meters.received_bytes,
        sent_packets: meters.received_packets,
        sent_drops: meters.received_drops,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0
  eth0: 1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0
nv90b8d0000001:7 1 0 0 0 0 0 0 8 2 0 5 0 0 0 0
";

    #[test]
    fn nics_are_told_as_their_instances_see_them() {
        let traffic = parse(TEXT, &LinkNames::default());
        let nic = traffic.nics[&"90:b8:d0:00:00:01".parse().unwrap()];
        assert_eq!((nic.received_bytes, nic.received_packets, nic.received_drops), (8, 2, 5));
        assert_eq!((nic.sent_bytes, nic.sent_packets, nic.sent_drops), (7, 1, 0));
        assert_eq!(traffic.others.keys().collect::<Vec<_>>(), ["eth0"]);
        assert_eq!((traffic.others["eth0"].received_bytes, traffic.others["eth0"].sent_drops), (1000, 4));
    }
}
