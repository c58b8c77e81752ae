//! Multipart forms (RFC 7578), for bodies that are in memory already: fields of text and nothing else.

/// Most parts of a form.
const PARTS_MAX: usize = 1_024;

/// Name and text of each part; `None` when this is no form of text fields.
pub(super) fn parse(content_type: &str, body: &[u8]) -> Option<Vec<(String, String)>> {
    let boundary = content_type.split(';').map(str::trim).find_map(|part| part.strip_prefix("boundary="))?;
    let boundary = boundary.trim_matches('"');
    if boundary.is_empty() || boundary.len() > 70 {
        return None;
    }
    let text = std::str::from_utf8(body).ok()?;
    let delimiter = format!("\r\n--{boundary}");
    // The first delimiter has no line end before it when there is no preamble.
    let mut rest = match text.strip_prefix(&delimiter[2..]) {
        Some(rest) => rest,
        None => text.split_once(&delimiter)?.1,
    };
    let mut parts = Vec::new();
    while !rest.starts_with("--") {
        let (part, after) = rest.trim_start_matches([' ', '\t']).strip_prefix("\r\n")?.split_once(&delimiter)?;
        let (head, value) = match part.strip_prefix("\r\n") {
            Some(value) => ("", value),
            None => part.split_once("\r\n\r\n")?,
        };
        if parts.len() == PARTS_MAX {
            return None;
        }
        parts.push((name(head)?, value.to_owned()));
        rest = after;
    }
    Some(parts)
}

fn name(head: &str) -> Option<String> {
    let disposition = head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    let name = disposition.split(';').map(str::trim).find_map(|part| part.strip_prefix("name="))?;
    Some(name.trim_matches('"').to_owned())
}
