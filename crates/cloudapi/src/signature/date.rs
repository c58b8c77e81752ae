//! Dates in request headers.

use jiff::{Timestamp, civil::DateTime, fmt::rfc2822, tz::TimeZone};

/// Seconds since 1970 of a `Date` header. Clients write what their language prints: RFC 1123 with `GMT` or `UTC`, RFC 2822
/// with an offset, or RFC 3339.
pub fn parse_date(text: &str) -> Option<i64> {
    let text = text.trim();
    if text.len() > 64 {
        return None;
    }
    let universal = text.strip_suffix("GMT").or_else(|| text.strip_suffix("UTC"));
    if let Some(civil) = universal {
        if let Ok(at) = DateTime::strptime("%a, %d %b %Y %H:%M:%S", civil.trim_end()) {
            return at.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp().as_second());
        }
        return rfc2822::parse(&format!("{}+0000", civil)).ok().map(|zoned| zoned.timestamp().as_second());
    }
    if let Ok(zoned) = rfc2822::parse(text) {
        return Some(zoned.timestamp().as_second());
    }
    text.parse::<Timestamp>().ok().map(|at| at.as_second())
}

/// A `Date` header for `seconds` since 1970, as RFC 9110 wants it.
pub fn http_date(seconds: i64) -> String {
    let at = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    at.to_zoned(TimeZone::UTC).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_clients_write() {
        for text in [
            "Tue, 24 Nov 2026 15:06:00 GMT",
            "Tue, 24 Nov 2026 15:06:00 UTC",
            "Tue, 24 Nov 2026 16:06:00 +0100",
            "2026-11-24T15:06:00Z",
            "2026-11-24T15:06:00.123Z",
        ] {
            assert_eq!(parse_date(text), Some(1_795_532_760), "{text}");
        }
        for text in ["", "yesterday", "Tue, 99 Nov 2026 15:06:00 GMT", "1795532760"] {
            assert_eq!(parse_date(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn written_dates_are_read(seconds in 0_i64..253_000_000_000) {
            prop_assert_eq!(parse_date(&http_date(seconds)), Some(seconds));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,80}") {
            let _ = parse_date(&text);
        }
    }
}
