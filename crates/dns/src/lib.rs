//! An authoritative name server over immutable zones. It knows no noun of a cloud: whoever links it says which names there are, as
//! [`Zones`] in a watched value, and replaces that value when they change.
//!
//! ```text
//!  a publisher            this crate
//!  ─────────────          ───────────────────────────────────────────────────────────────
//!  Zone::load ──► Zones ─► watched value ─► one thread a core and address: UDP
//!  Zone::with ──►   "           "        ─► TCP: queries, AXFR and IXFR to secondaries
//!                                        └► NOTIFY to secondaries whenever a serial has grown
//! ```
//!
//! A [`Zone`] is persistent: a change costs what it touches, a clone costs a pointer, and an answer is read from one zone as it was
//! when the question came. A zone keeps the differences that led to it, within limits, for secondaries that ask for what is new.
//!
//! Signing is a function from zone to zone ([`sign`]): the server itself holds no zone's key.
//!
//! What is not here: resolving for others, zone files, changes by the protocol's UPDATE.

mod answer;
mod counters;
mod handle;
mod hash;
mod key;
mod limit;
mod message;
mod name;
mod notify;
mod order;
mod peers;
mod rrset;
mod server;
mod settings;
mod sign;
mod strangers;
mod tcp;
mod transfer;
mod tsig;
mod udp;
mod write;
mod zone;
mod zones;

pub use counters::{Counters, KINDS_COUNTED, Outcome, Transport};
pub use handle::reply;
pub use key::{Duty, KeyError, Signing, ZoneKey};
pub use name::{Name, NameError};
pub use peers::Peer;
pub use rrset::{Data, Kind, Rrset, RrsetError, Soa};
pub use server::{Server, StartError};
pub use settings::{Algorithm, Limits, NotifyTarget, Policy, RateLimit, Secret, Settings, TransferRule, TsigKey};
pub use sign::{SignError, is_due, sign, sign_whole};
pub use zone::{Change, Difference, Zone, ZoneError};
pub use zones::{View, Zones};
