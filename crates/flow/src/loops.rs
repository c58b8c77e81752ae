//! What must stay true: named passes on a timer and on a nudge.
//!
//! A pass takes no input: it looks at intent and fact and closes the gap, so it may run twice, late, or after a crash. A nudge says "look
//! now" and nothing else; many nudges during one pass make one more pass. Passes of one loop never overlap. A loop that fails is
//! tried again at its period, its last error and its age stay readable.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base::{clock::Clock, shutdown::Shutdown};
use serde::Serialize;
use store::BoxFuture;
use tokio::sync::Notify;

/// One loop.
pub trait Loop: Send + Sync + 'static {
    /// Its name: what it keeps true.
    fn name(&self) -> &'static str;
    /// Longest time between the end of a pass and the next.
    fn period(&self) -> Duration;
    /// Longest time a pass may take; after that it is dropped and counts as failed.
    fn deadline(&self) -> Duration {
        Duration::from_secs(300)
    }
    /// Look, and close the gap. The text says what was done ("3 flows trimmed"), empty when there was nothing to do; the error's text why not.
    fn pass(&self) -> BoxFuture<'_, Result<String, Box<dyn std::error::Error + Send + Sync>>>;
}

/// Wakes one loop. Cheap to clone.
#[derive(Clone)]
pub struct Nudge {
    notify: Arc<Notify>,
}

impl Nudge {
    /// Look now.
    pub fn nudge(&self) {
        self.notify.notify_one();
    }
}

/// How a loop fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoopStatus {
    /// Its name.
    pub name: &'static str,
    /// Longest time between passes, in milliseconds.
    pub period_ms: u64,
    /// When the pass that runs now began; milliseconds since the epoch.
    pub running_since: Option<i64>,
    /// When the last good pass ended; its age is how long this may have been untrue. Milliseconds since the epoch.
    pub last_success_at: Option<i64>,
    /// What the last good pass that did something did.
    pub last_summary: Option<String>,
    /// Why the last pass failed; `None` when it did not.
    pub last_error: Option<String>,
    /// Passes since the start.
    pub passes: u64,
    /// Failed passes since the last good one.
    pub failures: u64,
}

/// All loops of a process.
pub struct Loops {
    clock: Arc<dyn Clock>,
    loops: Vec<Member>,
    board: Board,
}

struct Member {
    body: Arc<dyn Loop>,
    notify: Arc<Notify>,
}

/// Where the loops' status can be read while they run. Cheap to clone.
#[derive(Clone, Default)]
pub struct Board {
    // Leaf data: each loop writes its own line.
    lines: Arc<Mutex<BTreeMap<&'static str, LoopStatus>>>,
}

impl Board {
    /// Every loop, by name.
    pub fn status(&self) -> Vec<LoopStatus> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn change(&self, name: &'static str, change: impl FnOnce(&mut LoopStatus)) {
        if let Some(line) = self.lines.lock().unwrap_or_else(PoisonError::into_inner).get_mut(name) {
            change(line);
        }
    }
}

impl Loops {
    /// No loop yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, loops: Vec::new(), board: Board::default() }
    }

    /// Add a loop; the nudge wakes it.
    ///
    /// # Panics
    /// If a loop of that name was added before.
    pub fn add(&mut self, body: impl Loop) -> Nudge {
        let status = LoopStatus {
            name: body.name(),
            period_ms: u64::try_from(body.period().as_millis()).unwrap_or(u64::MAX),
            running_since: None,
            last_success_at: None,
            last_summary: None,
            last_error: None,
            passes: 0,
            failures: 0,
        };
        let before = self.board.lines.lock().unwrap_or_else(PoisonError::into_inner).insert(body.name(), status);
        assert!(before.is_none(), "two loops are named `{}`", body.name());
        let notify = Arc::new(Notify::new());
        self.loops.push(Member { body: Arc::new(body), notify: notify.clone() });
        Nudge { notify }
    }

    /// Where to read how they fare.
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Run all until shutdown. Each begins with a pass.
    pub async fn run(self, shutdown: Shutdown) {
        let mut tasks = Vec::new();
        for member in self.loops {
            let (clock, board, shutdown) = (self.clock.clone(), self.board.clone(), shutdown.clone());
            tasks.push(base::task::spawn(member.body.name(), keep(member, clock, board, shutdown)));
        }
        for task in tasks {
            // A loop that panicked was logged by its task; the others go on.
            let _ = task.await;
        }
    }
}

async fn keep(member: Member, clock: Arc<dyn Clock>, board: Board, shutdown: Shutdown) {
    let name = member.body.name();
    loop {
        board.change(name, |line| line.running_since = Some(clock.now_ms()));
        let deadline = member.body.deadline();
        let Some(outcome) = shutdown.unless(tokio::time::timeout(deadline, member.body.pass())).await else { return };
        let outcome = match outcome {
            Ok(Ok(summary)) => Ok(summary),
            Ok(Err(error)) => Err(base::errors::chain(error.as_ref())),
            Err(_) => Err(format!("the pass took longer than {} s", deadline.as_secs())),
        };
        if let Err(why) = &outcome {
            tracing::warn!(name, why, "a loop's pass failed");
        }
        let now = clock.now_ms();
        board.change(name, |line| line.passed(outcome, now));
        tokio::select! {
            biased;
            () = shutdown.wait() => return,
            () = member.notify.notified() => {}
            () = clock.sleep(member.body.period()) => {}
        }
    }
}

impl LoopStatus {
    fn passed(&mut self, outcome: Result<String, String>, now: i64) {
        self.running_since = None;
        self.passes += 1;
        match outcome {
            Ok(summary) => {
                self.last_success_at = Some(now);
                self.last_error = None;
                self.failures = 0;
                if !summary.is_empty() {
                    self.last_summary = Some(summary);
                }
            }
            Err(why) => {
                self.last_error = Some(why);
                self.failures += 1;
            }
        }
    }
}
