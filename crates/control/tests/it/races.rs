//! Many at once.

use std::collections::BTreeSet;

use control::instances;
use model::state::PublicState;

use crate::world::{Choices, Kind, Machine, World, caller};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_creates_share_nothing() {
    share_nothing(Kind::Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_creates_share_nothing_on_disk() {
    share_nothing(Kind::Sqlite).await;
}

async fn share_nothing(engine: Kind) {
    const MANY: usize = 64;
    let world = World::with(Choices { engine, ..Choices::default() }).await;
    Machine::new(&world).runs_by_itself(world.control.clone());
    let mut tasks = Vec::new();
    for number in 0..MANY {
        let (control, owner) = (world.control.clone(), world.owner);
        let request = world.request(&format!("web-{number}"));
        tasks.push(base::task::spawn("create", async move {
            instances::create(&control, &caller(), owner, request).await.expect("there is room")
        }));
    }
    let (mut ips, mut macs, mut ids) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for task in tasks {
        let view = task.await.expect("it does not panic");
        ips.extend(view.ips());
        macs.extend(view.instance.nics.iter().map(|nic| nic.mac));
        ids.push(view.instance.id);
    }
    assert_eq!((ips.len(), macs.len()), (MANY, MANY));
    for id in ids {
        world.until(id, |view| view.state == PublicState::Running && view.instance.flow.is_none()).await;
    }
    assert_eq!(world.held(), (MANY as u32, 256 * MANY as u64, MANY, MANY, MANY));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_gets_the_name() {
    let world = World::new().await;
    let mut tasks = Vec::new();
    for _ in 0..16 {
        let (control, owner, request) = (world.control.clone(), world.owner, world.request("web"));
        tasks.push(base::task::spawn("create", async move {
            instances::create(&control, &caller(), owner, request).await.is_ok()
        }));
    }
    let mut winners = 0;
    for task in tasks {
        winners += usize::from(task.await.expect("it does not panic"));
    }
    assert_eq!(winners, 1);
    assert_eq!(world.held(), (1, 256, 1, 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn created_and_deleted_by_many_leaves_nothing() {
    let world = World::new().await;
    Machine::new(&world).runs_by_itself(world.control.clone());
    let mut tasks = Vec::new();
    for number in 0..24 {
        let (control, owner, scope) = (world.control.clone(), world.owner, world.scope);
        let request = world.request(&format!("web-{number}"));
        tasks.push(base::task::spawn("life", async move {
            let id = instances::create(&control, &caller(), owner, request).await.expect("there is room").instance.id;
            if number % 3 == 0 {
                // Whatever state it is in by now.
                let _ = instances::stop(&control, &caller(), scope, id).await;
            }
            instances::delete(&control, &caller(), scope, id).await.expect("it can be deleted");
            id
        }));
    }
    for task in tasks {
        let id = task.await.expect("it does not panic");
        world.until(id, |view| view.state == PublicState::Deleted && view.instance.flow.is_none()).await;
    }
    assert_eq!(world.held(), (0, 0, 0, 0, 0));
}
