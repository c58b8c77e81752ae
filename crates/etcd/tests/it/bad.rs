//! Clusters that cannot be used, and what is said about them.

use etcd::{Config, Etcd, OpenError, Tls};
use store::{Engine, engine::Batch};

use crate::bed::{Bed, certificates, put};

async fn refused(config: Config) -> String {
    match Etcd::open(config).await {
        Ok(_) => panic!("it was opened"),
        Err(error) => base::errors::chain(&error),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_do_not_fit_are_named() {
    let Some(bed) = Bed::three().await else { return };
    let stranger = certificates(bed.path(), "stranger");
    let good = bed.tls.clone().unwrap();
    // Their authority is not ours.
    let why = refused(Config {
        tls: Some(Tls { authority: stranger.authority.clone(), ..good.clone() }),
        ..bed.config("one")
    });
    let why = why.await;
    assert!(why.contains("do not trust each other") && why.contains("invalid peer certificate"), "{why}");
    // Ours is not theirs.
    let why = refused(Config {
        tls: Some(Tls { authority: good.authority.clone(), ..stranger.clone() }),
        ..bed.config("one")
    });
    let why = why.await;
    assert!(why.contains("do not trust each other"), "{why}");
    let why = refused(Config { tls: Some(Tls { key: stranger.key, ..good }), ..bed.config("one") }).await;
    assert!(why.contains("use certificate") && why.contains("leaf.pem"), "{why}");
    bed.open("one").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_and_layouts_are_checked_when_it_is_opened() {
    let Some(bed) = Bed::single().await else { return };
    let opened = Etcd::open(Config { operations_max: 129, ..bed.config("one") }).await;
    assert!(matches!(opened, Err(OpenError::Operations { wanted: 129 })));
    // What is allowed is allowed in full: with the mark, both of etcd's lists are as long as they may be.
    let engine = bed.open("one").await;
    let full = engine.limits().records;
    let keys: Vec<String> = (0..full).map(|number| format!("k{number}")).collect();
    let only_checked = keys.iter().map(|key| (key.clone(), None)).collect();
    engine.commit(Batch { checks: only_checked, writes: vec![put("k0", "1")], may_use_reserve: false }).await.unwrap();
    let others: Vec<String> = (0..full).map(|number| format!("l{number}")).collect();
    let writes = others.iter().map(|key| put(key, "1")).collect();
    let checks: Vec<_> = others.iter().map(|key| (key.clone(), None)).collect();
    let all = Batch { checks, writes, may_use_reserve: false };
    engine.commit(all).await.unwrap();
    let more: Vec<_> = (0..=full).map(|number| (format!("m{number}"), None)).collect();
    let over = Batch { checks: more, writes: vec![put("m0", "1")], may_use_reserve: false };
    assert!(engine.commit(over).await.is_err(), "one more is too many for etcd, so the limit is not too low");

    let why = refused(Config { endpoints: vec!["http://127.0.0.1:1".to_owned()], ..bed.config("one") });
    // It is tried for a while: a cluster that starts at the same time is no error.
    let why = tokio::time::timeout(crate::bed::AMPLE, why).await.unwrap();
    assert!(why.contains("127.0.0.1:1") && why.contains("refused"), "{why}");
}
