//! Bodies of requests and answers, one module per noun.
//!
//! One type serves both sides: servers fill the `Cow`s with borrows and serialise straight from their records, clients get
//! owned values. Field names and order are the contract's; shapes only grow, and reading tolerates unknown fields.

pub mod account;
pub mod changefeed;
pub mod firewall;
pub mod image;
pub mod machine;
pub mod monitor;
pub mod network;
pub mod package;
pub mod service;
pub mod stats;

pub use account::{Account, AccountUpdate, CreateKey, Key};
pub use firewall::{Enforced, FirewallRule};
pub use image::{Image, ImageUpdate};
pub use machine::{Audit, CreateMachine, Machine, NetworkChoice, Nic};
pub use network::{FabricVlan, Network, NetworkIp};
pub use package::Package;
pub use service::{Config, Ping};
