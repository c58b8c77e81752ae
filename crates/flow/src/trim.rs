//! The loop that keeps the history of flows in the store bounded, as a whole and per subject. What leaves the store is archived
//! first; while that fails, it stays.

use std::{collections::HashMap, sync::Arc, time::Duration};

use base::clock::Clock;
use store::{BoxFuture, Store, Transaction};

use crate::{
    archive::Archive,
    loops::Loop,
    record::{ENDED, FLOWS},
};

/// Ended flows kept at most; the oldest go first.
pub const KEPT_MAX: usize = 1_000;
/// How long an ended flow is kept at most.
pub const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// Ended flows of one subject kept at most: one that is rebooted all day must not push out everybody else's history.
pub const SUBJECT_KEPT_MAX: usize = 50;
/// The archive's word for flows.
pub const ARCHIVE_KIND: &str = "flows";
/// Flows archived in one go: bounds what is in memory as text.
const ARCHIVE_FLOWS: usize = 1_000;
/// Flows deleted in one commit.
const COMMIT_FLOWS: usize = 50;
/// Flows deleted in one pass; the next pass takes the rest.
const PASS_FLOWS: usize = 20_000;

/// Deletes ended flows that are too old or too many.
pub struct Trim {
    store: Store,
    clock: Arc<dyn Clock>,
    kept_max: usize,
    archive: Option<Archive>,
}

impl Trim {
    /// Keeps [`KEPT_MAX`] ended flows.
    pub fn new(store: Store, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock, kept_max: KEPT_MAX, archive: None }
    }

    /// Keeps `kept_max` ended flows.
    #[must_use]
    pub fn keep(mut self, kept_max: usize) -> Self {
        self.kept_max = kept_max;
        self
    }

    /// Archives what it deletes.
    #[must_use]
    pub fn archive(mut self, archive: Option<Archive>) -> Self {
        self.archive = archive;
        self
    }

    async fn trim(&self) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
        let snapshot = self.store.snapshot();
        let oldest_kept = self.clock.now_ms().saturating_sub(i64::try_from(KEPT_FOR.as_millis()).unwrap_or(i64::MAX));
        let ended: Vec<_> = snapshot.find(&FLOWS, ENDED, ENDED).collect();
        let surplus = ended.len().saturating_sub(self.kept_max);
        // Ids sort by age, so the last are the newest.
        let mut of_subject: HashMap<&str, usize> = HashMap::new();
        let crowded: Vec<bool> = ended
            .iter()
            .rev()
            .map(|flow| {
                let newer = of_subject.entry(flow.subject.as_str()).or_default();
                *newer += 1;
                !flow.subject.is_empty() && *newer > SUBJECT_KEPT_MAX
            })
            .collect();
        let stale = ended.iter().zip(crowded.iter().rev()).enumerate().filter(|(position, (flow, crowded))| {
            *position < surplus || **crowded || flow.ended_at.is_some_and(|ended_at| ended_at < oldest_kept)
        });
        let stale: Vec<_> = stale.map(|(_, (flow, _))| flow.clone()).take(PASS_FLOWS).collect();
        for some in stale.chunks(ARCHIVE_FLOWS) {
            if let Some(archive) = &self.archive {
                let lines = some.iter().map(|flow| serde_json::to_string(&flow.value)).collect::<Result<_, _>>()?;
                archive.append(ARCHIVE_KIND, lines, self.clock.now_ms()).await?;
                base::crash::point("flow.archive.written");
            }
            for some in some.chunks(COMMIT_FLOWS) {
                let transaction =
                    some.iter().fold(Transaction::new(), |transaction, flow| transaction.delete(&FLOWS, flow));
                self.store.commit(transaction).await?;
            }
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
