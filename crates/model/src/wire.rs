//! The wires between machines, as each machine tries its own: whom it tries, with packets of which size, and what follows.
//!
//! A *wire* is whatever carries packets from one machine to another. A machine tries those to machines it has a peer on and no others, with
//! echo requests that nobody on the way may cut into pieces. The first is as large as a full packet of the networks both have in common
//! becomes on the wire: if it comes back, all is well and that is all. If not, a small one tells whether the other machine is there at
//! all, and then a [`Trial`] closes in on the largest that passes. Where anything passes, one more goes in VXLAN, because a port may be closed
//! where pings are let through. Who sends and listens is a machine's kernel; what to send next, and what it means, is decided here.
//!
//! A machine with very many others tries [`WIRES_MAX`] of them in a round: those that were not well, and the next of the rest
//! ([`turn`]).

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{part::Part, target::Target, time::Timestamp};

/// Most wires of one machine that are tried in a round, and told of.
pub const WIRES_MAX: usize = 1_024;

/// The small packet, bytes: below what every path must carry, and large enough for what an echo says.
pub const SMALL: u32 = 96;

/// What a machine found out is not taken for what is after so long, milliseconds: several rounds were missed then.
pub const STALE_MS: u64 = 150_000;

/// Bytes that VXLAN takes from a packet of the underlay: outer header, UDP, VXLAN and the inner Ethernet header.
pub const fn overhead(underlay: IpAddr) -> u32 {
    match underlay {
        IpAddr::V4(_) => 50,
        IpAddr::V6(_) => 70,
    }
}

/// What a machine found out about its wire to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireFact {
    /// The other machine answers.
    pub reachable: bool,
    /// Since when it does, or does not, by the machine's own clock.
    pub since: Timestamp,
    /// Largest packet, bytes, that was seen to pass whole; nothing larger than `needed` is tried. `None` while nothing passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// What a full packet of the networks both have in common becomes, bytes.
    pub needed: u32,
    /// Whether VXLAN gets there and back, pings apart: no once it did not in [`MISSES`] rounds running. `None` while nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vxlan: Option<bool>,
}

/// Rounds running in which VXLAN has to be lost, while pings pass, before it counts as closed: the other machine hears of a new peer
/// a moment later than this one.
pub const MISSES: u32 = 2;

impl WireFact {
    /// Whether it carries all it should.
    pub fn is_well(&self) -> bool {
        self.reachable && self.mtu.is_some_and(|mtu| mtu >= self.needed) && self.vxlan != Some(false)
    }
}

/// All a machine found out about its wires.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wires {
    /// By the address at which the other machine is met; at most [`WIRES_MAX`].
    #[serde(default, skip_serializing_if = "none_tried")]
    pub facts: Part<BTreeMap<IpAddr, WireFact>>,
    /// How long ago the oldest of them was found out, milliseconds; `None` while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// Of how many machines there are with a peer, when that is more than one round tries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u32>,
}

fn none_tried(facts: &BTreeMap<IpAddr, WireFact>) -> bool {
    facts.is_empty()
}

impl Wires {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.facts.is_empty() && self.age_ms.is_none() && self.of.is_none()
    }
}

/// One wire and how old what is known of it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// What was found out.
    pub fact: WireFact,
    /// How long ago at most, milliseconds.
    pub age_ms: u64,
}

/// Machines to try, by where they are met, and what a full packet to each becomes: those with a peer of ours, on the networks
/// that are both here and there.
pub fn wanted(target: &Target) -> BTreeMap<IpAddr, u32> {
    let Some(own) = target.underlay else { return BTreeMap::new() };
    let mut widest: BTreeMap<u32, u32> = BTreeMap::new();
    for network in target.networks.values() {
        let Some(fabric) = &network.fabric else { continue };
        let mtu = widest.entry(fabric.vni).or_default();
        *mtu = u32::from(network.mtu).max(*mtu);
    }
    let mut wanted = BTreeMap::new();
    for (vni, segment) in &target.peers {
        let Some(mtu) = widest.get(vni) else { continue };
        for machine in segment.machines().filter(|machine| machine.is_ipv4() == own.is_ipv4()) {
            let most: &mut u32 = wanted.entry(machine).or_default();
            *most = (mtu + overhead(machine)).max(*most);
        }
    }
    wanted
}

/// Machines of one round, out of `wanted`: all, as long as they are no more than [`WIRES_MAX`]. Else those that were not well when they were
/// tried last, at most half, and then the next ones after `last`, in a circle; the last of these is returned too.
pub fn turn(
    wanted: &BTreeMap<IpAddr, u32>,
    facts: &BTreeMap<IpAddr, WireFact>,
    last: Option<IpAddr>,
) -> (BTreeMap<IpAddr, u32>, Option<IpAddr>) {
    if wanted.len() <= WIRES_MAX {
        return (wanted.clone(), None);
    }
    let is_troubled = |machine: &IpAddr| facts.get(machine).is_some_and(|fact| !fact.is_well());
    let troubled = wanted.iter().filter(|(machine, _)| is_troubled(machine)).take(WIRES_MAX / 2);
    let mut round: BTreeMap<IpAddr, u32> = troubled.map(|(machine, size)| (*machine, *size)).collect();
    let is_later = |machine: &IpAddr| last.is_none_or(|last| *machine > last);
    let circle = wanted.iter().filter(|(machine, _)| is_later(machine));
    let circle = circle.chain(wanted.iter().filter(|(machine, _)| !is_later(machine)));
    let mut end = last;
    for (machine, size) in circle {
        if round.len() >= WIRES_MAX {
            break;
        }
        round.insert(*machine, *size);
        end = Some(*machine);
    }
    (round, end)
}

/// One round over one wire: which size to try next, until nothing is open.
#[derive(Debug, Clone)]
pub struct Trial {
    needed: u32,
    /// What the last round found; looked at first, because little changes.
    hint: Option<u32>,
    /// Largest that passed; 0 while none did.
    passed: u32,
    /// Smallest that did not pass.
    failed: u32,
}

impl Trial {
    /// A round for packets of `needed` bytes, after one that found `before`.
    pub fn new(needed: u32, before: Option<&WireFact>) -> Self {
        Self {
            needed: needed.max(SMALL),
            hint: before.and_then(|before| before.mtu),
            passed: 0,
            failed: needed.max(SMALL).saturating_add(1),
        }
    }

    /// The size to try next; `None` when all is known.
    pub fn next(&self) -> Option<u32> {
        let open = self.passed + 1..self.failed;
        if open.is_empty() {
            return None;
        }
        if self.failed > self.needed {
            return Some(self.needed);
        }
        if self.passed == 0 {
            return (self.failed > SMALL).then_some(SMALL);
        }
        match self.hint {
            Some(hint) if open.contains(&hint) => Some(hint),
            // As before, and not a byte more.
            Some(hint) if hint == self.passed => Some(hint + 1),
            _ => Some(self.passed + (self.failed - self.passed) / 2),
        }
    }

    /// Whether the other machine answered any packet.
    pub const fn reaches(&self) -> bool {
        self.passed > 0
    }

    /// Takes in whether a packet of `size` came back.
    pub fn answered(&mut self, size: u32, came_back: bool) {
        match came_back {
            true => self.passed = self.passed.max(size),
            false => self.failed = self.failed.min(size),
        }
    }

    /// What the round found, at `now`, after one that found `before`.
    pub fn found(&self, before: Option<&WireFact>, now: Timestamp, vxlan: Option<bool>) -> WireFact {
        let reachable = self.passed > 0;
        let since = before.filter(|before| before.reachable == reachable).map_or(now, |before| before.since);
        let vxlan = vxlan.filter(|_| reachable);
        WireFact { reachable, since, mtu: reachable.then_some(self.passed), needed: self.needed, vxlan }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Plays a round on a wire that carries `width`; what was found, and the sizes tried.
    fn round(width: u32, needed: u32, before: Option<&WireFact>, now: i64) -> (WireFact, Vec<u32>) {
        let (mut trial, mut sizes) = (Trial::new(needed, before), Vec::new());
        while let Some(size) = trial.next() {
            sizes.push(size);
            assert!(sizes.len() < 24, "{sizes:?}");
            trial.answered(size, size <= width);
        }
        (trial.found(before, Timestamp(now), Some(true)), sizes)
    }

    #[test]
    fn a_good_wire_costs_one_packet_and_a_cut_one_two() {
        let (good, sizes) = round(1_500, 1_450, None, 1);
        assert_eq!((good.mtu, good.is_well(), sizes), (Some(1_450), true, vec![1_450]));
        let (cut, sizes) = round(0, 1_450, Some(&good), 5);
        assert_eq!((cut.reachable, cut.mtu, cut.since, sizes), (false, None, Timestamp(5), vec![1_450, SMALL]));
        let (still, _) = round(0, 1_450, Some(&cut), 9);
        assert_eq!(still.since, Timestamp(5), "since the cut");
        let (narrow, _) = round(1_400, 1_450, Some(&good), 9);
        assert_eq!((narrow.reachable, narrow.since, narrow.mtu), (true, Timestamp(1), Some(1_400)));
        let (same, sizes) = round(1_400, 1_450, Some(&narrow), 12);
        assert_eq!((same, sizes), (narrow, vec![1_450, SMALL, 1_400, 1_401]));
    }

    #[test]
    fn a_closed_port_is_no_good_wire() {
        let (good, _) = round(1_500, 1_450, None, 1);
        assert!(good.is_well() && WireFact { vxlan: None, ..good.clone() }.is_well(), "nobody knows of an old agent");
        assert!(!WireFact { vxlan: Some(false), ..good }.is_well());
        let (cut, _) = round(0, 1_450, None, 5);
        assert_eq!(cut.vxlan, None, "what nothing gets through says nothing of VXLAN");
    }

    #[test]
    fn with_very_many_machines_all_get_their_turn_and_the_troubled_every_time() {
        let machine = |number: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number));
        let count = 5_000_u32;
        let wanted: BTreeMap<IpAddr, u32> = (0..count).map(|number| (machine(number), 1_450)).collect();
        let mut facts: BTreeMap<IpAddr, WireFact> = BTreeMap::new();
        let (mut last, mut tried) = (None, std::collections::BTreeSet::new());
        for number in 0..8 {
            let (round, end) = turn(&wanted, &facts, last);
            assert_eq!(round.len(), WIRES_MAX);
            let troubled: Vec<IpAddr> = facts.iter().filter(|(_, fact)| !fact.is_well()).map(|(at, _)| *at).collect();
            assert!(troubled.iter().all(|machine| round.contains_key(machine)), "round {number}");
            facts = round
                .keys()
                .map(|at| (*at, self::round(u32::from(*at > machine(40)) * 1_500, 1_450, None, 1).0))
                .collect();
            tried.extend(round.into_keys());
            last = end;
        }
        assert_eq!(tried.len(), wanted.len(), "all were tried");
        let few: BTreeMap<IpAddr, u32> = wanted.into_iter().take(3).collect();
        assert_eq!(turn(&few, &facts, last), (few.clone(), None));
    }

    proptest! {
        #[test]
        fn the_width_is_found_whatever_was_believed(
            width in 0_u32..10_000, needed in 0_u32..9_500, believed in proptest::option::of(0_u32..10_000),
        ) {
            let before = believed.map(|mtu| WireFact {
                reachable: true, since: Timestamp(1), mtu: Some(mtu), needed, vxlan: None,
            });
            let (found, sizes) = round(width, needed, before.as_ref(), 2);
            let needed = needed.max(SMALL);
            let expected = (width >= SMALL).then_some(width.min(needed));
            prop_assert_eq!(found.mtu, expected);
            prop_assert_eq!(found.reachable, expected.is_some());
            prop_assert!(sizes.len() <= 18, "{:?}", sizes);
        }
    }
}
