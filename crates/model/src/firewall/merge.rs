//! Fewer lookups for the same answer: [`FirewallTarget::matches`].
//!
//! A packet that no rule of a layer is for is compared with all of them, so what counts is their number. The rules of a layer
//! all decide the same, and most differ in one thing only: the same peers and another port, or the same ports and other peers. Such
//! rules become one match, first by peers, then by traffic. Rules that log stay alone, because a log line names its rule.

use std::{collections::HashMap, hash::Hash, mem};

use super::target::{FirewallTarget, LayerId, Peers, Traffic};
use crate::id::FirewallRuleId;

/// What one or more rules of a layer look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// The rules it stands for, by id; one if it logs.
    pub rules: Vec<FirewallRuleId>,
    /// Whether to log what it decides.
    pub log: bool,
    /// The traffic of all of them.
    pub traffic: Traffic,
    /// The peers of all of them.
    pub peers: Peers,
}

impl FirewallTarget {
    /// What a layer's rules look for, as few matches as two passes find. A packet fits one of them if and only if it fits one of
    /// the rules. Always in the same order; nothing for a layer the document does not have.
    pub fn matches(&self, layer: LayerId) -> Vec<Match> {
        let Some(layer) = self.layers.get(&layer) else { return Vec::new() };
        let rules = layer.rules.iter().filter_map(|id| {
            let rule = self.rules.get(id)?;
            let peers = rule.peers(layer.direction)?.clone();
            Some(Match { rules: vec![*id], log: rule.log, traffic: rule.traffic.clone(), peers })
        });
        let (mut matches, silent): (Vec<Match>, Vec<Match>) = rules.partition(|rule| rule.log);
        let by_peers = merge(
            silent,
            |one| (one.peers.clone(), mem::discriminant(&one.traffic)),
            |one, other| one.traffic.extend(other.traffic),
        );
        matches.extend(merge(by_peers, |one| one.traffic.clone(), |one, other| one.peers.extend(other.peers)));
        for one in &mut matches {
            one.rules.sort_unstable();
        }
        matches
    }
}

/// One match for all with the same key, where the first of them stood.
fn merge<K: Eq + Hash>(matches: Vec<Match>, key: impl Fn(&Match) -> K, add: impl Fn(&mut Match, Match)) -> Vec<Match> {
    let mut places: HashMap<K, usize> = HashMap::new();
    let mut merged: Vec<Match> = Vec::new();
    for mut one in matches {
        let place = *places.entry(key(&one)).or_insert(merged.len());
        match merged.get_mut(place) {
            Some(into) => {
                into.rules.append(&mut one.rules);
                add(into, one);
            }
            None => merged.push(one),
        }
    }
    merged
}
