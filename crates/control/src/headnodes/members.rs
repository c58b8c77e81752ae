//! Who keeps the store, as the control plane sees it.
//!
//! While there is one headnode its store is a file; with several it is kept by etcd members, one beside each headnode. What has to be
//! done to them is a handful of verbs that a flow's steps call ([`Members`]). The verbs are carried out above this crate, which knows
//! no etcd; here are their shape and the rules that need no member to decide ([`Cluster::faults_tolerated`]).
//!
//! Every verb may be repeated: it looks at what is first, and does what is missing.

use model::{id::ServerId, quorum::majority};
use store::BoxFuture;

/// Members as one verb after the other changes them.
pub trait Members: Send + Sync + 'static {
    /// Where the store is now.
    fn kept_in(&self) -> KeptIn;

    /// Whether this headnode could have a member: the program is installed and new enough, and the member's addresses are free or its own.
    fn check(&self) -> BoxFuture<'_, Result<(), MembersError>>;

    /// Moves the store into etcd, whose first member runs beside this headnode. Reads go on, writes wait as long as the answer says. Does nothing
    /// when it is there already.
    fn move_store(&self) -> BoxFuture<'_, Result<Moved, MembersError>>;

    /// Makes room for a member beside the headnode on `new.server`, which gets everything and has no vote yet. The answer is what that headnode has to
    /// know to start it; once it was added, the answer to the same question is the same.
    fn add_learner(&self, new: NewMember) -> BoxFuture<'_, Result<Invitation, MembersError>>;

    /// Gives the member on `server` a vote, if it has caught up.
    fn promote(&self, server: ServerId) -> BoxFuture<'_, Result<Promotion, MembersError>>;

    /// Takes the member on `server` out, whether it lives or not. One that is not known is out already.
    fn remove(&self, server: ServerId) -> BoxFuture<'_, Result<(), MembersError>>;

    /// How the members are.
    fn status(&self) -> BoxFuture<'_, Result<Cluster, MembersError>>;
}

/// Where the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptIn {
    /// In a file of this headnode alone.
    File,
    /// In members that headnodes run.
    Members,
    /// In a cluster that somebody else keeps: headnodes come and go, and no member with them.
    ElsewhereKept,
}

/// What moving the store has cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Records that were moved; none when the store was there already.
    pub records: u64,
    /// How long writes waited, ms.
    pub pause_ms: u64,
}

/// A member to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMember {
    /// The machine it is to run on.
    pub server: ServerId,
    /// `HOST:PORT` for headnodes.
    pub client: String,
    /// `HOST:PORT` for other members.
    pub peer: String,
}

/// What a headnode has to know to start its member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// The member's name: its server's id.
    pub name: String,
    /// Keeps members of other clusters out.
    pub token: String,
    /// The members to begin with, it among them: `NAME=URL,…`.
    pub initial_cluster: String,
    /// Where headnodes reach members that vote: URLs.
    pub endpoints: Vec<String>,
}

/// Whether a member got its vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Promotion {
    /// It has it.
    Voting,
    /// Not yet; why, for a person who waits: how far it is.
    NotYet(String),
}

/// How the members are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// All of them, by server.
    pub members: Vec<MemberState>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberState {
    /// The machine it runs on; `None` when it is not one of ours.
    pub server: Option<ServerId>,
    /// Its name.
    pub name: String,
    /// Whether it has a vote.
    pub voting: bool,
    /// URLs for headnodes; none until it was started once.
    pub clients: Vec<String>,
    /// URLs for members.
    pub peers: Vec<String>,
    /// What it said of itself; why it did not, else.
    pub said: Result<MemberFacts, String>,
}

/// What a member says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberFacts {
    /// Of etcd.
    pub version: String,
    /// Whether it leads.
    pub leads: bool,
    /// Its file, bytes.
    pub size_bytes: u64,
    /// Of these in use, bytes.
    pub used_bytes: u64,
    /// Entries of the log it has not applied yet.
    pub behind: u64,
    /// What it complains about: space, or damaged data.
    pub alarms: Vec<String>,
}

impl Cluster {
    /// The member on `server`.
    pub fn on(&self, server: ServerId) -> Option<&MemberState> {
        self.members.iter().find(|member| member.server == Some(server))
    }

    /// Members with a vote.
    pub fn voting(&self) -> usize {
        self.members.iter().filter(|member| member.voting).count()
    }

    /// Members with a vote that answer.
    pub fn well(&self) -> usize {
        self.members.iter().filter(|member| member.voting && member.said.is_ok()).count()
    }

    /// How many of those that are well may be lost and the rest still commits.
    pub fn faults_tolerated(&self) -> usize {
        self.well().saturating_sub(majority(self.voting()))
    }

    /// Whether the rest would still commit after `server`'s member is taken out.
    ///
    /// # Errors
    /// Why not.
    pub fn check_removal(&self, server: ServerId) -> Result<(), MembersError> {
        let Some(gone) = self.on(server).filter(|member| member.voting) else { return Ok(()) };
        if self.voting() == 1 {
            return Err(MembersError::Refused("it keeps the only copy of the store".to_owned()));
        }
        // The removal is a commit of those before it, and what comes next of those after it.
        let well_after = self.well() - usize::from(gone.said.is_ok());
        let (before, after) = (majority(self.voting()), majority(self.voting() - 1));
        match self.well() >= before && well_after >= after {
            true => Ok(()),
            false => Err(MembersError::Refused(format!(
                "{} of {} members with a vote answer, and without this one {well_after} of {} would: {after} are needed to commit",
                self.well(),
                self.voting(),
                self.voting() - 1
            ))),
        }
    }
}

/// Why a verb was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum MembersError {
    /// It never will be, as things are.
    #[error("{0}")]
    Refused(String),
    /// It was not this time; a repetition may be luckier.
    #[error("{doing}")]
    Failed {
        /// What was being done.
        doing: String,
        /// Why it did not work.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(members: &[(u128, bool, bool)]) -> Cluster {
        let member = |&(number, voting, well): &(u128, bool, bool)| MemberState {
            server: Some(ServerId::from_random(number)),
            name: number.to_string(),
            voting,
            clients: Vec::new(),
            peers: Vec::new(),
            said: if well { Ok(MemberFacts::default()) } else { Err("no answer".to_owned()) },
        };
        Cluster { members: members.iter().map(member).collect() }
    }

    #[test]
    fn how_many_may_be_lost() {
        for (members, tolerated) in [
            (vec![(1, true, true)], 0),
            (vec![(1, true, true), (2, true, true)], 0),
            (vec![(1, true, true), (2, true, true), (3, true, true)], 1),
            (vec![(1, true, true), (2, true, true), (3, true, false)], 0),
            (vec![(1, true, true), (2, true, false), (3, true, false)], 0),
            (vec![(1, true, true), (2, false, true)], 0),
            ((1..=5).map(|number| (number, true, true)).collect(), 2),
        ] {
            assert_eq!(cluster(&members).faults_tolerated(), tolerated, "{members:?}");
        }
    }

    #[test]
    fn nobody_is_taken_out_whom_the_rest_needs() {
        let out = |members: &[(u128, bool, bool)], number| {
            cluster(members).check_removal(ServerId::from_random(number)).is_ok()
        };
        let three = [(1, true, true), (2, true, true), (3, true, true)];
        assert!(out(&three, 1) && out(&three, 9));
        assert!(!out(&[(1, true, true)], 1), "the last");
        let one_dead = [(1, true, true), (2, true, true), (3, true, false)];
        assert!(out(&one_dead, 3), "the dead one");
        assert!(!out(&one_dead, 1), "a well one, of which the rest is a half");
        assert!(!out(&[(1, true, true), (2, true, false)], 2), "one of two cannot commit");
        assert!(out(&[(1, true, true), (2, true, false), (3, false, true)], 3), "who has no vote");
    }
}
