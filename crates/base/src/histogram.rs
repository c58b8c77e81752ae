//! How long things take: counts of durations by upper bounds, added up without a lock and read whenever somebody likes.
//!
//! The bounds are the same for all, from what memory answers to what nobody waits for, so that any two can be laid side by side.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper bounds, microseconds.
pub const BOUNDS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000,
    30_000_000,
];

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Histogram {
    /// By the first bound that a duration does not exceed; the last place counts what exceeds all.
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

/// What a histogram has counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Upper bounds, microseconds, and how many were not longer.
    pub up_to: Vec<(u64, u64)>,
    /// All of them.
    pub count: u64,
    /// Together, microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// One more.
    pub fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let place = BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(BOUNDS_US.len());
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// What there is so far.
    pub fn read(&self) -> Reading {
        let mut count = 0;
        let mut up_to = Vec::with_capacity(BOUNDS_US.len());
        for (place, counter) in self.counts.iter().enumerate() {
            count += counter.load(Ordering::Relaxed);
            up_to.extend(BOUNDS_US.get(place).map(|bound| (*bound, count)));
        }
        Reading { up_to, count, sum_us: self.sum_us.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_counted_below_every_bound_it_does_not_exceed() {
        assert!(BOUNDS_US.is_sorted());
        let histogram = Histogram::default();
        for us in [0, 1_000, 1_001, 40_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let read = histogram.read();
        assert_eq!((read.count, read.sum_us), (4, 40_002_001));
        assert_eq!(read.up_to[..4], [(500, 1), (1_000, 2), (2_500, 3), (5_000, 3)]);
        assert_eq!(read.up_to.last(), Some(&(30_000_000, 3)), "what exceeds all bounds is in the count alone");
    }
}
