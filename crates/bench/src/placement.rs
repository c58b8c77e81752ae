//! What it costs to place an instance: the whole of `instances::create` on the memory store, from the request to the commit, with as
//! many machines and instances as a large datacenter has, beside a bare commit of as many records of the same size.
//!
//! Machines and instances are written as records, as years of creates would have left them; then instances are asked for one at a time
//! and many at once. Nothing answers for the machines, so the new instances stay in provisioning: what comes after the commit is
//! not measured here. Following the machines' targets is part of it, since a headnode does that too.

use std::{collections::BTreeMap, fs, sync::Arc, time::Instant};

use base::{
    clock::{Clock as _, SystemClock},
    shutdown::{Shutdown, Trigger},
};
use control::{
    Control, ControlConfig,
    accounts::{self, NewAccount},
    images,
    instances::{self, CreateInstance, NetworkChoice},
    networks,
    packages::{self, NewPackage},
    servers,
    tables::{self, Claim},
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use model::{
    id::{AccountId, ImageId, NetworkId, ServerId},
    instance::Caller,
    target::Report,
    time::Timestamp,
    unit::{CpuCap, CpuShares, Mib},
};
use store::{Engine, Store, Table, Transaction, memory::Memory};

use crate::{
    fleet::{number, stage::cpu_seconds},
    report::{Row, Section},
    standing::{self, NETWORKS, World},
};

/// Machines of the datacenters that are compared beside the one with everything measured.
const SIZES: [u32; 2] = [100, 1_000];
/// Machines of that one, unless `NESO_BENCH_NODES` says otherwise.
const MACHINES: usize = 10_000;
/// Instances on each machine.
const ON_EACH: u32 = 20;
/// Tenants.
const ACCOUNTS: usize = 1_000;
/// Creates measured one at a time.
const SINGLE: usize = 2_000;
/// Creates measured many at once.
const CROWD: usize = 16_000;
/// At once.
const AT_ONCE: usize = 64;

/// Runs the benchmark.
pub(crate) fn measure() -> Result<Vec<Section>, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    // On a task of the runtime, so that the callers run where the store's own tasks run.
    runtime.block_on(async { base::task::spawn("bench", all()).await.map_err(|error| error.to_string())? })
}

async fn all() -> Result<Vec<Section>, String> {
    let mut growth = Vec::new();
    let mut largest = None;
    let most = u32::try_from(number("NESO_BENCH_NODES", MACHINES)?).map_err(|_| "so many machines are none")?;
    for machines in SIZES.into_iter().filter(|size| *size < most).chain([most]) {
        let before = resident_mib()?;
        let began = Instant::now();
        let place = Place::filled(machines).await?;
        eprintln!(
            "{machines} machines, {} instances recorded in {:.1} s",
            machines * ON_EACH,
            began.elapsed().as_secs_f64()
        );
        place.one_at_a_time(SINGLE / 10).await?;
        let memory = resident_mib()? - before;
        growth.push((machines, place.one_at_a_time(SINGLE).await?));
        largest = Some((place, memory));
    }
    let (place, memory) = largest.ok_or("there are sizes")?;
    let engine_mib = place.encoded_bytes() as f64 / f64::from(1 << 20);
    let mut floor = Crowd::default();
    let mut ours = Crowd::default();
    // Interleaved, so that a busy machine slows both.
    for _ in 0..4 {
        floor.add(bare_commits(CROWD / 4, AT_ONCE).await?);
        ours.add(place.crowd(CROWD / 4, AT_ONCE, std::slice::from_ref(&place.control)).await?);
    }
    let eight = place.crowd(CROWD / 4, 8, std::slice::from_ref(&place.control)).await?;
    let second = place.second_headnode().await?;
    let both = [place.control.clone(), second.0.clone()];
    let two = place.crowd(CROWD / 4, AT_ONCE, &both).await?;
    Ok(told(Measured { growth, floor, ours, eight, two, memory, engine_mib }))
}

/// Everything that was measured.
struct Measured {
    growth: Vec<(u32, Vec<f64>)>,
    floor: Crowd,
    ours: Crowd,
    eight: Crowd,
    two: Crowd,
    memory: f64,
    engine_mib: f64,
}

fn told(measured: Measured) -> Vec<Section> {
    let Measured { growth, floor, ours, eight, two, memory, engine_mib } = measured;
    let floor_rate =
        Row { name: "a bare commit of six records".to_owned(), unit: "/s", samples: Ok(floor.rates.clone()) };
    let most = growth.last().map_or(0, |(machines, _)| *machines);
    let apart = |crowd: &Crowd| format!("{} of {}", crowd.again, crowd.millis.len());
    let work = |name: &str, crowd: &Crowd| Row { name: name.to_owned(), unit: "ms", samples: Ok(crowd.cpu.clone()) };
    let work = vec![
        work("a bare commit of six records", &floor),
        work("a create", &ours),
        work("a create, two headnodes: both together", &two),
    ];
    vec![
        Section {
            about: format!(
                "Committed creates per second, {AT_ONCE} at once, on {most} machines with {} instances in the memory store. Decisions made again: {} on one headnode; {} where two headnodes share the store and half of the creates each.",
                most * ON_EACH,
                apart(&ours),
                apart(&two),
            ),
            rows: vec![
                floor_rate,
                Row { name: "a create".to_owned(), unit: "/s", samples: Ok(ours.rates.clone()) },
                Row { name: "a create, 8 at once".to_owned(), unit: "/s", samples: Ok(eight.rates) },
                Row { name: "a create, two headnodes".to_owned(), unit: "/s", samples: Ok(two.rates) },
            ],
        },
        Section {
            about: "Processor time of each of those. The two headnodes are in one process and have one machine's processors between them, so \
                    what each pays for the other's creates is missing from their rate."
                .to_owned(),
            rows: work,
        },
        Section {
            about: format!(
                "From request to commit, one at a time, while the datacenter grows; {ON_EACH} instances a machine."
            ),
            rows: growth
                .into_iter()
                .map(|(machines, millis)| Row { name: format!("{machines} machines"), unit: "ms", samples: Ok(millis) })
                .collect(),
        },
        Section {
            about: "The same among many.".to_owned(),
            rows: vec![
                Row { name: format!("a bare commit, {AT_ONCE} at once"), unit: "ms", samples: Ok(floor.millis) },
                Row { name: "a create, 8 at once".to_owned(), unit: "ms", samples: Ok(eight.millis) },
                Row { name: format!("a create, {AT_ONCE} at once"), unit: "ms", samples: Ok(ours.millis) },
            ],
        },
        Section {
            about: format!(
                "Resident memory that {most} machines and {} instances take. The memory store keeps the encoded records beside the decoded ones; SQLite has them on disk.",
                most * ON_EACH
            ),
            rows: vec![
                Row::one("all", "MiB", memory),
                Row::one("of it the memory store's own, at least", "MiB", engine_mib),
            ],
        },
    ]
}

/// What many callers at once came to.
#[derive(Default)]
struct Crowd {
    /// Commits per second, per round.
    rates: Vec<f64>,
    /// Processor time of each, milliseconds, per round.
    cpu: Vec<f64>,
    millis: Vec<f64>,
    /// Decisions that were made again.
    again: u64,
}

impl Crowd {
    /// `count` of them, since `began`, when this process had had so many seconds of a processor.
    fn of(count: usize, began: Instant, cpu: f64, millis: Vec<f64>) -> Self {
        let (took, work) = (began.elapsed().as_secs_f64(), cpu_seconds(std::process::id()) - cpu);
        Self { rates: vec![count as f64 / took], cpu: vec![work * 1e3 / count as f64], millis, again: 0 }
    }

    fn add(&mut self, other: Self) {
        self.rates.extend(other.rates);
        self.cpu.extend(other.cpu);
        self.millis.extend(other.millis);
        self.again += other.again;
    }
}

/// A datacenter in memory.
struct Place {
    engine: Arc<Memory>,
    control: Control,
    world: World,
    servers: Vec<ServerId>,
    _trigger: Trigger,
    directory: std::path::PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        // A leftover in the directory for temporary files harms nobody.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Place {
    async fn filled(machines: u32) -> Result<Self, String> {
        let engine = Arc::new(Memory::new());
        let directory = std::env::temp_dir().join(format!("neso-bench-{}-{machines}", std::process::id()));
        let (control, trigger) = start(engine.clone(), &directory).await?;
        let mut accounts = Vec::with_capacity(ACCOUNTS);
        for number in 0..ACCOUNTS {
            let new = NewAccount { login: format!("tenant{number}"), ..NewAccount::default() };
            accounts.push(accounts::create(&control, new).await.map_err(text)?.id);
        }
        packages::create(&control, package()).await.map_err(text)?;
        let mut networks = Vec::new();
        for number in 0..NETWORKS {
            networks.push(networks::create(&control, standing::network(number)).await.map_err(text)?.id);
        }
        let image = image(&control, accounts[0]).await?;
        let policy = control.config.placement;
        let world = World { accounts, networks, image, policy, on_each: ON_EACH, jobs: false };
        let mut place = Self { engine, control, world, servers: Vec::new(), _trigger: trigger, directory };
        for number in 0..machines {
            let (id, transactions) = place.world.machine(number, Timestamp(SystemClock.now_ms()));
            for transaction in transactions {
                place.control.store.commit(transaction).await.map_err(text)?;
            }
            place.servers.push(id);
        }
        place.report(&place.control).await?;
        Ok(place)
    }

    /// Every machine is heard of.
    async fn report(&self, control: &Control) -> Result<(), String> {
        for (number, id) in self.servers.iter().enumerate() {
            let report = Report { hardware: standing::hardware(), ..Report::bare(*id, format!("m{number}")) };
            servers::apply_report(control, *id, &report).await.map_err(text)?;
        }
        Ok(())
    }

    /// Another control plane over the same records.
    async fn second_headnode(&self) -> Result<(Control, Trigger), String> {
        let second = start(self.engine.clone(), &self.directory).await?;
        self.report(&second.0).await?;
        Ok(second)
    }

    async fn create(&self, control: &Control, number: usize) -> Result<(), String> {
        let World { accounts, networks, image, .. } = &self.world;
        let owner = accounts[number % accounts.len()];
        let request = CreateInstance {
            package: "bench".to_owned(),
            image: image.to_string(),
            networks: vec![NetworkChoice::any(networks[number % networks.len()])],
            ..CreateInstance::default()
        };
        instances::create(control, &Caller::System, owner, request).await.map(drop).map_err(text)
    }

    async fn one_at_a_time(&self, count: usize) -> Result<Vec<f64>, String> {
        let mut millis = Vec::with_capacity(count);
        for number in 0..count {
            let began = Instant::now();
            self.create(&self.control, number).await?;
            millis.push(began.elapsed().as_secs_f64() * 1e3);
        }
        Ok(millis)
    }

    /// `count` creates, so many at once, taking turns at `controls`.
    async fn crowd(&self, count: usize, at_once: usize, controls: &[Control]) -> Result<Crowd, String> {
        let again = || controls.iter().map(|control| control.store.decided_again()).sum::<u64>();
        let before = again();
        let (began, cpu) = (Instant::now(), cpu_seconds(std::process::id()));
        let run = |number: usize| async move {
            let began = Instant::now();
            self.create(&controls[number % controls.len()], number).await?;
            Ok::<_, String>(began.elapsed().as_secs_f64() * 1e3)
        };
        let millis = crowd(count, at_once, run).await?;
        Ok(Crowd { again: again() - before, ..Crowd::of(count, began, cpu, millis) })
    }

    /// Bytes of all records as they are stored.
    fn encoded_bytes(&self) -> usize {
        fn bytes<T: serde::Serialize>(snapshot: &store::Snapshot, table: &'static Table<T>) -> usize {
            snapshot.scan(table).map(|entry| serde_json::to_vec(&entry.value).map_or(0, |text| text.len())).sum()
        }
        let snapshot = self.control.snapshot();
        bytes(&snapshot, &tables::INSTANCES)
            + bytes(&snapshot, &tables::CLAIMS)
            + bytes(&snapshot, &tables::ADDRESSES)
            + bytes(&snapshot, &tables::SERVERS)
    }
}

/// Runs `run` for each number below `count`, so many at once; what each returned.
async fn crowd<F: Future<Output = Result<f64, String>>>(
    count: usize,
    at_once: usize,
    run: impl Fn(usize) -> F,
) -> Result<Vec<f64>, String> {
    let mut running: FuturesUnordered<_> = (0..at_once.min(count)).map(&run).collect();
    let (mut next, mut all) = (at_once.min(count), Vec::with_capacity(count));
    while let Some(one) = running.next().await {
        all.push(one?);
        if next < count {
            running.push(run(next));
            next += 1;
        }
    }
    Ok(all)
}

/// Six records like those of a create, without a decision.
async fn bare_commits(count: usize, at_once: usize) -> Result<Crowd, String> {
    let store = Store::open(Arc::new(Memory::new()), control::schema()).await.map_err(text)?;
    let now = Timestamp(SystemClock.now_ms());
    let (owner, image, network, server) =
        (AccountId::random(), ImageId::random(), NetworkId::random(), ServerId::random());
    let (began, cpu) = (Instant::now(), cpu_seconds(std::process::id()));
    let run = |number: usize| {
        let store = &store;
        async move {
            let began = Instant::now();
            let instance = standing::full(u32::try_from(number).unwrap_or(0), owner, image, network, server, now);
            let claim = |kind: &str| Claim { name: format!("{kind}/{}", instance.id), holder: instance.id.to_string() };
            let transaction = ["alias", "mac", "address", "server", "flow"]
                .iter()
                .fold(Transaction::new(), |all, kind| all.create(&tables::CLAIMS, claim(kind)))
                .create(&tables::INSTANCES, instance.clone());
            store.commit(transaction).await.map_err(text)?;
            Ok::<_, String>(began.elapsed().as_secs_f64() * 1e3)
        }
    };
    let millis = crowd(count, at_once, run).await?;
    Ok(Crowd::of(count, began, cpu, millis))
}

async fn start(engine: Arc<Memory>, directory: &std::path::Path) -> Result<(Control, Trigger), String> {
    let engine: Arc<dyn Engine> = engine;
    let store = Store::open(engine, control::schema()).await.map_err(text)?;
    let mut config = ControlConfig::new("bench", directory.join("images"));
    // Nobody reports while we measure.
    config.unreachable_after_ms = 24 * 60 * 60 * 1_000;
    let (trigger, shutdown) = Shutdown::new();
    Ok((Control::start(store, Arc::new(SystemClock), config, shutdown), trigger))
}

async fn image(control: &Control, owner: AccountId) -> Result<ImageId, String> {
    let id = ImageId::random();
    let manifest = serde_json::json!({
        "v": 2, "uuid": id, "name": "bench", "version": "1", "os": "linux", "type": "lx-dataset", "public": true,
        "files": [{"sha1": "0e76292794888d4f1fa75fb3aff4ca27c58f56a6", "size": 5, "compression": "none"}],
    });
    let manifest = model::image::manifest::parse(manifest.to_string().as_bytes()).map_err(|error| error.to_string())?;
    images::create(control, owner, manifest).await.map_err(text)?;
    let content = futures_util::stream::iter([Ok(bytes::Bytes::from_static(b"image"))]);
    images::add_file(control, id, content).await.map_err(text)?;
    Ok(id)
}

fn package() -> NewPackage {
    NewPackage {
        id: None,
        name: "bench".to_owned(),
        version: "1.0.0".to_owned(),
        group: None,
        description: None,
        memory: Mib(1_024),
        swap: None,
        disk: Mib(10_240),
        max_processes: 500,
        vcpus: 0,
        cpu_cap: Some(CpuCap(100)),
        cpu_shares: CpuShares(100),
        traits: BTreeMap::new(),
        brand: None,
    }
}

fn resident_mib() -> Result<f64, String> {
    let status =
        fs::read_to_string("/proc/self/status").map_err(|error| format!("cannot read /proc/self/status: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().map_err(|_| "VmRSS is no number".to_owned())?;
    Ok(kib / 1_024.0)
}

fn text(error: impl std::error::Error) -> String {
    base::errors::chain(&error)
}
