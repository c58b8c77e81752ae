//! Reading a stranger's message: its header, its one question, and of all further records those three that matter here: the extension
//! record (EDNS), the signature (TSIG), and the serial a secondary has (IXFR).
//!
//! Everything is checked to the last byte, nothing is followed but one pointer chain (in a signature's key name, only backwards), and
//! nothing is allocated for a message without a signature. What cannot be read is `Malformed`, which is answered so; what is no question
//! is not answered at all: two servers that answer each other's answers never stop.

use crate::{
    name::{self, NAME_MAX, Name},
    rrset::Kind,
};

/// Bytes of a header.
pub(crate) const HEADER: usize = 12;
/// A plain question.
pub(crate) const OPCODE_QUERY: u8 = 0;
/// Word that a zone has changed.
pub(crate) const OPCODE_NOTIFY: u8 = 4;
/// The question for what is new in a zone.
pub(crate) const KIND_IXFR: Kind = Kind(251);
/// The question for a whole zone.
pub(crate) const KIND_AXFR: Kind = Kind(252);
/// The question for anything.
pub(crate) const KIND_ANY: Kind = Kind(255);
pub(crate) const KIND_OPT: Kind = Kind(41);
pub(crate) const KIND_TSIG: Kind = Kind(250);
pub(crate) const CLASS_IN: u16 = 1;
pub(crate) const CLASS_ANY: u16 = 255;
/// Records of a message at most; each takes eleven bytes, so that only large messages meet this.
const RECORDS_MAX: usize = 256;

/// What came and is no question.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unreadable {
    /// A header with something behind it that cannot be read.
    Malformed(Head),
    /// Not to be answered.
    Nothing,
}

/// What an answer repeats of a header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) id: u16,
    pub(crate) opcode: u8,
    pub(crate) recursion_desired: bool,
    pub(crate) checking_disabled: bool,
}

/// A message with one question.
#[derive(Debug)]
pub(crate) struct Query<'a> {
    pub(crate) head: Head,
    /// The question as it came, with the letters' case: name, kind, class.
    pub(crate) question: &'a [u8],
    /// Its name in lower case.
    pub(crate) name: FixedName,
    pub(crate) kind: Kind,
    pub(crate) class: u16,
    /// Whether there are records where an answer would be.
    pub(crate) has_answers: bool,
    /// The serial in the authority section: what a secondary has.
    pub(crate) serial: Option<u32>,
    pub(crate) edns: Option<Edns>,
    pub(crate) tsig: Option<Tsig<'a>>,
}

/// The extension record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edns {
    pub(crate) datagram_bytes: u16,
    pub(crate) version: u8,
    /// Whether signatures are wanted.
    pub(crate) dnssec: bool,
}

/// The signature of a message.
#[derive(Debug)]
pub(crate) struct Tsig<'a> {
    /// Where its record begins.
    pub(crate) start: usize,
    pub(crate) key: Name,
    pub(crate) algorithm: Name,
    pub(crate) time_s: u64,
    pub(crate) fudge_s: u16,
    pub(crate) mac: &'a [u8],
    pub(crate) original_id: u16,
    pub(crate) error: u16,
    pub(crate) other: &'a [u8],
}

/// A name in lower case without an allocation.
#[derive(Clone)]
pub(crate) struct FixedName {
    bytes: [u8; NAME_MAX],
    len: usize,
}

impl FixedName {
    pub(crate) fn new(wire: &[u8]) -> Self {
        let mut fixed = Self { bytes: [0; NAME_MAX], len: wire.len().min(NAME_MAX) };
        fixed.bytes[..fixed.len].copy_from_slice(&wire[..fixed.len]);
        // Lengths of labels are below the letters.
        fixed.bytes[..fixed.len].make_ascii_lowercase();
        fixed
    }

    pub(crate) fn as_wire(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl std::fmt::Debug for FixedName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?}", self.as_wire())
    }
}

/// Reads what came.
pub(crate) fn read(message: &[u8]) -> Result<Query<'_>, Unreadable> {
    let Some((header, _)) = message.split_first_chunk::<HEADER>() else { return Err(Unreadable::Nothing) };
    if header[2] & 0x80 != 0 {
        return Err(Unreadable::Nothing);
    }
    let head = Head {
        id: u16::from_be_bytes([header[0], header[1]]),
        opcode: header[2] >> 3 & 15,
        recursion_desired: header[2] & 1 != 0,
        checking_disabled: header[3] & 0x10 != 0,
    };
    read_query(message, header, head).ok_or(Unreadable::Malformed(head))
}

fn read_query<'a>(message: &'a [u8], header: &[u8; HEADER], head: Head) -> Option<Query<'a>> {
    let count = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
    let (questions, answers, authorities, additionals) = (count(4), count(6), count(8), count(10));
    if questions != 1 || answers + authorities + additionals > RECORDS_MAX {
        return None;
    }
    let body = message.get(HEADER..)?;
    let name_len = name::wire_len(body)?;
    let question = body.get(..name_len + 4)?;
    let (kind, class) = (number(question, name_len)?, number(question, name_len + 2)?);
    let name = FixedName::new(&question[..name_len]);
    let mut query = Query {
        head,
        question,
        name,
        kind: Kind(kind),
        class,
        has_answers: answers > 0,
        serial: None,
        edns: None,
        tsig: None,
    };
    let mut at = HEADER + question.len();
    for place in 0..answers + authorities + additionals {
        if query.tsig.is_some() {
            // A signature is the last.
            return None;
        }
        let record = Record::read(message, at)?;
        if place >= answers + authorities {
            query.note_additional(message, &record)?;
        } else if place >= answers && record.kind == Kind::SOA {
            let numbers = record.data.len().checked_sub(20)?;
            query.serial = Some(u32::from_be_bytes(record.data.get(numbers..numbers + 4)?.try_into().ok()?));
        }
        at = record.end;
    }
    (at == message.len()).then_some(query)
}

impl<'a> Query<'a> {
    fn note_additional(&mut self, message: &'a [u8], record: &Record<'a>) -> Option<()> {
        if record.kind == KIND_OPT {
            // There is one, and its owner is the root.
            if self.edns.is_some() || message.get(record.start) != Some(&0) || !are_options(record.data) {
                return None;
            }
            let [_, version, flags, _] = record.ttl.to_be_bytes();
            self.edns = Some(Edns { datagram_bytes: record.class, version, dnssec: flags & 0x80 != 0 });
        } else if record.kind == KIND_TSIG {
            self.tsig = Some(read_tsig(message, record)?);
        }
        Some(())
    }
}

/// One record of a message.
struct Record<'a> {
    start: usize,
    kind: Kind,
    class: u16,
    ttl: u32,
    data: &'a [u8],
    end: usize,
}

impl<'a> Record<'a> {
    fn read(message: &'a [u8], start: usize) -> Option<Self> {
        let at = skip_name(message, start)?;
        let fixed: [u8; 10] = message.get(at..at + 10)?.try_into().ok()?;
        let data_len = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let data = message.get(at + 10..at + 10 + data_len)?;
        Some(Self {
            start,
            kind: Kind(u16::from_be_bytes([fixed[0], fixed[1]])),
            class: u16::from_be_bytes([fixed[2], fixed[3]]),
            ttl: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            data,
            end: at + 10 + data_len,
        })
    }
}

fn read_tsig<'a>(message: &[u8], record: &Record<'a>) -> Option<Tsig<'a>> {
    if record.class != CLASS_ANY || record.ttl != 0 {
        return None;
    }
    let key = read_name(message, record.start)?;
    let (algorithm, rest) = record.data.split_at_checked(name::wire_len(record.data)?)?;
    let (time, rest) = rest.split_at_checked(6)?;
    let time_s = time.iter().fold(0, |time, byte| time << 8 | u64::from(*byte));
    let (mac, rest2) = rest.get(4..)?.split_at_checked(usize::from(number(rest, 2)?))?;
    let other = rest2.get(6..)?;
    if other.len() != usize::from(number(rest2, 4)?) {
        return None;
    }
    Some(Tsig {
        start: record.start,
        key,
        algorithm: Name::from_wire(algorithm).ok()?,
        time_s,
        fudge_s: number(rest, 0)?,
        mac,
        original_id: number(rest2, 0)?,
        error: number(rest2, 2)?,
        other,
    })
}

/// The signature of an answer, for whoever asked.
pub(crate) fn answer_tsig(message: &[u8]) -> Option<Tsig<'_>> {
    let header = message.first_chunk::<HEADER>()?;
    let count = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
    let mut at = HEADER;
    for _ in 0..count(4).min(RECORDS_MAX) {
        at = skip_name(message, at)? + 4;
    }
    let mut last = None;
    for _ in 0..(count(6) + count(8) + count(10)).min(RECORDS_MAX) {
        let record = Record::read(message, at)?;
        at = record.end;
        last = Some(record);
    }
    let record = last.filter(|record| record.kind == KIND_TSIG && at == message.len())?;
    read_tsig(message, &record)
}

/// The place behind a name that may be compressed.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        let len = *message.get(at)?;
        match len >> 6 {
            0 if len == 0 => return Some(at + 1),
            0 => at += 1 + usize::from(len),
            3 => return message.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
        if at - start > NAME_MAX {
            return None;
        }
    }
}

/// A name that may be compressed. A pointer leads to an earlier byte than the one before it, so that every chain ends.
fn read_name(message: &[u8], mut at: usize) -> Option<Name> {
    let (mut bytes, mut len, mut before) = ([0_u8; NAME_MAX], 0, at);
    loop {
        let label = usize::from(*message.get(at)?);
        match label >> 6 {
            0 => {
                let taken = message.get(at..at + 1 + label)?;
                bytes.get_mut(len..len + taken.len())?.copy_from_slice(taken);
                len += taken.len();
                if label == 0 {
                    return Name::from_wire(&bytes[..len]).ok();
                }
                at += 1 + label;
            }
            3 => {
                let to = (label & 63) << 8 | usize::from(*message.get(at + 1)?);
                if to >= before {
                    return None;
                }
                (at, before) = (to, to);
            }
            _ => return None,
        }
    }
}

fn are_options(mut data: &[u8]) -> bool {
    while !data.is_empty() {
        let Some(rest) = number(data, 2).and_then(|len| data.get(4 + usize::from(len)..)) else { return false };
        data = rest;
    }
    true
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `www.Example. A IN` with an extension record.
    const PLAIN: &[u8] =
        b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\x01\x03www\x07Example\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\x80\0\0\0";

    #[test]
    fn a_plain_question_is_read() {
        let query = read(PLAIN).unwrap();
        assert_eq!((query.head.id, query.head.opcode, query.head.recursion_desired), (0x1234, 0, true));
        assert_eq!((query.kind, query.class), (Kind::A, CLASS_IN));
        assert_eq!(query.name.as_wire(), b"\x03www\x07example\0");
        assert_eq!(query.question, b"\x03www\x07Example\0\0\x01\0\x01");
        let edns = query.edns.unwrap();
        assert_eq!((edns.datagram_bytes, edns.version, edns.dnssec), (1232, 0, true));
    }

    #[test]
    fn answers_are_not_read_and_broken_ones_are_malformed() {
        let with = |at: usize, byte: u8| {
            let mut message = PLAIN.to_vec();
            message[at] = byte;
            message
        };
        assert!(matches!(read(&with(2, 0x81)), Err(Unreadable::Nothing)), "an answer");
        assert!(matches!(read(&PLAIN[..11]), Err(Unreadable::Nothing)), "less than a header");
        for len in HEADER..PLAIN.len() {
            assert!(matches!(read(&PLAIN[..len]), Err(Unreadable::Malformed(_))), "{len} bytes");
        }
        assert!(matches!(read(&with(5, 2)), Err(Unreadable::Malformed(_))), "two questions");
        assert!(matches!(read(&with(5, 0)), Err(Unreadable::Malformed(_))), "no question");
        assert!(matches!(read(&with(12, 0xc0)), Err(Unreadable::Malformed(_))), "a compressed question");
        assert!(matches!(read(&with(11, 2)), Err(Unreadable::Malformed(_))), "a record too few");
        let more = [PLAIN, &[0]].concat();
        assert!(matches!(read(&more), Err(Unreadable::Malformed(_))), "a byte too many");
    }

    #[test]
    fn pointers_in_names_end() {
        let mut message = vec![0; HEADER];
        message.extend_from_slice(b"\x01a\xc0\x0c");
        assert!(read_name(&message, HEADER).is_none(), "to itself");
        message.extend_from_slice(b"\x01b\0\x01c\xc0\x10");
        assert_eq!(read_name(&message, 19).unwrap().as_wire(), b"\x01c\x01b\0");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = read(&bytes);
            let _ = answer_tsig(&bytes);
        }

        #[test]
        fn a_message_with_some_bytes_changed_is_read_or_refused(
            changes in prop::collection::vec((0..PLAIN.len(), any::<u8>()), 1..6)
        ) {
            let mut message = PLAIN.to_vec();
            changes.into_iter().for_each(|(at, byte)| message[at] = byte);
            if let Ok(query) = read(&message) {
                prop_assert_eq!(name::wire_len(query.name.as_wire()), Some(query.name.as_wire().len()));
            }
        }
    }
}
