//! One binary for the tests that need a real etcd. The suite every engine passes is the store's.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on may panic")]

mod admin;
mod alone;
mod bad;
mod bed;
mod lost;
mod members;
mod proxy;
mod survived;
mod watching;
