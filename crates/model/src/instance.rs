//! Instances: what a tenant asked for, what its machine says of it, and the history of both.
//!
//! The record has two halves that never overwrite each other: the control plane writes [`Instance::intent`], the node's
//! reports write [`Instance::fact`]. What the public sees is [`crate::state::public`] of the two.

use serde::{Deserialize, Serialize};

use crate::{
    id::{AccountId, FlowId, ImageId, InstanceId, PackageId, ServerId},
    network::Nic,
    pairs::{Pairs, exact},
    target::{Limits, Phase, ZoneFact, ZoneState},
    time::Timestamp,
};

/// An instance. Record of table `instances`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Never changes.
    pub id: InstanceId,
    /// Whose it is.
    pub owner: AccountId,
    /// Its name; unique among the owner's instances that are not deleted.
    pub alias: String,
    /// How it runs.
    pub brand: Brand,
    /// What its root started from.
    pub image: ImageId,
    /// Its size, and the name the size had when it was given.
    pub package: PackageId,
    /// See [`Instance::package`]; CloudAPI shows the name.
    pub package_name: String,
    /// What the kernel enforces, copied from the package.
    pub limits: Limits,
    /// Rules of affinity it was asked for with.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "exact")]
    pub affinity: Vec<String>,
    /// The machine it lives on.
    pub server: ServerId,
    /// In order of their interface number.
    #[serde(deserialize_with = "exact")]
    pub nics: Vec<Nic>,
    /// Tenant's metadata, `root_authorized_keys` and `user-script` among it.
    pub metadata: Pairs<String, String>,
    /// Metadata only operators and the guest see (generated passwords).
    pub internal_metadata: Pairs<String, String>,
    /// Tenant's tags.
    pub tags: Pairs<String, TagValue>,
    /// Whether the distributed firewall applies.
    pub firewall_enabled: bool,
    /// Refuses deletion while set.
    pub deletion_protection: bool,
    /// What should be.
    pub intent: Intent,
    /// What its machine last said; `None` before the first report.
    pub fact: Option<ZoneFact>,
    /// Its addresses, MACs and share of the machine have been given back; the machine is not told of it any more.
    #[serde(default)]
    pub released: bool,
    /// When its machine said, after a restore, that it has nothing of it: see [`Instance::is_lost`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_at: Option<Timestamp>,
    /// Why it is in state `failed`, in words for the tenant.
    pub failure: Option<String>,
    /// The flow that works on it, if one does.
    pub flow: Option<FlowId>,
    /// How long each phase of its provisioning took.
    #[serde(deserialize_with = "exact")]
    pub timeline: Vec<Phase>,
    /// Highest sequence number of guest metadata changes that is contained in `metadata`.
    pub guest_metadata_seen: u64,
    /// Grows by one with each change of the metadata from outside that somebody may wait for.
    #[serde(default)]
    pub metadata_edits: u64,
    /// Up to which of [`Instance::metadata_edits`] its machine is known to serve.
    #[serde(default)]
    pub metadata_edits_served: u64,
    /// Newest last; at most [`Instance::HISTORY_MAX`].
    #[serde(deserialize_with = "exact")]
    pub history: Vec<AuditEntry>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When intent, name, metadata, tags or state last changed.
    pub updated_at: Timestamp,
    /// When its deletion was asked for; it takes effect as soon as its machine can say that nothing is left.
    #[serde(default)]
    pub delete_asked_at: Option<Timestamp>,
    /// When its last trace left its machine; the record stays as a tombstone.
    pub deleted_at: Option<Timestamp>,
}

impl Instance {
    /// Audit entries kept per instance; the oldest go first.
    pub const HISTORY_MAX: usize = 100;

    /// Whether its machine is told of it. Also one that gave everything back, should its machine still have something of it:
    /// only what a machine is told to remove is removed.
    pub fn is_on_machine(&self) -> bool {
        !self.released || self.fact.as_ref().is_some_and(|fact| fact.state != ZoneState::Absent)
    }

    /// Whether it is known from a backup alone: its machine had it no more when the backup was restored, so that it was deleted since,
    /// or lost. Its machine is not told of it, because it would make it anew and empty, until it is to be deleted.
    pub fn is_lost(&self) -> bool {
        self.lost_at.is_some() && self.intent.wanted != Wanted::Absent
    }

    /// Adds to the history, forgetting the oldest entry beyond [`Instance::HISTORY_MAX`].
    pub fn record(&mut self, entry: AuditEntry) {
        self.history.push(entry);
        if self.history.len() > Self::HISTORY_MAX {
            let excess = self.history.len() - Self::HISTORY_MAX;
            self.history.drain(..excess);
        }
    }
}

/// What should be. Verbs that happen once are counters: the node compares them with what it has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// On, off or gone.
    pub wanted: Wanted,
    /// Grows by one with every request to start it.
    pub starts: u64,
    /// Grows by one with every request to reboot it.
    pub reboots: u64,
}

/// The condition an instance should be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// Running; started again when its machine boots.
    Running,
    /// There, but not running.
    Stopped,
    /// No trace of it on any machine.
    Absent,
}

/// How an instance runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Brand {
    /// A Linux OS container. Triton's name for containers with a Linux userland.
    Lx,
    /// A virtual machine.
    Kvm,
}

impl Brand {
    /// CloudAPI's spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lx => "lx",
            Self::Kvm => "kvm",
        }
    }
}

/// The value of a tag: CloudAPI lets tenants use these three JSON types.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TagValue {
    /// `true` or `false`.
    Bool(bool),
    /// Any JSON number.
    Number(serde_json::Number),
    /// Text.
    Text(String),
}

/// One line of an instance's history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// CloudAPI's action word: `provision`, `start`, `stop`, `reboot`, `resize`, `rename`, `destroy` …
    pub action: String,
    /// Whether it succeeded.
    pub success: bool,
    /// When it ended.
    pub time: Timestamp,
    /// Who asked.
    pub caller: Caller,
    /// Why it failed.
    pub error: Option<String>,
    /// Phases with their durations, for actions that have them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Phase>,
}

/// Who asked for something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Caller {
    /// A signed CloudAPI request.
    Signature {
        /// Remote address.
        ip: Option<String>,
        /// `/login/keys/fingerprint`.
        #[serde(rename = "keyId")]
        key_id: String,
    },
    /// An operator over the ops API.
    Operator {
        /// Name in the operator's certificate.
        user: String,
    },
    /// The guest itself or the control plane.
    System,
}
