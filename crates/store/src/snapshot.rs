//! One state of the whole store, forever.

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

use crate::{
    rows::{AnyRows, Rows},
    table::{DecodeError, Entry, Revision, Schema, Table},
    transaction::{Write, is_provisional},
};

/// Every record as of one revision. Cloning it costs a counter; holding it keeps only what has changed since.
#[derive(Clone)]
pub struct Snapshot {
    state: Arc<State>,
    /// For a decision: where it is noted what that looks at.
    looked_at: Option<Arc<LookedAt>>,
}

/// The provisional revisions of records that a decision looked at.
#[derive(Default)]
pub(crate) struct LookedAt(
    // A leaf lock, held to add one.
    Mutex<Vec<Revision>>,
);

impl LookedAt {
    fn note(&self, revision: Revision) {
        if is_provisional(revision) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(revision);
        }
    }

    pub(crate) fn take(&self) -> Vec<Revision> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Clone)]
pub(crate) struct State {
    pub(crate) revision: Revision,
    pub(crate) schema: Arc<Schema>,
    pub(crate) tables: Vec<Arc<dyn AnyRows>>,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("revision", &self.state.revision).finish_non_exhaustive()
    }
}

impl Snapshot {
    pub(crate) fn new(state: State) -> Self {
        Self { state: Arc::new(state), looked_at: None }
    }

    /// The same for a decision, with the notes of what that looks at.
    pub(crate) fn noted(self) -> (Self, Arc<LookedAt>) {
        let looked_at = Arc::new(LookedAt::default());
        (Self { looked_at: Some(looked_at.clone()), ..self }, looked_at)
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The state to change: this very one if nobody else holds it, else a copy that shares what is not changed.
    pub(crate) fn state_mut(&mut self) -> &mut State {
        Arc::make_mut(&mut self.state)
    }

    /// The revision this is the state of. Inside a decision: the last one that is durable; what is on its way is included but has no
    /// number yet.
    pub fn revision(&self) -> Revision {
        self.state.revision
    }

    /// The record under `key`.
    pub fn get<T>(&self, table: &'static Table<T>, key: &str) -> Option<Arc<Entry<T>>> {
        self.rows(table).get(key).cloned().inspect(|entry| self.note(entry))
    }

    /// Whether there is a record under `key`.
    pub fn contains<T>(&self, table: &'static Table<T>, key: &str) -> bool {
        self.get(table, key).is_some()
    }

    /// Every record, in the order of keys.
    pub fn scan<'a, T>(&'a self, table: &'static Table<T>) -> impl Iterator<Item = Arc<Entry<T>>> + use<'a, T> {
        self.rows(table).scan().inspect(|entry| self.note(entry))
    }

    /// Records with keys greater than `after`, in the order of keys; `after` may be empty.
    pub fn range<'a, T>(
        &'a self,
        table: &'static Table<T>,
        after: &str,
    ) -> impl Iterator<Item = Arc<Entry<T>>> + use<'a, T> {
        self.rows(table).range(after).inspect(|entry| self.note(entry))
    }

    /// Records that the index named `index` lists under `key`, in the order of their own keys.
    ///
    /// # Panics
    /// If the table has no such index.
    pub fn find<'a, T>(
        &'a self,
        table: &'static Table<T>,
        index: &str,
        key: &str,
    ) -> impl Iterator<Item = Arc<Entry<T>>> + use<'a, T> {
        self.rows(table).find(index, key).inspect(|entry| self.note(entry))
    }

    /// How many records the index named `index` lists under `key`, without a look at them.
    ///
    /// # Panics
    /// If the table has no such index.
    pub fn count_of<T>(&self, table: &'static Table<T>, index: &str, key: &str) -> usize {
        self.rows(table).count(index, key)
    }

    /// Keys of the records that the index named `index` lists under `key`, in their order; no record is looked at.
    ///
    /// # Panics
    /// If the table has no such index.
    pub fn keys_of<'a, T>(
        &'a self,
        table: &'static Table<T>,
        index: &str,
        key: &str,
    ) -> impl Iterator<Item = &'a str> + use<'a, T> {
        self.rows(table).keys_of(index, key)
    }

    /// The keys of the index named `index` that begin with `prefix`, in their order, and how many records each lists; no record is looked
    /// at.
    ///
    /// # Panics
    /// If the table has no such index.
    pub fn counts<'a, T>(
        &'a self,
        table: &'static Table<T>,
        index: &str,
        prefix: &str,
    ) -> impl Iterator<Item = (&'a str, usize)> + use<'a, T> {
        self.rows(table).counts(index, prefix)
    }

    /// Records that the index named `index` lists under any key that begins with `prefix`, in the order of those keys; one that is
    /// listed under several of them comes several times. Reading the first few costs no more in a large table than in a small one.
    ///
    /// # Panics
    /// If the table has no such index.
    pub fn ordered<'a, T>(
        &'a self,
        table: &'static Table<T>,
        index: &str,
        prefix: &str,
    ) -> impl Iterator<Item = Arc<Entry<T>>> + use<'a, T> {
        self.rows(table).ordered(index, prefix).inspect(|entry| self.note(entry))
    }

    /// The same, beginning behind those under keys less than `from`, and behind those under `from` itself with a key of their own less than
    /// `key`. `from` begins with `prefix`.
    ///
    /// # Panics
    /// If the table has no such index.
    pub fn ordered_from<'a, T>(
        &'a self,
        table: &'static Table<T>,
        index: &str,
        prefix: &str,
        from: &str,
        key: &str,
    ) -> impl Iterator<Item = Arc<Entry<T>>> + use<'a, T> {
        self.rows(table).ordered_from(index, prefix, from, key).inspect(|entry| self.note(entry))
    }

    /// How many records there are.
    pub fn count<T>(&self, table: &'static Table<T>) -> usize {
        self.state.tables[self.position(table.name)].len()
    }

    /// Revision of the last change of a record whose type the caller does not know; `None` when there is none.
    ///
    /// # Panics
    /// If the schema has no such table.
    pub fn revision_of(&self, table: &str, key: &str) -> Option<Revision> {
        self.state.tables[self.position(table)].revision_of(key)
    }

    /// Records per table.
    pub fn table_sizes(&self) -> Vec<(&'static str, usize)> {
        self.state.schema.table_names().into_iter().zip(self.state.tables.iter().map(|table| table.len())).collect()
    }

    /// Shows every record as it is stored, a table after the other, each in the order of its keys: `<table>/<key>` and value. What is
    /// shown is of one moment, however long that takes.
    ///
    /// # Errors
    /// The first that `visit` returns.
    pub fn each_stored(&self, visit: &mut dyn FnMut(&str, Bytes) -> io::Result<()>) -> io::Result<()> {
        self.state.tables.iter().try_for_each(|table| table.each_stored(visit))
    }

    fn note<T>(&self, entry: &Entry<T>) {
        if let Some(looked_at) = &self.looked_at {
            looked_at.note(entry.revision());
        }
    }

    fn position(&self, name: &str) -> usize {
        let position = self.state.schema.position(name);
        position.unwrap_or_else(|| panic!("table `{name}` is not in the store's schema"))
    }

    fn rows<T>(&self, table: &'static Table<T>) -> &Rows<T> {
        let rows = self.state.tables[self.position(table.name)].as_any().downcast_ref();
        rows.unwrap_or_else(|| panic!("table `{}` was registered with another record type", table.name))
    }
}

impl State {
    pub(crate) fn empty(schema: Arc<Schema>) -> Self {
        Self { revision: Revision(0), tables: schema.empty(), schema }
    }

    pub(crate) fn table_mut(&mut self, position: usize) -> &mut dyn AnyRows {
        let table = &mut self.tables[position];
        if Arc::get_mut(table).is_none() {
            *table = table.share();
        }
        Arc::get_mut(table).expect("a table that was just copied has one owner")
    }

    /// # Panics
    /// If the schema has no such table, which is checked when a transaction is admitted.
    pub(crate) fn table_named(&mut self, name: &str) -> &mut dyn AnyRows {
        let position = self.schema.position(name);
        self.table_mut(position.expect("the table was found when the transaction was checked"))
    }

    /// What a transaction writes under `key`.
    pub(crate) fn write(&mut self, table: &str, key: &Arc<str>, write: &Write) {
        match write {
            Write::Nothing => {}
            Write::Put { entry, .. } => self.table_named(table).put_entry(key, entry),
            Write::Delete => self.table_named(table).remove(key),
        }
    }

    /// Revision of the record under `key`.
    pub(crate) fn revision_of(&self, table: &str, key: &str) -> Option<Revision> {
        let position = self.schema.position(table).expect("the table of a change is in the schema");
        self.tables[position].revision_of(key)
    }

    /// Have under `key` what `other` has there.
    pub(crate) fn take_from(&mut self, other: &Self, table: &str, key: &str) {
        let position = self.schema.position(table).expect("the table of a change is in the schema");
        self.table_mut(position).put_as_in(other.tables[position].as_ref(), key);
    }

    /// Apply one change. One older than what is there is ignored, so replaying history is harmless.
    pub(crate) fn apply(
        &mut self,
        position: usize,
        key: &str,
        revision: Revision,
        value: Option<&[u8]>,
    ) -> Result<(), DecodeError> {
        if self.tables[position].revision_of(key).is_none_or(|present| present < revision) {
            let table = self.table_mut(position);
            match value {
                Some(bytes) => table.put_bytes(key, revision, bytes)?,
                None => table.remove(key),
            }
        }
        Ok(())
    }

    /// The same under a full stored key.
    pub(crate) fn apply_stored(
        &mut self,
        full_key: &str,
        revision: Revision,
        value: Option<&[u8]>,
    ) -> Result<(), DecodeError> {
        let schema = self.schema.clone();
        let (position, key) = schema.split(full_key)?;
        self.apply(position, key, revision, value)
    }
}
