//! Metadata of an instance. `credentials` is no key of the tenant's: it stands for the passwords, which are kept as `<user>_pw`
//! in the hidden half and shown only to those who ask for them. A `<user>_pw` in a change goes there too.

use std::{borrow::Cow, collections::BTreeMap};

use cloudapi::types::machine::Metadata;
use control::instances::{self, metadata};
use http::StatusCode;

use super::{
    call::Call,
    create,
    error::{ApiError, Faults},
    machine_view::credentials,
    params::scalar,
    reply::Reply,
};

/// Keys that cannot be deleted.
const KEPT: [&str; 3] = ["credentials", "administrator_pw", "root_authorized_keys"];

/// `GET /:account/machines/:machine/metadata`.
pub(super) async fn list(call: Call) -> Result<Reply, ApiError> {
    let view = instances::get(call.control(), call.scope(), call.machine()?)?;
    let asked = call.params.flag("credentials")?.unwrap_or(false);
    Ok(Reply::json(&Metadata {
        credentials: asked.then(|| credentials(&view.instance)),
        entries: Cow::Borrowed(&view.instance.metadata),
    }))
}

/// `POST /:account/machines/:machine/metadata`: adds, and answers all of it.
pub(super) async fn add(call: Call) -> Result<Reply, ApiError> {
    let id = call.machine()?;
    let (mut given, mut faults) = (BTreeMap::new(), Faults::default());
    for (key, value) in call.params.iter() {
        match scalar(value) {
            _ if key == "credentials" => given.extend(faults.take(create::credentials(key, value))),
            Some(text) => drop(given.insert(key.clone(), text)),
            None => faults.add(ApiError::invalid(key, format!("{key} must be text"))),
        }
    }
    faults.finish()?;
    let view = metadata::add(call.control(), &call.caller(), call.scope(), id, given).await?;
    Ok(Reply::json(&view.instance.metadata))
}

/// `GET /:account/machines/:machine/metadata/:key`.
pub(super) async fn get(call: Call) -> Result<Reply, ApiError> {
    let view = instances::get(call.control(), call.scope(), call.machine()?)?;
    match call.segment(1) {
        "credentials" => Ok(Reply::json(&credentials(&view.instance))),
        key => match view.instance.metadata.get(key) {
            Some(text) => Ok(Reply::text(text.clone())),
            None => Err(ApiError::not_found(format!("{key} is not metadata of the instance"))),
        },
    }
}

/// `DELETE /:account/machines/:machine/metadata/:key`.
pub(super) async fn delete(call: Call) -> Result<Reply, ApiError> {
    let key = call.segment(1);
    if KEPT.contains(&key) {
        return Err(ApiError::invalid("key", format!("metadata key {key} cannot be deleted")));
    }
    metadata::delete_one(call.control(), &call.caller(), call.scope(), call.machine()?, key).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

/// `DELETE /:account/machines/:machine/metadata`.
pub(super) async fn delete_all(call: Call) -> Result<Reply, ApiError> {
    metadata::delete_all(call.control(), &call.caller(), call.scope(), call.machine()?).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}
