//! One tenant asks for very much at once, and others want something too.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use control::{
    Scope,
    accounts::{self, NewAccount},
    instances::{self, CreateInstance, NetworkChoice},
    networks::{self, NewNetwork},
    servers,
};
use model::{id::NetworkId, layout::Layout, server::Ratios};

use crate::world::{Machine, World, caller, network};

/// Creates of the flood.
const FLOOD: usize = 600;

async fn wide_network(world: &World) -> NetworkId {
    let base = network("wide", Ipv4Addr::new(10, 77, 255, 250));
    let new = NewNetwork {
        vlan: 77,
        host_gateway: false,
        layout: Layout {
            subnet: Some("10.77.0.0/16".parse().expect("a subnet")),
            range_start: Some(Ipv4Addr::new(10, 77, 0, 10)),
            gateway: None,
            ..base.layout
        },
        ..base
    };
    networks::create(&world.control, new).await.expect("made").id
}

#[tokio::test]
async fn a_flood_of_one_does_not_hold_up_anothers_delete() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    let network = wide_network(&world).await;
    let change = servers::ServerChange {
        ratios: Some(Ratios {
            memory_percent: Some(100_000),
            cpu_percent: Some(100_000),
            disk_percent: Some(100_000),
            ..Ratios::default()
        }),
        ..Default::default()
    };
    servers::change(&world.control, world.server, change).await.expect("it may promise much");
    let flooder = accounts::create(&world.control, NewAccount { login: "flood".to_owned(), ..NewAccount::default() });
    let flooder = flooder.await.expect("an account").id;

    let made = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..FLOOD)
        .map(|number| {
            let (control, made) = (world.control.for_calls_of(flooder), made.clone());
            let request = CreateInstance {
                networks: vec![NetworkChoice::any(network)],
                ..world.request(&format!("flood{number}"))
            };
            base::task::spawn("flood", async move {
                let created = instances::create(&control, &caller(), flooder, request).await;
                made.fetch_add(1, Ordering::Relaxed);
                created.map(drop)
            })
        })
        .collect();
    while made.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let before = made.load(Ordering::Relaxed);
    let control = world.control.for_calls_of(world.owner);
    instances::delete(&control, &caller(), Scope::Account(world.owner), id).await.expect("it is deleted");
    let meanwhile = made.load(Ordering::Relaxed) - before;
    // Forty may be on their way, and the turns in between are the datacenter's own; all of them would be 600.
    assert!(meanwhile < 200, "{meanwhile} creates went before it");
    for task in tasks {
        task.await.expect("it ends").expect("it is made");
    }
}
