//! Loops mend what they find and leave alone what is right.

use std::{sync::Arc, time::Duration};

use base::clock::ManualClock;
use control::{instances, loops, tables};
use model::state::PublicState;
use store::Transaction;

use crate::world::{Choices, Machine, World, caller};

#[tokio::test]
async fn leaks_are_mended() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    assert_eq!(loops::mend_leaks(&world.control).await.expect("a pass"), 0, "nothing is wrong");
    let snapshot = world.control.snapshot();
    let nobody = model::id::InstanceId::random();
    let address = model::network::Address {
        network: world.network,
        ip: std::net::Ipv4Addr::new(10, 9, 0, 99),
        instance: Some(nobody),
        owner: None,
        reserved: false,
        created_at: model::time::Timestamp(0),
    };
    let claim = |name: &str| tables::Claim { name: name.to_owned(), holder: nobody.to_string() };
    let server = snapshot.get(&tables::SERVERS, &world.server.to_string()).expect("the machine");
    let mut wrong = server.value.clone();
    wrong.reserved.instances = 7;
    let leak = Transaction::new()
        .create(&tables::ADDRESSES, address)
        .create(&tables::CLAIMS, claim("mac/90b8d0000001"))
        .create(&tables::CLAIMS, claim("alias/x/y"))
        .replace(&tables::SERVERS, &server, wrong);
    world.control.store.commit(leak).await.expect("it leaks");
    assert_eq!(loops::mend_leaks(&world.control).await.expect("a pass"), 2);
    assert_eq!(world.held(), (1, 256, 1, 1, 1));
    assert_eq!(world.view(id).state, PublicState::Running);
    assert_eq!(loops::mend_leaks(&world.control).await.expect("a pass"), 0);
}

#[tokio::test]
async fn deleted_instances_are_forgotten_after_a_week() {
    let clock = Arc::new(ManualClock::new(1_000_000));
    let world = World::with(Choices { clock: clock.clone(), ..Choices::default() }).await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    instances::delete(&world.control, &caller(), world.scope, id).await.expect("deleted");
    machine.obey(&world, id).await;
    world.until(id, |view| view.instance.flow.is_none()).await;
    assert_eq!(loops::trim_tombstones(&world.control).await.expect("a pass"), 0);
    clock.advance(Duration::from_secs(8 * 24 * 60 * 60));
    assert_eq!(loops::trim_tombstones(&world.control).await.expect("a pass"), 1);
    let gone = instances::get(&world.control, world.scope, id).expect_err("nobody remembers");
    assert!(matches!(gone, control::Error::NotFound { .. }));
}
