//! What machines are told.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use base::shutdown::Shutdown;
use control::{accounts::keys, instances, servers};
use model::{
    delta::{Held, TargetNews},
    id::InstanceId,
    instance::Wanted,
    state::PublicState,
    target::{Target, ZoneFact, ZoneState},
};

use crate::world::{Machine, World, caller, start};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChWuICtWsDLLf3lpEfHpVlJ3YRcwTc5nhP7XFyOs me@here";

/// The document that is kept up to date says what one made from nothing says.
async fn check_against_records(world: &World, machine: &Machine) {
    let fresh = servers::target_for(&world.control.config, &world.control.snapshot(), world.server).expect("known");
    let kept = machine.target.clone().expect("fetched");
    assert!(fresh.generation >= kept.generation, "a restart never tells an older generation");
    assert_eq!(model::target::Target { generation: kept.generation, ..fresh }, kept);
}

#[tokio::test]
async fn documents_follow_the_records() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    check_against_records(&world, &machine).await;
    keys::add(&world.control, world.owner, None, KEY).await.expect("added");
    machine.fetch(&world).await;
    check_against_records(&world, &machine).await;
    let told = machine.told(id).expect("it is told");
    assert_eq!(told.metadata.get("root_authorized_keys").map(String::as_str), Some(format!("{KEY}\n").as_str()));
    assert_eq!(told.nics[0].address.map(|net| net.to_string()).as_deref(), Some("10.9.0.2/24"));
    assert_eq!(told.nics[0].gateway.map(|ip| ip.to_string()).as_deref(), Some("10.9.0.1"));
    assert_eq!(told.hostname, "web");
    let name = keys::list(&world.control, world.owner)[0].name.clone();
    keys::remove(&world.control, world.owner, &name).await.expect("removed");
    machine.fetch(&world).await;
    check_against_records(&world, &machine).await;
    assert!(machine.told(id).expect("it is told").metadata.is_empty());
    instances::rename(&world.control, &caller(), world.scope, id, "a_b").await.expect("renamed");
    machine.fetch(&world).await;
    check_against_records(&world, &machine).await;
    assert_eq!(machine.told(id).expect("it is told").hostname, id.to_string(), "not every name is a host name");
    instances::delete(&world.control, &caller(), world.scope, id).await.expect("deleted");
    machine.fetch(&world).await;
    assert_eq!(machine.told(id).map(|zone| zone.wanted), Some(Wanted::Absent));
    machine.converge();
    machine.report(&world).await;
    machine.fetch(&world).await;
    check_against_records(&world, &machine).await;
    assert!(machine.target.as_ref().is_some_and(|target| target.zones.is_empty() && target.networks.is_empty()));
}

#[tokio::test]
async fn a_target_is_read_as_it_was_written() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    world.running(&mut machine, "web").await;
    let target = servers::watch_target(&world.control, world.server, 0).await.expect("known").expect("one");
    let text = serde_json::to_string(&target).expect("it is JSON");
    let read: model::target::Target = serde_json::from_str(&text).expect("it is a target");
    assert_eq!((&read, read.digest()), (&target, target.digest()));
    assert!(!read.zones.is_empty() && !read.networks.is_empty() && !read.images.is_empty());
}

#[tokio::test]
async fn facts_are_not_told_back() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    let generation = machine.target.as_ref().expect("fetched").generation;
    let waiting = servers::watch_target(&world.control, world.server, generation);
    tokio::pin!(waiting);
    machine.zones.get_mut(&id).expect("it is there").started_at = Some(model::time::Timestamp(9));
    machine.report(&world).await;
    // The tag comes later than the fact; so the next document is the tag's, and nothing was told in between.
    let tag = [("a".to_owned(), model::instance::TagValue::Bool(true))].into();
    instances::tags::add(&world.control, &caller(), world.scope, id, tag).await.expect("tagged");
    let target = tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("in time");
    let target = target.expect("known").expect("newer");
    assert_eq!(target.generation, world.control.snapshot().revision().0);
    assert_eq!(target.zones[&id].tags.len(), 1);
}

#[tokio::test]
async fn generations_never_fall_over_a_restart() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    world.running(&mut machine, "web").await;
    let id = world.running(&mut machine, "db").await;
    instances::delete(&world.control, &caller(), world.scope, id).await.expect("deleted");
    machine.obey(&world, id).await;
    machine.fetch(&world).await;
    let before = machine.target.clone().expect("fetched");
    let (_trigger, shutdown) = Shutdown::new();
    let again = start(world.control.store.clone(), world.control.clock.clone(), &world.dir, shutdown);
    let target = servers::watch_target(&again, world.server, 0).await.expect("known").expect("there is one");
    assert!(target.generation >= before.generation);
    assert_eq!(target.zones, before.zones);
}

#[tokio::test]
async fn strangers_are_refused() {
    let world = World::new().await;
    let stranger = model::id::ServerId::random();
    assert!(servers::watch_target(&world.control, stranger, 0).await.is_err());
    let report = Machine::new(&world).compose();
    assert!(servers::apply_report(&world.control, stranger, &report).await.is_err(), "a report of another machine");
    let mut foreign = report;
    foreign.server = stranger;
    assert!(servers::apply_report(&world.control, stranger, &foreign).await.is_err(), "nobody knows this machine");
    world.create("web").await.expect("it is asked for");
    assert!(
        servers::forget(&world.control, world.server, &BTreeSet::new(), &caller()).await.is_err(),
        "it has an instance"
    );
}

#[tokio::test]
async fn generations_do_not_fall_after_a_root_came_back_and_went_again() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    let there = machine.zones[&id].clone();
    instances::delete(&world.control, &caller(), world.scope, id).await.expect("it can be deleted");
    machine.obey(&world, id).await;
    world.until(id, |view| view.state == PublicState::Deleted).await;
    machine.fetch(&world).await;
    assert_eq!(machine.told(id), None, "it is gone");
    // As when power is lost right after its root was removed: the pool has it again.
    machine.zones.insert(id, ZoneFact { state: ZoneState::Stopped, ..there });
    machine.report(&world).await;
    machine.fetch(&world).await;
    assert_eq!(machine.told(id).map(|zone| zone.wanted), Some(Wanted::Absent), "told to go once more");
    machine.converge();
    machine.report(&world).await;
    machine.fetch(&world).await;
    assert_eq!(machine.told(id), None);
    let seen = machine.target.as_ref().map_or(0, |target| target.generation);
    let (_trigger, shutdown) = Shutdown::new();
    let again = start(world.control.store.clone(), world.control.clock.clone(), &world.dir, shutdown);
    let after = servers::watch_target(&again, world.server, 0).await.expect("known").expect("there is one");
    assert!(after.generation >= seen, "{} after a restart, {seen} before", after.generation);
}

#[tokio::test]
async fn a_machine_that_lived_through_a_later_history_listens_again() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    // As after a restore of an older store: the machine has seen generations that were never made here, started the instance
    // more often, and runs one that nobody knows.
    let (target, stranger) = (machine.target.as_mut().expect("fetched"), InstanceId::random());
    target.generation += 1_000;
    let seen = target.generation;
    let fact = machine.zones.get_mut(&id).expect("it is there");
    fact.starts_done += 7;
    let (starts, unknown) = (fact.starts_done, fact.clone());
    machine.zones.insert(stranger, unknown);
    machine.untold.insert(stranger, vec![(world.network, Ipv4Addr::new(10, 9, 0, 3).into())]);
    machine.report(&world).await;
    machine.fetch(&world).await;
    assert!(machine.target.as_ref().is_some_and(|target| target.generation > seen));
    assert_eq!(servers::get(&world.control, world.server).expect("known").strangers, [stranger]);
    assert_eq!(world.view(id).instance.intent.starts, starts, "starts are counted on from what was done");
    machine.converge();
    machine.report(&world).await;
    instances::stop(&world.control, &caller(), world.scope, id).await.expect("it is asked to stop");
    machine.obey(&world, id).await;
    world.until(id, |view| view.state == PublicState::Stopped).await;

    // The next address would be the stranger's.
    let other = world.running(&mut machine, "db").await;
    assert_eq!(world.view(other).instance.nics[0].ip, Some(Ipv4Addr::new(10, 9, 0, 4)));
    assert!(machine.zones.contains_key(&stranger), "nobody told the machine to remove it");
    check_against_records(&world, &machine).await;

    let (_trigger, shutdown) = Shutdown::new();
    let again = start(world.control.store.clone(), world.control.clock.clone(), &world.dir, shutdown);
    let after = servers::watch_target(&again, world.server, 0).await.expect("known").expect("there is one");
    assert!(after.generation >= machine.target.as_ref().map_or(0, |target| target.generation), "also over a restart");
}

/// The next document, as a machine that holds `target` is told it.
async fn news(world: &World, target: &Target) -> TargetNews {
    let held = Held { generation: target.generation, digest: Some(target.digest()) };
    let news = tokio::time::timeout(Duration::from_secs(10), servers::watch_news(&world.control, world.server, held));
    news.await.expect("in time").expect("known").expect("newer")
}

#[tokio::test]
async fn who_holds_the_document_before_is_told_what_is_new() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    world.running(&mut machine, "web").await;
    world.running(&mut machine, "db").await;
    // Up to here the machine asked without saying what it holds, so this one is whole.
    let told = machine.target.clone().expect("fetched");
    let tag = |name: &str| [(name.to_owned(), model::instance::TagValue::Bool(true))].into();
    let id = *told.zones.keys().next().expect("two");
    instances::tags::add(&world.control, &caller(), world.scope, id, tag("a")).await.expect("tagged");
    let TargetNews::Whole(first) = news(&world, &told).await else { panic!("nothing was sent that could be held") };

    instances::tags::add(&world.control, &caller(), world.scope, id, tag("b")).await.expect("tagged");
    let TargetNews::Delta(delta) = news(&world, &first).await else { panic!("the one before is known") };
    assert_eq!(delta.zones.put.keys().collect::<Vec<_>>(), [&id], "one changed");
    assert!(delta.networks.is_empty() && delta.images.is_empty());
    let second = delta.apply(&first).expect("it follows");
    // The answer was lost: the machine asks again with what it has.
    instances::tags::add(&world.control, &caller(), world.scope, id, tag("c")).await.expect("tagged");
    let TargetNews::Delta(again) = news(&world, &first).await else { panic!("an earlier one is known too") };
    machine.target = Some(again.apply(&first).expect("it follows"));
    check_against_records(&world, &machine).await;
    let TargetNews::Delta(next) = news(&world, &second).await else { panic!("all that were sent lately are known") };
    assert_eq!(next.apply(&second).as_ref(), Ok(machine.target.as_ref().expect("fetched")));

    // Another headnode, or this one after a restart, made the same document and knows it by what it says.
    let held = machine.target.clone().expect("fetched");
    let (_trigger, shutdown) = Shutdown::new();
    let control = start(world.control.store.clone(), world.control.clock.clone(), &world.dir, shutdown);
    let asked = Held { generation: held.generation - 1, digest: Some(held.digest()) };
    let same = servers::watch_news(&control, world.server, asked).await.expect("known").expect("newer");
    let TargetNews::Delta(nothing) = same else { panic!("it is what the machine holds") };
    assert!(nothing.zones.is_empty() && nothing.generation >= held.generation);
    // But of one that it never made, it cannot tell the difference.
    let strange = Held { generation: held.generation - 1, digest: Some(first.digest()) };
    let whole = servers::watch_news(&control, world.server, strange).await.expect("known").expect("newer");
    assert!(matches!(whole, TargetNews::Whole(_)));
}

#[tokio::test]
async fn what_waits_for_a_generation_is_not_forgotten() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    world.running(&mut machine, "other").await;
    let id = world.create("web").await.expect("it is asked for").instance.id;
    // The machine says that nothing of it is here, before it knows that nothing shall be.
    machine.zones.insert(id, crate::world::blank());
    machine.report(&world).await;
    instances::delete(&world.control, &caller(), world.scope, id).await.expect("deleted");
    machine.report(&world).await;
    assert!(!world.view(id).instance.released, "it may be about to make it");
    while machine.told(id).is_none_or(|zone| zone.wanted != Wanted::Absent) {
        machine.fetch(&world).await;
    }
    // The same is said of every instance, only the generation that was seen is another.
    machine.report(&world).await;
    assert!(world.view(id).instance.released, "now it counts");
}
