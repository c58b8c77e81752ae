//! Every flow, failed, repeated and stopped at every step.

use std::sync::Arc;

use base::clock::SystemClock;
use control::{Control, flows, instances, loops};
use flow::testing::{World as FlowWorld, exercise};
use model::{id::InstanceId, state::PublicState};

use crate::world::{Choices, Machine, World, caller};

/// A world in which `ask` has been asked of a running instance, and whose machine obeys by itself.
async fn asked(ask: impl AsyncFn(&World, InstanceId)) -> FlowWorld<Control> {
    let world = World::with(Choices { flows: false, ..Choices::default() }).await;
    let mut machine = Machine::new(&world);
    let id = world.create("web").await.expect("it is asked for").instance.id;
    machine.obey(&world, id).await;
    end_of_provision(&world, id).await;
    ask(&world, id).await;
    machine.runs_by_itself(world.control.clone());
    flow_world(world, id)
}

/// Lets an engine run until the provision has ended, and stops it again.
async fn end_of_provision(world: &World, id: InstanceId) {
    let (trigger, shutdown) = base::shutdown::Shutdown::new();
    let engine = flow::Engine::new(world.control.store.clone(), world.control.clock.clone(), world.control.clone());
    let running = base::task::spawn("flows", flows::register(engine).run(shutdown));
    world.until(id, |view| view.instance.flow.is_none()).await;
    trigger.fire();
    running.await.expect("it does not panic");
}

fn flow_world(world: World, id: InstanceId) -> FlowWorld<Control> {
    let flow = world.view(id).instance.flow.expect("a flow is at work").to_string();
    FlowWorld {
        store: world.control.store.clone(),
        clock: Arc::new(SystemClock),
        context: world.control.clone(),
        flow: flow.parse().expect("an id of a flow"),
        helpers: Box::new(world),
    }
}

/// What must hold however a flow ended.
async fn nothing_leaks(world: &FlowWorld<Control>) {
    let control = &world.context;
    let instance = control.snapshot().scan(&control::tables::INSTANCES).next().expect("the instance");
    assert_eq!(instance.flow, None);
    assert!(instance.history.len() <= 2, "one line per request: {:?}", instance.history);
    assert_eq!(loops::mend_leaks(control).await.expect("a pass"), 0);
}

async fn every_way(ask: impl AsyncFn(&World, InstanceId)) {
    let scenarios =
        exercise(async || asked(&ask).await, flows::register, async |_, world, _| nothing_leaks(world).await).await;
    assert!(scenarios >= 10, "{scenarios}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn provision() {
    let make = async || {
        let world = World::with(Choices { flows: false, ..Choices::default() }).await;
        let id = world.create("web").await.expect("it is asked for").instance.id;
        Machine::new(&world).runs_by_itself(world.control.clone());
        flow_world(world, id)
    };
    let check = async |scenario: &flow::testing::Scenario, flow_world: &FlowWorld<Control>, _: &flow::FlowRecord| {
        let world = flow_world.helpers.downcast_ref::<World>().expect("the world");
        let id = flow_world.context.snapshot().scan(&control::tables::INSTANCES).next().expect("the instance").id;
        if scenario.fails {
            world.until(id, |view| view.state == PublicState::Failed && view.instance.released).await;
            assert_eq!(world.held(), (0, 0, 0, 0, 1));
        } else {
            assert_eq!(world.view(id).state, PublicState::Running);
            assert_eq!(world.held(), (1, 256, 1, 1, 1));
        }
        nothing_leaks(flow_world).await;
    };
    assert!(exercise(make, flows::register, check).await >= 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop() {
    every_way(async |world, id| {
        instances::stop(&world.control, &caller(), world.scope, id).await.expect("it can be stopped");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reboot() {
    every_way(async |world, id| {
        instances::reboot(&world.control, &caller(), world.scope, id).await.expect("it can be rebooted");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resize() {
    every_way(async |world, id| {
        instances::resize(&world.control, &caller(), world.scope, id, "large").await.expect("it can be resized");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destroy() {
    every_way(async |world, id| {
        instances::delete(&world.control, &caller(), world.scope, id).await.expect("it can be deleted");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nics() {
    every_way(async |world, id| {
        let mac = world.view(id).instance.nics[0].mac;
        instances::nics::remove(&world.control, &caller(), world.scope, id, mac).await.expect("it can be removed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start() {
    let make = async || {
        let world = World::with(Choices { flows: false, ..Choices::default() }).await;
        let mut machine = Machine::new(&world);
        let id = world.create("web").await.expect("it is asked for").instance.id;
        machine.obey(&world, id).await;
        end_of_provision(&world, id).await;
        let fact = machine.zones.get_mut(&id).expect("it is there");
        fact.state = model::target::ZoneState::Stopped;
        machine.report(&world).await;
        instances::start(&world.control, &caller(), world.scope, id).await.expect("it can be started");
        machine.runs_by_itself(world.control.clone());
        flow_world(world, id)
    };
    assert!(exercise(make, flows::register, async |_, world, _| nothing_leaks(world).await).await >= 10);
}
