//! The public contract, byte for byte: what tenants' tools send and what they are answered.
//!
//! Plain data only. [`types`] are the bodies, [`error`] the error body with every code and its HTTP status, [`signature`]
//! decides who signed a request, [`client`] signs and sends one, [`websocket`] is what changes travel over. The server behind
//! the contract lives in `headnode`; this crate does not know that a control plane exists.

pub mod error;
pub mod types;

pub mod signature;

pub mod client;

pub mod websocket;
