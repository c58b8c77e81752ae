//! Invitations: what lets a machine in that nobody knows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Trait;
use crate::{
    id::{InviteId, ServerId},
    part::Digest,
    time::Timestamp,
};

/// An invitation for one machine. Record of table `invites`. Its token is told once and kept nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// Its name.
    pub id: InviteId,
    /// SHA-256 of the token, lower-case hex.
    pub token_sha256: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// From then on it lets nobody in.
    pub expires_at: Timestamp,
    /// Who came with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<ServerId>,
    /// The key it came with, by which it may come again while it has no certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_key: Option<Digest>,
    /// The machine may come with instances of a datacenter that is no more.
    #[serde(default)]
    pub adopt: bool,
    /// Traits the machine gets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub traits: BTreeMap<String, Trait>,
    /// Rack the machine gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// Comment the machine gets.
    #[serde(default)]
    pub comments: String,
}
