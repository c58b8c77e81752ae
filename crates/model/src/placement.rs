//! Which machine a new instance goes to, and why not to the others.
//!
//! Stages look at a machine one after the other; the first that refuses it gives the reason ([`stage`]). Machines that pass them
//! all are scored ([`score`]): roomy ones first, then what the owner asked for softly and what keeps his instances apart. Equal
//! scores go to the smaller id, so the choice is a function of its arguments and every headnode makes the same one.
//!
//! ```text
//!   rules of affinity + the owner's instances ──► wishes      which machines must, must not, should, should not
//!   machines, the roomiest first ──► stages ──► score ──► the best of the first few that fit
//! ```
//!
//! Room is a number in the machine's record, so that the store can list machines by it; a placement looks at the roomiest
//! ones until no later one can win, and its cost does not grow with the fleet. Only a refusal, and an operator who asks for an
//! [`explain`] table, look at all of them.

pub mod affinity;
pub mod explain;
pub mod policy;
pub mod score;
pub mod stage;
pub mod wiring;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
};

pub use self::{
    affinity::{Neighbour, Rule, Wishes},
    explain::Explanation,
    policy::{Demand, Policy, Weights},
    score::roominess,
    stage::{NoRoom, Refusal, fits},
    wiring::Choice,
};
use crate::{
    id::ServerId,
    server::{Server, Trait},
    state::Reachability,
};

/// Machines that fit are compared among so many: more would find a slightly better one, never one that fits better.
pub const COMPARED_MAX: usize = 32;

/// Where the owner's other instances are. Asked of the few machines that are compared, never of all.
pub trait Spread: fmt::Debug {
    /// How many are on a machine.
    fn on(&self, server: ServerId) -> usize;

    /// How many are in a rack.
    fn in_rack(&self, rack: &str) -> usize;
}

/// Nobody has other instances.
impl Spread for () {
    fn on(&self, _server: ServerId) -> usize {
        0
    }

    fn in_rack(&self, _rack: &str) -> usize {
        0
    }
}

/// What an instance asks of its machine.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Memory, disk, CPU.
    pub demand: Demand,
    /// NIC tags of the networks it is to be on; fabrics need none.
    pub nic_tags: BTreeSet<String>,
    /// NICs on networks that are chosen with the machine.
    pub choices: Vec<Choice>,
    /// Traits the package asks for. A machine with traits takes only requests that ask for them.
    pub traits: BTreeMap<String, Trait>,
    /// What the rules of affinity come to.
    pub wishes: Wishes,
    /// The owner's other instances.
    pub spread: &'a dyn Spread,
}

/// A machine, as placement sees it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its record.
    pub server: &'a Server,
    /// Whether it is being heard of.
    pub reachability: Reachability,
}

/// Where an instance goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// The machine.
    pub server: ServerId,
    /// Its score.
    pub score: i64,
    /// Machines that were looked at.
    pub looked_at: usize,
}

/// Chooses a machine among all at once: [`Search`] for those who have them in hand.
///
/// `favoured` are the machines of [`Wishes::favoured`] and [`Wishes::favoured_racks`] that exist; `roomiest` are all machines that
/// take instances, those with the largest [`Server::roominess`] first. It is read only as far as needed.
pub fn place<'a>(
    request: &Request<'_>,
    policy: &Policy,
    favoured: impl IntoIterator<Item = Candidate<'a>>,
    roomiest: impl IntoIterator<Item = Candidate<'a>>,
) -> Result<Placed, NoRoom> {
    let mut search = Search::new(request, policy);
    for candidate in favoured {
        search.look_at_favoured(candidate);
    }
    for candidate in roomiest {
        if !search.goes_on_to(candidate.server) {
            break;
        }
        search.look_at(candidate);
    }
    search.best().ok_or_else(|| search.no_room())
}

/// The search for a machine: first all the favoured ones, then the roomiest as long as [`Search::goes_on_to`] says so.
#[derive(Debug)]
pub struct Search<'a> {
    request: &'a Request<'a>,
    policy: &'a Policy,
    seen: HashSet<ServerId>,
    compared: usize,
    best: Option<(i64, ServerId)>,
    refusals: Vec<(ServerId, Refusal)>,
}

impl<'a> Search<'a> {
    /// Nothing was looked at yet.
    pub fn new(request: &'a Request<'a>, policy: &'a Policy) -> Self {
        Self { request, policy, seen: HashSet::new(), compared: 0, best: None, refusals: Vec::new() }
    }

    /// Looks at a machine that a rule wants to be near.
    pub fn look_at_favoured(&mut self, candidate: Candidate<'_>) {
        self.consider(candidate);
    }

    /// Looks at the next roomy machine.
    pub fn look_at(&mut self, candidate: Candidate<'_>) {
        if self.consider(candidate) {
            self.compared += 1;
        }
    }

    /// Whether the next roomy machine can still win.
    pub fn goes_on_to(&self, next: &Server) -> bool {
        // A machine that is not favoured cannot be right then, and those that are have been looked at.
        if self.request.wishes.must_be_near() {
            return false;
        }
        match self.best {
            // Nothing but being favoured raises a score above the roominess.
            Some((best, _)) => score::ceiling(self.policy, next) >= best && self.compared < COMPARED_MAX,
            None => true,
        }
    }

    /// The best of those looked at.
    pub fn best(&self) -> Option<Placed> {
        self.best.map(|(score, server)| Placed { server, score, looked_at: self.seen.len() })
    }

    /// Why none of those looked at was right.
    pub fn no_room(self) -> NoRoom {
        NoRoom { refusals: self.refusals, unmet: self.request.wishes.unmet() }
    }

    fn consider(&mut self, candidate: Candidate<'_>) -> bool {
        let id = candidate.server.id;
        if !self.seen.insert(id) {
            return false;
        }
        match stage::judge(self.request, self.policy, candidate) {
            Err(refusal) => {
                self.refusals.push((id, refusal));
                false
            }
            Ok(()) => {
                let score = score::total(self.request, self.policy, candidate.server);
                if self.best.is_none_or(|(top, other)| score > top || (score == top && id < other)) {
                    self.best = Some((score, id));
                }
                true
            }
        }
    }
}
