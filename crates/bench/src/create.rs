//! From a signed request to a running instance, beside everything else here that starts a container.
//!
//! Ours does far more than the floor (`crun`, `runc`, `lxc-start` start a process in namespaces; no image, no dataset, no
//! network, no record), and the same as the peers. The times are those of the records: from before the request was
//! signed until the control plane knew that init runs.

use std::{collections::BTreeMap, time::Instant};

use futures_util::future::try_join_all;

use crate::{
    datacenter::{Created, Datacenter},
    peers,
    report::{Row, Section},
    runtime,
};

/// Creates measured one at a time, and in all for each degree of concurrency.
const SAMPLES: usize = 100;
/// Runs of each peer, one at a time.
const PEER_RUNS: usize = 15;

/// Runs the benchmark.
pub(crate) fn measure() -> Result<Vec<Section>, String> {
    let runtime = runtime()?;
    let peers_before = peers::measure(PEER_RUNS)?;
    let (one, eight, many) = runtime.block_on(async {
        let datacenter = Datacenter::start("create").await?;
        // The first one unpacks the image on the node.
        let first = datacenter.create().await?;
        datacenter.delete(first.id).await?;
        let one = batch(&datacenter, 1).await?;
        let eight = batch(&datacenter, 8).await?;
        let many = batch(&datacenter, 32).await?;
        Ok::<_, String>((one, eight, many))
    })?;
    let mut latency = vec![
        Row { name: "Neso, one at a time".to_owned(), unit: "ms", samples: Ok(millis(&one.all)) },
        Row { name: "Neso, 8 at once".to_owned(), unit: "ms", samples: Ok(millis(&eight.all)) },
        Row { name: "Neso, 32 at once".to_owned(), unit: "ms", samples: Ok(millis(&many.all)) },
    ];
    let mut rate = vec![
        Row::one("Neso, 8 at once", "/s", eight.rate),
        Row::one("Neso, 32 at once", "/s", many.rate),
        Row::one("Neso, one at a time", "/s", one.rate),
    ];
    for peer in peers_before {
        latency.push(Row { name: peer.name.clone(), unit: "ms", samples: peer.single });
        rate.push(Row {
            name: format!("{}, 8 at once", peer.name),
            unit: "/s",
            samples: peer.rate_at_8.map(|rate| vec![rate]),
        });
    }
    Ok(vec![
        Section {
            about: format!(
                "From signed request to running: image local, dataset, network and limits included; {SAMPLES} creates each. Peers in the same run, one at a time."
            ),
            rows: latency,
        },
        Section { about: "Creates per second.".to_owned(), rows: rate },
        Section {
            about: "Where the time goes, one at a time: the provision timeline's phases.".to_owned(),
            rows: phases(&one.all),
        },
    ])
}

struct Batch {
    all: Vec<Created>,
    rate: f64,
}

/// `SAMPLES` creates with `at_once` under way at any time; then removes them.
async fn batch(datacenter: &Datacenter, at_once: usize) -> Result<Batch, String> {
    let began = Instant::now();
    let workers = (0..at_once).map(|worker| async move {
        let share = (SAMPLES + at_once - 1 - worker) / at_once;
        let mut made = Vec::with_capacity(share);
        for _ in 0..share {
            made.push(datacenter.create().await?);
        }
        Ok::<_, String>(made)
    });
    let all: Vec<Created> = try_join_all(workers).await?.into_iter().flatten().collect();
    let rate = all.len() as f64 / began.elapsed().as_secs_f64();
    for chunk in all.chunks(8) {
        try_join_all(chunk.iter().map(|created| datacenter.delete(created.id))).await?;
    }
    Ok(Batch { all, rate })
}

fn millis(all: &[Created]) -> Vec<f64> {
    all.iter().map(|created| created.running_ms).collect()
}

fn phases(all: &[Created]) -> Vec<Row> {
    let mut by_name: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, ms) in all.iter().flat_map(|created| &created.phases) {
        by_name.entry(name).or_default().push(*ms as f64);
    }
    let order = all.first().map(|created| created.phases.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
    let rows =
        order.unwrap_or_default().into_iter().filter_map(|name| by_name.remove(name).map(|samples| (name, samples)));
    rows.map(|(name, samples)| Row { name: name.to_owned(), unit: "ms", samples: Ok(samples) }).collect()
}
