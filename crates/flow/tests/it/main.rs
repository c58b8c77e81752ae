//! One binary for all of flow's integration tests.

mod engine;
mod harness;
mod killed;
mod looping;
mod world;
