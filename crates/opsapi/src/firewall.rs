//! Rules of the firewall, and the client's verbs for them.

use model::firewall::FirewallRule;
use serde::{Deserialize, Serialize};

use crate::{
    Client, Error,
    client::{Method, segment},
};

/// A new rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewFirewallRule {
    /// Whose, by id or login; absent for a global rule, which works with everybody's instances.
    #[serde(default)]
    pub account: Option<String>,
    /// Its text.
    pub rule: String,
    /// Whether it does anything; it does unless said otherwise.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Whether machines log what it decides.
    #[serde(default)]
    pub log: bool,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
}

const fn yes() -> bool {
    true
}

/// What to change of a rule; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FirewallRuleChange {
    /// Its text.
    pub rule: Option<String>,
    /// Whether it does anything.
    pub enabled: Option<bool>,
    /// Whether machines log what it decides.
    pub log: Option<bool>,
    /// For people; empty takes it away.
    pub description: Option<String>,
}

/// A rule with the proof of its enforcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallRuleView {
    /// The record.
    pub rule: FirewallRule,
    /// Machines it concerns, or concerned until a change they have not confirmed.
    pub machines: usize,
    /// Those that have confirmed the newest version.
    pub live: usize,
    /// Host names of the others.
    pub waiting_for: Vec<String>,
}

impl Client {
    /// Every rule, or an account's.
    pub async fn firewall_rules(&self, account: Option<&str>) -> Result<Vec<FirewallRuleView>, Error> {
        let query = account.map_or_else(String::new, |account| format!("?account={}", segment(account)));
        self.get(&format!("/v1/firewall/rules{query}")).await
    }

    /// One rule.
    pub async fn firewall_rule(&self, rule: &str) -> Result<FirewallRuleView, Error> {
        self.get(&format!("/v1/firewall/rules/{}", segment(rule))).await
    }

    /// Makes a rule and waits, not for long, until machines enforce it.
    pub async fn create_firewall_rule(&self, rule: &NewFirewallRule) -> Result<FirewallRuleView, Error> {
        self.post("/v1/firewall/rules", rule).await
    }

    /// Enables or disables a rule and waits, not for long, until machines do so too.
    pub async fn set_firewall_rule_enabled(&self, rule: &str, enabled: bool) -> Result<FirewallRuleView, Error> {
        let verb = if enabled { "enable" } else { "disable" };
        self.post(&format!("/v1/firewall/rules/{}/{verb}", segment(rule)), &()).await
    }

    /// Changes a rule and waits, not for long, until machines enforce it as it is then.
    pub async fn change_firewall_rule(
        &self,
        rule: &str,
        change: &FirewallRuleChange,
    ) -> Result<FirewallRuleView, Error> {
        self.post(&format!("/v1/firewall/rules/{}", segment(rule)), change).await
    }

    /// Deletes a rule.
    pub async fn delete_firewall_rule(&self, rule: &str) -> Result<(), Error> {
        self.call(Method::DELETE, &format!("/v1/firewall/rules/{}", segment(rule)), None::<&()>).await
    }
}
