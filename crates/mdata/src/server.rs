//! The machine's side: a line comes in, a [`Heard`] says what to do, [`Session::reply`] says what to send.
//!
//! The session holds one bit of state, the version. A line that makes no sense is answered `invalid command` in either
//! version: clients on a serial line send an empty line first and wait for exactly that to know the line is clear.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

use crate::{Answer, Command, Frame, VALUE_MAX_BYTES, key_is_valid};

/// What is sent for a line that makes no sense.
pub const INVALID: &str = "invalid command\n";

/// What is sent when a guest asked for version 2.
pub const V2_OK: &str = "V2_OK\n";

/// One conversation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Session {
    version_2: bool,
}

/// What a line meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Carry out the command, then send [`Session::reply`] of the answer.
    Ask {
        /// What the answer must name; `None` in version 1.
        request_id: Option<String>,
        /// What to do.
        command: Command,
    },
    /// Send this text; there is nothing to carry out.
    Say(String),
}

impl Session {
    /// Reads one line, its end of line removed.
    pub fn hear(&mut self, line: &[u8]) -> Heard {
        let Ok(line) = std::str::from_utf8(line) else {
            return Heard::Say(INVALID.to_owned());
        };
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line == "NEGOTIATE V2" {
            self.version_2 = true;
            return Heard::Say(V2_OK.to_owned());
        }
        if self.version_2 { hear_v2(line) } else { hear_v1(line) }
    }

    /// Text of an answer.
    pub fn reply(self, request_id: Option<&str>, answer: &Answer) -> String {
        match request_id {
            Some(request_id) => reply_v2(request_id, answer),
            None => reply_v1(answer),
        }
    }
}

fn hear_v1(line: &str) -> Heard {
    let command = match line.split_once(' ') {
        Some(("GET", key)) if key_is_valid(key) => Command::Get(key.to_owned()),
        None if line == "KEYS" => Command::Keys,
        _ => return Heard::Say(INVALID.to_owned()),
    };
    Heard::Ask { request_id: None, command }
}

fn hear_v2(line: &str) -> Heard {
    let Ok(frame) = Frame::parse(line) else {
        // A damaged frame has no trustworthy request id to answer to; the client asks again when nothing fits.
        return Heard::Say(INVALID.to_owned());
    };
    match command_of(&frame) {
        Ok(command) => Heard::Ask { request_id: Some(frame.request_id.to_owned()), command },
        Err(why) => Heard::Say(reply_v2(frame.request_id, &Answer::Failure(why.to_owned()))),
    }
}

fn command_of(frame: &Frame<'_>) -> Result<Command, &'static str> {
    let key = |payload: &Option<Vec<u8>>| {
        let text = String::from_utf8(payload.clone().unwrap_or_default()).map_err(|_| "the key is not UTF-8")?;
        if key_is_valid(&text) {
            Ok(text)
        } else {
            Err("the key is empty, longer than 256 bytes or holds control characters")
        }
    };
    match frame.word {
        "GET" => Ok(Command::Get(key(&frame.payload)?)),
        "KEYS" => Ok(Command::Keys),
        "DELETE" => Ok(Command::Delete(key(&frame.payload)?)),
        "PUT" => put_of(frame.payload.as_deref().unwrap_or_default()),
        _ => Err("the command is none of GET, KEYS, PUT, DELETE"),
    }
}

fn put_of(payload: &[u8]) -> Result<Command, &'static str> {
    const SHAPE: &str = "the payload of PUT is not \"<base64 key> <base64 value>\"";
    let text = std::str::from_utf8(payload).map_err(|_| SHAPE)?;
    let (key, value) = text.split_once(' ').ok_or(SHAPE)?;
    let key = BASE64.decode(key).map_err(|_| SHAPE)?;
    let value = BASE64.decode(value).map_err(|_| SHAPE)?;
    let key = String::from_utf8(key).map_err(|_| "the key is not UTF-8")?;
    let value = String::from_utf8(value).map_err(|_| "the value is not UTF-8")?;
    if !key_is_valid(&key) {
        return Err("the key is empty, longer than 256 bytes or holds control characters");
    }
    if value.len() > VALUE_MAX_BYTES {
        return Err("the value is longer than 128 KiB");
    }
    Ok(Command::Put { key, value })
}

fn reply_v1(answer: &Answer) -> String {
    match answer {
        Answer::Success(value) => {
            let value = value.as_deref().unwrap_or_default();
            let mut text = String::with_capacity(value.len() + 16);
            text.push_str("SUCCESS\n");
            for line in value.split('\n') {
                if line.starts_with('.') {
                    text.push('.');
                }
                text.push_str(line);
                text.push('\n');
            }
            text.push_str(".\n");
            text
        }
        Answer::NotFound => "NOTFOUND\n".to_owned(),
        // Version 1 has no place for words.
        Answer::Failure(_) => "FAILURE\n".to_owned(),
    }
}

fn reply_v2(request_id: &str, answer: &Answer) -> String {
    let (word, payload) = match answer {
        Answer::Success(value) => ("SUCCESS", value.as_deref()),
        Answer::NotFound => ("NOTFOUND", None),
        Answer::Failure(why) => ("FAILURE", Some(why.as_str())),
    };
    Frame::encode(request_id, word, payload.map(str::as_bytes))
}
