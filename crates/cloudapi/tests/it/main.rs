//! Tests of the public contract, in one binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot prepare its stage has failed")]

mod error_table;
mod signatures;
mod signers;
