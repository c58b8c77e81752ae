//! Placement through the control plane: many machines, many creates at once, rules of affinity, questions.

use std::collections::BTreeMap;

use control::{
    Control, Error, FieldCode,
    instances::{self, CreateInstance},
    placement::{self, Question},
    servers::{self, NewServer},
};
use model::{id::ServerId, instance::TagValue, server::Hardware, target::Report, unit::Mib};

use crate::world::{World, caller};

/// A machine of `memory` MiB that has reported.
async fn machine(control: &Control, number: u32, memory: u64) -> ServerId {
    let id = ServerId::random();
    let new = NewServer { hostname: format!("m{number}"), ..NewServer::default() };
    servers::register(control, id, new).await.expect("a machine");
    let report = Report {
        server: id,
        sequence: 1,
        hostname: format!("m{number}"),
        boot_id: "boot".to_owned(),
        target_seen: 0,
        firewall_seen: 0,
        untold_addresses: std::collections::BTreeMap::new(),
        hardware: Hardware { memory: Mib(memory), cpus: 8, pool_size: Mib(1 << 20), ..Hardware::default() },
        zones: BTreeMap::new(),
        images: Vec::new(),
        underlay: None,
        outside: None,
        leaving: false,
    };
    servers::apply_report(control, id, &report).await.expect("it is taken in");
    id
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
