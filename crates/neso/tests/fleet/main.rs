//! Fleets: a headnode and machines that joined it, as namespaces on one switch; real processes, real zones.
//!
//! These tests need root and a kernel with what `neso doctor` asks for; without root they say so and pass. Whoever needs machines
//! begins with [`fleet::Fleet::start`].

#![allow(clippy::disallowed_types, clippy::print_stdout, reason = "the subject is our own command, and skips are said")]

mod adopt;
mod behind;
mod clock;
mod cold;
mod fabric;
mod fleet;
mod growing;
mod guest;
mod headnodes;
mod join;
#[path = "../common/lies.rs"]
mod lies;
mod logging;
mod path;
mod reach;
mod rebuild;
mod recover;
mod six;
mod space;
#[path = "../common/wire.rs"]
mod wire;
