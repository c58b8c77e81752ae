//! Virtual time as a wall clock: the runtime's paused clock, counted from a day in 2026.

use std::time::Duration;

use base::clock::{Clock, Sleep};
use tokio::time::Instant;

/// When every story begins, milliseconds since the Unix epoch.
const EPOCH_MS: i64 = 1_767_225_600_000;

/// A wall clock that shows the runtime's time, or that time and some more: machines' clocks are wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VirtualClock {
    begun: Instant,
    ahead_ms: i64,
}

impl VirtualClock {
    /// A clock that shows the beginning of the story now.
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now(), ahead_ms: 0 }
    }

    /// The same, wrong by `ahead_ms`.
    pub(crate) const fn wrong_by(self, ahead_ms: i64) -> Self {
        Self { begun: self.begun, ahead_ms }
    }
}

impl Clock for VirtualClock {
    fn now_ms(&self) -> i64 {
        let passed = i64::try_from(self.begun.elapsed().as_millis()).unwrap_or(i64::MAX);
        EPOCH_MS.saturating_add(passed).saturating_add(self.ahead_ms)
    }

    fn sleep_until(&self, at_ms: i64) -> Sleep<'_> {
        let delay = u64::try_from(at_ms.saturating_sub(self.now_ms())).unwrap_or(0);
        Box::pin(tokio::time::sleep(Duration::from_millis(delay)))
    }
}
