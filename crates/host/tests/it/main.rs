//! The suite of the doors to the kernel: what is asked of the real machine and of the fake one.
//!
//! The kernel tier needs root and says so. Everything it makes carries a name of its own and is removed again.

mod zone;
