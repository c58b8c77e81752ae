//! A thousand machines on the wire: real agents over machines in memory, each with its own certificate and its own connection,
//! against one real headnode process.
//!
//! The agents run in one process of this program ([`nodes`]); the floor is a server that answers the same requests and looks at
//! nothing ([`floor`]), on the same listener. All of them share the processors of one machine with whoever asks; what is said of a process is
//! its own processor time, from the kernel.

pub(crate) mod filtered;
pub(crate) mod floor;
pub(crate) mod nodes;
pub(crate) mod stage;
mod tenants;
pub(crate) mod watch;

use std::time::Duration;

use crate::{
    report::{Row, Section},
    runtime,
};
use stage::{Child, Stage};

/// The first argument of the process with the agents.
pub(crate) const NODES: &str = "fleet-nodes";
/// The first argument of the process that answers and does nothing.
pub(crate) const FLOOR: &str = "fleet-floor";

/// Machines, unless `NESO_BENCH_NODES` says otherwise.
const MACHINES: usize = 1_000;
/// Creates of the tenant who asks for everything, unless `NESO_BENCH_CREATES` says otherwise.
const CREATES: usize = 9_500;
/// How long steady state is looked at.
const STEADY: Duration = Duration::from_secs(20);
/// Restarts of the headnode.
const RESTARTS: usize = 3;
/// How long it is away: long enough that agents ask as seldom as they ever do.
const AWAY: Duration = Duration::from_secs(25);
/// Machines have this long to report.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs the benchmark.
pub(crate) fn measure() -> Result<Vec<Section>, String> {
    let (machines, creates) = (number("NESO_BENCH_NODES", MACHINES)?, number("NESO_BENCH_CREATES", CREATES)?);
    let runtime = runtime()?;
    let stage = runtime.block_on(Stage::new(machines))?;
    let floor = {
        let server = stage.floor()?;
        let agents = stage.agents()?;
        agents.all_report_after(0.0, PATIENCE)?;
        steady(&stage, &server, &agents)
    };
    let mut headnode = stage.headnode()?;
    let agents = stage.agents()?;
    agents.all_report_after(0.0, PATIENCE)?;
    let empty = steady(&stage, &headnode, &agents);
    eprintln!("bench fleet: {machines} machines report; deletes without and with a flood");
    let calm = runtime.block_on(tenants::deletes(&stage, None))?;
    let stormy = runtime.block_on(tenants::deletes(&stage, Some(creates)))?;
    let full = steady(&stage, &headnode, &agents);
    let (mut again, mut work) = (Vec::new(), Vec::new());
    for _ in 0..RESTARTS {
        drop(headnode);
        std::thread::sleep(AWAY);
        headnode = stage.headnode()?;
        let up_at = crate::datacenter::now_ms();
        let last = agents.all_report_after(up_at, PATIENCE)?;
        again.push((last - up_at) / 1000.0);
        work.push(headnode.cpu_seconds());
    }
    let row = |name: &str, unit, samples: Vec<f64>| Row { name: name.to_owned(), unit, samples: Ok(samples) };
    let about = format!(
        "{machines} agents in one process, each with its own certificate and connection, against one headnode; all on one machine, with \
         whoever else used it. Processor time of the server over {} s, in percent of a core.",
        STEADY.as_secs()
    );
    let flood = format!("with one tenant creating {creates}");
    Ok(vec![
        Section {
            about,
            rows: vec![
                row("a server that answers and looks at nothing", "%", vec![floor.cpu]),
                row("headnode, no instances", "%", vec![empty.cpu]),
                row(&format!("headnode, {} instances", stormy.instances), "%", vec![full.cpu]),
            ],
        },
        Section {
            about: "Bytes of TCP per machine and report, both ways, long polls and TLS included.".to_owned(),
            rows: vec![
                row("the server that looks at nothing", "B", vec![floor.bytes]),
                row("headnode, no instances", "B", vec![empty.bytes]),
                row(&format!("headnode, {} instances", stormy.instances), "B", vec![full.bytes]),
            ],
        },
        Section {
            about: format!(
                "The headnode ends, is away for {} s and starts: from its first accepted connection until every machine has reported, \
                 and its processor time until then.",
                AWAY.as_secs()
            ),
            rows: vec![row("all machines are back", "s", again), row("processor time", "s", work)],
        },
        Section {
            about: format!(
                "From a tenant's delete until the instance is gone, by 19 tenants, each with one instance at a time. The flood came to \
                 {:.0} creates a second.",
                stormy.creates_per_second
            ),
            rows: vec![row("without a flood", "ms", calm.ms), row(&flood, "ms", stormy.ms)],
        },
    ])
}

/// A server at work for nothing but heartbeats.
struct Steady {
    /// Percent of a core.
    cpu: f64,
    /// Per machine and report.
    bytes: f64,
}

fn steady(stage: &Stage, server: &Child, agents: &watch::Watched) -> Steady {
    // What starting cost is over.
    std::thread::sleep(Duration::from_secs(10));
    let begun = (server.cpu_seconds(), stage.bytes(), agents.reports());
    std::thread::sleep(STEADY);
    let (cpu, bytes, reports) = (server.cpu_seconds() - begun.0, stage.bytes() - begun.1, agents.reports() - begun.2);
    Steady { cpu: cpu / STEADY.as_secs_f64() * 100.0, bytes: bytes / reports.max(1.0) }
}

/// What the environment says, or what is usual.
pub(crate) fn number(name: &str, usual: usize) -> Result<usize, String> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name} is \"{text}\", which is no number")),
        Err(_) => Ok(usual),
    }
}
