//! Documents kept by difference, over histories nobody thought of: after each change, every machine's says what one made from nothing
//! but the records says, and what is new in it leads there from the one the machine held.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use control::{
    servers::{self, NewServer},
    tables::{INSTANCES, NETWORKS, SERVERS},
};
use model::{
    delta::{Held, TargetNews},
    id::{InstanceId, MacAddr, NetworkId, ServerId},
    instance::Instance,
    network::Fabric,
    target::Target,
};
use proptest::{collection::vec, prelude::*};
use store::Transaction;
use uuid::Uuid;

use crate::world::{Machine, World};

/// Beside the world's own.
const MACHINES: u8 = 4;
const INSTANCES_MAX: u8 = 8;
const SEGMENTS: u8 = 3;
/// Networks on them; those of one segment come one after the other.
const NETWORKS_EACH: u8 = 2;

/// What happens at once, in one commit.
#[derive(Debug, Clone)]
enum Event {
    /// An instance is on a machine with NICs on these networks; on none, it is gone.
    Place(u8, Option<(u8, BTreeSet<u8>)>),
    /// A machine is met elsewhere, or nowhere.
    Meet(u8, Option<u8>),
    /// Whether a network is routed to its owner's others.
    Lead(u8, bool),
    /// Several of them.
    All(Vec<Event>),
}

fn event() -> impl Strategy<Value = Event> {
    let networks = proptest::collection::btree_set(0..SEGMENTS * NETWORKS_EACH, 1..3);
    let one = prop_oneof![
        5 => (0..INSTANCES_MAX, proptest::option::weighted(0.8, (0..MACHINES, networks))).prop_map(|(id, at)| Event::Place(id, at)),
        1 => (0..MACHINES, proptest::option::weighted(0.8, 0..MACHINES)).prop_map(|(machine, at)| Event::Meet(machine, at)),
        1 => (0..SEGMENTS * NETWORKS_EACH, any::<bool>()).prop_map(|(network, routed)| Event::Lead(network, routed)),
    ];
    prop_oneof![3 => one.clone(), 1 => vec(one, 2..5).prop_map(Event::All)]
}

fn uuid(number: u8) -> Uuid {
    Uuid::from_u128(0xab_0000 + u128::from(number))
}

fn server(machine: u8) -> ServerId {
    ServerId::new(uuid(machine))
}

/// A world with machines and segments, and the record that instances are copies of.
async fn stage() -> (World, Instance) {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let id = world.running(&mut machine, "first").await;
    let template = world.view(id).instance.value.clone();
    for machine in 0..MACHINES {
        let new = NewServer { hostname: format!("machine-{machine}"), ..NewServer::default() };
        servers::register(&world.control, server(machine), new).await.expect("a machine");
    }
    let snapshot = world.control.snapshot();
    let like = snapshot.get(&NETWORKS, &world.network.to_string()).expect("there").value.clone();
    let mut records = Transaction::new();
    for number in 0..SEGMENTS * NETWORKS_EACH {
        let mut network = like.clone();
        network.id = NetworkId::new(uuid(number));
        network.name = format!("segment-{number}");
        network.owners = vec![world.owner];
        let vni = 1 + u32::from(number / NETWORKS_EACH);
        network.nic_tag = Fabric::tag(vni);
        network.fabric = Some(Fabric { vni, internet_nat: false, routed: false });
        records = records.create(&NETWORKS, network);
    }
    world.control.store.commit(records).await.expect("segments");
    (world, template)
}

async fn happen(world: &World, template: &Instance, event: &Event) {
    let events = match event {
        Event::All(events) => events.clone(),
        one => vec![one.clone()],
    };
    // The last word on each record.
    let mut told: BTreeMap<String, Event> = BTreeMap::new();
    for event in events {
        let about = match event {
            Event::Place(id, _) => format!("instance {id}"),
            Event::Meet(machine, _) => format!("machine {machine}"),
            Event::Lead(network, _) => format!("network {network}"),
            Event::All(_) => continue,
        };
        told.insert(about, event);
    }
    let snapshot = world.control.snapshot();
    let mut records = Transaction::new();
    for event in told.into_values() {
        records = match event {
            Event::Place(id, at) => {
                let key = InstanceId::new(uuid(id));
                let before = snapshot.get(&INSTANCES, &key.to_string());
                let after = at.map(|(machine, networks)| {
                    let mut instance = template.clone();
                    (instance.id, instance.server, instance.alias) = (key, server(machine), format!("copy-{id}"));
                    let nic = instance.nics[0].clone();
                    let nics = networks.into_iter().map(|network| {
                        let mut nic = nic.clone();
                        nic.network = NetworkId::new(uuid(network));
                        nic.mac = MacAddr([2, 0, 0, 0, id, network]);
                        nic.ip = Some(Ipv4Addr::new(10, 9, network, id + 1));
                        nic
                    });
                    instance.nics = nics.collect();
                    instance
                });
                match (before, after) {
                    (Some(before), Some(after)) => records.replace(&INSTANCES, &before, after),
                    (None, Some(after)) => records.create(&INSTANCES, after),
                    // As the control plane does when one is given back: its machine's record is written with it.
                    (Some(before), None) => records.delete(&INSTANCES, &before),
                    (None, None) => records,
                }
            }
            Event::Meet(machine, at) => {
                let before = snapshot.get(&SERVERS, &server(machine).to_string()).expect("there");
                let mut after = before.value.clone();
                after.underlay = at.map(|last| IpAddr::from([192, 0, 2, last]));
                records.replace(&SERVERS, &before, after)
            }
            Event::Lead(network, routed) => {
                let before = snapshot.get(&NETWORKS, &NetworkId::new(uuid(network)).to_string()).expect("there");
                let mut after = before.value.clone();
                after.fabric.as_mut().expect("on a fabric").routed = routed;
                records.replace(&NETWORKS, &before, after)
            }
            Event::All(_) => records,
        };
    }
    world.control.store.commit(records).await.expect("it is recorded");
}

/// The document a machine has now, as soon as it is what the records say.
async fn settled(world: &World, machine: u8) -> Target {
    let fresh = servers::target_for(&world.control.config, &world.control.snapshot(), server(machine)).expect("known");
    let mut kept = None;
    let waiting = async {
        loop {
            let now = servers::watch_target(&world.control, server(machine), 0).await.expect("known").expect("there");
            if now == (Target { generation: now.generation, ..fresh.clone() }) {
                return now;
            }
            kept = Some(now);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let settled = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    settled.unwrap_or_else(|_| panic!("machine {machine} is told {kept:#?}, the records say {fresh:#?}"))
}

async fn history(events: Vec<Event>) {
    let (world, template) = stage().await;
    let mut held: Vec<Option<Target>> = vec![None; MACHINES.into()];
    for event in events {
        happen(&world, &template, &event).await;
        for machine in 0..MACHINES {
            let now = settled(&world, machine).await;
            let slot = &mut held[usize::from(machine)];
            let known = match slot.take() {
                // The same number is the same document.
                Some(before) if before.generation == now.generation => before,
                before => {
                    let generation = before.as_ref().map_or(0, |target| target.generation);
                    let asked = Held { generation, digest: before.as_ref().map(Target::digest) };
                    let news = servers::watch_news(&world.control, server(machine), asked).await.expect("known");
                    match (news.expect("newer"), before) {
                        (TargetNews::Whole(whole), None) => whole,
                        (TargetNews::Delta(delta), Some(before)) => delta.apply(&before).expect("it follows"),
                        (news, before) => panic!("{news:?} for one who holds {before:?}"),
                    }
                }
            };
            assert_eq!(known, now, "machine {machine} after {event:?}");
            *slot = Some(known);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 16, ..ProptestConfig::default() })]

    #[test]
    fn documents_follow_any_history(events in vec(event(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(history(events));
    }
}
