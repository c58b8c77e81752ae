//! After a restore: instances and rules that machines have and no record knows, and the client's verbs for them.

use std::net::IpAddr;

use model::{
    id::{AccountId, FirewallRuleId, InstanceId, ServerId},
    target::ZoneState,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{Client, Error};

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebuild {
    /// Go on although some instances cannot be adopted, which are left alone then, without firewall, or some machines did not say which rules they hold.
    /// Of these, those that do not answer at all are told nothing until they do.
    #[serde(default)]
    pub leave: bool,
}

/// How far machines and records agree.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RebuildView {
    /// Machines that are told nothing since a restore.
    pub waiting: Vec<WaitingServer>,
    /// Instances that machines have and no record knew.
    pub found: Vec<FoundInstance>,
    /// Instances of the backup that their machines have not.
    pub lost: Vec<LostInstance>,
    /// Rules of the firewall that machines enforce and the records lack, or have in an older version.
    #[serde(default)]
    pub rules: Vec<FoundRule>,
    /// Whether it was carried out, and not only looked at.
    pub done: bool,
}

/// A machine that is told nothing since a restore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WaitingServer {
    /// Which.
    pub server: ServerId,
    /// Its host name.
    pub hostname: String,
    /// When the backup was taken, or the machine came.
    pub taken_at: Timestamp,
    /// It came with instances of a datacenter that is no more.
    #[serde(default)]
    pub brought: bool,
    /// It has spoken since.
    pub has_spoken: bool,
    /// Why it did not say now which rules of the firewall it holds, where it should have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unheard: Option<String>,
}

/// An instance that a machine has and no record knew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FoundInstance {
    /// Which.
    pub instance: InstanceId,
    /// The machine that has it.
    pub server: ServerId,
    /// That machine's host name.
    pub hostname: String,
    /// Its name.
    pub alias: Option<String>,
    /// Whose it is.
    pub owner: Option<AccountId>,
    /// That account's login, if it is known.
    pub owner_login: Option<String>,
    /// Name of its package.
    pub package: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// How it is.
    pub state: Option<ZoneState>,
    /// Why it is not adopted.
    pub refused: Option<String>,
    /// What is otherwise than it was.
    pub notes: Vec<String>,
}

/// A rule of the firewall that a machine enforces and the records lack, or have in an older version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundRule {
    /// Which.
    pub rule: FirewallRuleId,
    /// Whose instances it works with; none is everybody's.
    pub owner: Option<AccountId>,
    /// That account's login, if it is known.
    pub owner_login: Option<String>,
    /// What it says.
    pub text: String,
    /// Host name of a machine that has it.
    pub hostname: String,
    /// Why it is not made again.
    pub refused: Option<String>,
    /// What is otherwise than it was.
    pub notes: Vec<String>,
}

/// An instance of the backup that its machine has not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LostInstance {
    /// Which.
    pub instance: InstanceId,
    /// Its name.
    pub alias: String,
    /// The login of its owner, if it is known.
    pub owner_login: Option<String>,
    /// The machine that should have it.
    pub server: ServerId,
    /// When that was found out.
    pub lost_at: Timestamp,
}

impl Client {
    /// What a rebuild would do.
    pub async fn rebuild_look(&self) -> Result<RebuildView, Error> {
        self.get("/v1/rebuild").await
    }

    /// Adopts what can be adopted.
    pub async fn rebuild(&self, how: &Rebuild) -> Result<RebuildView, Error> {
        self.post("/v1/rebuild", how).await
    }
}
