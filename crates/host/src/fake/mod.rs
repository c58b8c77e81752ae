//! The doors onto a machine that exists only in memory, for tests and simulation.
