//! What the engine delivers, on its way into the mirror.
//!
//! Most of it was written here a moment ago. Then the state that the group leaves is at hand, or at least its records are, and nothing is
//! read out of bytes: only what others have written is.

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

/// The state that `delivery` makes of `before`.
pub(crate) fn arrive(before: &State, delivery: &Delivery, own: Option<&Arrival>) -> Result<Arrived, DecodeError> {
    // With a record in it, a group has a revision that is nobody else's.
    let own = own.filter(|own| own.writes.put());
    let is_own = |revision| own.is_some_and(|own| own.revision == revision);
    if let Some(Arrival { writes, leaves: Some(state), .. }) = own
        && delivery.events.iter().all(|event| is_own(event.revision))
    {
        let state = State { revision: delivery.through, ..state.clone() };
        return Ok(Arrived { state, names: writes.names(), others: Vec::new() });
    }
    let mut state = before.clone();
    let (mut names, mut others) = (Vec::with_capacity(delivery.events.len()), Vec::new());
    for event in &delivery.events {
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
