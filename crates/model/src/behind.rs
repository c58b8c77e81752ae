//! How far somebody who follows the store is behind it, in time.
//!
//! A number of changes says little: a thousand are nothing while a datacenter starts a thousand instances, and three are much when nothing else has happened for a
//! minute. So it is noted when the store was first seen at which revision ([`Course`]). Whoever has come to some revision is behind for as long as the
//! store has been further. Somebody who stands still is behind for longer and longer, whether it answers or not.

use std::collections::VecDeque;

/// Moments that are remembered at most; then every other one goes.
const MOMENTS_MAX: usize = 256;

/// When the store was seen to be how far.
#[derive(Debug, Clone, Default)]
pub struct Course {
    /// Milliseconds of a clock that only goes on, and a revision; both grow.
    moments: VecDeque<(u64, u64)>,
}

/// By how much a follower is behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Behind {
    /// For how long the store has been further, milliseconds.
    pub ms: u64,
    /// By how many revisions it is further.
    pub revisions: u64,
}

impl Course {
    /// The store was seen at `revision`, at `now_ms` of a clock that only goes on.
    pub fn note(&mut self, now_ms: u64, revision: u64) {
        if self.moments.back().is_some_and(|(_, known)| *known >= revision) {
            return;
        }
        if self.moments.len() >= MOMENTS_MAX {
            // The oldest stays: it is when whoever is furthest behind was left.
            let mut stays = false;
            self.moments.retain(|_| {
                stays = !stays;
                stays
            });
        }
        self.moments.push_back((now_ms, revision));
    }

    /// How far somebody is behind at `now_ms` who has come to `revision`.
    pub fn behind(&self, now_ms: u64, revision: u64) -> Behind {
        let first = self.moments.iter().find(|(_, seen)| *seen > revision);
        let (Some((since, _)), Some((_, newest))) = (first, self.moments.back()) else { return Behind::default() };
        Behind { ms: now_ms.saturating_sub(*since), revisions: newest.saturating_sub(revision) }
    }

    /// Nobody who is asked about is behind `revision`.
    pub fn forget(&mut self, revision: u64) {
        while self.moments.len() > 1 && self.moments.front().is_some_and(|(_, seen)| *seen <= revision) {
            self.moments.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_that_stands_still_is_behind_for_as_long_as_others_went_on() {
        let mut course = Course::default();
        assert_eq!(course.behind(5_000, 0), Behind::default(), "nothing is known");
        for (at, revision) in [(1_000, 10), (2_000, 10), (3_000, 12), (4_000, 15)] {
            course.note(at, revision);
        }
        assert_eq!(course.behind(4_500, 15), Behind::default());
        assert_eq!(course.behind(4_500, 99), Behind::default(), "it is ahead of what was seen");
        assert_eq!(course.behind(4_500, 14), Behind { ms: 500, revisions: 1 });
        assert_eq!(course.behind(4_500, 10), Behind { ms: 1_500, revisions: 5 });
        assert_eq!(course.behind(9_000, 9), Behind { ms: 8_000, revisions: 6 });
        // A store in which nothing happens leaves nobody behind.
        assert_eq!(course.behind(900_000, 15), Behind::default());
        course.forget(12);
        assert_eq!(course.behind(4_500, 12), Behind { ms: 500, revisions: 3 });
        course.forget(99);
        assert_eq!(course.behind(4_500, 14), Behind { ms: 500, revisions: 1 }, "the newest is not forgotten");
    }

    proptest! {
        #[test]
        fn however_long_it_lasts_the_beginning_is_known(steps in prop::collection::vec((1..3_000_u64, 0..9_u64), 1..2_000)) {
            let (mut course, mut now, mut revision, mut left) = (Course::default(), 0, 1, None);
            course.note(now, revision);
            for (passed, changes) in steps {
                now += passed;
                revision += changes;
                course.note(now, revision);
                course.forget(1);
                if revision > 1 && left.is_none() {
                    left = Some(now);
                }
                prop_assert!(course.moments.len() <= MOMENTS_MAX);
                prop_assert_eq!(course.behind(now, revision), Behind::default());
            }
            // Whoever stopped at the first revision has been behind since the store left it.
            let wanted = left.map_or(Behind::default(), |left| Behind { ms: now - left, revisions: revision - 1 });
            prop_assert_eq!(course.behind(now, 1), wanted);
        }
    }
}
