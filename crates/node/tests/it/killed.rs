//! The agent is killed at every verb of a whole life, before and after the verb took effect; the next agent goes on.

use std::sync::Arc;

use base::shutdown::Shutdown;
use host::fake::{Fate, Mortal};
use model::{id::InstanceId, instance::Wanted, target::ZoneState};
use node::Execution;

use crate::world::{World, limits, nic};

/// One agent in a runtime of its own, which can be thrown away as a whole.
struct Life {
    runtime: Option<tokio::runtime::Runtime>,
    _trigger: base::shutdown::Trigger,
}

impl Life {
    fn start(world: &World, mortal: &Mortal) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let agent = world.agent(mortal.host(), Execution::Inline);
        let (trigger, shutdown) = Shutdown::new();
        let _entered = runtime.enter();
        base::task::spawn("agent under test", agent.run(shutdown));
        drop(_entered);
        Self { runtime: Some(runtime), _trigger: trigger }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A whole life; ends when the instance is gone.
async fn live(world: &World, id: InstanceId) {
    let headnode = &world.headnode;
    let target = |change: fn(&mut model::target::ZoneTarget)| headnode.zone(id, change);
    headnode.wait_state(id, ZoneState::Running).await;
    target(|zone| {
        zone.limits = limits(2);
        zone.nics.push(nic(10, 1));
    });
    headnode.wait_fact(id, "resized", |fact| fact.limits == Some(limits(2)) && fact.nics.len() == 2).await;
    target(|zone| zone.reboots += 1);
    headnode.wait_fact(id, "rebooted", |fact| fact.reboots_done == 1 && fact.state == ZoneState::Running).await;
    target(|zone| zone.wanted = Wanted::Stopped);
    headnode.wait_state(id, ZoneState::Stopped).await;
    assert_eq!(world.machine.host().links.nics().unwrap(), []);
    target(|zone| {
        zone.wanted = Wanted::Running;
        zone.starts += 1;
    });
    headnode.wait_fact(id, "started", |fact| fact.starts_done == 2 && fact.state == ZoneState::Running).await;
    target(|zone| zone.wanted = Wanted::Absent);
    headnode.wait_state(id, ZoneState::Absent).await;
}

/// Lives a life with a death at the `at`th verb; how many verbs there were before that or in all.
async fn live_and_die(at: usize, after_effect: bool) -> usize {
    let world = Arc::new(World::new());
    let mortal = Mortal::new(world.machine.host(), (at > 0).then_some(Fate { verb: at, takes_effect: after_effect }));
    let first = Life::start(&world, &mortal);
    let id = world.create(1);
    let life = base::task::spawn("life under test", {
        let world = world.clone();
        async move { live(&world, id).await }
    });
    tokio::pin!(life);
    let second = tokio::select! {
        result = &mut life => {
            result.unwrap();
            None
        }
        () = mortal.died() => {
            drop(first);
            let immortal = Mortal::new(world.machine.host(), None);
            let second = Life::start(&world, &immortal);
            life.await.unwrap_or_else(|error| panic!("killed at verb {at} (after its effect: {after_effect}): {error}"));
            Some(second)
        }
    };
    world.assert_empty();
    // A boot that was carried out but not written down may happen once more, never twice.
    let boots = world.machine.zones.boots();
    assert!((3..=4).contains(&boots), "{boots} boots when killed at verb {at} (after its effect: {after_effect})");
    drop(second);
    mortal.passed()
}

#[tokio::test]
async fn killed_at_every_verb() {
    let verbs = live_and_die(0, false).await;
    assert!(verbs > 15, "a life has {verbs} verbs");
    for at in 1..=verbs {
        for after_effect in [false, true] {
            live_and_die(at, after_effect).await;
        }
    }
}
