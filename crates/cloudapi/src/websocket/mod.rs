//! WebSocket, as much of RFC 6455 as a feed of texts needs: the handshake's key, frames both ways, and a socket over any stream.
//!
//! ```text
//! bytes ─► Decoder: frames, unmasked, joined ─► Message          Message ─► encode ─► bytes
//! ```
//! [`Decoder`] is pure and takes strangers' bytes: what it holds never grows beyond the limit it was made with, and whatever breaks the
//! protocol ends it with the code that the RFC has for that. No extension is ever agreed on.

mod frame;
mod socket;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderMap, header};

pub use frame::{Decoder, Message, Side, Violation, close_code, encode};
pub use socket::{Socket, SocketError};

/// The only version there is.
pub const VERSION: &str = "13";
/// What a server appends to a client's key: the RFC's constant.
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a server answers to a client's key.
pub fn accept(key: &str) -> String {
    BASE64.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{ACCEPT_SUFFIX}").as_bytes()))
}

/// The key of a request that asks for a WebSocket.
///
/// # Errors
/// With what is missing.
pub fn asked(headers: &HeaderMap) -> Result<String, &'static str> {
    let holds = |name: header::HeaderName, word: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    if !holds(header::UPGRADE, "websocket") || !holds(header::CONNECTION, "upgrade") {
        return Err("this speaks WebSocket only; send Connection: upgrade and Upgrade: websocket over HTTP/1.1");
    }
    if !holds(header::SEC_WEBSOCKET_VERSION, VERSION) {
        return Err("Sec-WebSocket-Version must be 13");
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match BASE64.decode(key) {
        Ok(bytes) if bytes.len() == 16 => Ok(key.to_owned()),
        _ => Err("Sec-WebSocket-Key must be 16 bytes in base64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The RFC's own example, section 1.3.
    #[test]
    fn a_key_is_accepted_as_the_standard_says() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_request_must_ask_for_it_whole() {
        let good = [
            (header::CONNECTION, "keep-alive, Upgrade"),
            (header::UPGRADE, "WebSocket"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
            (header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let headers = |but: Option<usize>, value: &'static str| -> HeaderMap {
            let all = good.iter().cloned().enumerate();
            all.map(|(at, (name, own))| (name, (if Some(at) == but { value } else { own }).parse().unwrap())).collect()
        };
        assert_eq!(asked(&headers(None, "")).as_deref(), Ok("dGhlIHNhbXBsZSBub25jZQ=="));
        for (at, needed) in good.iter().enumerate() {
            assert!(asked(&headers(Some(at), "other")).is_err(), "{needed:?}");
        }
    }
}
