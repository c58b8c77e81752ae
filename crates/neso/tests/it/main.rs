//! Whole datacenters, real processes, real zones: started below a temporary root, driven by our own commands, and killed in
//! the middle of things.
//!
//! These tests need root and a kernel with what `neso doctor` asks for; without root they say so and pass. Each takes a
//! datacenter of its own and leaves nothing behind, which [`datacenter::Datacenter::assert_clean`] checks in the kernel too.

#![allow(clippy::disallowed_types, clippy::print_stdout, reason = "the subject is our own command, and skips are said")]

mod backup;
mod changes;
mod corpus;
mod datacenter;
mod elsewhere;
mod ends;
mod etcd_store;
mod faults;
mod firewall;
mod full;
mod guest;
mod headnodes;
mod inside;
#[path = "../common/lies.rs"]
mod lies;
mod life;
mod limits;
mod member;
mod monitor;
mod monitoring;
mod names;
mod network;
mod path;
mod removal;
mod repeat;
mod restore;
mod shell;
mod signed;
mod six;
mod storm;
mod top;
mod usage;
#[path = "../common/wire.rs"]
mod wire;
