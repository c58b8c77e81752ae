//! Names as they are on the wire, in lower case: the one form in which zones, questions and answers meet, so that finding a name is
//! hashing bytes. Text is for people and settings.
//!
//! Bytes and texts become names by the library `domain`; what is kept of them is bytes, since a name is a key of maps first of all. Names are
//! written here, because what is special in a zone file is escaped too.

use std::{borrow::Borrow, fmt, net::IpAddr, str::FromStr, sync::Arc};

use domain::{
    base::name::{FromStrError, Name as Read, ToName},
    dep::octseq::Parser,
};

/// Bytes of a name at most, with its lengths and the root.
pub(crate) const NAME_MAX: usize = 255;
/// Bytes of a label at most.
const LABEL_MAX: usize = 63;
/// The label that stands for many names, as on the wire.
pub(crate) const ANY: &[u8] = &[1, b'*'];

/// A whole name, in lower case. A clone costs a pointer. Ordered by its bytes; see [`Name::canonical_cmp`] for DNSSEC's order.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<[u8]>);

/// Why something is not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Two dots follow each other, or one begins the name.
    #[error("a name has an empty label")]
    EmptyLabel,
    /// A part between two dots is too long.
    #[error("a label is longer than {LABEL_MAX} bytes")]
    LongLabel,
    /// The whole is too long.
    #[error("a name is longer than {NAME_MAX} bytes")]
    LongName,
    /// Empty or too long parts, an escape that means nothing, or what is not printable.
    #[error("a name is not as people write it")]
    Text(#[source] FromStrError),
    /// Bytes that are not one uncompressed name.
    #[error("bytes are not one whole name")]
    Wire,
}

impl Name {
    /// The root.
    pub fn root() -> Self {
        Self(Arc::from([0_u8].as_slice()))
    }

    /// A name of these labels, the leftmost first. Any byte may be in a label.
    pub fn from_labels<L: AsRef<[u8]>>(labels: impl IntoIterator<Item = L>) -> Result<Self, NameError> {
        let mut wire = Vec::with_capacity(64);
        for label in labels {
            push_label(&mut wire, label.as_ref())?;
        }
        finish(wire)
    }

    /// A name from its bytes on the wire: no compression, nothing behind it, any case.
    pub fn from_wire(wire: &[u8]) -> Result<Self, NameError> {
        match Read::from_slice(wire) {
            Ok(name) => Ok(Self(name.as_slice().to_ascii_lowercase().into())),
            Err(_) => Err(NameError::Wire),
        }
    }

    /// A name that was read, compressed or not.
    pub(crate) fn of(name: &impl ToName) -> Self {
        let mut wire = Vec::with_capacity(usize::from(name.compose_len()));
        let Ok(()) = name.compose_canonical(&mut wire);
        Self(wire.into())
    }

    /// The name under which the owner of an address is asked for: `4.3.2.1.in-addr.arpa` and its like.
    pub fn reverse(address: IpAddr) -> Self {
        let name = Read::<Vec<u8>>::reverse_from_addr(address).expect("an address has few and short labels");
        Self::of(&name)
    }

    /// This name with one more label on its left.
    pub fn child(&self, label: impl AsRef<[u8]>) -> Result<Self, NameError> {
        let mut wire = Vec::with_capacity(self.0.len() + 1 + label.as_ref().len());
        push_label(&mut wire, label.as_ref())?;
        wire.extend_from_slice(&self.0);
        if wire.len() > NAME_MAX { Err(NameError::LongName) } else { Ok(Self(wire.into())) }
    }

    /// This name without its leftmost label; none of the root.
    pub fn parent(&self) -> Option<Self> {
        parent(&self.0).map(|wire| Self(wire.into()))
    }

    /// Whether it is `other` or lies below it.
    pub fn is_under(&self, other: &Name) -> bool {
        is_under(&self.0, &other.0)
    }

    /// How many labels it has; the root has none.
    pub fn label_count(&self) -> usize {
        label_count(&self.0)
    }

    /// Whether it stands for all names below the one above it that are not there: its first label is `*`.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with(ANY)
    }

    /// Its labels, the leftmost first.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        Labels(&self.0)
    }

    /// Its bytes on the wire, never compressed.
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// As the library knows names.
    pub(crate) fn read(&self) -> Read<&[u8]> {
        Read::from_octets(self.as_wire()).expect("a name is one as soon as it is made")
    }

    /// DNSSEC's order: label by label from the right.
    pub fn canonical_cmp(&self, other: &Name) -> std::cmp::Ordering {
        self.read().name_cmp(&other.read())
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    /// A name as people write it; the last dot may be left out. `\.` and `\046` stand for bytes that would mean something else.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = Read::vec_from_str(text).map_err(NameError::Text)?;
        // The library lets one byte too many through where the last label has one byte.
        if name.as_slice().len() > NAME_MAX { Err(NameError::LongName) } else { Ok(Self::of(&name)) }
    }
}

impl fmt::Display for Name {
    /// Without the last dot, as people write it; the root is a dot.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() == 1 {
            return formatter.write_str(".");
        }
        for (place, label) in self.labels().enumerate() {
            if place > 0 {
                formatter.write_str(".")?;
            }
            for byte in label {
                match byte {
                    b'.' | b'\\' | b'"' | b'(' | b')' | b';' | b'@' | b'$' => {
                        write!(formatter, "\\{}", char::from(*byte))?
                    }
                    0x21..=0x7e => write!(formatter, "{}", char::from(*byte))?,
                    byte => write!(formatter, "\\{byte:03}")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

// === names as bytes: what questions are until they are found ===

/// How many bytes at the front of `wire` are one uncompressed name.
pub(crate) fn wire_len(wire: &[u8]) -> Option<usize> {
    let name: Read<&[u8]> = Read::parse(&mut Parser::from_ref(wire)).ok()?;
    Some(name.as_slice().len())
}

/// A name's bytes without the leftmost label.
pub(crate) fn parent(wire: &[u8]) -> Option<&[u8]> {
    match wire.first() {
        None | Some(0) => None,
        Some(len) => wire.get(1 + usize::from(*len)..),
    }
}

/// How many labels a name's bytes have.
pub(crate) fn label_count(wire: &[u8]) -> usize {
    Labels(wire).count()
}

/// The labels of a name's bytes, the leftmost first.
pub(crate) fn labels(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    Labels(wire)
}

/// Whether a name's bytes are `apex` or end in it, at a label's edge.
pub(crate) fn is_under(wire: &[u8], apex: &[u8]) -> bool {
    let Some(above) = wire.len().checked_sub(apex.len()) else { return false };
    if wire.get(above..) != Some(apex) {
        return false;
    }
    let mut at = 0;
    while at < above {
        at += 1 + usize::from(wire[at]);
    }
    at == above
}

struct Labels<'a>(&'a [u8]);

impl<'a> Iterator for Labels<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = parent(self.0)?;
        let label = self.0.get(1..self.0.len() - rest.len());
        self.0 = rest;
        label
    }
}

fn push_label(wire: &mut Vec<u8>, label: &[u8]) -> Result<(), NameError> {
    if label.is_empty() {
        return Err(NameError::EmptyLabel);
    }
    if label.len() > LABEL_MAX {
        return Err(NameError::LongLabel);
    }
    wire.push(u8::try_from(label.len()).map_err(|_| NameError::LongLabel)?);
    wire.extend(label.iter().map(u8::to_ascii_lowercase));
    Ok(())
}

fn finish(mut wire: Vec<u8>) -> Result<Name, NameError> {
    wire.push(0);
    if wire.len() > NAME_MAX { Err(NameError::LongName) } else { Ok(Name(wire.into())) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn text_and_wire_are_two_forms_of_one_name() {
        assert_eq!(name("WWW.Example.com.").as_wire(), b"\x03www\x07example\x03com\0");
        assert_eq!(name("www.example.com"), name("WWW.Example.com."));
        assert_eq!(name(r"a\.b.c").labels().collect::<Vec<_>>(), [b"a.b".as_slice(), b"c"]);
        assert_eq!(name(r"a\000b.c").to_string(), r"a\000b.c");
        assert_eq!(name(".").to_string(), ".");
        assert_eq!(name("a.b.c").parent(), Some(name("b.c")));
        assert_eq!(Name::root().parent(), None);
        assert_eq!(name("b.c").child("A").unwrap(), name("a.b.c"));
        let refused = ["", "a..b", ".a", "..", r"a\25", r"a\256", "\u{e4}.b", &"a".repeat(64), &"abc.".repeat(64)];
        for text in refused {
            assert!(matches!(text.parse::<Name>(), Err(NameError::Text(_))), "{text}");
        }
        assert_eq!(Name::from_labels([b"a".as_slice(), b""]), Err(NameError::EmptyLabel));
        assert_eq!(Name::from_labels([[b'a'; 64]]), Err(NameError::LongLabel));
        assert_eq!(Name::from_labels([[b'a'; 63]; 4]), Err(NameError::LongName));
        assert_eq!(Name::from_wire(b"\x01a\0\0"), Err(NameError::Wire));
        assert_eq!(Name::from_wire(b"\x01a\xc0\x0c"), Err(NameError::Wire));
    }

    #[test]
    fn the_longest_name_has_255_bytes() {
        let long = |last: usize| format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(last));
        assert_eq!(name(&long(61)).as_wire().len(), NAME_MAX);
        assert!(long(62).parse::<Name>().is_err());
        // Its last label begins at the last byte that is allowed.
        assert_eq!(format!("{}.c", long(60)).parse::<Name>(), Err(NameError::LongName));
        assert_eq!(name(&format!("{}.c", long(59))).as_wire().len(), NAME_MAX);
    }

    #[test]
    fn below_is_decided_at_labels_edges() {
        assert!(name("a.example.com").is_under(&name("example.com")));
        assert!(name("example.com").is_under(&name("example.com")));
        assert!(!name("notexample.com").is_under(&name("example.com")));
        assert!(!name("com").is_under(&name("example.com")));
        // The bytes end alike, but inside a label.
        let odd = Name::from_labels([b"x\x07example".as_slice(), b"com"]).unwrap();
        assert!(!odd.is_under(&name("example.com")));
    }

    #[test]
    fn addresses_have_names() {
        assert_eq!(Name::reverse([192, 0, 2, 7].into()), name("7.2.0.192.in-addr.arpa"));
        let v6 = Name::reverse("2001:db8::1".parse().unwrap()).to_string();
        assert_eq!(v6, "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa");
    }

    #[test]
    fn the_canonical_order_is_the_standards() {
        // RFC 4034, 6.1.
        let ordered = [
            "example",
            "a.example",
            "yljkjljk.a.example",
            "z.a.example",
            "zabc.a.example",
            "z.example",
            r"\001.z.example",
        ];
        for pair in ordered.windows(2) {
            assert_eq!(name(pair[0]).canonical_cmp(&name(pair[1])), std::cmp::Ordering::Less, "{pair:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..10)) {
            let name = Name::from_labels(&labels).unwrap();
            prop_assert_eq!(name.to_string().parse::<Name>(), Ok(name.clone()));
            prop_assert_eq!(Name::from_wire(name.as_wire()), Ok(name.clone()));
            prop_assert_eq!(name.label_count(), labels.len());
        }

        #[test]
        fn strange_bytes_are_a_name_or_not(bytes in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,80}") {
            if let Ok(name) = Name::from_wire(&bytes) {
                prop_assert_eq!(name.as_wire().len(), bytes.len());
            }
            let _ = text.parse::<Name>();
        }
    }
}
