//! What tenants say of names, in tags and metadata of an instance.
//!
//! Tags are checked when they are set, and the error names the part that is wrong. Records may still have others (a guest writes metadata
//! unasked, older programs checked less), so whoever reads them goes by what can be understood and leaves the rest out.

use std::collections::BTreeMap;

use super::{LABEL_MAX, check_name};
use crate::{
    instance::{Instance, TagValue},
    pairs::Pairs,
};

/// Tag: the services it is a member of.
pub const SERVICES: &str = "triton.cns.services";
/// Tag: it has no names at all.
pub const DISABLE: &str = "triton.cns.disable";
/// Tag: what its addresses are called.
pub const REVERSE_PTR: &str = "triton.cns.reverse_ptr";
/// Metadata: `down` takes it out of its services.
pub const STATUS: &str = "triton.cns.status";
/// Metadata: texts that prove to a certificate authority that its names are its own.
pub const ACME_CHALLENGE: &str = "triton.cns.acme-challenge";
/// Label of those texts.
pub const ACME_LABEL: &str = "_acme-challenge";

/// Entries of one list of services at most; each is a name, or a record of one.
pub const SERVICES_MAX: usize = 32;
/// Texts of one challenge at most: an authority asks for two at a time, for a name and for all below it.
pub const CHALLENGES_MAX: usize = 8;
/// Bytes of one such text at most: what one text of DNS may have.
const CHALLENGE_MAX_BYTES: usize = 255;
/// Weight of a service's port when none is given: Triton's.
const WEIGHT: u16 = 10;

/// One port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Its number.
    pub port: u16,
    /// See [`super::Data::Srv`].
    pub priority: u16,
    /// Likewise.
    pub weight: u16,
}

/// Services by their labels, with their ports in the order of the numbers.
pub type Services = BTreeMap<String, Vec<Port>>;

/// Reads a list of services: `label[:port][:key=value]…`, with commas between entries and `port`, `priority` and `weight` as keys.
/// Of a label that is there several times each port counts once, as it was said last.
pub fn services(text: &str) -> Result<Services, String> {
    let mut services = Services::new();
    let entries: Vec<&str> = text.split(',').collect();
    if entries.len() > SERVICES_MAX {
        return Err(format!("lists {} services; at most {SERVICES_MAX} are allowed", entries.len()));
    }
    for entry in entries {
        let (label, port) = service(entry.trim())?;
        let ports = services.entry(label).or_default();
        if let Some(port) = port {
            ports.retain(|known| known.port != port.port);
            ports.push(port);
            ports.sort_by_key(|known| known.port);
        }
    }
    Ok(services)
}

fn service(entry: &str) -> Result<(String, Option<Port>), String> {
    let mut parts = entry.split(':');
    let label = parts.next().unwrap_or_default();
    if label.is_empty() {
        return Err("has an entry without a name; write for example web:80,ssh".to_owned());
    }
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if label.len() > LABEL_MAX
        || !label.starts_with(|first: char| first.is_ascii_lowercase())
        || !label.bytes().all(fits)
    {
        return Err(format!(
            "service \"{}\" must be 1 to {LABEL_MAX} lower-case letters, digits and \"-\", a letter first",
            shortened(label)
        ));
    }
    let (mut port, mut priority, mut weight) = (None, 0, WEIGHT);
    for (position, part) in parts.enumerate() {
        match part.split_once('=') {
            Some(("port", value)) => port = Some(number(label, "port", value, 1)?),
            Some(("priority", value)) => priority = number(label, "priority", value, 0)?,
            Some(("weight", value)) => weight = number(label, "weight", value, 0)?,
            Some((key, _)) => {
                let key = shortened(key);
                return Err(format!(
                    "service \"{label}\" has \"{key}\"; port, priority and weight are what it may have"
                ));
            }
            None if position == 0 => port = Some(number(label, "port", part, 1)?),
            None => {
                let part = shortened(part);
                return Err(format!("service \"{label}\" has \"{part}\" where key=value is expected"));
            }
        }
    }
    Ok((label.to_owned(), port.map(|port| Port { port, priority, weight })))
}

fn number(label: &str, what: &str, text: &str, least: u16) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number >= least).ok_or_else(|| {
        format!(
            "service \"{label}\" has {what} \"{}\"; a number from {least} to {} is expected",
            shortened(text),
            u16::MAX
        )
    })
}

/// What a person typed, short enough to be said back.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 80;
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Reads what addresses are to be called: a name, a letter or digit first in each label.
pub fn reverse_ptr(text: &str) -> Result<String, String> {
    check_name(text).map_err(|why| format!("must be a DNS name, but {why}"))?;
    Ok(text.to_ascii_lowercase())
}

/// Reads the texts of a challenge: URL-safe base64, with spaces between them.
pub fn challenges(text: &str) -> Result<Vec<String>, String> {
    let texts: Vec<&str> = text.split(' ').filter(|text| !text.is_empty()).collect();
    if texts.len() > CHALLENGES_MAX {
        return Err(format!("has {} texts; at most {CHALLENGES_MAX} are allowed", texts.len()));
    }
    for text in &texts {
        if text.len() > CHALLENGE_MAX_BYTES {
            return Err(format!("has a text of {} bytes; at most {CHALLENGE_MAX_BYTES} are allowed", text.len()));
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'=')) {
            return Err(format!("\"{}\" is no URL-safe base64", shortened(text)));
        }
    }
    Ok(texts.into_iter().map(str::to_owned).collect())
}

/// Checks a tag that is a text and has a meaning for names.
pub fn check_tag(key: &str, text: &str) -> Result<(), String> {
    match key {
        SERVICES => services(text).map(|_| ()),
        REVERSE_PTR => reverse_ptr(text).map(|_| ()),
        _ => Ok(()),
    }
}

/// Checks metadata that has a meaning for names.
pub fn check_metadata(key: &str, text: &str) -> Result<(), String> {
    match key {
        ACME_CHALLENGE => challenges(text).map(|_| ()),
        _ => Ok(()),
    }
}

/// What an instance says of its names, as far as it can be understood.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// It wants none.
    pub disabled: bool,
    /// It wants to be left out of its services.
    pub down: bool,
    /// What it is a member of.
    pub services: Services,
    /// What its addresses are called.
    pub reverse_ptr: Option<String>,
    /// See [`ACME_CHALLENGE`].
    pub challenges: Vec<String>,
}

impl Said {
    /// By `instance`.
    pub fn by(instance: &Instance) -> Self {
        let text = |key| match instance.tags.get(key) {
            Some(TagValue::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        let metadata = |key: &str| -> Option<&str> { get(&instance.metadata, key) };
        Self {
            disabled: match instance.tags.get(DISABLE) {
                None | Some(TagValue::Bool(false)) => false,
                Some(TagValue::Text(text)) => text != "false",
                Some(_) => true,
            },
            down: metadata(STATUS) == Some("down"),
            services: text(SERVICES).and_then(|text| services(text).ok()).unwrap_or_default(),
            reverse_ptr: text(REVERSE_PTR).and_then(|text| reverse_ptr(text).ok()),
            challenges: metadata(ACME_CHALLENGE).and_then(|text| challenges(text).ok()).unwrap_or_default(),
        }
    }
}

fn get<'a>(pairs: &'a Pairs<String, String>, key: &str) -> Option<&'a str> {
    pairs.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> String {
        match services(text) {
            Ok(services) => {
                let ports = |ports: &[Port]| {
                    let one = |port: &Port| format!(":{}/{}/{}", port.port, port.priority, port.weight);
                    ports.iter().map(one).collect::<String>()
                };
                services.iter().map(|(label, of)| format!("{label}{}", ports(of))).collect::<Vec<_>>().join(" ")
            }
            Err(why) => why,
        }
    }

    #[test]
    fn lists_of_services() {
        let long = "a".repeat(64);
        let cases = [
            ("foo", "foo"),
            ("foo:1234", "foo:1234/0/10"),
            ("foo,bar", "bar foo"),
            ("foo:1234,foo:1235, bar", "bar foo:1234/0/10:1235/0/10"),
            ("foo:port=1234", "foo:1234/0/10"),
            ("foo:1:port=2:port=3", "foo:3/0/10"),
            ("foo:1234:priority=20", "foo:1234/20/10"),
            ("foo:1234:priority=20:weight=20,foo:1234:weight=7", "foo:1234/0/7"),
            ("foo:priority=20", "foo"),
            ("", "has an entry without a name; write for example web:80,ssh"),
            ("foo,,bar", "has an entry without a name; write for example web:80,ssh"),
            (":80", "has an entry without a name; write for example web:80,ssh"),
            ("Foo", "service \"Foo\" must be 1 to 63 lower-case letters, digits and \"-\", a letter first"),
            ("a_b", "service \"a_b\" must be 1 to 63 lower-case letters, digits and \"-\", a letter first"),
            ("9a", "service \"9a\" must be 1 to 63 lower-case letters, digits and \"-\", a letter first"),
            ("foo:0", "service \"foo\" has port \"0\"; a number from 1 to 65535 is expected"),
            ("foo:65536", "service \"foo\" has port \"65536\"; a number from 1 to 65535 is expected"),
            ("foo:+5", "service \"foo\" has port \"+5\"; a number from 1 to 65535 is expected"),
            ("foo:80:90", "service \"foo\" has \"90\" where key=value is expected"),
            ("foo:80:weight=x", "service \"foo\" has weight \"x\"; a number from 0 to 65535 is expected"),
            ("foo:colour=red", "service \"foo\" has \"colour\"; port, priority and weight are what it may have"),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text), expected, "{text:?}");
        }
        assert!(read(&long).contains("must be 1 to 63"));
        assert!(read(&vec!["a"; 33].join(",")).contains("lists 33 services"));
    }

    #[test]
    fn names_of_addresses_and_challenges() {
        assert_eq!(reverse_ptr("Mail.Example.com"), Ok("mail.example.com".to_owned()));
        for wrong in ["", "a b", "mail.example.com.", "-x.y", "a_b.c"] {
            assert!(reverse_ptr(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(challenges("abc-_1= x"), Ok(vec!["abc-_1=".to_owned(), "x".to_owned()]));
        assert_eq!(challenges(""), Ok(Vec::new()));
        for (wrong, word) in [("a+b", "\"a+b\""), ("ü", "base64"), ("1 2 3 4 5 6 7 8 9", "has 9 texts")] {
            let why = challenges(wrong).expect_err(wrong);
            assert!(why.contains(word), "{why}");
        }
        assert!(challenges(&"a".repeat(256)).expect_err("too long").contains("256 bytes"));
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_within_bounds(text in "[a-c9:=,. portiyweghP-]{0,40}") {
            if let Ok(services) = services(&text) {
                prop_assert!(!services.is_empty());
                for (label, ports) in services {
                    prop_assert!(check_name(&label).is_ok());
                    prop_assert!(ports.iter().all(|port| port.port > 0));
                    prop_assert!(ports.windows(2).all(|two| two[0].port < two[1].port));
                }
            }
        }

        #[test]
        fn nothing_a_person_types_is_more_than_refused(text in any::<String>()) {
            for outcome in [services(&text).map(|_| ()), reverse_ptr(&text).map(|_| ()), challenges(&text).map(|_| ())] {
                if let Err(why) = outcome {
                    prop_assert!(why.len() < 1_000);
                }
            }
        }

        #[test]
        fn what_is_written_is_read(
            entries in proptest::collection::vec(("[a-z][a-z0-9-]{0,9}", 1u16.., any::<u16>(), any::<u16>()), 1..6),
        ) {
            let text: Vec<String> = entries
                .iter()
                .map(|(label, port, priority, weight)| format!("{label}:{port}:weight={weight}:priority={priority}"))
                .collect();
            let read = services(&text.join(",")).expect("a list");
            for (at, (label, port, priority, weight)) in entries.iter().enumerate() {
                let later = entries[at + 1..].iter().any(|other| (&other.0, other.1) == (label, *port));
                let port = Port { port: *port, priority: *priority, weight: *weight };
                prop_assert!(later || read[label].contains(&port));
            }
        }
    }
}
