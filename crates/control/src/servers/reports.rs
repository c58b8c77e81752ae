//! What each machine reported last, so that it need only say what is new, and only that is looked at.
//!
//! Most of what a report says was judged when it was said first. It is worth another look when it is said differently, when the
//! record it is held against has changed, or when it waits for something that no change announces (a generation seen, time
//! passing): such instances are *open*. All others are looked at again only every [`LOOK_AT_ALL_MS`], in case this reasoning has a
//! hole. Lives in memory: after a restart every machine says everything once.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard},
};

use model::{
    delta::ReportDelta,
    id::{InstanceId, ServerId},
    part::Digest,
    target::Report,
    time::Timestamp,
};

/// How long what has not changed goes without a look, milliseconds: a heartbeat's time.
const LOOK_AT_ALL_MS: i64 = nodeapi::HEARTBEAT_SECONDS.cast_signed() * 1_000;

/// Instances whose records changed that are noted for a machine that does not report; beyond, all count as changed.
const STIRRED_MAX: usize = 10_000;

/// The last reports of all machines.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    // A leaf lock: held for one look-up, never across an await.
    held: Mutex<HashMap<ServerId, Arc<Taken>>>,
}

/// A report that was taken in.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) report: Report,
    pub(crate) digest: Digest,
    /// Instances to be looked at again with every report.
    pub(crate) open: BTreeSet<InstanceId>,
    /// When all instances were looked at.
    pub(crate) looked_at: Timestamp,
}

/// Instances of a machine whose records changed since its last report was looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum Stirred {
    /// It is not known which.
    #[default]
    All,
    /// These.
    Some(BTreeSet<InstanceId>),
}

/// Which instances of a report are looked at.
#[derive(Debug)]
pub(crate) enum Worth {
    All,
    Some(BTreeSet<InstanceId>),
}

impl Reports {
    pub(crate) fn get(&self, server: ServerId) -> Option<Arc<Taken>> {
        self.lock().get(&server).cloned()
    }

    /// Digest of what is held of a machine.
    pub(crate) fn digest(&self, server: ServerId) -> Option<Digest> {
        self.lock().get(&server).map(|taken| taken.digest)
    }

    pub(crate) fn keep(&self, server: ServerId, taken: Taken) {
        self.lock().insert(server, Arc::new(taken));
    }

    /// Forgets a machine that left, or whose last report was taken in half.
    pub(crate) fn forget(&self, server: ServerId) {
        self.lock().remove(&server);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ServerId, Arc<Taken>>> {
        self.held.lock().expect("no holder of this lock panics")
    }
}

impl Taken {
    /// What is worth a look in the report that `delta` leads to, when the records of `stirred` have changed.
    pub(crate) fn worth(&self, delta: &ReportDelta, stirred: Stirred, now: Timestamp) -> Worth {
        match stirred {
            Stirred::Some(stirred) if now.0.saturating_sub(self.looked_at.0) < LOOK_AT_ALL_MS => {
                let said = delta.zones.put.keys().chain(&delta.zones.gone);
                Worth::Some(said.chain(&self.open).copied().chain(stirred).collect())
            }
            _ => Worth::All,
        }
    }
}

impl Stirred {
    pub(super) fn add(&mut self, id: InstanceId) {
        if let Self::Some(ids) = self {
            ids.insert(id);
            if ids.len() > STIRRED_MAX {
                *self = Self::All;
            }
        }
    }
}
