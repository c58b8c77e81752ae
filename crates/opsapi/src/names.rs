//! Names of instances: the zones, what is in them, and the name server of the headnode that answers.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use model::{
    id::NetworkId,
    names::{
        Data, Zone,
        dnssec::{KeyRole, KeyStage, ParentHas},
    },
    time::Timestamp,
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

/// A zone that is signed, or is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedZone {
    /// Its name.
    pub apex: String,
    /// Whether the settings want it signed. One that is not wanted any more stays signed while its parent names one of its keys.
    pub wanted: bool,
    /// Its keys, the oldest first; none as long as none was made.
    pub keys: Vec<KeyView>,
    /// What has to be done outside, for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

/// A key of a zone, without what is secret of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyView {
    /// What it signs.
    pub role: KeyRole,
    /// Its number in signatures and at the parent.
    pub tag: u16,
    /// How far it is.
    pub stage: KeyStage,
    /// Since when.
    pub since: Timestamp,
    /// The record for the parent zone, of a KSK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_record: Option<String>,
}

/// What to do with a zone's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeysChange {
    /// Begin to change the key of a role for a new one.
    Roll(KeyRole),
    /// Take note of what the parent zone names.
    Parent(ParentHas),
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
    /// Secondaries that asked or answered since it was started, by zone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerView>,
}

/// A secondary and a zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// The secondary.
    pub address: IpAddr,
    /// The zone.
    pub zone: String,
    /// The newest serial it has, as far as this headnode knows: it may ask others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has: Option<u32>,
    /// The serial the zone has now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<u32>,
    /// When it was last sent something, or had everything already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_at: Option<Timestamp>,
    /// Whether the last that it was sent was the whole zone and not what was new in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was_whole: Option<bool>,
    /// The serial it last said to have been told of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<u32>,
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

    /// Zones that are signed, with their keys.
    pub async fn signed_zones(&self) -> Result<Vec<SignedZone>, Error> {
        self.get("/v1/names/dnssec").await
    }

    /// Changes something about a signed zone's keys.
    pub async fn change_zone_keys(&self, apex: &str, change: KeysChange) -> Result<SignedZone, Error> {
        self.post(&format!("/v1/names/dnssec/{apex}"), &change).await
    }

    /// The name server of the headnode that answers.
    pub async fn name_server(&self) -> Result<NameServerView, Error> {
        self.get("/v1/names/server").await
    }
}
