//! Frames: bytes to messages and back, without a stream.

/// Who one is: clients mask what they send, servers never do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Takes masked frames, sends plain ones.
    Server,
    /// Takes plain frames, sends masked ones.
    Client,
}

/// What arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Text, whole.
    Text(String),
    /// Bytes, whole.
    Binary(Vec<u8>),
    /// To be answered with the same bytes.
    Ping(Vec<u8>),
    /// Answers a ping.
    Pong(Vec<u8>),
    /// The other side ends; its code and reason, if it gave them.
    Close(Option<(u16, String)>),
}

/// Codes that a connection is closed with.
pub mod close_code {
    /// It was meant to end.
    pub const NORMAL: u16 = 1000;
    /// The server goes.
    pub const GOING_AWAY: u16 = 1001;
    /// What arrived is no WebSocket.
    pub const PROTOCOL: u16 = 1002;
    /// What arrived is of a kind nobody wants here.
    pub const UNSUPPORTED: u16 = 1003;
    /// A text is no text.
    pub const NOT_TEXT: u16 = 1007;
    /// What was said is not allowed.
    pub const POLICY: u16 = 1008;
    /// A message is too large.
    pub const TOO_LARGE: u16 = 1009;
    /// Not now; later, or elsewhere.
    pub const TRY_AGAIN: u16 = 1013;
}

/// The other side broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason} ({code})")]
pub struct Violation {
    /// What to close with.
    pub code: u16,
    /// In words.
    pub reason: &'static str,
}

const fn broken(reason: &'static str) -> Violation {
    Violation { code: close_code::PROTOCOL, reason }
}

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// Bytes a control frame carries at most.
const CONTROL_MAX: usize = 125;

/// Joins bytes to messages. Holds at most one message and what was fed beyond it.
#[derive(Debug)]
pub struct Decoder {
    side: Side,
    /// Bytes of a message, all its fragments together.
    message_max: usize,
    held: Vec<u8>,
    /// Kind and bytes of a message whose end has not come.
    begun: Option<(u8, Vec<u8>)>,
}

/// One frame's head.
struct Head {
    is_last: bool,
    kind: u8,
    mask: Option<[u8; 4]>,
    /// Where the payload begins, and how long it is.
    start: usize,
    length: usize,
}

impl Decoder {
    /// One of `side`, for messages of at most `message_max` bytes.
    pub const fn new(side: Side, message_max: usize) -> Self {
        Self { side, message_max, held: Vec::new(), begun: None }
    }

    /// More bytes have come.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// Bytes that are held.
    pub fn held(&self) -> usize {
        self.held.len() + self.begun.as_ref().map_or(0, |(_, bytes)| bytes.len())
    }

    /// The next message, once it is whole.
    ///
    /// # Errors
    /// When the other side broke the protocol; nothing after that means anything.
    pub fn decode(&mut self) -> Result<Option<Message>, Violation> {
        while let Some(head) = self.head()? {
            let end = head.start + head.length;
            if self.held.len() < end {
                return Ok(None);
            }
            let mut payload = self.held[head.start..end].to_vec();
            self.held.drain(..end);
            if let Some(mask) = head.mask {
                apply(mask, &mut payload);
            }
            if let Some(message) = self.take(head.is_last, head.kind, payload)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// The head of the next frame, if it is here whole, checked before anything of its payload is waited for.
    fn head(&self) -> Result<Option<Head>, Violation> {
        let [first, second, ..] = self.held[..] else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(broken("an extension was not agreed on"));
        }
        let (is_last, kind, is_masked) = (first & 0x80 != 0, first & 0x0f, second & 0x80 != 0);
        if is_masked != (self.side == Side::Server) {
            return Err(broken("frames to a server are masked, those to a client are not"));
        }
        let (length, mut start) = match second & 0x7f {
            126 => match self.held.get(2..4) {
                Some(bytes) => (u64::from(u16::from_be_bytes([bytes[0], bytes[1]])), 4),
                None => return Ok(None),
            },
            127 => match self.held.get(2..10).and_then(|bytes| bytes.try_into().ok()) {
                Some(bytes) => (u64::from_be_bytes(bytes), 10),
                None => return Ok(None),
            },
            short => (u64::from(short), 2),
        };
        let is_shortest = match start {
            4 => length > 125,
            10 => length > u64::from(u16::MAX),
            _ => true,
        };
        if !is_shortest {
            return Err(broken("a length is not in its shortest form"));
        }
        let before = self.begun.as_ref().map_or(0, |(_, bytes)| bytes.len());
        match kind {
            CLOSE | PING | PONG if !is_last || length > CONTROL_MAX as u64 => {
                return Err(broken("control frames are short and whole"));
            }
            CLOSE | PING | PONG => {}
            CONTINUATION if self.begun.is_none() => return Err(broken("there is nothing to continue")),
            TEXT | BINARY if self.begun.is_some() => return Err(broken("a message began inside another one")),
            CONTINUATION | TEXT | BINARY => {}
            _ => return Err(broken("a frame is of no known kind")),
        }
        if kind < CLOSE && length > self.message_max.saturating_sub(before) as u64 {
            return Err(Violation { code: close_code::TOO_LARGE, reason: "the message is too large" });
        }
        let mask = match is_masked {
            true => match self.held.get(start..start + 4).and_then(|bytes| bytes.try_into().ok()) {
                Some(mask) => Some(mask),
                None => return Ok(None),
            },
            false => None,
        };
        start += if is_masked { 4 } else { 0 };
        let length = usize::try_from(length).expect("it is below a limit that is a usize");
        Ok(Some(Head { is_last, kind, mask, start, length }))
    }

    /// What a frame makes whole.
    fn take(&mut self, is_last: bool, kind: u8, payload: Vec<u8>) -> Result<Option<Message>, Violation> {
        match kind {
            PING => return Ok(Some(Message::Ping(payload))),
            PONG => return Ok(Some(Message::Pong(payload))),
            CLOSE => return closing(&payload).map(|said| Some(Message::Close(said))),
            _ => {}
        }
        let (kind, bytes) = match self.begun.take() {
            Some((kind, mut bytes)) => {
                bytes.extend_from_slice(&payload);
                (kind, bytes)
            }
            None => (kind, payload),
        };
        if !is_last {
            self.begun = Some((kind, bytes));
            return Ok(None);
        }
        Ok(Some(match kind {
            TEXT => Message::Text(text(bytes)?),
            _ => Message::Binary(bytes),
        }))
    }
}

/// What a close frame says.
fn closing(payload: &[u8]) -> Result<Option<(u16, String)>, Violation> {
    match payload {
        [] => Ok(None),
        [_] => Err(broken("a closing code has two bytes")),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            match code {
                1000..=1003 | 1007..=1014 | 3000..=4999 => Ok(Some((code, text(reason.to_vec())?))),
                _ => Err(broken("this closing code is never sent")),
            }
        }
    }
}

fn text(bytes: Vec<u8>) -> Result<String, Violation> {
    String::from_utf8(bytes).map_err(|_| Violation { code: close_code::NOT_TEXT, reason: "the text is not UTF-8" })
}

fn apply(mask: [u8; 4], bytes: &mut [u8]) {
    for (byte, mask) in bytes.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// `message` as one frame; a client's is masked with `mask`, which must be drawn anew for each. A control message's bytes beyond what
/// such may carry are cut.
pub fn encode(message: &Message, mask: Option<[u8; 4]>) -> Vec<u8> {
    let (kind, mut payload) = match message {
        Message::Text(text) => (TEXT, text.as_bytes().to_vec()),
        Message::Binary(bytes) => (BINARY, bytes.clone()),
        Message::Ping(bytes) => (PING, bytes[..bytes.len().min(CONTROL_MAX)].to_vec()),
        Message::Pong(bytes) => (PONG, bytes[..bytes.len().min(CONTROL_MAX)].to_vec()),
        Message::Close(None) => (CLOSE, Vec::new()),
        Message::Close(Some((code, reason))) => {
            let cut = reason.floor_char_boundary(CONTROL_MAX - 2);
            (CLOSE, [&code.to_be_bytes(), &reason.as_bytes()[..cut]].concat())
        }
    };
    let mask_bit = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = Vec::with_capacity(payload.len() + 14);
    frame.push(0x80 | kind);
    match payload.len() {
        short @ 0..=125 => frame.push(mask_bit | short as u8),
        middle @ 126..=0xffff => {
            frame.push(mask_bit | 126);
            frame.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            frame.push(mask_bit | 127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    if let Some(mask) = mask {
        frame.extend_from_slice(&mask);
        apply(mask, &mut payload);
    }
    frame.extend_from_slice(&payload);
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn messages() -> impl Strategy<Value = Message> {
        prop_oneof![
            ".{0,300}".prop_map(Message::Text),
            proptest::collection::vec(any::<u8>(), 0..70_000).prop_map(Message::Binary),
            proptest::collection::vec(any::<u8>(), 0..126).prop_map(Message::Ping),
            proptest::collection::vec(any::<u8>(), 0..126).prop_map(Message::Pong),
            Just(Message::Close(None)),
            (prop_oneof![Just(1000u16), Just(1013), Just(4000)], "[a-zé]{0,40}")
                .prop_map(|said| Message::Close(Some(said))),
        ]
    }

    /// All that comes of `bytes`, fed in pieces of `piece`.
    fn decode(side: Side, bytes: &[u8], piece: usize) -> Result<Vec<Message>, Violation> {
        let mut decoder = Decoder::new(side, 1 << 20);
        let mut found = Vec::new();
        for piece in bytes.chunks(piece.max(1)) {
            decoder.feed(piece);
            while let Some(message) = decoder.decode()? {
                found.push(message);
            }
        }
        Ok(found)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_sent_arrives_however_it_is_cut(
            sent in proptest::collection::vec(messages(), 1..5), mask: Option<[u8; 4]>, piece in 1usize..4_000,
        ) {
            let bytes: Vec<u8> = sent.iter().flat_map(|message| encode(message, mask)).collect();
            let side = if mask.is_some() { Side::Server } else { Side::Client };
            prop_assert_eq!(decode(side, &bytes, piece), Ok(sent));
            let other = if mask.is_some() { Side::Client } else { Side::Server };
            prop_assert_eq!(decode(other, &bytes, piece).unwrap_err().code, close_code::PROTOCOL);
        }

        #[test]
        fn a_stranger_fills_no_memory(bytes in proptest::collection::vec(any::<u8>(), 0..4_000), piece in 1usize..200) {
            let mut decoder = Decoder::new(Side::Server, 256);
            for piece in bytes.chunks(piece) {
                decoder.feed(piece);
                loop {
                    match decoder.decode() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
                prop_assert!(decoder.held() <= 256 + 14 + CONTROL_MAX + 14);
            }
        }
    }

    #[test]
    fn fragments_are_joined_with_a_ping_between_them() {
        // "Hel", a ping, "lo": the standard's example, section 5.7, unmasked.
        let bytes = [&[0x01, 3][..], b"Hel", &[0x89, 0], &[0x80, 2], b"lo"].concat();
        let expected = vec![Message::Ping(Vec::new()), Message::Text("Hello".into())];
        assert_eq!(decode(Side::Client, &bytes, 1), Ok(expected));
    }

    #[test]
    fn what_breaks_the_protocol_ends_it_with_its_code() {
        let cases: [(&[u8], u16); 9] = [
            (&[0xc1, 0], 1002),
            (&[0x83, 0], 1002),
            (&[0x80, 0], 1002),
            (&[0x09, 0], 1002),
            (&[0x89, 126, 0, 126], 1002),
            (&[0x81, 126, 0, 1, b'a'], 1002),
            (&[0x88, 2, 3, 237], 1002),
            (&[0x81, 1, 0xff], 1007),
            (&[0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0], 1009),
        ];
        for (bytes, code) in cases {
            assert_eq!(decode(Side::Client, bytes, 100).map_err(|violation| violation.code), Err(code), "{bytes:?}");
        }
        let nested = [&[0x01, 1, b'a'][..], &[0x81, 1, b'b']].concat();
        assert_eq!(decode(Side::Client, &nested, 100).unwrap_err().code, 1002);
    }
}
