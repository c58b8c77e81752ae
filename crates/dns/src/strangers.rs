//! Strangers who ask for whole zones: each is logged once in a while, however often it asks.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::name::Name;

/// A stranger is logged again after this time.
const SILENCE: Duration = Duration::from_secs(3600);
/// Strangers remembered at once; while so many are, further ones are counted but not logged.
const STRANGERS_MAX: usize = 1024;

/// Whom we have logged, and when.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    logged: Mutex<HashMap<IpAddr, Instant>>,
}

impl Strangers {
    /// Logs a stranger, unless that was done lately.
    pub(crate) fn note(&self, client: IpAddr, zone: &[u8]) {
        if self.is_news(client, Instant::now()) {
            let zone = Name::from_wire(zone).map(|name| name.to_string()).unwrap_or_default();
            tracing::warn!(%client, zone, "refused a zone transfer; further ones of this client are counted, and logged again in an hour");
        }
    }

    fn is_news(&self, client: IpAddr, now: Instant) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.get(&client).is_some_and(|at| now.duration_since(*at) < SILENCE) {
            return false;
        }
        if logged.len() >= STRANGERS_MAX {
            logged.retain(|_, at| now.duration_since(*at) < SILENCE);
            if logged.len() >= STRANGERS_MAX {
                return false;
            }
        }
        logged.insert(client, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_news_once_an_hour_and_there_is_an_end() {
        let (strangers, start) = (Strangers::default(), Instant::now());
        let client = |number: u32| IpAddr::from(number.to_be_bytes());
        assert!(strangers.is_news(client(1), start));
        assert!(!strangers.is_news(client(1), start + SILENCE / 2));
        assert!(strangers.is_news(client(1), start + SILENCE));
        let new = (0..5000).filter(|number| strangers.is_news(client(*number), start + SILENCE)).count();
        assert_eq!(new, STRANGERS_MAX - 1);
        assert!(strangers.is_news(client(9999), start + SILENCE * 2));
    }
}
