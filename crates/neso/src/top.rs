//! `neso top`: the datacenter at a glance, and who is busy in it: machines, the hottest instances, flows under way, alerts.
//!
//! On a terminal it is drawn anew every few seconds until it is interrupted, cut to what the terminal shows; anywhere else, and as JSON, it is
//! one answer. What is shown is asked of the ops API, and alerts of this machine's Prometheus, if it has one. Rates are what grew between two
//! looks, so there is a first look that is not shown. Nothing is asked of every instance: machines tell what theirs use, and only those that are
//! shown are looked up.

mod look;
mod screen;
mod words;

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _},
    time::Duration,
};

use model::{
    id::{InstanceId, ServerId},
    meters::{InstanceMeters, NodeMeters},
    rates::{self, Between, InstanceRates, MachineRates},
    time::Timestamp,
};
use opsapi::{InstanceView, ServerView};
use serde::Serialize;

use self::look::Look;
use crate::{
    adm::{self, alerts},
    answer,
    context::Place,
    failure::{Failure, Outcome},
};

/// Between two looks at least, seconds: machines read their counters no more often, and those with many instances less.
const APART_MIN: u64 = 6;
/// Instances, machines, flows and alerts that are shown where no screen limits them; the first can be chosen.
const INSTANCES: u16 = 15;
const ROWS: usize = 10;

/// What is wished for.
#[derive(Debug, clap::Args)]
pub(crate) struct Command {
    /// Print JSON, once.
    #[arg(short, long)]
    json: bool,
    /// Print once, also on a terminal.
    #[arg(long)]
    once: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = APART_MIN, value_parser = clap::value_parser!(u64).range(APART_MIN..=3_600))]
    every: u64,
    /// Instances shown.
    #[arg(short = 'n', long, value_name = "ROWS", default_value_t = INSTANCES, value_parser = clap::value_parser!(u16).range(1..=200))]
    instances: u16,
}

impl Command {
    /// It draws until it is interrupted.
    pub(crate) fn is_endless(&self) -> bool {
        !self.json && !self.once && io::stdout().is_terminal()
    }
}

/// Runs it.
pub(crate) async fn run(place: &Place, command: Command) -> Outcome {
    let settings = place.settings()?;
    let client = adm::client(&settings)?;
    let most = usize::from(command.instances);
    let is_drawn = command.is_endless();
    if is_drawn {
        screen::draw("looking …", screen::Before::Anything)?;
    }
    let (mut before, mut last) = (Readings::new(), Look::take(&client, &settings).await?.meters);
    let mut shown: Option<Top> = None;
    for looks in 1_u64.. {
        tokio::time::sleep(Duration::from_secs(command.every)).await;
        let outcome = match Look::take(&client, &settings).await {
            Ok(now) => {
                remember(&mut before, last, &now.meters);
                let is_known = now.meters.keys().all(|server| before.contains_key(server));
                if !is_drawn && !is_known && looks < LOOKS_MAX {
                    last = now.meters;
                    continue;
                }
                let hottest = hottest(&before, &now, most);
                let known = look::known(&client, hottest.iter().map(|hot| hot.id)).await;
                let top = top(&before, &now, &hottest, &known);
                last = now.meters;
                Ok(top)
            }
            Err(failure) => Err(failure),
        };
        if !is_drawn {
            let top = outcome?;
            let text = match command.json {
                true => serde_json::to_string_pretty(&top)?,
                false => words::text(&top, words::Rows { machines: ROWS, instances: most, flows: ROWS, alerts: ROWS }),
            };
            return Ok(answer::print(text)?);
        }
        // A headnode that starts anew is waited for, with what was last known on the screen.
        let failure = match outcome {
            Ok(top) => {
                shown = Some(top);
                None
            }
            Err(failure) => Some(failure),
        };
        screen::draw(&picture(shown.as_ref(), failure.as_ref(), most), screen::Before::Picture)?;
    }
    Ok(())
}

/// Looks until each machine has told something else, where one answer is wanted.
const LOOKS_MAX: u64 = 5;

/// What machines have told, each at some time.
type Readings = BTreeMap<ServerId, NodeMeters>;

/// Keeps of each machine the reading before the one that it tells `now`. A machine tells the same for some seconds, so that two looks may see one
/// reading.
fn remember(before: &mut Readings, last: Readings, now: &Readings) {
    let is_new = |server: &ServerId, meters: &NodeMeters| now.get(server).is_none_or(|now| now.at != meters.at);
    before.extend(last.into_iter().filter(|(server, meters)| is_new(server, meters)));
}

/// What a screen shows: what was last known, and why that is not newer.
fn picture(shown: Option<&Top>, failure: Option<&Failure>, most: usize) -> String {
    let (_, rows) = screen::size();
    let failed = failure.map(|failure| format!("! nothing new: {failure}\n")).unwrap_or_default();
    match shown {
        None => failed,
        Some(top) => {
            let taken = failed.lines().count() + 1;
            format!("{failed}{}", words::text(top, words::Rows::on(usize::from(rows).saturating_sub(taken), top, most)))
        }
    }
}

/// What is shown.
#[derive(Debug, Serialize)]
struct Top {
    now: Timestamp,
    datacenter: String,
    counts: opsapi::Counts,
    findings: Vec<String>,
    machines: Vec<Machine>,
    instances: Vec<Instance>,
    flows: Vec<Flow>,
    /// `None` when it is not known whether there are any.
    alerts: Option<Vec<alerts::Alert>>,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    alerts_missing: Option<String>,
}

#[derive(Debug, Serialize)]
struct Machine {
    id: ServerId,
    hostname: String,
    reachable: bool,
    /// How many run, of those that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    running: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instances: Option<usize>,
    #[serde(flatten)]
    rates: Option<MachineRates>,
}

#[derive(Debug, Serialize)]
struct Instance {
    id: InstanceId,
    /// `None` where no record knows it.
    name: Option<String>,
    owner: Option<String>,
    machine: String,
    state: Option<String>,
    #[serde(flatten)]
    rates: InstanceRates,
}

#[derive(Debug, Serialize)]
struct Flow {
    id: String,
    kind: String,
    subject: String,
    state: String,
    created_at: Timestamp,
    /// The step it is at.
    step: Option<String>,
    error: Option<String>,
}

/// An instance that uses something.
struct Hot {
    id: InstanceId,
    server: ServerId,
    rates: InstanceRates,
}

/// What each instance of a machine used between two looks.
fn used(before: &Readings, now: &Look, server: ServerId) -> Vec<Hot> {
    let Some(meters) = now.meters.get(&server) else { return Vec::new() };
    let earlier = before.get(&server);
    let one = |(id, own): (&InstanceId, &InstanceMeters)| {
        let last = earlier.and_then(|earlier| Some((earlier.moment(), earlier.instances.get(id)?)));
        Hot { id: *id, server, rates: rates::instance(Between { before: last, now: (meters.moment(), own) }) }
    };
    meters.instances.iter().map(one).collect()
}

/// The `most` busiest of those that run.
fn hottest(before: &Readings, now: &Look, most: usize) -> Vec<Hot> {
    let mut all: Vec<_> = now.meters.keys().flat_map(|server| used(before, now, *server)).collect();
    all.retain(|hot| hot.rates.processes.is_some());
    all.sort_by(|one, other| heat(&other.rates).total_cmp(&heat(&one.rates)));
    all.truncate(most);
    all
}

/// How hot an instance is: CPUs first, and a gigabit of traffic as much as a CPU.
fn heat(rates: &InstanceRates) -> f64 {
    const GIGABIT_BYTES: f64 = 125_000_000.0;
    let traffic = rates.sent_bytes_s.unwrap_or(0.0) + rates.received_bytes_s.unwrap_or(0.0);
    rates.cpus.unwrap_or(0.0) + traffic / GIGABIT_BYTES
}

/// What happened between two looks; of instances the `hottest`, of which `known` are the records.
fn top(before: &Readings, now: &Look, hottest: &[Hot], known: &BTreeMap<InstanceId, InstanceView>) -> Top {
    let hostname = |id: ServerId| {
        let found = now.servers.iter().find(|server| server.server.id == id);
        found.map_or_else(|| id.short(), |server| server.server.hostname.clone())
    };
    let instances = hottest.iter().map(|hot| {
        let view = known.get(&hot.id);
        let owner = view.map(|view| view.owner_login.clone().unwrap_or_else(|| view.instance.owner.short()));
        Instance {
            id: hot.id,
            name: view.map(|view| view.instance.alias.clone()),
            owner,
            machine: hostname(hot.server),
            state: view.map(|view| view.state.clone()),
            rates: hot.rates,
        }
    });
    let mut machines: Vec<_> = now.servers.iter().map(|server| machine(before, now, server)).collect();
    machines.sort_by(busier);
    let flows = now.flows.iter().map(|flow| Flow {
        id: flow.id.clone(),
        kind: flow.kind.clone(),
        subject: flow.subject.clone(),
        state: flow.state.clone(),
        created_at: flow.created_at,
        step: flow.steps.iter().rfind(|step| step.started_at.is_some()).map(|step| step.name.clone()),
        error: flow.error.clone().or_else(|| flow.steps.iter().rev().find_map(|step| step.error.clone())),
    });
    Top {
        now: now.datacenter.now,
        datacenter: now.datacenter.name.clone(),
        counts: now.datacenter.counts,
        findings: now.datacenter.findings.clone(),
        machines,
        instances: instances.collect(),
        flows: flows.collect(),
        alerts: now.alerts.as_ref().ok().cloned(),
        alerts_missing: now.alerts.as_ref().err().cloned(),
    }
}

fn machine(before: &Readings, now: &Look, server: &ServerView) -> Machine {
    let id = server.server.id;
    let meters = now.meters.get(&id);
    let rates = meters.map(|meters| {
        let last = before.get(&id).map(|earlier| (earlier.moment(), &earlier.machine));
        let own = used(before, now, id);
        rates::machine(
            Between { before: last, now: (meters.moment(), &meters.machine) },
            own.iter().map(|hot| &hot.rates),
        )
    });
    Machine {
        id,
        hostname: server.server.hostname.clone(),
        reachable: server.reachable,
        running: meters.map(|meters| meters.instances.values().filter(|own| own.zone.is_some()).count()),
        instances: meters.map(|meters| meters.instances.len()),
        rates,
    }
}

/// Silent machines before others, then the busiest.
fn busier(one: &Machine, other: &Machine) -> std::cmp::Ordering {
    let busy = |machine: &Machine| machine.rates.and_then(|rates| rates.cpu_part).unwrap_or(0.0);
    one.reachable.cmp(&other.reachable).then_with(|| busy(other).total_cmp(&busy(one)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_that_is_told_twice_is_compared_with_the_one_before_it() {
        let server = ServerId::random();
        let at = |ms| Readings::from([(server, NodeMeters { at: Timestamp(ms), ..NodeMeters::default() })]);
        let mut before = Readings::new();
        remember(&mut before, at(0), &at(0));
        assert!(before.is_empty());
        remember(&mut before, at(0), &at(5));
        remember(&mut before, at(5), &at(5));
        assert_eq!(before, at(0));
        // Nothing was told; what was told last is what the next is compared with.
        remember(&mut before, at(5), &Readings::new());
        assert_eq!(before, at(5));
    }

    #[test]
    fn what_is_hot_is_cpu_and_traffic() {
        let rates = |cpus, sent_bytes_s| InstanceRates { cpus: Some(cpus), sent_bytes_s, ..InstanceRates::default() };
        assert!(heat(&rates(1.0, None)) > heat(&rates(0.5, Some(1_000.0))));
        assert!(heat(&rates(0.5, Some(125_000_000.0))) > heat(&rates(1.0, None)));
        assert!(heat(&InstanceRates::default()).abs() < f64::EPSILON);
    }
}
