//! The harness itself, on a flow with everything: looking, deciding, waiting, undoing.

use std::sync::Arc;

use base::{clock::SystemClock, shutdown::Shutdown};
use flow::testing::{World, exercise};
use store::{Store, memory::Memory};

use crate::world::{Context, Make, SHELVES, THINGS, order, outside, schema, shelf};

#[tokio::test]
async fn a_flow_survives_whatever_happens_at_whichever_step() {
    let make = async || {
        let store = Store::open(Arc::new(Memory::new()), schema()).await.unwrap();
        shelf(&store).await;
        let clock = Arc::new(SystemClock);
        let flow = order(&store, clock.as_ref(), "lamp", 0).await;
        let (trigger, shutdown) = Shutdown::new();
        let maker = store.clone();
        base::task::spawn("outside", async move { shutdown.unless(outside(maker)).await });
        World { store, clock, context: Context::default(), flow, helpers: Box::new(trigger) }
    };
    let count = exercise(
        make,
        |engine| engine.register::<Make>(),
        async |scenario, world, flow| {
            let snapshot = world.store.snapshot();
            let thing = snapshot.get(&THINGS, "lamp").unwrap();
            let reserved = &snapshot.get(&SHELVES, "shelf").unwrap().reserved;
            if scenario.fails {
                assert!(reserved.is_empty(), "{scenario:?}: {reserved:?}");
                assert!(!thing.wanted, "{scenario:?}");
                assert!(flow.error.is_some(), "{scenario:?}");
            } else {
                assert_eq!(reserved, &["lamp"], "{scenario:?}");
                assert_eq!((thing.wanted, thing.there, thing.state.as_str()), (true, true, "done"), "{scenario:?}");
            }
        },
    )
    .await;
    assert_eq!(count, 1 + 5 * 10);
}
