//! Rules of the firewall.

use std::borrow::Cow;

use model::id::FirewallRuleId;
use serde::{Deserialize, Serialize};

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallRule<'a> {
    /// Identity.
    pub id: FirewallRuleId,
    /// Its canonical text.
    pub rule: Cow<'a, str>,
    /// Whether it does anything.
    pub enabled: bool,
    /// It works with everybody's instances, and only operators change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global: Option<bool>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Cow<'a, str>>,
    /// Machines write down what it decides.
    #[serde(default)]
    pub log: bool,
    /// Grows with each change. Not in older servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// On how many machines that is in force. Not in lists, and not in older servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced: Option<Enforced>,
}

/// Proof of enforcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforced {
    /// Compute nodes it concerns.
    pub nodes: usize,
    /// Those of them that have confirmed the newest version.
    pub live: usize,
    /// What they have to have confirmed: the datacenter's count of changes at the last one that concerns them. Not in older servers.
    #[serde(default)]
    pub revision: u64,
}
