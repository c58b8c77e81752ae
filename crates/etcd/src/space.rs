//! Room kept back, so that a full etcd still deletes.
//!
//! When a member's file has reached its quota, etcd takes no write any more, a deletion among ours neither, because each of our commits writes its
//! mark; nothing can be cleared away then but by hand. So commits stop before that, at the quota less a *reserve*: all but those that may use it.
//!
//! What counts is the file's size and what is free in it: a file does not grow while freed pages are there to be used. Sizes are asked for when they are
//! some seconds old, or when we have written a fair part of the reserve since; other headnodes do the same, and the reserve is far larger than what all of
//! them write in that time.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Sizes older than this are asked for anew before a commit.
const FRESH: Duration = Duration::from_secs(5);
/// While there is no room it is looked more often, but not for every commit.
const FRESH_WHEN_TIGHT: Duration = Duration::from_millis(500);
/// So is it after this part of the reserve has been written.
const PART: u64 = 16;

/// How large members' files may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The members' `--quota-backend-bytes`.
    pub quota_bytes: u64,
    /// Kept back of it.
    pub reserve_bytes: u64,
}

impl Room {
    /// Whether there is room for what may not use the reserve, in a file of `size` bytes of which `used` are in use.
    pub fn is_left(self, size: u64, used: u64) -> bool {
        let soft = self.quota_bytes.saturating_sub(self.reserve_bytes);
        // Values of more than a page need pages in a row, so not all that is free can be used.
        size < soft || size.saturating_sub(used) > self.reserve_bytes
    }
}

pub(crate) struct Space {
    room: Option<Room>,
    // Leaf data: read and replaced in a few instructions.
    measured: Mutex<Measured>,
}

#[derive(Clone, Copy)]
struct Measured {
    at: Option<Instant>,
    tight: bool,
    written: u64,
}

/// What is to be done before a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// Commit.
    Go,
    /// Ask for the size.
    Measure,
    /// There is no room.
    Full,
}

impl Space {
    pub(crate) fn new(room: Option<Room>) -> Self {
        Self { room, measured: Mutex::new(Measured { at: None, tight: false, written: 0 }) }
    }

    /// What to do before a commit of `bytes` that may not use the reserve.
    pub(crate) fn before(&self, bytes: u64) -> Before {
        let Some(room) = self.room else { return Before::Go };
        self.with(|measured| {
            let fresh = if measured.tight { FRESH_WHEN_TIGHT } else { FRESH };
            let old = measured.at.is_none_or(|at| at.elapsed() > fresh);
            let much = !measured.tight && measured.written + bytes > room.reserve_bytes / PART && measured.written > 0;
            match (old || much, measured.tight) {
                (true, _) => Before::Measure,
                (false, true) => Before::Full,
                (false, false) => Before::Go,
            }
        })
    }

    /// A member's file has `size` bytes, of which `used` are in use. Whether there is room.
    pub(crate) fn measure(&self, size: u64, used: u64) -> bool {
        let tight = self.room.is_some_and(|room| !room.is_left(size, used));
        self.with(|measured| {
            if tight != measured.tight {
                tracing::warn!(
                    size,
                    used,
                    "{}",
                    if tight { "etcd is full but for the reserve" } else { "etcd has room again" }
                );
            }
            *measured = Measured { at: Some(Instant::now()), tight, written: 0 };
        });
        !tight
    }

    /// `bytes` were written.
    pub(crate) fn wrote(&self, bytes: u64) {
        self.with(|measured| measured.written = measured.written.saturating_add(bytes));
    }

    fn with<T>(&self, change: impl FnOnce(&mut Measured) -> T) -> T {
        change(&mut self.measured.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const ROOM: Room = Room { quota_bytes: 100 * MIB, reserve_bytes: 20 * MIB };

    #[test]
    fn room_is_what_is_not_reached_or_is_free_within() {
        for (size, used, left) in [
            (0, 0, true),
            (79, 79, true),
            (80, 80, false),
            (80, 61, false),
            (81, 60, true),
            (99, 99, false),
            (120, 90, true),
        ] {
            assert_eq!(ROOM.is_left(size * MIB, used * MIB), left, "{size} {used}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn sizes_are_asked_for_when_they_are_old_or_much_was_written() {
        assert_eq!(Space::new(None).before(u64::MAX), Before::Go);
        let space = Space::new(Some(ROOM));
        assert_eq!(space.before(1), Before::Measure, "nothing is known");
        assert!(space.measure(10 * MIB, 10 * MIB));
        assert_eq!(space.before(MIB), Before::Go);
        space.wrote(2 * MIB);
        assert_eq!(space.before(1), Before::Measure, "much was written");
        assert!(!space.measure(90 * MIB, 90 * MIB));
        assert_eq!(space.before(1), Before::Full);
        space.wrote(5 * MIB);
        assert_eq!(space.before(1), Before::Full, "what uses the reserve does not make everybody ask");
        tokio::time::sleep(FRESH_WHEN_TIGHT * 2).await;
        assert_eq!(space.before(1), Before::Measure);
        assert!(space.measure(90 * MIB, 30 * MIB));
        assert_eq!(space.before(1), Before::Go);
        tokio::time::sleep(FRESH * 2).await;
        assert_eq!(space.before(1), Before::Measure, "it is old");
    }
}
