//! Loops mend what they find and leave alone what is right.

use std::{sync::Arc, time::Duration};

use base::clock::ManualClock;
use control::{flows, instances, loops, tables};
use flow::{FLOWS, FlowRecord, FlowState, loops::Loop as _};
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
        ip: std::net::Ipv4Addr::new(10, 9, 0, 99).into(),
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

#[tokio::test]
async fn history_that_leaves_the_store_is_archived() {
    let world = World::new().await;
    let (control, kept) = (&world.control, flow::trim::SUBJECT_KEPT_MAX);
    let ended = |number: usize, subject: &str| FlowRecord {
        id: flow::FlowId::new(control.now().0),
        kind: "reboot".to_owned(),
        subject: subject.to_owned(),
        group: String::new(),
        input: number.into(),
        notes: flow::Notes::default(),
        steps: Vec::new(),
        state: FlowState::Succeeded,
        error: None,
        created_at: control.now().0,
        ended_at: Some(control.now().0),
    };
    let busy: Vec<FlowRecord> = (0..kept + 20).map(|number| ended(number, "busy")).collect();
    let all = busy.iter().cloned().chain([ended(0, "quiet")]);
    for flow in all {
        control.store.commit(Transaction::new().create(&FLOWS, flow)).await.expect("a flow is made");
    }
    let oldest: Vec<flow::FlowId> = busy[..20].iter().rev().map(|flow| flow.id).collect();
    // A process that died between archive and store has archived some already.
    let archive = control.archive.clone().expect("an archive");
    let line = serde_json::to_string(&busy[0]).expect("a flow is JSON");
    archive.append(flow::trim::ARCHIVE_KIND, vec![line], control.now().0).await.expect("archived");

    let trim = flow::trim::Trim::new(control.store.clone(), control.clock.clone()).archive(Some(archive));
    trim.pass().await.expect("a pass");
    let left = control.snapshot().find(&FLOWS, flow::record::BY_SUBJECT, "busy").count();
    assert_eq!((left, flows::list(control, Some("quiet"), 10).len()), (kept, 1));
    let ids = |flows: Vec<FlowRecord>| flows.into_iter().map(|flow| flow.id).collect::<Vec<_>>();
    assert_eq!(ids(flows::archived(control, Some("busy".to_owned()), 100).await.expect("read")), oldest);
    assert_eq!(ids(flows::archived(control, None, 3).await.expect("read")), oldest[..3]);
    assert!(flows::archived(control, Some("quiet".to_owned()), 100).await.expect("read").is_empty());
    assert_eq!(trim.pass().await.expect("a pass"), "", "nothing is left to do");
}
