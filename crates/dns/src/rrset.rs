//! Record sets: all records of one kind that a name has. They are kept as an answer's bytes, with a compressed owner that points at
//! the question, so that most answers are one copy.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use crate::name::{self, Name};

/// Bytes of a record set in an answer at most, with its signatures: the rest of a message's 65,535 is for the header and the question.
pub(crate) const RRSET_BYTES_MAX: usize = 60_000;
/// What each record begins with: a pointer to the question's name, which is at byte 12 of every message.
pub(crate) const OWNER: [u8; 2] = [0xc0, 12];
/// Bytes of a record before its data: owner, kind, class, lifetime, length.
pub(crate) const FIXED: usize = 12;
const CLASS_IN: u16 = 1;

/// What a record is of. Any number may be asked for; those named here are written as text and checked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u16);

impl Kind {
    /// An IPv4 address.
    pub const A: Self = Self(1);
    /// A name server of the zone.
    pub const NS: Self = Self(2);
    /// Another name of the same thing.
    pub const CNAME: Self = Self(5);
    /// The zone itself.
    pub const SOA: Self = Self(6);
    /// The name of an address.
    pub const PTR: Self = Self(12);
    /// Text.
    pub const TXT: Self = Self(16);
    /// An IPv6 address.
    pub const AAAA: Self = Self(28);
    /// Where a service is.
    pub const SRV: Self = Self(33);
    /// The parent's digest of a zone's key.
    pub const DS: Self = Self(43);
    /// A signature.
    pub const RRSIG: Self = Self(46);
    /// The next name, and what this one has.
    pub const NSEC: Self = Self(47);
    /// A zone's key.
    pub const DNSKEY: Self = Self(48);

    const NAMED: [(Self, &'static str); 12] = [
        (Self::A, "A"),
        (Self::NS, "NS"),
        (Self::CNAME, "CNAME"),
        (Self::SOA, "SOA"),
        (Self::PTR, "PTR"),
        (Self::TXT, "TXT"),
        (Self::AAAA, "AAAA"),
        (Self::SRV, "SRV"),
        (Self::DS, "DS"),
        (Self::RRSIG, "RRSIG"),
        (Self::NSEC, "NSEC"),
        (Self::DNSKEY, "DNSKEY"),
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMED.iter().find(|(kind, _)| kind == self) {
            Some((_, name)) => formatter.write_str(name),
            None => write!(formatter, "TYPE{}", self.0),
        }
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// One record's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// [`Kind::A`].
    A(Ipv4Addr),
    /// [`Kind::AAAA`].
    Aaaa(Ipv6Addr),
    /// [`Kind::TXT`]: one or more strings of at most 255 bytes.
    Txt(Vec<Vec<u8>>),
    /// [`Kind::SRV`].
    Srv {
        /// The lowest is tried first.
        priority: u16,
        /// Its share among those of one priority.
        weight: u16,
        /// The port of the service.
        port: u16,
        /// Where it is.
        target: Name,
    },
    /// [`Kind::PTR`].
    Ptr(Name),
    /// [`Kind::NS`].
    Ns(Name),
    /// [`Kind::CNAME`].
    Cname(Name),
    /// Any kind, as it is on the wire.
    Other(Kind, Vec<u8>),
}

/// What a zone says about itself; its serial apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Soa {
    /// The first name server.
    pub primary: Name,
    /// Who is responsible, as a name: the first label is the mailbox.
    pub mailbox: Name,
    /// Seconds after which a secondary looks for a new serial.
    pub refresh_s: u32,
    /// Seconds until it looks again when that failed.
    pub retry_s: u32,
    /// Seconds after which a secondary that hears nothing stops answering.
    pub expire_s: u32,
    /// Seconds for which others may remember that a name does not exist.
    pub negative_s: u32,
    /// Seconds for which others may remember the record itself.
    pub ttl_s: u32,
}

/// Records of one kind at one name, at least one, none twice, in the canonical order. A clone costs a pointer.
#[derive(Clone, PartialEq, Eq)]
pub struct Rrset {
    kind: Kind,
    count: u16,
    ttl_s: u32,
    wire: Arc<[u8]>,
    signatures: Option<Arc<[u8]>>,
}

/// Why records are not a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RrsetError {
    /// There are none.
    #[error("a record set has no record")]
    Empty,
    /// The records are of several kinds.
    #[error("a record set has records of kinds {0} and {1}")]
    Mixed(Kind, Kind),
    /// Data that is not what its kind says.
    #[error("a record's data is not that of kind {0}")]
    Data(Kind),
    /// There may be only one of this kind.
    #[error("a name has several records of kind {0}, of which there may be one")]
    Several(Kind),
    /// They would not fit an answer.
    #[error("a record set of kind {0} takes more than {RRSET_BYTES_MAX} bytes")]
    Large(Kind),
}

// === impl Data ===

impl Data {
    /// What it is of.
    pub fn kind(&self) -> Kind {
        match self {
            Self::A(_) => Kind::A,
            Self::Aaaa(_) => Kind::AAAA,
            Self::Txt(_) => Kind::TXT,
            Self::Srv { .. } => Kind::SRV,
            Self::Ptr(_) => Kind::PTR,
            Self::Ns(_) => Kind::NS,
            Self::Cname(_) => Kind::CNAME,
            Self::Other(kind, _) => *kind,
        }
    }

    /// Its bytes on the wire; none when a string of a text is too long.
    fn encode(&self) -> Option<Vec<u8>> {
        Some(match self {
            Self::A(address) => address.octets().to_vec(),
            Self::Aaaa(address) => address.octets().to_vec(),
            Self::Txt(strings) => {
                let mut wire = Vec::new();
                for string in strings {
                    wire.push(u8::try_from(string.len()).ok()?);
                    wire.extend_from_slice(string);
                }
                wire
            }
            Self::Srv { priority, weight, port, target } => {
                let mut wire = Vec::with_capacity(6 + target.as_wire().len());
                [priority, weight, port].into_iter().for_each(|field| wire.extend_from_slice(&field.to_be_bytes()));
                wire.extend_from_slice(target.as_wire());
                wire
            }
            Self::Ptr(name) | Self::Ns(name) | Self::Cname(name) => name.as_wire().to_vec(),
            Self::Other(_, wire) => wire.clone(),
        })
    }
}

// === impl Soa ===

impl Soa {
    /// The record with a serial.
    pub(crate) fn rrset(&self, serial: u32) -> Rrset {
        let mut wire = self.primary.as_wire().to_vec();
        wire.extend_from_slice(self.mailbox.as_wire());
        for field in [serial, self.refresh_s, self.retry_s, self.expire_s, self.negative_s] {
            wire.extend_from_slice(&field.to_be_bytes());
        }
        Rrset::from_wire(Kind::SOA, self.ttl_s, [wire]).expect("two names and five numbers are one")
    }
}

// === impl Rrset ===

impl Rrset {
    /// The set of these records, which others may remember for `ttl_s` seconds.
    pub fn new(ttl_s: u32, records: &[Data]) -> Result<Self, RrsetError> {
        let kind = records.first().ok_or(RrsetError::Empty)?.kind();
        if let Some(other) = records.iter().find(|record| record.kind() != kind) {
            return Err(RrsetError::Mixed(kind, other.kind()));
        }
        let wires: Option<Vec<_>> = records.iter().map(Data::encode).collect();
        Self::from_wire(kind, ttl_s, wires.ok_or(RrsetError::Data(kind))?)
    }

    /// The set of these records' data as it is on the wire, uncompressed: what [`Rrset::data`] gives.
    pub fn from_wire<R: AsRef<[u8]>>(
        kind: Kind,
        ttl_s: u32,
        records: impl IntoIterator<Item = R>,
    ) -> Result<Self, RrsetError> {
        let mut records: Vec<R> = records.into_iter().collect();
        if records.iter().any(|record| !is_data_of(kind, record.as_ref())) {
            return Err(RrsetError::Data(kind));
        }
        records.sort_by(|one, other| one.as_ref().cmp(other.as_ref()));
        records.dedup_by(|one, other| one.as_ref() == other.as_ref());
        if records.len() > 1 && matches!(kind, Kind::CNAME | Kind::SOA) {
            return Err(RrsetError::Several(kind));
        }
        let wire = encode(kind, ttl_s, &records).ok_or(RrsetError::Large(kind))?;
        let count = u16::try_from(records.len()).map_err(|_| RrsetError::Large(kind))?;
        if count == 0 {
            return Err(RrsetError::Empty);
        }
        Ok(Self { kind, count, ttl_s, wire: wire.into(), signatures: None })
    }

    /// The same records with signatures over them (data of kind RRSIG); none takes them away.
    pub fn with_signatures<R: AsRef<[u8]>>(&self, signatures: &[R]) -> Result<Self, RrsetError> {
        if signatures.is_empty() {
            return Ok(Self { signatures: None, ..self.clone() });
        }
        if signatures.iter().any(|signature| !is_data_of(Kind::RRSIG, signature.as_ref())) {
            return Err(RrsetError::Data(Kind::RRSIG));
        }
        let wire = encode(Kind::RRSIG, self.ttl_s, signatures).ok_or(RrsetError::Large(Kind::RRSIG))?;
        if self.wire.len() + wire.len() > RRSET_BYTES_MAX {
            return Err(RrsetError::Large(self.kind));
        }
        Ok(Self { signatures: Some(wire.into()), ..self.clone() })
    }

    /// The same records without signatures.
    pub(crate) fn without_signatures(&self) -> Self {
        Self { signatures: None, ..self.clone() }
    }

    /// What its records are of.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Seconds for which others may remember it.
    pub fn ttl_s(&self) -> u32 {
        self.ttl_s
    }

    /// How many records it has.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Each record's data as it is on the wire, in the canonical order.
    pub fn data(&self) -> impl Iterator<Item = &[u8]> + Clone {
        Records(&self.wire)
    }

    /// The data of each signature over it.
    pub fn signatures(&self) -> impl Iterator<Item = &[u8]> + Clone {
        Records(self.signatures.as_deref().unwrap_or_default())
    }

    /// Each record's data as people write it.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        self.data().map(|data| text(self.kind, data))
    }

    /// The records as an answer's bytes, each owned by the question's name.
    pub(crate) fn answer(&self) -> &[u8] {
        &self.wire
    }

    /// The signatures as an answer's bytes, and how many they are.
    pub(crate) fn answer_signatures(&self) -> (&[u8], u16) {
        let wire = self.signatures.as_deref().unwrap_or_default();
        (wire, u16::try_from(Records(wire).count()).unwrap_or(u16::MAX))
    }
}

impl fmt::Debug for Rrset {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} {:?}", self.ttl_s, self.kind, self.texts().collect::<Vec<_>>())?;
        if self.signatures.is_some() { formatter.write_str(" signed") } else { Ok(()) }
    }
}

#[derive(Clone)]
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let len = self.0.get(FIXED - 2..FIXED)?;
        let end = FIXED + usize::from(u16::from_be_bytes([len[0], len[1]]));
        let (record, rest) = self.0.split_at_checked(end)?;
        self.0 = rest;
        record.get(FIXED..)
    }
}

fn encode<R: AsRef<[u8]>>(kind: Kind, ttl_s: u32, records: &[R]) -> Option<Vec<u8>> {
    let len = records.iter().map(|record| FIXED + record.as_ref().len()).sum::<usize>();
    if len > RRSET_BYTES_MAX {
        return None;
    }
    let mut wire = Vec::with_capacity(len);
    for record in records {
        wire.extend_from_slice(&OWNER);
        wire.extend_from_slice(&kind.0.to_be_bytes());
        wire.extend_from_slice(&CLASS_IN.to_be_bytes());
        wire.extend_from_slice(&ttl_s.to_be_bytes());
        wire.extend_from_slice(&u16::try_from(record.as_ref().len()).ok()?.to_be_bytes());
        wire.extend_from_slice(record.as_ref());
    }
    Some(wire)
}

fn is_data_of(kind: Kind, data: &[u8]) -> bool {
    let is_name = |data: &[u8]| name::wire_len(data) == Some(data.len());
    match kind {
        Kind::A => data.len() == 4,
        Kind::AAAA => data.len() == 16,
        Kind::NS | Kind::CNAME | Kind::PTR => is_name(data),
        Kind::SRV => data.get(6..).is_some_and(is_name),
        Kind::TXT => !data.is_empty() && strings(data).is_some(),
        Kind::SOA => soa_numbers(data).is_some(),
        _ => data.len() <= RRSET_BYTES_MAX,
    }
}

/// The two names and the five numbers of a zone's record.
fn soa_numbers(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (primary, rest) = data.split_at_checked(name::wire_len(data)?)?;
    let (mailbox, numbers) = rest.split_at_checked(name::wire_len(rest)?)?;
    (numbers.len() == 20).then_some((primary, mailbox, numbers))
}

fn strings(mut data: &[u8]) -> Option<Vec<&[u8]>> {
    let mut strings = Vec::new();
    while let Some((len, rest)) = data.split_first() {
        let (string, rest) = rest.split_at_checked(usize::from(*len))?;
        strings.push(string);
        data = rest;
    }
    Some(strings)
}

/// One record's data as a zone file has it; what has no form of its own is written as RFC 3597 says.
fn text(kind: Kind, data: &[u8]) -> String {
    known_text(kind, data).unwrap_or_else(|| {
        let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("\\# {} {hex}", data.len()).trim_end().to_owned()
    })
}

fn known_text(kind: Kind, data: &[u8]) -> Option<String> {
    let dotted = |wire: &[u8]| match Name::from_wire(wire) {
        Ok(name) if name.label_count() > 0 => Some(format!("{name}.")),
        Ok(name) => Some(name.to_string()),
        Err(_) => None,
    };
    let number = |at: usize| data.get(at..at + 2).map(|field| u16::from_be_bytes([field[0], field[1]]));
    match kind {
        Kind::A => Some(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).to_string()),
        Kind::AAAA => Some(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).to_string()),
        Kind::NS | Kind::CNAME | Kind::PTR => dotted(data),
        Kind::SRV => Some(format!("{} {} {} {}", number(0)?, number(2)?, number(4)?, dotted(data.get(6..)?)?)),
        Kind::TXT => {
            let quoted = strings(data)?.into_iter().map(|string| {
                let escaped = string.iter().map(|byte| match byte {
                    b'"' | b'\\' => format!("\\{}", char::from(*byte)),
                    0x20..=0x7e => char::from(*byte).to_string(),
                    byte => format!("\\{byte:03}"),
                });
                format!("\"{}\"", escaped.collect::<String>())
            });
            Some(quoted.collect::<Vec<_>>().join(" "))
        }
        Kind::SOA => {
            let (primary, mailbox, numbers) = soa_numbers(data)?;
            let numbers = numbers.chunks_exact(4).map(|four| u32::from_be_bytes([four[0], four[1], four[2], four[3]]));
            let numbers = numbers.map(|number| number.to_string()).collect::<Vec<_>>();
            Some(format!("{} {} {}", dotted(primary)?, dotted(mailbox)?, numbers.join(" ")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_set_is_the_same_whatever_the_order_of_its_records() {
        let (one, two) = (Data::A([192, 0, 2, 1].into()), Data::A([192, 0, 2, 2].into()));
        let set = Rrset::new(30, &[two.clone(), one.clone(), two.clone()]).unwrap();
        assert_eq!(set, Rrset::new(30, &[one.clone(), two.clone()]).unwrap());
        assert_eq!((set.kind(), set.count(), set.ttl_s()), (Kind::A, 2, 30));
        assert_eq!(set.texts().collect::<Vec<_>>(), ["192.0.2.1", "192.0.2.2"]);
        assert_ne!(set, Rrset::new(31, &[one, two]).unwrap());
        assert_eq!(Rrset::from_wire(set.kind(), 30, set.data()), Ok(set));
    }

    #[test]
    fn what_is_no_set_is_refused() {
        let (a, ptr) = (Data::A([1, 2, 3, 4].into()), Data::Ptr(name("a.b")));
        assert_eq!(Rrset::new(1, &[]), Err(RrsetError::Empty));
        assert_eq!(Rrset::new(1, &[a, ptr]), Err(RrsetError::Mixed(Kind::A, Kind::PTR)));
        let aliases = [Data::Cname(name("a")), Data::Cname(name("b"))];
        assert_eq!(Rrset::new(1, &aliases), Err(RrsetError::Several(Kind::CNAME)));
        assert_eq!(Rrset::new(1, &[Data::Txt(vec![vec![0; 256]])]), Err(RrsetError::Data(Kind::TXT)));
        assert_eq!(Rrset::new(1, &[Data::Txt(vec![])]), Err(RrsetError::Data(Kind::TXT)));
        assert_eq!(Rrset::new(1, &[Data::Other(Kind::A, vec![1])]), Err(RrsetError::Data(Kind::A)));
        assert_eq!(Rrset::from_wire(Kind::SRV, 1, [[0; 6]]), Err(RrsetError::Data(Kind::SRV)));
        let many: Vec<Data> = (0..4000_u32).map(|number| Data::A(number.into())).collect();
        assert_eq!(Rrset::new(1, &many), Err(RrsetError::Large(Kind::A)));
    }

    #[test]
    fn data_is_written_as_a_zone_file_has_it() {
        let texts = |data: Data| Rrset::new(1, &[data]).unwrap().texts().collect::<Vec<_>>().join("");
        assert_eq!(texts(Data::Srv { priority: 1, weight: 2, port: 80, target: name("a.b") }), "1 2 80 a.b.");
        assert_eq!(texts(Data::Txt(vec![b"a \"b\"".to_vec(), vec![7]])), r#""a \"b\"" "\007""#);
        assert_eq!(texts(Data::Other(Kind(65280), vec![1, 255])), r"\# 2 01ff");
        assert_eq!(texts(Data::Aaaa("2001:db8::1".parse().unwrap())), "2001:db8::1");
        assert_eq!(texts(Data::Ns(Name::root())), ".");
        assert_eq!(Kind(65280).to_string(), "TYPE65280");
    }
}
