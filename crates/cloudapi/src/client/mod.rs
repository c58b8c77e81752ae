//! A typed client that signs: what `neso instance` speaks with.
//!
//! [`profile`] finds out whom to talk to and as whom, from the places the `triton` command uses; [`signer`] holds or borrows
//! the private key; [`Client`] sends. Every request has a deadline and every answer a limit. What changes something is sent with a name,
//! so that it can be sent again when its answer is lost. [`Changes`] listens, and goes on elsewhere when a headnode is lost.

mod agent;
mod changes;
mod http;
pub mod profile;
mod repeat;
mod several;
pub mod signer;
mod tls;

pub use ::http::Method;
pub use changes::Changes;
pub use http::{Client, ClientError, MachineFilter};
pub use profile::Profile;
pub use signer::Signer;
