//! What one change costs on a machine with many instances, part by part: the whole document as JSON and back, and what is new in it.
//! `cargo run --release -p control --example target_cost`.

#![allow(clippy::print_stdout, reason = "a measurement says what it measured")]

use std::{
    collections::BTreeMap,
    hint::black_box,
    time::{Duration, Instant},
};

use model::{
    delta::TargetDelta,
    id::{AccountId, ImageId, InstanceId, MacAddr, NetworkId, ServerId},
    instance::{Brand, TagValue, Wanted},
    pairs::Pairs,
    target::{Limits, NicTarget, Target, ZoneTarget},
    time::Timestamp,
    unit::{CpuCap, CpuShares, Mib},
};

/// Instances on the machine.
const INSTANCES: [usize; 3] = [1, 300, 2_000];
/// Times each part is done; the fastest is told.
const TIMES: usize = 20;

fn main() {
    for instances in INSTANCES {
        let (network, image) = (NetworkId::random(), ImageId::random());
        let zones = (0..instances).map(|number| (InstanceId::random(), zone(number, network, image).into())).collect();
        let target = Target {
            server: ServerId::random(),
            generation: 1,
            datacenter: "home-1".to_owned(),
            networks: BTreeMap::new(),
            images: BTreeMap::new(),
            zones,
            firewall: Default::default(),
            underlay: None,
            vxlan_port: model::network::VXLAN_PORT,
            peers: Default::default(),
            headnode: None,
            headnodes: Vec::new(),
        };
        let mut next = Target { generation: 2, ..target.clone() };
        next.zones.insert(InstanceId::random(), zone(instances, network, image).into());
        let text = serde_json::to_vec(&next).expect("a target is JSON");
        let delta = TargetDelta::between(&target, &next);
        let short = serde_json::to_vec(&delta).expect("a delta is JSON");
        println!("{instances} instances: {} KiB, one more in {} bytes", text.len() >> 10, short.len());
        told("write the whole", || serde_json::to_vec(&next));
        told("read the whole", || serde_json::from_slice::<Target>(&text));
        told("tell what is new", || TargetDelta::between(&target, &next));
        told("write what is new", || serde_json::to_vec(&delta));
        told("read what is new", || serde_json::from_slice::<TargetDelta>(&short));
        told("apply what is new", || delta.apply(&target));
    }
}

fn told<T>(what: &str, mut work: impl FnMut() -> T) {
    let once = |work: &mut dyn FnMut() -> T| {
        let begun = Instant::now();
        black_box(work());
        begun.elapsed()
    };
    let fastest: Duration = (0..TIMES).map(|_| once(&mut work)).min().unwrap_or_default();
    println!("  {what:<20} {:>8.3} ms", fastest.as_secs_f64() * 1_000.0);
}

fn zone(number: usize, network: NetworkId, image: ImageId) -> ZoneTarget {
    let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let suffix = u32::try_from(number).unwrap_or(0);
    let nic = |index: u32| NicTarget {
        mac: MacAddr::from_suffix(suffix * 2 + index),
        interface: format!("net{index}"),
        network,
        address: Some("10.88.0.7/16".parse().expect("an address")),
        gateway: None,
        addresses6: Vec::new(),
        gateway6: None,
        primary: index == 0,
        mtu: 1500,
    };
    ZoneTarget {
        wanted: Wanted::Running,
        starts: 1,
        reboots: 0,
        owner: AccountId::random(),
        alias: format!("instance-{number}"),
        hostname: format!("instance-{number}"),
        brand: Brand::Lx,
        image,
        package_name: "g1-nano".to_owned(),
        package_version: None,
        package: None,
        limits: Limits {
            memory: Mib(128),
            swap: Mib(256),
            disk: Mib(2_048),
            max_processes: 500,
            cpu_cap: Some(CpuCap(50)),
            cpu_shares: CpuShares(100),
        },
        nics: vec![nic(0), nic(1)],
        resolvers: vec!["9.9.9.9".parse().expect("an address")],
        dns_domain: Some("local".to_owned()),
        routes: BTreeMap::new(),
        metadata: [
            text(
                "root_authorized_keys",
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChWuICtWsDLLf3lpEfHpVlJ3YRcwTc5nhP7XFyOs me@here\n",
            ),
            text("user-script", "#!/bin/sh\necho hello\n"),
        ]
        .into(),
        internal_metadata: Pairs::default(),
        tags: [("role".to_owned(), TagValue::Bool(true))].into(),
        guest_metadata_seen: 0,
        created_at: Timestamp(0),
    }
}
