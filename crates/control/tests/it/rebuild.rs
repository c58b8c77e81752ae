//! After a restore: what the machine has and the backup does not know is adopted, what the backup knows and the machine has not
//! is marked, and nothing changes on the machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use control::{
    Scope,
    firewall::{self, NewRule},
    instances, rebuild, servers,
    tables::{ACCOUNTS, ADDRESSES, CLAIMS, FIREWALL_RULES, INSTANCES, NETWORKS, PACKAGES, SERVERS},
};
use model::{
    firewall::{FirewallRule, RuleOrigin, ToldRule},
    id::{AccountId, FirewallRuleId, InstanceId},
    instance::Caller,
    server::{Restored, Server},
    state::PublicState,
    target::{LastTold, Target, ZoneState},
    time::Timestamp,
};
use store::{Store, Transaction, memory::Memory};

use crate::world::{Choices, Machine, World, caller};

/// How long a machine listens that should hear nothing.
const SILENCE: Duration = Duration::from_millis(500);

/// Forgets an instance as a backup that is older does: its record, name and addresses.
async fn forget(store: &Store, id: InstanceId) {
    let snapshot = store.snapshot();
    let holder = id.to_string();
    let mut transaction = Transaction::new();
    for address in snapshot.scan(&ADDRESSES).filter(|address| address.instance == Some(id)) {
        transaction = transaction.delete(&ADDRESSES, &address);
    }
    for claim in snapshot.scan(&CLAIMS).filter(|claim| claim.holder == holder) {
        transaction = transaction.delete(&CLAIMS, &claim);
    }
    let entry = snapshot.get(&INSTANCES, &holder).expect("a record");
    let server = snapshot.get(&SERVERS, &entry.server.to_string()).expect("a machine");
    let demand = model::placement::Demand::held_by(&entry);
    let without = Server { reserved: server.reserved.minus(demand), ..server.value.clone() };
    transaction = transaction.delete(&INSTANCES, &entry).replace(&SERVERS, &server, without);
    store.commit(transaction).await.expect("forgotten");
}

/// Marks the machine as a restore does.
async fn restored(world: &World) {
    let snapshot = world.control.snapshot();
    let server = snapshot.get(&SERVERS, &world.server.to_string()).expect("a machine");
    let restored =
        Some(Restored { taken_at: Timestamp(1), brought: false, compared: false, strangers: 0, rules: None });
    let marked = Server { restored, ..server.value.clone() };
    world.control.store.commit(Transaction::new().replace(&SERVERS, &server, marked)).await.expect("marked");
}

fn told(machine: &Machine, id: InstanceId) -> LastTold {
    LastTold::of(machine.target.as_ref().expect("a target"), id).expect("it was told of it")
}

async fn hears_nothing(world: &World, machine: &Machine) {
    let have = machine.target.as_ref().map_or(0, |target| target.generation);
    let asking = servers::watch_target(&world.control, world.server, have);
    assert!(tokio::time::timeout(SILENCE, asking).await.is_err(), "it is told something");
}

fn content(target: &Target) -> Target {
    Target { generation: 0, ..target.clone() }
}

#[tokio::test]
async fn what_happened_after_the_backup_is_told_by_the_machine() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let kept = world.running(&mut machine, "kept").await;
    let gone = world.running(&mut machine, "gone").await;
    let young = world.running(&mut machine, "young").await;
    let (held, before) = (world.held(), machine.target.clone().expect("a target"));

    // The backup knows `gone` and not `young`; the machine lived on.
    forget(&world.control.store, young).await;
    restored(&world).await;
    machine.zones.remove(&gone);
    machine.target.as_mut().expect("a target").zones.remove(&gone);
    machine.target.as_mut().expect("a target").generation += 500;
    let address = world.view(kept).instance.nics[0].ip;
    machine.report(&world).await;

    assert_eq!(world.view(gone).state, PublicState::Failed);
    assert_eq!(world.view(gone).instance.failure.as_deref(), Some(rebuild::LOST));
    assert_eq!(world.view(kept).state, PublicState::Running);
    hears_nothing(&world, &machine).await;

    let word = told(&machine, young);
    let looked = rebuild::judge(&world.control, world.server, young, &word);
    assert_eq!((&looked.refused, &looked.notes), (&None, &Vec::new()));
    assert!(world.control.snapshot().get(&INSTANCES, &young.to_string()).is_none(), "looking changes nothing");
    rebuild::adopt(&world.control, &Caller::System, world.server, young, &word).await.expect("adopted");
    let twice = rebuild::adopt(&world.control, &Caller::System, world.server, young, &word).await.expect("judged");
    assert_eq!(twice.refused.as_deref(), Some("it is known already"));
    assert_eq!(world.held(), held, "it holds what it held");
    let view = world.view(young);
    assert_eq!((view.state, view.instance.alias.as_str()), (PublicState::Running, "young"));
    assert!(view.instance.history.iter().any(|line| line.action == "rebuild"), "its history says so");
    hears_nothing(&world, &machine).await;

    // The next report has nothing open: the machine is told what it holds already, but for what it has no more.
    machine.report(&world).await;
    let seen = machine.target.as_ref().map_or(0, |target| target.generation);
    machine.fetch(&world).await;
    let target = machine.target.clone().expect("a target");
    assert!(target.generation > seen, "{} after {seen}", target.generation);
    let mut expected = content(&before);
    expected.zones.remove(&gone);
    assert_eq!(content(&target), expected);

    // What is lost is deleted like anything else, and then holds nothing.
    instances::delete(&world.control, &caller(), world.scope, gone).await.expect("it can be deleted");
    assert_eq!(world.view(gone).state, PublicState::Stopping);
    machine.obey(&world, gone).await;
    world.until(gone, |view| view.state == PublicState::Deleted).await;
    assert_eq!(world.held().0, 2);
    assert_eq!(world.view(kept).instance.nics[0].ip, address);
}

#[tokio::test]
async fn what_is_found_after_all_is_lost_no_more() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    restored(&world).await;
    let fact = machine.zones.remove(&id).expect("it is there");
    machine.report(&world).await;
    assert_eq!(world.view(id).state, PublicState::Failed);
    machine.fetch(&world).await;
    assert_eq!(machine.told(id), None, "it would be made anew");
    machine.zones.insert(id, fact);
    machine.report(&world).await;
    assert_eq!((world.view(id).state, world.view(id).instance.failure.clone()), (PublicState::Running, None));
    machine.fetch(&world).await;
    assert!(machine.told(id).is_some());
}

#[tokio::test]
async fn the_newer_of_backup_and_machine_is_right_about_a_rule() {
    let world = World::with(Choices { asks_for_rules: true, ..Choices::default() }).await;
    let (control, scope) = (&world.control, world.scope);
    let mut machine = Machine::new(&world);
    let web = world.running(&mut machine, "web").await;
    instances::set_firewall(control, &caller(), scope, web, true).await.expect("enabled");
    let make = async |owner, text: &str| {
        let new = NewRule { rule: text.to_owned(), enabled: true, ..NewRule::default() };
        firewall::create(control, owner, new).await.expect("made").value.clone()
    };
    let own = make(Some(world.owner), "FROM any TO all vms ALLOW tcp PORT 80").await;
    let changed = make(None, "FROM any TO all vms ALLOW tcp PORT 81").await;
    let same = make(None, "FROM any TO all vms ALLOW tcp PORT 82").await;
    let twin = make(None, "FROM any TO all vms ALLOW tcp PORT 83").await;
    let backup = control.snapshot();
    let text = Some("FROM any TO all vms ALLOW tcp PORT 8100".to_owned());
    let change = firewall::RuleChange { rule: text, log: Some(true), ..firewall::RuleChange::default() };
    let after = firewall::update(control, Scope::All, changed.id, change).await.expect("changed").value.clone();
    machine.fetch(&world).await;
    let held: BTreeMap<_, _> = machine.target.as_ref().expect("a target").firewall.told_rules(None).collect();
    assert_eq!(held.len(), 4, "{held:?}");

    // The backup knows neither `own`, nor that `changed` was changed; `twin` it knows by another name.
    let snapshot = control.snapshot();
    let now = |id: FirewallRuleId| snapshot.get(&FIREWALL_RULES, &id.to_string()).expect("a record");
    let other = FirewallRule { id: FirewallRuleId::random(), ..twin.clone() };
    let old = backup.get(&FIREWALL_RULES, &changed.id.to_string()).expect("a record").value.clone();
    let restore = Transaction::new()
        .delete(&FIREWALL_RULES, &now(own.id))
        .replace(&FIREWALL_RULES, &now(changed.id), old)
        .delete(&FIREWALL_RULES, &now(twin.id))
        .create(&FIREWALL_RULES, other);
    control.store.commit(restore).await.expect("restored");
    restored(&world).await;
    machine.report(&world).await;
    let judge = |id: FirewallRuleId| rebuild::judge_rule(control, world.server, id, &held[&id]);
    let judged = judge(own.id).expect("it is unknown");
    assert_eq!((judged.owner, judged.refused, judged.notes), (Some(world.owner), None, Vec::new()));
    assert_eq!(judge(changed.id).map(|judged| judged.refused), Some(None));
    assert_eq!((judge(same.id), judge(twin.id)), (None, None));
    let rule = |id: FirewallRuleId| control.snapshot().get(&FIREWALL_RULES, &id.to_string()).map(|it| it.value.clone());
    assert_eq!(rule(own.id), None, "looking changes nothing");

    for (id, told) in &held {
        rebuild::adopt_rule(control, world.server, *id, told).await.expect("judged");
        assert_eq!(rebuild::judge_rule(control, world.server, *id, told), None, "once is enough");
    }
    let back = rule(own.id).expect("a record");
    assert_eq!(FirewallRule { updated_at: own.updated_at, ..back }, own);
    let back = rule(changed.id).expect("a record");
    assert_eq!(FirewallRule { updated_at: after.updated_at, ..back }, after);

    // What was made before the backup and is not in it was deleted; an account that nobody knows is made.
    let deleted = ToldRule {
        origin: RuleOrigin { created_at: Timestamp(1), ..held[&own.id].origin.clone() },
        ..held[&own.id].clone()
    };
    let unknown = FirewallRuleId::random();
    assert_eq!(rebuild::judge_rule(control, world.server, unknown, &deleted), None);
    let owner = Some(AccountId::random());
    let orphan = ToldRule { origin: RuleOrigin { owner, ..held[&own.id].origin.clone() }, ..held[&own.id].clone() };
    let judged = rebuild::adopt_rule(control, world.server, unknown, &orphan).await.expect("judged").expect("unknown");
    assert!(judged.refused.is_none() && judged.notes[0].contains("rebuilt-"), "{judged:?}");
    let taken = rebuild::judge_rule(control, world.server, own.id, &ToldRule { version: 9, ..orphan.clone() });
    assert!(taken.and_then(|judged| judged.refused).is_some_and(|why| why.contains("somebody else's")));
    let nonsense = ToldRule { origin: RuleOrigin { text: "FROM".to_owned(), ..orphan.origin }, ..orphan };
    let refused = rebuild::judge_rule(control, world.server, FirewallRuleId::random(), &nonsense);
    assert!(refused.is_some_and(|judged| judged.refused.is_some()));
}

/// Where somebody asks machines for their rules, nothing goes on before all were asked, and none of them has one that is unknown.
#[tokio::test]
async fn nothing_goes_on_before_rules_were_asked_for() {
    let world = World::with(Choices { asks_for_rules: true, ..Choices::default() }).await;
    let mut machine = Machine::new(&world);
    world.running(&mut machine, "web").await;
    restored(&world).await;
    assert!(rebuild::not_asked_for_rules(&world.control).is_empty(), "it has not spoken");
    machine.report(&world).await;
    hears_nothing(&world, &machine).await;
    assert_eq!(rebuild::not_asked_for_rules(&world.control), [world.server]);
    rebuild::rules_compared(&world.control, world.server, 1).await.expect("noted");
    machine.report(&world).await;
    hears_nothing(&world, &machine).await;
    assert!(rebuild::not_asked_for_rules(&world.control).is_empty());
    rebuild::rules_compared(&world.control, world.server, 0).await.expect("noted");
    machine.fetch(&world).await;
}

/// What others have decided is no word on a machine that nobody has looked at.
#[tokio::test]
async fn only_those_go_on_that_somebody_has_looked_at() {
    let world = World::with(Choices { asks_for_rules: true, ..Choices::default() }).await;
    let control = &world.control;
    let mut machine = Machine::new(&world);
    world.running(&mut machine, "web").await;
    restored(&world).await;
    machine.report(&world).await;
    let (nobody, all) = (BTreeSet::new(), BTreeSet::from([world.server]));
    for rules in [None, Some(1)] {
        if let Some(rules) = rules {
            rebuild::rules_compared(control, world.server, rules).await.expect("noted");
        }
        for looked_at in [None, Some(&nobody)] {
            assert_eq!(rebuild::go_on(control, looked_at).await.expect("nothing to do"), 0, "{rules:?} {looked_at:?}");
        }
        hears_nothing(&world, &machine).await;
    }
    assert_eq!(rebuild::go_on(control, Some(&all)).await.expect("it goes on"), 1);
    machine.fetch(&world).await;
}

/// A machine that spoke once before it had looked at itself is not taken at its word.
#[tokio::test]
async fn a_first_word_without_a_document_is_not_the_last() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    restored(&world).await;
    let (target, zones) = (machine.target.take(), std::mem::take(&mut machine.zones));
    let mut report = machine.compose();
    report.sequence = 1;
    servers::apply_report(&world.control, world.server, &report).await.expect("taken");
    assert_eq!(world.view(id).state, PublicState::Running);
    (machine.target, machine.zones) = (target, zones);
    machine.report(&world).await;
    assert_eq!(world.view(id).state, PublicState::Running);
    machine.fetch(&world).await;
}

#[tokio::test]
async fn what_others_have_by_now_refuses_or_renames() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let young = world.running(&mut machine, "web").await;
    let word = told(&machine, young);
    forget(&world.control.store, young).await;
    restored(&world).await;
    machine.report(&world).await;

    // Somebody asked for the same name, and got the same address, before the machine said anything.
    let ip = word.zone.nics[0].address.map(|net| net.addr());
    let mut request = world.request("web");
    request.networks[0].ip = ip;
    let other = instances::create(&world.control, &caller(), world.owner, request).await.expect("it is asked for");
    let other = other.instance.value.clone();
    assert_eq!(other.nics[0].ip, ip);
    let judged = rebuild::judge(&world.control, world.server, young, &word);
    assert!(judged.refused.as_deref().is_some_and(|why| why.contains(&other.id.to_string())), "{judged:?}");

    let mut moved = word.clone();
    let net = moved.zone.nics[0].address.as_mut().expect("an address");
    *net = "10.9.0.77/24".parse().expect("a network");
    let judged = rebuild::judge(&world.control, world.server, young, &moved);
    assert_eq!((judged.refused, judged.alias), (None, format!("web-{}", young.short())));
    assert_eq!(judged.notes.len(), 1);

    let mut absent = machine.zones[&young].clone();
    absent.state = ZoneState::Absent;
    machine.zones.insert(young, absent);
    machine.report(&world).await;
    let judged = rebuild::judge(&world.control, world.server, young, &moved);
    assert_eq!(judged.refused.as_deref(), Some("its machine has nothing of it any more"));
}

/// Nobody knows anything but the machine: owner, package, network and its wire are made again, so that it is told the same.
#[tokio::test]
async fn a_datacenter_that_knows_nothing_is_made_again_of_a_machine() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    let before = machine.target.clone().expect("a target");

    let over: std::sync::Arc<dyn store::Engine> = std::sync::Arc::new(Memory::new());
    let empty = World::with(Choices { over: Some(over), ..Choices::default() }).await;
    let snapshot = empty.control.snapshot();
    let server = snapshot.get(&SERVERS, &empty.server.to_string()).expect("a machine");
    let other = Server {
        id: world.server,
        restored: Some(Restored { taken_at: Timestamp(1), brought: false, compared: false, strangers: 0, rules: None }),
        ..server.value.clone()
    };
    let moved = Transaction::new().delete(&SERVERS, &server).create(&SERVERS, other);
    empty.control.store.commit(moved).await.expect("another machine");

    let report = machine.compose();
    servers::apply_report(&empty.control, world.server, &report).await.expect("taken");
    let judged =
        rebuild::adopt(&empty.control, &caller(), world.server, id, &told(&machine, id)).await.expect("judged");
    assert_eq!(judged.refused, None);
    assert_eq!(judged.notes.len(), 5, "{:?}", judged.notes);
    let snapshot = empty.control.snapshot();
    // The other datacenter has a network of its own on the same wire: nobody gets the address there either.
    let ip = before.zones[&id].nics[0].address.expect("an address").addr();
    let here = |address: &&std::sync::Arc<store::Entry<model::network::Address>>| {
        address.network == empty.network && address.ip == ip
    };
    let all: Vec<_> = snapshot.scan(&ADDRESSES).collect();
    let aside = all.iter().find(here).expect("a record");
    assert!(
        aside.reserved && aside.instance.is_none() && judged.notes.iter().any(|note| note.contains("is set aside"))
    );
    let account = snapshot.get(&ACCOUNTS, &world.owner.to_string()).expect("its owner");
    assert_eq!(account.login, format!("rebuilt-{}", &world.owner.to_string()[..8]));
    assert!(snapshot.get(&NETWORKS, &world.network.to_string()).is_some());
    let package = told(&machine, id).zone.package.expect("a package");
    assert!(!snapshot.get(&PACKAGES, &package.to_string()).expect("its package").active);
    let looked_at = BTreeSet::from([world.server]);
    assert_eq!(rebuild::go_on(&empty.control, Some(&looked_at)).await.expect("it goes on"), 1);
    let have = before.generation;
    let target = servers::watch_target(&empty.control, world.server, have).await.expect("known").expect("newer");
    assert_eq!(target.zones, before.zones);
    assert_eq!(target.networks, before.networks);
}
