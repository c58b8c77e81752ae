//! Tests of the headnode's doors, in one binary.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot prepare its stage has failed")]

mod backups;
mod cloudapi;
mod join;
mod link;
mod members;
mod strangers;
