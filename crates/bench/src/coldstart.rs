//! From a loss of power to work: how long headnodes of a large datacenter take until they answer, and what they weigh.
//!
//! The records are those of a datacenter that has been in use: accounts, machines, instances with their addresses and names, and the job that
//! made each. They are written once; then everything is killed and started again, round after round: one headnode over a file, and
//! three, each with a member of the store beside it. No machine reports and no tenant asks but us. All processes share this machine's
//! processors, which real ones do not: what one headnode takes of a processor is a row of its own. The floor is reading the
//! same bytes out of the same engine and looking at nothing. In the end two of the three are lost for good, and the third begins anew.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use base::clock::{Clock as _, SystemClock};
use cloudapi::client::Client;
use control::{accounts, networks};
use futures_util::{StreamExt as _, future::try_join_all, stream};
use headnode::members::open_store;
use model::{
    id::{InstanceId, ServerId},
    time::Timestamp,
};

use crate::{
    datacenter::memory,
    fleet::{
        number,
        stage::{Child, Stage},
    },
    report::{Row, Section},
    standing::{self, NETWORKS, World},
};

/// Machines, unless `NESO_BENCH_NODES` says otherwise.
const MACHINES: usize = 1_000;
/// Instances on each.
const ON_EACH: u32 = 100;
/// Tenants.
const ACCOUNTS: usize = 1_000;
/// Transactions under way while records are written.
const AT_ONCE: usize = 16;
/// Starts of each kind.
const ROUNDS: usize = 3;
/// Between two questions.
const ASK: Duration = Duration::from_millis(10);
/// Between two looks at all headnodes, each of which starts a program.
const LOOK: Duration = Duration::from_millis(200);
/// A start has this long.
const PATIENCE: Duration = Duration::from_secs(180);
/// Records of a page of the floor.
const PAGE: usize = 1_000;
/// After the last step of a start, before memory is looked at again.
const REST: Duration = Duration::from_secs(5);

/// Runs the benchmark.
pub(crate) fn measure() -> Result<Vec<Section>, String> {
    let machines = number("NESO_BENCH_NODES", MACHINES)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start a runtime: {error}"))?;
    let mut measured = Vec::new();
    for headnodes in [1, 3] {
        let mut stage = runtime.block_on(Stage::of(0, headnodes))?;
        let begun = Instant::now();
        let instance = runtime.block_on(fill(&stage, machines))?;
        eprintln!("bench coldstart: {headnodes} headnodes' store is full after {:.1} s", begun.elapsed().as_secs_f64());
        let floor = runtime.block_on(floor(&stage))?;
        stage.kill_members();
        let starts = (0..ROUNDS).map(|_| runtime.block_on(start(&mut stage, headnodes, instance)));
        let starts = starts.collect::<Result<_, _>>()?;
        // Last: what there was before is put aside by it.
        let recovered = (headnodes > 1).then(|| recover(&stage));
        measured.push(Measured { floor, starts, recovered });
    }
    Ok(told(machines, &measured))
}

/// Seconds that a look at one member of the dead takes, and the new beginning from it.
fn recover(stage: &Stage) -> Result<[f64; 2], String> {
    let timed = |more: &[&str]| {
        let begun = Instant::now();
        stage.asked(0, &[&["adm", "-j", "recover", "--from-this-member"], more].concat())?;
        Ok::<_, String>(begun.elapsed().as_secs_f64())
    };
    Ok([timed(&[])?, timed(&["--yes"])?])
}

/// What was measured of one kind of datacenter.
struct Measured {
    floor: Floor,
    starts: Vec<Start>,
    /// Where there are several headnodes.
    recovered: Option<Result<[f64; 2], String>>,
}

/// Reading everything and looking at nothing.
struct Floor {
    seconds: f64,
    records: usize,
    bytes: usize,
}

/// One start.
#[derive(Default)]
struct Start {
    /// Seconds until each headnode answered a tenant.
    read: Vec<f64>,
    /// Seconds until each took a change.
    written: Vec<f64>,
    /// Seconds until all were seen to beat, where there are several.
    all_beat: Option<f64>,
    /// Processor seconds of each headnode until it answered.
    cpu: Vec<f64>,
    /// MiB of each headnode: at most, and at rest.
    peak: Vec<f64>,
    resident: Vec<f64>,
    /// MiB of each member.
    members: Vec<f64>,
}

/// Writes the records; one instance of the first tenant's.
async fn fill(stage: &Stage, machines: usize) -> Result<InstanceId, String> {
    let (control, _trigger) = stage.control().await?;
    let mut owners = vec![stage.owner];
    for number in 1..ACCOUNTS {
        let new = accounts::NewAccount { login: format!("standing{number}"), ..accounts::NewAccount::default() };
        owners.push(accounts::create(&control, new).await.map_err(text)?.id);
    }
    let mut made = Vec::new();
    for number in 0..NETWORKS {
        made.push(networks::create(&control, standing::network(number)).await.map_err(text)?.id);
    }
    let policy = control.config.placement;
    let world = World { accounts: owners, networks: made, image: stage.image, policy, on_each: ON_EACH, jobs: true };
    let count = u32::try_from(machines).map_err(|_| "so many machines are none")?;
    let transactions = (0..count).flat_map(|number| world.machine(number, Timestamp(SystemClock.now_ms())).1);
    let mut commits = stream::iter(transactions)
        .map(|transaction| {
            let store = control.store.clone();
            async move { store.commit(transaction).await.map(drop).map_err(text) }
        })
        .buffer_unordered(AT_ONCE);
    while let Some(committed) = commits.next().await {
        committed?;
    }
    let snapshot = control.snapshot();
    let owner = stage.owner.to_string();
    let first = snapshot.find(&control::tables::INSTANCES, control::tables::BY_OWNER, &owner).next();
    first.map(|instance| instance.id).ok_or_else(|| "the first tenant has no instance".to_owned())
}

async fn floor(stage: &Stage) -> Result<Floor, String> {
    let (engine, _) = open_store(&stage.settings, ServerId::random(), Arc::new(SystemClock)).await.map_err(text)?;
    let begun = Instant::now();
    let (mut after, mut records, mut bytes) = (String::new(), 0, 0);
    loop {
        let page = engine.load(&after, PAGE).await.map_err(text)?;
        records += page.records.len();
        bytes += page.records.iter().map(|record| record.key.len() + record.value.len()).sum::<usize>();
        match page.records.last() {
            Some(last) if page.more => after.clone_from(&last.key),
            _ => return Ok(Floor { seconds: begun.elapsed().as_secs_f64(), records, bytes }),
        }
    }
}

/// Starts everything, and kills it again when all is measured.
async fn start(stage: &mut Stage, headnodes: usize, instance: InstanceId) -> Result<Start, String> {
    let begun = Instant::now();
    if headnodes > 1 {
        stage.start_members()?;
    }
    let children = (0..headnodes).map(|number| stage.start_headnode(number)).collect::<Result<Vec<_>, _>>()?;
    let work = children.iter().zip(&stage.doors).map(|(child, door)| one(begun, child, door, instance));
    let each = try_join_all(work).await?;
    let mut told = Start::default();
    for (read, cpu, written) in each {
        told.read.push(read);
        told.cpu.push(cpu);
        told.written.push(written);
    }
    if headnodes > 1 {
        told.all_beat = Some(until_all_beat(stage, headnodes, begun).await?);
    }
    tokio::time::sleep(REST).await;
    told.peak = children.iter().map(|child| peak_mib(child.pid())).collect();
    told.resident = children.iter().map(|child| resident_mib(child.pid())).collect();
    told.members = stage.members().iter().map(|member| resident_mib(member.pid())).collect();
    children.into_iter().for_each(Child::kill);
    stage.kill_members();
    Ok(told)
}

/// When a headnode answers, what of a processor it took until then, and when it takes a change.
async fn one(begun: Instant, child: &Child, door: &Client, id: InstanceId) -> Result<(f64, f64, f64), String> {
    let late = |what: &str, why: String| match begun.elapsed() > PATIENCE {
        true => Err(format!("a headnode does not {what}: {why}")),
        false => Ok(()),
    };
    while let Err(error) = door.machine(id).await {
        late("answer", error.to_string())?;
        tokio::time::sleep(ASK).await;
    }
    let (read, cpu) = (begun.elapsed().as_secs_f64(), child.cpu_seconds());
    let pair = [("started".to_owned(), format!("{read}"))].into();
    while let Err(error) = door.metadata_add(id, &pair).await {
        late("take a change", error.to_string())?;
        tokio::time::sleep(ASK).await;
    }
    Ok((read, cpu, begun.elapsed().as_secs_f64()))
}

async fn until_all_beat(stage: &Stage, headnodes: usize, begun: Instant) -> Result<f64, String> {
    loop {
        // It is refused as long as the headnode is not there.
        let view = stage.asked(0, &["adm", "-j", "ha", "status"]).unwrap_or_default();
        let beat = view["headnodes"].as_array().map_or(0, |all| all.iter().filter(|one| one["fresh"] == true).count());
        if beat == headnodes {
            return Ok(begun.elapsed().as_secs_f64());
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("{beat} of {headnodes} headnodes beat: {view}"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn told(machines: usize, measured: &[Measured]) -> Vec<Section> {
    let row = |name: &str, unit, samples: Vec<f64>| Row { name: name.to_owned(), unit, samples: Ok(samples) };
    let instances = machines * ON_EACH as usize;
    let mut sections = Vec::new();
    for (Measured { floor, starts, recovered }, kind) in
        measured.iter().zip(["One headnode over a file", "Three headnodes, each with a member of the store"])
    {
        let all = |of: fn(&Start) -> Vec<f64>| starts.iter().flat_map(of).collect::<Vec<f64>>();
        let least = |values: &[f64]| vec![values.iter().copied().fold(f64::INFINITY, f64::min)];
        let most = |values: &[f64]| vec![values.iter().copied().fold(0.0, f64::max)];
        let mut times = vec![
            row("every record read and not looked at, once", "s", vec![floor.seconds]),
            row("the first read", "s", starts.iter().flat_map(|start| least(&start.read)).collect()),
            row("the first write", "s", starts.iter().flat_map(|start| least(&start.written)).collect()),
        ];
        if starts.iter().any(|start| start.all_beat.is_some()) {
            times.push(row(
                "all headnodes have answered",
                "s",
                starts.iter().flat_map(|start| most(&start.read)).collect(),
            ));
            times.push(row("all headnodes are seen to beat", "s", all(|start| start.all_beat.into_iter().collect())));
        }
        times.push(row("processor time of a headnode until it answers", "s", all(|start| start.cpu.clone())));
        sections.push(Section {
            about: format!(
                "{kind}: from the start of all processes, after all were killed. {instances} instances on {machines} machines: {} records of {:.0} MiB.",
                floor.records,
                floor.bytes as f64 / f64::from(1 << 20)
            ),
            rows: times,
        });
        let mut sizes = vec![
            row("a headnode at rest, resident", "MiB", all(|start| start.resident.clone())),
            row("a headnode, at most", "MiB", all(|start| start.peak.clone())),
        ];
        let members = all(|start| start.members.clone());
        if !members.is_empty() {
            sizes.push(row("a member, resident", "MiB", members));
        }
        sections.push(Section { about: format!("{kind}: memory, of a budget of 4,096 MiB a headnode."), rows: sizes });
        if let Some(recovered) = recovered {
            let seconds = |at: usize| recovered.clone().map(|both| vec![both[at]]);
            let row = |name: &str, at| Row { name: name.to_owned(), unit: "s", samples: seconds(at) };
            let rows = vec![
                Row::one("every record read from living members and not looked at, once", "s", floor.seconds),
                row("what a member of the dead has, looked at", 0),
                row("a new store filled with it and read back", 1),
            ];
            let about = "Two of three headnodes lost: a new beginning from the third one's member, `neso adm recover`.";
            sections.push(Section { about: about.to_owned(), rows });
        }
    }
    sections
}

fn resident_mib(pid: u32) -> f64 {
    memory(pid).map_or(f64::NAN, |(resident, _)| resident / f64::from(1 << 20))
}

/// The most it ever had.
fn peak_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    kib.map_or(f64::NAN, |kib: f64| kib / 1024.0)
}

fn text(error: impl std::error::Error) -> String {
    base::errors::chain(&error)
}
