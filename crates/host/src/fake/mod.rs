//! The doors onto a machine that exists only in memory, for tests and simulation.
//!
//! [`FakeMachine`] holds everything that would survive an agent: zones, links and filters until the machine loses power,
//! datasets beyond that. A [`crate::Host`] from [`FakeMachine::host`] is what one run of an agent opens; dropping it and
//! asking for another is an agent that was killed and started again. Verbs fail on demand through [`Faults`]; they are
//! named `<door>.<verb>`, e.g. `datasets.clone_image`, with the instance, image or network as subject.

pub mod dataset;
pub mod faults;
pub mod filter;
pub mod link;
pub mod machine;
pub mod mortal;
pub mod zone;

pub use faults::Faults;
pub use machine::FakeMachine;
pub use mortal::{Fate, Mortal};
