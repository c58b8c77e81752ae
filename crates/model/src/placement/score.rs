//! Comparing machines that fit. Integers throughout: a score is the same on every machine that works it out.

use super::{Policy, Request};
use crate::server::Server;

/// A full score before its weight.
pub(super) const FULL: i64 = 1_000;
/// Instances of one owner beyond which a machine is not told apart any more.
const CROWD: usize = 10;
/// Added to a roominess so that negative weights keep it above zero: three shares at [`super::Weights::MAX`].
const SHIFT: i64 = 3 * FULL * super::Weights::MAX as i64;

/// How much room `server` has under `policy`, the larger the better; what [`Server::roominess`] should hold.
pub fn roominess(policy: &Policy, server: &Server) -> u32 {
    let weights = policy.weights;
    let shares = [
        (weights.memory, policy.memory(server), server.reserved.memory.0),
        (weights.disk, policy.disk(server), server.reserved.disk.0),
        (weights.cpu, policy.cpu(server), server.reserved.cpu),
    ];
    let sum: i64 = shares.into_iter().map(|(weight, all, taken)| i64::from(weight) * left_of(all, taken)).sum();
    u32::try_from((sum + SHIFT).max(0)).unwrap_or(u32::MAX)
}

/// The score of `server` for `request`.
pub fn total(request: &Request<'_>, policy: &Policy, server: &Server) -> i64 {
    let (weights, wishes) = (policy.weights, &request.wishes);
    let crowded = |neighbours: usize| FULL * neighbours.min(CROWD) as i64 / CROWD as i64;
    let rack = server.rack.as_deref();
    i64::from(server.roominess) + i64::from(weights.soft_rules) * FULL * wishes.balance(server.id, rack)
        - i64::from(weights.owner_spread) * crowded(request.spread.on(server.id))
        - i64::from(weights.rack_spread) * crowded(rack.map_or(0, |rack| request.spread.in_rack(rack)))
}

/// What the score of a machine that no rule favours cannot exceed.
pub(super) fn ceiling(policy: &Policy, server: &Server) -> i64 {
    let gathers = |weight: i32| i64::from(weight.min(0)).abs() * FULL;
    i64::from(server.roominess) + gathers(policy.weights.owner_spread) + gathers(policy.weights.rack_spread)
}

/// Per mille of `all` that is not taken.
fn left_of(all: u64, taken: u64) -> i64 {
    if all == 0 {
        return 0;
    }
    let left = all.saturating_sub(taken).saturating_mul(FULL as u64) / all;
    i64::try_from(left).unwrap_or(FULL)
}
