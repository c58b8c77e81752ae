//! Which version of the contract a request wants.
//!
//! Clients send a range in `Accept-Version` (older ones in `Api-Version`): alternatives joined by `||`, each a version
//! with one to three numbers and perhaps `~`, `^`, `>=`, `=`, or `*`. The highest of ours that fits is taken.

use http::HeaderMap;

/// Longest range we read, bytes.
const RANGE_MAX: usize = 256;

/// A version of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    major: u32,
    minor: u32,
    text: &'static str,
}

const fn version(major: u32, minor: u32, text: &'static str) -> Version {
    Version { major, minor, text }
}

/// What we speak, newest first; see [`cloudapi::types::service::VERSIONS`].
const OURS: [Version; 6] = [
    version(9, 0, "9.0.0"),
    version(8, 0, "8.0.0"),
    version(7, 3, "7.3.0"),
    version(7, 2, "7.2.0"),
    version(7, 1, "7.1.0"),
    version(7, 0, "7.0.0"),
];

impl Version {
    pub(super) const NEWEST: Self = OURS[0];

    pub(super) const fn as_str(self) -> &'static str {
        self.text
    }

    /// Whether this is `major.minor` or later.
    pub(super) const fn at_least(self, major: u32, minor: u32) -> bool {
        self.major > major || (self.major == major && self.minor >= minor)
    }
}

/// The version for a request; `Err` is the range nothing of ours fits.
pub(super) fn negotiate(headers: &HeaderMap) -> Result<Version, String> {
    let header = headers.get("accept-version").or_else(|| headers.get("api-version"));
    let Some(header) = header else {
        return Ok(Version::NEWEST);
    };
    let range = header.to_str().unwrap_or("").trim();
    let fits = |ours: &Version| range.split("||").any(|alternative| admits(alternative.trim(), *ours));
    match range.len() <= RANGE_MAX {
        true => OURS.into_iter().find(fits).ok_or_else(|| range.to_owned()),
        false => Err(range.chars().take(RANGE_MAX).collect()),
    }
}

/// Whether one alternative of a range admits `ours`. Parts separated by spaces must all hold.
fn admits(alternative: &str, ours: Version) -> bool {
    if alternative.is_empty() {
        return false;
    }
    alternative.split_whitespace().all(|part| part_admits(part, ours))
}

fn part_admits(part: &str, ours: Version) -> bool {
    let digits = part.trim_start_matches(['~', '^', '>', '<', '=', 'v']);
    let operator = part[..part.len() - digits.len()].trim_end_matches('v');
    let mut numbers = Vec::new();
    for number in digits.split('.') {
        match number.parse::<u32>() {
            Ok(number) => numbers.push(number),
            Err(_) if matches!(number, "*" | "x" | "X") => break,
            Err(_) => return false,
        }
    }
    let given = numbers.len();
    if given > 3 {
        return false;
    }
    numbers.resize(3, 0);
    let wanted = (numbers[0], numbers[1], numbers[2]);
    let own = (ours.major, ours.minor, 0);
    let same_prefix = match given {
        0 => true,
        1 => own.0 == wanted.0,
        2 => (own.0, own.1) == (wanted.0, wanted.1),
        _ => own == wanted,
    };
    match operator {
        "" | "=" => same_prefix,
        "~" => same_prefix || (given == 3 && own >= wanted && (own.0, own.1) == (wanted.0, wanted.1)),
        "^" => own >= wanted && own.0 == wanted.0,
        ">=" => own >= wanted,
        ">" => own > wanted && !same_prefix,
        "<" => own < wanted,
        "<=" => own <= wanted || same_prefix,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(range: &str) -> Result<&'static str, String> {
        let mut headers = HeaderMap::new();
        headers.insert("accept-version", range.parse().expect("ranges are header values"));
        negotiate(&headers).map(Version::as_str)
    }

    #[test]
    fn ranges_of_clients() {
        for (range, wanted) in [
            ("~9||~8", "9.0.0"),
            ("~8||~7", "8.0.0"),
            ("*", "9.0.0"),
            ("8", "8.0.0"),
            ("~7.2", "7.2.0"),
            ("7.0.0", "7.0.0"),
            ("~7.1.0", "7.1.0"),
            ("^7", "7.3.0"),
            (">=7.1 <8", "7.3.0"),
            ("7.x", "7.3.0"),
            ("~6||~7", "7.3.0"),
        ] {
            assert_eq!(of(range).as_deref(), Ok(wanted), "{range}");
        }
        for range in ["~6", "10", "nine", "", "||", "7.0.0.0", "~6.5||"] {
            assert_eq!(of(range), Err(range.to_owned()), "{range}");
        }
        assert_eq!(negotiate(&HeaderMap::new()).map(Version::as_str).as_deref(), Ok("9.0.0"));
    }

    #[test]
    fn the_table_is_the_contracts() {
        assert_eq!(OURS.map(Version::as_str), cloudapi::types::service::VERSIONS);
    }

    proptest! {
        #[test]
        fn any_range_is_read_or_refused(range in "[ -~]{0,300}") {
            let _ = of(&range);
        }
    }
}
