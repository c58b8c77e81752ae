//! What is said while the store has no majority: since when, how old what is shown may be, and who is waited for.
//!
//! Who finds that out is above this crate, which knows no members; here is the shape, and the sentences, so that all doors say the same.

use std::sync::Arc;

use model::{id::ServerId, quorum::majority, time::Timestamp};

use super::Headnodes;

/// The store is read as one of its members holds it, and nothing can be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoMajority {
    /// Since when this headnode has not heard from a majority.
    pub since: Timestamp,
    /// Of when the newest record is that says when it was made: a headnode's beat.
    pub as_of: Option<Timestamp>,
    /// Members with a vote.
    pub voting: usize,
    /// Names of those that answer, or the addresses of those that have none.
    pub answering: Vec<String>,
    /// Those that do not.
    pub missing: Vec<Missing>,
}

/// A member that is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Its headnode's host name, or what the member is called.
    pub name: String,
    /// Where it was looked for.
    pub address: String,
    /// The machine it is on, when it is one of ours.
    pub server: Option<ServerId>,
    /// When that machine's headnode beat last, by its own clock.
    pub last_beat: Option<Timestamp>,
}

impl NoMajority {
    /// How many members have to answer.
    pub fn needed(&self) -> usize {
        majority(self.voting)
    }

    /// All of it in one sentence.
    pub fn for_operators(&self) -> String {
        let (since, count, needed) = (self.since, self.count(), self.needed());
        let waits = match self.missing.as_slice() {
            [] => "they have not agreed on one that leads yet".to_owned(),
            missing => {
                let missing: Vec<String> = missing.iter().map(Missing::words).collect();
                format!("it waits for {}", missing.join(" and "))
            }
        };
        format!("the store has no majority since {since}: {count}, {needed} are needed; {waits}")
    }

    /// What is not a secret of the operators.
    pub fn for_tenants(&self) -> String {
        let (since, count, needed) = (self.since, self.count(), self.needed());
        format!(
            "nothing can be changed since {since}: {count} that keep the records, {needed} are needed; reading goes on"
        )
    }

    fn count(&self) -> String {
        let answering = self.answering.len();
        let verb = if answering == 1 { "answers" } else { "answer" };
        format!("{answering} of {} members {verb}", self.voting)
    }
}

impl Missing {
    fn words(&self) -> String {
        let Self { name, address, last_beat, .. } = self;
        match last_beat {
            _ if name == address => address.clone(),
            Some(beat) => format!("{name} ({address}, last beat {beat})"),
            None => format!("{name} ({address})"),
        }
    }
}

impl Headnodes {
    /// Says that the store lacks a majority, or no more.
    pub fn lack(&self, lack: Option<NoMajority>) {
        self.lacking.send_replace(lack.map(Arc::new));
    }

    /// What the store lacks.
    pub fn lacking(&self) -> Option<Arc<NoMajority>> {
        self.lacking.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_waited_for_is_said_by_name() {
        let missing = |name: &str, last_beat| Missing {
            name: name.to_owned(),
            address: "10.0.0.2:2380".to_owned(),
            server: None,
            last_beat,
        };
        let mut lack = NoMajority {
            since: Timestamp(1_800_000_000_000),
            as_of: None,
            voting: 3,
            answering: vec!["a".to_owned()],
            missing: vec![missing("b", Some(Timestamp(1_800_000_001_000))), missing("10.0.0.2:2380", None)],
        };
        let said = lack.for_operators();
        assert!(
            said.contains("1 of 3 members answers, 2 are needed; it waits for b (10.0.0.2:2380, last beat 20"),
            "{said}"
        );
        assert!(said.ends_with(" and 10.0.0.2:2380"), "{said}");
        let said = lack.for_tenants();
        assert!(said.contains("since 20") && said.contains("1 of 3") && !said.contains("10.0.0.2"), "{said}");
        lack.missing.clear();
        lack.answering.push("b".to_owned());
        assert!(lack.for_operators().contains("2 of 3 members answer, 2 are needed; they have not agreed"));
    }
}
