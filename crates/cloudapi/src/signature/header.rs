//! The `Authorization` header: both grammars, and the message each of them signs.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderName, header};

use super::{
    AUTHORIZATION_MAX, Algorithm, CLOCK_SKEW_SECONDS, Claim, Head, KeyId, SIGNED_HEADERS_MAX, SignatureError,
    parse_date,
};

/// The parameters of the header.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parameters<'a> {
    key_id: Option<&'a str>,
    algorithm: Option<&'a str>,
    headers: Option<&'a str>,
    signature: Option<&'a str>,
    grammar: Grammar,
}

/// How the message is built.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Grammar {
    /// `signature="…"`; lines are `name: value`.
    #[default]
    Draft,
    /// The signature follows after a space; lines are bare values.
    Legacy,
}

/// Reads the header and builds what it claims to sign.
pub(super) fn claim<'a>(head: Head<'a>, now: i64) -> Result<Claim<'a>, SignatureError> {
    let value = head.headers.get(header::AUTHORIZATION).ok_or(SignatureError::Unsigned)?;
    let text = value.to_str().map_err(|_| malformed("it has characters outside ASCII"))?;
    let parameters = parse(text)?;
    let key_id_text = parameters.key_id.ok_or_else(|| malformed("keyId is missing"))?;
    let algorithm = parameters.algorithm.ok_or_else(|| malformed("algorithm is missing"))?;
    let algorithm = Algorithm::parse(algorithm)?;
    let signature = parameters.signature.ok_or_else(|| malformed("signature is missing"))?;
    let signature = BASE64.decode(signature.trim()).map_err(|_| malformed("the signature is not base64"))?;

    let date_name = if head.headers.contains_key("x-date") { "x-date" } else { "date" };
    let signed = match parameters.headers {
        None | Some("") => date_name,
        Some(list) => list,
    };
    check_date(head, date_name, now)?;
    let message = message(head, parameters.grammar, signed, date_name)?;
    Ok(Claim {
        key_id: KeyId::parse(key_id_text)?,
        key_id_text: Cow::Borrowed(key_id_text),
        algorithm,
        message,
        signature,
    })
}

fn malformed(why: &str) -> SignatureError {
    SignatureError::Malformed(why.to_owned())
}

fn parse(text: &str) -> Result<Parameters<'_>, SignatureError> {
    if text.len() > AUTHORIZATION_MAX {
        return Err(malformed("it is too long"));
    }
    let (scheme, mut rest) = text.split_once(' ').ok_or_else(|| malformed("it has no parameters"))?;
    if !scheme.eq_ignore_ascii_case("signature") {
        return Err(SignatureError::Unsigned);
    }
    let mut parameters = Parameters::default();
    rest = rest.trim_start_matches(' ');
    loop {
        let (name, after) = rest.split_once('=').ok_or_else(|| malformed("a parameter has no value"))?;
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(malformed("a parameter's name is not a word"));
        }
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').ok_or_else(|| malformed("a quote is not closed"))?,
            None => {
                let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
                if end == 0 {
                    return Err(malformed("a value is neither quoted nor a number"));
                }
                after.split_at(end)
            }
        };
        let slot = match name {
            "keyId" => Some(&mut parameters.key_id),
            "algorithm" => Some(&mut parameters.algorithm),
            "headers" => Some(&mut parameters.headers),
            "signature" => Some(&mut parameters.signature),
            // Parameters of later drafts say nothing we rely on.
            _ => None,
        };
        if slot.is_some_and(|slot| slot.replace(value).is_some()) {
            return Err(malformed("a parameter is given twice"));
        }
        let trimmed = after.trim_start_matches(' ');
        if trimmed.is_empty() {
            return Ok(parameters);
        }
        if let Some(next) = trimmed.strip_prefix(',') {
            rest = next.trim_start_matches(' ');
            continue;
        }
        if !after.starts_with(' ') || parameters.signature.is_some() {
            return Err(malformed("parameters are separated by commas"));
        }
        parameters.signature = Some(trimmed);
        parameters.grammar = Grammar::Legacy;
        return Ok(parameters);
    }
}

fn check_date(head: Head<'_>, name: &'static str, now: i64) -> Result<(), SignatureError> {
    let value = head.headers.get(name).ok_or_else(|| SignatureError::MissingHeader(name.to_owned()))?;
    let invalid = || SignatureError::InvalidDate(String::from_utf8_lossy(value.as_bytes()).chars().take(64).collect());
    let at = value.to_str().ok().and_then(parse_date).ok_or_else(invalid)?;
    let skew = now.abs_diff(at);
    if skew > CLOCK_SKEW_SECONDS {
        return Err(SignatureError::ClockSkew(skew));
    }
    Ok(())
}

/// The bytes that were signed. Every name in `signed` must be there, and the date among them.
fn message(head: Head<'_>, grammar: Grammar, signed: &str, date_name: &'static str) -> Result<Vec<u8>, SignatureError> {
    let mut message = Vec::with_capacity(256);
    let mut dated = false;
    for (position, name) in signed.split(' ').filter(|name| !name.is_empty()).enumerate() {
        if position == SIGNED_HEADERS_MAX {
            return Err(malformed("the signature covers too many headers"));
        }
        if position > 0 {
            message.push(b'\n');
        }
        if name.eq_ignore_ascii_case("request-line") {
            let line = format!("{} {} {:?}", head.method, head.target, head.version);
            message.extend_from_slice(line.as_bytes());
            continue;
        }
        if grammar == Grammar::Draft && name.eq_ignore_ascii_case("(request-target)") {
            message.extend_from_slice(b"(request-target): ");
            message.extend(head.method.as_str().bytes().map(|byte| byte.to_ascii_lowercase()));
            message.push(b' ');
            message.extend_from_slice(head.target.as_bytes());
            continue;
        }
        dated |= name.eq_ignore_ascii_case(date_name);
        append_header(head, grammar, name, &mut message)?;
    }
    if !dated {
        return Err(SignatureError::DateNotSigned(date_name));
    }
    Ok(message)
}

fn append_header(head: Head<'_>, grammar: Grammar, name: &str, message: &mut Vec<u8>) -> Result<(), SignatureError> {
    let missing = || SignatureError::MissingHeader(name.chars().take(64).collect());
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| missing())?;
    if grammar == Grammar::Draft {
        message.extend_from_slice(name.as_str().as_bytes());
        message.extend_from_slice(b": ");
    }
    let mut values = head.headers.get_all(&name).iter();
    match values.next() {
        Some(value) => message.extend_from_slice(value.as_bytes()),
        // HTTP/2 carries the host in the request's target instead of a header.
        None => return Err(missing()),
    }
    for value in values {
        message.extend_from_slice(b", ");
        message.extend_from_slice(value.as_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_grammars() {
        let draft =
            parse(r#"Signature keyId="/a/keys/b",algorithm="rsa-sha256",headers="date",signature="AA==""#).unwrap();
        assert_eq!((draft.grammar, draft.signature), (Grammar::Draft, Some("AA==")));
        let legacy = parse(r#"Signature keyId="/a/keys/b",algorithm="rsa-sha256" AA=="#).unwrap();
        assert_eq!((legacy.grammar, legacy.signature, legacy.headers), (Grammar::Legacy, Some("AA=="), None));
        let spaced = parse(r#"signature keyId="k", created=12, algorithm="x", signature="AA==""#).unwrap();
        assert_eq!((spaced.key_id, spaced.algorithm), (Some("k"), Some("x")));
    }

    #[test]
    fn refused() {
        for text in [
            "Signature",
            "Signature ",
            r#"Signature keyId="a"#,
            r#"Signature keyId=a"#,
            r#"Signature keyId="a"x"#,
            r#"Signature keyId="a",keyId="b""#,
            r#"Signature keyId="a",signature="AA==" AA=="#,
        ] {
            assert!(matches!(parse(text), Err(SignatureError::Malformed(_))), "{text}");
        }
        assert_eq!(parse("Basic YTpi"), Err(SignatureError::Unsigned));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(Signature )?[ -~]{0,300}") {
            let _ = parse(&text);
        }
    }
}
