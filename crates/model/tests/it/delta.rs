//! What is new in a document, applied to the one before, is the document: for any two, exactly, and for nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use model::{
    clock::ClockReading,
    delta::{Changes, Misfit, ReportDelta, ReportNews, Said, TargetDelta},
    firewall::{
        Action, AddressSet, Direction, FirewallTarget, InstanceFilter, Layer, LayerId, RuleTarget, Selector, SetId,
        SetKey, SetTarget, Traffic,
    },
    id::{AccountId, FirewallRuleId, ImageId, InstanceId, MacAddr, NetworkId, ServerId},
    image::Compression,
    instance::Wanted,
    part::{Digest, Part},
    peers::{Peer, Segment},
    role::{HeadnodeRole, HeadnodeWanted},
    server::Hardware,
    target::{ImageTarget, NetworkTarget, Report, Target, ZoneFact, ZoneState},
    time::Timestamp,
    wire::{WireFact, Wires},
};
use proptest::{
    collection::{btree_map, btree_set, vec},
    prelude::*,
};

fn uuid(number: u8) -> uuid::Uuid {
    uuid::Uuid::from_u128(u128::from(number) + 1)
}

fn server() -> ServerId {
    ServerId::new(uuid(0))
}

fn key(number: u8) -> SetKey {
    SetKey { scope: Some(AccountId::new(uuid(number))), selector: Selector::AllVms }
}

fn layer_id(number: u8) -> LayerId {
    LayerId::of(&key(number), Direction::Inbound, 0, Action::Allow)
}

/// Few keys and few values, so that any two have much in common and much not.
fn any_firewall() -> impl Strategy<Value = FirewallTarget> {
    let lists = vec(0..4_u8, 0..3);
    let instances = btree_map(0..4_u8, (lists.clone(), lists.clone()), 0..4);
    let layers = btree_map(0..4_u8, (0..2_u8, lists), 0..4);
    let rules = btree_map(0..4_u8, 0..3_u64, 0..4);
    let members = (btree_set(0..6_u8, 0..6), btree_set(0..3_u8, 0..3));
    let sets = btree_map(0..4_u8, (0..2_u8, members), 0..4);
    (instances, layers, rules, sets).prop_map(|(instances, layers, rules, sets)| FirewallTarget {
        instances: instances
            .into_iter()
            .map(|(id, (inbound, outbound))| {
                let ids = |list: Vec<u8>| list.into_iter().map(layer_id).collect();
                (InstanceId::new(uuid(id)), InstanceFilter { inbound: ids(inbound), outbound: ids(outbound) })
            })
            .collect(),
        layers: layers
            .into_iter()
            .map(|(id, (priority, rules))| {
                let rules = rules.into_iter().map(|rule| FirewallRuleId::new(uuid(rule))).collect();
                let (direction, action) = (Direction::Inbound, Action::Allow);
                (layer_id(id), Layer { direction, priority, action, group: key(id), rules })
            })
            .collect(),
        rules: rules
            .into_iter()
            .map(|(id, version)| {
                let (traffic, origin) = (Traffic::Ah, None);
                let rule = RuleTarget { version, log: false, traffic, inbound: None, outbound: None, origin };
                (FirewallRuleId::new(uuid(id)), rule)
            })
            .collect(),
        sets: sets
            .into_iter()
            .map(|(id, (other, (v4, v6)))| {
                let addresses = AddressSet {
                    v4: v4.into_iter().map(|last| Ipv4Addr::new(10, 0, 0, last)).collect(),
                    v6: v6.into_iter().map(|last| Ipv6Addr::from(u128::from(last))).collect(),
                };
                // A name that stands for something else is no document of ours; it must be told right all the same.
                (SetId::of(&key(id)), SetTarget { key: key(id + other), addresses })
            })
            .collect(),
    })
}

fn any_peers() -> impl Strategy<Value = BTreeMap<u32, Segment>> {
    btree_map(0..3_u32, btree_map(0..4_u32, (0..3_u8, 0..2_u8), 0..4), 0..3).prop_map(|segments| {
        let peer = |(address, machine): (u8, u8)| Peer {
            addresses: vec![IpAddr::from([10, 0, 0, address])],
            underlay: IpAddr::from([192, 0, 2, machine]),
        };
        let peers = |peers: BTreeMap<u32, (u8, u8)>| {
            peers.into_iter().map(|(mac, said)| (MacAddr::from_suffix(mac), peer(said))).collect()
        };
        segments.into_iter().map(|(vni, members)| (vni, peers(members))).collect()
    })
}

fn any_target() -> impl Strategy<Value = Target> {
    let few = || btree_map(0..6_u8, 0..3_u8, 0..6);
    let name = prop_oneof![Just("here"), Just("there")];
    let headnodes = proptest::collection::vec((1..4_u8).prop_map(|n| format!("10.0.0.{n}:8444")), 0..3);
    (0..9_u64, (name, headnodes), proptest::option::of(0..2_u8), few(), few(), few(), any_firewall(), any_peers())
        .prop_map(|(generation, (name, headnodes), underlay, networks, images, zones, firewall, peers)| Target {
            server: server(),
            generation,
            datacenter: name.to_owned(),
            networks: networks
                .into_iter()
                .map(|(id, vlan)| {
                    let network = NetworkTarget { vlan: u16::from(vlan), ..NetworkTarget::default() };
                    (NetworkId::new(uuid(id)), network)
                })
                .collect(),
            images: images
                .into_iter()
                .map(|(id, size)| {
                    let (sha256, size, compression) = ("0".to_owned(), u64::from(size), Compression::None);
                    (ImageId::new(uuid(id)), ImageTarget { sha256, size, compression })
                })
                .collect(),
            zones: zones
                .into_iter()
                .map(|(id, starts)| {
                    let mut zone = crate::diff::zone(Wanted::Running);
                    zone.starts = u64::from(starts);
                    (InstanceId::new(uuid(id)), zone.into())
                })
                .collect(),
            firewall: firewall.into(),
            underlay: underlay.map(|last| IpAddr::from([192, 0, 2, last])),
            vxlan_port: 4_789 + u16::from(underlay.unwrap_or(0)),
            peers,
            headnodes,
            headnode: underlay.map(|last| {
                Box::new(HeadnodeRole {
                    since: Timestamp(i64::from(last)),
                    wanted: HeadnodeWanted::Running,
                    headnodes: Vec::new(),
                })
            }),
        })
}

fn any_report() -> impl Strategy<Value = Report> {
    let states = prop_oneof![Just(ZoneState::Running), Just(ZoneState::Stopped), Just(ZoneState::Absent)];
    let zones = btree_map(0..6_u8, (states, 0..3_u64), 0..6);
    let wires = (btree_map(0..4_u8, (any::<bool>(), 0..3_u32), 0..4), proptest::option::of(0..9_u64));
    (0..9_u64, 0..9_u64, any::<bool>(), zones, btree_set(0..2_u8, 0..2), wires).prop_map(
        |(sequence, target_seen, leaving, zones, images, (wires, age_ms))| Report {
            server: server(),
            sequence,
            hostname: "one".to_owned(),
            boot_id: "boot".to_owned(),
            target_seen,
            firewall_seen: target_seen,
            hardware: Hardware::default(),
            zones: zones
                .into_iter()
                .map(|(id, (state, starts))| (InstanceId::new(uuid(id)), fact(state, starts).into()))
                .collect(),
            images: images.into_iter().map(|id| ImageId::new(uuid(id))).collect(),
            underlay: None,
            outside: None,
            leaving,
            goes_down: false,
            untold_addresses: BTreeMap::new(),
            wires: Wires {
                facts: wires
                    .into_iter()
                    .map(|(last, (reachable, mtu))| (IpAddr::from([10, 0, 0, last]), wire(reachable, mtu)))
                    .collect::<BTreeMap<_, _>>()
                    .into(),
                age_ms,
                of: age_ms.and_then(|age| u32::try_from(age).ok()),
            },
            clock: age_ms.map(|age| ClockReading { ahead_ms: 4 - age.cast_signed(), within_ms: age }),
            headnode: None,
        },
    )
}

fn wire(reachable: bool, mtu: u32) -> WireFact {
    WireFact { reachable, since: Timestamp(1), mtu: Some(mtu), needed: 2, vxlan: (mtu > 1).then_some(reachable) }
}

fn fact(state: ZoneState, starts_done: u64) -> ZoneFact {
    ZoneFact {
        state,
        starts_done,
        reboots_done: 0,
        started_at: Some(Timestamp(1)),
        exit: None,
        error: None,
        timeline: Vec::new(),
        limits: None,
        nics: Vec::new(),
        addresses6: BTreeMap::new(),
        gave_up: false,
        oom_kills: 0,
        guest_metadata: Vec::new(),
    }
}

/// As the other end reads it.
fn sent<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    serde_json::from_slice(&serde_json::to_vec(value).unwrap()).unwrap()
}

proptest! {
    #[test]
    fn maps_change_into_each_other(old in btree_map(0..9_u8, 0..3_u8, 0..9), new in btree_map(0..9_u8, 0..3_u8, 0..9)) {
        let changes = Changes::between(&old, &new);
        prop_assert_eq!(changes.is_empty(), old == new);
        let mut map = old;
        changes.apply(&mut map);
        prop_assert_eq!(map, new);
    }

    #[test]
    fn targets_change_into_each_other(old in any_target(), new in any_target()) {
        let delta = TargetDelta::between(&old, &new);
        prop_assert_eq!(delta.apply(&old).unwrap(), new.clone());
        // Over the wire, onto what the other end understood.
        let (there, read) = (sent(&old), sent(&delta));
        prop_assert_eq!(there.digest(), old.digest());
        prop_assert_eq!(&read, &delta);
        prop_assert_eq!(read.apply(&there).unwrap(), new);
    }

    /// Nobody takes a delta for what it is not.
    #[test]
    fn only_its_own_base_is_changed(old in any_target(), new in any_target(), other in any_target()) {
        let delta = TargetDelta::between(&old, &new);
        let same = Target { generation: old.generation, ..other.clone() } == old;
        prop_assert_eq!(same, other.digest() == old.digest(), "a digest tells documents apart");
        if !same {
            prop_assert_eq!(delta.apply(&other), Err(Misfit::Base { base: old.digest(), held: other.digest() }));
        }
        let foreign = Target { server: ServerId::new(uuid(9)), ..old.clone() };
        prop_assert_eq!(delta.apply(&foreign), Err(Misfit::Foreign));
        let wrong = TargetDelta { digest: Digest::of_bytes(b"another"), ..delta };
        let misled = matches!(wrong.apply(&old), Err(Misfit::Result { .. }));
        prop_assert!(misled);
    }

    /// Parts that stay are shared: what a delta costs is what changed.
    #[test]
    fn what_stays_is_not_copied(old in any_target(), starts in 7..9_u64) {
        let mut new = old.clone();
        let Some(id) = new.zones.keys().next().copied() else { return Ok(()) };
        new.zones.get_mut(&id).unwrap().starts = starts;
        let delta = TargetDelta::between(&old, &new);
        prop_assert_eq!(delta.zones.put.keys().copied().collect::<Vec<_>>(), vec![id]);
        prop_assert!(delta.firewall.is_empty() && delta.peers.is_empty() && delta.networks.is_empty());
        let reached = delta.apply(&old).unwrap();
        let shared = |id: &InstanceId, part: &Part<_>| old.zones.get(id).is_some_and(|before| before.is(part));
        prop_assert!(reached.zones.iter().all(|(other, part)| shared(other, part) != (*other == id)));
    }

    #[test]
    fn reports_change_into_each_other(old in any_report(), new in any_report()) {
        match ReportDelta::between(old.digest(), &old, &new) {
            Some(delta) => {
                prop_assert_eq!(&old.images, &new.images);
                prop_assert_eq!(sent(&delta).apply(old.digest(), &sent(&old)).unwrap(), new.clone());
                let wrong = delta.apply(Digest::of_bytes(b"another"), &old);
                let refused = matches!(wrong, Err(Misfit::Base { .. }));
                prop_assert!(refused);
            }
            None => prop_assert_ne!(&old.images, &new.images),
        }
    }

    /// A headnode that forgets at any moment, and answers that are lost at any moment: what is held is what was said, or nothing.
    #[test]
    fn what_is_said_arrives(reports in vec(any_report(), 1..9), fate in vec(0..4_u8, 18)) {
        let (mut said, mut held): (Said, Option<Report>) = (Said::default(), None);
        let mut fate = fate.into_iter();
        for report in reports {
            let mut tries = 0;
            loop {
                tries += 1;
                let news = said.news(&report);
                let taken = match &news {
                    ReportNews::Whole(report) => Some(sent(&**report)),
                    ReportNews::Delta(delta) => held.as_ref().and_then(|held| sent(delta).apply(held.digest(), held).ok()),
                };
                held = taken.or(held);
                match fate.next() {
                    Some(0) => held = None,
                    Some(1) => {
                        said.unanswered();
                        break;
                    }
                    _ => {}
                }
                let is_taken = said.answered(report.clone(), held.as_ref().map(Report::digest));
                if is_taken || matches!(news, ReportNews::Whole(_)) {
                    prop_assert!(held.as_ref().is_none_or(|held| *held == report));
                    break;
                }
            }
            prop_assert!(tries <= 2, "a delta that is not understood is followed by the whole");
        }
    }

    #[test]
    fn any_json_is_a_delta_or_is_not(text in "\\PC*", target in any_target()) {
        let mut value = serde_json::to_value(TargetDelta::between(&target, &target)).unwrap();
        value["zones"] = serde_json::Value::String(text.clone());
        prop_assert!(serde_json::from_value::<TargetDelta>(value).is_err());
        let parsed = serde_json::from_str::<ReportDelta>(&text);
        prop_assert!(parsed.is_err());
    }
}

/// Keys of a set, to be sure that a test's universe is what it says.
#[test]
fn names_of_sets_differ() {
    let names: BTreeSet<SetId> = (0..5).map(|number| SetId::of(&key(number))).collect();
    assert_eq!(names.len(), 5);
}
