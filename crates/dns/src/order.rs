//! The names of a signed zone in DNSSEC's order, so that what lies between two of them can be shown not to exist.

use std::sync::Arc;

use imbl::OrdMap;

use crate::name::{self, Name};

/// Names in order. Persistent: a clone costs a pointer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Order(OrdMap<Arc<[u8]>, Name>);

impl Order {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn contains(&self, name: &Name) -> bool {
        self.0.contains_key(&key(name.as_wire()))
    }

    pub(crate) fn insert(&mut self, name: &Name) {
        self.0.insert(key(name.as_wire()), name.clone());
    }

    pub(crate) fn remove(&mut self, name: &Name) {
        self.0.remove(&key(name.as_wire()));
    }

    /// The last name before the one with these bytes; around the end the last of all.
    pub(crate) fn before(&self, wire: &[u8]) -> Option<&Name> {
        let key = key(wire);
        let before = self.0.range(..key).next_back().map(|(_, name)| name);
        before.or_else(|| self.0.get_max().map(|(_, name)| name))
    }

    /// The name with these bytes, or else the last before it.
    pub(crate) fn at_or_before(&self, wire: &[u8]) -> Option<&Name> {
        self.0.get_prev(&key(wire)).map(|(_, name)| name)
    }

    /// The first name after another; around the end the first of all.
    pub(crate) fn after(&self, name: &Name) -> Option<&Name> {
        let bounds = (std::ops::Bound::Excluded(key(name.as_wire())), std::ops::Bound::Unbounded);
        let after = self.0.range::<_, Arc<[u8]>>(bounds).next().map(|(_, name)| name);
        after.or_else(|| self.0.get_min().map(|(_, name)| name))
    }
}

/// Bytes that compare as the standard compares names: label by label from the right. A label ends in 0, so the bytes 0 and 1 in a label are
/// written as two.
fn key(wire: &[u8]) -> Arc<[u8]> {
    let labels: Vec<&[u8]> = name::labels(wire).collect();
    let mut key = Vec::with_capacity(wire.len() + 4);
    for label in labels.into_iter().rev() {
        for byte in label {
            match byte {
                0 | 1 => key.extend_from_slice(&[1, byte + 1]),
                byte => key.push(*byte),
            }
        }
        key.push(0);
    }
    key.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_compare_as_names_do(
            one in prop::collection::vec(prop::collection::vec(0_u8..4, 1..4), 0..4),
            other in prop::collection::vec(prop::collection::vec(0_u8..4, 1..4), 0..4),
        ) {
            let (one, other) = (Name::from_labels(one).unwrap(), Name::from_labels(other).unwrap());
            prop_assert_eq!(key(one.as_wire()).cmp(&key(other.as_wire())), one.canonical_cmp(&other));
        }
    }

    #[test]
    fn neighbours_are_found_around_the_end() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let mut order = Order::default();
        for text in ["example", "b.example", "a.b.example", "z.example"] {
            order.insert(&name(text));
        }
        assert_eq!(order.after(&name("b.example")), Some(&name("a.b.example")));
        assert_eq!(order.after(&name("z.example")), Some(&name("example")));
        assert_eq!(order.before(name("example").as_wire()), Some(&name("z.example")));
        assert_eq!(order.before(name("c.example").as_wire()), Some(&name("a.b.example")));
        assert_eq!(order.at_or_before(name("b.example").as_wire()), Some(&name("b.example")));
        order.remove(&name("a.b.example"));
        assert_eq!(order.before(name("c.example").as_wire()), Some(&name("b.example")));
    }
}
