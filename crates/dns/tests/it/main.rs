//! The server over real sockets, asked by Debian's own clients and followed by Debian's own secondaries (`bind9`, `knot`, `nsd`,
//! `bind9-dnsutils`): what they understand is right, whatever we think of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot prepare its stage has failed")]

mod dig;
mod hostile;
mod queries;
mod secondaries;
mod server;
mod signing;
mod transfers;
