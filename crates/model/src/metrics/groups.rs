//! Groups of instances that are watched together: what the tag `triton.cmon.groups` says, and a watcher who wants some of them only.

use std::collections::BTreeSet;

use crate::instance::{Instance, TagValue};

/// Tag: the groups an instance is in.
pub const TAG: &str = "triton.cmon.groups";
/// Groups in one list at most: Triton's number.
pub const GROUPS_MAX: usize = 100;
/// Characters of a group's name at most, likewise.
pub const GROUP_MAX_CHARS: usize = 100;

/// Reads a list of groups: names of letters, digits, `_` and `-` with commas between them, each once.
pub fn read(text: &str) -> Result<Vec<&str>, String> {
    let mut seen = BTreeSet::new();
    let mut groups = Vec::new();
    for group in text.split(',') {
        if groups.len() == GROUPS_MAX {
            return Err(format!("lists more than {GROUPS_MAX} groups"));
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if group.is_empty() || group.len() > GROUP_MAX_CHARS || !group.bytes().all(fits) {
            return Err(format!(
                "group \"{}\" must be 1 to {GROUP_MAX_CHARS} letters, digits, \"_\" and \"-\"",
                shortened(group)
            ));
        }
        if !seen.insert(group) {
            return Err(format!("lists group \"{group}\" twice"));
        }
        groups.push(group);
    }
    Ok(groups)
}

/// The groups an instance is in; none when its tag is no list (older programs did not check it).
pub fn of(instance: &Instance) -> Vec<&str> {
    match instance.tags.get(TAG) {
        Some(TagValue::Text(text)) => read(text).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// What a person typed, short enough to be said back.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(GROUP_MAX_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_of_groups() {
        assert_eq!(read("api"), Ok(vec!["api"]));
        assert_eq!(read("web_1,DB-2,7"), Ok(vec!["web_1", "DB-2", "7"]));
        let many = (0..=GROUPS_MAX).map(|number| format!("g{number}")).collect::<Vec<_>>().join(",");
        let long = "a".repeat(GROUP_MAX_CHARS + 1);
        for (text, words) in [
            ("", "group \"\" must be"),
            ("a,,b", "group \"\" must be"),
            ("a, b", "group \" b\" must be"),
            ("a.b", "group \"a.b\" must be"),
            ("ä", "group \"ä\" must be"),
            ("a,b,a", "lists group \"a\" twice"),
            (&many, "more than 100"),
            (&long, "1 to 100"),
        ] {
            let why = read(text).expect_err(text);
            assert!(why.contains(words) && why.len() < 500, "{text}: {why}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_within_bounds(text in any::<String>()) {
            match read(&text) {
                Ok(groups) => prop_assert_eq!(groups.join(","), text),
                Err(why) => prop_assert!(why.len() < 1_000),
            }
        }
    }
}
