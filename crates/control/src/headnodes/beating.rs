//! This headnode's own beats: a small commit over and over, which carries how long the last ones took.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use base::shutdown::Shutdown;
use model::{
    headnode::{BEAT_ALONE_MS, BEAT_MS, Beat, CopySigns, DiskSigns, Health, Sickness, Signs, Stage, Successor, sick},
    id::ServerId,
};
use store::Transaction;
use tokio::time::Instant;

use crate::{
    Control, Error, Result,
    tables::{BEATS, HEADNODES},
};

/// Commits of beats that are remembered.
const COMMITS: usize = 5;

/// What only the outside can measure.
pub trait Measure: Send + Sync + 'static {
    /// Files of images that should be here and are not.
    fn images_missing(&self) -> u64;
    /// The disk with the headnode's files.
    fn disk(&self) -> DiskSigns;
    /// The headnode's copies of the store. Nothing is known of any where nobody looks.
    fn copies(&self) -> CopySigns {
        CopySigns::default()
    }
}

impl<T: Measure> Measure for Arc<T> {
    fn images_missing(&self) -> u64 {
        (**self).images_missing()
    }

    fn disk(&self) -> DiskSigns {
        (**self).disk()
    }

    fn copies(&self) -> CopySigns {
        (**self).copies()
    }
}

/// Commits one beat.
pub async fn beat(control: &Control, beat: &Beat) -> Result<()> {
    let decided = control.store.update(|snapshot| {
        let key = beat.headnode.to_string();
        let transaction = match (snapshot.get(&BEATS, &key), snapshot.get(&HEADNODES, &key)) {
            // Taken out: nothing of it may come back.
            (_, None) => Transaction::new(),
            (Some(entry), Some(_)) => Transaction::new().replace(&BEATS, &entry, beat.clone()),
            (None, Some(_)) => Transaction::new().create(&BEATS, beat.clone()),
        };
        // It stays as large as it is, and without it nobody works.
        Ok::<_, Error>((transaction.may_use_reserve(), ()))
    });
    decided.await.map(|_| ())
}

/// Beats for headnode `id`, which is registered, until `shutdown`.
pub async fn keep_beating(control: Control, id: ServerId, measure: impl Measure, shutdown: Shutdown) {
    let started_at = control.now();
    let mut roster = control.headnodes.watch();
    let (mut sequence, mut commits, mut failing) = (0, VecDeque::with_capacity(COMMITS), false);
    loop {
        sequence += 1;
        let begun = Instant::now();
        let next = Beat {
            headnode: id,
            sequence,
            at: control.now(),
            started_at,
            health: health(&control, commits.make_contiguous(), &measure),
        };
        match shutdown.unless(beat(&control, &next)).await {
            None => return,
            Some(Ok(())) => failing = false,
            Some(Err(error)) => {
                if !failing {
                    let error = base::errors::chain(&error);
                    tracing::warn!(error, "this headnode's beat was not taken; others do its work meanwhile");
                }
                failing = true;
            }
        }
        if commits.len() == COMMITS {
            commits.pop_front();
        }
        commits.push_back(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
        let until = |milliseconds| begun + Duration::from_millis(milliseconds);
        loop {
            let is_alone = roster.borrow_and_update().is_alone();
            let due = until(if is_alone { BEAT_ALONE_MS } else { BEAT_MS });
            tokio::select! {
                biased;
                () = shutdown.wait() => return,
                () = tokio::time::sleep_until(due) => break,
                // Somebody else is there now, or nobody any more.
                _ = roster.changed() => {}
            }
        }
    }
}

fn health(control: &Control, commits_ms: &[u64], measure: &impl Measure) -> Health {
    let others_ahead_ms = control.headnodes.others_ahead_ms(control.now());
    let (disk, copies) = (measure.disk(), measure.copies());
    let signs = Signs { commits_ms, others_ahead_ms: &others_ahead_ms, disk: &disk, copies: &copies };
    let sickness = sick(&signs);
    Health {
        commit_ms: signs.commit_ms(),
        lag_ms: control.headnodes.lag_ms(),
        clock_offset_ms: signs.clock_offset_ms(),
        sync_ms: disk.sync_ms(),
        member_behind_ms: copies.member.map(|behind| behind.ms),
        mirror_behind_ms: copies.mirror.map(|behind| behind.ms),
        images_missing: measure.images_missing(),
        own_fault: sickness.as_ref().is_some_and(|sickness| sickness.own_fault),
        sick: sickness.map(|sickness| sickness.why),
    }
}

/// Whether this headnode, as it is measured now, had better lead nothing. Its last beat may be from before it fell sick: one that is sick cannot always
/// say so.
pub fn sickness(control: &Control, measure: &impl Measure) -> Option<Sickness> {
    let others_ahead_ms = control.headnodes.others_ahead_ms(control.now());
    let (disk, copies) = (measure.disk(), measure.copies());
    sick(&Signs { commits_ms: &[], others_ahead_ms: &others_ahead_ms, disk: &disk, copies: &copies }).or_else(|| {
        let beat = control.snapshot().get(&BEATS, &control.headnodes.me()?.to_string())?;
        let Health { sick, own_fault, .. } = beat.health.clone();
        sick.map(|why| Sickness { why, own_fault })
    })
}

/// Headnodes that might lead the store in the place of this one.
pub fn successors(control: &Control) -> Vec<Successor> {
    let me = control.headnodes.me();
    let others = super::list(control).into_iter().filter(|view| Some(view.headnode.id) != me);
    others
        .map(|view| {
            let health = view.beat.as_ref().map(|beat| &beat.health);
            Successor {
                id: view.headnode.id,
                beats: view.fresh && view.headnode.stage == Stage::Active,
                sick: health.is_some_and(|health| health.sick.is_some()),
                own_fault: health.is_some_and(|health| health.own_fault),
            }
        })
        .collect()
}
