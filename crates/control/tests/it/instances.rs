//! The life of an instance, as its tenant and its machine see it.

use control::{
    Error, FieldCode,
    instances::{self, CreateInstance, InstanceFilter, NetworkChoice},
};
use model::{
    id::InstanceId,
    instance::Wanted,
    state::PublicState,
    target::{Exit, GuestMetadata, ZoneState},
    time::Timestamp,
};

use crate::world::{Choices, Machine, World, caller};

#[tokio::test]
async fn from_request_to_running() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let view = world.create("web").await.expect("it is asked for");
    assert_eq!(view.state, PublicState::Provisioning);
    assert_eq!(view.primary_ip().map(|ip| ip.to_string()).as_deref(), Some("10.9.0.2"));
    let id = view.instance.id;
    machine.obey(&world, id).await;
    let view = world.until(id, |view| view.instance.flow.is_none()).await;
    assert_eq!(view.state, PublicState::Running);
    let phases: Vec<&str> = view.instance.timeline.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(phases, ["queued", "placed", "image", "dataset", "network", "zone start", "ready"]);
    let audit = instances::audit(&world.control, world.scope, id).expect("it has a history");
    assert_eq!((audit[0].action.as_str(), audit[0].success), ("provision", true));
    assert_eq!(audit[0].timeline, view.instance.timeline);
    assert_eq!(world.held(), (1, 256, 1, 1, 1));
}

#[tokio::test]
async fn a_short_id_makes_the_name() {
    let world = World::new().await;
    let request = CreateInstance { alias: Some("web-{{shortId}}".to_owned()), ..world.request("") };
    let view = instances::create(&world.control, &caller(), world.owner, request).await.expect("it is asked for");
    assert_eq!(view.instance.alias, format!("web-{}", view.instance.id.short()));
    let request = CreateInstance { alias: None, ..world.request("") };
    let view = instances::create(&world.control, &caller(), world.owner, request).await.expect("it is asked for");
    assert_eq!(view.instance.alias, view.instance.id.short());
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let world = World::new().await;
    let good = || world.request("x");
    let other = InstanceId::random().to_string();
    let cases = [
        (CreateInstance { alias: Some("a b".to_owned()), ..good() }, "name"),
        (CreateInstance { package: "huge".to_owned(), ..good() }, "package"),
        (CreateInstance { package: String::new(), ..good() }, "package"),
        (CreateInstance { image: other.clone(), ..good() }, "image"),
        (CreateInstance { brand: Some(model::instance::Brand::Kvm), ..good() }, "brand"),
        (CreateInstance { networks: vec![NetworkChoice::any(other.parse().expect("an id"))], ..good() }, "networks"),
        (CreateInstance { metadata: [("sdc:x".to_owned(), String::new())].into(), ..good() }, "metadata.sdc:x"),
    ];
    for (request, field) in cases {
        let error = instances::create(&world.control, &caller(), world.owner, request).await.expect_err(field);
        let Error::Invalid(faults) = error else { panic!("{field}: {error:?}") };
        assert_eq!(faults[0].field, field);
    }
    assert_eq!(world.held(), (0, 0, 0, 0, 0), "nothing is left of refused requests");
}

#[tokio::test]
async fn a_failure_says_why_and_gives_everything_back() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.create("web").await.expect("it is asked for").instance.id;
    machine.broken.insert(id);
    machine.obey(&world, id).await;
    let view = world.until(id, |view| view.state == PublicState::Failed).await;
    assert_eq!(view.instance.failure.as_deref(), Some("the pool is full"));
    assert_eq!(world.held(), (1, 256, 1, 1, 1), "its machine may still have something of it");
    machine.obey(&world, id).await;
    let view = world.until(id, |view| view.instance.released).await;
    assert_eq!(view.state, PublicState::Failed);
    assert_eq!(world.held(), (0, 0, 0, 0, 1), "the name stays with the record");
    let audit = instances::audit(&world.control, world.scope, id).expect("it has a history");
    assert_eq!((audit[0].success, audit[0].error.as_deref()), (false, Some("the pool is full")));
    instances::delete(&world.control, &caller(), world.scope, id).await.expect("it can be deleted");
    assert_eq!(world.view(id).state, PublicState::Deleted);
    assert_eq!(world.held(), (0, 0, 0, 0, 0));
    machine.fetch(&world).await;
    assert!(machine.told(id).is_none(), "its machine is not told of it any more");
}

#[tokio::test]
async fn deleted_while_it_is_made() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.create("web").await.expect("it is asked for").instance.id;
    machine.fetch(&world).await;
    instances::delete(&world.control, &caller(), world.scope, id).await.expect("it can be deleted");
    // Its machine says that nothing is there, but under a target that told it to make it.
    machine.zones.insert(id, crate::world::blank());
    machine.report(&world).await;
    assert_eq!(world.held(), (1, 256, 1, 1, 1), "the address is not given to anybody while it may still be made");
    machine.obey(&world, id).await;
    let view = world.until(id, |view| view.instance.flow.is_none()).await;
    assert_eq!(view.state, PublicState::Deleted);
    assert_eq!(view.instance.failure, None);
    assert_eq!(world.held(), (0, 0, 0, 0, 0));
    let view = world.until(id, |view| view.instance.history.len() == 2).await;
    let words: Vec<_> = view.instance.history.iter().map(|entry| (entry.action.as_str(), entry.success)).collect();
    assert_eq!(words, [("provision", false), ("destroy", true)]);
}

#[tokio::test]
async fn made_again_by_a_machine_that_was_behind() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    let running = machine.zones[&id].clone();
    instances::delete(&world.control, &caller(), world.scope, id).await.expect("it can be deleted");
    machine.obey(&world, id).await;
    assert_eq!(world.view(id).state, PublicState::Deleted);
    machine.fetch(&world).await;
    assert!(machine.told(id).is_none());
    machine.zones.insert(id, running);
    machine.report(&world).await;
    machine.fetch(&world).await;
    assert_eq!(machine.told(id).map(|zone| zone.wanted), Some(Wanted::Absent), "it is told once more");
    machine.converge();
    machine.report(&world).await;
    machine.fetch(&world).await;
    assert!(machine.told(id).is_none());
    assert_eq!(world.view(id).state, PublicState::Deleted);
}

#[tokio::test]
async fn deleting_twice_and_looking_afterwards() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    for _ in 0..2 {
        let view = instances::delete(&world.control, &caller(), world.scope, id).await.expect("again is no error");
        assert_eq!(view.state, PublicState::Stopping);
    }
    machine.obey(&world, id).await;
    world.until(id, |view| view.instance.flow.is_none()).await;
    let gone = instances::get(&world.control, world.scope, id).expect_err("it is gone");
    assert!(matches!(gone, Error::Gone(_)), "{gone:?}");
    let gone = instances::delete(&world.control, &caller(), world.scope, id).await.expect_err("it is gone");
    assert!(matches!(gone, Error::Gone(_)), "{gone:?}");
    let list = |filter| instances::list(&world.control, world.scope, &filter, 100, 0).len();
    assert_eq!(list(InstanceFilter::default()), 0);
    assert_eq!(list(InstanceFilter { state: Some(PublicState::Deleted), ..InstanceFilter::default() }), 1);
    assert_eq!(list(InstanceFilter { tombstone_ms: Some(60_000), ..InstanceFilter::default() }), 1);
    world.create("web").await.expect("the name is free again");
}

#[tokio::test]
async fn protection() {
    let world = World::new().await;
    let request = CreateInstance { deletion_protection: true, ..world.request("web") };
    let view = instances::create(&world.control, &caller(), world.owner, request).await.expect("it is asked for");
    let id = view.instance.id;
    let refused = instances::delete(&world.control, &caller(), world.scope, id).await.expect_err("it is protected");
    assert!(matches!(refused, Error::DeletionProtected));
    for _ in 0..2 {
        instances::set_deletion_protection(&world.control, &caller(), world.scope, id, false).await.expect("off");
    }
    assert_eq!(world.view(id).instance.history.len(), 1, "doing it again is no event");
    instances::delete(&world.control, &caller(), world.scope, id).await.expect("it can be deleted");
}

#[tokio::test]
async fn stop_start_reboot() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    let early = instances::start(&world.control, &caller(), world.scope, id).await.expect_err("it runs");
    assert!(matches!(early, Error::InvalidState { verb: "start", .. }), "{early:?}");
    let view = instances::stop(&world.control, &caller(), world.scope, id).await.expect("it can be stopped");
    assert_eq!(view.state, PublicState::Stopping);
    machine.obey(&world, id).await;
    world.until(id, |view| view.state == PublicState::Stopped && view.instance.flow.is_none()).await;
    let off = instances::reboot(&world.control, &caller(), world.scope, id).await.expect_err("it is off");
    assert!(matches!(off, Error::InvalidState { verb: "reboot", .. }), "{off:?}");
    instances::start(&world.control, &caller(), world.scope, id).await.expect("it can be started");
    machine.obey(&world, id).await;
    world.until(id, |view| view.state == PublicState::Running && view.instance.flow.is_none()).await;
    instances::reboot(&world.control, &caller(), world.scope, id).await.expect("it can be rebooted");
    machine.obey(&world, id).await;
    let view = world.until(id, |view| view.instance.flow.is_none()).await;
    let words: Vec<_> = view.instance.history.iter().map(|entry| (entry.action.as_str(), entry.success)).collect();
    assert_eq!(words, [("provision", true), ("stop", true), ("start", true), ("reboot", true)]);
}

#[tokio::test]
async fn a_stop_overtaken_by_a_start() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    instances::stop(&world.control, &caller(), world.scope, id).await.expect("it can be stopped");
    instances::start(&world.control, &caller(), world.scope, id).await.expect("it can be started at once");
    machine.obey(&world, id).await;
    let view = world.until(id, |view| view.instance.flow.is_none() && view.instance.history.len() == 3).await;
    assert_eq!(view.state, PublicState::Running);
    let words: Vec<_> = view.instance.history.iter().map(|entry| (entry.action.as_str(), entry.success)).collect();
    assert_eq!(words, [("provision", true), ("stop", false), ("start", true)]);
}

#[tokio::test]
async fn one_that_ends_by_itself_is_stopped_and_can_be_started() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    let fact = machine.zones.get_mut(&id).expect("it is there");
    fact.state = ZoneState::Stopped;
    fact.exit = Some(Exit {
        at: Timestamp(5),
        code: Some(1),
        signal: None,
        reason: "exited with code 1".to_owned(),
        asked: false,
    });
    machine.report(&world).await;
    assert_eq!(world.view(id).state, PublicState::Stopped);
    instances::start(&world.control, &caller(), world.scope, id).await.expect("it can be started");
    machine.obey(&world, id).await;
    world.until(id, |view| view.state == PublicState::Running && view.instance.flow.is_none()).await;
}

#[tokio::test]
async fn names_are_unique_within_an_account() {
    let world = World::new().await;
    world.create("web").await.expect("the first");
    let second = world.create("web").await.expect_err("the name is taken");
    let Error::Invalid(faults) = second else { panic!("{second:?}") };
    assert_eq!((faults[0].field.as_str(), faults[0].code), ("name", FieldCode::Conflict));
    let other = world.create("db").await.expect("another name").instance.id;
    let clash = instances::rename(&world.control, &caller(), world.scope, other, "web").await.expect_err("taken");
    assert!(matches!(clash, Error::Invalid(_)));
    instances::rename(&world.control, &caller(), world.scope, other, "db-2").await.expect("it can be renamed");
    world.create("db").await.expect("the old name is free");
}

#[tokio::test]
async fn a_full_network_says_so() {
    let world = World::with(Choices { last_address: 4, ..Choices::default() }).await;
    for name in ["a", "b", "c"] {
        world.create(name).await.expect("there is room");
    }
    let full = world.create("d").await.expect_err("there are three addresses");
    assert_eq!(full.to_string(), "network \"external\" has no free address left; free some or use another network");
    assert_eq!(world.held(), (3, 768, 3, 3, 3));
}

#[tokio::test]
async fn no_room_says_so() {
    let world = World::new().await;
    control::servers::set_accepts_instances(&world.control, world.server, false).await.expect("closed");
    let refused = world.create("web").await.expect_err("there is no machine");
    assert_eq!(refused.to_string(), "no machine can take it: 1 closed for new instances");
}

#[tokio::test]
async fn resize_in_both_outcomes() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    instances::resize(&world.control, &caller(), world.scope, id, "large").await.expect("it can be resized");
    assert_eq!(world.held().1, 512);
    while machine.told(id).is_none_or(|zone| zone.package_name != "large") {
        machine.fetch(&world).await;
    }
    machine.converge();
    machine.report(&world).await;
    let view = world.until(id, |view| view.instance.flow.is_none()).await;
    assert_eq!(view.instance.package_name, "large");
    instances::resize(&world.control, &caller(), world.scope, id, "small").await.expect("it can be resized");
    assert_eq!(world.held().1, 512, "nobody is given the room before it is free");
    machine.broken.insert(id);
    machine.fetch(&world).await;
    machine.converge();
    machine.report(&world).await;
    let view = world.until(id, |view| view.instance.flow.is_none()).await;
    assert_eq!(view.instance.package_name, "large", "a resize that failed changes nothing");
    assert_eq!(world.held().1, 512);
    assert_eq!(view.instance.history.last().map(|entry| entry.success), Some(false));
    // One that comes to be frees it in the commit that says so.
    instances::resize(&world.control, &caller(), world.scope, id, "small").await.expect("it can be resized");
    machine.broken.remove(&id);
    while machine.told(id).is_none_or(|zone| zone.package_name != "small") {
        machine.fetch(&world).await;
    }
    assert_eq!(world.held().1, 512);
    machine.converge();
    machine.report(&world).await;
    assert_eq!(world.held().1, 256);
    let view = world.until(id, |view| view.instance.flow.is_none()).await;
    assert_eq!(view.instance.package_name, "small");
}

#[tokio::test]
async fn guests_change_their_metadata() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    let change = |sequence, key: &str, value: Option<&str>| GuestMetadata {
        sequence,
        key: key.to_owned(),
        value: value.map(str::to_owned),
    };
    let fact = machine.zones.get_mut(&id).expect("it is there");
    fact.guest_metadata = vec![
        change(1, "a", Some("1")),
        change(2, "b", Some("2")),
        change(3, "a", None),
        change(4, "sdc:x", Some("no")),
    ];
    machine.report(&world).await;
    machine.report(&world).await;
    let view = world.view(id);
    assert_eq!(view.instance.metadata, [("b".to_owned(), "2".to_owned())].into());
    assert_eq!(view.instance.guest_metadata_seen, 4);
    machine.fetch(&world).await;
    assert_eq!(
        machine.told(id).map(|zone| zone.guest_metadata_seen),
        Some(4),
        "the machine hears that it was taken over"
    );
}

#[tokio::test]
async fn a_report_that_says_nothing_new_is_not_written() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    let before = world.control.snapshot().revision();
    for state in [ZoneState::Running, ZoneState::Stopping, ZoneState::Starting, ZoneState::Running] {
        machine.zones.get_mut(&id).expect("it is there").state = state;
        machine.report(&world).await;
    }
    assert_eq!(world.control.snapshot().revision(), before);
}

#[tokio::test]
async fn a_silent_machine_takes_its_instances_offline() {
    let clock = base::clock::ManualClock::new(1_000_000);
    let clock = std::sync::Arc::new(clock);
    let world = World::with(Choices { clock: clock.clone(), ..Choices::default() }).await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    clock.advance(std::time::Duration::from_secs(29));
    assert_eq!(world.view(id).state, PublicState::Running);
    clock.advance(std::time::Duration::from_secs(2));
    let view = world.view(id);
    assert_eq!(view.state, PublicState::Offline);
    assert_eq!(view.last_seen_at, Some(Timestamp(1_000_000)));
    let refused = world.create("db").await.expect_err("nobody would make it");
    assert_eq!(refused.to_string(), "no machine can take it: 1 not reachable");
    machine.report(&world).await;
    assert_eq!(world.view(id).state, PublicState::Running);
}

#[tokio::test]
async fn a_provision_nobody_answers_is_given_up() {
    let clock = std::sync::Arc::new(base::clock::ManualClock::new(1_000_000));
    let world = World::with(Choices { clock: clock.clone(), ..Choices::default() }).await;
    let id = world.create("web").await.expect("it is asked for").instance.id;
    // The flow notes when it began to wait; only then does time count for it.
    let mut changes = world.control.store.changes();
    let ended = async {
        while world.view(id).instance.failure.is_none() {
            clock.advance(std::time::Duration::from_secs(60));
            let _ = tokio::time::timeout(std::time::Duration::from_millis(5), changes.next()).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), ended).await.expect("it is given up");
    let view = world.view(id);
    assert_eq!((view.state, view.instance.intent.wanted), (PublicState::Failed, Wanted::Absent));
}

#[tokio::test]
async fn lists_filter_and_page() {
    let world = World::new().await;
    for number in 0..25 {
        let mut request = world.request(&format!("web-{number}"));
        request.tags.insert("number".to_owned(), model::instance::TagValue::Number(number.into()));
        instances::create(&world.control, &caller(), world.owner, request).await.expect("it is asked for");
    }
    let list = |filter: &InstanceFilter, limit, offset| {
        let views = instances::list(&world.control, world.scope, filter, limit, offset);
        views.iter().map(|view| view.instance.alias.clone()).collect::<Vec<_>>()
    };
    let all = InstanceFilter::default();
    let mut paged: Vec<String> = (0..3).flat_map(|page| list(&all, 10, page * 10)).collect();
    assert_eq!(paged.len(), 25);
    paged.sort();
    paged.dedup();
    assert_eq!(paged.len(), 25, "no instance is on two pages");
    let named = InstanceFilter { name: Some("web-7".to_owned()), ..InstanceFilter::default() };
    assert_eq!(list(&named, 10, 0), ["web-7"]);
    let tagged = InstanceFilter { tags: vec![("number".to_owned(), "7".to_owned())], ..InstanceFilter::default() };
    assert_eq!(list(&tagged, 10, 0), ["web-7"]);
    let any = InstanceFilter { tags: vec![("number".to_owned(), "*".to_owned())], ..InstanceFilter::default() };
    assert_eq!(list(&any, 100, 0).len(), 25);
    let running = InstanceFilter { state: Some(PublicState::Running), ..InstanceFilter::default() };
    assert!(list(&running, 10, 0).is_empty());
    let stranger = control::Scope::Account(model::id::AccountId::random());
    assert!(instances::list(&world.control, stranger, &all, 10, 0).is_empty());
}

#[tokio::test]
async fn tags_and_metadata() {
    use control::instances::{metadata, tags};
    use model::instance::TagValue;
    let world = World::new().await;
    let id = world.create("web").await.expect("it is asked for").instance.id;
    let (control, scope, who) = (&world.control, world.scope, caller());
    let one = |key: &str| [(key.to_owned(), TagValue::Bool(true))].into();
    tags::add(control, &who, scope, id, one("a")).await.expect("added");
    tags::add(control, &who, scope, id, one("b")).await.expect("added");
    assert_eq!(tags::get(control, scope, id).expect("tags").len(), 2);
    tags::delete_one(control, &who, scope, id, "a").await.expect("removed");
    let missing = tags::delete_one(control, &who, scope, id, "a").await.expect_err("it is gone");
    assert!(matches!(missing, Error::NotFound { what: "tag", .. }));
    tags::replace(control, &who, scope, id, one("c")).await.expect("replaced");
    assert_eq!(tags::get(control, scope, id).expect("tags"), one("c"));
    tags::delete_all(control, &who, scope, id).await.expect("removed");
    let bad = tags::add(control, &who, scope, id, one("docker:x")).await.expect_err("reserved");
    assert!(matches!(bad, Error::Invalid(_)));
    metadata::add(control, &who, scope, id, [("k".to_owned(), "v".to_owned())].into()).await.expect("added");
    assert_eq!(metadata::get(control, scope, id).expect("metadata").len(), 1);
    metadata::delete_one(control, &who, scope, id, "k").await.expect("removed");
    assert!(metadata::get(control, scope, id).expect("metadata").is_empty());
}
