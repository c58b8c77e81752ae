//! Calls that clients give a name, `Idempotency-Key`, so that they may send them again: carried out once, answered alike.
//! How that is kept true is [`control::repeats`]'s; here the header is read, the request is told from others, and the answer is
//! turned into text and back.

use control::repeats::{self, Begun};
use http::{HeaderName, HeaderValue, Method, request::Parts};
use model::{
    id::AccountId,
    repeat::{KeyError, RepeatKey},
};

use super::{call::Call, error::ApiError, reply::Reply, routes::Handler, version::Version};

/// Says that an answer is that of an earlier sending.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A call's name, and what it is told from others by.
pub(super) struct Named {
    signer: AccountId,
    key: RepeatKey,
    request: String,
}

/// The name a client gave to a call that changes something; calls that do not need none, and theirs is ignored.
///
/// A name belongs to who signs. To be the same, a request must agree in account, method, path, query, body and version: the path as
/// it was sent, but `my` is as good as the login.
pub(super) fn named(
    parts: &Parts,
    signer: AccountId,
    account: AccountId,
    version: Version,
    body: &[u8],
) -> Result<Option<Named>, ApiError> {
    if matches!(parts.method, Method::GET | Method::HEAD) {
        return Ok(None);
    }
    let Some(key) = key(parts.headers.get_all(repeats::FIELD).iter())? else { return Ok(None) };
    let path = parts.uri.path().trim_matches('/');
    let below = path.split_once('/').map_or("", |(_, below)| below);
    let request = repeats::hash(&[
        account.to_string().as_bytes(),
        parts.method.as_str().as_bytes(),
        below.as_bytes(),
        parts.uri.query().unwrap_or("").as_bytes(),
        version.as_str().as_bytes(),
        body,
    ]);
    Ok(Some(Named { signer, key, request }))
}

/// Runs `call` unless that was done before.
pub(super) async fn once(named: Named, mut call: Call, run: Handler) -> Result<Reply, ApiError> {
    let begun = repeats::begin(&call.control, named.signer, named.key, named.request).await?;
    let open = match begun {
        Begun::Answered(text) => return replayed(&text),
        Begun::Open(open) => open,
    };
    call.control = open.control.clone();
    let repeated = open.repeated;
    let reply = run(call).await?;
    let text = reply.to_text();
    match open.answered(text.clone()).await? {
        // The same call ran on another headnode, which was faster.
        Some(other) if text.as_ref() != Some(&other) => replayed(&other),
        _ if repeated => Ok(reply.header(REPLAYED, "true")),
        _ => Ok(reply),
    }
}

fn replayed(text: &str) -> Result<Reply, ApiError> {
    let unreadable = || ApiError::new(cloudapi::error::Code::InternalError, "the earlier answer cannot be read");
    Ok(Reply::from_text(text).ok_or_else(unreadable)?.header(REPLAYED, "true"))
}

fn key<'a>(mut headers: impl Iterator<Item = &'a HeaderValue>) -> Result<Option<RepeatKey>, ApiError> {
    let Some(first) = headers.next() else { return Ok(None) };
    let refused = |why: String| ApiError::invalid(repeats::FIELD, format!("{} {why}", repeats::FIELD));
    if headers.next().is_some() {
        return Err(refused("is given twice".to_owned()));
    }
    RepeatKey::from_bytes(first.as_bytes()).map(Some).map_err(|error: KeyError| refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(values: &[&[u8]]) -> Option<Result<Option<RepeatKey>, ApiError>> {
        let values: Option<Vec<HeaderValue>> = values.iter().map(|bytes| HeaderValue::from_bytes(bytes).ok()).collect();
        Some(key(values?.iter()))
    }

    #[test]
    fn one_name_or_none() {
        assert!(matches!(read(&[]), Some(Ok(None))));
        assert!(matches!(read(&[b"a"]), Some(Ok(Some(_)))));
        for bad in [&[&b"a"[..], b"a"][..], &[b""], &[b"a b"], &[&[b'x'; 256]]] {
            let Some(Err(ApiError::Refused { body, .. })) = read(bad) else { panic!("{bad:?} passed") };
            assert_eq!(body.errors[0].field, repeats::FIELD);
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused_by_its_name(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            match read(&[&bytes]) {
                // What cannot be a header does not get here.
                None => {}
                Some(Ok(read)) => {
                    let read = read.expect("a header is there");
                    prop_assert_eq!(read.as_str().as_bytes(), &*bytes);
                }
                Some(Err(ApiError::Refused { body, .. })) => prop_assert_eq!(&body.errors[0].field, repeats::FIELD),
                Some(Err(ApiError::Gone(_))) => prop_assert!(false),
            }
        }

        #[test]
        fn replies_are_read_back(text in ".{0,40}", kind in 0_u8..3, location in "[!-~]{0,20}") {
            let reply = match kind {
                0 => Reply::json(&text),
                1 => Reply::text(text),
                _ => Reply::empty(http::StatusCode::NO_CONTENT),
            };
            let written = reply.header(http::header::LOCATION, location).to_text().unwrap();
            prop_assert_eq!(Reply::from_text(&written).unwrap().to_text(), Some(written));
        }
    }
}
