//! What changes about an account's instances, in the order it happened, and what has changed since a place a client remembers.
//!
//! The place is a revision of the records. Nothing is kept for those who are away: every record knows the revision of its last change,
//! so what a client missed is what is newer than its place. Of several changes of one instance in between it is told the last. What is
//! deleted leaves a tombstone, newer than its place too; so a place is good for as long as tombstones are kept, and whoever comes later
//! has to begin again with everything there is.
//!
//! A reader that does not keep up with the store's feed loses what lies between in the same way, and nothing else.

use std::sync::Arc;

use model::{
    changed::{SubResource, touched},
    id::AccountId,
    instance::Instance,
    time::Timestamp,
};
use store::{Changes, Entry, Snapshot};

use crate::{
    Control,
    tables::{BY_OWNER, INSTANCES},
};

/// Places are not trusted for this last part of the time that tombstones are kept: headnodes' clocks differ a little.
const MARGIN_MS: i64 = 3_600_000;

/// One instance has changed.
#[derive(Debug, Clone)]
pub struct Changed {
    /// As it is after that.
    pub instance: Arc<Entry<Instance>>,
    /// What is different; `None` when that is not known.
    pub touched: Option<Vec<SubResource>>,
}

/// What a client missed.
#[derive(Debug)]
pub enum Missed {
    /// These have changed, the earliest first.
    Changed(Vec<Arc<Entry<Instance>>>),
    /// Its place is too long ago.
    TooLongAgo,
    /// Its place is in records that are no more: of a time that a backup does not know.
    Unknown,
}

/// One account's changes.
pub struct Feed {
    owner: AccountId,
    changes: Changes,
    /// The state up to which everything was told.
    told: Snapshot,
}

impl Feed {
    /// The changes from now on.
    pub fn open(control: &Control, owner: AccountId) -> Self {
        // In this order: what happens in between is told, and found to be known.
        let changes = control.store.changes();
        Self { owner, changes, told: control.snapshot() }
    }

    /// Everything was told up to this revision.
    pub fn through(&self) -> u64 {
        self.told.revision().0
    }

    /// Waits for the next state of the records: which of the account's instances are different in it, the earliest first; often none.
    /// May be dropped while it waits.
    pub async fn next(&mut self) -> Vec<Changed> {
        let change = self.changes.next().await;
        if change.revision <= self.told.revision() && !change.lagged {
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.told, change.snapshot.clone());
        let now = &self.told;
        let candidates: Vec<_> = match change.lagged {
            true => of_owner(now, self.owner).collect(),
            false => {
                let keys = change.keys.iter().filter(|(table, _)| *table == INSTANCES.name);
                let found = keys.filter_map(|(_, key)| now.get(&INSTANCES, key));
                found.filter(|instance| instance.owner == self.owner).collect()
            }
        };
        let different = candidates.into_iter().filter_map(|instance| {
            let earlier = before.get(&INSTANCES, &instance.id.to_string());
            if earlier.as_ref().is_some_and(|earlier| earlier.revision() == instance.revision()) {
                return None;
            }
            let touched = touched(earlier.as_deref().map(|entry| &entry.value), &instance);
            // One whose record changed in nothing a client can ask for.
            (!touched.is_empty()).then_some(Changed { instance, touched: Some(touched) })
        });
        let mut different: Vec<_> = different.collect();
        different.sort_by_key(|changed| changed.instance.revision());
        different
    }

    /// What happened after `revision`, which was the newest at `at`, up to [`Feed::through`].
    pub fn missed(&self, control: &Control, revision: u64, at: Timestamp) -> Missed {
        if revision > self.through() {
            return Missed::Unknown;
        }
        let kept_ms = control.config.tombstones_kept_ms.saturating_sub(MARGIN_MS).max(0);
        if control.now().0.saturating_sub(at.0) > kept_ms {
            return Missed::TooLongAgo;
        }
        let newer = of_owner(&self.told, self.owner).filter(|instance| instance.revision().0 > revision);
        let mut newer: Vec<_> = newer.collect();
        newer.sort_by_key(|instance| instance.revision());
        Missed::Changed(newer)
    }

    /// Every instance there is, the one that changed first before the others.
    pub fn present(&self) -> Vec<Arc<Entry<Instance>>> {
        let present = of_owner(&self.told, self.owner).filter(|instance| instance.deleted_at.is_none());
        let mut present: Vec<_> = present.collect();
        present.sort_by_key(|instance| instance.revision());
        present
    }
}

fn of_owner(snapshot: &Snapshot, owner: AccountId) -> impl Iterator<Item = Arc<Entry<Instance>>> {
    snapshot.find(&INSTANCES, BY_OWNER, &owner.to_string())
}

/// Up to which revision all of `in_order` was told once the one at `position` was: those that one commit changed have the same.
pub fn place_after(in_order: &[Arc<Entry<Instance>>], position: usize, through: u64) -> u64 {
    let own = in_order[position].revision().0;
    match in_order.get(position + 1) {
        None => through,
        Some(next) if next.revision().0 > own => own,
        Some(_) => own.saturating_sub(1),
    }
}
