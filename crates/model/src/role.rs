//! Whether a machine runs a headnode too: what it is told, and what it says of that.
//!
//! As with instances, silence changes nothing: a machine whose document says nothing of a headnode keeps the one it has, or has none.
//! Only [`HeadnodeWanted::Absent`] ends one. A machine takes a role on by files that it fetches over the node link, so the document
//! carries nothing secret; it names by [`HeadnodeRole::since`] which taking-on is meant, so that one that was given up and is
//! asked for again is begun anew.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// What a machine is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadnodeRole {
    /// When it was asked for.
    pub since: Timestamp,
    /// What should be.
    pub wanted: HeadnodeWanted,
    /// Where the others' node links are, `HOST:PORT`, for a machine that knew none but its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headnodes: Vec<String>,
}

/// Whether there should be a headnode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadnodeWanted {
    /// It runs.
    Running,
    /// It ends, and nothing of it is left.
    Absent,
}

/// What a machine says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadnodeFact {
    /// Which role this is about.
    pub since: Timestamp,
    /// How far it is.
    pub state: HeadnodeState,
    /// What stands in the way, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How far a machine is with its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadnodeState {
    /// It fetches what it needs.
    Preparing,
    /// Its files are there, and its processes are started whenever they do not run.
    Ready,
    /// Its processes are being ended, its files removed.
    Leaving,
    /// Nothing is left of it.
    Absent,
}

impl HeadnodeFact {
    /// Whether the role that began at `since` is as far as `state`.
    pub fn is(&self, since: Timestamp, state: HeadnodeState) -> bool {
        self.since == since && self.state == state
    }
}
