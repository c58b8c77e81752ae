//! The limit on equal answers over UDP: a server that can be made to send much to an address that never asked is a weapon.
//!
//! A fixed table of buckets, chosen by a hash of who asks and what the answer says. A bucket is one number: the time until which
//! what it has let through is paid for. No lock, no growth, nothing to clean up; two that meet in a bucket share it.

use std::{
    hash::{BuildHasher, Hasher},
    net::IpAddr,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use crate::{hash::NameHash, settings::RateLimit};

/// Buckets, of eight bytes each.
const BUCKETS: usize = 1 << 16;
const SECOND_US: u64 = 1_000_000;

/// Answers a second for names below stars, in limits.
const STAR_SHARE: u64 = 16;

/// What an answer says, as far as the limit is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Says<'a> {
    /// What a name has, or that it has nothing of a kind.
    Name(&'a [u8]),
    /// What a star has, for a name that is not there itself: one for all of them too, with room for [`STAR_SHARE`] times as many, since whoever
    /// watches many instances asks for as many names below one.
    Star,
    /// That there is no such name: one for all names, since they are easily invented.
    NoSuchName,
    /// Anything that is wrong.
    Error,
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Send,
    /// Send word that the whole is had over TCP.
    Cut,
    Drop,
}

/// The table.
pub(crate) struct Limiter {
    buckets: Box<[AtomicU64]>,
    hash: NameHash,
    over: AtomicU32,
}

impl Limiter {
    pub(crate) fn new() -> Self {
        let buckets = (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Self { buckets, hash: NameHash::new(), over: AtomicU32::new(0) }
    }

    /// Judges an answer at `now_us`, any clock that only grows.
    pub(crate) fn judge(&self, limit: RateLimit, client: IpAddr, says: Says<'_>, now_us: u64) -> Verdict {
        let share = if says == Says::Star { STAR_SHARE } else { 1 };
        let cost_us = SECOND_US / u64::from(limit.per_second.max(1)) / share;
        let bucket = &self.buckets[self.place(client, says)];
        let paid = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until_us| {
            let until_us = until_us.max(now_us);
            (until_us - now_us < SECOND_US).then_some(until_us + cost_us)
        });
        if paid.is_ok() {
            return Verdict::Send;
        }
        let over = self.over.fetch_add(1, Ordering::Relaxed);
        if limit.slip > 0 && over.is_multiple_of(limit.slip) { Verdict::Cut } else { Verdict::Drop }
    }

    fn place(&self, client: IpAddr, says: Says<'_>) -> usize {
        let mut hasher = self.hash.build_hasher();
        match client {
            IpAddr::V4(v4) => hasher.write(&v4.octets()[..3]),
            IpAddr::V6(v6) => hasher.write(&v6.octets()[..7]),
        }
        match says {
            Says::Name(name) => hasher.write(name),
            Says::NoSuchName => hasher.write_usize(1),
            Says::Error => hasher.write_usize(2),
            Says::Star => hasher.write_usize(3),
        }
        usize::try_from(hasher.finish() % BUCKETS as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_answers_above_the_limit_are_cut_or_dropped_and_others_sent() {
        let (limiter, limit) = (Limiter::new(), RateLimit { per_second: 10, slip: 2 });
        let (near, neighbour, far): (IpAddr, IpAddr, IpAddr) =
            ([192, 0, 2, 1].into(), [192, 0, 2, 200].into(), [198, 51, 100, 1].into());
        let judge = |client, says, now_us| limiter.judge(limit, client, says, now_us);
        for _ in 0..10 {
            assert_eq!(judge(near, Says::Name(b"a"), 5), Verdict::Send);
        }
        let over: Vec<_> = (0..4).map(|_| judge(neighbour, Says::Name(b"a"), 5)).collect();
        assert_eq!(over, [Verdict::Cut, Verdict::Drop, Verdict::Cut, Verdict::Drop]);
        assert_eq!(judge(near, Says::Name(b"b"), 5), Verdict::Send);
        assert_eq!(judge(far, Says::Name(b"a"), 5), Verdict::Send);
        assert_eq!(
            judge(near, Says::Name(b"a"), 100_005),
            Verdict::Send,
            "a tenth of a second later there is one more"
        );
        assert_ne!(judge(near, Says::Name(b"a"), 100_005), Verdict::Send);
        for _ in 0..10 {
            assert_eq!(judge(near, Says::Name(b"a"), 9_000_000), Verdict::Send);
        }
        assert_ne!(judge(near, Says::Name(b"a"), 9_000_000), Verdict::Send);
    }

    #[test]
    fn what_a_star_answers_is_one_for_all_names() {
        let (limiter, limit) = (Limiter::new(), RateLimit { per_second: 10, slip: 0 });
        let client = [192, 0, 2, 1].into();
        let sent = (0..1_000).filter(|_| limiter.judge(limit, client, Says::Star, 0) == Verdict::Send).count();
        assert_eq!(sent, 160);
        assert_eq!(limiter.judge(limit, client, Says::NoSuchName, 0), Verdict::Send);
    }

    #[test]
    fn without_slip_nothing_above_the_limit_is_sent() {
        let (limiter, limit) = (Limiter::new(), RateLimit { per_second: 1, slip: 0 });
        let client = [192, 0, 2, 1].into();
        assert_eq!(limiter.judge(limit, client, Says::Error, 0), Verdict::Send);
        assert!((0..9).all(|_| limiter.judge(limit, client, Says::Error, 0) == Verdict::Drop));
    }
}
