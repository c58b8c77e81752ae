//! The distributed firewall: its rule language, whom a rule concerns, and the document a node enforces.
//!
//! A rule says in one line who may talk to whom: `FROM tag "www" TO tag "db" ALLOW tcp PORT 5432`. It names instances by
//! tag, by id or all of them, never by the place they run on, so the same rule means something else whenever an instance
//! appears, moves or changes its tags. The way from a text to a dropped packet has four steps, each pure:
//!
//! ```text
//! text ── parse ──▶ Rule ── stored in ──▶ FirewallRule ──┐
//!                    └── canonical text                   ├── compile ──▶ FirewallTarget ── diff ──▶ Change
//!                                     InstanceView ──▶ Directory                │
//!                                                         └──── evaluate ◀──────┘   (must agree)
//! ```
//!
//! An instance with its firewall enabled drops what comes in and lets out what goes out; rules are exceptions from that, and
//! answers to what was let through are let through (the node tracks connections). A rule works on the `TO` side for what
//! comes in and on the `FROM` side for what goes out, each only with its owner's instances; a rule without an owner is
//! global and works with everybody's. Among rules that match a packet the highest priority decides; within a priority the verdict
//! that differs from the default: `ALLOW` coming in, `BLOCK` going out.
//!
//! Reading order: [`rule`] has the types and their limits, [`parse`] and [`canonical`] the text; [`apply`] the record and whom it
//! concerns, [`directory`] the addresses behind tags; [`target`] the document, [`compile`] and [`change`] how it comes to be and
//! what of it is new, [`merge`] how little of it a packet must be compared with; [`evaluate`] what it all does to one packet, and
//! [`log`] the line that tells of it.
//!
//! ARP and neighbour discovery are not traffic in this sense: whoever enforces a document lets them through.

pub mod apply;
pub mod canonical;
pub mod change;
pub mod compile;
pub mod directory;
pub mod error;
pub mod evaluate;
pub mod log;
pub mod merge;
pub mod parse;
pub mod rule;
pub mod target;

pub use apply::{Direction, FirewallRule, InstanceView, Selector, SetKey, Sides};
pub use change::{AddressChange, Change, diff};
pub use compile::compile;
pub use directory::Directory;
pub use error::RuleError;
pub use evaluate::{DecidedBy, Decision, Packet, PacketKind, evaluate};
pub use merge::Match;
pub use parse::Language;
pub use rule::{Action, IcmpType, IcmpTypes, Port, Ports, Protocol, Rule, Target, Targets};
pub use target::{
    AddressSet, FirewallTarget, InstanceFilter, Layer, LayerId, Peers, RuleOrigin, RuleTarget, SetId, SetTarget,
    ToldRule, Traffic,
};
