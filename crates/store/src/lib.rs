//! Typed records under one growing revision: reads from memory, decisions on immutable snapshots, commits that are checked and durable.
//!
//! ```text
//!   callers ── update(decide) ──► pipeline ── one merged batch ──► engine (SQLite, memory, etcd-shaped)
//!      ▲                            │  decides on: mirror + what is on its way         │
//!      └────── snapshot() ◄── mirror ◄───────────────── watch: every change ◄───────────┘
//! ```
//!
//! - An [`Engine`] is an ordered keyspace of bytes with a revision per key and one for the whole, compare-and-commit of several keys,
//!   and a watch from a revision. It knows nothing of types.
//! - The mirror follows the engine's watch and keeps every record decoded, in immutable maps with secondary indexes. [`Snapshot`] is one
//!   state of it: cheap to take, never changes, never waits.
//! - [`Store::update`] runs a pure decision against the newest state *including* changes that are still on their way to the disk, merges
//!   what many callers decided into one batch, and answers when that batch is durable and visible. Eight creates at once that all
//!   reserve on one server's record share one fsync instead of losing seven races.
//!
//! - [`Store::move_to`] exchanges the engine under a store that is used: reads go on, writes wait for a moment.
//!
//! This crate knows no noun of the datacenter; tables are declared above it, see [`Table`].
//!
//! Rejected: reading from the engine on demand (every list would be IO, every decision a race), and a lock per record (deadlocks, and
//! no help against a second headnode).

mod arrival;
pub mod bench;
mod change;
pub mod engine;
mod fill;
mod fresh;
mod key;
mod listed;
pub mod memory;
mod mirror;
mod moving;
mod pipeline;
mod rows;
mod snapshot;
pub mod sqlite;
mod store;
mod table;
mod transaction;
mod turns;

pub use change::{Change, Changes};
pub use engine::{BoxFuture, Engine, EngineError};
pub use fill::{Fill, FillError, Trial};
pub use fresh::Stale;
pub use moving::{Destination, MoveError, Moved, Reason};
pub use snapshot::Snapshot;
pub use store::{CommitError, Counts, Error, Store};
pub use table::{DecodeError, Entry, Index, Revision, Schema, Table};
pub use transaction::Transaction;
