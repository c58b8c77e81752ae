//! What operators do with machines.

use std::collections::{BTreeMap, BTreeSet};

use model::server::{Invite, Ratios, Trait};
use serde::{Deserialize, Serialize};

use crate::{Client, Error, ServerView, client::segment};

/// An invitation to make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewInvite {
    /// Life, hours.
    pub hours: u32,
    /// The machine may come with instances of a datacenter that is no more.
    #[serde(default)]
    pub adopt: bool,
    /// Traits the machine gets.
    #[serde(default)]
    pub traits: BTreeMap<String, Trait>,
    /// Rack the machine gets.
    #[serde(default)]
    pub rack: Option<String>,
    /// Comment the machine gets.
    #[serde(default)]
    pub comments: String,
    /// `host:port` at which the new machine reaches the headnode; from the settings when absent.
    #[serde(default)]
    pub address: Option<String>,
}

/// An invitation with its token, which is told this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteView {
    /// The record.
    #[serde(flatten)]
    pub invite: Invite,
    /// The token.
    pub token: String,
    /// Whom to call.
    pub address: String,
    /// Of the authority's certificate.
    pub fingerprint: String,
}

/// What to change of a machine; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerChange {
    /// See [`model::server::Server::comments`].
    pub comments: Option<String>,
    /// See [`model::server::Server::rack`]; empty takes it out of its rack.
    pub rack: Option<String>,
    /// Traits to set.
    pub traits: BTreeMap<String, Trait>,
    /// Traits to take away, before others are set.
    pub no_traits: BTreeSet<String>,
    /// See [`model::server::Server::ratios`].
    pub ratios: Option<Ratios>,
    /// Whatever machine reports next is the one from then on.
    pub new_hardware: bool,
}

/// Why a machine is emptied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerDrain {
    /// In the operator's words.
    #[serde(default)]
    pub reason: String,
}

/// Query of a `DELETE` of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forget {
    /// Ids of instances that are lost with it, between commas.
    #[serde(default)]
    pub give_up: String,
}

impl Client {
    /// Makes an invitation.
    pub async fn invite(&self, new: &NewInvite) -> Result<InviteView, Error> {
        self.post("/v1/invites", new).await
    }

    /// Every invitation, newest first.
    pub async fn invites(&self) -> Result<Vec<Invite>, Error> {
        self.get("/v1/invites").await
    }

    /// Takes an invitation back.
    pub async fn withdraw_invite(&self, invite: &str) -> Result<(), Error> {
        self.remove(&format!("/v1/invites/{}", segment(invite))).await
    }

    /// Changes what operators say of a machine.
    pub async fn change_server(&self, server: &str, change: &ServerChange) -> Result<ServerView, Error> {
        self.post(&format!("/v1/servers/{}", segment(server)), change).await
    }

    /// Begins to empty a machine.
    pub async fn drain_server(&self, server: &str, reason: &str) -> Result<ServerView, Error> {
        let drain = ServerDrain { reason: reason.to_owned() };
        self.post(&format!("/v1/servers/{}/drain", segment(server)), &drain).await
    }

    /// Forgets a machine, and the instances on it that are given up by id.
    pub async fn forget_server(&self, server: &str, give_up: &[String]) -> Result<(), Error> {
        let give_up = segment(&give_up.join(","));
        self.remove(&format!("/v1/servers/{}?give_up={give_up}", segment(server))).await
    }
}
