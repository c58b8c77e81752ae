//! The agent over a machine in memory and a headnode in memory: everything but the kernel is real.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod clock;
mod faults;
mod guests;
mod killed;
mod life;
mod role;
mod turns;
mod usage;
mod wires;
mod world;
