//! Waiting longer after each failure: doubling delays with jitter between a floor and a ceiling.

use std::time::Duration;

/// The delays between attempts of one piece of work. Each call of [`Backoff::next_delay`] doubles the range, up to the ceiling.
#[derive(Debug, Clone)]
pub struct Backoff {
    floor: Duration,
    ceiling: Duration,
    failures: u32,
}

impl Backoff {
    /// Delays from `floor` to `ceiling`. A ceiling under the floor counts as the floor.
    pub fn new(floor: Duration, ceiling: Duration) -> Self {
        Self { floor, ceiling: ceiling.max(floor), failures: 0 }
    }

    /// The next delay: between half and the whole of `floor * 2^failures`, never under the floor nor over the ceiling.
    pub fn next_delay(&mut self) -> Duration {
        let full = self.floor.saturating_mul(2_u32.saturating_pow(self.failures.min(30))).min(self.ceiling);
        self.failures = self.failures.saturating_add(1);
        let share = crate::random::bits() % 1024;
        let half = full / 2;
        let jitter = half.mul_f64(f64::from(u32::try_from(share).unwrap_or(0)) / 1024.0);
        (half + jitter).clamp(self.floor, self.ceiling)
    }

    /// Forget the failures: the work succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How many delays were given since the last reset.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delays_stay_between_floor_and_ceiling(floor_ms in 1_u64..1000, more_ms in 0_u64..100_000, calls in 1_usize..80) {
            let (floor, ceiling) = (Duration::from_millis(floor_ms), Duration::from_millis(floor_ms + more_ms));
            let mut backoff = Backoff::new(floor, ceiling);
            for _ in 0..calls {
                let delay = backoff.next_delay();
                prop_assert!(delay >= floor && delay <= ceiling);
            }
            backoff.reset();
            prop_assert!(backoff.next_delay() <= floor.max(Duration::from_millis(1)));
        }
    }

    #[test]
    fn later_delays_are_longer() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(10));
        let early = backoff.next_delay();
        for _ in 0..8 {
            backoff.next_delay();
        }
        assert!(backoff.next_delay() > early * 50);
    }
}
