//! The way of a packet, and the client's verb for it.

use model::path::{Hop, Verdict};
use serde::{Deserialize, Serialize};

use crate::{Client, Error, client::segment};

/// The way of a packet from one instance to another or to an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathView {
    /// The first one's name.
    pub from: String,
    /// The other's name, or the address.
    pub to: String,
    /// In the packet's order.
    pub hops: Vec<Hop>,
}

impl PathView {
    /// The first hop that lets it go no further.
    pub fn stop(&self) -> Option<&Hop> {
        self.hops.iter().find(|hop| hop.verdict == Verdict::Stops)
    }
}

impl Client {
    /// The way from an instance to another, or to an address, of a TCP or UDP packet to a port; of a ping when neither is named.
    pub async fn path(&self, from: &str, to: &str, tcp: Option<u16>, udp: Option<u16>) -> Result<PathView, Error> {
        let mut query = format!("/v1/path?from={}&to={}", segment(from), segment(to));
        for (name, port) in [("tcp", tcp), ("udp", udp)] {
            if let Some(port) = port {
                query.push_str(&format!("&{name}={port}"));
            }
        }
        self.get(&query).await
    }
}
