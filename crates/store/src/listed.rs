//! The keys of the records under one key of an index: usually one or a few, sometimes very many.
//!
//! One is a pointer. A few are one sorted piece of memory, made anew with each change. Many are a set that shares structure with the
//! one before, so that a hundred thousand records under one key cost a change no more than a few thousand do.

use std::{ops::Bound, sync::Arc};

use imbl::OrdSet;

use crate::key::{Compared, Key, Sought};

/// Keys in one piece of memory at most: beyond, copying them costs more than a set does.
const FEW_MAX: usize = 16;
/// A set that has become so small is a piece of memory again. Less than [`FEW_MAX`], so that one key that comes and goes does not
/// change the form each time.
const FEW_AGAIN: usize = 8;

/// See the head of this file.
#[derive(Clone)]
pub(crate) enum Listed {
    One(Arc<str>),
    Few(Arc<[Arc<str>]>),
    Many(OrdSet<Key>),
}

impl Listed {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }

    /// In their order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.keys_from("")
    }

    /// Those that are not less than `from`, in their order.
    pub(crate) fn keys_from<'a>(&'a self, from: &str) -> impl Iterator<Item = &'a Arc<str>> + use<'a> {
        let (few, many) = match self {
            Self::One(one) => (std::slice::from_ref(one), None),
            Self::Few(few) => (&few[..], None),
            Self::Many(many) => {
                let from = Sought::new(from);
                let from: &(dyn Compared + '_) = &from;
                (&[][..], Some(many.range::<_, dyn Compared + '_>((Bound::Included(from), Bound::Unbounded))))
            }
        };
        let first = few.partition_point(|key| **key < *from);
        few[first..].iter().chain(many.into_iter().flatten().map(Key::text))
    }

    /// Adds one; nothing when it is there.
    pub(crate) fn add(&mut self, key: &Arc<str>) {
        if let Self::Many(many) = self {
            many.insert(key.clone().into());
            return;
        }
        let mut keys: Vec<Arc<str>> = self.keys().cloned().collect();
        let Err(position) = keys.binary_search(key) else { return };
        keys.insert(position, key.clone());
        *self = Self::of(keys);
    }

    /// Takes one away; nothing when it is not there. Empty then, it is of no more use.
    pub(crate) fn remove(&mut self, key: &str) {
        if let Self::Many(many) = self {
            let key = Sought::new(key);
            let key: &(dyn Compared + '_) = &key;
            many.remove(key);
            if many.len() > FEW_AGAIN {
                return;
            }
        }
        let keys: Vec<Arc<str>> = self.keys().filter(|known| ***known != *key).cloned().collect();
        if keys.len() < self.len() || matches!(self, Self::Many(_)) {
            *self = Self::of(keys);
        }
    }

    fn of(mut keys: Vec<Arc<str>>) -> Self {
        match keys.len() {
            1 => Self::One(keys.swap_remove(0)),
            0..=FEW_MAX => Self::Few(keys.into()),
            _ => Self::Many(keys.into_iter().map(Key::from).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_sorted_set_at_every_size(
            first in "[a-h]{1,2}",
            acts in proptest::collection::vec((any::<bool>(), "[a-h]{1,2}"), 0..200),
            from in "[a-h]{0,2}",
        ) {
            let mut known = BTreeSet::from([first.clone()]);
            let mut listed = Listed::One(first.as_str().into());
            for (adds, key) in acts {
                // Long rows of additions, so that all forms come up; the last one is not taken away, as in an index.
                if adds || key.len() == 2 {
                    known.insert(key.clone());
                    listed.add(&key.as_str().into());
                } else if known.len() > 1 || !known.contains(&key) {
                    known.remove(&key);
                    listed.remove(&key);
                }
                prop_assert_eq!(listed.len(), known.len());
            }
            // Down again to one.
            loop {
                let keys: Vec<&str> = listed.keys().map(AsRef::as_ref).collect();
                prop_assert_eq!(&keys, &known.iter().map(String::as_str).collect::<Vec<_>>());
                let rest: Vec<&str> = listed.keys_from(&from).map(AsRef::as_ref).collect();
                prop_assert_eq!(rest, known.range(from.clone()..).map(String::as_str).collect::<Vec<_>>());
                let Some(next) = known.iter().nth(known.len() / 2).filter(|_| known.len() > 1).cloned() else { break };
                known.remove(&next);
                listed.remove(&next);
            }
            prop_assert!(matches!(listed, Listed::One(_)));
        }
    }
}
