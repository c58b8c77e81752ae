//! Tags of an instance.

use std::collections::BTreeMap;

use control::instances::tags;
use http::StatusCode;
use model::instance::TagValue;

use super::{
    call::Call,
    create::tag,
    enforced,
    error::{ApiError, Faults},
    reply::Reply,
};

/// `GET /:account/machines/:machine/tags`.
pub(super) async fn list(call: Call) -> Result<Reply, ApiError> {
    Ok(Reply::json(&tags::get(call.control(), call.scope(), call.machine()?)?))
}

/// `POST /:account/machines/:machine/tags`: adds, and answers all of them.
pub(super) async fn add(call: Call) -> Result<Reply, ApiError> {
    let (id, wait) = (call.machine()?, enforced::wanted(&call.query)?);
    let view = tags::add(call.control(), &call.caller(), call.scope(), id, given(&call)?).await?;
    Ok(enforced::answered(&call, id, wait, Reply::json(&view.instance.tags)).await)
}

/// `PUT /:account/machines/:machine/tags`.
pub(super) async fn replace(call: Call) -> Result<Reply, ApiError> {
    let (id, wait) = (call.machine()?, enforced::wanted(&call.query)?);
    let view = tags::replace(call.control(), &call.caller(), call.scope(), id, given(&call)?).await?;
    Ok(enforced::answered(&call, id, wait, Reply::json(&view.instance.tags)).await)
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
    let (id, wait) = (call.machine()?, enforced::wanted(&call.query)?);
    tags::delete_one(call.control(), &call.caller(), call.scope(), id, call.segment(1)).await?;
    Ok(enforced::answered(&call, id, wait, Reply::empty(StatusCode::NO_CONTENT)).await)
}

/// `DELETE /:account/machines/:machine/tags`.
pub(super) async fn delete_all(call: Call) -> Result<Reply, ApiError> {
    let (id, wait) = (call.machine()?, enforced::wanted(&call.query)?);
    tags::delete_all(call.control(), &call.caller(), call.scope(), id).await?;
    Ok(enforced::answered(&call, id, wait, Reply::empty(StatusCode::NO_CONTENT)).await)
}

fn given(call: &Call) -> Result<BTreeMap<String, TagValue>, ApiError> {
    let mut faults = Faults::default();
    let read = |(key, value): (&String, &_)| Some((key.clone(), faults.take(tag(key, value).map(Some))?));
    // What says that the answer shall wait is no tag.
    let waits = call.query.get(enforced::WAIT);
    let is_tag = |(key, value): &(&String, &_)| *key != enforced::WAIT || Some(*value) != waits;
    let tags = call.params.iter().filter(is_tag).filter_map(read).collect();
    faults.finish()?;
    Ok(tags)
}
