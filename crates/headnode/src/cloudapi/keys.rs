//! SSH keys of the account.

use std::borrow::Cow;

use cloudapi::types::Key;
use control::accounts::keys;
use http::{StatusCode, header};
use model::account::AccountKey;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    call::Call,
    error::{ApiError, Faults},
    reply::Reply,
};

/// `GET /:account/keys`.
pub(super) async fn list(call: Call) -> Result<Reply, ApiError> {
    let keys = keys::list(call.control(), call.account.id);
    let shown: Vec<Key<'_>> = keys.iter().map(|key| show(key)).collect();
    Ok(Reply::json(&shown))
}

/// `POST /:account/keys`.
pub(super) async fn create(call: Call) -> Result<Reply, ApiError> {
    let mut faults = Faults::default();
    let (name, openssh) = (faults.take(call.params.text("name")), faults.take(call.params.required("key")));
    faults.finish()?;
    let key = keys::add(call.control(), call.account.id, name, &openssh).await?;
    let name = utf8_percent_encode(&key.name, NON_ALPHANUMERIC);
    let location = format!("/{}/keys/{name}", call.account.login);
    Ok(Reply::json(&show(&key)).status(StatusCode::CREATED).header(header::LOCATION, location))
}

/// `GET /:account/keys/:key`.
pub(super) async fn get(call: Call) -> Result<Reply, ApiError> {
    let key = keys::get(call.control(), call.account.id, call.segment(0))?;
    Ok(Reply::json(&show(&key)))
}

/// `DELETE /:account/keys/:key`.
pub(super) async fn delete(call: Call) -> Result<Reply, ApiError> {
    keys::remove(call.control(), call.account.id, call.segment(0)).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

fn show(key: &AccountKey) -> Key<'_> {
    Key {
        name: Cow::Borrowed(&key.name),
        fingerprint: Cow::Borrowed(&key.fingerprint_md5),
        key: Cow::Borrowed(&key.openssh),
        attested: false,
        multifactor: Vec::new(),
        created: Some(key.created_at),
    }
}
