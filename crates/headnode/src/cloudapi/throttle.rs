//! A token bucket per account and group of endpoints.
//!
//! Buckets are kept in memory of this process; full ones are forgotten, so that the table is as large as the number of
//! accounts that are busy now.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use model::id::AccountId;

/// Most buckets at once: full ones are dropped before, and beyond it everybody shares the fate of a new caller.
const BUCKETS_MAX: usize = 65_536;

/// How fast requests may come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Requests at once.
    pub burst: u32,
    /// Requests a second in the long run.
    pub per_second: f64,
}

impl Default for Rate {
    /// Enough for a person and a Terraform run; not for a loop without a pause.
    fn default() -> Self {
        Self { burst: 200, per_second: 50.0 }
    }
}

/// Endpoints that are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Group {
    Account,
    Audit,
    Changefeed,
    Config,
    Datacenter,
    Datasets,
    Keys,
    Machines,
    Monitor,
    Networks,
    Nics,
    Packages,
    Policies,
    Roles,
    Services,
    Users,
    Volumes,
}

pub(crate) struct Throttle {
    rate: Option<Rate>,
    /// Tokens, and when they were counted (milliseconds since 1970). Leaf data: held for a few instructions.
    buckets: Mutex<HashMap<(AccountId, Group), (f64, i64)>>,
}

impl Throttle {
    pub(crate) fn new(rate: Option<Rate>) -> Self {
        Self { rate, buckets: Mutex::default() }
    }

    /// Takes a token; `Err` is the number of seconds after which there is one again.
    pub(crate) fn admit(&self, account: AccountId, group: Group, now_ms: i64) -> Result<(), u64> {
        let Some(rate) = self.rate else {
            return Ok(());
        };
        let burst = f64::from(rate.burst.max(1));
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = |tokens: f64, at: i64| {
            let seconds = now_ms.saturating_sub(at).max(0) as f64 / 1_000.0;
            (tokens + seconds * rate.per_second).min(burst)
        };
        if buckets.len() >= BUCKETS_MAX {
            buckets.retain(|_, (tokens, at)| filled(*tokens, *at) < burst);
        }
        let bucket = buckets.entry((account, group)).or_insert((burst, now_ms));
        let tokens = filled(bucket.0, bucket.1);
        if tokens < 1.0 {
            *bucket = (tokens, now_ms);
            let wait = (1.0 - tokens) / rate.per_second.max(f64::MIN_POSITIVE);
            return Err(wait.ceil().clamp(1.0, 3_600.0) as u64);
        }
        *bucket = (tokens - 1.0, now_ms);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_then_a_steady_rate_for_each() {
        let throttle = Throttle::new(Some(Rate { burst: 3, per_second: 2.0 }));
        let (ana, bob) = (AccountId::random(), AccountId::random());
        for _ in 0..3 {
            assert_eq!(throttle.admit(ana, Group::Machines, 0), Ok(()));
        }
        assert_eq!(throttle.admit(ana, Group::Machines, 0), Err(1));
        assert_eq!(throttle.admit(ana, Group::Keys, 0), Ok(()));
        assert_eq!(throttle.admit(bob, Group::Machines, 0), Ok(()));
        assert_eq!(throttle.admit(ana, Group::Machines, 500), Ok(()));
        assert_eq!(throttle.admit(ana, Group::Machines, 500), Err(1));
    }
}
