//! The metadata protocol a guest and its machine speak over a unix socket or a serial line, as pure text.
//!
//! Two versions share one line-oriented stream. A guest starts in version 1 and may switch with `NEGOTIATE V2`:
//!
//! | | question | answer |
//! |---|---|---|
//! | 1 | `GET <key>` or `KEYS` | `SUCCESS`, the value's lines with a leading `.` doubled, then a line `.`; or `NOTFOUND`; or `FAILURE` |
//! | 2 | a frame with `GET`, `KEYS`, `PUT`, `DELETE` | a frame with `SUCCESS`, `NOTFOUND`, `FAILURE` |
//!
//! A frame is one line `V2 <length> <crc32> <body>`; the body is `<request id> <word>[ <base64 payload>]`; length and
//! checksum count the body's bytes. Version 1 cannot tell a damaged line from a good one, which is why serial lines want
//! version 2; a socket does not damage bytes, yet the frames are checked there too, because the peer is a stranger.
//!
//! Nothing here reads or writes: [`server`] turns lines into requests and answers into text, [`client`] the reverse.

pub mod client;
pub mod server;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

/// Longest key, bytes. Longer than any key people use, short enough to be logged.
pub const KEY_MAX_BYTES: usize = 256;

/// Longest value a guest may store, bytes. Holds any script or certificate chain that is still metadata and not a file.
pub const VALUE_MAX_BYTES: usize = 128 << 10;

/// Longest line either side accepts, bytes, the end of line not counted. A `PUT` of the longest value is encoded in base64 twice
/// (16/9 of its size) and still fits.
pub const LINE_MAX_BYTES: usize = 256 << 10;

/// Longest answer a client accepts, bytes: values set from outside may be longer than what a guest may store.
pub const ANSWER_MAX_BYTES: usize = 4 << 20;

/// Longest request id, hex digits.
pub const REQUEST_ID_MAX_DIGITS: usize = 16;

/// What a guest asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The value of a key.
    Get(String),
    /// Names of all keys.
    Keys,
    /// Store a value.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Forget a key.
    Delete(String),
}

/// What the machine answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done; the value for `GET`, the names for `KEYS`, nothing for `PUT` and `DELETE`.
    Success(Option<String>),
    /// No such key.
    NotFound,
    /// Refused, in words.
    Failure(String),
}

/// A line that is no good frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// Not `V2 <length> <crc32> <body>`.
    Shape,
    /// The length is not the body's.
    Length,
    /// The checksum is not the body's.
    Checksum,
    /// The body is not `<request id> <word>[ <base64>]`.
    Body,
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Shape => "the line is not a frame of version 2",
            Self::Length => "the frame's length is not that of its body",
            Self::Checksum => "the frame's checksum is not that of its body",
            Self::Body => "the frame's body is not \"<request id> <word> <base64>\"",
        })
    }
}

impl std::error::Error for FrameError {}

/// A frame taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<'line> {
    /// Hex digits the guest chose and gets back.
    pub request_id: &'line str,
    /// Command or code.
    pub word: &'line str,
    /// Decoded payload, when there is one.
    pub payload: Option<Vec<u8>>,
}

impl<'line> Frame<'line> {
    /// Takes a line apart (without its end of line) and checks length and checksum.
    pub fn parse(line: &'line str) -> Result<Self, FrameError> {
        let rest = line.strip_prefix("V2 ").ok_or(FrameError::Shape)?;
        let (length, rest) = rest.split_once(' ').ok_or(FrameError::Shape)?;
        let (checksum, body) = rest.split_once(' ').ok_or(FrameError::Shape)?;
        if length.is_empty() || length.len() > 9 || !length.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(FrameError::Shape);
        }
        if checksum.len() != 8 || !checksum.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(FrameError::Shape);
        }
        if length.parse() != Ok(body.len()) {
            return Err(FrameError::Length);
        }
        if u32::from_str_radix(checksum, 16) != Ok(crc32fast::hash(body.as_bytes())) {
            return Err(FrameError::Checksum);
        }
        Self::parse_body(body).ok_or(FrameError::Body)
    }

    fn parse_body(body: &'line str) -> Option<Self> {
        let mut words = body.split(' ');
        let request_id = words.next()?;
        let word = words.next()?;
        let payload = words.next();
        let hex = request_id.bytes().all(|digit| digit.is_ascii_hexdigit());
        if request_id.is_empty() || request_id.len() > REQUEST_ID_MAX_DIGITS || !hex || words.next().is_some() {
            return None;
        }
        if word.is_empty() || !word.bytes().all(|letter| letter.is_ascii_uppercase()) {
            return None;
        }
        let payload = payload.map(|text| BASE64.decode(text)).transpose().ok()?;
        Some(Self { request_id, word, payload })
    }

    /// One line, its end included. An empty payload is left out with its space: clients exist that count without it.
    pub fn encode(request_id: &str, word: &str, payload: Option<&[u8]>) -> String {
        let mut body = format!("{request_id} {word}");
        if let Some(payload) = payload.filter(|payload| !payload.is_empty()) {
            body.push(' ');
            BASE64.encode_string(payload, &mut body);
        }
        format!("V2 {} {:08x} {body}\n", body.len(), crc32fast::hash(body.as_bytes()))
    }
}

/// Whether `key` may be used: not empty, not too long, no line breaks or other control characters.
pub fn key_is_valid(key: &str) -> bool {
    !key.is_empty() && key.len() <= KEY_MAX_BYTES && !key.chars().any(char::is_control)
}
