//! Waiting until machines enforce what was changed: `wait=enforced`.
//!
//! Ours alone. A change of a rule says in its body how far it came. The answers to changes of instances have bodies that are
//! the contract's, or none; theirs say it in three headers, and only where it was asked for in the query: in a body, `wait` is a tag.

use cloudapi::types::Enforced;
use control::firewall::{self, Enforcement};
use http::HeaderName;
use model::id::InstanceId;

use super::{call::Call, error::ApiError, params::Params, reply::Reply};

/// The one value of the parameter.
const ENFORCED: &str = "enforced";
/// The parameter.
pub(super) const WAIT: &str = "wait";

/// Whether the answer is to wait until the change is in force.
pub(super) fn wanted(params: &Params) -> Result<bool, ApiError> {
    match params.text(WAIT)?.as_deref() {
        None | Some("") => Ok(false),
        Some(ENFORCED) => Ok(true),
        Some(other) => Err(ApiError::invalid(WAIT, format!("wait can be \"{ENFORCED}\" or absent, not \"{other}\""))),
    }
}

/// The answer to a change of an instance: now, or when it is in force, and then it says where.
pub(super) async fn answered(call: &Call, id: InstanceId, wait: bool, reply: Reply) -> Reply {
    if !wait {
        return reply;
    }
    let found = firewall::wait_enforced(call.control(), id).await;
    let header = |name| HeaderName::from_static(name);
    reply
        .header(header("x-enforced-nodes"), found.machines.to_string())
        .header(header("x-enforced-live"), found.live.to_string())
        .header(header("x-enforced-revision"), found.revision.to_string())
}

/// The contract's shape.
pub(super) fn shown(found: &Enforcement) -> Enforced {
    Enforced { nodes: found.machines, live: found.live, revision: found.revision }
}
