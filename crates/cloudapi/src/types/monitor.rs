//! The container monitor: what there is to watch, as `triton_sd_configs` of Prometheus reads it.

use std::borrow::Cow;

use model::id::{AccountId, ImageId, InstanceId, ServerId};
use serde::{Deserialize, Serialize};

/// `GET /v1/discover`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Containers<'a> {
    /// The account's instances that run.
    pub containers: Vec<Container<'a>>,
}

/// An instance that can be watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container<'a> {
    /// Of its tag `triton.cmon.groups`.
    pub groups: Vec<Cow<'a, str>>,
    /// Its machine.
    pub server_uuid: ServerId,
    /// Its name.
    pub vm_alias: Cow<'a, str>,
    /// How it runs.
    pub vm_brand: Cow<'a, str>,
    /// What its root started from.
    pub vm_image_uuid: ImageId,
    /// Whose it is.
    pub vm_owner_uuid: AccountId,
    /// Its id.
    pub vm_uuid: InstanceId,
    /// `running`.
    pub vm_state: Cow<'a, str>,
    /// When this was so, milliseconds since 1970.
    pub cached_date: i64,
}

/// `GET /v1/gz/discover`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machines<'a> {
    /// All machines.
    pub cns: Vec<MachineTarget<'a>>,
}

/// A machine that can be watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineTarget<'a> {
    /// Its id.
    pub server_uuid: ServerId,
    /// What it calls itself.
    pub server_hostname: Cow<'a, str>,
}

/// Why something was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorError<'a> {
    /// A word for programs.
    pub code: Cow<'a, str>,
    /// A sentence for people.
    pub message: Cow<'a, str>,
}
