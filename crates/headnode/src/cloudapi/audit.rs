//! What was done to an instance, by whom, and how long its parts took.

use std::borrow::Cow;

use cloudapi::types::Audit;
use control::instances;
use model::instance::AuditEntry;

use super::{call::Call, error::ApiError, reply::Reply};

/// `GET /:account/machines/:machine/audit`, newest first; a deleted instance still has it.
pub(super) async fn list(call: Call) -> Result<Reply, ApiError> {
    let entries = instances::audit(call.control(), call.scope(), call.machine()?)?;
    let shown: Vec<Audit<'_>> = entries.iter().map(show).collect();
    Ok(Reply::json(&shown))
}

fn show(entry: &AuditEntry) -> Audit<'_> {
    Audit {
        success: Cow::Borrowed(if entry.success { "yes" } else { "no" }),
        time: entry.time,
        action: Cow::Borrowed(&entry.action),
        caller: Cow::Borrowed(&entry.caller),
        error: entry.error.as_deref().map(Cow::Borrowed),
        timeline: Cow::Borrowed(&entry.timeline),
    }
}
