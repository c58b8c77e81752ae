//! How soon a committed change is in the answers of the name server, and what names cost.
//!
//! What is real: the store in SQLite with its flushes, the publisher, the feed of zones and the name server, asked over UDP on the loopback
//! device. What is not: instances and machines are records, as years of creates would have left them, and everything shares this
//! process. A change is an instance's tag that makes it a member of a new service; its time runs from before the call until the first answer
//! that has it, which contains the call's own commit (the floor) and the publisher's.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use base::{
    clock::{Clock, SystemClock},
    shutdown::{Shutdown, Trigger},
};
use control::{
    Control, ControlConfig, Scope,
    accounts::{self, NewAccount},
    instances::tags,
    names::{self, NamesConfig},
    networks, servers,
    tables::INSTANCES,
};
use headnode::{Settings, names::NameServer};
use model::{
    id::{AccountId, ImageId, InstanceId, ServerId},
    instance::{Caller, TagValue},
    target::Report,
    time::Timestamp,
};
use store::{Store, sqlite::Sqlite};

use crate::{
    fleet::number,
    report::{Row, Section},
    standing::{self, NETWORKS, World},
};

/// Instances, unless `NESO_BENCH_INSTANCES` says otherwise.
const INSTANCES_COUNT: usize = 20_000;
/// Instances on each machine.
const ON_EACH: u32 = 20;
/// Tenants.
const ACCOUNTS: usize = 100;
/// Changes that are waited for, one after the other.
const CHANGES: usize = 300;
/// Changes that are made before anybody looks.
const STORM: usize = 500;
/// A change must be seen within this time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two questions.
const LOOK: Duration = Duration::from_micros(300);
const ZONE: &str = "bench.example";

/// Runs the benchmark.
pub(crate) fn measure() -> Result<Vec<Section>, String> {
    let count = number("NESO_BENCH_INSTANCES", INSTANCES_COUNT)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start a runtime: {error}"))?;
    // On a task of the runtime, so that the callers run where the store's own tasks run.
    runtime.block_on(async { base::task::spawn("bench", all(count)).await.map_err(|error| error.to_string())? })
}

async fn all(count: usize) -> Result<Vec<Section>, String> {
    let place = Place::filled(count, ACCOUNTS).await?;
    let before = resident_mib()?;
    let begun = Instant::now();
    let done = names::publish_all(&place.control).await.map_err(text)?;
    let publishing = begun.elapsed().as_secs_f64();
    let stored = resident_mib()?;
    let name_count: usize = names::list(&place.control).iter().map(|view| view.names).sum();
    eprintln!("bench names: {} instances with {name_count} names published in {publishing:.1} s", done.instances);

    let (trigger, shutdown) = Shutdown::new();
    let publisher = base::task::spawn("names", names::keep_published(place.control.clone(), shutdown.clone()));
    let (server, clock): (NameServer, Arc<dyn Clock>) = (NameServer::default(), Arc::new(SystemClock));
    let (control, settings) = (place.control.clone(), place.settings.clone());
    let serving = headnode::names::serve(control, settings, None, None, clock, server.clone(), shutdown);
    let serving = base::task::spawn("zones", serving);
    let address = place.address();
    let client = Client::of(address)?;
    client.until(&format!("standing-0.inst.tenant0.{ZONE}")).await?;
    let served = resident_mib()?;

    let (mut committed, mut answered) = (Vec::new(), Vec::new());
    for round in 0..CHANGES {
        let begun = Instant::now();
        let name = place.change(round, &format!("s{round}")).await?;
        committed.push(milliseconds(begun));
        client.until(&name).await?;
        answered.push(milliseconds(begun));
    }
    let begun = Instant::now();
    let mut last = String::new();
    for round in 0..STORM {
        last = place.change(round, &format!("t{round}")).await?;
    }
    let made = milliseconds(begun);
    client.until(&last).await?;
    let seen = milliseconds(begun);
    trigger.fire();
    let (_, _) = (publisher.await, serving.await);

    let row = |name: &str, unit, samples: Vec<f64>| Row { name: name.to_owned(), unit, samples: Ok(samples) };
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    let (instances, name_count) = (done.instances as f64, name_count as f64);
    let per_name = |mib: f64| mib * 1_048_576.0 / name_count;
    Ok(vec![
        Section {
            about: format!("One change at a time, with {count} instances. A store in SQLite, one headnode."),
            rows: vec![
                row("the change is committed", "ms", committed),
                row("the name server answers with it", "ms", answered),
            ],
        },
        Section {
            about: format!("{STORM} changes one after the other, as fast as they are taken."),
            rows: vec![
                Row::one("all are committed", "ms", made),
                Row::one("the name server answers with the last", "ms", seen),
            ],
        },
        Section {
            about: "All names at once, as after a first start; and the memory they take.".to_owned(),
            rows: vec![
                Row::one("instances published", "/s", instances / publishing),
                Row::one("memory of the records, a name", "B", per_name(stored - before)),
                Row::one("memory of records and zones, a name", "B", per_name(served - before)),
            ],
        },
    ])
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

/// A datacenter of records.
pub(crate) struct Place {
    pub(crate) control: Control,
    settings: Settings,
    instances: Vec<(InstanceId, AccountId)>,
    pub(crate) logins: BTreeMap<AccountId, String>,
    directory: PathBuf,
    _trigger: Trigger,
}

impl Drop for Place {
    fn drop(&mut self) {
        // A leftover in the directory for temporary files harms nobody.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Place {
    /// `count` instances of `owners` accounts.
    pub(crate) async fn filled(count: usize, owners: usize) -> Result<Self, String> {
        let directory = std::env::temp_dir().join(format!("neso-bench-names-{}", std::process::id()));
        fs::create_dir_all(&directory).map_err(text)?;
        let mut settings = Settings::parse(&Settings::generate(Some(&directory)).map_err(text)?)?;
        // One client asks over and over what is not there yet.
        settings.names.shared.answers_per_second = 0;
        let (control, trigger) = start(&directory).await?;
        let mut logins = BTreeMap::new();
        for number in 0..owners {
            let login = format!("tenant{number}");
            let new = NewAccount { login: login.clone(), ..NewAccount::default() };
            logins.insert(accounts::create(&control, new).await.map_err(text)?.id, login);
        }
        let mut made = Vec::new();
        for number in 0..NETWORKS {
            made.push(networks::create(&control, standing::network(number)).await.map_err(text)?.id);
        }
        let mut by_login: Vec<(&String, AccountId)> = logins.iter().map(|(id, login)| (login, *id)).collect();
        by_login.sort_by_key(|(login, _)| (login.len(), login.as_str()));
        let owners = by_login.into_iter().map(|(_, id)| id).collect();
        let policy = control.config.placement;
        let world =
            World { accounts: owners, networks: made, image: ImageId::random(), policy, on_each: ON_EACH, jobs: false };
        for number in 0..u32::try_from(count).unwrap_or(u32::MAX) / ON_EACH {
            let (id, transactions) = world.machine(number, Timestamp(SystemClock.now_ms()));
            for transaction in transactions {
                control.store.commit(transaction).await.map_err(text)?;
            }
            report(&control, id, number).await?;
        }
        let snapshot = control.snapshot();
        let instances = snapshot.scan(&INSTANCES).map(|instance| (instance.id, instance.owner)).collect();
        Ok(Self { control, settings, instances, logins, directory, _trigger: trigger })
    }

    fn address(&self) -> SocketAddr {
        self.settings.names.addresses(None)[0]
    }

    /// Makes some instance the only member of a service; the service's name.
    async fn change(&self, round: usize, service: &str) -> Result<String, String> {
        let (id, owner) = self.instances[round * 7 % self.instances.len()];
        let tag = BTreeMap::from([("triton.cns.services".to_owned(), TagValue::Text(format!("{service}:80")))]);
        let control = self.control.for_calls_of(owner);
        tags::replace(&control, &Caller::System, Scope::Account(owner), id, tag).await.map_err(text)?;
        Ok(format!("{service}.svc.{}.{ZONE}", self.logins[&owner]))
    }
}

async fn start(directory: &Path) -> Result<(Control, Trigger), String> {
    let engine = Arc::new(Sqlite::open(&directory.join("store.db")).await.map_err(text)?);
    let store = Store::open(engine, control::schema()).await.map_err(text)?;
    let (trigger, shutdown) = Shutdown::new();
    let mut config = ControlConfig::new("bench-1", directory.join("images"));
    config.names = NamesConfig { new_accounts: true, ..NamesConfig::one(ZONE) };
    // Nothing reports again.
    config.unreachable_after_ms = i64::from(i32::MAX);
    Ok((Control::start(store, Arc::new(SystemClock), config, shutdown), trigger))
}

/// A machine says that it has what its records say.
async fn report(control: &Control, id: ServerId, number: u32) -> Result<(), String> {
    let snapshot = control.snapshot();
    let on = snapshot.find(&INSTANCES, control::tables::BY_SERVER, &id.to_string());
    let report = Report {
        hardware: standing::hardware(),
        zones: on.filter_map(|instance| Some((instance.id, instance.fact.clone()?.into()))).collect(),
        ..Report::bare(id, format!("m{number}"))
    };
    servers::apply_report(control, id, &report).await.map(|_| ()).map_err(text)
}

/// Somebody who asks.
struct Client {
    socket: UdpSocket,
    server: SocketAddr,
}

impl Client {
    fn of(server: SocketAddr) -> Result<Self, String> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(text)?;
        socket.set_read_timeout(Some(Duration::from_millis(200))).map_err(text)?;
        Ok(Self { socket, server })
    }

    /// Asks until a name has an address.
    async fn until(&self, name: &str) -> Result<(), String> {
        let begun = Instant::now();
        let mut id = 0_u16;
        while begun.elapsed() < PATIENCE {
            id = id.wrapping_add(1);
            if tokio::task::block_in_place(|| self.ask(name, id)) {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(format!("{name} has no address within {} s", PATIENCE.as_secs()))
    }

    /// Whether a name has an address.
    fn ask(&self, name: &str, id: u16) -> bool {
        let mut message = id.to_be_bytes().to_vec();
        message.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap_or(0));
            message.extend_from_slice(label.as_bytes());
        }
        message.extend_from_slice(&[0, 0, 1, 0, 1]);
        let mut answer = [0; 1_500];
        if self.socket.send_to(&message, self.server).is_err() {
            return false;
        }
        // What comes may be an answer to the question before.
        while let Ok((bytes, _)) = self.socket.recv_from(&mut answer) {
            if bytes >= 12 && answer[..2] == message[..2] {
                return answer[3] & 15 == 0 && answer[6..8] != [0, 0];
            }
        }
        false
    }
}

fn resident_mib() -> Result<f64, String> {
    let status = fs::read_to_string("/proc/self/status").map_err(text)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().map_err(|_| "VmRSS is no number".to_owned())?;
    Ok(kib / 1_024.0)
}

fn text(error: impl std::error::Error) -> String {
    base::errors::chain(&error)
}
