//! The feed of changes: what a loop or a waiting flow wakes on.

use std::sync::Arc;

use tokio::sync::broadcast;

use crate::{mirror::Mirror, snapshot::Snapshot, table::Revision};

/// What changed, and the state it left.
#[derive(Debug)]
pub struct Change {
    /// The state's revision.
    pub revision: Revision,
    /// The state after the change.
    pub snapshot: Snapshot,
    /// Table and key of each changed record; none when only the revision has grown. Meaningless when `lagged`.
    pub keys: Vec<(&'static str, Arc<str>)>,
    /// The reader was too slow to be told everything: anything may have changed.
    pub lagged: bool,
}

/// A reader of the feed. It never holds up the store; a slow reader is told that it lagged.
pub struct Changes {
    feed: broadcast::Receiver<Arc<Change>>,
    mirror: Arc<Mirror>,
    ended: bool,
}

impl Changes {
    pub(crate) fn new(feed: broadcast::Receiver<Arc<Change>>, mirror: Arc<Mirror>) -> Self {
        Self { feed, mirror, ended: false }
    }

    /// The next change since the last call, or since [`Store::changes`](crate::Store::changes). Once the store is gone this never ends;
    /// select it with a shutdown.
    pub async fn next(&mut self) -> Arc<Change> {
        if self.ended {
            return std::future::pending().await;
        }
        match self.feed.recv().await {
            Ok(change) => change,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                // Skip what is still queued as well: the snapshot taken now is later than all of it.
                self.feed = self.feed.resubscribe();
                let snapshot = self.mirror.snapshot();
                Arc::new(Change { revision: snapshot.revision(), snapshot, keys: Vec::new(), lagged: true })
            }
            Err(broadcast::error::RecvError::Closed) => {
                self.ended = true;
                std::future::pending().await
            }
        }
    }
}
