//! The records these tests store, and the engines they store them in.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use store::{Engine, Index, Schema, Store, Table, memory::Memory, sqlite::Sqlite};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Boat {
    pub(crate) name: String,
    pub(crate) harbour: String,
    pub(crate) crew: Vec<String>,
    pub(crate) voyages: u64,
}

pub(crate) static BOATS: Table<Boat> = Table {
    name: "boats",
    version: 2,
    key: |boat| boat.name.clone(),
    indexes: &[
        Index { name: "harbour", keys: |boat| vec![boat.harbour.clone()] },
        Index { name: "crew", keys: |boat| boat.crew.clone() },
    ],
    upgrade: |from_version, mut value| match from_version {
        // Version 1 had no voyages.
        1 => {
            value["voyages"] = 0.into();
            Ok(value)
        }
        other => Err(format!("version {other} was never written")),
    },
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counter {
    pub(crate) name: String,
    pub(crate) count: u64,
}

pub(crate) static COUNTERS: Table<Counter> = Table {
    name: "counters",
    version: 1,
    key: |counter| counter.name.clone(),
    indexes: &[],
    upgrade: |_, _| Err("never".to_owned()),
};

pub(crate) fn boat(name: &str, harbour: &str) -> Boat {
    Boat { name: name.to_owned(), harbour: harbour.to_owned(), crew: vec!["nemo".to_owned()], voyages: 1 }
}

pub(crate) fn counter(name: &str, count: u64) -> Counter {
    Counter { name: name.to_owned(), count }
}

pub(crate) fn schema() -> Schema {
    Schema::new().with(&BOATS).with(&COUNTERS)
}

/// An engine to test, and what must live as long.
pub(crate) struct Bed {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) name: &'static str,
    _directory: Option<tempfile::TempDir>,
    member: Option<etcd::local::Member>,
}

impl Bed {
    pub(crate) async fn store(&self) -> Store {
        Store::open(self.engine.clone(), schema()).await.unwrap()
    }

    /// The same keyspace as another headnode opens it, where there can be one.
    pub(crate) async fn other_engine(&self) -> Arc<dyn Engine> {
        match &self.member {
            Some(member) => Arc::new(open_etcd(member, "dc", "other").await),
            None => self.engine.clone(),
        }
    }

    /// Another keyspace in the etcd of this bed.
    pub(crate) async fn etcd(&self, prefix: &str, name: &str) -> etcd::Etcd {
        open_etcd(self.member.as_ref().expect("this is the bed with etcd"), prefix, name).await
    }

    /// Where its etcd is.
    pub(crate) fn endpoint(&self) -> Option<String> {
        self.member.as_ref().map(etcd::local::Member::endpoint)
    }

    /// An empty keyspace on the same engine, where that costs less than another engine.
    pub(crate) async fn empty(&self, number: usize) -> Option<Arc<dyn Engine>> {
        let member = self.member.as_ref()?;
        Some(Arc::new(open_etcd(member, &format!("dc-{number}"), "test").await))
    }
}

pub(crate) async fn beds() -> Vec<Bed> {
    let mut beds = embedded_beds().await;
    beds.extend(etcd_bed().await);
    beds
}

pub(crate) async fn embedded_beds() -> Vec<Bed> {
    let directory = tempfile::tempdir().unwrap();
    let sqlite = Sqlite::open_with_reserve(&directory.path().join("store.db"), 1 << 20).await.unwrap();
    vec![
        Bed { engine: Arc::new(Memory::new()), name: "memory", _directory: None, member: None },
        Bed { engine: Arc::new(sqlite), name: "sqlite", _directory: Some(directory), member: None },
    ]
}

/// A real etcd of its own; none where it is not installed.
pub(crate) async fn etcd_bed() -> Option<Bed> {
    if !etcd::local::is_installed() {
        println!("skipped: etcd is not installed (Debian's package etcd-server)");
        return None;
    }
    // In memory: what etcd does with a disk is its own affair, and these tests are many.
    let directory = tempfile::Builder::new().prefix("neso-etcd-").tempdir_in("/dev/shm").unwrap();
    let mut members = etcd::local::Member::cluster(directory.path(), 1, None, &[]).await.unwrap();
    let member = members.pop().unwrap();
    let engine = Arc::new(open_etcd(&member, "dc", "test").await);
    Some(Bed { engine, name: "etcd", _directory: Some(directory), member: Some(member) })
}

async fn open_etcd(member: &etcd::local::Member, prefix: &str, name: &str) -> etcd::Etcd {
    let config = etcd::Config {
        endpoints: vec![member.endpoint()],
        tls: None,
        prefix: prefix.to_owned(),
        name: name.to_owned(),
        operations_max: etcd::OPERATIONS_MAX_DEFAULT,
        room: None,
        data: None,
    };
    etcd::Etcd::open(config).await.unwrap()
}
