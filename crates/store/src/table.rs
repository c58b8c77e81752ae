//! What a table is: a name, a version, how a record's key and index keys follow from its value, and how an older version becomes this one.
//!
//! A record is stored as `{"v":3,"d":{…}}`. The version is the table's at the time of writing; [`Table::upgrade`] turns an older
//! value into the present one when it is read, and the next write stores the present one. Data of a later version than the program's
//! are refused: an older program must not half-understand them.

use std::{
    any::Any,
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::rows::{AnyRows, Rows};

/// Longest key of a record in bytes. Keys are ids, names and addresses; etcd's own limit is far higher.
pub(crate) const KEY_BYTES_MAX: usize = 512;

/// A point in the store's history: every commit makes the next one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Records of one type. Declared as a `static` by the crate that knows the noun.
pub struct Table<T: 'static> {
    /// First part of every stored key; never reused for another type. No `/` in it.
    pub name: &'static str,
    /// Version that is written. Raised with every change of `T` that older data do not fit.
    pub version: u32,
    /// The record's key within the table. It must never change for a record, and holds no NUL.
    pub key: fn(&T) -> String,
    /// Other ways to find records.
    pub indexes: &'static [Index<T>],
    /// Turns a value written at `from_version` into one of [`Table::version`]; an error stops the program at start, with its text.
    pub upgrade: fn(from_version: u32, value: serde_json::Value) -> Result<serde_json::Value, String>,
}

/// A secondary index: a record is found under each of its keys.
pub struct Index<T: 'static> {
    /// Name used in [`Snapshot::find`](crate::Snapshot::find).
    pub name: &'static str,
    /// Keys of one record; none leaves it out.
    pub keys: fn(&T) -> Vec<String>,
}

/// A record with the revision of its last change.
pub struct Entry<T> {
    /// The record.
    pub value: T,
    revision: AtomicU64,
}

/// An entry whose record's type is known only to its table.
pub(crate) trait AnyEntry: Any + Send + Sync {
    /// The write it came of is durable, as this revision.
    fn settle(&self, revision: Revision);
}

impl<T> Entry<T> {
    /// A record as of a revision.
    pub const fn new(value: T, revision: Revision) -> Self {
        Self { value, revision: AtomicU64::new(revision.0) }
    }

    /// Revision of the commit that last changed it. Inside a decision it may be a provisional one, which compares like any other
    /// but means nothing outside that decision: it becomes the real one when the write is durable.
    pub fn revision(&self) -> Revision {
        // Written once, under the lock under which decisions are made and before anybody else can have the entry.
        Revision(self.revision.load(Ordering::Relaxed))
    }
}

impl<T: Send + Sync + 'static> AnyEntry for Entry<T> {
    fn settle(&self, revision: Revision) {
        self.revision.store(revision.0, Ordering::Relaxed);
    }
}

impl<T: Clone> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self::new(self.value.clone(), self.revision())
    }
}

impl<T: PartialEq> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.revision() == other.revision() && self.value == other.value
    }
}

impl<T: Eq> Eq for Entry<T> {}

impl<T: fmt::Debug> fmt::Debug for Entry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("value", &self.value).field("revision", &self.revision()).finish()
    }
}

impl<T> Deref for Entry<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// A stored value that this program cannot read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The text is not a record of the table's type.
    #[error("record `{key}` is damaged or of another shape")]
    Shape {
        /// Full stored key.
        key: String,
        /// Where it stopped making sense.
        source: serde_json::Error,
    },
    /// Written by a later version of the program.
    #[error("record `{key}` has version {found}, this program knows {known}")]
    Newer {
        /// Full stored key.
        key: String,
        /// Its version.
        found: u32,
        /// The table's version.
        known: u32,
    },
    /// The table's upgrade refused it.
    #[error("record `{key}` of version {found} cannot be upgraded: {reason}")]
    Upgrade {
        /// Full stored key.
        key: String,
        /// Its version.
        found: u32,
        /// The upgrade's words.
        reason: String,
    },
    /// A key that belongs to no table of the schema.
    #[error("stored key `{key}` belongs to no table of this program")]
    UnknownTable {
        /// Full stored key.
        key: String,
    },
}

#[derive(Deserialize)]
struct Envelope<'a> {
    v: u32,
    #[serde(borrow)]
    d: &'a RawValue,
}

/// The stored form of `value`.
pub(crate) fn encode<T: Serialize>(table: &Table<T>, value: &T) -> Result<Bytes, serde_json::Error> {
    let mut text = format!("{{\"v\":{},\"d\":", table.version).into_bytes();
    serde_json::to_writer(&mut text, value)?;
    text.push(b'}');
    // They stay: in the feed, and in an engine that keeps its records in memory.
    text.shrink_to_fit();
    Ok(Bytes::from(text))
}

/// The value of a stored form, upgraded to the table's version.
pub(crate) fn decode<T: DeserializeOwned>(table: &Table<T>, key: &str, bytes: &[u8]) -> Result<T, DecodeError> {
    let present = present(bytes, table.version).and_then(|text| serde_json::from_str(text).ok());
    if let Some(value) = present {
        return Ok(value);
    }
    let shape = |source| DecodeError::Shape { key: format!("{}/{key}", table.name), source };
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(shape)?;
    if envelope.v == table.version {
        return serde_json::from_str(envelope.d.get()).map_err(shape);
    }
    let full_key = || format!("{}/{key}", table.name);
    if envelope.v > table.version {
        return Err(DecodeError::Newer { key: full_key(), found: envelope.v, known: table.version });
    }
    let old = serde_json::from_str(envelope.d.get()).map_err(shape)?;
    let new = (table.upgrade)(envelope.v, old).map_err(|reason| DecodeError::Upgrade {
        key: full_key(),
        found: envelope.v,
        reason,
    })?;
    serde_json::from_value(new).map_err(shape)
}

/// The value's text in what [`encode`] writes at `version`, which nearly all that is read is: looked for by hand, so that it is not gone through
/// twice. `None` of anything else, however good.
fn present(bytes: &[u8], version: u32) -> Option<&str> {
    let rest = bytes.strip_prefix(b"{\"v\":")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = rest.split_at(digits);
    let text = rest.strip_prefix(b",\"d\":")?.strip_suffix(b"}")?;
    let found: u32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    if found == version { std::str::from_utf8(text).ok() } else { None }
}

/// The tables a program knows. A stored key of any other table is an error at start.
#[derive(Default, Clone)]
pub struct Schema {
    tables: Vec<Registered>,
}

#[derive(Clone)]
struct Registered {
    name: &'static str,
    empty: Arc<dyn AnyRows>,
}

impl Schema {
    /// No table yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Add a table.
    ///
    /// # Panics
    /// If a table of that name was added before, or its name holds a `/`: the program is wrong, not its data.
    #[must_use]
    pub fn with<T: Serialize + DeserializeOwned + Send + Sync + 'static>(mut self, table: &'static Table<T>) -> Self {
        assert!(
            !table.name.is_empty() && !table.name.contains('/'),
            "table name `{}` must be a plain word",
            table.name
        );
        assert!(self.position(table.name).is_none(), "two tables are named `{}`", table.name);
        self.tables.push(Registered { name: table.name, empty: Arc::new(Rows::new(table)) });
        self
    }

    /// Names in the order they were added.
    pub fn table_names(&self) -> Vec<&'static str> {
        self.tables.iter().map(|table| table.name).collect()
    }

    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.tables.iter().position(|table| table.name == name)
    }

    pub(crate) fn name(&self, position: usize) -> &'static str {
        self.tables[position].name
    }

    pub(crate) fn empty(&self) -> Vec<Arc<dyn AnyRows>> {
        self.tables.iter().map(|table| table.empty.clone()).collect()
    }

    /// Split a full stored key into the table's position and the record's key.
    pub(crate) fn split<'a>(&self, full_key: &'a str) -> Result<(usize, &'a str), DecodeError> {
        let unknown = || DecodeError::UnknownTable { key: full_key.to_owned() };
        let (name, key) = full_key.split_once('/').ok_or_else(unknown)?;
        Ok((self.position(name).ok_or_else(unknown)?, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static TEXTS: Table<Vec<String>> = Table {
        name: "texts",
        version: 3,
        key: |texts| texts.concat(),
        indexes: &[],
        upgrade: |from_version, _| Err(format!("version {from_version} was never written")),
    };

    #[test]
    fn the_short_way_reads_what_is_written_and_leaves_the_rest_to_the_long_one() {
        let texts = vec!["a}".to_owned(), "\",\"d\":".to_owned(), "ü".to_owned()];
        let written = encode(&TEXTS, &texts).unwrap();
        assert_eq!(present(&written, 3), Some(serde_json::to_string(&texts).unwrap().as_str()));
        assert_eq!(present(&written, 4), None);
        assert_eq!(decode(&TEXTS, "a", &written).unwrap(), texts);
        // In another order, with spaces, and with something more than we know of.
        for text in [r#"{"d":["x"],"v":3}"#, r#"{ "v": 3, "d": ["x"] }"#, r#"{"v":3,"d":["x"],"more":{}}"#] {
            assert_eq!(decode(&TEXTS, "a", text.as_bytes()).unwrap(), ["x"], "{text}");
        }
        for text in ["", "{}", r#"{"v":3,"d":["x"]"#, r#"{"v":3,"d":["x"]}}"#, r#"{"v":3,"d":["x"],"v":3}"#] {
            let refused = decode(&TEXTS, "a", text.as_bytes());
            assert!(matches!(refused, Err(DecodeError::Shape { .. })), "{text}: {refused:?}");
        }
        for text in [r#"{"v":4,"d":["x"]}"#, r#"{"v":2,"d":["x"]}"#] {
            let refused = decode(&TEXTS, "a", text.as_bytes());
            assert!(!matches!(refused, Ok(_) | Err(DecodeError::Shape { .. })), "{text}: {refused:?}");
        }
    }
}
