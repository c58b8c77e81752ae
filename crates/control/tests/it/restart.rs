//! The control plane ends at any moment and goes on from its file.

use std::time::Duration;

use base::shutdown::Shutdown;
use control::{Control, ControlConfig, instances, loops, servers};
use model::{
    delta::{Held, TargetNews},
    state::PublicState,
    target::Target,
};

use crate::world::{Choices, Kind, Machine, World, caller, config, open, run_flows};

/// The same datacenter in a new process: everything in memory is gone.
pub(crate) async fn again(world: World) -> World {
    again_with(world, |_| ()).await
}

/// The same with other settings.
async fn again_with(world: World, edit: impl FnOnce(&mut ControlConfig)) -> World {
    let World { control, owner, scope, image, network, server, dir, trigger } = world;
    let clock = control.clock.clone();
    trigger.fire();
    // The file has one owner; the old one lets go when its last task has.
    drop(control);
    let store = open(Kind::Sqlite, &dir).await;
    let (trigger, shutdown) = Shutdown::new();
    let mut config = config(&dir);
    edit(&mut config);
    let control = Control::start(store, clock, config, shutdown.clone());
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

/// What settings put in a machine's document reaches it with the restart, though no record has changed; and it is told once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_hear_of_changed_settings_at_once() {
    let world = World::with(Choices { engine: Kind::Sqlite, ..Choices::default() }).await;
    let mut machine = Machine::new(&world);
    world.running(&mut machine, "web").await;
    let held = servers::watch_target(&world.control, world.server, 0).await.expect("it is known").expect("a document");
    // A restart may tell it the same under a higher number, and that once.
    let world = again(world).await;
    let held = news(&world, &held, SILENCE).await.unwrap_or(held);
    let world = again(world).await;
    assert_eq!(news(&world, &held, SILENCE).await, None, "nothing has changed");

    let world = again_with(world, |config| config.fabric.vxlan_port = 4_790).await;
    let told = news(&world, &held, PATIENCE).await.expect("it is told, though no record has changed");
    assert_eq!(told.vxlan_port, 4_790);
    assert!(told.generation > held.generation, "{} after {}", told.generation, held.generation);
    assert_eq!(news(&world, &told, SILENCE).await, None, "it is told once");
    // An agent so old that it understands less than it is sent holds something else every time.
    let other = Target { generation: told.generation, ..held };
    assert_eq!(news(&world, &other, SILENCE).await, None, "it is told once");
}

/// How long somebody listens who should hear nothing.
const SILENCE: Duration = Duration::from_secs(1);
/// How long news may take: shorter than a wait that ends without any, and long for a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a machine that holds `held` is told within `limit`.
async fn news(world: &World, held: &Target, limit: Duration) -> Option<Target> {
    let asked = Held { generation: held.generation, digest: Some(held.digest()) };
    let asking = servers::watch_news(&world.control, world.server, asked);
    let news = tokio::time::timeout(limit, asking).await.ok()?;
    match news.expect("it is known").expect("there is news") {
        TargetNews::Whole(target) => Some(target),
        TargetNews::Delta(delta) => Some(delta.apply(held).expect("it fits")),
    }
}
