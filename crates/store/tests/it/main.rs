//! One binary for all of the store's integration tests.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on may panic")]

mod crash;
mod direct;
mod engines;
mod full;
mod model;
mod moving;
mod overtaken;
mod records;
mod stores;
