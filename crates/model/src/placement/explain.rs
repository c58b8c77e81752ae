//! The whole of a decision for the operator's eyes: every machine, stage by stage, and how many of a kind would fit where.
//!
//! Looks at every machine, so it is for people and for refusals, not for the way of a request.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Candidate, Policy, Request, roominess, score,
    stage::{self, STAGES},
};
use crate::{
    id::{AccountId, ServerId},
    server::Server,
    time::Timestamp,
};

/// Instances a question may be about at most.
pub const COUNT_MAX: u32 = 1_000;

/// A decision, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// In order of [`STAGES`].
    pub stages: Vec<Stage>,
    /// Machines that passed all stages, the best first.
    pub ranked: Vec<Ranked>,
    /// Machines whose score is no further than this from the best's are as good as it: the machine is drawn from among them.
    #[serde(default)]
    pub band: i64,
    /// How many of those asked for would go where, one after the other, each to the very best.
    pub fits: BTreeMap<ServerId, u32>,
    /// How many would find no place.
    pub left_over: u32,
    /// Rules of affinity that no instance answers to.
    pub unmet: Vec<String>,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Machines that came to it.
    pub before: usize,
    /// Those it turned down, each with the reason.
    pub refused: Vec<Refused>,
}

/// A machine that was turned down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The machine.
    pub server: ServerId,
    /// Its name.
    pub hostname: String,
    /// Why.
    pub reason: String,
}

/// A machine that fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranked {
    /// The machine.
    pub server: ServerId,
    /// Its name.
    pub hostname: String,
    /// Its score.
    pub score: i64,
    /// Of it: room that is left.
    pub room: i64,
    /// Soft rules for it, less those against it.
    pub soft_rules: i64,
    /// The owner's instances on it.
    pub neighbours: usize,
    /// It is one of those from which the machine is drawn.
    #[serde(default)]
    pub drawn_from: bool,
}

/// A request that found no machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unplaced {
    /// When.
    pub at: Timestamp,
    /// Whose instance it would have been.
    pub owner: AccountId,
    /// Its name.
    pub alias: String,
    /// Name of the package.
    pub package: String,
    /// What the tenant was told.
    pub summary: String,
    /// How many machines which stage turned down.
    pub stages: BTreeMap<String, usize>,
    /// Some of the machines, each with its reason.
    pub machines: BTreeMap<ServerId, String>,
}

/// Takes the decision for `count` instances like `request` apart, at most [`COUNT_MAX`]. What the first ones take is not there for the
/// later ones; rules of affinity see only instances that exist.
pub fn explain<'a>(
    request: &Request<'_>,
    policy: &Policy,
    count: u32,
    candidates: impl IntoIterator<Item = Candidate<'a>>,
) -> Explanation {
    let candidates: Vec<Candidate<'a>> = candidates.into_iter().collect();
    let mut refused: BTreeMap<&str, Vec<Refused>> = BTreeMap::new();
    let mut fitting = Vec::new();
    for candidate in &candidates {
        let server = candidate.server;
        match stage::judge(request, policy, *candidate) {
            Ok(()) => fitting.push(*candidate),
            Err(refusal) => refused.entry(refusal.stage()).or_default().push(Refused {
                server: server.id,
                hostname: server.hostname.clone(),
                reason: refusal.to_string(),
            }),
        }
    }
    let mut before = candidates.len();
    let stages = STAGES
        .iter()
        .map(|name| {
            let refused = refused.remove(name).unwrap_or_default();
            let stage = Stage { name: (*name).to_owned(), before, refused };
            before -= stage.refused.len();
            stage
        })
        .collect();
    let (fits, left_over) = fill(request, policy, count.min(COUNT_MAX), &fitting);
    let ranked = ranked(request, policy, &fitting);
    Explanation { stages, ranked, band: policy.band(), fits, left_over, unmet: request.wishes.unmet() }
}

fn ranked(request: &Request<'_>, policy: &Policy, fitting: &[Candidate<'_>]) -> Vec<Ranked> {
    let rank = |candidate: &Candidate<'_>| {
        let server = candidate.server;
        Ranked {
            server: server.id,
            hostname: server.hostname.clone(),
            score: score::total(request, policy, server),
            room: i64::from(server.roominess),
            soft_rules: request.wishes.balance(server.id, server.rack.as_deref()),
            neighbours: request.spread.on(server.id),
            drawn_from: false,
        }
    };
    let mut ranked: Vec<Ranked> = fitting.iter().map(rank).collect();
    ranked.sort_by_key(|ranked| (std::cmp::Reverse(ranked.score), ranked.server));
    let least = ranked.first().map(|best| best.score - policy.band());
    for machine in &mut ranked {
        machine.drawn_from = least.is_some_and(|least| machine.score >= least);
    }
    ranked
}

/// Places `count` instances one after the other on copies of the machines.
fn fill(
    request: &Request<'_>,
    policy: &Policy,
    count: u32,
    fitting: &[Candidate<'_>],
) -> (BTreeMap<ServerId, u32>, u32) {
    let mut servers: Vec<(Candidate<'_>, Server)> =
        fitting.iter().map(|candidate| (*candidate, candidate.server.clone())).collect();
    let mut fits = BTreeMap::new();
    for placed in 0..count {
        let scored = servers.iter().enumerate().filter(|(_, (candidate, server))| {
            stage::judge(request, policy, Candidate { server, ..*candidate }).is_ok()
        });
        let best =
            scored.max_by_key(|(_, (_, server))| (score::total(request, policy, server), std::cmp::Reverse(server.id)));
        let Some((position, _)) = best else { return (fits, count - placed) };
        let server = &mut servers[position].1;
        server.reserved = server.reserved.plus(request.demand);
        server.roominess = roominess(policy, server);
        *fits.entry(server.id).or_default() += 1;
    }
    (fits, 0)
}
