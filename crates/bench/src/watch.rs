//! How soon a change that one headnode commits is known everywhere: by another headnode's mirror, and by every machine it concerns.
//!
//! What is real: three headnode processes, each with a member of the store beside it, the signed request, an agent per machine with its own
//! certificate and connection, a third of them at each headnode, and the documents as they travel. What is not: the machines are in memory and
//! share one process, and all of it shares the processors of this machine. A document counts as held when the agent has read it; it
//! then writes it down and goes to work. Times are from before the request is signed, so the commit itself is in all of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use base::shutdown::Shutdown;
use cloudapi::client::Client;
use control::tables;
use http::Method;
use serde_json::json;
use store::{Revision, Store};

use crate::{
    datacenter::now_ms,
    fleet::{
        filtered::{Furnished, forgotten, furnish},
        number,
        stage::Stage,
        watch::Watched,
    },
    report::{Row, Section},
};

/// Machines, unless `NESO_BENCH_NODES` says otherwise.
const MACHINES: usize = 1_000;
/// Headnodes.
const HEADNODES: usize = 3;
/// Filtered instances for each two machines: some machines have none.
const FOR_TWO: usize = 3;
/// Requests under way while they are made.
const AT_ONCE: usize = 32;
/// Changes that concern one machine.
const SMALL: usize = 300;
/// Changes that concern all.
const LARGE: usize = 30;
/// Machines have this long to report, a change to be known.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what the agents said.
const LOOK: Duration = Duration::from_millis(20);
/// After a change: what it left to do is done.
const REST: Duration = Duration::from_millis(100);

/// Runs the benchmark.
pub(crate) fn measure() -> Result<Vec<Section>, String> {
    let machines = number("NESO_BENCH_NODES", MACHINES)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start a runtime: {error}"))?;
    let stage = runtime.block_on(Stage::of(machines, HEADNODES))?;
    let _headnodes = (0..HEADNODES).map(|number| stage.headnode_number(number)).collect::<Result<Vec<_>, _>>()?;
    let agents = stage.agents()?;
    agents.all_report_after(0.0, PATIENCE)?;
    let client = stage.clients.first().ok_or("there are no tenants")?;
    runtime.block_on(async {
        let count = machines * FOR_TWO / 2;
        let furnished = furnish(&stage, client, count, AT_ONCE).await?;
        eprintln!("bench watch: {count} instances on {} of {machines} machines", furnished.machines);
        // Another headnode's mirror, in this process so that it can be watched.
        let mirror = Mirror::follow(stage.store().await?);
        let measured = Measuring { stage: &stage, agents: &agents, mirror: &mirror, furnished: &furnished };
        measured.sections(machines).await
    })
}

struct Measuring<'a> {
    stage: &'a Stage,
    agents: &'a Watched,
    mirror: &'a Mirror,
    furnished: &'a Furnished,
}

/// Milliseconds from the beginning of requests.
#[derive(Default)]
struct Times {
    answered: Vec<f64>,
    mirrored: Vec<f64>,
    held: Vec<f64>,
    last: Vec<f64>,
}

impl Measuring<'_> {
    async fn sections(&self, machines: usize) -> Result<Vec<Section>, String> {
        let (mut one, mut all) = (Times::default(), Times::default());
        for round in 0..SMALL {
            self.one(round, &mut one).await?;
        }
        for round in 0..LARGE {
            self.all(round, &mut all).await?;
        }
        let row = |name: &str, samples| Row { name: name.to_owned(), unit: "ms", samples: Ok(samples) };
        let about = format!(
            "From a tenant's request at one of {HEADNODES} headnodes, in turns, with {machines} machines shared by them; over a store of {HEADNODES} \
             members."
        );
        Ok(vec![
            Section {
                about: format!("{about} An instance's metadata, which concerns one machine."),
                rows: vec![
                    row("another headnode's mirror shows it", one.mirrored),
                    row("the request is answered", one.answered),
                    row("its machine holds the new document", one.held),
                ],
            },
            Section {
                about: format!("{about} A firewall rule, which concerns {} machines.", self.furnished.machines),
                rows: vec![
                    row("another headnode's mirror shows it", all.mirrored),
                    row("the request is answered", all.answered),
                    row("a machine holds the new document", all.held),
                    row("the last machine does", all.last),
                ],
            },
        ])
    }

    fn door(&self, round: usize) -> &Client {
        &self.stage.doors[round % self.stage.doors.len()]
    }

    async fn one(&self, round: usize, times: &mut Times) -> Result<(), String> {
        let id = self.furnished.ids[round % self.furnished.ids.len()];
        let begun = self.begin();
        let pair = BTreeMap::from([("round".to_owned(), round.to_string())]);
        self.door(round).metadata_add(id, &pair).await.map_err(|error| error.to_string())?;
        times.answered.push(now_ms() - begun);
        self.known(begun, (tables::INSTANCES.name, &id.to_string()), 1, times).await
    }

    async fn all(&self, round: usize, times: &mut Times) -> Result<(), String> {
        let door = self.door(round);
        let rule = format!("FROM any TO all vms ALLOW tcp PORT {}", 2_000 + round);
        let body = json!({"rule": rule, "enabled": true});
        let begun = self.begin();
        let made = door.call(Method::POST, "/my/fwrules", Some(&body)).await.map_err(|error| error.to_string())?;
        times.answered.push(now_ms() - begun);
        let id = made["id"].as_str().ok_or("a rule without an id")?;
        self.known(begun, (tables::FIREWALL_RULES.name, id), self.furnished.machines, times).await?;
        forgotten(door, id).await
    }

    /// Forgets what was noted before.
    fn begin(&self) -> f64 {
        self.mirror.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.agents.take_told();
        now_ms()
    }

    /// Waits until a record's first change since `begun` is known to the mirror and to so many machines.
    async fn known(&self, begun: f64, record: (&str, &str), machines: usize, times: &mut Times) -> Result<(), String> {
        let patience = Instant::now();
        let mut told = Vec::new();
        loop {
            tokio::time::sleep(LOOK).await;
            told.extend(self.agents.take_told());
            let shown = self.mirror.shown(record);
            let late = patience.elapsed() > PATIENCE;
            let Some((revision, at_ms)) = shown else {
                match late {
                    true => return Err(format!("no headnode shows {record:?}")),
                    false => continue,
                }
            };
            let mut held: BTreeMap<usize, f64> = BTreeMap::new();
            for told in told.iter().filter(|told| told.generation >= revision.0) {
                held.entry(told.machine).or_insert(told.at_ms - begun);
            }
            if held.len() < machines {
                match late {
                    true => return Err(format!("{} of {machines} machines hold {record:?}", held.len())),
                    false => continue,
                }
            }
            times.mirrored.push(at_ms - begun);
            times.last.push(held.values().copied().fold(0.0, f64::max));
            times.held.extend(held.values());
            tokio::time::sleep(REST).await;
            return Ok(());
        }
    }
}

/// What another headnode's mirror has shown, and when.
struct Mirror {
    // A leaf lock, held to add one, to look one up, or to forget all.
    seen: Arc<Mutex<Vec<Seen>>>,
    _stop: base::shutdown::Trigger,
}

struct Seen {
    record: (&'static str, Arc<str>),
    revision: Revision,
    at_ms: f64,
}

impl Mirror {
    fn follow(store: Store) -> Self {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (stop, shutdown) = Shutdown::new();
        let noted = seen.clone();
        base::task::spawn("bench-mirror", async move {
            let mut changes = store.changes();
            while let Some(change) = shutdown.unless(changes.next()).await {
                let at_ms = now_ms();
                let of = |record: &(&'static str, Arc<str>)| {
                    // Deleted ones have no revision of their own.
                    let revision = change.snapshot.revision_of(record.0, &record.1).unwrap_or(change.revision);
                    Seen { record: record.clone(), revision, at_ms }
                };
                noted.lock().unwrap_or_else(PoisonError::into_inner).extend(change.keys.iter().map(of));
            }
        });
        Self { seen, _stop: stop }
    }

    fn shown(&self, (table, key): (&str, &str)) -> Option<(Revision, f64)> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let found = seen.iter().find(|seen| seen.record.0 == table && *seen.record.1 == *key);
        found.map(|seen| (seen.revision, seen.at_ms))
    }
}
