//! The datacenter itself: ping, configuration, firewall rules as they are listed.

use std::borrow::Cow;

use model::id::NetworkId;
use serde::{Deserialize, Serialize};

/// API versions this server speaks, newest first.
pub const VERSIONS: [&str; 6] = ["9.0.0", "8.0.0", "7.3.0", "7.2.0", "7.1.0", "7.0.0"];

/// Header of an answer from a headnode that cannot find out whether what it shows is the newest: for how many milliseconds it has not known.
pub const STALE: http::HeaderName = http::HeaderName::from_static("neso-stale");

/// `GET /--ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Always `pong`.
    pub ping: Cow<'static, str>,
    /// What we speak.
    pub cloudapi: PingVersions,
}

/// Part of [`Ping`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingVersions {
    /// See [`VERSIONS`].
    pub versions: Vec<Cow<'static, str>>,
}

impl Ping {
    /// The answer.
    pub fn pong() -> Self {
        Self { ping: Cow::Borrowed("pong"), cloudapi: PingVersions { versions: VERSIONS.map(Cow::Borrowed).into() } }
    }
}

/// `GET` and `PUT /:account/config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Network of containers made without naming one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_network: Option<NetworkId>,
}

/// `GET /:account/limits`: one rule and how much of it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// `ram`, `quota` or `machines`.
    pub by: Cow<'static, str>,
    /// Ceiling.
    pub value: u64,
    /// In use.
    pub used: u64,
}
