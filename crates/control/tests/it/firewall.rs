//! Rules, whom they reach, and when they are known to be enforced.

use std::collections::BTreeMap;

use control::{
    Error, Scope,
    firewall::{self, NewRule, RuleChange},
    instances::{self, tags},
    servers,
};
use model::{
    firewall::{DecidedBy, Direction, FirewallTarget, Packet, PacketKind},
    id::InstanceId,
    instance::TagValue,
};

use crate::world::{Machine, World, caller};

fn rule(text: &str) -> NewRule {
    NewRule { rule: text.to_owned(), enabled: true, ..NewRule::default() }
}

fn tag(name: &str) -> BTreeMap<String, TagValue> {
    BTreeMap::from([("role".to_owned(), TagValue::Text(name.to_owned()))])
}

/// Whether the document the machine has lets one instance open a connection to another.
fn lets(machine: &Machine, world: &World, from: InstanceId, to: InstanceId, port: u16) -> bool {
    let target: &FirewallTarget = &machine.target.as_ref().expect("fetched").firewall;
    let peer = world.view(from).instance.nics[0].first_address().expect("it has one");
    let packet = Packet { direction: Direction::Inbound, peer, kind: PacketKind::Tcp(port) };
    let decision = target.evaluate(to, packet);
    assert_ne!(decision.by, DecidedBy::Disabled, "it is filtered");
    decision.action == model::firewall::Action::Allow
}

#[tokio::test]
async fn tags_and_rules_reach_machines_and_are_confirmed() {
    let world = World::new().await;
    let (control, scope) = (&world.control, world.scope);
    let mut machine = Machine::new(&world);
    let (web, db) = (world.running(&mut machine, "web").await, world.running(&mut machine, "db").await);
    tags::add(control, &caller(), scope, db, tag("db")).await.expect("tagged");
    instances::set_firewall(control, &caller(), scope, db, true).await.expect("enabled");
    machine.fetch(&world).await;
    assert!(!lets(&machine, &world, web, db, 5432), "what no rule lets in is dropped");

    let made =
        firewall::create(control, Some(world.owner), rule("FROM tag role = web TO tag role = db ALLOW tcp PORT 5432"));
    let made = made.await.expect("made");
    assert_eq!(made.rule.to_string(), "FROM tag \"role\" = \"web\" TO tag \"role\" = \"db\" ALLOW tcp PORT 5432");
    let proof = firewall::enforcement(control, made.id).await;
    assert_eq!((proof.machines, proof.live), (1, 0), "nobody has confirmed it yet");
    machine.fetch(&world).await;
    machine.report(&world).await;
    let proof = firewall::wait_enforced(control, made.id).await;
    assert_eq!((proof.machines, proof.live, proof.is_everywhere()), (1, 1, true));
    assert!(!lets(&machine, &world, web, db, 5432), "web has no tag yet");

    tags::add(control, &caller(), scope, web, tag("web")).await.expect("tagged");
    machine.fetch(&world).await;
    assert!(lets(&machine, &world, web, db, 5432) && !lets(&machine, &world, web, db, 22));
    tags::delete_all(control, &caller(), scope, web).await.expect("untagged");
    machine.fetch(&world).await;
    assert!(!lets(&machine, &world, web, db, 5432));
    let fresh = servers::target_for(&control.config, &control.snapshot(), world.server).expect("known");
    assert_eq!(fresh.firewall, machine.target.as_ref().expect("fetched").firewall);

    // Off: the machine still has it until it confirms, then it is none of its machines.
    let off = RuleChange { enabled: Some(false), ..RuleChange::default() };
    let changed = firewall::update(control, scope, made.id, off.clone()).await.expect("disabled");
    assert_eq!(changed.version, 2);
    assert_eq!(firewall::update(control, scope, made.id, off).await.expect("again").version, 2);
    let proof = firewall::enforcement(control, made.id).await;
    assert_eq!((proof.machines, proof.live, proof.waiting_for.len()), (1, 0, 1));
    machine.fetch(&world).await;
    machine.report(&world).await;
    assert_eq!(firewall::wait_enforced(control, made.id).await, firewall::Enforcement::default());
}

#[tokio::test]
async fn changes_of_instances_are_confirmed_too() {
    let world = World::new().await;
    let (control, scope) = (&world.control, world.scope);
    let mut machine = Machine::new(&world);
    let (web, db) = (world.running(&mut machine, "web").await, world.running(&mut machine, "db").await);
    let counted = async |id: InstanceId| {
        let found = firewall::enforcement(control, id).await;
        (found.machines, found.live)
    };
    tags::add(control, &caller(), scope, web, tag("web")).await.expect("tagged");
    assert_eq!(counted(web).await, (0, 0), "nobody filters anything, so nobody has to know");

    instances::set_firewall(control, &caller(), scope, db, true).await.expect("enabled");
    assert_eq!((counted(db).await, counted(web).await), ((1, 0), (0, 0)), "the machine has to learn of the wall");
    machine.fetch(&world).await;
    machine.report(&world).await;
    assert_eq!(counted(db).await, (1, 1));
    firewall::create(
        control,
        Some(world.owner),
        rule("FROM tag role = web TO vm 00000000-0000-4000-8000-000000000001 ALLOW ah"),
    )
    .await
    .expect("made");
    assert_eq!(counted(web).await, (0, 0), "a rule of nobody's");
    firewall::create(control, Some(world.owner), rule("FROM tag role = web TO all vms ALLOW tcp PORT 5432"))
        .await
        .expect("made");
    machine.fetch(&world).await;
    machine.report(&world).await;
    assert_eq!(counted(web).await, (1, 1), "the machine's sets have its address");

    tags::delete_all(control, &caller(), scope, web).await.expect("untagged");
    let pending = firewall::enforcement(control, web).await;
    assert_eq!((pending.machines, pending.live, &pending.waiting_for), (1, 0, &vec![world.server]));
    assert!(pending.revision > 0 && !pending.is_everywhere());
    assert_eq!(counted(db).await, (1, 1), "it is no change of the other's");
    machine.fetch(&world).await;
    machine.report(&world).await;
    assert_eq!(firewall::wait_enforced(control, web).await, firewall::Enforcement::default(), "it has let go of it");

    tags::add(control, &caller(), scope, web, tag("web")).await.expect("tagged");
    let waiting = firewall::wait_enforced(control, web);
    let confirmed = async {
        machine.fetch(&world).await;
        machine.report(&world).await;
    };
    let (found, ()) = tokio::join!(waiting, confirmed);
    assert_eq!((found.machines, found.live), (1, 1), "who waits is woken by the report");
}

#[tokio::test]
async fn who_may_do_what() {
    let world = World::new().await;
    let (control, scope) = (&world.control, world.scope);
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "web").await;
    firewall::seed(control).await.expect("seeded");
    firewall::seed(control).await.expect("once");
    let all = firewall::list(control, Scope::All);
    assert_eq!(all.len(), 2, "both families may ping");
    assert!(firewall::list(control, scope).is_empty(), "an account's list has its own");
    let of_it = firewall::of_instance(control, scope, id).expect("it is there");
    assert_eq!(of_it.len(), 2, "an instance's list has the global ones too");
    let refused = firewall::delete(control, scope, all[0].id).await;
    assert!(matches!(refused, Err(Error::NotAuthorized(_))), "{refused:?}");
    firewall::delete(control, Scope::All, all[0].id).await.expect("operators may");
    firewall::seed(control).await.expect("no effect");
    assert_eq!(firewall::list(control, Scope::All).len(), 1, "what an operator deleted stays deleted");

    let made = firewall::create(control, Some(world.owner), rule("FROM any TO all vms ALLOW tcp PORT 80"))
        .await
        .expect("made");
    assert_eq!(firewall::whom(control, scope, made.id).expect("found").len(), 1);
    let stranger = Scope::Account(model::id::AccountId::random());
    assert!(matches!(firewall::get(control, stranger, made.id), Err(Error::NotFound { .. })));
    assert!(matches!(firewall::delete(control, stranger, made.id).await, Err(Error::NotFound { .. })));
    let long = NewRule { description: Some("x".repeat(256)), ..rule("FROM any TO any ALLOW tcp PORT 80") };
    let Err(Error::Invalid(fields)) = firewall::create(control, Some(world.owner), long).await else {
        panic!("two things are wrong with it")
    };
    let fields: Vec<&str> = fields.iter().map(|field| field.field.as_str()).collect();
    assert_eq!(fields, ["rule", "description"]);
    firewall::delete(control, scope, made.id).await.expect("deleted");
    assert!(matches!(firewall::get(control, scope, made.id), Err(Error::NotFound { .. })));
}
