//! The headnode: every control-plane part of one machine in one process.
//!
//! [`settings`] says where everything lies, [`pki`] makes who is who, [`run`] opens the store and puts four listeners in
//! front of `control`: CloudAPI for tenants ([`cloudapi`]), the container monitor ([`cmon`]), the node link ([`nodelink`]) and the ops API ([`ops`]). The
//! process holds no state of its own ([`members`] keep it where there are several headnodes): kill it at any moment and start it again.

pub mod backup;
pub mod cloudapi;
pub mod cmon;
pub mod copies;
pub mod disk;
pub mod inquiries;
pub mod kit;
pub mod listen;
pub mod manual;
pub mod members;
pub mod meters;
pub mod monitoring;
pub mod names;
pub mod nodelink;
pub mod ops;
pub mod pki;
pub mod presence;
mod rebuilding;
pub mod replicas;
pub mod role;
pub mod settings;
pub mod telemetry;
pub mod tls;
mod usage;

mod run;

pub use run::{RunError, run};

pub use settings::Settings;
