//! The key of a record, or of an index, as the maps of a table hold it.
//!
//! Maps of a hundred thousand keys are looked into by comparing some twenty of them, and a text lies elsewhere in memory than the map that
//! points to it: what a look costs is mostly waiting for texts. So a key carries the beginning of its text with it, which tells most
//! keys apart. The order is that of the texts.

use std::{borrow::Borrow, cmp::Ordering, sync::Arc};

/// See the head of this file.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    head: u64,
    text: Arc<str>,
}

/// A key to look for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sought<'a> {
    head: u64,
    text: &'a str,
}

/// What keys are compared by, whoever owns the text.
pub(crate) trait Compared {
    fn head(&self) -> u64;
    fn text(&self) -> &str;
}

/// The first bytes, as a number that is ordered as they are.
fn head(text: &str) -> u64 {
    let mut first = [0; size_of::<u64>()];
    let length = text.len().min(first.len());
    first[..length].copy_from_slice(&text.as_bytes()[..length]);
    u64::from_be_bytes(first)
}

impl Key {
    pub(crate) fn text(&self) -> &Arc<str> {
        &self.text
    }
}

impl From<Arc<str>> for Key {
    fn from(text: Arc<str>) -> Self {
        Self { head: head(&text), text }
    }
}

impl<'a> Sought<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { head: head(text), text }
    }
}

impl Compared for Key {
    fn head(&self) -> u64 {
        self.head
    }

    fn text(&self) -> &str {
        &self.text
    }
}

impl Compared for Sought<'_> {
    fn head(&self) -> u64 {
        self.head
    }

    fn text(&self) -> &str {
        self.text
    }
}

impl<'a> Borrow<dyn Compared + 'a> for Key {
    fn borrow(&self) -> &(dyn Compared + 'a) {
        self
    }
}

impl Ord for dyn Compared + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.head().cmp(&other.head()).then_with(|| self.text().cmp(other.text()))
    }
}

impl PartialOrd for dyn Compared + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Compared + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for dyn Compared + '_ {}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.head.cmp(&other.head).then_with(|| self.text.cmp(&other.text))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Key {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_have_the_order_of_their_texts(one in "[\\x00ab]{0,10}", other in "[\\x00ab]{0,10}") {
            let keys = [one.as_str(), other.as_str()].map(|text| Key::from(Arc::<str>::from(text)));
            prop_assert_eq!(keys[0].cmp(&keys[1]), one.cmp(&other));
            let (held, sought) = (&keys[0] as &dyn Compared, &Sought::new(&other) as &dyn Compared);
            prop_assert_eq!(held.cmp(sought), one.cmp(&other));
            prop_assert_eq!(held == sought, one == other);
        }
    }
}
