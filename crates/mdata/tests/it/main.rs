//! The protocol: what both sides write is what the other reads, and no line can hurt the server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use mdata::{
    Answer, Command, Frame, FrameError,
    client::{self, AnswerV1},
    server::{Heard, INVALID, Session},
};
use proptest::prelude::*;

fn session_v2() -> Session {
    let mut session = Session::default();
    assert_eq!(session.hear(b"NEGOTIATE V2"), Heard::Say("V2_OK\n".to_owned()));
    session
}

fn v1_answer(text: &str) -> Answer {
    let mut answer = AnswerV1::default();
    for line in text.strip_suffix('\n').expect("answers end their line").split('\n') {
        if let Some(answer) = answer.line(line).expect("a server's answer makes sense") {
            return answer;
        }
    }
    panic!("incomplete answer {text:?}");
}

#[test]
fn a_known_frame() {
    // Computed by hand with another CRC-32: body `dc4fae17 GET cm9vdF9wdw==`.
    let line = Frame::encode("dc4fae17", "GET", Some(b"root_pw"));
    assert!(line.starts_with("V2 25 "), "{line}");
    assert!(line.ends_with(" dc4fae17 GET cm9vdF9wdw==\n"), "{line}");
    let frame = Frame::parse(line.trim_end()).unwrap();
    assert_eq!((frame.request_id, frame.word, frame.payload.unwrap()), ("dc4fae17", "GET", b"root_pw".to_vec()));
}

#[test]
fn the_checksum_is_the_plain_crc_32() {
    assert_eq!(crc32("deadbeef SUCCESS"), Frame::encode("deadbeef", "SUCCESS", None).split(' ').nth(2).unwrap());
}

fn crc32(text: &str) -> String {
    // Bit by bit, independent of the library.
    let mut crc = u32::MAX;
    for byte in text.bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    format!("{:08x}", !crc)
}

#[test]
fn version_1() {
    let mut session = Session::default();
    let ask = session.hear(b"GET sdc:uuid");
    assert_eq!(ask, Heard::Ask { request_id: None, command: Command::Get("sdc:uuid".to_owned()) });
    assert_eq!(session.hear(b"KEYS"), Heard::Ask { request_id: None, command: Command::Keys });
    for nonsense in ["", "GET", "GET ", "get x", "PUT a b", "KEYS x", "V2 1 2 3"] {
        assert_eq!(session.hear(nonsense.as_bytes()), Heard::Say(INVALID.to_owned()), "{nonsense}");
    }
    assert_eq!(session.reply(None, &Answer::NotFound), "NOTFOUND\n");
    let text = session.reply(None, &Answer::Success(Some("a\n.b\n..\n.".to_owned())));
    assert_eq!(text, "SUCCESS\na\n..b\n...\n..\n.\n");
}

#[test]
fn damaged_frames() {
    let good = Frame::encode("1", "KEYS", None);
    let good = good.trim_end();
    assert!(Frame::parse(good).is_ok());
    let cases = [
        ("V2", FrameError::Shape),
        ("V2 6 zzzzzzzz 1 KEYS", FrameError::Shape),
        ("V2 +6 00000000 1 KEYS", FrameError::Shape),
        ("V2 7 00000000 1 KEYS", FrameError::Length),
        ("V2 6 00000000 1 KEYS", FrameError::Checksum),
    ];
    for (line, error) in cases {
        assert_eq!(Frame::parse(line), Err(error), "{line}");
    }
    let mut session = session_v2();
    assert_eq!(session.hear(b"V2 6 00000000 1 KEYS"), Heard::Say(INVALID.to_owned()));
    // A good frame with a bad command is answered by name.
    let Heard::Say(text) = session.hear(Frame::encode("ab", "EAT", None).trim_end().as_bytes()) else { panic!() };
    assert!(matches!(client::answer_v2("ab", text.trim_end()), Ok(Answer::Failure(_))));
    let Heard::Say(text) = session.hear(Frame::encode("ab", "PUT", Some(b"no space")).trim_end().as_bytes()) else {
        panic!()
    };
    assert!(matches!(client::answer_v2("ab", text.trim_end()), Ok(Answer::Failure(_))));
}

fn key() -> impl Strategy<Value = String> {
    "[^\\p{C}]{1,60}"
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        key().prop_map(Command::Get),
        Just(Command::Keys),
        key().prop_map(Command::Delete),
        (key(), any::<String>()).prop_map(|(key, value)| Command::Put { key, value }),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        any::<Option<String>>().prop_map(|value| Answer::Success(value.filter(|value| !value.is_empty()))),
        Just(Answer::NotFound),
        any::<String>().prop_map(Answer::Failure),
    ]
}

proptest! {
    #[test]
    fn commands_arrive(command in command(), id in "[0-9a-f]{1,16}") {
        let line = client::ask_v2(&id, &command);
        let heard = session_v2().hear(line.trim_end_matches('\n').as_bytes());
        prop_assert_eq!(heard, Heard::Ask { request_id: Some(id), command });
    }

    #[test]
    fn answers_arrive(answer in answer(), id in "[0-9a-f]{1,16}") {
        let line = session_v2().reply(Some(&id), &answer);
        prop_assert_eq!(line.matches('\n').count(), 1);
        prop_assert_eq!(client::answer_v2(&id, line.trim_end()), Ok(answer));
    }

    #[test]
    fn values_survive_version_1(value in "[a\\.\n\r ]{0,40}") {
        let text = Session::default().reply(None, &Answer::Success(Some(value.clone())));
        prop_assert_eq!(v1_answer(&text), Answer::Success(Some(value)));
    }

    #[test]
    fn no_line_hurts_the_server(line in prop::collection::vec(any::<u8>(), 0..300), v2: bool) {
        let mut session = if v2 { session_v2() } else { Session::default() };
        session.hear(&line);
    }

    #[test]
    fn nearly_good_lines_do_not_hurt(text in "V2 [0-9]{1,3} [0-9a-f]{8} [0-9a-f]{0,9} ?[A-Z]{0,6} ?[A-Za-z0-9=+/ ]{0,30}") {
        session_v2().hear(text.as_bytes());
        let _ = client::answer_v2("1", &text);
    }

    #[test]
    fn one_changed_byte_is_noticed(command in command(), at in any::<prop::sample::Index>(), flip in 1u8..=127) {
        let line = client::ask_v2("c0ffee", &command);
        let mut bytes = line.trim_end_matches('\n').as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        // CRC-32 finds every change of up to 32 neighbouring bits.
        match session_v2().hear(&bytes) {
            Heard::Say(_) => {}
            // Only the case of the checksum's own digits may change the line without changing its meaning.
            Heard::Ask { command: heard, .. } => {
                prop_assert_eq!(heard, command);
                prop_assert_eq!(bytes.to_ascii_lowercase(), line.trim_end().as_bytes().to_ascii_lowercase());
            }
        }
    }
}
