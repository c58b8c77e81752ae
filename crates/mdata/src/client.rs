//! The guest's side: text to send for a command, and what a received answer means.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

use crate::{Answer, Command, Frame, FrameError};

/// Asks for version 2; the peer says `V2_OK`, or `invalid command` when it knows version 1 only.
pub const NEGOTIATE: &str = "NEGOTIATE V2\n";

/// An answer that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerError {
    /// The line is no good frame.
    Frame(FrameError),
    /// The answer is to another question.
    OtherRequest,
    /// The code is none of the three.
    Code(String),
    /// The payload is not UTF-8.
    NotText,
}

impl fmt::Display for AnswerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(error) => error.fmt(f),
            Self::OtherRequest => f.write_str("the answer is to another request"),
            Self::Code(code) => write!(f, "the answer \"{code}\" is none of SUCCESS, NOTFOUND, FAILURE"),
            Self::NotText => f.write_str("the value is not UTF-8"),
        }
    }
}

impl std::error::Error for AnswerError {}

/// Text of a command in version 2.
pub fn ask_v2(request_id: &str, command: &Command) -> String {
    match command {
        Command::Get(key) => Frame::encode(request_id, "GET", Some(key.as_bytes())),
        Command::Keys => Frame::encode(request_id, "KEYS", None),
        Command::Delete(key) => Frame::encode(request_id, "DELETE", Some(key.as_bytes())),
        Command::Put { key, value } => {
            let payload = format!("{} {}", BASE64.encode(key), BASE64.encode(value));
            Frame::encode(request_id, "PUT", Some(payload.as_bytes()))
        }
    }
}

/// Meaning of a line received in version 2, its end of line removed.
pub fn answer_v2(request_id: &str, line: &str) -> Result<Answer, AnswerError> {
    let frame = Frame::parse(line).map_err(AnswerError::Frame)?;
    if frame.request_id != request_id {
        return Err(AnswerError::OtherRequest);
    }
    let payload = frame.payload.map(String::from_utf8).transpose().map_err(|_| AnswerError::NotText)?;
    match frame.word {
        "SUCCESS" => Ok(Answer::Success(payload)),
        "NOTFOUND" => Ok(Answer::NotFound),
        "FAILURE" => Ok(Answer::Failure(payload.unwrap_or_default())),
        other => Err(AnswerError::Code(other.to_owned())),
    }
}

/// Text of a command in version 1, which cannot store or delete.
pub fn ask_v1(command: &Command) -> Option<String> {
    match command {
        Command::Get(key) => Some(format!("GET {key}\n")),
        Command::Keys => Some("KEYS\n".to_owned()),
        Command::Put { .. } | Command::Delete(_) => None,
    }
}

/// Collects the lines of an answer in version 1.
#[derive(Debug, Default)]
pub struct AnswerV1 {
    lines: Option<Vec<String>>,
}

impl AnswerV1 {
    /// Takes the next line, its end of line removed; the answer once it is complete.
    pub fn line(&mut self, line: &str) -> Result<Option<Answer>, AnswerError> {
        let Some(lines) = &mut self.lines else {
            return match line {
                "SUCCESS" => {
                    self.lines = Some(Vec::new());
                    Ok(None)
                }
                "NOTFOUND" => Ok(Some(Answer::NotFound)),
                "FAILURE" => Ok(Some(Answer::Failure(String::new()))),
                other => Err(AnswerError::Code(other.chars().take(64).collect())),
            };
        };
        if line == "." {
            return Ok(Some(Answer::Success(Some(lines.join("\n")))));
        }
        lines.push(line.strip_prefix('.').unwrap_or(line).to_owned());
        Ok(None)
    }
}
