//! One binary for all of flow's integration tests.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on may panic")]

mod engine;
mod harness;
mod killed;
mod looping;
mod sharing;
mod world;
