//! How long links, filters and datasets take on this machine, at the first instance and at the last of many.
//!
//! `cargo run --release -p host --example net_times -- [instances]`, as root. All happens in a network namespace and a pool
//! of its own; nothing is left. Each column is the median of the first and of the last tenth of the instances.

use std::{fs::File, os::fd::AsRawFd, path::PathBuf, time::Instant};

use host::{
    dataset::Datasets,
    filter::{BridgeFilter, FilterSet, Filters, NicFilter},
    link::{LinkNames, Links, NetworkSetup},
    linux::{
        dataset::LinuxDatasets,
        filter::LinuxFilters,
        link::LinuxLinks,
        pool::{self, Backing, PoolConfig},
    },
};
use model::{
    id::{ImageId, InstanceId, MacAddr, NetworkId},
    image::Compression,
    target::{NetworkTarget, NicTarget},
    unit::Mib,
};
use nix::sched::{CloneFlags, unshare};
use sha2::{Digest, Sha256};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let instances = std::env::args().nth(1).map_or(Ok(300), |count| count.parse())?;
    let mut out = String::new();
    out.push_str(&datasets(instances)?);
    unshare(CloneFlags::CLONE_NEWNET)?;
    out.push_str(&network(instances)?);
    std::io::Write::write_all(&mut std::io::stdout(), out.as_bytes())?;
    Ok(())
}

/// Medians of the first and the last tenth, milliseconds.
fn line(name: &str, times: &[f64]) -> String {
    let median = |part: &[f64]| {
        let mut part = part.to_vec();
        part.sort_by(f64::total_cmp);
        part.get(part.len() / 2).copied().unwrap_or_default()
    };
    let tenth = (times.len() / 10).max(1);
    format!(
        "{name:<28} first {:8.2} ms   last {:8.2} ms\n",
        median(&times[..tenth]),
        median(&times[times.len() - tenth..])
    )
}

fn timed<R>(times: &mut Vec<f64>, work: impl FnOnce() -> Result<R, host::Error>) -> Result<R, Failure> {
    let start = Instant::now();
    let done = work()?;
    times.push(start.elapsed().as_secs_f64() * 1000.0);
    Ok(done)
}

fn datasets(instances: usize) -> Result<String, Failure> {
    let place = tempfile::Builder::new().prefix("neso-times-").tempdir()?;
    let backing = Backing::File { path: place.path().join("pool.img"), size: Mib(4096) };
    let config = PoolConfig { dir: place.path().join("pool"), backing };
    let measured = with_pool(&config, instances);
    // Whatever went wrong, nothing stays mounted.
    pool::release(&config)?;
    measured
}

fn with_pool(config: &PoolConfig, instances: usize) -> Result<String, Failure> {
    let mut opening = Vec::new();
    let pool = timed(&mut opening, || LinuxDatasets::open(config))?;
    let mut builder = tar::Builder::new(Vec::new());
    for at in 0..200 {
        let mut header = tar::Header::new_gnu();
        header.set_size(20_000);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        builder.append_data(&mut header, format!("dir{}/file{at}", at % 10), &[7; 20_000][..])?;
    }
    let archive = builder.into_inner()?;
    let sha: String = Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
    let image = ImageId::random();
    let mut importing = Vec::new();
    timed(&mut importing, || pool.import(image, &sha, Compression::None, &mut archive.as_slice()))?;
    let ids: Vec<InstanceId> = (0..instances).map(|_| InstanceId::random()).collect();
    let (mut cloning, mut removing) = (Vec::new(), Vec::new());
    for id in &ids {
        let root = timed(&mut cloning, || pool.clone_image(image, *id, Mib(64)))?;
        std::fs::write(root.join("written"), [1; 4096])?;
    }
    for id in &ids {
        timed(&mut removing, || pool.remove_root(*id))?;
    }
    Ok(line("pool made", &opening)
        + &line("image of 4 MB", &importing)
        + &line("clone", &cloning)
        + &line("remove", &removing))
}

fn network(instances: usize) -> Result<String, Failure> {
    let names = LinkNames::default();
    let (links, filters) = (LinuxLinks::new(names.clone()), LinuxFilters::new("neso", names));
    let subnet = "10.88.0.0/16".parse()?;
    let network = NetworkTarget {
        nic_tag: "ext".to_owned(),
        vlan: 0,
        subnet: Some(subnet),
        host_address: Some([10, 88, 0, 1].into()),
        nat: true,
        mtu: 1500,
        ..NetworkTarget::default()
    };
    let mut set = FilterSet::default();
    let bridge = links.ensure_bridge(&network)?;
    set.bridges.insert(bridge, BridgeFilter::of(&network));
    let mut loading = Vec::new();
    timed(&mut loading, || filters.apply(&set))?;
    let (mut attaching, mut again, mut filtering, mut listing) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut zones = Vec::new();
    for at in 0..instances {
        let id = InstanceId::random();
        let [_, _, high, low] = u32::try_from(at + 256)?.to_be_bytes();
        let mac = MacAddr::from_suffix(u32::try_from(at + 1)?);
        let address: ipnet::Ipv4Net = format!("10.88.{high}.{low}/16").parse()?;
        let nic = NicTarget {
            mac,
            interface: "eth0".to_owned(),
            network: NetworkId::random(),
            address: Some(address),
            gateway: network.host_address,
            addresses6: Vec::new(),
            gateway6: None,
            primary: true,
            mtu: 1500,
        };
        let namespace = std::thread::spawn(|| -> Result<File, Failure> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        let namespace = namespace.join().map_err(|_| "the thread that makes a namespace died")??;
        let path = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
        let setup = NetworkSetup { nics: vec![(nic, network.clone())], routes: Default::default() };
        timed(&mut attaching, || links.attach(id, &path, &setup))?;
        timed(&mut again, || links.attach(id, &path, &setup))?;
        set.nics.insert(mac, NicFilter { instance: id, addresses: vec![address.addr().into()] });
        timed(&mut filtering, || filters.apply(&set))?;
        timed(&mut listing, || links.nics())?;
        zones.push((id, namespace));
    }
    let mut reloading = Vec::new();
    let fresh = LinuxFilters::new("neso", LinkNames::default());
    timed(&mut reloading, || fresh.apply(&set))?;
    let mut detaching = Vec::new();
    for (id, _) in &zones {
        timed(&mut detaching, || links.detach(*id))?;
    }
    Ok(line("filters loaded, no NIC", &loading)
        + &line("attach", &attaching)
        + &line("attach what is there", &again)
        + &line("filter one NIC more", &filtering)
        + &line("list NICs", &listing)
        + &line("filters loaded, all NICs", &reloading)
        + &line("detach", &detaching))
}
