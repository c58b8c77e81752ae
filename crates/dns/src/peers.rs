//! Secondaries: what each was sent of which zone, what it said it has, and what it was told. For people who want to see whether they follow.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use crate::name::Name;

/// Pairs of a secondary and a zone remembered at most; while so many are, new ones are not.
const PEERS_MAX: usize = 4096;

/// What is known of a secondary and a zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where it asks from.
    pub client: IpAddr,
    /// The zone.
    pub zone: Name,
    /// The newest serial it was sent to the end, or said that it has.
    pub has: Option<u32>,
    /// When it last was sent something or had everything already, seconds since the epoch.
    pub asked_at_s: Option<u64>,
    /// Whether the last that it was sent was the whole zone; none when it had everything already, whenever it asked.
    pub was_whole: Option<bool>,
    /// The serial that it was told of last, and has said so.
    pub told: Option<u32>,
}

/// How a transfer went that came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    Whole,
    Differences,
    /// It had what there is.
    Nothing,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    /// Leaf data, held for a look and a change.
    known: Mutex<HashMap<(IpAddr, Name), Peer>>,
}

impl Peers {
    /// A secondary has `serial` now.
    pub(crate) fn sent(&self, client: IpAddr, zone: &Name, serial: u32, sent: Sent, now_s: u64) {
        self.note(client, zone, |peer| {
            (peer.has, peer.asked_at_s) = (Some(serial), Some(now_s));
            match sent {
                Sent::Whole => peer.was_whole = Some(true),
                Sent::Differences => peer.was_whole = Some(false),
                Sent::Nothing => {}
            }
        });
    }

    /// A secondary said that it has `serial`, and was not sent what is newer.
    pub(crate) fn said(&self, client: IpAddr, zone: &Name, serial: u32) {
        self.note(client, zone, |peer| peer.has = Some(serial));
    }

    /// A secondary said that it has heard of `serial`.
    pub(crate) fn told(&self, client: IpAddr, zone: &Name, serial: u32) {
        self.note(client, zone, |peer| peer.told = Some(serial));
    }

    /// All of them, by zone and address.
    pub(crate) fn list(&self) -> Vec<Peer> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Peer> = known.values().cloned().collect();
        all.sort_by(|one, other| (&one.zone, one.client).cmp(&(&other.zone, other.client)));
        all
    }

    fn note(&self, client: IpAddr, zone: &Name, change: impl FnOnce(&mut Peer)) {
        // One that asks over IPv4 may come as an address of IPv6.
        let client = client.to_canonical();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = known.len() >= PEERS_MAX;
        let key = (client, zone.clone());
        if is_full && !known.contains_key(&key) {
            return;
        }
        let new = || Peer { client, zone: zone.clone(), has: None, asked_at_s: None, was_whole: None, told: None };
        change(known.entry(key).or_insert_with(new));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_remembered_by_zone_and_there_is_an_end() {
        let (peers, zone) = (Peers::default(), "example".parse::<Name>().unwrap());
        let client = |number: u32| IpAddr::from(number.to_be_bytes());
        peers.told(client(1), &zone, 8);
        peers.sent(client(1), &zone, 7, Sent::Whole, 100);
        peers.sent(client(1), &zone, 7, Sent::Nothing, 160);
        let wanted = Peer {
            client: client(1),
            zone: zone.clone(),
            has: Some(7),
            asked_at_s: Some(160),
            was_whole: Some(true),
            told: Some(8),
        };
        assert_eq!(peers.list(), [wanted]);
        peers.said(client(1), &zone, 6);
        assert_eq!(peers.list()[0].has, Some(6), "it may have gone back");
        (2..6000).for_each(|number| peers.said(client(number), &zone, 1));
        assert_eq!(peers.list().len(), PEERS_MAX);
        peers.said(client(1), &zone, 9);
        assert_eq!(peers.list()[0].has, Some(9), "those that are known are followed");
    }
}
