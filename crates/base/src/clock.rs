//! Time as something a caller is given. Production reads the machine's clock; tests and the simulation turn the hands
//! themselves, and everything that waits on a [`ManualClock`] wakes exactly when they do.

use std::{future::Future, pin::Pin, time::Duration};

use tokio::sync::watch;

/// A future that ends when a clock reaches a time.
pub type Sleep<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// What time it is, and how to wait for a later one.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> i64;

    /// Ends when [`Clock::now_ms`] is at least `at_ms`; at once when it already is.
    fn sleep_until(&self, at_ms: i64) -> Sleep<'_>;

    /// Ends after `delay`.
    fn sleep(&self, delay: Duration) -> Sleep<'_> {
        let delay_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        self.sleep_until(self.now_ms().saturating_add(delay_ms))
    }
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the door to the machine's clock")]
    fn now_ms(&self) -> i64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn sleep_until(&self, at_ms: i64) -> Sleep<'_> {
        let delay = Duration::from_millis(u64::try_from(at_ms.saturating_sub(self.now_ms())).unwrap_or(0));
        Box::pin(tokio::time::sleep(delay))
    }
}

/// A clock whose hands are turned by its owner.
#[derive(Debug)]
pub struct ManualClock {
    now_ms: watch::Sender<i64>,
}

impl ManualClock {
    /// A clock that stands at `now_ms`.
    pub fn new(now_ms: i64) -> Self {
        Self { now_ms: watch::Sender::new(now_ms) }
    }

    /// Move forward by `step`; whoever waited for a time that is now past wakes.
    pub fn advance(&self, step: Duration) {
        let step_ms = i64::try_from(step.as_millis()).unwrap_or(i64::MAX);
        self.now_ms.send_modify(|now| *now = now.saturating_add(step_ms));
    }

    /// Put the hands at `now_ms`, also backwards: machines' clocks do that.
    pub fn set(&self, now_ms: i64) {
        self.now_ms.send_replace(now_ms);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        *self.now_ms.borrow()
    }

    fn sleep_until(&self, at_ms: i64) -> Sleep<'_> {
        let mut now = self.now_ms.subscribe();
        Box::pin(async move {
            // The sender lives in `self`, which this future borrows, so the channel cannot close.
            let _ = now.wait_for(|now| *now >= at_ms).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn manual_clock_wakes_sleepers_when_turned() {
        let clock = Arc::new(ManualClock::new(1_000));
        let sleeper = crate::task::spawn("sleeper", {
            let clock = clock.clone();
            async move {
                clock.sleep(Duration::from_millis(500)).await;
                clock.now_ms()
            }
        });
        tokio::task::yield_now().await;
        clock.advance(Duration::from_millis(499));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_millis(1));
        assert_eq!(sleeper.await.unwrap(), 1_500);
    }
}
