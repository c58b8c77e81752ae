//! The private contract between headnode and node.
//!
//! Nodes dial in over one mutually authenticated TLS connection (HTTP/2); the server's id is the common name of the
//! client certificate. The documents themselves are plain data in [`model::target`]; this crate says how they travel.
//!
//! A document goes as a whole, or as what is new in it ([`model::delta`]) to who says that it holds the one before. The content type
//! tells them apart: [`TARGET_DELTA`], [`REPORT_DELTA`], or plain JSON for a whole.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/target?have=<generation>` | | 200 [`model::target::Target`] as soon as one is newer than `have`, 204 after [`LONG_POLL_SECONDS`] |
//! | the same with `&digest=<digest>` | | the same, or 200 [`model::delta::TargetDelta`] from the target with that digest |
//! | `POST /v1/report` | [`model::target::Report`] or [`model::delta::ReportDelta`] | 200 [`ReportAnswer`] |
//! | `GET /v1/images/<sha256>` | | 200 the file |
//! | `GET /v1/inquiries` | | 200 [`inquiry::Inquiry`] as soon as there is one, 204 after [`LONG_POLL_SECONDS`] |
//! | `POST /v1/inquiries/<id>` | [`inquiry::Answer`] | 204; 404 when nobody waits for it any more |
//! | `POST /v1/renew` | [`join::RenewRequest`] | 200 [`join::RenewAnswer`] |
//! | `GET /v1/headnode-kit` | | 200 [`kit::HeadnodeKit`] to a machine that is to run a headnode, 403 to all others |
//! | `GET /v1/hello`, without a certificate | | 200 [`join::Hello`] |
//! | `POST /v1/join`, without a certificate | [`join::JoinRequest`] | 200 [`join::JoinAnswer`] |
//!
//! Each request of a node carries [`MACHINE_HEADER`]: a certificate that was copied to another machine serves nobody.

pub mod client;
mod dial;
pub mod inquiry;
pub mod join;
pub mod kit;
pub mod link;

use model::{part::Digest, time::Timestamp};
use serde::{Deserialize, Serialize};

/// The name in every headnode's certificate, whatever its addresses: nodes look for this one.
pub const HEADNODE_NAME: &str = "headnode.neso.internal";

/// Header with the sender's [`model::server::MachineIdentity`] as JSON.
pub const MACHINE_HEADER: &str = "neso-machine";

/// Content type of a [`model::delta::TargetDelta`].
pub const TARGET_DELTA: &str = "application/vnd.neso.target-delta+json";

/// Content type of a [`model::delta::ReportDelta`].
pub const REPORT_DELTA: &str = "application/vnd.neso.report-delta+json";

/// How long the headnode holds a request for a target that has not changed.
pub const LONG_POLL_SECONDS: u64 = 30;

/// How often a node reports when nothing changes.
pub const HEARTBEAT_SECONDS: u64 = 5;

/// Largest report or target, bytes: 2,000 instances with 8 KiB each.
pub const DOCUMENT_MAX_BYTES: usize = 16 << 20;

/// What the headnode says to a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAnswer {
    /// Generation of the newest target for this node.
    pub generation: u64,
    /// Digest of the report the headnode holds now: that of the one just sent, or it was a delta that was not understood and has to
    /// be said whole. A headnode that takes no deltas says none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Digest>,
    /// What the headnode's clock said when it had the report, so that the node can tell how far its own is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_at: Option<Timestamp>,
    /// What it said when this answer was ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_at: Option<Timestamp>,
}

/// An error in words; body of every answer that is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong and what would be right.
    pub message: String,
}
