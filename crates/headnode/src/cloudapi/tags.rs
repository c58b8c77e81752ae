//! Tags of an instance.

use std::collections::BTreeMap;

use control::instances::tags;
use http::StatusCode;
use model::instance::TagValue;

use super::{
    call::Call,
    create::tag,
    error::{ApiError, Faults},
    reply::Reply,
};

/// `GET /:account/machines/:machine/tags`.
pub(super) async fn list(call: Call) -> Result<Reply, ApiError> {
    Ok(Reply::json(&tags::get(call.control(), call.scope(), call.machine()?)?))
}

/// `POST /:account/machines/:machine/tags`: adds, and answers all of them.
pub(super) async fn add(call: Call) -> Result<Reply, ApiError> {
    let id = call.machine()?;
    let view = tags::add(call.control(), &call.caller(), call.scope(), id, given(&call)?).await?;
    Ok(Reply::json(&view.instance.tags))
}

/// `PUT /:account/machines/:machine/tags`.
pub(super) async fn replace(call: Call) -> Result<Reply, ApiError> {
    let id = call.machine()?;
    let view = tags::replace(call.control(), &call.caller(), call.scope(), id, given(&call)?).await?;
    Ok(Reply::json(&view.instance.tags))
}

/// `GET /:account/machines/:machine/tags/:tag`.
pub(super) async fn get(call: Call) -> Result<Reply, ApiError> {
    let mut tags = tags::get(call.control(), call.scope(), call.machine()?)?;
    let name = call.segment(1);
    match tags.remove(name) {
        Some(TagValue::Text(text)) => Ok(Reply::text(text)),
        Some(TagValue::Number(number)) => Ok(Reply::text(number.to_string())),
        Some(TagValue::Bool(flag)) => Ok(Reply::text(flag.to_string())),
        None => Err(ApiError::not_found(format!("tag \"{name}\" not found"))),
    }
}

/// `DELETE /:account/machines/:machine/tags/:tag`.
pub(super) async fn delete(call: Call) -> Result<Reply, ApiError> {
    tags::delete_one(call.control(), &call.caller(), call.scope(), call.machine()?, call.segment(1)).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

/// `DELETE /:account/machines/:machine/tags`.
pub(super) async fn delete_all(call: Call) -> Result<Reply, ApiError> {
    tags::delete_all(call.control(), &call.caller(), call.scope(), call.machine()?).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

fn given(call: &Call) -> Result<BTreeMap<String, TagValue>, ApiError> {
    let mut faults = Faults::default();
    let read = |(key, value): (&String, &_)| Some((key.clone(), faults.take(tag(key, value).map(Some))?));
    let tags = call.params.iter().filter_map(read).collect();
    faults.finish()?;
    Ok(tags)
}
