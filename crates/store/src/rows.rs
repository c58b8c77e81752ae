//! One table of the mirror: decoded records by key, and by each secondary index, in maps that share structure between snapshots.
//!
//! An index key is `<index key> NUL <record key>`. Record keys hold no NUL (checked when a transaction is built), so the last NUL
//! always separates the two even if an index key has one of its own.

use std::{any::Any, io, sync::Arc};

use bytes::Bytes;
use imbl::OrdMap;
use serde::{Serialize, de::DeserializeOwned};

use crate::table::{DecodeError, Entry, Revision, Table, decode, encode};

/// A table whose record type is known only to its callers.
pub(crate) trait AnyRows: Any + Send + Sync {
    fn put_bytes(&mut self, key: &str, revision: Revision, bytes: &[u8]) -> Result<(), DecodeError>;
    /// `entry` is an `Arc<Entry<T>>` of this table's `T`.
    fn put_entry(&mut self, key: &Arc<str>, entry: &Arc<dyn Any + Send + Sync>);
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
    rows: OrdMap<Arc<str>, Arc<Entry<T>>>,
    indexes: Vec<OrdMap<Arc<str>, Arc<Entry<T>>>>,
}

impl<T> Rows<T> {
    pub(crate) fn new(table: &'static Table<T>) -> Self {
        Self { table, rows: OrdMap::new(), indexes: table.indexes.iter().map(|_| OrdMap::new()).collect() }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Arc<Entry<T>>> {
        self.rows.get(key)
    }

    pub(crate) fn scan(&self) -> impl Iterator<Item = Arc<Entry<T>>> + use<'_, T> {
        self.rows.values().cloned()
    }

    /// Records with keys greater than `after`.
    pub(crate) fn range(&self, after: &str) -> impl Iterator<Item = Arc<Entry<T>>> + use<'_, T> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.rows.range::<_, str>((Excluded(after), Unbounded)).map(|(_, entry)| entry.clone())
    }

    /// Records under `key` of the index named `index`, in the order of their own keys.
    pub(crate) fn find(&self, index: &str, key: &str) -> impl Iterator<Item = Arc<Entry<T>>> + use<'_, T> {
        let position = self.table.indexes.iter().position(|candidate| candidate.name == index);
        let position = position.unwrap_or_else(|| panic!("table `{}` has no index `{index}`", self.table.name));
        let start = format!("{key}\0");
        self.indexes[position]
            .range::<_, str>((std::ops::Bound::Included(start.as_str()), std::ops::Bound::Unbounded))
            .take_while({
                let start = start.clone();
                move |(found, _)| found.starts_with(&start)
            })
            .filter(move |(found, _)| !found[start.len()..].contains('\0'))
            .map(|(_, entry)| entry.clone())
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
        let position = self.table.indexes.iter().position(|candidate| candidate.name == index);
        let position = position.unwrap_or_else(|| panic!("table `{}` has no index `{index}`", self.table.name));
        let prefix = prefix.to_owned();
        let from = if key.is_empty() { Arc::from(from) } else { index_key(from, key) };
        self.indexes[position]
            .range::<_, str>((std::ops::Bound::Included(from.as_ref()), std::ops::Bound::Unbounded))
            .take_while(move |(found, _)| found.starts_with(&prefix))
            .map(|(_, entry)| entry.clone())
    }

    fn put(&mut self, key: Arc<str>, entry: Arc<Entry<T>>) {
        let old = self.rows.insert(key.clone(), entry.clone());
        for (index, map) in self.table.indexes.iter().zip(&mut self.indexes) {
            let new_keys = (index.keys)(&entry.value);
            if let Some(old) = &old {
                for stale in (index.keys)(&old.value).iter().filter(|stale| !new_keys.contains(stale)) {
                    map.remove(index_key(stale, &key).as_ref());
                }
            }
            for new_key in &new_keys {
                map.insert(index_key(new_key, &key), entry.clone());
            }
        }
    }
}

fn index_key(index_key: &str, key: &str) -> Arc<str> {
    let mut text = String::with_capacity(index_key.len() + 1 + key.len());
    text.push_str(index_key);
    text.push('\0');
    text.push_str(key);
    text.into()
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> AnyRows for Rows<T> {
    fn put_bytes(&mut self, key: &str, revision: Revision, bytes: &[u8]) -> Result<(), DecodeError> {
        let value = decode(self.table, key, bytes)?;
        self.put(key.into(), Arc::new(Entry { value, revision }));
        Ok(())
    }

    fn put_entry(&mut self, key: &Arc<str>, entry: &Arc<dyn Any + Send + Sync>) {
        let entry = entry.clone().downcast::<Entry<T>>().expect("a transaction's entry has the type of its table");
        self.put(key.clone(), entry);
    }

    fn remove(&mut self, key: &str) {
        let Some(old) = self.rows.remove(key) else { return };
        for (index, map) in self.table.indexes.iter().zip(&mut self.indexes) {
            for stale in (index.keys)(&old.value) {
                map.remove(index_key(&stale, key).as_ref());
            }
        }
    }

    fn revision_of(&self, key: &str) -> Option<Revision> {
        self.rows.get(key).map(|entry| entry.revision)
    }

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn each_stored(&self, visit: &mut dyn FnMut(&str, Bytes) -> io::Result<()>) -> io::Result<()> {
        for (key, entry) in &self.rows {
            visit(&format!("{}/{key}", self.table.name), encode(self.table, &entry.value)?)?;
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
