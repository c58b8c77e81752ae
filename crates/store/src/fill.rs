//! Filling an empty engine with records of elsewhere: the restore of a backup.
//!
//! Records go in as they were stored, in as many commits as the engine needs, so the whole is not one moment: who fills an engine
//! does so where nobody looks yet, and puts it in its place when it is full.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    engine::{Batch, Engine, EngineError, Limits, Outcome},
    rows::AnyRows,
    table::{DecodeError, Revision, Schema},
};

/// Why an engine was not filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// It holds records already, so nothing was written.
    #[error("the store is not empty: it holds `{0}`")]
    NotEmpty(String),
    /// A record is larger than the engine takes; those before it were written.
    #[error("record `{key}` of {bytes} bytes is larger than this store takes")]
    TooLarge {
        /// Its key.
        key: String,
        /// Key and value.
        bytes: usize,
    },
    /// Somebody else writes there.
    #[error("record `{0}` appeared while the store was filled")]
    Raced(String),
    /// The engine failed.
    #[error("write to the store")]
    Engine(#[from] EngineError),
}

/// An engine that is being filled.
pub struct Fill<'a> {
    engine: &'a dyn Engine,
    limits: Limits,
    batch: Batch,
    bytes: usize,
    takes_reserve: bool,
}

impl<'a> Fill<'a> {
    /// Begins to fill `engine`.
    ///
    /// # Errors
    /// [`FillError::NotEmpty`]; when the engine cannot be read.
    pub async fn begin(engine: &'a dyn Engine) -> Result<Self, FillError> {
        if let Some(record) = engine.load("", 1).await?.records.into_iter().next() {
            return Err(FillError::NotEmpty(record.key));
        }
        Ok(Self { engine, limits: engine.limits(), batch: Batch::default(), bytes: 0, takes_reserve: false })
    }

    /// Takes the reserve as well: for what lay in a store of the same size, which may have been full.
    #[must_use]
    pub fn take_reserve(self) -> Self {
        Self { takes_reserve: true, ..self }
    }

    /// Adds a record, whose key no other has.
    ///
    /// # Errors
    /// When it is too large, or the engine fails.
    pub async fn add(&mut self, key: String, value: Bytes) -> Result<(), FillError> {
        // The key stands in the check and in the write.
        let bytes = 2 * key.len() + value.len();
        if bytes > self.limits.bytes {
            return Err(FillError::TooLarge { key, bytes });
        }
        if self.batch.checks.len() == self.limits.records || self.bytes + bytes > self.limits.bytes {
            self.commit().await?;
        }
        self.bytes += bytes;
        self.batch.checks.push((key.clone(), None));
        self.batch.writes.push((key, Some(value)));
        Ok(())
    }

    /// Writes the rest.
    ///
    /// # Errors
    /// When the engine fails.
    pub async fn finish(mut self) -> Result<(), FillError> {
        if self.batch.writes.is_empty() { Ok(()) } else { self.commit().await }
    }

    async fn commit(&mut self) -> Result<(), FillError> {
        self.bytes = 0;
        let batch = Batch { may_use_reserve: self.takes_reserve, ..std::mem::take(&mut self.batch) };
        let first = batch.writes.first().map(|(key, _)| key.clone()).unwrap_or_default();
        match self.engine.commit(batch).await? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict(_) => Err(FillError::Raced(first)),
        }
    }
}

/// Looks at records as a store that is opened would, and keeps none of them.
pub struct Trial {
    schema: Schema,
    tables: Vec<Arc<dyn AnyRows>>,
}

impl Trial {
    /// For records of `schema`.
    pub fn new(schema: Schema) -> Self {
        Self { tables: schema.empty(), schema }
    }

    /// Whether a store could read this record: its table is known, and its value is one of that table's, or of an older version that
    /// becomes one.
    ///
    /// # Errors
    /// Why not.
    pub fn read(&mut self, key: &str, value: &[u8]) -> Result<(), DecodeError> {
        let (position, key) = self.schema.split(key)?;
        // What is shared is the empty table; this one is our own after the first look.
        if Arc::get_mut(&mut self.tables[position]).is_none() {
            self.tables[position] = self.tables[position].share();
        }
        let table = Arc::get_mut(&mut self.tables[position]).expect("a table that was just copied has one owner");
        table.put_bytes(key, Revision(1), value)?;
        table.remove(key);
        Ok(())
    }
}
