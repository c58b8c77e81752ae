//! Questions a headnode asks a node while it runs, and their answers.
//!
//! Nodes never listen, so a node holds a request open that ends with the next question, and posts what it answers; both are
//! streams of the one HTTP/2 connection. A question changes nothing on the node: what must happen is in the target, which
//! survives everybody. So nothing of this is written down, an answer that comes too late is dropped, and whoever
//! asked may ask again.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    firewall::{
        ToldRule,
        log::{LogEntry, LogFilter},
    },
    id::{FirewallRuleId, InquiryId, InstanceId},
    meters::NodeMeters,
    path::{Look, Sight},
    quorum::Fitness,
    target::LastTold,
    usage::{Hour, HourUsage},
    wire::WireFact,
};
use serde::{Deserialize, Serialize};

/// How long whoever asked waits for the answer, seconds: a node that is well answers in milliseconds.
pub const ANSWER_SECONDS: u64 = 10;

/// Most bytes of a console log in one answer: both files of a log.
pub const CONSOLE_MAX_BYTES: u32 = 512 << 10;

/// Largest answer, bytes: a log full of bytes that take six in JSON, and some room.
pub const ANSWER_MAX_BYTES: usize = 4 << 20;

/// Most lines of a firewall log in one answer; each has some hundred bytes.
pub const FIREWALL_LOG_MAX_LINES: u32 = 1_000;

/// Most instances one question may ask the last word of.
pub const TOLD_MAX: usize = 50;

/// Bytes of what was told beyond which the rest is left for the next question.
pub const TOLD_BYTES: usize = 1 << 20;

/// Bytes of hours beyond which the rest is left for the next question; one hour of a machine with 300 instances has a tenth of it.
pub const USAGE_BYTES: usize = 1 << 20;

/// A question with the name its answer will bear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inquiry {
    /// Its name.
    pub id: InquiryId,
    /// The question.
    pub question: Question,
}

/// What may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
pub enum Question {
    /// What an instance wrote to its console.
    Console {
        /// Which.
        instance: InstanceId,
        /// At most so many bytes of it, up to [`CONSOLE_MAX_BYTES`].
        max_bytes: u32,
        /// What follows this place ([`Console::next`] of an earlier answer); else the newest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// What its kernel has on the way of a packet.
    Path(Box<Look>),
    /// What the rules of its firewall logged.
    #[serde(rename = "firewall-log")]
    FirewallLog {
        /// Which lines.
        #[serde(flatten)]
        filter: LogFilter,
        /// At most so many of them, up to [`FIREWALL_LOG_MAX_LINES`].
        max_lines: u32,
        /// Those behind this place ([`FirewallLogPage::next`] of an earlier answer); else the newest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// Whether its wire to another machine with a peer carries what it should; it tries that now.
    Wire {
        /// Where the other machine is met.
        machine: IpAddr,
    },
    /// Whether it could run a headnode.
    Fitness,
    /// What it and its instances use.
    Meters,
    /// What its instances used, by the hour.
    Usage {
        /// Hours behind this one; else all it knows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Hour>,
    },
    /// What it was told of some instances last, as it holds it.
    Told {
        /// Which, up to [`TOLD_MAX`].
        instances: Vec<InstanceId>,
    },
    /// What it was told of the firewall's rules last, as it holds it.
    Rules {
        /// Those behind this one; else from the first on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<FirewallRuleId>,
    },
    /// Something of a newer headnode.
    #[serde(other)]
    Unknown,
}

/// What a node answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "lowercase")]
pub enum Answer {
    /// To [`Question::Console`].
    Console(Console),
    /// To [`Question::Path`].
    Path(Sight),
    /// To [`Question::FirewallLog`].
    #[serde(rename = "firewall-log")]
    FirewallLog(FirewallLogPage),
    /// To [`Question::Wire`].
    Wire(WireFact),
    /// To [`Question::Fitness`].
    Fitness(Fitness),
    /// To [`Question::Meters`]; some seconds old, as it says.
    Meters(Box<NodeMeters>),
    /// To [`Question::Usage`].
    Usage(UsagePage),
    /// To [`Question::Told`].
    Told(Told),
    /// To [`Question::Rules`].
    Rules(HeldRules),
    /// It cannot say, and why.
    Refused {
        /// In words.
        why: String,
    },
    /// It knows the question and failed to answer it; it may be asked again. A headnode of an earlier release hears nothing.
    Failed {
        /// In words.
        why: String,
    },
}

/// A piece of a console log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Console {
    /// What was written; bytes that are no UTF-8 have become U+FFFD.
    pub text: String,
    /// Where the next piece begins; `None` while nothing was ever written.
    pub next: Option<String>,
    /// The place asked for is gone, and something between it and this text with it.
    pub lost: bool,
}

/// What a machine was told of some instances.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Those it holds something of.
    pub told: BTreeMap<InstanceId, LastTold>,
    /// Those that did not fit into this answer: ask for them again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<InstanceId>,
}

/// What a machine was told of rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRules {
    /// By their ids.
    pub rules: BTreeMap<FirewallRuleId, ToldRule>,
    /// There are more behind these.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// Hours that have ended, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsagePage {
    /// What was used in each.
    pub hours: Vec<HourUsage>,
    /// There are more behind these.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// A piece of a firewall log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallLogPage {
    /// Oldest first.
    pub entries: Vec<LogEntry>,
    /// Where the next piece begins.
    pub next: String,
    /// The place asked for is gone, and something between it and these lines with it.
    pub lost: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_of_a_newer_headnode_are_told_from_nonsense() {
        let id = InquiryId::random();
        let read = |question: &str| {
            serde_json::from_str::<Inquiry>(&format!("{{\"id\": \"{id}\", \"question\": {question}}}"))
        };
        assert_eq!(read(r#"{"ask": "weather", "where": "here"}"#).unwrap().question, Question::Unknown);
        assert!(read(r#"{"ask": "console"}"#).is_err());
        assert!(read("7").is_err());
    }
}
