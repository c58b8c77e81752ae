//! What the engine delivers, on its way into the mirror.
//!
//! Most of it was written here a moment ago. Then the state that the group leaves is at hand, or at least its records are, and nothing is
//! read out of bytes: only what others have written is. Where the engine's answer shows that nobody was between, its watch is not even
//! waited for ([`Arrival::directly_after`]).

use std::sync::Arc;

use crate::{
    engine::Delivery,
    snapshot::State,
    table::{DecodeError, Revision},
    transaction::Write,
};

/// Table and key of a record.
pub(crate) type Name = (&'static str, Arc<str>);

/// What a group writes, in the order of tables and keys.
#[derive(Default)]
pub(crate) struct Writes(Vec<(&'static str, Arc<str>, Write)>);

/// A group of this process that is part of what is delivered.
pub(crate) struct Arrival {
    pub(crate) revision: Revision,
    pub(crate) writes: Arc<Writes>,
    /// The state with it, if nothing is delivered beside it.
    pub(crate) leaves: Option<State>,
}

/// A state with what was delivered.
pub(crate) struct Arrived {
    pub(crate) state: State,
    /// What has changed.
    pub(crate) names: Vec<Name>,
    /// What of it others have changed last.
    pub(crate) others: Vec<Name>,
}

impl Arrival {
    /// The state with it, if it came to be in the one that `before` is the revision of: every commit to the keyspace has the revision after
    /// the last, so nobody was between.
    pub(crate) fn directly_after(&self, before: Revision) -> Option<Arrived> {
        (self.revision == Revision(before.0 + 1)).then(|| self.alone(self.revision))?
    }

    /// The state with it and nothing beside it, through `through`.
    fn alone(&self, through: Revision) -> Option<Arrived> {
        // With a record in it, a group has a revision that is nobody else's.
        let leaves = self.leaves.as_ref().filter(|_| self.writes.put())?;
        let state = State { revision: through, ..leaves.clone() };
        Some(Arrived { state, names: self.writes.names(), others: Vec::new() })
    }
}

/// The state that `delivery` makes of `before`, which may have some of it already.
pub(crate) fn arrive(before: &State, delivery: &Delivery, own: Option<&Arrival>) -> Result<Arrived, DecodeError> {
    // With a record in it, a group has a revision that is nobody else's.
    let own = own.filter(|own| own.writes.put());
    let is_own = |revision| own.is_some_and(|own| own.revision == revision);
    let new = || delivery.events.iter().filter(|event| event.revision > before.revision);
    if let Some(alone) =
        own.filter(|_| new().all(|event| is_own(event.revision))).and_then(|own| own.alone(delivery.through))
    {
        return Ok(alone);
    }
    let mut state = before.clone();
    let (mut names, mut others) = (Vec::with_capacity(delivery.events.len()), Vec::new());
    for event in new() {
        let (position, key) = before.schema.split(&event.key)?;
        let table = before.schema.name(position);
        let written = own.filter(|_| is_own(event.revision)).and_then(|own| own.writes.find(table, key));
        if let Some((key, write)) = written {
            state.write(table, key, write);
            names.push((table, key.clone()));
        } else {
            state.apply(position, key, event.revision, event.value.as_deref())?;
            others.push((table, key.into()));
            names.extend(others.last().cloned());
        }
    }
    // What was ours last is as it was decided here.
    others.retain(|(table, key)| own.is_none_or(|own| state.revision_of(table, key) != Some(own.revision)));
    state.revision = state.revision.max(delivery.through);
    Ok(Arrived { state, names, others })
}

impl Writes {
    pub(crate) fn push(&mut self, table: &'static str, key: &Arc<str>, write: &Write) {
        self.0.push((table, key.clone(), write.clone()));
    }

    fn names(&self) -> Vec<Name> {
        self.0.iter().map(|(table, key, _)| (*table, key.clone())).collect()
    }

    fn find(&self, table: &str, key: &str) -> Option<(&Arc<str>, &Write)> {
        let position = self.0.binary_search_by(|(at, of, _)| (*at, &**of).cmp(&(table, key))).ok()?;
        let (_, key, write) = &self.0[position];
        Some((key, write))
    }

    fn put(&self) -> bool {
        self.0.iter().any(|(_, _, write)| matches!(write, Write::Put { .. }))
    }
}
