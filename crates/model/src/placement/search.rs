//! Finding one of the best machines without looking at all of them.
//!
//! ```text
//!   favoured by a rule ─► all of them
//!   the roomiest       ─► the first few that fit: is the whole band among them?
//!     yes ─► drawn from them one by one, until a score is as good as any can be     no such: on down, until none can win
//!     no  ─► drawn from among all that are in the band, likewise
//! ```
//!
//! Most draws end with the first machine, since what is good about a machine is mostly its room. A score is below the room
//! where the owner has instances on the machine or in its rack, or a wish speaks against it: then a few more are drawn, and the choice
//! is among the best of those.
//!
//! A band with many machines is drawn from by a random id, since ids are spread evenly and room is not: whoever drew a random amount of
//! room would mostly get the one machine beside a gap. Where the band is a small part of the fleet that finds nobody soon, and room it is.

use std::{collections::BTreeMap, ops::ControlFlow};

use super::{Candidate, Policy, Request, score, stage};
use crate::id::ServerId;

/// Machines that fit are compared among so many: more would find a slightly better one, never one that fits better.
pub const COMPARED_MAX: usize = 32;
/// Machines of the band that are listed; a band that has more is drawn from without a list.
const LISTED_MAX: usize = 8;
/// Machines one draw looks at, at most.
const LOOKED_MAX: usize = 32;

/// A position in the order of [`Fleet::roomiest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Not before machines with more room than this,
    pub roominess: u32,
    /// nor before those with as much and a smaller id.
    pub id: ServerId,
}

/// The machines, as the records list them.
pub trait Fleet {
    /// Shows all machines that a rule wants to be near.
    fn favoured(&self, look: &mut dyn FnMut(Candidate<'_>));

    /// Shows machines that take instances, those with the largest [`crate::server::Server::roominess`] first and equal ones by id, until
    /// it is told to stop: from the first one on, or from a position.
    fn roomiest(&self, from: Option<Mark>, look: &mut dyn FnMut(Candidate<'_>) -> ControlFlow<()>);

    /// Shows machines in the order of their ids from `from` on, until it is told to stop.
    fn by_id(&self, from: ServerId, look: &mut dyn FnMut(Candidate<'_>) -> ControlFlow<()>);
}

/// Where an instance goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// The machine.
    pub server: ServerId,
    /// Its score.
    pub score: i64,
    /// How often a machine was looked at.
    pub looked_at: usize,
}

/// Chooses a machine; `None` when none fits. `chance` yields random bits.
pub fn place(
    request: &Request<'_>,
    policy: &Policy,
    fleet: &dyn Fleet,
    chance: &mut dyn FnMut() -> u64,
) -> Option<Placed> {
    let mut search = Search { request, policy, compared: BTreeMap::new(), looked_at: 0 };
    fleet.favoured(&mut |candidate| {
        search.compare(candidate);
    });
    let favoured = search.best();
    // A machine that is not favoured cannot be right then.
    let least = match request.wishes.must_be_near() {
        true => None,
        false => search.draw(fleet, favoured, chance),
    };
    let least = least.or_else(|| search.best().map(|best| best - policy.band()))?;
    search.choose(least, chance)
}

/// The roomiest machines that fit.
struct Top {
    /// In their order, no more than [`LISTED_MAX`].
    listed: Vec<Mark>,
    /// They are all that the band has.
    whole: bool,
    /// What no machine's score exceeds, but that of a favoured one.
    ceiling: i64,
    /// The least room in the band.
    bottom: u32,
}

struct Search<'a> {
    request: &'a Request<'a>,
    policy: &'a Policy,
    /// Scores of those that fit.
    compared: BTreeMap<ServerId, i64>,
    looked_at: usize,
}

impl Search<'_> {
    /// Compares machines that are not favoured. Returns the score from which on a machine is as good as any can be, if one of those
    /// compared is.
    fn draw(&mut self, fleet: &dyn Fleet, favoured: Option<i64>, chance: &mut dyn FnMut() -> u64) -> Option<i64> {
        let top = self.top(fleet)?;
        // Only being favoured raises a score above the ceiling.
        let least = favoured.unwrap_or(top.ceiling).max(top.ceiling) - self.policy.band();
        if least > top.ceiling {
            return Some(least);
        }
        let mut left = top.listed.clone();
        for _ in 0..COMPARED_MAX {
            let drawn = match top.whole {
                true if left.is_empty() => break,
                true => self.compare_from(fleet, left.swap_remove(below(left.len(), chance)), top.bottom),
                false => self.draw_one(fleet, &top, chance),
            };
            if drawn.is_some_and(|score| score >= least) {
                return Some(least);
            }
        }
        if top.whole {
            self.walk_below(fleet, top.bottom);
        }
        // Whoever is near enough to the best possible, found late or favoured.
        self.best().is_some_and(|best| best >= least).then_some(least)
    }

    fn top(&mut self, fleet: &dyn Fleet) -> Option<Top> {
        let mut top: Option<Top> = None;
        fleet.roomiest(None, &mut |candidate| {
            let server = candidate.server;
            if top.as_ref().is_some_and(|top| server.roominess < top.bottom) {
                return ControlFlow::Break(());
            }
            if !self.fits(candidate) {
                return ControlFlow::Continue(());
            }
            let band = u32::try_from(self.policy.band()).unwrap_or(u32::MAX);
            let top = top.get_or_insert_with(|| Top {
                listed: Vec::new(),
                whole: true,
                ceiling: score::ceiling(self.policy, server),
                bottom: server.roominess.saturating_sub(band),
            });
            if top.listed.len() == LISTED_MAX {
                top.whole = false;
                return ControlFlow::Break(());
            }
            top.listed.push(Mark { roominess: server.roominess, id: server.id });
            ControlFlow::Continue(())
        });
        top
    }

    /// Compares one of a band that is not listed; its score.
    fn draw_one(&mut self, fleet: &dyn Fleet, top: &Top, chance: &mut dyn FnMut() -> u64) -> Option<i64> {
        let (mut found, mut looked_at) = (None, 0);
        let nil = ServerId::new(uuid::Uuid::nil());
        // Behind the last one comes the first.
        for from in [any_id(chance), nil] {
            fleet.by_id(from, &mut |candidate| {
                if looked_at == LOOKED_MAX {
                    return ControlFlow::Break(());
                }
                looked_at += 1;
                if candidate.server.roominess < top.bottom {
                    return ControlFlow::Continue(());
                }
                found = self.compare(candidate);
                if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            if found.is_some() || looked_at == LOOKED_MAX {
                break;
            }
        }
        let highest = top.listed.first().map_or(top.bottom, |first| first.roominess);
        found.or_else(|| {
            let width = usize::try_from(highest - top.bottom).unwrap_or(0).saturating_add(1);
            let less = u32::try_from(below(width, chance)).unwrap_or(0);
            // Of those with so much room, or a little less, any.
            let mut roominess = highest;
            fleet.roomiest(Some(Mark { roominess: highest - less, id: nil }), &mut |candidate| {
                if candidate.server.roominess >= top.bottom {
                    roominess = candidate.server.roominess;
                }
                ControlFlow::Break(())
            });
            self.compare_from(fleet, Mark { roominess, id: any_id(chance) }, top.bottom)
        })
    }

    /// Compares the first machine from `from` on that fits, if there is one in the band and not too far away; its score.
    fn compare_from(&mut self, fleet: &dyn Fleet, from: Mark, bottom: u32) -> Option<i64> {
        let (mut found, mut looked_at) = (None, 0);
        fleet.roomiest(Some(from), &mut |candidate| {
            if candidate.server.roominess < bottom || looked_at == LOOKED_MAX {
                return ControlFlow::Break(());
            }
            looked_at += 1;
            found = self.compare(candidate);
            if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        found
    }

    /// Compares machines with less room than `bottom`, as long as one can win.
    fn walk_below(&mut self, fleet: &dyn Fleet, bottom: u32) {
        let Some(roominess) = bottom.checked_sub(1) else { return };
        let from = Mark { roominess, id: ServerId::new(uuid::Uuid::nil()) };
        let (mut best, most) = (self.best(), self.compared.len() + COMPARED_MAX);
        fleet.roomiest(Some(from), &mut |candidate| {
            let can_win = best.is_none_or(|best| score::ceiling(self.policy, candidate.server) >= best);
            if !can_win || self.compared.len() >= most {
                return ControlFlow::Break(());
            }
            best = best.max(self.compare(candidate));
            ControlFlow::Continue(())
        });
    }

    /// Draws one of those whose score is at least so much.
    fn choose(&self, least: i64, chance: &mut dyn FnMut() -> u64) -> Option<Placed> {
        let good: Vec<_> = self.compared.iter().filter(|(_, score)| **score >= least).collect();
        let (server, score) = good.get(below(good.len(), chance))?;
        Some(Placed { server: **server, score: **score, looked_at: self.looked_at })
    }

    fn best(&self) -> Option<i64> {
        self.compared.values().copied().max()
    }

    /// The score of a machine that fits.
    fn compare(&mut self, candidate: Candidate<'_>) -> Option<i64> {
        if !self.fits(candidate) {
            return None;
        }
        let server = candidate.server;
        Some(*self.compared.entry(server.id).or_insert_with(|| score::total(self.request, self.policy, server)))
    }

    fn fits(&mut self, candidate: Candidate<'_>) -> bool {
        self.looked_at += 1;
        stage::judge(self.request, self.policy, candidate).is_ok()
    }
}

fn any_id(chance: &mut dyn FnMut() -> u64) -> ServerId {
    ServerId::new(uuid::Uuid::from_u128(u128::from(chance()) << 64 | u128::from(chance())))
}

/// A random number below `end`; 0 when `end` is.
fn below(end: usize, chance: &mut dyn FnMut() -> u64) -> usize {
    let end = u64::try_from(end).unwrap_or(u64::MAX).max(1);
    // Of so many that are possible that the first few being likelier by one does not show.
    usize::try_from(chance() % end).unwrap_or(0)
}
