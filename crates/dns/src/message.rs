//! Reading a stranger's message: its header, its one question, and of all further records those three that matter here: the extension
//! record (EDNS), the signature (TSIG), and the serial a secondary has (IXFR).
//!
//! The bytes are the library's to read (`domain`), which follows pointers in names only backwards and a limited number of times. What is
//! asked of a message beyond that is ours: one question whose name is not compressed, few records, nothing behind the last, one extension
//! record, and the signature as the last of all. Nothing is allocated for a message without a signature. What cannot be read is `Malformed`, which
//! is answered so; what is no question is not answered at all: two servers that answer each other's answers never stop.

use domain::{
    base::{
        Message, ParsedName, ParsedRecord,
        iana::{Class, Opcode, Rtype},
        name::ToLabelIter,
        opt::{Opt, OptHeader},
    },
    dep::octseq::Parser,
    rdata,
};

use crate::{
    name::{NAME_MAX, Name},
    rrset::Kind,
};

/// Bytes of a header.
pub(crate) const HEADER: usize = 12;
/// A plain question.
pub(crate) const OPCODE_QUERY: u8 = Opcode::QUERY.to_int();
/// Word that a zone has changed.
pub(crate) const OPCODE_NOTIFY: u8 = Opcode::NOTIFY.to_int();
/// The question for what is new in a zone.
pub(crate) const KIND_IXFR: Kind = Kind(Rtype::IXFR.to_int());
/// The question for a whole zone.
pub(crate) const KIND_AXFR: Kind = Kind(Rtype::AXFR.to_int());
/// The question for anything.
pub(crate) const KIND_ANY: Kind = Kind(Rtype::ANY.to_int());
pub(crate) const KIND_OPT: Kind = Kind(Rtype::OPT.to_int());
pub(crate) const KIND_TSIG: Kind = Kind(Rtype::TSIG.to_int());
pub(crate) const CLASS_IN: u16 = Class::IN.to_int();
pub(crate) const CLASS_ANY: u16 = Class::ANY.to_int();
/// Bytes of an extension record before its options, the root's name among them.
pub(crate) const OPT_BYTES: usize = 11;
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
pub(crate) fn read(bytes: &[u8]) -> Result<Query<'_>, Unreadable> {
    let Ok(message) = Message::from_slice(bytes) else { return Err(Unreadable::Nothing) };
    let header = message.header();
    if header.qr() {
        return Err(Unreadable::Nothing);
    }
    let head = Head {
        id: header.id(),
        opcode: header.opcode().to_int(),
        recursion_desired: header.rd(),
        checking_disabled: header.cd(),
    };
    read_query(message, head).ok_or(Unreadable::Malformed(head))
}

fn read_query(message: &Message<[u8]>, head: Head) -> Option<Query<'_>> {
    let (counts, bytes) = (message.header_counts(), message.as_slice());
    if counts.qdcount() != 1 || record_count(message) > RECORDS_MAX {
        return None;
    }
    let mut parser = Parser::from_ref(bytes);
    parser.advance(HEADER).ok()?;
    // A question's name is not compressed, so it is read as one that cannot be.
    let asked: domain::base::Name<&[u8]> = domain::base::Name::parse(&mut parser).ok()?;
    let (kind, class) = (Rtype::parse(&mut parser).ok()?, Class::parse(&mut parser).ok()?);
    let mut query = Query {
        head,
        question: bytes.get(HEADER..parser.pos())?,
        name: FixedName::new(asked.as_slice()),
        kind: Kind(kind.to_int()),
        class: class.to_int(),
        has_answers: counts.ancount() > 0,
        serial: None,
        edns: None,
        tsig: None,
    };
    for _ in 0..counts.ancount() {
        ParsedRecord::skip(&mut parser).ok()?;
    }
    for _ in 0..counts.nscount() {
        let record = ParsedRecord::parse(&mut parser).ok()?;
        if record.rtype() == Rtype::SOA {
            let soa = record.into_record::<rdata::Soa<ParsedName<&[u8]>>>().ok()??;
            query.serial = Some(soa.data().serial().into_int());
        }
    }
    for _ in 0..counts.arcount() {
        let start = parser.pos();
        let record = ParsedRecord::parse(&mut parser).ok()?;
        query.note_additional(bytes.get(start..parser.pos())?, record, start)?;
    }
    (parser.remaining() == 0).then_some(query)
}

fn record_count(message: &Message<[u8]>) -> usize {
    let counts = message.header_counts();
    [counts.ancount(), counts.nscount(), counts.arcount()].into_iter().map(usize::from).sum()
}

impl<'a> Query<'a> {
    /// `bytes` are the record's, which begin at `start`.
    fn note_additional(&mut self, bytes: &[u8], record: ParsedRecord<'a, [u8]>, start: usize) -> Option<()> {
        if self.tsig.is_some() {
            // A signature is the last.
            return None;
        }
        match record.rtype() {
            Rtype::OPT => {
                // There is one, and its owner is the root.
                if self.edns.is_some() || bytes.first() != Some(&0) {
                    return None;
                }
                Opt::from_slice(bytes.get(OPT_BYTES..)?).ok()?;
                let options = OptHeader::for_record_slice(bytes);
                self.edns = Some(Edns {
                    datagram_bytes: options.udp_payload_size(),
                    version: options.version(),
                    dnssec: options.dnssec_ok(),
                });
            }
            Rtype::TSIG => self.tsig = Some(read_tsig(record, start)?),
            _ => {}
        }
        Some(())
    }
}

fn read_tsig(record: ParsedRecord<'_, [u8]>, start: usize) -> Option<Tsig<'_>> {
    if record.class() != Class::ANY || record.ttl().as_secs() != 0 {
        return None;
    }
    let data_len = usize::from(record.rdlen());
    let record = record.into_record::<rdata::Tsig<&[u8], ParsedName<&[u8]>>>().ok()??;
    let (key, data) = record.into_owner_and_data();
    let algorithm_len = usize::from(data.algorithm().compose_len());
    if data_len != algorithm_len + 16 + data.mac().len() + data.other().len() {
        // Its algorithm is compressed, which a signature's may not be.
        return None;
    }
    Some(Tsig {
        start,
        key: Name::of(&key),
        algorithm: Name::of(data.algorithm()),
        time_s: data.time_signed().into(),
        fudge_s: data.fudge(),
        mac: data.mac(),
        original_id: data.original_id(),
        error: data.error().to_int(),
        other: data.other(),
    })
}

/// The signature of an answer, for whoever asked.
pub(crate) fn answer_tsig(bytes: &[u8]) -> Option<Tsig<'_>> {
    let message = Message::from_slice(bytes).ok()?;
    if record_count(message) > RECORDS_MAX {
        return None;
    }
    let mut additional = message.additional().ok()?;
    let mut last = None;
    loop {
        let start = additional.pos();
        let Some(record) = additional.next() else { break };
        last = Some((record.ok()?, start));
    }
    let (record, start) = last?;
    let is_last = record.rtype() == Rtype::TSIG && additional.pos() == bytes.len();
    if is_last { read_tsig(record, start) } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::name;

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

    /// [`PLAIN`] without its extension record and with these records instead.
    fn with_additional(count: u8, records: &[u8]) -> Vec<u8> {
        let mut message = PLAIN[..29].to_vec();
        message[11] = count;
        message.extend_from_slice(records);
        message
    }

    #[test]
    fn pointers_in_names_end() {
        let record = |owner: &[u8]| [owner, b"\0\x01\0\x01\0\0\0\0\0\0"].concat();
        let is_good = |owner: &[u8]| read(&with_additional(1, &record(owner))).is_ok();
        assert!(is_good(b"\xc0\x0c"), "to the question");
        assert!(is_good(b"\x01a\xc0\x0c"));
        assert!(!is_good(b"\xc0\x1d"), "to itself");
        assert!(!is_good(b"\x01a\xc0\x1d"), "around");
        assert!(!is_good(b"\xc0\x1f"), "forwards");
        // The question's own name, in the header's bytes.
        let compressed = b"\0\0\x01\0\0\x01\0\0\0\0\0\0\xc0\0\0\x01\0\x01";
        assert!(matches!(read(compressed), Err(Unreadable::Malformed(_))));
    }

    #[test]
    fn extensions_and_signatures_are_where_they_belong() {
        let opt = b"\0\0\x29\x04\xd0\0\0\0\0\0\0";
        let tsig = [
            b"\x01k\0\0\xfa\0\xff\0\0\0\0\0\x15\x01a\0".as_slice(),
            &[0, 0, 0, 0, 0, 9, 1, 44, 0, 2, 5, 6, 7, 8, 0, 0, 0, 0],
        ]
        .concat();
        let is_good = |count, records: &[&[u8]]| read(&with_additional(count, &records.concat())).is_ok();
        assert!(is_good(1, &[opt]) && is_good(1, &[&tsig]) && is_good(2, &[opt, &tsig]));
        assert!(!is_good(2, &[opt, opt]), "two extension records");
        assert!(!is_good(2, &[&tsig, opt]), "a signature that is not the last");
        assert!(!is_good(1, &[&[b"\x01a".as_slice(), opt].concat()]), "an extension record below a name");
        assert!(!is_good(1, &[b"\0\0\x29\x04\xd0\0\0\0\0\0\x03\0\x0a\0"]), "an option that is cut off");
        let with = |at: usize, byte: u8| {
            let mut tsig = tsig.clone();
            tsig[at] = byte;
            tsig
        };
        assert!(!is_good(1, &[&with(6, 1)]), "a signature of another class");
        assert!(!is_good(1, &[&with(10, 1)]), "a signature that may be remembered");
        let query = with_additional(1, &tsig);
        let read = read(&query).unwrap().tsig.unwrap();
        assert_eq!((read.start, read.time_s, read.fudge_s, read.original_id), (29, 9, 300, 0x0708));
        assert_eq!((read.key.to_string(), read.algorithm.to_string(), read.mac), ("k".into(), "a".into(), &[5, 6][..]));
    }

    #[test]
    fn the_serial_of_a_secondary_is_read() {
        let soa = b"\xc0\x0c\0\x06\0\x01\0\0\0\0\0\x18\xc0\x0c\xc0\x0c\0\0\0\x07\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let mut message = with_additional(0, soa);
        message[9] = 1;
        assert_eq!(read(&message).unwrap().serial, Some(7));
        message[40] = 23;
        assert!(matches!(read(&message), Err(Unreadable::Malformed(_))), "a byte too few");
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
