//! Headnodes, how they are, and changing which there are; the client's verbs for that.

use model::{
    headnode::{Health, Stage},
    id::ServerId,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{Client, Error, FlowView};

/// All headnodes at one moment, as one of them sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadnodesView {
    /// The clock of the headnode that answers.
    pub now: Timestamp,
    /// Where the store is.
    pub store: StoreKept,
    /// In the order of their names.
    pub headnodes: Vec<HeadnodeView>,
    /// Members of the store's cluster that are no headnode's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strangers: Vec<String>,
    /// Why nothing is known of members, when nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members_error: Option<String>,
    /// Whom the store waits for, when it has no majority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<WaitingView>,
    /// How many that keep the store may be lost now, with the rest still able to commit.
    pub may_be_lost: usize,
    /// What their number means, in a sentence.
    pub meaning: String,
    /// The change that is under way, and the last one if it failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<FlowView>,
    /// What to do next; empty when all is well.
    pub advice: Vec<String>,
}

/// The store has no majority: reads are answered, nothing can be changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingView {
    /// Since when the headnode that answers has not heard from one.
    pub since: Timestamp,
    /// Of when the newest beat is that it shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<Timestamp>,
    /// Members with a vote.
    pub voting: usize,
    /// How many have to answer.
    pub needed: usize,
    /// Those that do, by the names of their machines.
    pub answering: Vec<String>,
    /// Those that do not.
    pub missing: Vec<MissingView>,
    /// All of it in a sentence.
    pub text: String,
}

/// A member that is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingView {
    /// Host name of its machine, or what it is called.
    pub name: String,
    /// Where it was looked for, `HOST:PORT`.
    pub address: String,
    /// Its machine, when it is one of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerId>,
    /// When that machine's headnode beat last, by its own clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_beat: Option<Timestamp>,
}

/// Where the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKept {
    /// In a file of the only headnode.
    File,
    /// In members that headnodes run.
    Members,
    /// In a cluster that somebody else keeps.
    Elsewhere,
}

/// One headnode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadnodeView {
    /// Its machine.
    pub id: ServerId,
    /// What that calls itself.
    pub hostname: String,
    /// Whether it is the one that answers.
    pub answers: bool,
    /// Where it is reached, `HOST:PORT`.
    pub cloudapi: String,
    /// Likewise, by nodes.
    pub node_link: String,
    /// Likewise, by operators.
    pub ops: String,
    /// Whether it takes part.
    pub stage: Stage,
    /// Version of its program.
    pub release: String,
    /// How long ago its last beat arrived, milliseconds.
    pub beat_age_ms: Option<u64>,
    /// That is not too long.
    pub fresh: bool,
    /// It has a share of the work.
    pub works: bool,
    /// What it measured of itself.
    pub health: Health,
    /// Its settings say something else than those of the headnode that answers where all must say the same.
    pub settings_differ: bool,
    /// Its member of the store's cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberView>,
}

/// A member of the store's cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// Whether it has a vote.
    pub voting: bool,
    /// Whether it leads.
    pub leads: bool,
    /// Version of etcd.
    pub version: String,
    /// Its file, bytes.
    pub size_bytes: u64,
    /// Of these in use, bytes.
    pub used_bytes: u64,
    /// Entries of the log it has not applied yet.
    pub behind: u64,
    /// What it complains about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<String>,
    /// Why it says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Which headnodes there should be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadnodesChange {
    /// Machines that become one: ids or host names of servers.
    #[serde(default)]
    pub add: Vec<String>,
    /// One that ceases to be one, likewise.
    #[serde(default)]
    pub remove: Option<String>,
    /// An even number is welcome.
    #[serde(default)]
    pub even: bool,
}

impl Client {
    /// All headnodes.
    pub async fn headnodes(&self) -> Result<HeadnodesView, Error> {
        self.get("/v1/headnodes").await
    }

    /// Changes which there are; the flows that do it, in the order in which they run.
    pub async fn change_headnodes(&self, change: &HeadnodesChange) -> Result<Vec<FlowView>, Error> {
        self.post("/v1/headnodes", change).await
    }
}
