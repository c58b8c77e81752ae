//! Tests of the public contract, in one binary.

mod error_table;
mod signatures;
mod signers;
