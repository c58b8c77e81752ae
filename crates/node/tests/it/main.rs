//! The agent over a machine in memory and a headnode in memory: everything but the kernel is real.

mod faults;
mod guests;
mod killed;
mod life;
mod world;
