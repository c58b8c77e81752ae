//! The last requests that found no machine, with the reasons, so that an operator who hears of one later can still see why.
//! In memory: they say nothing that the next request would not say again.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
};

use model::placement::{NoRoom, explain::Unplaced};

use super::Asked;

/// Kept; the oldest goes first.
const KEPT: usize = 100;
/// Machines named per refusal; the rest is counted.
const MACHINES_MAX: usize = 50;

pub(super) fn unplaced(asked: &Asked<'_>, no_room: &NoRoom) -> Unplaced {
    let mut stages: BTreeMap<String, usize> = BTreeMap::new();
    for (_, refusal) in &no_room.refusals {
        *stages.entry(refusal.stage().to_owned()).or_default() += 1;
    }
    let named = no_room.refusals.iter().take(MACHINES_MAX);
    Unplaced {
        at: asked.now,
        owner: asked.owner,
        alias: asked.alias.to_owned(),
        package: asked.package.name.clone(),
        summary: no_room.summary(),
        stages,
        machines: named.map(|(id, refusal)| (*id, refusal.to_string())).collect(),
    }
}

/// The last [`Unplaced`] requests.
#[derive(Debug, Default)]
pub struct Refusals {
    // A leaf lock: held to add or copy, never across an await.
    last: Mutex<VecDeque<Unplaced>>,
}

impl Refusals {
    pub(super) fn note(&self, unplaced: Unplaced) {
        let mut last = self.last.lock().expect("no holder of this lock panics");
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(unplaced);
    }

    /// The newest first.
    pub fn newest(&self) -> Vec<Unplaced> {
        self.last.lock().expect("no holder of this lock panics").iter().rev().cloned().collect()
    }
}
