//! A restore into an etcd that somebody else keeps, and the filling of a member that begins anew from another one's file.
//!
//! What is filled there cannot be put in its place by renaming it. So the first record written is one of a table no headnode knows, and goes with the
//! last commit: a headnode that starts on half a store is refused by it. A restore that finds it takes away what an earlier one left, and
//! begins again; records without it are somebody's, and refuse the restore.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use etcd::{Config, Etcd};
use serde::{Deserialize, Serialize};
use store::{
    CommitError, Engine, Fill, Revision, Schema, Store, Table, Transaction,
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
/// Records that are read back at once.
const READ_PAGE: usize = 500;

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
        Ok((self.etcd.clone(), unfinished()))
    }
}

/// The record by which a store is known that is being filled.
fn unfinished() -> (String, Bytes) {
    let unfinished = serde_json::json!({ "v": 1, "d": { "name": "backup" } });
    (UNFINISHED_KEY.to_owned(), Bytes::from(unfinished.to_string()))
}

/// How far a fill is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    /// Records that were written; or read back, once all were.
    pub records: usize,
    /// All of them.
    pub of: usize,
    /// They are being read back.
    pub is_read_back: bool,
}

/// Whom it is told, now and then.
pub type ShowFilled<'a> = dyn Fn(Filled) + Send + Sync + 'a;

/// Fills an empty engine with `records` and reads them all back. It is nobody's store until [`finish`]. What lay in a store that was full finds room.
pub(crate) async fn refill(
    engine: &dyn Engine,
    records: &BTreeMap<String, Bytes>,
    show: &ShowFilled<'_>,
) -> Result<(), BackupError> {
    let mut fill = Fill::begin(engine).await?.take_reserve();
    let (key, value) = unfinished();
    fill.add(key, value).await?;
    let mut told = Told::new(records.len(), false, show);
    for (key, value) in records {
        fill.add(key.clone(), value.clone()).await?;
        told.one_more();
    }
    fill.finish().await?;
    compare(engine, records, show).await
}

/// Tells at each part of the whole, not at each record.
struct Told<'a> {
    filled: Filled,
    show: &'a ShowFilled<'a>,
}

impl<'a> Told<'a> {
    /// A line for each is not too many.
    const PARTS: usize = 10;

    fn new(of: usize, is_read_back: bool, show: &'a ShowFilled<'a>) -> Self {
        Self { filled: Filled { records: 0, of, is_read_back }, show }
    }

    fn one_more(&mut self) {
        let part = |filled: &Filled| filled.records * Self::PARTS / filled.of.max(1);
        let before = part(&self.filled);
        self.filled.records += 1;
        if part(&self.filled) > before {
            (self.show)(self.filled);
        }
    }
}

/// Whether an engine holds `records` and nothing else but what a store is known by that is being filled.
async fn compare(
    engine: &dyn Engine,
    records: &BTreeMap<String, Bytes>,
    show: &ShowFilled<'_>,
) -> Result<(), BackupError> {
    let (mut wanted, mut after, mut told) = (records.iter(), String::new(), Told::new(records.len(), true, show));
    let other = |key: &str| {
        BackupError::InTheWay(format!("record `{key}` was read back from the store otherwise than it was written"))
    };
    loop {
        let page = engine.load(&after, READ_PAGE).await.map_err(store::Error::Engine)?;
        let Some(last) = page.records.last() else { break };
        after = last.key.clone();
        for record in page.records.iter().filter(|record| record.key != UNFINISHED_KEY) {
            match wanted.next() {
                Some((key, value)) if *key == record.key && *value == record.value => told.one_more(),
                Some((key, _)) => return Err(other(key)),
                None => return Err(other(&record.key)),
            }
        }
    }
    wanted.next().map_or(Ok(()), |(key, _)| Err(other(key)))
}

/// Tables of a store that is being filled.
pub(crate) fn schema() -> Schema {
    control::schema().with(&UNFINISHED)
}

/// From now on it is a headnode's.
pub(crate) async fn finish(store: &Store) -> Result<(), CommitError> {
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
    use etcd::local::Member;
    use store::memory::Memory;

    use super::*;

    #[tokio::test]
    async fn what_is_filled_is_read_back_whole() {
        let nobody = |_| ();
        let record = |number: u32| (format!("accounts/{number}"), Bytes::from(format!("{{\"n\":{number}}}")));
        let records: BTreeMap<String, Bytes> = (0..150).map(record).collect();
        let engine = Memory::new();
        refill(&engine, &records, &nobody).await.unwrap();
        assert!(is_unfinished(&engine).await.unwrap(), "nobody's yet");
        for (key, value) in [("accounts/7", Some("{}")), ("accounts/149", None), ("zones/1", Some("{}"))] {
            let engine = Memory::new();
            refill(&engine, &records, &nobody).await.unwrap();
            let writes = vec![(key.to_owned(), value.map(Bytes::from))];
            engine.commit(Batch { writes, ..Batch::default() }).await.unwrap();
            let why = compare(&engine, &records, &nobody).await.unwrap_err().to_string();
            assert!(why.contains(key), "{why}");
        }
        let again = refill(&engine, &records, &nobody).await.unwrap_err();
        assert!(base::errors::chain(&again).contains("not empty"), "it is filled once");
    }

    #[tokio::test]
    async fn a_fill_says_how_far_it_is_and_takes_the_reserve() {
        let record = |number: u32| (format!("accounts/{number}"), Bytes::from(vec![b'x'; 100]));
        let records: BTreeMap<String, Bytes> = (0..250).map(record).collect();
        // Full long before all is in it, and then there is the reserve.
        let engine = Memory::with_capacity(5_000);
        let told = std::sync::Mutex::new(Vec::new());
        refill(&engine, &records, &|filled| told.lock().unwrap().push(filled)).await.unwrap();
        let told = told.into_inner().unwrap();
        for (told, is_read_back) in [(&told[..10], false), (&told[10..], true)] {
            let wanted = (1..=10).map(|part| Filled { records: part * 25, of: 250, is_read_back });
            assert!(told.iter().copied().eq(wanted), "{told:?}");
        }
    }

    #[tokio::test]
    async fn an_empty_member_takes_in_what_the_file_of_a_dead_one_holds() {
        if !etcd::local::is_installed() {
            println!("skipped: two members of etcd, because etcd is not installed (Debian's package etcd-server)");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| directory.path().join(name));
        for path in [&old, &new] {
            std::fs::create_dir(path).unwrap();
        }
        let open = async |member: &Member| {
            let config = Config {
                endpoints: vec![member.endpoint()],
                tls: None,
                prefix: "neso/test".to_owned(),
                name: "one".to_owned(),
                operations_max: etcd::OPERATIONS_MAX_DEFAULT,
                room: None,
                data: None,
            };
            Etcd::open(config).await.unwrap()
        };
        let mut members = Member::cluster(&old, 1, None, &[]).await.unwrap();
        let before = open(&members[0]).await;
        before.raise(Revision(7_000)).await.unwrap();
        for number in 0..300 {
            let writes = vec![(format!("accounts/{number}"), Some(Bytes::from(vec![b'x'; number])))];
            before.commit(Batch { writes, ..Batch::default() }).await.unwrap();
        }
        remove(&before, vec!["accounts/7".to_owned()]).await.unwrap();
        let last = before.load("", 1).await.unwrap().revision;
        // The file has it when another reader of the file says so.
        let survived = loop {
            match etcd::survived(&old.join("m1"), "neso/test") {
                Ok(survived) if survived.revision >= last => break survived,
                _ => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        };
        members[0].kill().await.unwrap();
        assert_eq!(survived.records.len(), 299);

        let members = Member::cluster(&new, 1, None, &[]).await.unwrap();
        let after = open(&members[0]).await;
        after.raise(Revision(survived.revision.0 + 1_000)).await.unwrap();
        refill(&after, &survived.records, &|_| ()).await.unwrap();
        remove(&after, vec![UNFINISHED_KEY.to_owned()]).await.unwrap();
        let page = open(&members[0]).await.load("", 1_000).await.unwrap();
        assert!(page.records.iter().all(|record| record.revision > last), "revisions only grow");
        let found: BTreeMap<String, Bytes> =
            page.records.into_iter().map(|record| (record.key, record.value)).collect();
        assert_eq!(found, survived.records);
    }

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
