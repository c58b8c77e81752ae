//! The suite of the doors to the kernel: what is asked of the real machine and of the fake one.
//!
//! The kernel tier needs root and says so. Everything it makes carries a name of its own and is removed again.

#![expect(unsafe_code, reason = "raw system calls are what some walls are tried with")]
#![allow(clippy::disallowed_types, reason = "the kernel is looked at with its own tools")]

mod dataset;
mod net;
mod zone;
