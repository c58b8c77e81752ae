//! What a value of the contract looks like: for each field its kind, and whether it may be missing.

use serde_json::Value;

/// Kind of a field.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// `8-4-4-4-12` lower-case hex.
    Uuid,
    /// RFC 3339 in UTC with milliseconds.
    Time,
    /// IPv4.
    Ip,
    /// `aa:bb:cc:dd:ee:ff`.
    Mac,
    /// MD5 in sixteen pairs.
    Fingerprint,
    /// Any text.
    Text,
    /// A whole number.
    Number,
    /// True or false.
    Bool,
    /// A list.
    List,
    /// An object.
    Object,
}

/// Insists that every named field is there and of its kind. A `?` at the end of a name lets it be missing.
#[track_caller]
pub(crate) fn check(what: &str, value: &Value, fields: &[(&str, Kind)]) {
    for (name, kind) in fields {
        let field = name.trim_end_matches('?');
        match value.get(field) {
            None => assert!(name.ends_with('?'), "{what} has no \"{field}\": {value}"),
            Some(found) => assert!(is(found, *kind), "{what}: \"{field}\" is {found}, not {kind:?}"),
        }
    }
}

fn is(value: &Value, kind: Kind) -> bool {
    let text = value.as_str().unwrap_or_default();
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let parts = |separator: char, lengths: &[usize]| {
        let parts: Vec<&str> = text.split(separator).collect();
        parts.len() == lengths.len()
            && parts.iter().zip(lengths).all(|(part, length)| part.len() == *length && hex(part))
    };
    match kind {
        Kind::Uuid => parts('-', &[8, 4, 4, 4, 12]),
        Kind::Time => {
            text.len() == 24 && text.ends_with('Z') && text.as_bytes()[10] == b'T' && text.as_bytes()[19] == b'.'
        }
        Kind::Ip => text.parse::<std::net::Ipv4Addr>().is_ok(),
        Kind::Mac => parts(':', &[2; 6]),
        Kind::Fingerprint => parts(':', &[2; 16]),
        Kind::Text => value.is_string(),
        Kind::Number => value.is_u64() || value.is_i64(),
        Kind::Bool => value.is_boolean(),
        Kind::List => value.is_array(),
        Kind::Object => value.is_object(),
    }
}
