//! What the monitor has done, and whom it told off.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use model::metrics::{Exposition, Family, Kind, Labels, Value};

/// What was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// That it is there.
    Ping,
    /// Which instances there are.
    Containers,
    /// Which machines there are.
    Machines,
    /// An instance.
    Instance,
    /// A machine.
    Machine,
    /// All instances of a machine.
    Instances,
    /// This headnode.
    Headnode,
}

/// What was refused, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refused {
    /// Somebody who is not let in.
    Stranger,
    /// Something that is not there, or somebody else's.
    NotTheirs,
    /// An instance that does not run.
    NotRunning,
    /// Something for operators.
    NotOperator,
    /// A list that is none.
    BadGroups,
    /// One request too many.
    TooMany,
    /// Of a machine that does not answer.
    Silent,
    /// By another name or method than the monitor has.
    NoSuchPlace,
}

impl Refused {
    /// Whether it befalls those who were not let in: what their certificates say is nobody's word.
    const fn is_of_strangers(self) -> bool {
        matches!(self, Self::Stranger | Self::NoSuchPlace)
    }

    /// Whom it befell: who was let in, by `login`, the one in the certificate; anybody else by where they came from.
    pub fn of<'a>(self, login: Option<&'a str>, from: &'a str) -> &'a str {
        login.filter(|_| !self.is_of_strangers()).unwrap_or(from)
    }
}

const SERVED: [(Served, &str); 7] = [
    (Served::Ping, "ping"),
    (Served::Containers, "containers"),
    (Served::Machines, "machines"),
    (Served::Instance, "instance"),
    (Served::Machine, "machine"),
    (Served::Instances, "instances"),
    (Served::Headnode, "headnode"),
];

const REFUSED: [(Refused, &str); 8] = [
    (Refused::Stranger, "stranger"),
    (Refused::NotTheirs, "not theirs"),
    (Refused::NotRunning, "not running"),
    (Refused::NotOperator, "not operator"),
    (Refused::BadGroups, "bad groups"),
    (Refused::TooMany, "too many"),
    (Refused::Silent, "machine silent"),
    (Refused::NoSuchPlace, "no such place"),
];

const ANSWERS: Family = Family {
    name: "neso_monitor_answers_total",
    kind: Kind::Counter,
    help: "What the container monitor of this headnode answered.",
};

const REFUSALS: Family = Family {
    name: "neso_monitor_refusals_total",
    kind: Kind::Counter,
    help: "What the container monitor of this headnode refused.",
};

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Counters {
    served: [AtomicU64; SERVED.len()],
    refused: [AtomicU64; REFUSED.len()],
}

impl Counters {
    /// Counts an answer.
    pub fn served(&self, what: Served) {
        self.served[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a refusal.
    pub fn refused(&self, why: Refused) {
        self.refused[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// All of it as metrics.
    pub fn tell(&self, text: &mut Exposition) {
        let label = |name: &str, value: &str| Labels::none().with(name, value);
        let read = |counter: &AtomicU64| Value::Count(counter.load(Ordering::Relaxed));
        let served: Vec<_> =
            SERVED.iter().map(|(what, word)| (label("what", word), read(&self.served[*what as usize]))).collect();
        text.family(&ANSWERS, served.iter().map(|(labels, value)| (labels, *value)));
        let refused: Vec<_> =
            REFUSED.iter().map(|(why, word)| (label("why", word), read(&self.refused[*why as usize]))).collect();
        text.family(&REFUSALS, refused.iter().map(|(labels, value)| (labels, *value)));
    }
}

/// The same refusal is logged again after this time, milliseconds.
const SILENCE_MS: i64 = 3_600_000;
/// Refusals of strangers remembered at once, and of watchers; while there are so many, further ones are counted and not logged.
const LOGGED_MAX: usize = 512;

/// What was logged, and when: each refusal once an hour for each watcher. However many strangers there are, there is room for what befalls watchers.
#[derive(Debug, Default)]
pub struct News {
    // Leaf data, both.
    strangers: Mutex<Logged>,
    watchers: Mutex<Logged>,
}

type Logged = HashMap<(Refused, String), i64>;

impl News {
    /// Whether a refusal of `who` has not been logged lately. It counts as logged from now on.
    pub fn is_new(&self, why: Refused, who: &str, now_ms: i64) -> bool {
        let logged = if why.is_of_strangers() { &self.strangers } else { &self.watchers };
        let mut logged = logged.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |at: i64| now_ms.saturating_sub(at) < SILENCE_MS;
        let key = (why, who.to_owned());
        if logged.get(&key).is_some_and(|at| is_recent(*at)) {
            return false;
        }
        if logged.len() >= LOGGED_MAX {
            logged.retain(|_, at| is_recent(*at));
            if logged.len() >= LOGGED_MAX {
                return false;
            }
        }
        logged.insert(key, now_ms);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_under_its_own_word() {
        for (place, (what, _)) in SERVED.iter().enumerate() {
            assert_eq!(*what as usize, place);
        }
        for (place, (why, _)) in REFUSED.iter().enumerate() {
            assert_eq!(*why as usize, place);
        }
        let counters = Counters::default();
        counters.served(Served::Instance);
        counters.refused(Refused::Stranger);
        counters.refused(Refused::Stranger);
        let mut text = Exposition::default();
        counters.tell(&mut text);
        let text = text.into_text();
        assert!(text.contains("neso_monitor_answers_total{what=\"instance\"} 1"), "{text}");
        assert!(text.contains("neso_monitor_refusals_total{why=\"stranger\"} 2"), "{text}");
    }

    #[test]
    fn a_refusal_is_news_once_an_hour_and_there_is_an_end() {
        let news = News::default();
        assert!(news.is_new(Refused::NotTheirs, "bob", 0));
        assert!(!news.is_new(Refused::NotTheirs, "bob", SILENCE_MS - 1));
        assert!(news.is_new(Refused::Stranger, "bob", 1) && news.is_new(Refused::NotTheirs, "ana", 1));
        assert!(news.is_new(Refused::NotTheirs, "bob", SILENCE_MS));
        let new = (0..5_000).filter(|number| news.is_new(Refused::Stranger, &number.to_string(), SILENCE_MS)).count();
        assert!(new < LOGGED_MAX, "{new}");
        assert!(news.is_new(Refused::TooMany, "ana", SILENCE_MS), "strangers do not keep that out");
    }

    #[test]
    fn who_was_not_let_in_does_not_go_by_the_name_they_chose() {
        assert_eq!(Refused::NotTheirs.of(Some("ana"), "192.0.2.1"), "ana");
        assert_eq!(Refused::NotTheirs.of(None, "192.0.2.1"), "192.0.2.1");
        for why in [Refused::Stranger, Refused::NoSuchPlace] {
            assert_eq!(why.of(Some("ana"), "192.0.2.1"), "192.0.2.1");
        }
    }
}
