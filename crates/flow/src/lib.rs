//! Flows end, loops endure. A *flow* is work a person waits for: a journaled list of named steps, each repeatable, each with its undo.
//! A *loop* keeps something true: it takes no input, looks, and closes the gap. Neither knows a noun of the datacenter.
//!
//! ```text
//!   one commit: objects + FlowRecord ──► Engine picks it up (also after a restart) ──► step ─► step ─► step ──► Succeeded
//!                                                                                       │ Fail, or Retry too often
//!                                                                     Failed ◄── undo ◄─ undo ◄┘     an undo that fails: Parked
//! ```
//!
//! What it costs: a step that only looks costs nothing; a step that changes records commits them *together with* the journal in one
//! commit; the last step's commit also ends the flow. A waiting flow sleeps until one of the records it named changes or its deadline
//! passes. The journal of a flow that merely waits is written only when the wait is long enough for somebody to wonder.
//!
//! What it promises: a step may run again after a crash (so it must be repeatable), never after its journal entry is durable. Flows of one
//! subject run one after the other, in the order they were made. Every flow ends, or is parked with its reason.
//!
//! Reading order: [`record`] (what is stored), [`step`] (what a kind of flow declares), [`engine`] (who runs them), [`loops`].

pub mod archive;
pub mod engine;
mod kind;
pub mod loops;
mod ready;
pub mod record;
mod runner;
mod share;
pub mod step;
pub mod testing;
pub mod trim;
mod waits;

pub use archive::Archive;
pub use engine::Engine;
pub use record::{FLOWS, FlowId, FlowRecord, FlowState, StepRecord, StepState, record_for};
pub use share::Share;
pub use step::{At, FlowKind, Notes, Progress, Step, StepError, Wait};
