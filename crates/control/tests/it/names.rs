//! Names follow what instances are, whoever publishes them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base::{
    clock::{Clock as _, ManualClock},
    shutdown::Shutdown,
};
use control::{
    Control, Error,
    accounts::{self, NewAccount, ProfileChange},
    instances::{self, CreateInstance, tags},
    names::{self, NamesConfig, ZoneConfig},
    tables::{NAMES, ZONES},
};
use model::{
    id::InstanceId,
    instance::TagValue,
    names::{Data, Zone},
    state::PublicState,
};
use store::Transaction;

use crate::world::{Choices, Machine, World, caller, config};

const ZONE: &str = "test-1.cns.example";
/// Real time anything may take here.
const PATIENCE: Duration = Duration::from_secs(20);

async fn world(names: NamesConfig) -> World {
    let world = World::with(Choices { names, ..Choices::default() }).await;
    enable(&world.control, world.owner, true).await;
    world
}

async fn enable(control: &Control, owner: model::id::AccountId, enabled: bool) {
    let change = ProfileChange { names_enabled: Some(enabled), ..ProfileChange::default() };
    accounts::update(control, owner, change).await.expect("the account is changed");
}

/// Publishes in the background until the guard goes.
fn publish(control: &Control) -> base::shutdown::Trigger {
    let (trigger, shutdown) = Shutdown::new();
    base::task::spawn("names", names::keep_published(control.clone(), shutdown));
    trigger
}

fn services(list: &str) -> BTreeMap<String, TagValue> {
    BTreeMap::from([("triton.cns.services".to_owned(), TagValue::Text(list.to_owned()))])
}

async fn serving(world: &World, machine: &mut Machine, name: &str, list: &str) -> InstanceId {
    let request = CreateInstance { tags: services(list), ..world.request(name) };
    let view = instances::create(&world.control, &caller(), world.owner, request).await.expect("it is asked for");
    machine.obey(world, view.instance.id).await;
    world.until(view.instance.id, |view| view.state == PublicState::Running && view.instance.flow.is_none()).await;
    view.instance.id
}

/// A world with a clock of its own, and one instance that serves `www`.
async fn with_a_service() -> (Arc<ManualClock>, World, Machine) {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let choices = Choices { clock: clock.clone(), names: NamesConfig::one(ZONE), ..Choices::default() };
    let world = World::with(choices).await;
    enable(&world.control, world.owner, true).await;
    let mut machine = Machine::new(&world);
    serving(&world, &mut machine, "web", "www").await;
    (clock, world, machine)
}

fn content(control: &Control) -> BTreeMap<String, Vec<Data>> {
    names::content(&control.snapshot(), ZONE)
}

fn serial(control: &Control, apex: &str) -> u32 {
    control.snapshot().get(&ZONES, apex).map_or(0, |zone| zone.serial)
}

/// Waits until the zone is as `wanted`.
async fn until(control: &Control, what: &str, wanted: impl Fn(&BTreeMap<String, Vec<Data>>) -> bool) {
    let mut changes = control.store.changes();
    let waiting = async {
        while !wanted(&content(control)) {
            changes.next().await;
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, waiting).await;
    outcome.unwrap_or_else(|_| panic!("{what}: {:#?}", content(control)));
}

#[tokio::test]
async fn names_follow_an_instances_life() {
    let world = world(NamesConfig::one(ZONE)).await;
    let _publisher = publish(&world.control);
    let mut machine = Machine::new(&world);
    let id = serving(&world, &mut machine, "web", "www:80").await;
    let has = |name: &'static str| move |content: &BTreeMap<String, Vec<Data>>| content.contains_key(name);
    let lacks = |name: &'static str| move |content: &BTreeMap<String, Vec<Data>>| !content.contains_key(name);
    until(&world.control, "it serves", has("www.svc.demo")).await;
    let address = world.view(id).instance.nics[0].ip.expect("an address");
    let web = content(&world.control);
    let expected = [Data::A(address), Data::Txt(id.to_string())];
    for name in ["web.inst.demo".to_owned(), format!("{id}.inst.demo"), format!("{id}.inst.{}", world.owner)] {
        assert_eq!(web.get(&name).map(Vec::as_slice), Some(expected.as_slice()), "{name}");
    }
    let target = format!("web.inst.demo.{ZONE}");
    let srv = Data::Srv { priority: 0, weight: 10, port: 80, target: target.clone() };
    assert!(web["www.svc.demo"].contains(&srv), "{web:#?}");
    let reverse = names::content(&world.control.snapshot(), "0.9.10.in-addr.arpa");
    assert_eq!(reverse[&address.octets()[3].to_string()], [Data::Ptr(target)]);
    assert!(names::of_instance(&world.control, id).contains(&format!("www.svc.demo.{ZONE}")));

    let before = serial(&world.control, ZONE);
    instances::stop(&world.control, &caller(), world.scope, id).await.expect("it is asked to stop");
    until(&world.control, "one that stops serves no more", lacks("www.svc.demo")).await;
    assert!(serial(&world.control, ZONE) > before);
    machine.obey(&world, id).await;
    world.until(id, |view| view.state == PublicState::Stopped && view.instance.flow.is_none()).await;
    assert!(has("web.inst.demo")(&content(&world.control)));
    instances::start(&world.control, &caller(), world.scope, id).await.expect("it is asked to start");
    machine.obey(&world, id).await;
    until(&world.control, "it serves again", has("www.svc.demo")).await;

    let said = tags::replace(&world.control, &caller(), world.scope, id, services("db:5432,www")).await;
    said.expect("other services");
    until(&world.control, "a new service", has("db.svc.demo")).await;
    assert!(!content(&world.control)["www.svc.demo"].contains(&srv));

    world.until(id, |view| view.instance.flow.is_none()).await;
    instances::rename(&world.control, &caller(), world.scope, id, "shop").await.expect("another name");
    until(&world.control, "a new name", has("shop.inst.demo")).await;
    assert!(lacks("web.inst.demo")(&content(&world.control)));

    enable(&world.control, world.owner, false).await;
    until(&world.control, "whoever wants none has none", BTreeMap::is_empty).await;
    enable(&world.control, world.owner, true).await;
    until(&world.control, "and has them again", has("db.svc.demo")).await;

    instances::delete(&world.control, &caller(), world.scope, id).await.expect("deleted");
    until(&world.control, "nothing is left", BTreeMap::is_empty).await;
    assert_eq!(world.control.snapshot().count(&NAMES), 0);
}

#[tokio::test]
async fn a_silent_machines_instances_leave_their_services_and_a_restart_brings_nothing_back() {
    let (clock, world, mut machine) = with_a_service().await;
    names::publish_all(&world.control).await.expect("published");
    assert!(content(&world.control).contains_key("www.svc.demo"));
    assert!(serial(&world.control, ZONE) >= 1_700_000_000);

    clock.advance(Duration::from_secs(31));
    let done = names::publish_all(&world.control).await.expect("published");
    assert_eq!(done.instances, 1);
    let silent = content(&world.control);
    assert!(!silent.contains_key("www.svc.demo") && silent.contains_key("web.inst.demo"), "{silent:#?}");

    // Another control plane over the same records has heard nobody yet.
    let mut second = config(&world.dir);
    second.names = NamesConfig::one(ZONE);
    let (_trigger, shutdown) = Shutdown::new();
    let restarted = Control::start(world.control.store.clone(), clock.clone(), second, shutdown);
    assert_eq!(names::publish_all(&restarted).await.expect("published").instances, 0, "it cannot tell yet");
    assert_eq!(content(&restarted), silent);
    clock.advance(Duration::from_secs(31));
    assert_eq!(names::publish_all(&restarted).await.expect("published").instances, 0, "now it knows the same");

    machine.report(&world).await;
    assert_eq!(names::publish_all(&world.control).await.expect("published").instances, 1);
    assert!(content(&world.control).contains_key("www.svc.demo"), "it was heard again");
}

#[tokio::test]
async fn a_machine_that_falls_silent_is_noticed_without_any_change() {
    let (clock, world, _machine) = with_a_service().await;
    let _publisher = publish(&world.control);
    until(&world.control, "it serves", |content| content.contains_key("www.svc.demo")).await;
    // Less time than until everything is looked at anyway.
    for _ in 0..40 {
        clock.advance(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let gone = async {
        let mut beyond = 0;
        while content(&world.control).contains_key("www.svc.demo") {
            if beyond < 100 {
                clock.advance(Duration::from_secs(1));
            }
            beyond += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("silence is noticed");
    assert!(content(&world.control).contains_key("web.inst.demo"));
}

#[tokio::test]
async fn what_is_wrong_is_refused_where_it_is_said() {
    let world = world(NamesConfig::one(ZONE)).await;
    let refused = |outcome: Result<_, Error>, field: &str, words: &str| match outcome {
        Err(Error::Invalid(fields)) => {
            assert!(fields.iter().any(|fault| fault.field == field && fault.message.contains(words)), "{fields:?}");
        }
        other => panic!("{field}: {:?}", other.map(|_: instances::InstanceView| ())),
    };
    let create = async |request| instances::create(&world.control, &caller(), world.owner, request).await;
    let request = CreateInstance { tags: services("web:http"), ..world.request("web") };
    refused(create(request).await, "tag.triton.cns.services", "service \"web\" has port \"http\"");
    let metadata = BTreeMap::from([("triton.cns.acme-challenge".to_owned(), "a+b".to_owned())]);
    let request = CreateInstance { metadata, ..world.request("web") };
    refused(create(request).await, "metadata.triton.cns.acme-challenge", "base64");
    refused(create(world.request(&"a".repeat(64))).await, "name", "triton_cns_enabled");
    let id = create(world.request("web")).await.expect("it is asked for").instance.id;
    for (list, words) in [("Web", "lower-case"), ("web:80:colour=red", "\"colour\"")] {
        let added = tags::add(&world.control, &caller(), world.scope, id, services(list)).await;
        refused(added, "tag.triton.cns.services", words);
        let replaced = tags::replace(&world.control, &caller(), world.scope, id, services(list)).await;
        refused(replaced, "tag.triton.cns.services", words);
    }
    let renamed = instances::rename(&world.control, &caller(), world.scope, id, &"a".repeat(64)).await;
    refused(renamed, "name", "triton_cns_enabled");
    enable(&world.control, world.owner, false).await;
    create(world.request(&"a".repeat(64))).await.expect("without names they may be long");
}

#[tokio::test]
async fn nobody_gets_into_anothers_services() {
    let world = world(NamesConfig::one(ZONE)).await;
    let mut machine = Machine::new(&world);
    let first = serving(&world, &mut machine, "web", "www").await;
    let new = NewAccount { login: "Demo".to_owned(), ..NewAccount::default() };
    let other = accounts::create(&world.control, new).await.expect("a login that becomes the same label").id;
    enable(&world.control, other, true).await;
    let request = CreateInstance { tags: services("www"), ..world.request("web") };
    let second = instances::create(&world.control, &caller(), other, request).await.expect("asked for").instance.id;
    while machine.told(second).is_none() {
        machine.fetch(&world).await;
    }
    machine.converge();
    machine.report(&world).await;
    names::publish_all(&world.control).await.expect("published");
    let zone = content(&world.control);
    let ids = |name: &str| -> Vec<Data> {
        let texts = zone[name].iter().filter(|data| matches!(data, Data::Txt(_)));
        texts.cloned().collect()
    };
    assert_eq!(ids("www.svc.demo"), [Data::Txt(first.to_string())]);
    assert_eq!(ids(&format!("www.svc.{other}")), [Data::Txt(second.to_string())]);
    let suffixes = names::suffixes(&world.control, other, &[world.network]);
    assert_eq!(suffixes, [vec![format!("svc.{other}.{ZONE}"), format!("inst.{other}.{ZONE}")]]);
    let names = names::of_instance(&world.control, second);
    assert!(!names.is_empty() && names.iter().all(|name| !name.contains(".demo.")), "{names:?}");
}

#[tokio::test]
async fn zones_list_networks_and_end_without_forgetting_their_serial() {
    let zone = |apex: &str, networks: &[&str]| ZoneConfig {
        apex: apex.to_owned(),
        networks: networks.iter().map(|network| (*network).to_owned()).collect(),
        clients: Vec::new(),
        name_servers: vec!["ns1.example".to_owned()],
        signed: false,
    };
    let listed = NamesConfig {
        zones: vec![zone("pub.example", &["external"]), zone(ZONE, &["*"]), zone("none.example", &["nowhere"])],
        ..NamesConfig::default()
    };
    let world = world(listed).await;
    let mut machine = Machine::new(&world);
    serving(&world, &mut machine, "web", "www").await;
    names::publish_all(&world.control).await.expect("published");
    let count = |apex: &str| names::content(&world.control.snapshot(), apex).len();
    assert_eq!((count(ZONE), count("none.example")), (0, 0), "its network is listed elsewhere");
    assert!(count("pub.example") > 0);
    let views = names::list(&world.control);
    let of = |apex: &str| views.iter().find(|view| view.zone.apex == apex).expect("a zone");
    assert_eq!((of("pub.example").instances, of(ZONE).instances), (1, 0));
    assert_eq!(of("0.9.10.in-addr.arpa").names, 1);

    let before = serial(&world.control, "pub.example");
    let mut without = config(&world.dir);
    without.names = NamesConfig::one(ZONE);
    let (_trigger, shutdown) = Shutdown::new();
    let other = Control::start(world.control.store.clone(), world.control.clock.clone(), without, shutdown);
    machine_heard(&other, &mut machine).await;
    names::publish_all(&other).await.expect("published");
    assert!(count(ZONE) > 0 && count("pub.example") == 0);
    assert!(names::show(&other, "pub.example").is_err(), "it is a zone no more");
    assert!(serial(&world.control, "pub.example") > before, "but its serial is remembered");
}

/// Has the machine report to another control plane too, so that this one knows its fate.
async fn machine_heard(control: &Control, machine: &mut Machine) {
    let report = machine.compose();
    control::servers::apply_report(control, machine.id, &report).await.expect("the report is taken");
}

#[tokio::test]
async fn many_changes_at_once_go_into_few_commits_also_while_serials_are_ahead_of_the_clock() {
    // A clock that stands still: soon every serial is further ahead than it may be, and each commit waits for a second.
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let choices = Choices { clock: clock.clone(), names: NamesConfig::one(ZONE), ..Choices::default() };
    let world = World::with(choices).await;
    enable(&world.control, world.owner, true).await;
    names::publish_all(&world.control).await.expect("published");
    let zone = world.control.snapshot().get(&ZONES, ZONE).expect("the zone");
    let ahead = Zone { serial: zone.serial + 10_000, ..zone.value.clone() };
    world
        .control
        .store
        .commit(Transaction::new().replace(&ZONES, &zone, ahead))
        .await
        .expect("a zone that changed often");
    let _publisher = publish(&world.control);
    for number in 0..30 {
        world.create(&format!("web-{number}")).await.expect("it is asked for");
    }
    let begun = clock.now_ms();
    let published = async {
        while world.control.snapshot().count(&NAMES) < 30 {
            clock.advance(Duration::from_millis(100));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, published).await.expect("all are published");
    let seconds = (clock.now_ms() - begun) / 1_000;
    assert!(seconds < 15, "one commit a second, and not one for each change: {seconds} s by the datacenter's clock");
}

#[tokio::test]
async fn two_publishers_at_once_do_no_harm() {
    let world = world(NamesConfig::one(ZONE)).await;
    let mut machine = Machine::new(&world);
    for number in 0..40 {
        let request = CreateInstance { tags: services("www:80"), ..world.request(&format!("web-{number}")) };
        instances::create(&world.control, &caller(), world.owner, request).await.expect("it is asked for");
    }
    machine.fetch(&world).await;
    while machine.target.as_ref().is_none_or(|target| target.zones.len() < 40) {
        machine.fetch(&world).await;
    }
    machine.converge();
    machine.report(&world).await;
    let (one, other) = tokio::join!(names::publish_all(&world.control), names::publish_all(&world.control));
    let (one, other) = (one.expect("published"), other.expect("published"));
    assert_eq!(one.instances + other.instances, 40, "each was published once: {one:?} {other:?}");
    let zone = content(&world.control);
    assert_eq!(zone["www.svc.demo"].iter().filter(|data| matches!(data, Data::A(_))).count(), 40);
    assert_eq!(names::publish_all(&world.control).await.expect("published"), names::Summary::default());
    // What one name has, read through the index, is what it has in the whole zone.
    let snapshot = world.control.snapshot();
    assert_eq!(names::data_of(&snapshot, ZONE, "www.svc.demo", None), zone["www.svc.demo"]);
}
