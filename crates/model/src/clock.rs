//! How far a machine's clock is from the headnode's, as the machine finds out with each report.
//!
//! ```text
//!  headnode's clock   ────── received ─── answered ──────►
//!                           ╱                     ╲
//!  machine's clock    ── sent ─────────────────── heard ──►
//! ```
//! The machine knows how long it waited, the headnode says how long of that it worked, and the rest was spent on the way, both ways
//! together. How it was shared between the two nobody can tell, so what is found is a middle and how far from it the truth may be:
//! half of what was spent on the way. A slow wire makes a reading vague and never wrong. A [`Gauge`] therefore keeps a sharp reading
//! until a sharper one comes, or one that contradicts it: then a clock was set.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{server::Server, time::Timestamp};

/// A clock that is surely further off than this is told of, milliseconds: log lines of two machines cannot be put in order any more.
pub const OFF_MS: u64 = 1_000;

/// A clock that is this far off makes new certificates look as if they were not valid yet, milliseconds: they begin a day before they
/// are made.
pub const CERTIFICATES_MS: u64 = 86_400_000;

/// A clock that nobody steers gains or loses at most this part of the time that passes: 500 in a million, beyond what kernels
/// correct.
const DRIFT_PART: u128 = 2_000;

/// What one report and its answer tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// What the machine's clock said when the answer was there.
    pub heard: Timestamp,
    /// How long the machine waited for it, by a clock that nobody sets.
    pub waited: Duration,
    /// What the headnode's clock said when it had the report.
    pub received: Timestamp,
    /// What it said when it answered.
    pub answered: Timestamp,
}

/// A machine's clock beside the headnode's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReading {
    /// How far it is ahead, milliseconds; negative when it is behind.
    pub ahead_ms: i64,
    /// How far the truth may be from that, either way, milliseconds.
    pub within_ms: u64,
}

/// The sharpest reading a machine has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gauge {
    /// The reading, and when it was taken by a clock that nobody sets.
    held: Option<(ClockReading, Duration)>,
}

impl Exchange {
    /// What follows; `None` when the headnode's clock was set meanwhile, so that nothing does.
    pub fn reading(self) -> Option<ClockReading> {
        let waited = i64::try_from(self.waited.as_millis()).ok()?;
        let on_the_way = waited.checked_sub(self.answered.0.checked_sub(self.received.0)?)?;
        if self.answered < self.received || on_the_way < -1 {
            return None;
        }
        let sent = i128::from(self.heard.0) - i128::from(waited);
        let twice = sent - i128::from(self.received.0) + i128::from(self.heard.0) - i128::from(self.answered.0);
        // All four are cut to milliseconds.
        let within_ms = on_the_way.max(0).unsigned_abs().div_ceil(2) + 1;
        Some(ClockReading { ahead_ms: i64::try_from(twice / 2).ok()?, within_ms })
    }
}

impl ClockReading {
    /// How far off it is at least, milliseconds.
    pub const fn surely_off_ms(self) -> u64 {
        self.ahead_ms.unsigned_abs().saturating_sub(self.within_ms)
    }

    /// Whether it is surely further off than [`OFF_MS`].
    pub const fn is_off(self) -> bool {
        self.surely_off_ms() > OFF_MS
    }

    /// Whether it is surely not.
    pub const fn is_right(self) -> bool {
        self.ahead_ms.unsigned_abs().saturating_add(self.within_ms) <= OFF_MS
    }

    /// What to take from the machine's clock to have the headnode's: nothing of one that may be right.
    pub const fn correction_ms(self) -> i64 {
        if self.is_off() { self.ahead_ms } else { 0 }
    }

    fn after(self, passed: Duration) -> Self {
        let drift = u64::try_from(passed.as_millis() / DRIFT_PART).unwrap_or(u64::MAX);
        Self { within_ms: self.within_ms.saturating_add(drift), ..self }
    }

    fn agrees_with(self, other: Self) -> bool {
        self.ahead_ms.abs_diff(other.ahead_ms) <= self.within_ms.saturating_add(other.within_ms)
    }
}

impl Gauge {
    /// Takes in a reading of `now`, by a clock that nobody sets.
    pub fn take(&mut self, reading: ClockReading, now: Duration) {
        let keeps = self.at(now).is_some_and(|held| held.agrees_with(reading) && held.within_ms <= reading.within_ms);
        if !keeps {
            self.held = Some((reading, now));
        }
    }

    /// What is known at `now`.
    pub fn at(&self, now: Duration) -> Option<ClockReading> {
        self.held.map(|(reading, at)| reading.after(now.saturating_sub(at)))
    }
}

/// Whether somebody set a clock, which says that `by_clock_ms` passed, while `passed` did by one that nobody sets: one that is
/// kept right is only made a little faster or slower.
pub fn was_set(by_clock_ms: i64, passed: Duration) -> bool {
    let passed = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX);
    let drift = u64::try_from(u128::from(passed.unsigned_abs()) / DRIFT_PART).unwrap_or(u64::MAX);
    by_clock_ms.abs_diff(passed) > OFF_MS.saturating_add(drift)
}

/// What the record of a server should say of its clock ([`Server::clock_ahead_ms`]) when it reports `reading`: that it is off while it
/// surely is, nothing once it is surely right, and what it said before in between or where the difference is not worth a write.
pub fn noted(server: &Server, reading: Option<ClockReading>) -> Option<i64> {
    let known = server.clock_ahead_ms;
    let Some(reading) = reading else { return known };
    let is_close = |known: i64| {
        let apart = known.abs_diff(reading.ahead_ms);
        apart <= OFF_MS.max(known.unsigned_abs() / 10)
    };
    match known {
        _ if reading.is_right() => None,
        Some(known) if is_close(known) => Some(known),
        _ if reading.is_off() => Some(reading.ahead_ms),
        known => known,
    }
}

/// How far a clock is off, in words.
pub fn words(ahead_ms: i64) -> String {
    let tenths = ahead_ms.unsigned_abs() / 100;
    let seconds = tenths / 10;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    let far = match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}.{} s", tenths % 10),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    };
    format!("{far} {}", if ahead_ms < 0 { "behind" } else { "ahead" })
}

/// How far a clock is off another, in words.
pub fn beside(ahead_ms: i64, other: &str) -> String {
    format!("{}{} {other}", words(ahead_ms), if ahead_ms < 0 { "" } else { " of" })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::ServerId;

    const NOON: Timestamp = Timestamp(1_800_000_000_000);

    /// An exchange with a machine `ahead_ms` ahead.
    fn exchange(ahead_ms: i64, there_ms: u64, works_ms: u64, back_ms: u64) -> Exchange {
        let after = |ms: u64| NOON.plus_millis(ms.cast_signed());
        Exchange {
            heard: after(there_ms + works_ms + back_ms).plus_millis(ahead_ms),
            waited: Duration::from_millis(there_ms + works_ms + back_ms),
            received: after(there_ms),
            answered: after(there_ms + works_ms),
        }
    }

    proptest! {
        #[test]
        fn the_truth_is_within_what_is_said(
            ahead in -200_000_000_i64..200_000_000, there in 0_u64..20_000, works in 0_u64..20_000, back in 0_u64..20_000,
        ) {
            let reading = exchange(ahead, there, works, back).reading().expect("nobody set a clock");
            prop_assert!(reading.ahead_ms.abs_diff(ahead) <= reading.within_ms, "{reading:?}");
            prop_assert!(reading.within_ms <= (there + back) / 2 + 2, "how long the headnode worked blurs nothing");
            prop_assert!(!(reading.is_off() && reading.is_right()));
        }

        #[test]
        fn what_is_kept_holds_the_truth_and_only_gets_sharper(
            ahead in -5_000_i64..5_000, ways in proptest::collection::vec((0_u64..3_000, 0_u64..3_000), 1..30),
        ) {
            let (mut gauge, mut now) = (Gauge::default(), Duration::ZERO);
            for (there, back) in ways {
                let before = gauge.at(now);
                let reading = exchange(ahead, there, 5, back).reading().expect("nobody set a clock");
                gauge.take(reading, now);
                let held = gauge.at(now).expect("one was taken");
                prop_assert!(held.ahead_ms.abs_diff(ahead) <= held.within_ms);
                prop_assert!(held.within_ms <= reading.within_ms);
                prop_assert!(before.is_none_or(|before| held.within_ms <= before.within_ms));
                now += Duration::from_secs(5);
            }
        }
    }

    #[test]
    fn a_clock_that_was_set_is_noticed_at_once() {
        let at = Duration::from_secs;
        let mut gauge = Gauge::default();
        gauge.take(exchange(0, 1, 3, 1).reading().unwrap(), at(0));
        gauge.take(exchange(0, 900, 3, 1).reading().unwrap(), at(5));
        assert_eq!(gauge.at(at(5)), Some(ClockReading { ahead_ms: 0, within_ms: 4 }), "the sharp one is kept");
        gauge.take(exchange(-7_000, 900, 3, 1).reading().unwrap(), at(10));
        let behind = gauge.at(at(10)).unwrap();
        assert!(behind.is_off() && behind.ahead_ms < -6_000, "{behind:?}");
        gauge.take(exchange(-7_000, 1, 3, 1).reading().unwrap(), at(15));
        assert_eq!(gauge.at(at(15)).unwrap().ahead_ms, -7_000);
        assert_eq!(gauge.at(at(15)).unwrap().correction_ms(), -7_000);
        // The headnode's clock is set while it works: nothing follows.
        let torn = Exchange { answered: NOON.plus_millis(-9), ..exchange(0, 1, 3, 1) };
        assert_eq!(torn.reading(), None);
        let torn = Exchange { answered: NOON.plus_millis(99_000), ..exchange(0, 1, 3, 1) };
        assert_eq!(torn.reading(), None);
    }

    #[test]
    fn a_clock_that_is_kept_right_was_not_set() {
        let hour = Duration::from_secs(3_600);
        for (by_clock_ms, is_set) in [
            (3_600_000, false),
            (3_602_700, false),
            (3_597_300, false),
            (3_602_900, true),
            (3_597_100, true),
            (-1, true),
        ] {
            assert_eq!(was_set(by_clock_ms, hour), is_set, "{by_clock_ms}");
        }
        assert!(!was_set(-900, Duration::ZERO) && was_set(-259_200_000, Duration::from_secs(3)));
    }

    #[test]
    fn the_record_changes_seldom() {
        let reading = |ahead_ms, within_ms| Some(ClockReading { ahead_ms, within_ms });
        let with = |clock_ahead_ms| Server { clock_ahead_ms, ..Server::new(ServerId::random(), "m", NOON) };
        assert_eq!(noted(&with(None), reading(900, 3)), None);
        assert_eq!(noted(&with(None), reading(1_500, 600)), None, "it may be right");
        assert_eq!(noted(&with(None), reading(-1_500, 3)), Some(-1_500));
        assert_eq!(noted(&with(Some(-1_500)), reading(-1_900, 3)), Some(-1_500), "not worth a write");
        assert_eq!(noted(&with(Some(86_400_000)), reading(86_500_000, 3)), Some(86_400_000));
        assert_eq!(noted(&with(Some(-1_500)), reading(-9_000, 3)), Some(-9_000));
        assert_eq!(noted(&with(Some(-1_500)), reading(-900, 300)), Some(-1_500), "it may still be off");
        assert_eq!(noted(&with(Some(-1_500)), reading(-900, 3)), None);
        assert_eq!(noted(&with(Some(7_000)), None), Some(7_000), "an agent that says nothing");
    }

    #[test]
    fn words_fit_the_size() {
        let told: Vec<String> = [-1_500, 61_000, 3_720_000, -90_000_000].into_iter().map(words).collect();
        assert_eq!(
            (beside(-1_500, "ours"), beside(90, "ours")),
            ("1.5 s behind ours".into(), "0.0 s ahead of ours".into())
        );
        assert_eq!(told, ["1.5 s behind", "1 min 1 s ahead", "1 h 2 min ahead", "1 d 1 h behind"]);
    }
}
