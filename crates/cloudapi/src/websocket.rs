//! WebSocket, as a feed of texts needs it: what a request must say, and a socket with limits over any stream that was upgraded.
//!
//! Frames, masks, fragments and the answers to pings are the library's (`tungstenite`). Ours is who may send how much, and what is said to
//! whoever breaks the protocol. No extension is ever agreed on.

use std::io;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, header};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error,
        error::ProtocolError,
        handshake,
        protocol::{Role, WebSocketConfig},
    },
};

pub use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

/// The only version there is.
pub const VERSION: &str = "13";
/// Bytes read at once.
const READ: usize = 4 << 10;
/// Bytes that may wait to be taken: of one message, which is larger than any.
const WRITTEN_MAX: usize = 16 << 20;
/// Bytes of a reason at most, so that it fits beside its code into a control frame (RFC 6455, 5.5).
const REASON_MAX: usize = 123;
/// Bytes that are read and forgotten at the end.
const DRAINED_MAX: usize = 1 << 20;

/// A client's key, drawn anew.
pub fn key() -> String {
    handshake::client::generate_key()
}

/// What a server answers to a client's key.
pub fn accept(key: &str) -> String {
    handshake::derive_accept_key(key.as_bytes())
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

/// Why nothing more comes.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The network.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The other side broke the protocol.
    #[error("{reason} ({code})")]
    Violation {
        /// What to close with.
        code: CloseCode,
        /// In words.
        reason: String,
    },
}

impl From<Error> for SocketError {
    fn from(error: Error) -> Self {
        let violation = |code, reason: String| Self::Violation { code, reason };
        match error {
            Error::Io(error) => Self::Io(error),
            Error::Capacity(_) => violation(CloseCode::Size, "the message is too large".to_owned()),
            Error::Utf8(_) => violation(CloseCode::Invalid, "the text is not UTF-8".to_owned()),
            Error::Protocol(error) => violation(CloseCode::Protocol, error.to_string()),
            other => Self::Io(io::Error::other(other)),
        }
    }
}

/// One end of a WebSocket.
pub struct Socket<S> {
    stream: WebSocketStream<S>,
    /// A pong was written that may not have been taken yet.
    owes_pong: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// A client's end, after the handshake; messages that arrive have at most `message_max` bytes.
    pub async fn of_client(stream: S, message_max: usize) -> Self {
        Self::new(stream, Role::Client, message_max).await
    }

    /// A server's.
    pub async fn of_server(stream: S, message_max: usize) -> Self {
        Self::new(stream, Role::Server, message_max).await
    }

    async fn new(stream: S, role: Role, message_max: usize) -> Self {
        // Small buffers: a server has many of these, and most say little.
        let config = WebSocketConfig::default()
            .read_buffer_size(READ)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITTEN_MAX)
            .max_message_size(Some(message_max))
            .max_frame_size(Some(message_max));
        Self { stream: WebSocketStream::from_raw_socket(stream, role, Some(config)).await, owes_pong: false }
    }

    /// The next message; `None` when the other side is gone. Pings are answered by themselves, and nothing more is read before the answer is
    /// taken: who asks without listening fills no memory here. May be dropped while it waits: nothing is lost.
    ///
    /// # Errors
    /// When the connection or the protocol broke.
    pub async fn read(&mut self) -> Result<Option<Message>, SocketError> {
        if self.owes_pong {
            self.stream.flush().await?;
            self.owes_pong = false;
        }
        match self.stream.next().await {
            None
            | Some(Err(
                Error::ConnectionClosed
                | Error::AlreadyClosed
                | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake),
            )) => Ok(None),
            Some(message) => {
                let message = message?;
                self.owes_pong = message.is_ping();
                Ok(Some(message))
            }
        }
    }

    /// Sends a message. One that was dropped halfway leaves a connection that is good for nothing.
    ///
    /// # Errors
    /// When the connection broke, or was closed.
    pub async fn send(&mut self, message: Message) -> Result<(), SocketError> {
        Ok(self.stream.send(message).await?)
    }

    /// Says why it ends, unless the other side ends it, which is answered as it is; of a long reason as much as fits. Then nothing more is
    /// written, and what the other side still sends is read and forgotten until that is gone: a connection that is closed over what was not read
    /// may take the last words with it. At most [`DRAINED_MAX`] bytes.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn end(&mut self, code: CloseCode, mut reason: String) -> Result<(), SocketError> {
        reason.truncate(reason.floor_char_boundary(REASON_MAX));
        let last = CloseFrame { code, reason: reason.into() };
        match self.stream.send(Message::Close(Some(last))).await {
            Err(Error::Protocol(ProtocolError::SendAfterClosing)) => match self.stream.flush().await {
                Ok(()) | Err(Error::ConnectionClosed) => {}
                Err(error) => return Err(error.into()),
            },
            sent => sent?,
        }
        let stream = self.stream.get_mut();
        // Who has said goodbye waits for the server to hang up.
        stream.shutdown().await?;
        let (mut piece, mut left) = ([0; READ], DRAINED_MAX);
        loop {
            let length = stream.read(&mut piece).await?;
            match left.checked_sub(length) {
                Some(less) if length > 0 => left = less,
                _ => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use futures_util::FutureExt as _;

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
        let drawn = key();
        assert_ne!(drawn, key());
        assert!(BASE64.decode(drawn).is_ok_and(|bytes| bytes.len() == 16));
    }

    /// What a server's end makes of bytes, until it is gone or broken.
    async fn heard(bytes: &[u8], message_max: usize) -> (Vec<Message>, Option<CloseCode>) {
        let mut socket = Socket::of_server(tokio::io::join(bytes, tokio::io::sink()), message_max).await;
        let mut found = Vec::new();
        loop {
            match socket.read().await {
                Ok(Some(message)) => found.push(message),
                Ok(None) => return (found, None),
                Err(SocketError::Violation { code, .. }) => return (found, Some(code)),
                Err(SocketError::Io(error)) => panic!("{error}"),
            }
        }
    }

    #[tokio::test]
    async fn what_breaks_the_protocol_ends_it_with_its_code() {
        let mask = [0, 0, 0, 0];
        let whole = [&[0x81, 0x82][..], &mask, b"ok"].concat();
        assert_eq!(heard(&whole, 100).await, (vec![Message::text("ok")], None));
        // "Hel", a ping, "lo".
        let pieces = [&[0x01, 0x83][..], &mask, b"Hel", &[0x89, 0x80], &mask, &[0x80, 0x82], &mask, b"lo"].concat();
        assert_eq!(heard(&pieces, 100).await, (vec![Message::Ping(Vec::new().into()), Message::text("Hello")], None));
        let cases: [(&[u8], CloseCode); 6] = [
            (&[0x81, 2, b'o', b'k'], CloseCode::Protocol),
            (&[0xc1, 0x80, 0, 0, 0, 0], CloseCode::Protocol),
            (&[0x83, 0x80, 0, 0, 0, 0], CloseCode::Protocol),
            (&[0x80, 0x80, 0, 0, 0, 0], CloseCode::Protocol),
            (&[0x81, 0x81, 0, 0, 0, 0, 0xff], CloseCode::Invalid),
            (&[0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], CloseCode::Size),
        ];
        for (bytes, code) in cases {
            assert_eq!(heard(bytes, 100).await, (vec![], Some(code)), "{bytes:?}");
        }
        // Two pieces that are too large together.
        let pieces = [&[0x01, 0xbc][..], &mask, &[b'a'; 60], &[0x80, 0xbc], &mask, &[b'b'; 60]].concat();
        assert_eq!(heard(&pieces, 100).await, (vec![], Some(CloseCode::Size)));
    }

    /// A stream that never takes a byte.
    struct Full;

    impl AsyncWrite for Full {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn who_asks_and_does_not_listen_is_not_read_on() {
        let pings = [0x89, 0x80, 0, 0, 0, 0].repeat(1_000);
        let mut socket = Socket::of_server(tokio::io::join(&pings[..], Full), 100).await;
        assert!(socket.read().await.is_ok_and(|first| first.is_some_and(|first| first.is_ping())));
        for _ in 0..100 {
            let next = std::pin::pin!(socket.read());
            assert!(next.now_or_never().is_none(), "a second one is read before the first is answered");
        }
    }

    #[tokio::test]
    async fn a_long_reason_is_cut_between_characters() {
        let (ours, theirs) = tokio::io::duplex(4_096);
        let ending = async {
            let mut server = Socket::of_server(ours, 1_000).await;
            server.end(CloseCode::Policy, "é".repeat(200)).await
        };
        let hearing = async {
            let mut client = Socket::of_client(theirs, 1_000).await;
            let Ok(Some(Message::Close(Some(last)))) = client.read().await else { panic!("no goodbye") };
            assert_eq!((last.code, last.reason.as_str()), (CloseCode::Policy, "é".repeat(61).as_str()));
            // The server hangs up first; a client may wait for that.
            assert!(client.read().await.is_ok_and(|more| more.is_none()));
        };
        let (ended, ()) = tokio::join!(ending, hearing);
        assert!(ended.is_ok(), "{ended:?}");
    }
}
