//! What the agent has done since it was started: counted where it happens, told with the machine's meters.
//!
//! Numbers that only whoever watches reads: nothing is decided by them, so relaxed ordering is enough.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use model::meters::{AgentMeters, VerbMeters};
use tokio::time::Instant;

/// A number that only grows.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// One more.
    pub(crate) fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// See the head of this file.
pub(crate) struct Activity {
    started_ms: i64,
    pub(crate) reports: Count,
    pub(crate) reports_failed: Count,
    pub(crate) targets: Count,
    pub(crate) targets_failed: Count,
    pub(crate) inquiries: Count,
    pub(crate) attempts_failed: Count,
    waiting: AtomicU64,
}

impl Activity {
    /// Of an agent that is started now, by its machine's clock.
    pub(crate) fn new(started_ms: i64) -> Self {
        Self {
            started_ms,
            reports: Count::default(),
            reports_failed: Count::default(),
            targets: Count::default(),
            targets_failed: Count::default(),
            inquiries: Count::default(),
            attempts_failed: Count::default(),
            waiting: AtomicU64::new(0),
        }
    }

    /// Counts somebody as waiting until what it gives is dropped.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.waiting)
    }

    /// All of it, and what the process uses.
    pub(crate) fn read(&self, verbs: &VerbTimes) -> AgentMeters {
        let own = base::own::usage();
        AgentMeters {
            started_s: u64::try_from(self.started_ms / 1_000).unwrap_or(0),
            cpu_s: own.cpu_s,
            resident_bytes: own.resident_bytes,
            threads: own.threads,
            reports: self.reports.read(),
            reports_failed: self.reports_failed.read(),
            targets: self.targets.read(),
            targets_failed: self.targets_failed.read(),
            inquiries: self.inquiries.read(),
            attempts_failed: self.attempts_failed.read(),
            waiting: self.waiting.load(Ordering::Relaxed),
            verbs: verbs.read(),
        }
    }
}

/// Somebody who waits.
pub(crate) struct Waiting<'a>(&'a AtomicU64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How often each verb was done, and how long that took. Clones share it.
#[derive(Clone, Default)]
// Leaf data: one entry is changed at a time.
pub(crate) struct VerbTimes(Arc<Mutex<BTreeMap<&'static str, VerbMeters>>>);

impl VerbTimes {
    /// A verb begins; it has ended when what this gives is dropped.
    pub(crate) fn begin(&self, name: &'static str) -> Running {
        self.change(name, |verb| verb.running += 1);
        Running { times: self.clone(), name, begun: Instant::now() }
    }

    fn change(&self, name: &'static str, change: impl FnOnce(&mut VerbMeters)) {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default());
    }

    fn read(&self) -> BTreeMap<String, VerbMeters> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter().map(|(name, verb)| ((*name).to_owned(), *verb)).collect()
    }
}

/// A verb under way.
pub(crate) struct Running {
    times: VerbTimes,
    name: &'static str,
    begun: Instant,
}

impl Drop for Running {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        self.times.change(self.name, |verb| {
            verb.running -= 1;
            verb.done += 1;
            verb.total_us = verb.total_us.saturating_add(microseconds(took));
        });
    }
}

fn microseconds(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}
