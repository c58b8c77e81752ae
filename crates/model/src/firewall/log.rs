//! A line of the firewall's log: what a rule with logging decided about a packet.
//!
//! Fields have the names Triton's log daemon gives them, so that what reads those lines reads these. `direction` is ours: there
//! it shows in which address is the instance's.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{apply::Direction, rule::Action};
use crate::{
    id::{FirewallRuleId, InstanceId},
    time::Timestamp,
};

/// What became of a packet that began something, or of one that might not. Written as one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Whether it was let through.
    pub event: LogEvent,
    /// When its machine read of it.
    pub time: Timestamp,
    /// Which way it went, as the instance sees it.
    pub direction: LogDirection,
    /// Where it came from.
    pub source_ip: IpAddr,
    /// Of TCP and UDP, unless it is a later fragment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Where it went.
    pub destination_ip: IpAddr,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// `tcp`, `udp`, `icmp`, `icmp6`, `ah`, `esp`, or a number.
    pub protocol: String,
    /// Of ICMP in either family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// The rule that decided.
    pub rule: FirewallRuleId,
    /// The instance whose firewall it is.
    pub vm: InstanceId,
    /// The instance's name then, if the machine knew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
}

/// What a rule decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogEvent {
    /// It was let through.
    Allow,
    /// It was dropped.
    Reject,
}

/// Which way a packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogDirection {
    /// To the instance.
    In,
    /// From the instance.
    Out,
}

impl From<Action> for LogEvent {
    fn from(action: Action) -> Self {
        match action {
            Action::Allow => Self::Allow,
            Action::Block => Self::Reject,
        }
    }
}

impl From<Direction> for LogDirection {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Inbound => Self::In,
            Direction::Outbound => Self::Out,
        }
    }
}

/// Which lines somebody wants to see: those that are of the rule and of the instance, where they are named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFilter {
    /// Of this rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<FirewallRuleId>,
    /// Of this instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
}

impl LogFilter {
    /// Whether a line is among them.
    pub fn fits(&self, entry: &LogEntry) -> bool {
        self.rule.is_none_or(|rule| rule == entry.rule) && self.instance.is_none_or(|instance| instance == entry.vm)
    }
}

/// The word for a protocol in the log.
pub fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        50 => "esp".to_owned(),
        51 => "ah".to_owned(),
        58 => "icmp6".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_names_log_readers_know() {
        let entry = LogEntry {
            event: LogEvent::Reject,
            time: Timestamp(1_551_128_538_658),
            direction: LogDirection::In,
            source_ip: "10.1.0.23".parse().unwrap(),
            source_port: Some(1028),
            destination_ip: "10.1.0.4".parse().unwrap(),
            destination_port: Some(23),
            protocol: protocol_name(6),
            icmp_type: None,
            icmp_code: None,
            rule: "ae8a7fe6-f8c5-4670-bef8-196a8071cb84".parse().unwrap(),
            vm: "8b43c12b-6643-4ee7-ad7b-b87a53ae257d".parse().unwrap(),
            alias: Some("web".to_owned()),
        };
        let line = serde_json::to_string(&entry).unwrap();
        assert_eq!(
            line,
            r#"{"event":"reject","time":"2019-02-25T21:02:18.658Z","direction":"in","source_ip":"10.1.0.23","source_port":1028,"destination_ip":"10.1.0.4","destination_port":23,"protocol":"tcp","rule":"ae8a7fe6-f8c5-4670-bef8-196a8071cb84","vm":"8b43c12b-6643-4ee7-ad7b-b87a53ae257d","alias":"web"}"#
        );
        assert_eq!(serde_json::from_str::<LogEntry>(&line).unwrap(), entry);
        let filter = |rule, instance| LogFilter { rule, instance }.fits(&entry);
        assert!(filter(None, None) && filter(Some(entry.rule), None) && filter(Some(entry.rule), Some(entry.vm)));
        assert!(!filter(Some(FirewallRuleId::random()), Some(entry.vm)) && !filter(None, Some(InstanceId::random())));
    }
}
