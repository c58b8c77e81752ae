//! Which machine a new instance goes to, and why not to the others.
//!
//! Stages look at a machine one after the other; the first that refuses it gives the reason ([`stage`]). Machines that pass them
//! all are scored ([`score`]): roomy ones first, then what the owner asked for softly and what keeps his instances apart. One is drawn
//! from those whose score is within a narrow band of the best ([`Policy::band`]), with chance that is an argument: if all took the very
//! best, every headnode would decide for the same machine at the same time, and all but one would have to decide again.
//!
//! ```text
//!   rules of affinity + the owner's instances ──► wishes      which machines must, must not, should, should not
//!   machines, the roomiest first ──► stages ──► score ──► one of the best
//! ```
//!
//! Room is a number in the machine's record, so that the store can list machines by it; a placement looks at a few ([`search`]),
//! and its cost does not grow with the fleet. Only a refusal, and an operator who asks for an [`explain`] table, look at all of them.

pub mod affinity;
pub mod explain;
pub mod policy;
pub mod score;
pub mod search;
pub mod stage;
pub mod wiring;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

pub use self::{
    affinity::{Neighbour, Rule, Wishes},
    explain::Explanation,
    policy::{Demand, Policy, Weights},
    score::roominess,
    search::{Fleet, Mark, Placed, place},
    stage::{NoRoom, Refusal, fits},
    wiring::Choice,
};
use crate::{
    id::ServerId,
    server::{Server, Trait},
    state::Reachability,
};

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
