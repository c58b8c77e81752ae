//! A restore into an etcd that somebody else keeps.
//!
//! What is filled there cannot be put in its place by renaming it. So the first record written is one of a table no headnode knows, and goes with the
//! last commit: a headnode that starts on half a store is refused by it. A restore that finds it takes away what an earlier one left, and
//! begins again; records without it are somebody's, and refuse the restore.

use std::sync::Arc;

use bytes::Bytes;
use etcd::{Config, Etcd};
use serde::{Deserialize, Serialize};
use store::{
    CommitError, Engine, Revision, Schema, Store, Table, Transaction,
    engine::{Batch, Outcome},
};

use super::BackupError;
use crate::settings::Settings;

/// Name of the table no headnode knows.
const UNFINISHED_TABLE: &str = "unfinished_restore";
/// Key of its only record.
const UNFINISHED_KEY: &str = "unfinished_restore/backup";
/// Who commits while a cluster is filled.
const NAME: &str = "restore";
/// Records that are looked at and removed at once.
const PAGE: usize = 60;

/// See the head of this file.
static UNFINISHED: Table<Unfinished> = Table {
    name: UNFINISHED_TABLE,
    version: 1,
    key: |unfinished| unfinished.name.clone(),
    indexes: &[],
    upgrade: |found, _| Err(format!("version {found} never was")),
};

#[derive(Clone, Serialize, Deserialize)]
struct Unfinished {
    name: String,
}

/// A cluster with room for a datacenter.
pub(super) struct Cluster {
    etcd: Arc<Etcd>,
    /// Of the cluster, by which nothing of ours may fall.
    revision: Revision,
    /// An earlier restore did not get to its end.
    half: bool,
}

impl Cluster {
    /// Reaches the cluster of `settings` and looks whether it is empty.
    pub(super) async fn open(settings: &Settings) -> Result<Self, BackupError> {
        let config = settings.store.etcd(&settings.datacenter.name, NAME);
        let (endpoints, prefix) = (config.endpoints.join(", "), config.prefix.clone());
        let etcd = Arc::new(Self::reach(config).await?);
        let page = etcd.load("", 1).await.map_err(store::Error::Engine)?;
        let half = is_unfinished(&*etcd).await?;
        match page.records.first() {
            Some(record) if !half => Err(BackupError::InTheWay(format!(
                "etcd at {endpoints} holds records of a datacenter \"{}\" already, the first is `{}`: a restore fills an empty one. If nobody \
                 needs them any more, `etcdctl del --prefix {prefix}/` removes them",
                settings.datacenter.name, record.key
            ))),
            _ => Ok(Self { etcd, revision: page.revision, half }),
        }
    }

    async fn reach(config: Config) -> Result<Etcd, BackupError> {
        let endpoints = config.endpoints.join(", ");
        Etcd::open(config).await.map_err(|source| BackupError::Etcd { endpoints, source })
    }

    /// An engine to fill, empty, whose revisions are above `revision` of a backup; first of all goes in what [`Self::open`] and headnodes know
    /// it by.
    pub(super) async fn prepare(&self, revision: u64) -> Result<(Arc<Etcd>, (String, Bytes)), BackupError> {
        if self.half {
            clear(&*self.etcd).await?;
        }
        let above = Revision(self.revision.0.max(revision));
        self.etcd.raise(above).await.map_err(store::Error::Engine)?;
        let unfinished = serde_json::json!({ "v": 1, "d": { "name": "backup" } });
        Ok((self.etcd.clone(), (UNFINISHED_KEY.to_owned(), Bytes::from(unfinished.to_string()))))
    }
}

/// Tables of a store that is being filled.
pub(super) fn schema() -> Schema {
    control::schema().with(&UNFINISHED)
}

/// From now on it is a headnode's.
pub(super) async fn finish(store: &Store) -> Result<(), CommitError> {
    let snapshot = store.snapshot();
    let gone =
        snapshot.scan(&UNFINISHED).fold(Transaction::new(), |all, unfinished| all.delete(&UNFINISHED, &unfinished));
    store.commit(gone).await.map(|_| ())
}

async fn is_unfinished(engine: &dyn Engine) -> Result<bool, BackupError> {
    // The table's name sorts before its records.
    let page = engine.load(UNFINISHED_TABLE, 1).await.map_err(store::Error::Engine)?;
    Ok(page.records.first().is_some_and(|record| record.key == UNFINISHED_KEY))
}

/// Removes all records, that by which a half-filled store is known last.
async fn clear(engine: &dyn Engine) -> Result<(), BackupError> {
    let mut after = String::new();
    loop {
        let page = engine.load(&after, PAGE).await.map_err(store::Error::Engine)?;
        let Some(last) = page.records.last() else { break };
        after = last.key.clone();
        let keys = page.records.into_iter().map(|record| record.key).filter(|key| key != UNFINISHED_KEY);
        remove(engine, keys.collect()).await?;
    }
    remove(engine, vec![UNFINISHED_KEY.to_owned()]).await
}

async fn remove(engine: &dyn Engine, keys: Vec<String>) -> Result<(), BackupError> {
    if keys.is_empty() {
        return Ok(());
    }
    let writes = keys.into_iter().map(|key| (key, None)).collect();
    let batch = Batch { checks: Vec::new(), writes, may_use_reserve: true };
    match engine.commit(batch).await.map_err(store::Error::Engine)? {
        Outcome::Committed(_) => Ok(()),
        Outcome::Conflict(_) => Err(BackupError::InTheWay("somebody else writes to the store".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use store::memory::Memory;

    use super::*;

    #[tokio::test]
    async fn half_a_store_is_nobodys_and_is_taken_away_whole() {
        let engine = Arc::new(Memory::new());
        assert!(!is_unfinished(&*engine).await.unwrap());
        let unfinished = serde_json::json!({ "v": 1, "d": { "name": "backup" } }).to_string();
        let record = |key: &str, value: String| (key.to_owned(), Some(Bytes::from(value)));
        let many = (0..150).map(|number| record(&format!("accounts/{number}"), "{}".to_owned()));
        let after = [record(UNFINISHED_KEY, unfinished.clone()), record("vlans/1", "{}".to_owned())];
        let writes = many.chain(after).collect();
        engine.commit(Batch { writes, ..Batch::default() }).await.unwrap();
        assert!(is_unfinished(&*engine).await.unwrap());
        clear(&*engine).await.unwrap();
        assert!(engine.load("", 1).await.unwrap().records.is_empty());

        // What a headnode does with one, and what the restore does.
        engine.commit(Batch { writes: vec![record(UNFINISHED_KEY, unfinished)], ..Batch::default() }).await.unwrap();
        let refused =
            Store::open(engine.clone(), control::schema()).await.err().map(|error| base::errors::chain(&error));
        assert!(refused.as_ref().is_some_and(|why| why.contains(UNFINISHED_KEY)), "{refused:?}");
        finish(&Store::open(engine.clone(), schema()).await.unwrap()).await.unwrap();
        assert!(Store::open(engine, control::schema()).await.is_ok());
    }
}
