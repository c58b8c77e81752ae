//! What the target says about running a headnode is passed on, and what came of it reported.

use model::{
    role::{HeadnodeFact, HeadnodeRole, HeadnodeState, HeadnodeWanted},
    time::Timestamp,
};
use tokio::sync::watch;

use crate::world::{DEADLINE, World};

#[tokio::test]
async fn a_role_is_passed_on_and_what_came_of_it_reported() {
    let mut world = World::new();
    let (say, said) = watch::channel(None);
    let (role, mut told) = watch::channel(None);
    (world.config.headnode, world.config.role) = (said, role);
    let running = HeadnodeRole { since: Timestamp(7), wanted: HeadnodeWanted::Running, headnodes: Vec::new() };
    let agent = world.start();
    world.headnode.change(|target| target.headnode = Some(Box::new(running.clone())));
    let passed_on = tokio::time::timeout(DEADLINE, told.wait_for(|role| role.as_ref() == Some(&running)));
    assert!(passed_on.await.is_ok_and(|told| told.is_ok()), "it is told");
    let fact = HeadnodeFact { since: Timestamp(7), state: HeadnodeState::Preparing, error: Some("no disk".into()) };
    say.send_replace(Some(fact.clone()));
    world.headnode.wait("the fact", |report| report.headnode.as_ref() == Some(&fact)).await;
    agent.end().await;

    // The next agent knows it from its disk, also where no headnode answers.
    world.config.role.send_replace(None);
    let agent = world.start();
    let again = tokio::time::timeout(DEADLINE, told.wait_for(|role| role.as_ref() == Some(&running)));
    assert!(again.await.is_ok_and(|told| told.is_ok()), "it is told again");
    agent.end().await;
}
