//! The loop that keeps the history of flows bounded.

use std::{sync::Arc, time::Duration};

use base::clock::Clock;
use store::{BoxFuture, Store, Transaction};

use crate::{
    loops::Loop,
    record::{ENDED, FLOWS},
};

/// Ended flows kept at most; the oldest go first.
pub const KEPT_MAX: usize = 1_000;
/// How long an ended flow is kept at most.
pub const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// Flows deleted in one commit.
const COMMIT_FLOWS: usize = 50;
/// Flows deleted in one pass; the next pass takes the rest.
const PASS_FLOWS: usize = 20_000;

/// Deletes ended flows that are too old or too many.
pub struct Trim {
    store: Store,
    clock: Arc<dyn Clock>,
    kept_max: usize,
}

impl Trim {
    /// Keeps [`KEPT_MAX`] ended flows.
    pub fn new(store: Store, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock, kept_max: KEPT_MAX }
    }

    /// Keeps `kept_max` ended flows.
    #[must_use]
    pub fn keep(mut self, kept_max: usize) -> Self {
        self.kept_max = kept_max;
        self
    }

    async fn trim(&self) -> Result<usize, store::CommitError> {
        let snapshot = self.store.snapshot();
        let oldest_kept = self.clock.now_ms().saturating_sub(i64::try_from(KEPT_FOR.as_millis()).unwrap_or(i64::MAX));
        let ended: Vec<_> = snapshot.find(&FLOWS, ENDED, ENDED).collect();
        let surplus = ended.len().saturating_sub(self.kept_max);
        let stale = ended.iter().enumerate().filter(|(position, flow)| {
            // Ids sort by age, so the first are the oldest.
            *position < surplus || flow.ended_at.is_some_and(|ended_at| ended_at < oldest_kept)
        });
        let stale: Vec<_> = stale.map(|(_, flow)| flow.clone()).take(PASS_FLOWS).collect();
        for some in stale.chunks(COMMIT_FLOWS) {
            let transaction =
                some.iter().fold(Transaction::new(), |transaction, flow| transaction.delete(&FLOWS, flow));
            self.store.commit(transaction).await?;
        }
        Ok(stale.len())
    }
}

impl Loop for Trim {
    fn name(&self) -> &'static str {
        "flow-trim"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn pass(&self) -> BoxFuture<'_, Result<String, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(async move {
            match self.trim().await? {
                0 => Ok(String::new()),
                trimmed => Ok(format!("{trimmed} ended flows trimmed")),
            }
        })
    }
}
