//! Reads that are not behind: what somebody was told is committed, whoever asks afterwards sees.
//!
//! A mirror shows what this process committed before anybody is told so. But another headnode's mirror may show it a moment later, and a
//! client that writes through one and reads through the other would not see its own write. So before it is answered from the mirror, a
//! reader asks the engine how far the keyspace is, and waits until the mirror is as far.
//!
//! ```text
//!   readers ──► waiting ──► one question for all who came before it ──► mirror has reached the answer ──► all are told
//! ```
//! One question is under way at a time; who comes meanwhile waits for the next, because only a question asked *after* somebody came counts for
//! them. A thousand readers cost one question. An engine with a single user has nothing to be asked, and its readers wait for nothing.
//!
//! When the engine does not answer (no majority of its members is there) readers are told at once that they may see an old state, and since
//! when, instead of each waiting for its own time to run out; meanwhile the question is asked over and over.
//!
//! Rejected: asking for every reader by itself (as many round trips as reads), and a lease that lets a mirror answer for a while
//! without asking (it trusts clocks, and commits would have to wait for it).

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base::{backoff::Backoff, shutdown::Shutdown};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use crate::mirror::Mirror;

/// How long a reader waits, and how long a question may take before readers are told so at once. Far above what a healthy cluster takes,
/// and below what a person notices as hanging.
const PATIENCE: Duration = Duration::from_millis(1_000);
/// Readers that wait at once; beyond, they are told that they may see an old state.
const READERS_MAX: usize = 16_384;
/// Waits between questions while none is answered.
const RETRY_FLOOR: Duration = Duration::from_millis(50);
const RETRY_CEILING: Duration = Duration::from_secs(1);

/// The mirror may not show the newest commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store's newest state is not known for {} ms", self.age.as_millis())]
pub struct Stale {
    /// How long ago the mirror was last known to show everything.
    pub age: Duration,
}

/// Those who wait to hear that the mirror is not behind.
pub(crate) struct Freshness {
    // Leaf data: held for a few instructions.
    state: Mutex<State>,
    came: Notify,
}

struct State {
    waiting: Vec<oneshot::Sender<()>>,
    /// When the last question that was answered was asked.
    known_at: Instant,
    /// How old what was loaded was then.
    older: Duration,
    /// Since when questions stay without an answer.
    silent_since: Option<Instant>,
}

impl Freshness {
    /// The mirror has just been loaded.
    pub(crate) fn new() -> Self {
        let state = State { waiting: Vec::new(), known_at: Instant::now(), older: Duration::ZERO, silent_since: None };
        Self { state: Mutex::new(state), came: Notify::new() }
    }

    /// What was loaded was `age` old.
    pub(crate) fn is_older(&self, age: Duration) {
        self.lock().older = age;
    }

    /// Since when questions stay without an answer; nothing while they do not.
    pub(crate) fn silent_for(&self) -> Duration {
        self.lock().silent_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Wait until the mirror shows all that was committed before this was called.
    pub(crate) async fn wait(&self) -> Result<(), Stale> {
        let told = {
            let mut state = self.lock();
            let hopeless = state.silent_since.is_some_and(|since| since.elapsed() > PATIENCE);
            if hopeless || state.waiting.len() >= READERS_MAX {
                return Err(state.stale());
            }
            let (tell, told) = oneshot::channel();
            state.waiting.push(tell);
            told
        };
        self.came.notify_one();
        match tokio::time::timeout(PATIENCE, told).await {
            Ok(Ok(())) => Ok(()),
            // Out of time, or the store has ended.
            Ok(Err(_)) | Err(_) => Err(self.lock().stale()),
        }
    }

    /// Ask for those who wait, until shutdown.
    pub(crate) async fn serve(self: Arc<Self>, mirror: Arc<Mirror>, shutdown: Shutdown) {
        while shutdown.unless(self.came.notified()).await.is_some() {
            let asked_at = Instant::now();
            let waiting = std::mem::take(&mut self.lock().waiting);
            if waiting.is_empty() {
                continue;
            }
            if shutdown.unless(self.ask(&mirror)).await != Some(true) {
                return;
            }
            {
                let mut state = self.lock();
                (state.known_at, state.older, state.silent_since) = (asked_at, Duration::ZERO, None);
            }
            for reader in waiting {
                // One that no longer waits is no error.
                let _ = reader.send(());
            }
        }
    }

    /// Asks until there is an answer and the mirror shows it. False: it never will.
    async fn ask(&self, mirror: &Mirror) -> bool {
        let mut backoff = Backoff::new(RETRY_FLOOR, RETRY_CEILING);
        self.lock().silent_since = Some(Instant::now());
        loop {
            // Looked at anew each time: the store may move to another one.
            let engine = mirror.engine();
            let Some(question) = engine.newest() else { return true };
            match question.await {
                Ok(newest) => return mirror.reached(newest).await.is_ok(),
                Err(error) => {
                    tracing::debug!(error = base::errors::chain(&error), "how far the store is, is not known");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn stale(&self) -> Stale {
        Stale { age: self.known_at.elapsed().saturating_add(self.older) }
    }
}
