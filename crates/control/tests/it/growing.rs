//! Machines become headnodes and cease to be ones: what is refused, and the flows failed, repeated and stopped at every step.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use base::clock::SystemClock;
use control::{
    Control, Error,
    headnodes::{
        self, Announcement, Candidate, Wanted,
        members::{
            Cluster, Invitation, KeptIn, MemberFacts, MemberState, Members, MembersError, Moved, NewMember, Promotion,
        },
    },
    servers::{self, NewServer},
    tables::{BEATS, HEADNODES, SERVERS},
};
use flow::testing::{Scenario, World as FlowWorld, exercise};
use model::{
    headnode::{Beat, Health, Stage},
    id::ServerId,
    part::Digest,
    quorum::Fitness,
    role::{HeadnodeRole, HeadnodeState, HeadnodeWanted},
    time::Timestamp,
};
use store::{BoxFuture, Transaction};

use crate::world::{Choices, Machine, World, caller};

/// Members that are numbers in a map.
struct FakeMembers(Mutex<State>);

struct State {
    kept_in: KeptIn,
    /// By machine, whether it votes.
    members: BTreeMap<ServerId, bool>,
    me: ServerId,
    /// Asked for a vote so often.
    asked: usize,
}

impl FakeMembers {
    fn new(me: ServerId, kept_in: KeptIn) -> Arc<Self> {
        let members = if kept_in == KeptIn::Members { BTreeMap::from([(me, true)]) } else { BTreeMap::new() };
        Arc::new(Self(Mutex::new(State { kept_in, members, me, asked: 0 })))
    }

    fn with<T: Send + 'static, E: Send + 'static>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, E>,
    ) -> BoxFuture<'_, Result<T, E>> {
        let done = change(&mut self.0.lock().expect("nobody panics with it"));
        Box::pin(std::future::ready(done))
    }

    fn votes(&self) -> BTreeMap<ServerId, bool> {
        self.0.lock().expect("nobody panics with it").members.clone()
    }
}

impl Members for FakeMembers {
    fn kept_in(&self) -> KeptIn {
        self.0.lock().expect("nobody panics with it").kept_in
    }

    fn check(&self) -> BoxFuture<'_, Result<(), MembersError>> {
        self.with(|_| Ok(()))
    }

    fn move_store(&self) -> BoxFuture<'_, Result<Moved, MembersError>> {
        self.with(|state| {
            state.kept_in = KeptIn::Members;
            state.members.insert(state.me, true);
            Ok(Moved { records: 7, pause_ms: 3 })
        })
    }

    fn add_learner(&self, new: NewMember) -> BoxFuture<'_, Result<Invitation, MembersError>> {
        self.with(move |state| {
            assert_eq!(state.kept_in, KeptIn::Members, "a learner of a file");
            state.members.entry(new.server).or_insert(false);
            let (name, token) = (new.server.to_string(), "token".to_owned());
            Ok(Invitation { name, token, initial_cluster: String::new(), endpoints: Vec::new() })
        })
    }

    fn promote(&self, server: ServerId) -> BoxFuture<'_, Result<Promotion, MembersError>> {
        self.with(move |state| {
            state.asked += 1;
            if state.asked == 1 {
                return Ok(Promotion::NotYet("half of it".to_owned()));
            }
            let vote = state.members.get_mut(&server).expect("it was added before");
            *vote = true;
            Ok(Promotion::Voting)
        })
    }

    fn remove(&self, server: ServerId) -> BoxFuture<'_, Result<(), MembersError>> {
        self.with(move |state| {
            state.members.remove(&server);
            Ok(())
        })
    }

    fn status(&self) -> BoxFuture<'_, Result<Cluster, MembersError>> {
        self.with(|state| {
            let member = |(server, voting): (&ServerId, &bool)| MemberState {
                server: Some(*server),
                name: server.to_string(),
                voting: *voting,
                clients: Vec::new(),
                peers: Vec::new(),
                said: Ok(MemberFacts::default()),
            };
            Ok(Cluster { members: state.members.iter().map(member).collect() })
        })
    }
}

/// A headnode, a machine that joined, members, and a headnode on that machine as soon as it is ready.
struct Site {
    world: World,
    members: Arc<FakeMembers>,
    head: ServerId,
}

fn announcement(name: &str) -> Announcement {
    Announcement {
        hostname: name.to_owned(),
        cloudapi: "127.0.0.1:1".to_owned(),
        node_link: "127.0.0.1:2".to_owned(),
        ops: "127.0.0.1:3".to_owned(),
        member: None,
        shared_settings: Digest::of_bytes(b"settings"),
        release: "1".to_owned(),
    }
}

async fn stage(kept_in: KeptIn) -> Site {
    let head = ServerId::random();
    let world = World::with(Choices { flows: false, headnode: Some(head), ..Choices::default() }).await;
    let control = &world.control;
    servers::register(control, head, NewServer { hostname: "head".into(), headnode: true, ..NewServer::default() })
        .await
        .expect("a machine");
    headnodes::register(control, head, &announcement("head")).await.expect("a headnode");
    let members = FakeMembers::new(head, kept_in);
    control.keep_store_with(members.clone());
    Machine::new(&world).runs_by_itself(control.clone());
    beats(control.clone(), world.server, head);
    Site { world, members, head }
}

/// Lets headnodes beat: the first one always, the other while its machine says that it is ready.
fn beats(control: Control, machine: ServerId, head: ServerId) {
    base::task::spawn("beats", async move {
        for sequence in 1.. {
            let server = control.snapshot().get(&SERVERS, &machine.to_string());
            let ready = server.is_some_and(|server| {
                server.headnode_fact.as_ref().is_some_and(|fact| fact.state == HeadnodeState::Ready)
            });
            for id in [Some(head), ready.then_some(machine)].into_iter().flatten() {
                let beat = Beat {
                    headnode: id,
                    sequence,
                    at: control.now(),
                    started_at: Timestamp(1),
                    health: Health::default(),
                };
                let known = control.snapshot().get(&BEATS, &id.to_string());
                let is_member = control.snapshot().get(&HEADNODES, &id.to_string()).is_some();
                let transaction = match known {
                    _ if !is_member => continue,
                    Some(known) => Transaction::new().replace(&BEATS, &known, beat),
                    None => Transaction::new().create(&BEATS, beat),
                };
                // It may lose against whoever takes the record away.
                let _ = control.store.commit(transaction).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

fn fit(control: &Control) -> Fitness {
    Fitness {
        release: "1".to_owned(),
        now: control.now(),
        etcd: Some("3.4.23".to_owned()),
        client_port: Some(8446),
        peer_port: Some(8447),
        taken: Vec::new(),
    }
}

fn add(control: &Control, server: ServerId, even: bool) -> Wanted {
    Wanted { add: vec![Candidate { server, fitness: fit(control) }], remove: None, even, release: "1".to_owned() }
}

fn remove(server: ServerId) -> Wanted {
    Wanted { add: Vec::new(), remove: Some(server), even: true, release: "1".to_owned() }
}

fn flow_world(stage: Site, flow: flow::FlowId) -> FlowWorld<Control> {
    FlowWorld {
        store: stage.world.control.store.clone(),
        clock: Arc::new(SystemClock),
        context: stage.world.control.clone(),
        flow,
        helpers: Box::new(stage),
    }
}

fn stage_of(stage: &Site) -> Option<Stage> {
    Some(stage.world.control.snapshot().get(&HEADNODES, &stage.world.server.to_string())?.stage)
}

fn role_of(stage: &Site) -> Option<HeadnodeRole> {
    stage.world.control.snapshot().get(&SERVERS, &stage.world.server.to_string())?.headnode_role.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_becomes_a_headnode_whatever_happens() {
    let make = async || {
        let stage = stage(KeptIn::File).await;
        let wanted = add(&stage.world.control, stage.world.server, true);
        let flows = headnodes::change(&stage.world.control, &wanted, &caller()).await.expect("it may");
        flow_world(stage, flows[0])
    };
    let check = async |scenario: &Scenario, flow_world: &FlowWorld<Control>, _: &flow::FlowRecord| {
        let stage = flow_world.helpers.downcast_ref::<Site>().expect("the stage");
        let votes = stage.members.votes();
        let server = stage.world.control.snapshot().get(&SERVERS, &stage.world.server.to_string()).expect("it");
        if scenario.fails {
            assert_eq!(stage_of(stage), None, "{scenario:?}");
            assert!(!votes.contains_key(&stage.world.server), "{scenario:?}: a member is left");
            assert!(!server.headnode && role_of(stage).is_none_or(|role| role.wanted == HeadnodeWanted::Absent));
            assert!(
                server.headnode_fact.as_ref().is_none_or(|fact| fact.state == HeadnodeState::Absent),
                "{scenario:?}"
            );
        } else {
            assert_eq!(stage_of(stage), Some(Stage::Active), "{scenario:?}");
            assert_eq!(votes, BTreeMap::from([(stage.head, true), (stage.world.server, true)]), "{scenario:?}");
            assert!(server.headnode);
            assert_eq!(stage.members.kept_in(), KeptIn::Members);
        }
    };
    assert!(exercise(make, control::flows::register, check).await >= 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_headnode_becomes_a_node_again_whatever_happens() {
    let make = async || {
        let stage = stage(KeptIn::Members).await;
        let control = &stage.world.control;
        stage.members.0.lock().expect("nobody panics with it").members.insert(stage.world.server, true);
        headnodes::register(control, stage.world.server, &announcement("one")).await.expect("a second headnode");
        let flows = headnodes::change(control, &remove(stage.world.server), &caller()).await.expect("it may");
        flow_world(stage, flows[0])
    };
    let check = async |scenario: &Scenario, flow_world: &FlowWorld<Control>, _: &flow::FlowRecord| {
        let stage = flow_world.helpers.downcast_ref::<Site>().expect("the stage");
        if scenario.fails {
            // Nothing fails once its member is out but where the harness makes it.
            assert_eq!(stage_of(stage), Some(Stage::Active), "{scenario:?}");
            return;
        }
        assert_eq!(stage_of(stage), None, "{scenario:?}");
        assert_eq!(stage.members.votes(), BTreeMap::from([(stage.head, true)]), "{scenario:?}");
        assert_eq!(role_of(stage).map(|role| role.wanted), Some(HeadnodeWanted::Absent));
    };
    assert!(exercise(make, control::flows::register, check).await >= 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused_with_the_reason() {
    let stage = stage(KeptIn::File).await;
    let (control, one, head) = (&stage.world.control, stage.world.server, stage.head);
    let refused = async |wanted: Wanted| match headnodes::change(control, &wanted, &caller()).await {
        Err(error @ (Error::Conflict(_) | Error::Invalid(_) | Error::NotFound { .. })) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(refused(add(control, one, false)).await.contains("would leave 2 headnodes"));
    assert!(refused(remove(head)).await.contains("the last headnode"));
    assert!(refused(add(control, head, true)).await.contains("a headnode already"));
    assert!(refused(add(control, ServerId::random(), true)).await.contains("does not exist"));
    assert!(refused(remove(one)).await.contains("does not exist"), "it is no headnode");
    let mut old = add(control, one, true);
    (old.add[0].fitness.etcd, old.add[0].fitness.release) = (Some("3.3.1".to_owned()), "0.9".to_owned());
    let why = refused(old).await;
    assert!(why.contains("3.3.1 is too old") && why.contains("version 0.9"), "both are told: {why}");
    let mut twice = add(control, one, false);
    twice.add.push(twice.add[0].clone());
    assert!(refused(twice).await.contains("named twice"));

    let namesake = ServerId::random();
    let new = NewServer { hostname: "head".into(), ..NewServer::default() };
    servers::register(control, namesake, new).await.unwrap();
    assert!(refused(add(control, namesake, true)).await.contains("is called head too"));
    let silent = ServerId::random();
    let new = NewServer { hostname: "silent".into(), ..NewServer::default() };
    servers::register(control, silent, new).await.unwrap();
    assert!(refused(add(control, silent, true)).await.contains("is not heard of"));

    // One at a time; no flow runs here, so the first stays open.
    headnodes::change(control, &add(control, one, true), &caller()).await.expect("it may");
    assert!(refused(remove(head)).await.contains("being changed already"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_machines_are_one_change_and_the_second_waits_for_the_first() {
    let stage = stage(KeptIn::Members).await;
    let control = &stage.world.control;
    let two = ServerId::random();
    let new = NewServer { hostname: "two".into(), ..NewServer::default() };
    servers::register(control, two, new).await.unwrap();
    let mut machine = Machine::new(&stage.world);
    (machine.id, machine.hostname) = (two, "two".to_owned());
    machine.report(&stage.world).await;
    let mut wanted = add(control, stage.world.server, false);
    wanted.add.push(Candidate { server: two, fitness: fit(control) });
    let flows = headnodes::change(control, &wanted, &caller()).await.expect("three are odd");
    assert_eq!(flows.len(), 2);
    let snapshot = control.snapshot();
    let second = snapshot.get(&flow::FLOWS, &flows[1].to_string()).unwrap();
    assert_eq!(second.input["after"], serde_json::json!(flows[0]));
    assert_eq!(second.subject, headnodes::SUBJECT);

    // Whoever asks for the same again follows the same flows; for anything else it is not.
    let one = stage.world.server;
    let begun = |add: &[ServerId], remove| headnodes::begun(&snapshot, add, remove);
    assert_eq!(begun(&[one, two], None), Some(flows.clone()));
    assert_eq!(begun(&[two, one], None), Some(flows));
    assert_eq!(begun(&[one], None), None);
    assert_eq!(begun(&[one, two], Some(stage.head)), None, "that one is still there");
    assert_eq!(begun(&[one, two], Some(ServerId::random())).map(|flows| flows.len()), Some(2), "and that one is gone");
    assert_eq!(begun(&[], Some(one)), None);
}
