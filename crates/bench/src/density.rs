//! Three hundred running instances on this machine: what each costs our processes, and whether the last is made as fast
//! as the first.

use std::{fs, time::Instant};

use crate::{
    datacenter::{Datacenter, memory},
    report::{Row, Section},
    runtime,
};

/// Instances at the end.
const INSTANCES: usize = 300;
/// Creates at the start and at the end whose times are compared.
const WINDOW: usize = 20;
/// At once while filling up.
const AT_ONCE: usize = 8;

/// Runs the benchmark.
pub(crate) fn measure() -> Result<Vec<Section>, String> {
    runtime()?.block_on(async {
        let datacenter = Datacenter::start("density").await?;
        let first = datacenter.create().await?;
        datacenter.delete(first.id).await?;
        let (headnode, node) = (datacenter.pid("headnode")?, datacenter.pid("node")?);
        let rest = |pid: u32| memory(pid).map_or(f64::NAN, |(resident, _)| resident / MIB);
        let (headnode_rest, node_rest) = (rest(headnode), rest(node));
        let began = window(&datacenter).await?;
        let filling = Instant::now();
        for _ in 0..(INSTANCES - 2 * WINDOW) / AT_ONCE {
            futures_util::future::try_join_all((0..AT_ONCE).map(|_| datacenter.create())).await?;
        }
        let rate = (INSTANCES - 2 * WINDOW) as f64 / filling.elapsed().as_secs_f64();
        let ended = window(&datacenter).await?;
        let supervisors = supervisors(&datacenter);
        let grown = |pid: u32, before: f64| (rest(pid) - before) / INSTANCES as f64;
        let ours = supervisors.iter().sum::<f64>() / supervisors.len().max(1) as f64
            + grown(headnode, headnode_rest)
            + grown(node, node_rest);
        Ok(vec![
            Section {
                about: format!("Time of a create while the machine fills up to {INSTANCES} running minimal instances."),
                rows: vec![
                    Row { name: format!("the first {WINDOW}"), unit: "ms", samples: Ok(began) },
                    Row { name: format!("the last {WINDOW} of {INSTANCES}"), unit: "ms", samples: Ok(ended) },
                ],
            },
            Section {
                about: format!("Memory of our processes at {INSTANCES} instances, MiB; private memory for supervisors, resident for the rest. {rate:.0} creates a second while filling up, {AT_ONCE} at once."),
                rows: vec![
                    Row::one("per instance, all our processes together", "MiB", ours),
                    Row { name: "one supervisor".to_owned(), unit: "MiB", samples: Ok(supervisors) },
                    Row::one("headnode at rest, before", "MiB", headnode_rest),
                    Row::one("headnode, full", "MiB", rest(headnode)),
                    Row::one("node at rest, before", "MiB", node_rest),
                    Row::one("node, full", "MiB", rest(node)),
                ],
            },
        ])
    })
}

const MIB: f64 = (1 << 20) as f64;

async fn window(datacenter: &Datacenter) -> Result<Vec<f64>, String> {
    let mut all = Vec::with_capacity(WINDOW);
    for _ in 0..WINDOW {
        all.push(datacenter.create().await?.running_ms);
    }
    Ok(all)
}

/// Private memory of every zone supervisor of this datacenter, MiB.
fn supervisors(datacenter: &Datacenter) -> Vec<f64> {
    let run = datacenter.settings.paths.run.to_string_lossy().into_owned();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains("zone-supervisor") && line.contains(&run)
    })
    .filter_map(|pid| memory(pid).map(|(_, private)| private / MIB))
    .collect()
}
