//! Random transactions against a plain map: the store says yes exactly when the map does, and then holds the same.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use store::{CommitError, Engine, Entry, Revision, Store, Transaction};

use crate::records::{BOATS, Boat, boat, embedded_beds, etcd_bed, schema};

#[derive(Debug, Clone)]
enum Act {
    Create(u8, u8),
    Replace(u8, u8, bool),
    Delete(u8, bool),
    Require(u8, bool),
    RequireAbsent(u8),
}

fn acts() -> impl Strategy<Value = Vec<Vec<Act>>> {
    let act = prop_oneof![
        (0_u8..6, 0_u8..4).prop_map(|(key, value)| Act::Create(key, value)),
        (0_u8..6, 0_u8..4, prop::bool::weighted(0.9)).prop_map(|(key, value, fresh)| Act::Replace(key, value, fresh)),
        (0_u8..6, prop::bool::weighted(0.9)).prop_map(|(key, fresh)| Act::Delete(key, fresh)),
        (0_u8..6, prop::bool::weighted(0.9)).prop_map(|(key, fresh)| Act::Require(key, fresh)),
        (0_u8..6).prop_map(Act::RequireAbsent),
    ];
    prop::collection::vec(prop::collection::vec(act, 1..4), 1..40)
}

/// A boat whose index keys follow from its value, an empty one and one with a NUL among them.
fn made(key: u8, value: u8) -> Boat {
    let crew = ["", "a", "a\0b", "b"];
    let crew = (0..value).map(|sailor| crew[usize::from(sailor)].to_owned()).collect();
    Boat { crew, voyages: u64::from(value), ..boat(&format!("k{key}"), &format!("h{}", value % 2)) }
}

type Map = BTreeMap<String, Boat>;

/// The transaction, and what it makes of `map` if it holds; `None` when it must be refused.
fn build(acts: &[Act], map: &Map, store: &Store) -> (Transaction, Option<Map>) {
    let snapshot = store.snapshot();
    let mut transaction = Transaction::new();
    let mut result = Some(map.clone());
    let mut written = std::collections::BTreeSet::new();
    let entry = |key: &str, fresh: bool| -> Option<Arc<Entry<Boat>>> {
        let entry = snapshot.get(&BOATS, key)?;
        let stale = Entry::new(entry.value.clone(), Revision(entry.revision().0 + 1000));
        Some(if fresh { entry } else { Arc::new(stale) })
    };
    for act in acts {
        let (key, writes) = match act {
            Act::Create(key, _) | Act::Replace(key, ..) | Act::Delete(key, _) => (format!("k{key}"), true),
            Act::Require(key, _) | Act::RequireAbsent(key) => (format!("k{key}"), false),
        };
        if writes && written.contains(&key) {
            continue;
        }
        let holds = match act {
            Act::Create(_, value) => {
                let boat = made(key.as_bytes()[1] - b'0', *value);
                transaction = transaction.create(&BOATS, boat.clone());
                result = result.map(|mut map| {
                    map.insert(key.clone(), boat);
                    map
                });
                !map.contains_key(&key)
            }
            Act::Replace(_, value, fresh) => {
                let Some(entry) = entry(&key, *fresh) else { continue };
                let boat = made(key.as_bytes()[1] - b'0', *value);
                transaction = transaction.replace(&BOATS, &entry, boat.clone());
                result = result.map(|mut map| {
                    map.insert(key.clone(), boat);
                    map
                });
                *fresh
            }
            Act::Delete(_, fresh) => {
                let Some(entry) = entry(&key, *fresh) else { continue };
                transaction = transaction.delete(&BOATS, &entry);
                result = result.map(|mut map| {
                    map.remove(&key);
                    map
                });
                *fresh
            }
            Act::Require(_, fresh) => {
                let Some(entry) = entry(&key, *fresh) else { continue };
                transaction = transaction.require(&BOATS, &entry);
                *fresh
            }
            Act::RequireAbsent(_) => {
                transaction = transaction.require_absent(&BOATS, &key);
                !map.contains_key(&key)
            }
        };
        if writes {
            written.insert(key);
        }
        if !holds {
            result = None;
        }
    }
    (transaction, result)
}

fn same(store: &Store, map: &Map) {
    let snapshot = store.snapshot();
    let stored: Map = snapshot.scan(&BOATS).map(|entry| (entry.name.clone(), entry.value.clone())).collect();
    assert_eq!(&stored, map);
    assert_eq!(snapshot.count(&BOATS), map.len());
    for (index, keys) in [("harbour", vec!["h0", "h1"]), ("crew", vec!["", "a", "a\0b", "b"])] {
        for key in keys {
            let found: Vec<String> = snapshot.find(&BOATS, index, key).map(|entry| entry.name.clone()).collect();
            let under = |boat: &&Boat| {
                if index == "harbour" { boat.harbour == key } else { boat.crew.iter().any(|name| name == key) }
            };
            let wanted: Vec<String> = map.values().filter(under).map(|boat| boat.name.clone()).collect();
            assert_eq!(found, wanted, "index {index}, key {key:?}");
        }
    }
}

async fn play(engine: Arc<dyn Engine>, transactions: &[Vec<Act>]) {
    let store = Store::open(engine.clone(), schema()).await.unwrap();
    let mut map = Map::new();
    for acts in transactions {
        let (transaction, wanted) = build(acts, &map, &store);
        match (store.commit(transaction).await, wanted) {
            (Ok(_), Some(after)) => map = after,
            (Err(CommitError::Conflict { .. }), None) => {}
            (found, wanted) => panic!("{acts:?}: {found:?}, wanted {wanted:?}"),
        }
        same(&store, &map);
    }
    same(&Store::open(engine, schema()).await.unwrap(), &map);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_store_is_a_map(transactions in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for bed in embedded_beds().await {
                play(bed.engine.clone(), &transactions).await;
            }
        });
    }
}

#[test]
fn the_store_on_etcd_is_a_map_too() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let Some(bed) = runtime.block_on(etcd_bed()) else { return };
    let number = std::cell::Cell::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(16));
    let ran = runner.run(&acts(), |transactions| {
        number.set(number.get() + 1);
        runtime.block_on(async {
            let engine = bed.empty(number.get()).await.expect("it is etcd's");
            play(engine, &transactions).await;
        });
        Ok(())
    });
    ran.unwrap();
}
