//! Placement through the control plane: many machines, many creates at once, rules of affinity, questions.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use base::shutdown::Shutdown;
use control::{
    Control, Error, FieldCode,
    instances::{self, CreateInstance, NetworkChoice, nics},
    networks::{
        self, NewNetwork,
        pools::{self, NewPool},
    },
    packages::{self, NewPackage},
    placement::{self, Question},
    servers::{self, NewServer, ServerChange},
};
use model::{
    id::{NetworkId, ServerId},
    instance::TagValue,
    layout::Layout,
    server::{Hardware, Trait},
    state::PublicState,
    target::Report,
    unit::Mib,
};
use store::{Store, memory::Memory};

use crate::world::{Choices, Machine, World, caller, network, package, start};

/// A machine of `memory` MiB that has reported.
async fn machine(control: &Control, number: u32, memory: u64) -> ServerId {
    wired(control, number, memory, None).await
}

/// One that says what it is wired to.
async fn wired(control: &Control, number: u32, memory: u64, nic_tags: Option<&[&str]>) -> ServerId {
    let id = ServerId::random();
    let new = NewServer { hostname: format!("m{number}"), ..NewServer::default() };
    servers::register(control, id, new).await.expect("a machine");
    let nic_tags = nic_tags.map(|tags| tags.iter().map(|tag| (*tag).to_owned()).collect());
    hear_of(control, id, number, memory, nic_tags).await;
    id
}

async fn hear_of(control: &Control, id: ServerId, number: u32, memory: u64, nic_tags: Option<BTreeSet<String>>) {
    let hardware = Hardware { memory: Mib(memory), cpus: 8, pool_size: Mib(1 << 20), nic_tags, ..Hardware::default() };
    let report = Report { hardware, ..Report::bare(id, format!("m{number}")) };
    servers::apply_report(control, id, &report).await.expect("it is taken in");
}

/// So many machines, and the one the world begins with closed.
async fn fleet(world: &World, count: u32) -> Vec<ServerId> {
    servers::set_accepts_instances(&world.control, world.server, false).await.expect("it is closed");
    let mut fleet = Vec::new();
    for number in 0..count {
        fleet.push(machine(&world.control, number, 8_192).await);
    }
    fleet
}

fn with_rules(world: &World, name: &str, rules: &[&str]) -> CreateInstance {
    CreateInstance { affinity: rules.iter().map(|rule| (*rule).to_owned()).collect(), ..world.request(name) }
}

async fn create(world: &World, request: CreateInstance) -> Result<ServerId, Error> {
    let view = instances::create(&world.control, &caller(), world.owner, request).await?;
    Ok(view.instance.server)
}

#[tokio::test]
async fn instances_kept_apart_never_share_a_machine_whoever_asks_at_once() {
    let world = World::new().await;
    fleet(&world, 64).await;
    let asks = (0..64).map(|number| create(&world, with_rules(&world, &format!("db{number}"), &["instance!=db*"])));
    let mut places: Vec<ServerId> = {
        let mut places = Vec::new();
        let mut asks: futures_util::stream::FuturesUnordered<_> = asks.collect();
        while let Some(place) = futures_util::StreamExt::next(&mut asks).await {
            places.push(place.expect("there is room"));
        }
        places
    };
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 64);
    let error = create(&world, with_rules(&world, "db64", &["instance!=db*"])).await.expect_err("all have one");
    assert_eq!(error.to_string(), "no machine can take it: 1 closed for new instances, 64 ruled out by affinity");
}

#[tokio::test]
async fn rules_see_tags_and_names_of_the_owners_living_instances() {
    let world = World::new().await;
    fleet(&world, 4).await;
    let web = CreateInstance {
        tags: BTreeMap::from([("role".to_owned(), TagValue::Text("web".to_owned()))]),
        ..world.request("web0")
    };
    let web = create(&world, web).await.expect("there is room");
    assert_eq!(create(&world, with_rules(&world, "cache", &["role==web"])).await.expect("there is room"), web);
    assert_ne!(create(&world, with_rules(&world, "far", &["role!=w*", "instance!=cache"])).await.expect("room"), web);
    let error = create(&world, with_rules(&world, "x", &["role==db"])).await.expect_err("nobody has that tag");
    assert!(error.to_string().ends_with("no instance of yours matches affinity rule \"role==db\""), "{error}");
    let error = create(&world, with_rules(&world, "x", &["instance==web0", "role!=web"])).await.expect_err("both");
    let Error::Invalid(fields) = &error else { panic!("{error}") };
    assert_eq!((fields[0].field.as_str(), fields[0].code), ("affinity", FieldCode::Conflict));
    assert!(error.to_string().contains("\"instance==web0\" and \"role!=web\" contradict each other"), "{error}");
    let error = create(&world, with_rules(&world, "x", &["instance=web0", "a==b"])).await.expect_err("no rules");
    let Error::Invalid(fields) = &error else { panic!("{error}") };
    assert_eq!(fields.len(), 2, "{error}");
}

#[tokio::test]
async fn machines_fill_evenly_and_a_resize_counts() {
    let world = World::new().await;
    let fleet = fleet(&world, 4).await;
    for number in 0..8 {
        create(&world, world.request(&format!("i{number}"))).await.expect("there is room");
    }
    for server in &fleet {
        let view = servers::get(&world.control, *server).expect("a machine");
        assert_eq!(view.server.reserved.instances, 2, "{}", view.server.hostname);
    }
}

#[tokio::test]
async fn a_question_makes_nothing_and_a_refusal_is_remembered() {
    let world = World::new().await;
    let fleet = fleet(&world, 2).await;
    let question = |count| Question {
        owner: world.owner,
        package: "small".to_owned(),
        networks: vec!["external".to_owned()],
        affinity: Vec::new(),
        count,
    };
    let explained = placement::explain(&world.control, &question(100)).expect("a good question");
    // 7,168 MiB a machine in shares of 256.
    assert_eq!(fleet.iter().map(|server| explained.fits[server]).collect::<Vec<_>>(), [28, 28]);
    assert_eq!(explained.left_over, 44);
    assert_eq!(explained.stages[0].refused[0].hostname, "one");
    assert_eq!(world.control.snapshot().count(&control::tables::INSTANCES), 0);
    let error = placement::explain(&world.control, &question(1_001)).expect_err("too many");
    assert!(error.to_string().starts_with("count: must be at most 1000"), "{error}");

    assert!(world.control.refusals.newest().is_empty());
    for server in fleet {
        servers::set_accepts_instances(&world.control, server, false).await.expect("it is closed");
    }
    create(&world, world.request("late")).await.expect_err("all are closed");
    let refused = &world.control.refusals.newest()[0];
    assert_eq!((refused.alias.as_str(), refused.stages["open"], refused.machines.len()), ("late", 3, 3));
}

/// A network of its own on a NIC tag, with so many addresses.
async fn on_tag(control: &Control, number: u8, tag: &str, addresses: u8) -> NetworkId {
    let base = network(&format!("{tag}-{number}"), Ipv4Addr::new(10, 40, number, 9 + addresses));
    let new = NewNetwork {
        nic_tag: tag.to_owned(),
        vlan: number.into(),
        host_gateway: false,
        layout: Layout {
            subnet: Some(format!("10.40.{number}.0/24").parse().expect("a subnet")),
            range_start: Some(Ipv4Addr::new(10, 40, number, 10)),
            gateway: None,
            ..base.layout
        },
        ..base
    };
    networks::create(control, new).await.expect("made").id
}

#[tokio::test]
async fn a_pools_network_is_chosen_with_the_machine_that_is_wired_to_it() {
    let world = World::new().await;
    let control = &world.control;
    servers::set_accepts_instances(control, world.server, false).await.expect("it is closed");
    let (one, two) = (on_tag(control, 1, "rack1", 2).await, on_tag(control, 2, "rack2", 3).await);
    let new = NewPool { name: "racks".to_owned(), networks: vec![one, two], ..NewPool::default() };
    let pool = NetworkId::new(pools::create(control, new).await.expect("made").pool.id.uuid());
    let small = wired(control, 1, 4_096, Some(&["rack1"])).await;
    let large = wired(control, 2, 65_536, Some(&["rack2"])).await;
    let asked = |name: &str, choices: &[NetworkId]| CreateInstance {
        networks: choices.iter().map(|id| NetworkChoice::any(*id)).collect(),
        ..world.request(name)
    };
    let made = async |request| {
        let view = instances::create(control, &caller(), world.owner, request).await?;
        Ok::<_, Error>((view.instance.server, view.networks().collect::<Vec<_>>(), view.instance.id))
    };
    // Named networks decide the machine.
    let (server, networks, _) = made(asked("a", &[one])).await.expect("there is room");
    assert_eq!((server, networks), (small, vec![one]));
    // The machine with more room left is in the second rack, so that is where the network is, though the pool names the first
    // one first.
    let (server, networks, id) = made(asked("b", &[pool])).await.expect("there is room");
    assert_eq!((server, networks), (large, vec![two]));
    let refused = made(asked("c", &[one, two])).await.expect_err("no machine is wired to both");
    let said = "no machine can take it: 1 closed for new instances, 2 not on the networks asked for";
    assert_eq!(refused.to_string(), said);
    // Another NIC is on what the instance's machine is wired to, if anything is.
    let mut machine = Machine::new(&world);
    machine.id = large;
    machine.obey(&world, id).await;
    world.until(id, |view| view.state == PublicState::Running && view.instance.flow.is_none()).await;
    hear_of(control, large, 2, 65_536, Some(["rack2".to_owned()].into())).await;
    let refused = nics::add(control, &caller(), world.scope, id, NetworkChoice::any(one)).await.expect_err("no wire");
    assert_eq!(refused.to_string(), "network: the instance's machine is not wired to network \"rack1-1\"");
    let refused = nics::add(control, &caller(), world.scope, id, NetworkChoice::any(pool)).await.expect_err("no wire");
    assert!(matches!(&refused, Error::NoAddress { network } if network == "racks"), "{refused}");
    // When the second rack's addresses are used up, the first rack's machine is taken, however full.
    for name in ["d", "e"] {
        assert_eq!(made(asked(name, &[pool])).await.expect("there is room").0, large);
    }
    let (server, networks, _) = made(asked("f", &[pool])).await.expect("one address is left");
    assert_eq!((server, networks), (small, vec![one]));
    let refused = made(asked("g", &[pool])).await.expect_err("nothing is left");
    assert!(matches!(&refused, Error::NoAddress { network } if network == "racks"), "{refused}");
    // A machine that is wired anew says so.
    let more = on_tag(control, 3, "rack1", 5).await;
    hear_of(control, large, 2, 65_536, Some(["rack1".to_owned()].into())).await;
    let (server, networks, _) = made(asked("h", &[more])).await.expect("the large machine is there too");
    assert_eq!((server, networks), (large, vec![more]));
    let question = Question {
        owner: world.owner,
        package: "small".to_owned(),
        networks: vec!["racks".to_owned()],
        affinity: Vec::new(),
        count: 1,
    };
    let refused = placement::explain(control, &question).expect_err("the pool is used up");
    assert!(matches!(refused, Error::NoAddress { .. }), "{refused}");
}

/// Two machines in a rack that take different packages, so that two placements have no record in common but the owner's turn.
#[tokio::test]
async fn two_headnodes_at_once_do_not_put_into_one_rack_what_is_kept_apart() {
    let engine: Arc<dyn store::Engine> = Arc::new(Memory::new());
    let world = World::with(Choices { over: Some(engine.clone()), flows: false, ..Choices::default() }).await;
    let (_trigger, shutdown) = Shutdown::new();
    let store = Store::open(engine, control::schema()).await.expect("a second headnode opens the store");
    let other = start(store, world.control.clock.clone(), &world.dir, shutdown);
    let flag = |name: &str| BTreeMap::from([(name.to_owned(), Trait::Flag(true))]);
    for name in ["x", "y"] {
        let new = NewPackage { traits: flag(name), ..package(name, 256) };
        packages::create(&world.control, new).await.expect("a package");
    }
    servers::set_accepts_instances(&world.control, world.server, false).await.expect("it is closed");
    for rack in 0..8 {
        for (number, name) in ["x", "y"].into_iter().enumerate() {
            // The lower the rack, the roomier: both headnodes begin with the same one.
            let (number, memory) = (rack * 2 + number as u32, 65_536 - u64::from(rack) * 2_048);
            let id = machine(&world.control, number, memory).await;
            let change = ServerChange { rack: Some(format!("r{rack}")), traits: flag(name), ..ServerChange::default() };
            servers::change(&world.control, id, change).await.expect("changed");
            hear_of(&other, id, number, memory, None).await;
        }
    }
    let racks: BTreeMap<ServerId, String> = servers::list(&world.control)
        .into_iter()
        .filter_map(|view| Some((view.server.id, view.server.rack.clone()?)))
        .collect();
    let mut places = Vec::new();
    for round in 0..4 {
        let ask = async |control: &Control, package: &str| {
            let request = with_rules(&world, &format!("db-{package}-{round}"), &["rack.instance!=db*"]);
            let request = CreateInstance { package: package.to_owned(), ..request };
            let view = instances::create(control, &caller(), world.owner, request).await.expect("there is room");
            racks[&view.instance.server].clone()
        };
        let (one, two) = tokio::join!(ask(&world.control, "x"), ask(&other, "y"));
        places.extend([one, two]);
    }
    let apart: BTreeSet<&String> = places.iter().collect();
    assert_eq!(apart.len(), places.len(), "two in one rack: {places:?}");
    let again = world.control.store.decided_again() + other.store.decided_again();
    assert!(again > 0, "they never met, so nothing was shown");
}

/// A second headnode over the records of `world`, which has heard of `fleet`.
async fn second_headnode(
    world: &World,
    engine: Arc<dyn store::Engine>,
    fleet: &[ServerId],
) -> (Control, base::shutdown::Trigger) {
    let (trigger, shutdown) = Shutdown::new();
    let store = Store::open(engine, control::schema()).await.expect("a second headnode opens the store");
    let other = start(store, world.control.clock.clone(), &world.dir, shutdown);
    for (number, id) in fleet.iter().enumerate() {
        hear_of(&other, *id, number as u32, 8_192, None).await;
    }
    (other, trigger)
}

/// Two headnodes create at once, so many each, round by round, each on one of two networks; how often a decision was made again.
async fn created_by_two(machines: u32, rounds: u32, together: usize, network_of: [usize; 2]) -> u64 {
    let engine: Arc<dyn store::Engine> = Arc::new(Memory::new());
    let world = World::with(Choices { over: Some(engine.clone()), flows: false, ..Choices::default() }).await;
    let fleet = fleet(&world, machines).await;
    let (other, _trigger) = second_headnode(&world, engine, &fleet).await;
    let again = || world.control.store.decided_again() + other.store.decided_again();
    let before = again();
    let networks =
        [on_tag(&world.control, 50, "external", 240).await, on_tag(&world.control, 51, "external", 240).await];
    let headnodes = [&world.control, &other];
    for round in 0..rounds {
        let asks = (0..together * 2).map(async |number| {
            let half = number % 2;
            let request = CreateInstance {
                networks: vec![NetworkChoice::any(networks[network_of[half]])],
                ..world.request(&format!("i{round}-{number}"))
            };
            instances::create(headnodes[half], &caller(), world.owner, request).await.expect("there is room")
        });
        futures_util::future::join_all(asks).await;
    }
    again() - before
}

#[tokio::test]
async fn two_headnodes_rarely_decide_for_the_same_machine() {
    let again = created_by_two(600, 20, 4, [0, 1]).await;
    // When all draw the same machine, one headnode of the two loses in each round: 80 of the 160 that are made. So many machines
    // that those still without an instance of the owner's stay many: they are the ones to draw from.
    assert!(again < 40, "{again} decisions were made again");
}

#[tokio::test]
async fn two_headnodes_part_ways_on_a_network_both_give_addresses_of() {
    let again = created_by_two(200, 40, 1, [0, 0]).await;
    assert!(again > 0, "they never met, so nothing was shown");
    // Without parting they meet in every round.
    assert!(again < 30, "{again} decisions were made again");
}
