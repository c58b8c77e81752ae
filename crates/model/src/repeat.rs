//! Calls that may be repeated: what a client's key for a call must look like, and what is remembered of the call.
//!
//! A client that hears nothing cannot know whether its call was carried out. So it names the call with a key of its own and, when
//! in doubt, sends it again. The record of the key is part of the very commit that carries the call out: there is no moment at
//! which one of them is there without the other. What the client was answered is added by a second commit before the answer
//! leaves; if that one never came about, nobody was answered, and the answer is found anew from what the first one made.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{id::AccountId, time::Timestamp};

/// Characters of a key at most.
pub const KEY_MAX: usize = 255;
/// How long a key is remembered, milliseconds: a day is longer than anybody keeps trying.
pub const KEPT_MS: i64 = 24 * 60 * 60 * 1_000;
/// Keys remembered for one account at most: at CloudAPI's usual rate more than the last minute, for people all of the day.
pub const KEPT_MAX: usize = 5_000;
/// Bytes of answers remembered for one account at most.
pub const KEPT_MAX_BYTES: usize = 16 << 20;
/// Bytes of one answer that is remembered at most; a larger one is found anew.
pub const ANSWER_MAX_BYTES: usize = 64 << 10;

/// A client's name for one call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepeatKey(String);

/// A text that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is nothing.
    #[error("is empty; give 1 to {KEY_MAX} visible ASCII characters, for instance a UUID")]
    Empty,
    /// It is too long.
    #[error("is longer than {KEY_MAX} characters")]
    TooLong,
    /// It has something in it that cannot be seen, or is not ASCII.
    #[error("may have visible ASCII characters only: no spaces, no control characters, no accents")]
    Character,
}

impl RepeatKey {
    /// Reads the bytes of a header.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.is_empty() {
            return Err(KeyError::Empty);
        }
        if bytes.len() > KEY_MAX {
            return Err(KeyError::TooLong);
        }
        match std::str::from_utf8(bytes) {
            Ok(text) if bytes.iter().all(u8::is_ascii_graphic) => Ok(Self(text.to_owned())),
            _ => Err(KeyError::Character),
        }
    }

    /// Its characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepeatKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(text.as_bytes())
    }
}

impl TryFrom<String> for RepeatKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<RepeatKey> for String {
    fn from(key: RepeatKey) -> Self {
        key.0
    }
}

impl fmt::Display for RepeatKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is remembered of a call that changed something. Record of table `repeats`, key `<account>/<key>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeat {
    /// Whose key it is: the account that signed.
    pub account: AccountId,
    /// What the client calls the call.
    pub key: RepeatKey,
    /// A hash of what was asked for. The request itself may hold passwords and is not kept.
    pub request: String,
    /// What each commit of the call returned, in order: ids of what it made, mostly.
    pub made: Vec<serde_json::Value>,
    /// What was answered; `None` while nobody was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// When the call was first carried out.
    pub created_at: Timestamp,
}

/// What a client was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// This, in the door's own words.
    Kept(String),
    /// Something that is not kept, because it has secrets in it or is too large: it is found anew.
    FoundAnew,
}

impl Repeat {
    /// Whether it is too old to count.
    pub fn is_stale(&self, now: Timestamp) -> bool {
        now.millis_since(self.created_at) >= KEPT_MS.unsigned_abs()
    }

    fn bytes(&self) -> usize {
        match &self.answer {
            Some(Answer::Kept(text)) => text.len(),
            Some(Answer::FoundAnew) | None => 0,
        }
    }
}

/// How much of one account is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Keys.
    pub keys: usize,
    /// Bytes of answers.
    pub bytes: usize,
}

/// The bounds in force.
pub const BOUNDS: Bounds = Bounds { keys: KEPT_MAX, bytes: KEPT_MAX_BYTES };

/// Which of one account's records are to go, given all of them with the oldest first, as positions in ascending order: those that
/// are stale, and then the oldest until the rest is within `bounds`. One that nobody was answered yet may be of a call that is
/// under way, so those go after all that were answered.
pub fn to_drop(oldest_first: &[&Repeat], now: Timestamp, bounds: Bounds) -> Vec<usize> {
    let mut gone: Vec<bool> = oldest_first.iter().map(|repeat| repeat.is_stale(now)).collect();
    let mut keys = gone.iter().filter(|gone| !**gone).count();
    let mut bytes: usize =
        oldest_first.iter().zip(&gone).filter(|(_, gone)| !**gone).map(|(repeat, _)| repeat.bytes()).sum();
    for answered in [true, false] {
        for (repeat, gone) in oldest_first.iter().zip(&mut gone) {
            if keys <= bounds.keys && bytes <= bounds.bytes {
                break;
            }
            if !*gone && repeat.answer.is_some() == answered {
                *gone = true;
                keys -= 1;
                bytes -= repeat.bytes();
            }
        }
    }
    gone.iter().enumerate().filter_map(|(position, gone)| gone.then_some(position)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_that_are_none_say_why() {
        assert_eq!(RepeatKey::from_bytes(b""), Err(KeyError::Empty));
        assert_eq!(RepeatKey::from_bytes(&[b'a'; KEY_MAX + 1]), Err(KeyError::TooLong));
        for bad in [&b"a b"[..], b"\t", "schl\u{fc}ssel".as_bytes(), &[0xff, 0xfe], b"a\x7f", b"a\0"] {
            assert_eq!(RepeatKey::from_bytes(bad), Err(KeyError::Character), "{bad:?}");
        }
        assert!(RepeatKey::from_bytes(&[b'a'; KEY_MAX]).is_ok());
        assert!(serde_json::from_str::<RepeatKey>("\"\"").is_err());
    }

    proptest! {
        #[test]
        fn exactly_visible_ascii_passes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let fine = (1..=KEY_MAX).contains(&bytes.len()) && bytes.iter().all(|byte| (0x21..=0x7e).contains(byte));
            let read = RepeatKey::from_bytes(&bytes);
            prop_assert_eq!(read.is_ok(), fine);
            if let Ok(key) = read {
                prop_assert_eq!(key.as_str().as_bytes(), &*bytes);
                prop_assert_eq!(serde_json::from_str::<RepeatKey>(&serde_json::to_string(&key).unwrap()).unwrap(), key);
            }
        }

        #[test]
        fn visible_ascii_is_kept_as_it_is(text in "[!-~]{1,255}") {
            prop_assert_eq!(text.parse::<RepeatKey>().unwrap().to_string(), text);
        }

        #[test]
        fn what_is_left_is_within_bounds(
            ages in prop::collection::vec((0_i64..KEPT_MS * 2, prop::option::of(0_usize..200)), 0..60),
            keys in 0_usize..40,
            bytes in 0_usize..4_000,
        ) {
            let now = Timestamp(KEPT_MS * 4);
            let bounds = Bounds { keys, bytes };
            let mut all: Vec<Repeat> = ages.iter().map(|(age, answer)| repeat(now, *age, *answer)).collect();
            all.sort_by_key(|repeat| repeat.created_at);
            let all: Vec<&Repeat> = all.iter().collect();
            let dropped = to_drop(&all, now, bounds);
            prop_assert!(dropped.is_sorted());
            let left: Vec<&Repeat> =
                all.iter().enumerate().filter(|(at, _)| !dropped.contains(at)).map(|(_, repeat)| *repeat).collect();
            prop_assert!(left.iter().all(|repeat| !repeat.is_stale(now)));
            prop_assert!(left.len() <= keys);
            prop_assert!(left.iter().map(|repeat| repeat.bytes()).sum::<usize>() <= bytes);
            for at in dropped {
                let gone = all[at];
                let kin = |other: &&&Repeat| other.answer.is_some() == gone.answer.is_some();
                prop_assert!(gone.is_stale(now) || left.iter().filter(kin).all(|stays| stays.created_at >= gone.created_at));
                prop_assert!(
                    gone.is_stale(now) || gone.answer.is_some() || left.iter().all(|stays| stays.answer.is_none()),
                    "what is answered goes first"
                );
            }
        }
    }

    fn repeat(now: Timestamp, age: i64, answer: Option<usize>) -> Repeat {
        Repeat {
            account: AccountId::new(uuid::Uuid::nil()),
            key: RepeatKey("k".to_owned()),
            request: String::new(),
            made: Vec::new(),
            answer: answer.map(|length| Answer::Kept("x".repeat(length))),
            created_at: now.plus_millis(-age),
        }
    }

    #[test]
    fn nothing_is_dropped_without_need() {
        let now = Timestamp(KEPT_MS * 4);
        let some: Vec<Repeat> = (0..10).rev().map(|age| repeat(now, age, Some(10))).collect();
        let some: Vec<&Repeat> = some.iter().collect();
        assert_eq!(to_drop(&some, now, Bounds { keys: 10, bytes: 100 }), Vec::<usize>::new());
        assert_eq!(to_drop(&some, now, Bounds { keys: 8, bytes: 100 }), [0, 1]);
        assert_eq!(to_drop(&some, now, Bounds { keys: 10, bytes: 75 }), [0, 1, 2]);
    }
}
