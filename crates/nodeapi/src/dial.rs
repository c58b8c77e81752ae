//! Which headnode a node speaks to.
//!
//! A node knows headnodes from its settings and from its document. One of them is its *home*: machines spread evenly over them, each always to
//! the same one. It stays with the one that answered last; when that one fails, the next is tried, in order. Away from home it tries to return
//! after a while, each machine at another time, so that a headnode that comes back is not overrun and gets its share all the same.

use std::time::Duration;

use model::{headnode::first_of, id::ServerId};
// Not the system's: a simulation owns the time.
use tokio::time::Instant;

use crate::client::ADDRESSES_MAX;

/// Away from home for so long, and up to as long again, before it is tried: longer than a headnode takes to start.
const RETURN_SECONDS: u64 = 30;

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Dial {
    configured: Vec<String>,
    /// Whether home is the first of those configured: the headnode on this very machine.
    at_home_here: bool,
    known: Vec<String>,
    machine: Option<ServerId>,
    home: String,
    preferred: String,
    away_since: Option<Instant>,
}

impl Dial {
    /// Knows only what the settings say.
    pub(crate) fn new(configured: Vec<String>, at_home_here: bool) -> Self {
        let home = configured.first().cloned().unwrap_or_default();
        Self {
            configured,
            at_home_here,
            known: Vec::new(),
            machine: None,
            preferred: home.clone(),
            home,
            away_since: None,
        }
    }

    /// Takes over what the document says.
    pub(crate) fn know(&mut self, machine: ServerId, known: &[String]) {
        let known = &known[..known.len().min(ADDRESSES_MAX)];
        if self.machine == Some(machine) && self.known == known {
            return;
        }
        (self.machine, self.known) = (Some(machine), known.to_vec());
        let among = if self.known.is_empty() { &self.configured } else { &self.known };
        if !self.at_home_here
            && let Some(home) = among.get(first_of(among.len(), machine))
        {
            self.home.clone_from(home);
        }
        let all = self.all();
        if !all.contains(&self.preferred) {
            self.preferred.clone_from(&self.home);
        }
        self.away_since = (self.preferred != self.home).then(Instant::now);
    }

    /// Every address once: those of the document, then those of the settings.
    pub(crate) fn all(&self) -> Vec<String> {
        let (first, second) = match self.at_home_here {
            true => (&self.configured, &self.known),
            false => (&self.known, &self.configured),
        };
        let mut all = first.clone();
        all.extend(second.iter().filter(|address| !first.contains(address)).cloned());
        all
    }

    /// The order in which to try them now.
    pub(crate) fn order(&mut self) -> Vec<String> {
        let pause = RETURN_SECONDS + self.machine.map_or(0, |id| first_of(RETURN_SECONDS as usize, id) as u64);
        let is_homeward = self.away_since.is_some_and(|since| since.elapsed() >= Duration::from_secs(pause));
        if is_homeward {
            // Once; if it fails, the same time passes again.
            self.away_since = Some(Instant::now());
        }
        let mut all = self.all();
        let start = if is_homeward { &self.home } else { &self.preferred };
        let at = all.iter().position(|address| address == start).unwrap_or(0);
        all.rotate_left(at);
        if is_homeward && let Some(at) = all.iter().position(|address| *address == self.preferred).filter(|at| *at > 1)
        {
            // The one in use comes right after the one that is tried.
            let preferred = all.remove(at);
            all.insert(1, preferred);
        }
        all
    }

    /// `address` has answered.
    pub(crate) fn answered(&mut self, address: &str) {
        if address == self.home {
            self.away_since = None;
        } else if self.away_since.is_none() {
            self.away_since = Some(Instant::now());
        }
        address.clone_into(&mut self.preferred);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn addresses(count: usize) -> Vec<String> {
        (1..=count).map(|number| format!("10.0.0.{number}:8444")).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn it_stays_with_one_that_answers_and_returns_home_after_a_while() {
        let all = addresses(3);
        let machine = (0..100).map(ServerId::from_random).find(|id| first_of(3, *id) == 1).expect("one of a hundred");
        let mut dial = Dial::new(vec![all[0].clone()], false);
        assert_eq!(dial.order(), [all[0].clone()]);
        dial.answered(&all[0]);
        dial.know(machine, &all);
        assert_eq!(dial.order()[0], all[0], "what works is not left at once");
        tokio::time::advance(Duration::from_secs(2 * RETURN_SECONDS)).await;
        assert_eq!(dial.order(), [&*all[1], &all[0], &all[2]].map(str::to_owned), "home first, then the one in use");
        assert_eq!(dial.order()[0], all[0], "home has not answered yet");
        dial.answered(&all[1]);
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert_eq!(dial.order(), [&*all[1], &all[2], &all[0]].map(str::to_owned));
        // Home dies.
        dial.answered(&all[2]);
        assert_eq!(dial.order()[0], all[2]);
        tokio::time::advance(Duration::from_secs(RETURN_SECONDS - 1)).await;
        assert_eq!(dial.order()[0], all[2]);
        // The one in use is taken out of the datacenter.
        dial.know(machine, &all[..2]);
        assert!(dial.order().iter().all(|address| *address != all[2]));
    }

    #[test]
    fn machines_spread_and_a_headnode_speaks_to_itself() {
        let all = addresses(3);
        let mut homes: BTreeMap<String, usize> = BTreeMap::new();
        for number in 0..300 {
            let mut dial = Dial::new(vec![all[0].clone()], false);
            dial.know(ServerId::from_random(number << 64 | number), &all);
            *homes.entry(dial.home.clone()).or_default() += 1;
        }
        assert!(homes.len() == 3 && homes.values().all(|count| (70..130).contains(count)), "{homes:?}");
        let mut own = Dial::new(vec!["127.0.0.1:8444".to_owned()], true);
        own.know(ServerId::from_random(5), &all);
        assert_eq!(own.order()[0], "127.0.0.1:8444");
        assert_eq!(own.all().len(), 4);
    }
}
