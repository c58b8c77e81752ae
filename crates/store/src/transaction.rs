//! What a decision wants changed: writes, each with the state of the record it was decided on.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::table::{AnyEntry, Entry, KEY_BYTES_MAX, Revision, Table, decode, encode};

/// Provisional revisions have this bit: they name a write that is not durable yet, and never equal a real revision.
const PROVISIONAL: u64 = 1 << 63;

/// Whether a revision names a write that is not durable yet.
pub(crate) const fn is_provisional(revision: Revision) -> bool {
    revision.0 & PROVISIONAL != 0
}

static NEXT_PROVISIONAL: AtomicU64 = AtomicU64::new(1);

/// Changes that happen all or not at all, and only if every record they were decided on is still as it was.
#[derive(Default, Clone)]
#[must_use = "a transaction does nothing until it is committed"]
pub struct Transaction {
    pub(crate) operations: Vec<Operation>,
    pub(crate) problem: Option<String>,
    pub(crate) may_use_reserve: bool,
    pub(crate) rests_on_checks: bool,
}

#[derive(Clone)]
pub(crate) struct Operation {
    pub(crate) table: &'static str,
    pub(crate) key: Arc<str>,
    /// What the decision saw; `None`: no record.
    pub(crate) expected: Option<Revision>,
    pub(crate) write: Write,
}

#[derive(Clone)]
pub(crate) enum Write {
    Nothing,
    Put { bytes: Bytes, entry: Arc<dyn AnyEntry>, provisional: Revision },
    Delete,
}

impl Transaction {
    /// Changes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Add a record; a conflict if its key is taken.
    pub fn create<T: Serialize + DeserializeOwned + Send + Sync>(self, table: &'static Table<T>, value: T) -> Self {
        self.put(table, None, value)
    }

    /// Put `value` in place of `entry`; a conflict if the record has changed since. The key must be the same.
    pub fn replace<T: Serialize + DeserializeOwned + Send + Sync>(
        mut self,
        table: &'static Table<T>,
        entry: &Entry<T>,
        value: T,
    ) -> Self {
        if (table.key)(&entry.value) != (table.key)(&value) {
            self.refuse(format!(
                "`{}` cannot become `{}` in table `{}`",
                (table.key)(&entry.value),
                (table.key)(&value),
                table.name
            ));
            return self;
        }
        self.put(table, Some(entry.revision()), value)
    }

    /// Remove the record; a conflict if it has changed since.
    pub fn delete<T>(self, table: &'static Table<T>, entry: &Entry<T>) -> Self {
        let key = (table.key)(&entry.value);
        self.push(table.name, key, Some(entry.revision()), Write::Delete)
    }

    /// Only check that the record is unchanged.
    pub fn require<T>(self, table: &'static Table<T>, entry: &Entry<T>) -> Self {
        let key = (table.key)(&entry.value);
        self.push(table.name, key, Some(entry.revision()), Write::Nothing)
    }

    /// Only check that there is no record under `key`.
    pub fn require_absent<T>(self, table: &'static Table<T>, key: &str) -> Self {
        self.push(table.name, key.to_owned(), None, Write::Nothing)
    }

    /// May be committed out of the space that is kept back for when the disk is full. For changes that lead to less being stored
    /// (deleting an instance begins by writing that it is wanted gone) and for finishing what was begun. Transactions that only
    /// delete may do so anyway.
    pub fn may_use_reserve(mut self) -> Self {
        self.may_use_reserve = true;
        self
    }

    /// It is as good as it was when an earlier decision is lost to another headnode, as long as its checks hold and no record that was
    /// looked at came of what is lost: it need not be made again then. To be said only where nothing follows from a record *not* having been
    /// found, or from how many there are, that is not checked too.
    pub fn rests_on_checks(mut self) -> Self {
        self.rests_on_checks = true;
        self
    }

    /// Both, all or nothing.
    pub fn and(mut self, other: Self) -> Self {
        for operation in other.operations {
            self = self.push_operation(operation);
        }
        if let Some(problem) = other.problem {
            self.refuse(problem);
        }
        self.may_use_reserve |= other.may_use_reserve;
        self.rests_on_checks &= other.rests_on_checks;
        self
    }

    /// Whether it neither writes nor checks anything.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty() && self.problem.is_none()
    }

    pub(crate) fn writes(&self) -> bool {
        self.operations.iter().any(|operation| !matches!(operation.write, Write::Nothing))
    }

    /// Whether it is one of those that [`Transaction::may_use_reserve`] speaks of.
    pub fn takes_reserve(&self) -> bool {
        self.may_use_reserve || !self.operations.iter().any(|operation| matches!(operation.write, Write::Put { .. }))
    }

    fn put<T: Serialize + DeserializeOwned + Send + Sync>(
        mut self,
        table: &'static Table<T>,
        expected: Option<Revision>,
        value: T,
    ) -> Self {
        let key = (table.key)(&value);
        let bytes = match encode(table, &value) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.refuse(format!("record `{}/{key}` cannot be written as JSON: {error}", table.name));
                return self;
            }
        };
        let provisional = Revision(PROVISIONAL | NEXT_PROVISIONAL.fetch_add(1, Ordering::Relaxed));
        debug_assert!(
            reads_back(table, &key, &bytes),
            "record `{}/{key}` is another one when it is read again",
            table.name
        );
        let entry = Arc::new(Entry::new(value, provisional));
        self.push(table.name, key, expected, Write::Put { bytes, entry, provisional })
    }

    fn push(mut self, table: &'static str, key: String, expected: Option<Revision>, write: Write) -> Self {
        if key.is_empty() || key.len() > KEY_BYTES_MAX || key.contains('\0') {
            self.refuse(format!("table `{table}` cannot hold the key {key:?}"));
            return self;
        }
        self.push_operation(Operation { table, key: key.into(), expected, write })
    }

    fn push_operation(mut self, operation: Operation) -> Self {
        let writes = |operation: &Operation| !matches!(operation.write, Write::Nothing);
        let twice = |other: &Operation| other.table == operation.table && other.key == operation.key && writes(other);
        if writes(&operation) && self.operations.iter().any(twice) {
            self.refuse(format!("record `{}/{}` is written twice in one transaction", operation.table, operation.key));
        } else {
            self.operations.push(operation);
        }
        self
    }

    fn refuse(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }
}

/// Whether what was written means what it was made of. The mirror shows what was decided and not what was stored, so this must be so.
fn reads_back<T: Serialize + DeserializeOwned>(table: &'static Table<T>, key: &str, bytes: &Bytes) -> bool {
    let again = decode(table, key, bytes).map(|value| encode(table, &value));
    again.is_ok_and(|again| again.is_ok_and(|again| again == *bytes))
}
