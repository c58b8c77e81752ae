//! What a record holds a few of, in no more memory than that takes: there are hundreds of thousands of records.
//!
//! A `BTreeMap` with one entry takes more than half a kilobyte, and a list that was read from JSON has room for four. [`Pairs`] is a map
//! that is read often and changed seldom: its entries stand in order in one piece of memory, which copies share (the tags of an instance,
//! say, and those in its machine's document). [`exact`] reads a list and gives back the room that it does not need.

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// See the head of this file.
pub struct Pairs<K, V>(
    // `None`: empty.
    Option<Arc<[(K, V)]>>,
);

impl<K, V> Pairs<K, V> {
    fn entries(&self) -> &[(K, V)] {
        self.0.as_deref().unwrap_or_default()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// All, in the order of keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> + ExactSizeIterator {
        self.entries().iter().map(|(key, value)| (key, value))
    }

    /// The keys, in their order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + ExactSizeIterator {
        self.entries().iter().map(|(key, _)| key)
    }
}

impl<K: Ord, V> Pairs<K, V> {
    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let position = self.entries().binary_search_by(|(known, _)| known.borrow().cmp(key)).ok()?;
        Some(&self.entries()[position].1)
    }

    /// Whether a key has a value.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }
}

impl<K: Ord + Clone, V: Clone> Pairs<K, V> {
    /// The same as a map to change.
    pub fn to_map(&self) -> BTreeMap<K, V> {
        self.entries().iter().cloned().collect()
    }
}

impl<K, V> Default for Pairs<K, V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K, V> Clone for Pairs<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Pairs<K, V> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.entries(), other.entries()) || self.entries() == other.entries()
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Pairs<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K, V> From<BTreeMap<K, V>> for Pairs<K, V> {
    fn from(map: BTreeMap<K, V>) -> Self {
        Self((!map.is_empty()).then(|| map.into_iter().collect()))
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Pairs<K, V> {
    /// Of several with one key the last.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        BTreeMap::from_iter(entries).into()
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for Pairs<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K: Serialize, V: Serialize> Serialize for Pairs<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Deserialize<'de> for Pairs<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self::from)
    }
}

/// Reads a list and gives back the room that it does not need: for `deserialize_with`.
///
/// # Errors
/// The reader's own.
pub fn exact<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let mut list = Vec::deserialize(deserializer)?;
    list.shrink_to_fit();
    Ok(list)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_a_map(entries in proptest::collection::vec(("[a-d]{1,2}", any::<u8>()), 0..12), key in "[a-d]{1,2}") {
            let map: BTreeMap<String, u8> = entries.iter().cloned().collect();
            let pairs: Pairs<String, u8> = entries.into_iter().collect();
            prop_assert_eq!(pairs.get(&key), map.get(&key));
            prop_assert_eq!(pairs.contains_key(key.as_str()), map.contains_key(&key));
            prop_assert_eq!((pairs.len(), pairs.is_empty()), (map.len(), map.is_empty()));
            prop_assert!(pairs.iter().eq(map.iter()) && pairs.keys().eq(map.keys()));
            let text = serde_json::to_string(&pairs).expect("plain data");
            prop_assert_eq!(&text, &serde_json::to_string(&map).expect("plain data"));
            prop_assert_eq!(serde_json::from_str::<Pairs<String, u8>>(&text).expect("what was written"), pairs.clone());
            let mut other = pairs.to_map();
            prop_assert_eq!(&other, &map);
            other.insert("z".to_owned(), 1);
            prop_assert_ne!(Pairs::from(other), pairs);
        }
    }

    #[test]
    fn a_list_has_no_room_left() {
        #[derive(Deserialize)]
        struct Listed {
            #[serde(deserialize_with = "exact")]
            list: Vec<u64>,
        }
        let read: Listed = serde_json::from_str(r#"{"list":[7]}"#).expect("a list");
        assert_eq!((read.list.as_slice(), read.list.capacity()), (&[7][..], 1));
    }
}
