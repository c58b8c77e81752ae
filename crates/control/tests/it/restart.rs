//! The control plane ends at any moment and goes on from its file.

use base::shutdown::Shutdown;
use control::{instances, loops};
use model::state::PublicState;

use crate::world::{Choices, Kind, Machine, World, caller, open, run_flows, start};

/// The same datacenter in a new process: everything in memory is gone.
pub(crate) async fn again(world: World) -> World {
    let World { control, owner, scope, image, network, server, dir, trigger } = world;
    let clock = control.clock.clone();
    trigger.fire();
    // The file has one owner; the old one lets go when its last task has.
    drop(control);
    let store = open(Kind::Sqlite, &dir).await;
    let (trigger, shutdown) = Shutdown::new();
    let control = start(store, clock, &dir, shutdown.clone());
    run_flows(&control, shutdown);
    World { control, owner, scope, image, network, server, dir, trigger: trigger.into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost() {
    let world = World::with(Choices { engine: Kind::Sqlite, ..Choices::default() }).await;
    let mut machine = Machine::new(&world);
    let stopping = world.running(&mut machine, "stopping").await;
    let deleting = world.running(&mut machine, "deleting").await;
    let making = world.create("making").await.expect("it is asked for").instance.id;
    instances::stop(&world.control, &caller(), world.scope, stopping).await.expect("it can be stopped");
    instances::delete(&world.control, &caller(), world.scope, deleting).await.expect("it can be deleted");
    let world = again(world).await;
    assert_eq!(world.held(), (3, 768, 3, 3, 3));
    assert_eq!(world.view(making).state, PublicState::Provisioning);
    for id in [making, stopping, deleting] {
        machine.obey(&world, id).await;
    }
    for (id, state) in
        [(making, PublicState::Running), (stopping, PublicState::Stopped), (deleting, PublicState::Deleted)]
    {
        world.until(id, |view| view.state == state && view.instance.flow.is_none()).await;
    }
    assert_eq!(world.held(), (2, 512, 2, 2, 2));
    assert_eq!(loops::mend_leaks(&world.control).await.expect("a pass"), 0);
}
