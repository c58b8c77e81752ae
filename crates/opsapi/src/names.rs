//! Names of instances: the zones, what is in them, and the name server of the headnode that answers.

use std::{collections::BTreeMap, net::SocketAddr};

use model::{
    id::NetworkId,
    names::{Data, Zone},
};
use serde::{Deserialize, Serialize};

use crate::{Client, Error};

/// Names of one answer at most: of a larger zone the first, by name.
pub const NAMES_SHOWN_MAX: usize = 10_000;

/// A zone at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneView {
    /// The record.
    pub zone: Zone,
    /// Instances with names in it.
    pub instances: usize,
    /// Names of instances in it.
    pub names: usize,
    /// Names of the networks it lists; `None`: all that no other lists, or a zone of addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<String>>,
}

/// What is in a zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneContent {
    /// The record.
    pub zone: Zone,
    /// Names without the zone's own, with their answers.
    pub names: BTreeMap<String, Vec<Data>>,
    /// How many there are, should they be more than are shown.
    pub count: usize,
}

/// The name server of one headnode.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameServerView {
    /// Whether there are names at all.
    pub enabled: bool,
    /// Where it answers.
    pub addresses: Vec<SocketAddr>,
    /// Where it should and does not, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedAddress>,
    /// Why it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it has done since it was started, by name.
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
    /// Who may have whole zones: a network, and the key it has to use.
    #[serde(default)]
    pub transfers: Vec<String>,
    /// Who is told of changes.
    #[serde(default)]
    pub notify: Vec<SocketAddr>,
}

/// An address that could not be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedAddress {
    /// Which.
    pub address: SocketAddr,
    /// Why.
    pub why: String,
}

/// Ids of networks a zone lists, for who looks their names up.
pub fn listed(zone: &Zone) -> Option<&[NetworkId]> {
    zone.head.as_ref().and_then(|head| head.networks.as_deref())
}

impl Client {
    /// All zones.
    pub async fn name_zones(&self) -> Result<Vec<ZoneView>, Error> {
        self.get("/v1/names/zones").await
    }

    /// What is in a zone.
    pub async fn name_zone(&self, apex: &str) -> Result<ZoneContent, Error> {
        self.get(&format!("/v1/names/zones/{apex}")).await
    }

    /// The name server of the headnode that answers.
    pub async fn name_server(&self) -> Result<NameServerView, Error> {
        self.get("/v1/names/server").await
    }
}
