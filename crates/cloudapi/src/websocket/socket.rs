//! Messages over a stream that was upgraded.

use std::io;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::frame::{Decoder, Message, Side, Violation, encode};

/// Bytes read at once.
const READ: usize = 8 << 10;
/// Bytes that are read and forgotten at the end.
const DRAINED_MAX: usize = 1 << 20;

/// Why nothing more comes.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The network.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The other side.
    #[error("the other side does not speak WebSocket")]
    Violation(#[from] Violation),
}

/// One end of a WebSocket.
pub struct Socket<S> {
    stream: S,
    side: Side,
    decoder: Decoder,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// The end of `side`, after the handshake; messages that arrive have at most `message_max` bytes.
    pub const fn new(stream: S, side: Side, message_max: usize) -> Self {
        Self { stream, side, decoder: Decoder::new(side, message_max) }
    }

    /// The next message; `None` when the other side is gone. May be dropped while it waits: nothing is lost.
    ///
    /// # Errors
    /// When the connection or the protocol broke.
    pub async fn read(&mut self) -> Result<Option<Message>, SocketError> {
        loop {
            if let Some(message) = self.decoder.decode()? {
                return Ok(Some(message));
            }
            let mut piece = [0; READ];
            match self.stream.read(&mut piece).await? {
                0 => return Ok(None),
                length => self.decoder.feed(&piece[..length]),
            }
        }
    }

    /// Reads on until the other side is gone, and forgets it: a connection that is closed over what was not read may take the last words
    /// with it. At most [`DRAINED_MAX`] bytes.
    pub async fn drain(&mut self) {
        let (mut piece, mut left) = ([0; READ], DRAINED_MAX);
        while let Ok(length @ 1..) = self.stream.read(&mut piece).await {
            match left.checked_sub(length) {
                Some(less) => left = less,
                None => return,
            }
        }
    }

    /// Sends a message. One that was dropped halfway leaves a connection that is good for nothing.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn send(&mut self, message: &Message) -> io::Result<()> {
        let mask = match self.side {
            Side::Server => None,
            Side::Client => Some(fresh_mask()?),
        };
        self.stream.write_all(&encode(message, mask)).await?;
        self.stream.flush().await
    }
}

fn fresh_mask() -> io::Result<[u8; 4]> {
    let mut mask = [0; 4];
    SystemRandom::new().fill(&mut mask).map_err(|_| io::Error::other("the system gives no random numbers"))?;
    Ok(mask)
}
