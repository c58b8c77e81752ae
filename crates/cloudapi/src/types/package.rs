//! Packages.

use std::borrow::Cow;

use model::{id::PackageId, unit::Mib};
use serde::{Deserialize, Serialize};

/// A size instances come in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Package<'a> {
    /// Brand it is restricted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brand: Option<Cow<'a, str>>,
    /// Deprecated in the contract, and always false.
    #[serde(default)]
    pub default: bool,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Cow<'a, str>>,
    /// Disk quota, MiB.
    pub disk: Mib,
    /// Family in listings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Cow<'a, str>>,
    /// Identity.
    pub id: PackageId,
    /// Most processes and threads at once.
    pub lwps: u32,
    /// MiB.
    pub memory: Mib,
    /// What tenants call it.
    pub name: Cow<'a, str>,
    /// Memory plus swap, MiB.
    pub swap: Mib,
    /// Virtual CPUs; 0 for containers.
    pub vcpus: u32,
    /// Version text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Cow<'a, str>>,
}
