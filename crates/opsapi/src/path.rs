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

/// Which way is asked for: of a TCP or UDP packet to a port, or of a ping when neither is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathQuestion {
    /// The instance that sends.
    pub from: String,
    /// An instance, or an address.
    pub to: String,
    /// Port of TCP.
    #[serde(default)]
    pub tcp: Option<u16>,
    /// Port of UDP.
    #[serde(default)]
    pub udp: Option<u16>,
    /// Between the IPv6 addresses of two instances.
    #[serde(default)]
    pub ipv6: bool,
    /// Both machines try the wire between them now, whatever they found out before.
    #[serde(default)]
    pub probe: bool,
}

impl Client {
    /// The way from an instance to another, or to an address.
    pub async fn path(&self, question: &PathQuestion) -> Result<PathView, Error> {
        let PathQuestion { from, to, tcp, udp, ipv6, probe } = question;
        let mut query = format!("/v1/path?from={}&to={}&ipv6={ipv6}&probe={probe}", segment(from), segment(to));
        for (name, port) in [("tcp", tcp), ("udp", udp)] {
            if let Some(port) = port {
                query.push_str(&format!("&{name}={port}"));
            }
        }
        self.get(&query).await
    }
}
