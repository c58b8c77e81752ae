//! Properties of the model's rules.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod delta;
mod diff;
mod firewall;
mod path;
mod placement;
