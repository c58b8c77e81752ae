//! The only door to the kernel.
//!
//! Whatever changes the machine (system calls, commands, ioctls, netlink) happens in this crate, behind five small
//! traits of verbs: [`zone::Zones`], [`dataset::Datasets`], [`link::Links`], [`filter::Filters`], [`machine::Machine`].
//! Each has a [`linux`] and a [`fake`] implementation, and both pass the one suite in `tests/`.
//!
//! The verbs are synchronous and say so: a caller that must not wait runs them on a thread meant for waiting. Every verb
//! may be repeated: making what is there and removing what is gone succeed, so an agent that was killed half-way simply
//! asks again.

pub mod archive;
pub mod error;

pub mod dataset;
pub mod echo;
pub mod fabric;
pub mod filter;
pub mod link;
pub mod machine;
pub mod zone;

pub mod fake;
pub mod linux;

use std::sync::Arc;

pub use error::Error;

/// One machine, whole: the five doors an agent needs.
#[derive(Clone)]
pub struct Host {
    /// Containers.
    pub zones: Arc<dyn zone::Zones>,
    /// Root file systems and images.
    pub datasets: Arc<dyn dataset::Datasets>,
    /// Bridges, veth pairs, addresses.
    pub links: Arc<dyn link::Links>,
    /// Anti-spoofing, NAT and protection of the host.
    pub filters: Arc<dyn filter::Filters>,
    /// What the machine is.
    pub machine: Arc<dyn machine::Machine>,
}
