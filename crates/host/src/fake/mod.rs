//! The doors onto a machine that exists only in memory, for tests and simulation.

pub mod faults;
pub mod zone;

pub use faults::Faults;
