//! One table of the mirror: decoded records by key, and for each secondary index the keys of the records it lists ([`Listed`]), in maps
//! that share structure between snapshots.
//!
//! An index holds keys and not records. A record that changes, as most do, without moving in an index then costs that index nothing,
//! and one that is found by an index is looked up once more. The keys of an index are those of the table itself: a pointer
//! each, and in a map the beginning of the text beside it ([`Key`]).

use std::{any::Any, io, ops::Bound, sync::Arc};

use bytes::Bytes;
use imbl::OrdMap;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    key::{Compared, Key, Sought},
    listed::Listed,
    table::{AnyEntry, DecodeError, Entry, Revision, Table, decode, encode},
};

/// A table whose record type is known only to its callers.
pub(crate) trait AnyRows: Any + Send + Sync {
    fn put_bytes(&mut self, key: &str, revision: Revision, bytes: &[u8]) -> Result<(), DecodeError>;
    /// `entry` is an `Arc<Entry<T>>` of this table's `T`.
    fn put_entry(&mut self, key: &Arc<str>, entry: &Arc<dyn AnyEntry>);
    /// What `other`, which is this table at another time, has under `key`: a record, or none.
    fn put_as_in(&mut self, other: &dyn AnyRows, key: &str);
    fn remove(&mut self, key: &str);
    fn revision_of(&self, key: &str) -> Option<Revision>;
    fn len(&self) -> usize;
    /// Shows every record as it is stored, in the order of keys: `<table>/<key>` and value.
    fn each_stored(&self, visit: &mut dyn FnMut(&str, Bytes) -> io::Result<()>) -> io::Result<()>;
    fn share(&self) -> Arc<dyn AnyRows>;
    fn as_any(&self) -> &dyn Any;
}

pub(crate) struct Rows<T: 'static> {
    table: &'static Table<T>,
    rows: OrdMap<Key, Arc<Entry<T>>>,
    indexes: Vec<OrdMap<Key, Listed>>,
}

impl<T> Rows<T> {
    pub(crate) fn new(table: &'static Table<T>) -> Self {
        Self { table, rows: OrdMap::new(), indexes: table.indexes.iter().map(|_| OrdMap::new()).collect() }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Arc<Entry<T>>> {
        self.rows.get(sought(&Sought::new(key)))
    }

    pub(crate) fn scan(&self) -> impl Iterator<Item = Arc<Entry<T>>> + use<'_, T> {
        self.rows.values().cloned()
    }

    /// Records with keys greater than `after`.
    pub(crate) fn range(&self, after: &str) -> impl Iterator<Item = Arc<Entry<T>>> + use<'_, T> {
        let after = Sought::new(after);
        self.rows
            .range::<_, dyn Compared + '_>((Bound::Excluded(sought(&after)), Bound::Unbounded))
            .map(|(_, entry)| entry.clone())
    }

    /// Records under `key` of the index named `index`, in the order of their own keys.
    pub(crate) fn find(&self, index: &str, key: &str) -> impl Iterator<Item = Arc<Entry<T>>> + use<'_, T> {
        self.index(index).get(sought(&Sought::new(key))).into_iter().flat_map(Listed::keys).map(|key| self.listed(key))
    }

    /// Keys of the records under `key` of the index named `index`, in their order.
    pub(crate) fn keys_of(&self, index: &str, key: &str) -> impl Iterator<Item = &str> + use<'_, T> {
        self.index(index).get(sought(&Sought::new(key))).into_iter().flat_map(Listed::keys).map(AsRef::as_ref)
    }

    /// How many records are under `key` of the index named `index`.
    pub(crate) fn count(&self, index: &str, key: &str) -> usize {
        self.index(index).get(sought(&Sought::new(key))).map_or(0, Listed::len)
    }

    /// Keys of the index named `index` that begin with `prefix`, in their order, each with the number of records under it.
    pub(crate) fn counts(&self, index: &str, prefix: &str) -> impl Iterator<Item = (&str, usize)> + use<'_, T> {
        self.within(index, prefix, prefix).map(|(key, listed)| (&**key.text(), listed.len()))
    }

    /// Records under all keys of the index named `index` that begin with `prefix`, in the order of those.
    pub(crate) fn ordered(&self, index: &str, prefix: &str) -> impl Iterator<Item = Arc<Entry<T>>> + use<'_, T> {
        self.ordered_from(index, prefix, prefix, "")
    }

    /// The same from `key` under `from` on.
    pub(crate) fn ordered_from(
        &self,
        index: &str,
        prefix: &str,
        from: &str,
        key: &str,
    ) -> impl Iterator<Item = Arc<Entry<T>>> + use<'_, T> {
        let (first, key) = (from.to_owned(), key.to_owned());
        self.within(index, prefix, from).flat_map(move |(found, listed)| {
            let after = if **found.text() == *first { key.as_str() } else { "" };
            listed.keys_from(after).map(|key| self.listed(key))
        })
    }

    fn within(&self, index: &str, prefix: &str, from: &str) -> impl Iterator<Item = (&Key, &Listed)> + use<'_, T> {
        let (prefix, from) = (prefix.to_owned(), Sought::new(from));
        let rest = self.index(index).range::<_, dyn Compared + '_>((Bound::Included(sought(&from)), Bound::Unbounded));
        rest.take_while(move |(found, _)| found.text().starts_with(&prefix))
    }

    fn index(&self, name: &str) -> &OrdMap<Key, Listed> {
        let position = self.table.indexes.iter().position(|candidate| candidate.name == name);
        &self.indexes[position.unwrap_or_else(|| panic!("table `{}` has no index `{name}`", self.table.name))]
    }

    fn listed(&self, key: &Arc<str>) -> Arc<Entry<T>> {
        self.get(key).expect("an index lists records that are there").clone()
    }

    fn put(&mut self, key: &str, entry: Arc<Entry<T>>) {
        // One text for the record's key, wherever it stands.
        let replaced = self.rows.get_key_value_mut(sought(&Sought::new(key)));
        let replaced = replaced.map(|(key, old)| (key.text().clone(), std::mem::replace(old, entry.clone())));
        let (key, old) = match replaced {
            Some((key, old)) => (key, Some(old)),
            None => {
                let key: Arc<str> = key.into();
                self.rows.insert(key.clone().into(), entry.clone());
                (key, None)
            }
        };
        for (index, map) in self.table.indexes.iter().zip(&mut self.indexes) {
            let new_keys = (index.keys)(&entry.value);
            let old_keys = old.as_ref().map_or_else(Vec::new, |old| (index.keys)(&old.value));
            if new_keys == old_keys {
                continue;
            }
            for stale in old_keys.iter().filter(|stale| !new_keys.contains(stale)) {
                unlist(map, stale, &key);
            }
            for fresh in new_keys.iter().filter(|fresh| !old_keys.contains(fresh)) {
                match map.get_mut(sought(&Sought::new(fresh))) {
                    Some(listed) => listed.add(&key),
                    None => {
                        map.insert(Arc::<str>::from(fresh.as_str()).into(), Listed::One(key.clone()));
                    }
                }
            }
        }
    }
}

/// Takes `key` off the list under `index_key`.
fn unlist(map: &mut OrdMap<Key, Listed>, index_key: &str, key: &str) {
    let index_key = Sought::new(index_key);
    let Some(listed) = map.get_mut(sought(&index_key)) else { return };
    listed.remove(key);
    if listed.len() == 0 {
        map.remove(sought(&index_key));
    }
}

/// As maps are asked for it.
fn sought<'a>(key: &'a Sought<'a>) -> &'a (dyn Compared + 'a) {
    key
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> AnyRows for Rows<T> {
    fn put_bytes(&mut self, key: &str, revision: Revision, bytes: &[u8]) -> Result<(), DecodeError> {
        let value = decode(self.table, key, bytes)?;
        self.put(key, Arc::new(Entry::new(value, revision)));
        Ok(())
    }

    fn put_entry(&mut self, key: &Arc<str>, entry: &Arc<dyn AnyEntry>) {
        let entry: Arc<dyn Any + Send + Sync> = entry.clone();
        let entry = entry.downcast::<Entry<T>>().expect("a transaction's entry has the type of its table");
        self.put(key, entry);
    }

    fn put_as_in(&mut self, other: &dyn AnyRows, key: &str) {
        let other = other.as_any().downcast_ref::<Self>().expect("a table keeps its type");
        match other.get(key) {
            Some(entry) => self.put(key, entry.clone()),
            None => self.remove(key),
        }
    }

    fn remove(&mut self, key: &str) {
        let Some(old) = self.rows.remove(sought(&Sought::new(key))) else { return };
        for (index, map) in self.table.indexes.iter().zip(&mut self.indexes) {
            for stale in (index.keys)(&old.value) {
                unlist(map, &stale, key);
            }
        }
    }

    fn revision_of(&self, key: &str) -> Option<Revision> {
        self.get(key).map(|entry| entry.revision())
    }

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn each_stored(&self, visit: &mut dyn FnMut(&str, Bytes) -> io::Result<()>) -> io::Result<()> {
        for (key, entry) in &self.rows {
            visit(&format!("{}/{}", self.table.name, key.text()), encode(self.table, &entry.value)?)?;
        }
        Ok(())
    }

    fn share(&self) -> Arc<dyn AnyRows> {
        Arc::new(Self { table: self.table, rows: self.rows.clone(), indexes: self.indexes.clone() })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
