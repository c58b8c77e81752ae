#![no_main]
//! Lines of the metadata protocol: whatever parses says the same when written again.

use libfuzzer_sys::fuzz_target;
use mdata::Frame;

fuzz_target!(|input: (bool, &str)| {
    let (signed, text) = input;
    // Left to chance, no checksum would ever be right, and nothing behind it would be seen.
    let line = match signed {
        true => format!("V2 {} {:08x} {text}", text.len(), crc32fast::hash(text.as_bytes())),
        false => text.to_owned(),
    };
    let Ok(frame) = Frame::parse(&line) else { return };
    let again = Frame::encode(frame.request_id, frame.word, frame.payload.as_deref());
    let parsed = Frame::parse(again.trim_end_matches('\n')).expect("what we encode can be parsed");
    let payload = frame.payload.filter(|payload| !payload.is_empty());
    assert_eq!((parsed.request_id, parsed.word, parsed.payload), (frame.request_id, frame.word, payload));
});
