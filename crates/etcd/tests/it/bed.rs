//! Clusters, certificates and records of these tests.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use etcd::{Config, Etcd, Tls, local::Member};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde::{Deserialize, Serialize};
use store::{
    Engine, Revision, Schema, Table,
    engine::{Batch, Outcome},
};

/// How long anything may take on a machine that has much else to do.
pub(crate) const AMPLE: Duration = Duration::from_secs(120);

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

pub(crate) fn counter(name: &str, count: u64) -> Counter {
    Counter { name: name.to_owned(), count }
}

pub(crate) fn schema() -> Schema {
    Schema::new().with(&COUNTERS)
}

/// Members under a directory that goes with them.
pub(crate) struct Bed {
    pub(crate) members: Vec<Member>,
    pub(crate) tls: Option<Tls>,
    directory: tempfile::TempDir,
}

impl Bed {
    /// One member without TLS; none, and a line that says so, where etcd is not installed.
    pub(crate) async fn single() -> Option<Self> {
        let directory = directory()?;
        let members = Member::cluster(directory.path(), 1, None, &[]).await.unwrap();
        Some(Self { members, tls: None, directory })
    }

    /// One member without TLS whose file has a limit.
    pub(crate) async fn limited(quota_bytes: u64) -> Option<Self> {
        let directory = directory()?;
        let quota = format!("--quota-backend-bytes={quota_bytes}");
        let members = Member::cluster(directory.path(), 1, None, &[&quota]).await.unwrap();
        Some(Self { members, tls: None, directory })
    }

    /// Members without TLS that write their files once an hour, and whenever etcd cannot do without.
    pub(crate) async fn lazy(count: usize, more: &[&str]) -> Option<Self> {
        let directory = directory()?;
        let arguments = [&["--backend-batch-interval=1h", "--backend-batch-limit=1000000"], more].concat();
        let members = Member::cluster(directory.path(), count, None, &arguments).await.unwrap();
        Some(Self { members, tls: None, directory })
    }

    /// Three members that ask for certificates.
    pub(crate) async fn three() -> Option<Self> {
        let directory = directory()?;
        let tls = certificates(directory.path(), "good");
        let members = Member::cluster(directory.path(), 3, Some(&tls), &[]).await.unwrap();
        Some(Self { members, tls: Some(tls), directory })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn config(&self, name: &str) -> Config {
        Config {
            endpoints: self.members.iter().map(Member::endpoint).collect(),
            tls: self.tls.clone(),
            prefix: "neso/test".to_owned(),
            name: name.to_owned(),
            operations_max: etcd::OPERATIONS_MAX_DEFAULT,
            room: None,
            data: None,
        }
    }

    pub(crate) async fn open(&self, name: &str) -> Etcd {
        Etcd::open(self.config(name)).await.unwrap()
    }

    /// Reached through `endpoints` only, in this order.
    pub(crate) async fn open_through(&self, name: &str, endpoints: Vec<String>) -> Etcd {
        Etcd::open(Config { endpoints, ..self.config(name) }).await.unwrap()
    }
}

fn directory() -> Option<tempfile::TempDir> {
    if !etcd::local::is_installed() {
        println!("skipped: etcd is not installed (Debian's package etcd-server)");
        return None;
    }
    Some(tempfile::Builder::new().prefix("neso-etcd-").tempdir_in("/dev/shm").unwrap())
}

/// An authority of its own, and one certificate that is good for members and clients on this machine.
pub(crate) fn certificates(directory: &Path, name: &str) -> Tls {
    let file = |kind: &str| directory.join(format!("{name}-{kind}"));
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let issuer_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let mut leaf = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = leaf.signed_by(&key, &issuer).unwrap();
    let tls = Tls { authority: file("ca.pem"), certificate: file("leaf.pem"), key: file("leaf.key") };
    std::fs::write(&tls.authority, issuer_certificate.pem()).unwrap();
    std::fs::write(&tls.certificate, certificate.pem()).unwrap();
    std::fs::write(&tls.key, key.serialize_pem()).unwrap();
    tls
}

pub(crate) fn put(key: &str, value: &str) -> (String, Option<Bytes>) {
    (key.to_owned(), Some(Bytes::copy_from_slice(value.as_bytes())))
}

pub(crate) fn batch(checks: &[(&str, Option<Revision>)], writes: Vec<(String, Option<Bytes>)>) -> Batch {
    let checks = checks.iter().map(|(key, expected)| ((*key).to_owned(), *expected)).collect();
    Batch { checks, writes, may_use_reserve: false }
}

pub(crate) async fn committed(engine: &Etcd, batch: Batch) -> Revision {
    match engine.commit(batch).await.unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict(revision) => panic!("a conflict at revision {revision}"),
    }
}

/// Key, revision and value of each record.
pub(crate) async fn all(engine: &Etcd) -> Vec<(String, Revision, String)> {
    let page = engine.load("", 10_000).await.unwrap();
    assert!(!page.more);
    let text = |value: &Bytes| String::from_utf8(value.to_vec()).unwrap();
    page.records.iter().map(|record| (record.key.clone(), record.revision, text(&record.value))).collect()
}

/// Wait until `holds`.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(AMPLE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "in time: {what}");
}
