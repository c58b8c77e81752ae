//! What one poll of a machine with many instances costs, part by part: copying the document deeply, sharing its parts, writing it as
//! JSON, reading it again. `cargo run --release -p control --example target_cost`.

#![allow(clippy::print_stdout, reason = "a measurement says what it measured")]

use std::{
    collections::BTreeMap,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use model::{
    id::{AccountId, ImageId, InstanceId, MacAddr, NetworkId, ServerId},
    instance::{Brand, TagValue, Wanted},
    target::{Limits, NicTarget, Target, ZoneTarget},
    time::Timestamp,
    unit::{CpuCap, CpuShares, Mib},
};

/// Instances on the machine.
const INSTANCES: usize = 2_000;
/// Times each part is done; the fastest is told.
const TIMES: usize = 20;

fn main() {
    let (network, image) = (NetworkId::random(), ImageId::random());
    let zones: BTreeMap<InstanceId, ZoneTarget> =
        (0..INSTANCES).map(|number| (InstanceId::random(), zone(number, network, image))).collect();
    let shared: BTreeMap<InstanceId, Arc<ZoneTarget>> =
        zones.iter().map(|(id, zone)| (*id, Arc::new(zone.clone()))).collect();
    let (networks, images) = (BTreeMap::new(), BTreeMap::new());
    let target = Target {
        server: ServerId::random(),
        generation: 1,
        datacenter: "home-1".to_owned(),
        networks,
        images,
        zones,
        firewall: Default::default(),
        underlay: None,
        peers: BTreeMap::new(),
    };
    let text = serde_json::to_vec(&target).expect("a target is JSON");
    println!("{INSTANCES} instances, {} KiB of JSON", text.len() >> 10);
    told("copy deeply", || target.clone());
    told("share the parts", || shared.clone());
    told("write", || serde_json::to_vec(&target));
    told("write what is shared", || serde_json::to_vec(&shared));
    told("read", || serde_json::from_slice::<Target>(&text));
}

fn told<T>(what: &str, mut work: impl FnMut() -> T) {
    let once = |work: &mut dyn FnMut() -> T| {
        let begun = Instant::now();
        black_box(work());
        begun.elapsed()
    };
    let fastest: Duration = (0..TIMES).map(|_| once(&mut work)).min().unwrap_or_default();
    println!("{what:<22} {:>8.3} ms", fastest.as_secs_f64() * 1_000.0);
}

fn zone(number: usize, network: NetworkId, image: ImageId) -> ZoneTarget {
    let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let suffix = u32::try_from(number).unwrap_or(0);
    let nic = |index: u32| NicTarget {
        mac: MacAddr::from_suffix(suffix * 2 + index),
        interface: format!("net{index}"),
        network,
        address: "10.88.0.7/16".parse().expect("an address"),
        gateway: None,
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
        internal_metadata: BTreeMap::new(),
        tags: [("role".to_owned(), TagValue::Bool(true))].into(),
        guest_metadata_seen: 0,
        created_at: Timestamp(0),
    }
}
