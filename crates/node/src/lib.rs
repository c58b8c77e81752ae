//! The agent: it holds the target of one machine, converges the machine to it, and says what is.
//!
//! ```text
//!  headnode ──target──► link ──► keeper (disk first) ──► dispatcher ──► one worker per instance with something to do
//!     ▲                                                      ▲                │ steps of model::diff
//!     └──report── link ◄── board of facts ◄──────────────────┼────────────────┤
//!                              ▲                       zone events            ▼
//!                              └── metadata service          └───────────── host (zones, datasets, links, filters)
//! ```
//!
//! - The target is written to disk before anything acts on it, so a machine that boots alone starts its instances alone.
//! - Zones outlive the agent: at start it lists what is there and adopts it. It never ends a zone because it ends itself.
//! - An instance with nothing to do costs a table entry and a listening socket; workers exist only while they work.
//! - Only an explicit request, kept in the target or marked in the instance's ledger, destroys data.
//!
//! This crate knows no store and no control plane: whatever implements [`nodeapi::link::HeadnodeLink`] is one.
//!
//! Reading order: [`config`], [`agent`], `keeper` and `ledger` (what is on disk), `dispatch` and `worker` (who acts),
//! `network`, `firewall`, `images` and `ids` (what workers share), `fabrics` and `wires` (the way to other machines), `board` and `link` (what is said), `inquiries` (what operators ask), `firewall_log` (what they may ask for), `meters`, `usage` and `activity` (what is used, what was done), `metadata` (what guests ask).

pub mod agent;
pub mod config;
pub mod error;
pub mod files;

mod activity;
mod board;
mod dispatch;
mod fabrics;
mod facts;
mod firewall;
mod firewall_log;
mod fitness;
mod ids;
mod images;
mod inquiries;
mod keeper;
mod ledger;
mod link;
mod metadata;
mod meters;
mod network;
mod role;
mod shared;
mod spec;
mod usage;
mod verbs;
mod wires;
mod worker;

pub use agent::Agent;
pub use config::{AgentConfig, Execution, IdRanges};
pub use error::AgentError;
