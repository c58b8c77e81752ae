//! From an accepted rule to every machine's word that it is in force, over many machines.
//!
//! What is real: a headnode process with its store on disk, the signed request, an agent per machine with its own certificate
//! and connection, documents and reports as they travel. What is not: the machines are in memory, so what the kernel takes is not in it;
//! that is in the tables of the one real machine. All of it shares the processors of this one.

use std::time::{Duration, Instant};

use cloudapi::client::Client;
use http::Method;
use model::id::InstanceId;
use serde_json::json;

use super::milliseconds;
use crate::{
    fleet::{
        filtered::{Furnished, enforced, forgotten, furnish},
        stage::Stage,
    },
    report::{Row, Section},
    runtime,
};

/// Machines.
const MACHINES: usize = 100;
/// Filtered instances: enough that placement leaves no machine without.
const INSTANCES: usize = 300;
/// Requests under way while they are made.
const AT_ONCE: usize = 8;
/// Changes of each kind.
const ROUNDS: u16 = 150;
/// Machines have this long to report.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn measure() -> Result<Vec<Section>, String> {
    let runtime = runtime()?;
    let stage = runtime.block_on(Stage::new(MACHINES))?;
    let _headnode = stage.headnode()?;
    let agents = stage.agents()?;
    agents.all_report_after(0.0, PATIENCE)?;
    let client = stage.clients.first().ok_or("there are no tenants")?;
    runtime.block_on(async {
        let Furnished { ids, machines } = furnish(&stage, client, INSTANCES, AT_ONCE).await?;
        if machines < MACHINES {
            eprintln!("bench firewall: placement left {} machines without an instance", MACHINES - machines);
        }
        let mut changes = Changes::default();
        for round in 0..ROUNDS {
            changes.rule(client, round).await?;
            changes.tag(client, ids[usize::from(round)]).await?;
        }
        Ok(vec![changes.section()])
    })
}

/// What was measured, milliseconds.
#[derive(Default)]
struct Changes {
    created: Vec<f64>,
    deleted: Vec<f64>,
    tagged: Vec<f64>,
    machines: usize,
}

impl Changes {
    /// A rule comes and goes.
    async fn rule(&mut self, client: &Client, round: u16) -> Result<(), String> {
        let begun = Instant::now();
        let text = format!("FROM any TO all vms ALLOW tcp PORT {}", 2_000 + round);
        let (id, machines) = enforced(client, &text).await?;
        self.created.push(milliseconds(begun));
        self.machines = machines;
        let begun = Instant::now();
        forgotten(client, &id).await?;
        self.deleted.push(milliseconds(begun));
        Ok(())
    }

    /// An instance gets the tag that every machine has a set for.
    async fn tag(&mut self, client: &Client, id: InstanceId) -> Result<(), String> {
        let begun = Instant::now();
        let path = format!("/my/machines/{id}/tags?wait=enforced");
        let body = json!({"role": "web"});
        client.call(Method::POST, &path, Some(&body)).await.map_err(|error| error.to_string())?;
        self.tagged.push(milliseconds(begun));
        let shown = client.call(Method::GET, &format!("/my/machines/{id}?wait=enforced"), None).await;
        let shown = shown.map_err(|error| error.to_string())?;
        let told = &shown["enforced"];
        match told["nodes"] == told["live"] && told["nodes"].as_u64() >= Some(1) {
            true => Ok(()),
            false => Err(format!("the tag is not in force everywhere: {told}")),
        }
    }

    fn section(self) -> Section {
        let row = |name: &str, samples| Row { name: name.to_owned(), unit: "ms", samples: Ok(samples) };
        Section {
            about: format!(
                "From a tenant's request to the word of all {} machines it concerns that they enforce it: real agents, connections, documents and \
                 reports over machines in memory, with {INSTANCES} filtered instances. The kernel is not in it; what it takes on one real machine \
                 is in the tables above.",
                self.machines
            ),
            rows: vec![
                row("a rule more", self.created),
                row("a rule less", self.deleted),
                row("a tag of an instance more", self.tagged),
            ],
        }
    }
}
