//! What names, tags and metadata may be.
//!
//! Each check returns the sentence a person reads beside the name of the field: what is wrong and what would be right.

use std::collections::BTreeMap;

use crate::{instance::TagValue, metrics::groups, names};

/// Characters of an instance's name at most: 189 as Triton allows, 63 where the name becomes a DNS label.
pub const ALIAS_MAX: usize = 189;
/// Tags per instance: enough for any scheme of labels, few enough to be sent to a node whole.
pub const TAGS_MAX: usize = 128;
/// Bytes of a tag's or metadata's key.
pub const KEY_MAX_BYTES: usize = 256;
/// Bytes of a tag's text.
pub const TAG_VALUE_MAX_BYTES: usize = 4_096;
/// Keys of metadata per instance.
pub const METADATA_MAX: usize = 128;
/// Bytes of all metadata of an instance together: a cloud-init script with some data, and a bound on the node's target.
pub const METADATA_MAX_BYTES: usize = 64 << 10;
/// Characters of the names of packages, networks, images and keys.
pub const NAME_MAX: usize = 256;

/// Checks an instance's name: `[a-zA-Z0-9]` first, then also `_ . -`.
pub fn check_alias(alias: &str, max: usize) -> Result<(), String> {
    let shape = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if alias.is_empty() {
        return Err("is empty; give at least one letter or digit".to_owned());
    }
    if alias.len() > max {
        return Err(format!("has {} characters; at most {max} are allowed", alias.len()));
    }
    if !alias.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return Err("must begin with a letter or a digit".to_owned());
    }
    if !alias.bytes().all(shape) {
        return Err("may only have letters, digits, \"_\", \".\" and \"-\"".to_owned());
    }
    Ok(())
}

/// Checks the login of an account: 3 to 32 characters, a letter first, then also digits and `_ . @ -`.
pub fn check_login(login: &str) -> Result<(), String> {
    if !(3..=32).contains(&login.len()) {
        return Err("must have 3 to 32 characters".to_owned());
    }
    if !login.starts_with(|first: char| first.is_ascii_alphabetic()) {
        return Err("must begin with a letter".to_owned());
    }
    if !login.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'@' | b'-')) {
        return Err("may only have letters, digits, \"_\", \".\", \"@\" and \"-\"".to_owned());
    }
    Ok(())
}

/// Checks the name of a package, network, image or key: visible, on one line, no slash, since it stands in paths.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty".to_owned());
    }
    if name.chars().count() > NAME_MAX {
        return Err(format!("is longer than {NAME_MAX} characters"));
    }
    if name.chars().any(|character| character.is_control() || character == '/') {
        return Err("may not have control characters or \"/\"".to_owned());
    }
    Ok(())
}

/// Checks a NIC tag: 1 to 10 of `[a-z0-9]`, because it becomes part of a bridge's name, and none that stands for a fabric.
pub fn check_nic_tag(tag: &str) -> Result<(), String> {
    let shape = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if !(1..=10).contains(&tag.len()) || !tag.bytes().all(shape) {
        return Err("must be 1 to 10 lower-case letters and digits".to_owned());
    }
    match tag.strip_prefix('x').is_some_and(|vni| vni.len() == 6 && vni.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        true => Err("may not be \"x\" and six hex digits, which stand for tenants' own networks".to_owned()),
        false => Ok(()),
    }
}

/// Whether `name` can be a host name: one DNS label.
pub fn is_hostname(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Checks tags; the error names the tag first.
pub fn check_tags(tags: &BTreeMap<String, TagValue>) -> Result<(), (String, String)> {
    if tags.len() > TAGS_MAX {
        return Err(("tags".to_owned(), format!("{} tags are given; at most {TAGS_MAX} are allowed", tags.len())));
    }
    for (key, value) in tags {
        let failed = |why: String| Err((format!("tag.{key}"), why));
        if key.is_empty() || key.len() > KEY_MAX_BYTES || key.chars().any(char::is_control) {
            return failed(format!("a tag's name has 1 to {KEY_MAX_BYTES} visible characters"));
        }
        if key.starts_with("docker:") {
            return failed("names that begin with \"docker:\" are reserved".to_owned());
        }
        if matches!(value, TagValue::Text(text) if text.len() > TAG_VALUE_MAX_BYTES) {
            return failed(format!("a tag's text has at most {TAG_VALUE_MAX_BYTES} bytes"));
        }
        check_known_tag(key, value).or_else(failed)?;
    }
    Ok(())
}

/// Checks the names of an image's labels.
pub fn check_tag_names<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let mut count = 0;
    for name in names {
        count += 1;
        if count > TAGS_MAX {
            return Err(format!("has more than {TAGS_MAX} entries"));
        }
        if name.is_empty() || name.len() > KEY_MAX_BYTES || name.chars().any(char::is_control) {
            return Err(format!("has a name that is not 1 to {KEY_MAX_BYTES} visible characters"));
        }
    }
    Ok(())
}

/// Tags under `triton.` have meanings, and so have types.
fn check_known_tag(key: &str, value: &TagValue) -> Result<(), String> {
    match (key, value) {
        ("triton.cns.disable" | "triton.placement.exclude_virtual_servers", TagValue::Bool(_))
        | ("triton.network.public", TagValue::Text(_)) => Ok(()),
        (groups::TAG, TagValue::Text(text)) => groups::read(text).map(|_| ()),
        ("triton.cns.services" | "triton.cns.reverse_ptr", TagValue::Text(text)) => names::tags::check_tag(key, text),
        ("triton.cns.disable" | "triton.placement.exclude_virtual_servers", _) => {
            Err("must be true or false".to_owned())
        }
        ("triton.cns.services" | "triton.cns.reverse_ptr" | groups::TAG | "triton.network.public", _) => {
            Err("must be a text".to_owned())
        }
        _ if key.starts_with("triton.") => {
            Err("no such tag; names that begin with \"triton.\" are reserved".to_owned())
        }
        _ => Ok(()),
    }
}

/// Checks metadata; the error names the key first.
pub fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<(), (String, String)> {
    if metadata.len() > METADATA_MAX {
        let why = format!("{} keys are given; at most {METADATA_MAX} are allowed", metadata.len());
        return Err(("metadata".to_owned(), why));
    }
    for (key, value) in metadata {
        if key.is_empty() || key.len() > KEY_MAX_BYTES || key.chars().any(char::is_control) {
            let why = format!("a key has 1 to {KEY_MAX_BYTES} visible characters");
            return Err((format!("metadata.{key}"), why));
        }
        if key == "credentials" || key.starts_with("sdc:") {
            return Err((format!("metadata.{key}"), "this key is reserved".to_owned()));
        }
        names::tags::check_metadata(key, value).map_err(|why| (format!("metadata.{key}"), why))?;
    }
    let bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > METADATA_MAX_BYTES {
        let why = format!("keys and values have {bytes} bytes together; at most {METADATA_MAX_BYTES} are allowed");
        return Err(("metadata".to_owned(), why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(check: Result<(), String>) -> String {
        check.map_or_else(|why| why, |()| "fine".to_owned())
    }

    #[test]
    fn aliases() {
        let cases = [
            ("web-1", "fine"),
            ("0day_x.y", "fine"),
            ("", "is empty; give at least one letter or digit"),
            ("-x", "must begin with a letter or a digit"),
            ("a b", "may only have letters, digits, \"_\", \".\" and \"-\""),
            ("é", "must begin with a letter or a digit"),
        ];
        for (alias, expected) in cases {
            assert_eq!(verdict(check_alias(alias, ALIAS_MAX)), expected, "{alias:?}");
        }
        assert!(check_alias(&"a".repeat(64), 63).is_err());
    }

    #[test]
    fn logins() {
        for (login, expected) in [
            ("demo", "fine"),
            ("a@b", "fine"),
            ("my", "must have 3 to 32 characters"),
            ("9lives", "must begin with a letter"),
            ("a/b", "may only have letters, digits, \"_\", \".\", \"@\" and \"-\""),
        ] {
            assert_eq!(verdict(check_login(login)), expected, "{login:?}");
        }
    }

    #[test]
    fn tags_with_meanings_have_types() {
        let check = |key: &str, value: TagValue| check_tags(&BTreeMap::from([(key.to_owned(), value)]));
        assert!(check("role", TagValue::Text("db".to_owned())).is_ok());
        assert!(check("triton.cns.disable", TagValue::Bool(true)).is_ok());
        assert!(check("triton.cns.disable", TagValue::Text("yes".to_owned())).is_err());
        assert!(check("triton.unheard.of", TagValue::Bool(true)).is_err());
        assert!(check("docker:label", TagValue::Bool(true)).is_err());
        let text = |text: &str| TagValue::Text(text.to_owned());
        assert!(check("triton.cns.services", text("web:80,ssh")).is_ok());
        let (tag, why) = check("triton.cns.services", text("web:http")).expect_err("no port");
        assert_eq!(tag, "tag.triton.cns.services");
        assert!(why.contains("service \"web\" has port \"http\""), "{why}");
        assert!(check("triton.cns.reverse_ptr", text("mail.example.com")).is_ok());
        assert!(check("triton.cns.reverse_ptr", text("mail_1.example.com")).is_err());
        assert!(check(groups::TAG, text("web,db_2")).is_ok());
        let (tag, why) = check(groups::TAG, text("web,db 2")).expect_err("no group");
        assert!(tag == "tag.triton.cmon.groups" && why.contains("group \"db 2\""), "{tag}: {why}");
        assert!(check(groups::TAG, TagValue::Bool(true)).is_err());
        let too_long = TagValue::Text("x".repeat(TAG_VALUE_MAX_BYTES + 1));
        assert_eq!(check("x", too_long).expect_err("too long").0, "tag.x");
    }

    #[test]
    fn metadata_is_bounded_as_a_whole() {
        let half = "x".repeat(METADATA_MAX_BYTES / 2);
        let mut metadata = BTreeMap::from([("a".to_owned(), half.clone())]);
        assert!(check_metadata(&metadata).is_ok());
        metadata.insert("b".to_owned(), half);
        assert_eq!(check_metadata(&metadata).expect_err("too much").0, "metadata");
        assert!(check_metadata(&BTreeMap::from([("sdc:uuid".to_owned(), String::new())])).is_err());
        let challenge =
            |text: &str| check_metadata(&BTreeMap::from([("triton.cns.acme-challenge".to_owned(), text.to_owned())]));
        assert!(challenge("abc def").is_ok());
        assert_eq!(challenge("a+b").expect_err("no challenge").0, "metadata.triton.cns.acme-challenge");
    }
}
