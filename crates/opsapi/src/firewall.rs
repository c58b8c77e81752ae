//! Rules of the firewall, and the client's verbs for them.

use model::{
    firewall::{FirewallRule, log::LogEntry},
    id::ServerId,
};
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

/// Which lines of the machines' logs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FirewallLogQuery {
    /// Of this rule, by its id.
    pub rule: Option<String>,
    /// Of this instance: id, short id, or alias when only one has it.
    pub instance: Option<String>,
    /// Of this machine alone, by its id or host name.
    pub server: Option<String>,
    /// At most so many, 1 to 1,000.
    pub lines: u32,
    /// Those behind this place ([`FirewallLogView::next`] of an earlier answer); else the newest.
    pub after: Option<String>,
}

/// A piece of the machines' logs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallLogView {
    /// Oldest first.
    pub entries: Vec<FirewallLogLine>,
    /// To be sent as `after` to read on.
    pub next: String,
    /// Something behind the place asked for is gone: machines keep a bounded number of lines.
    pub lost: bool,
    /// Machines that were asked and did not answer.
    pub silent: Vec<SilentServer>,
}

/// A line, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallLogLine {
    /// The line.
    #[serde(flatten)]
    pub entry: LogEntry,
    /// The machine.
    pub server: ServerId,
}

/// A machine that did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentServer {
    /// Which.
    pub server: ServerId,
    /// Why, in words.
    pub why: String,
}

impl Client {
    /// What rules logged.
    pub async fn firewall_log(&self, query: &FirewallLogQuery) -> Result<FirewallLogView, Error> {
        let FirewallLogQuery { rule, instance, server, lines, after } = query;
        let mut path = format!("/v1/firewall/log?lines={lines}");
        for (name, value) in [("rule", rule), ("instance", instance), ("server", server), ("after", after)] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", segment(value)));
            }
        }
        self.get(&path).await
    }

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
