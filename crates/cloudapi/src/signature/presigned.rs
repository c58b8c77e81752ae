//! Pre-signed URLs: a signature in the query instead of a header, for browsers that cannot set headers.
//!
//! What is signed is four lines' worth of text: the methods it is good for, the host, the path, and the query without the
//! signature, sorted by key and encoded in one way only. The body is not covered, and the URL is good until it expires:
//! whoever holds it, holds the right.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::header;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};

use super::{Algorithm, Claim, Head, KeyId, SignatureError};

/// What RFC 3986 leaves unreserved.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Parameters a pre-signed URL must have.
const REQUIRED: [&str; 4] = ["algorithm", "expires", "keyId", "signature"];
/// Most parameters in such a URL.
const PARAMETERS_MAX: usize = 64;

/// The claim in the query; `None` when the URL is an ordinary one.
pub(super) fn claim<'a>(head: Head<'a>, now: i64) -> Result<Option<Claim<'a>>, SignatureError> {
    let Some((path, query)) = head.target.split_once('?') else {
        return Ok(None);
    };
    // The cheap way out for nearly all requests.
    if !REQUIRED.iter().any(|name| query.contains(name)) || head.headers.contains_key(header::AUTHORIZATION) {
        return Ok(None);
    }
    let parameters = parameters(query)?;
    let find = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let missing: Vec<&str> = REQUIRED.into_iter().filter(|name| find(name).is_none_or(str::is_empty)).collect();
    if missing.len() == REQUIRED.len() {
        return Ok(None);
    }
    let (Some(algorithm), Some(expires), Some(key_id), Some(signature), true) =
        (find("algorithm"), find("expires"), find("keyId"), find("signature"), missing.is_empty())
    else {
        return Err(SignatureError::Malformed(format!(
            "a signed URL also needs the parameters {}",
            missing.join(", ")
        )));
    };
    let expires: i64 = expires
        .parse()
        .ok()
        .filter(|seconds| *seconds >= 0)
        .ok_or_else(|| SignatureError::Malformed("expires is not a number of seconds since 1970".into()))?;
    if now > expires {
        return Err(SignatureError::Expired(now.abs_diff(expires)));
    }
    let mut methods: Vec<&str> = match find("method") {
        Some(list) => list.split(',').map(str::trim).collect(),
        None => vec![head.method.as_str()],
    };
    methods.sort_unstable();
    if !methods.contains(&head.method.as_str()) {
        return Err(SignatureError::MethodNotSigned(head.method.to_string()));
    }
    let signature =
        BASE64.decode(signature).map_err(|_| SignatureError::Malformed("the signature is not base64".into()))?;
    let host = head.headers.get(header::HOST).map_or(&b""[..], |host| host.as_bytes());
    let parsed = KeyId::parse(key_id)?;
    let key_id_owned = KeyId { login: Cow::Owned(parsed.login.into_owned()), key: Cow::Owned(parsed.key.into_owned()) };
    Ok(Some(Claim {
        key_id: key_id_owned,
        key_id_text: Cow::Owned(key_id.to_owned()),
        algorithm: Algorithm::parse(algorithm)?,
        message: message(&methods, host, path, &parameters),
        signature,
    }))
}

/// The query of a URL for `path` on `host` that is good for `method` until `expires` (seconds since 1970). `sign` gets the
/// message and returns the signature's bytes. `more` are the endpoint's own parameters.
pub fn presign<E>(
    (method, host, path): (&str, &str, &str),
    key_id: &str,
    algorithm: Algorithm,
    expires: i64,
    more: &[(&str, &str)],
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
) -> Result<String, E> {
    let mut parameters: Vec<(String, String)> =
        more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    parameters.push(("algorithm".into(), algorithm.to_string()));
    parameters.push(("expires".into(), expires.to_string()));
    parameters.push(("keyId".into(), key_id.to_owned()));
    sort(&mut parameters);
    let signature = sign(&message(&[method], host.as_bytes(), path, &parameters))?;
    parameters.push(("signature".into(), BASE64.encode(signature)));
    Ok(encode(&parameters))
}

fn message(methods: &[&str], host: &[u8], path: &str, parameters: &[(String, String)]) -> Vec<u8> {
    let unsigned: Vec<(String, String)> =
        parameters.iter().filter(|(key, _)| !key.eq_ignore_ascii_case("signature")).cloned().collect();
    let mut message = methods.join(",").into_bytes();
    message.push(b'\n');
    message.extend_from_slice(host);
    message.push(b'\n');
    message.extend_from_slice(path.as_bytes());
    message.push(b'\n');
    message.extend_from_slice(encode(&unsigned).as_bytes());
    message
}

fn encode(parameters: &[(String, String)]) -> String {
    let pairs: Vec<String> = parameters
        .iter()
        .map(|(key, value)| {
            format!("{}={}", utf8_percent_encode(key, UNRESERVED), utf8_percent_encode(value, UNRESERVED))
        })
        .collect();
    pairs.join("&")
}

/// The decoded query, sorted as signers sort it.
fn parameters(query: &str) -> Result<Vec<(String, String)>, SignatureError> {
    let malformed = |why: &str| SignatureError::Malformed(why.to_owned());
    let mut parameters = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        if parameters.len() == PARAMETERS_MAX {
            return Err(malformed("the URL has too many parameters"));
        }
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (decode(key), decode(value));
        let (Some(key), Some(value)) = (key, value) else {
            return Err(malformed("the URL's query is not UTF-8"));
        };
        if parameters.iter().any(|(other, _)| *other == key) {
            return Err(malformed("the URL has a parameter twice"));
        }
        parameters.push((key, value));
    }
    sort(&mut parameters);
    Ok(parameters)
}

/// As people sort words: letters first, then lower case before upper.
fn sort(parameters: &mut [(String, String)]) {
    parameters.sort_by(|(a, _), (b, _)| a.to_lowercase().cmp(&b.to_lowercase()).then_with(|| b.cmp(a)));
}

fn decode(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decode(spaced.as_bytes()).decode_utf8().ok().map(Cow::into_owned)
}
