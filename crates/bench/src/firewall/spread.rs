//! From an accepted rule to every machine's word that it is in force, over many machines.
//!
//! What is real: a headnode process with its store on disk, the signed request, an agent per machine with its own certificate
//! and connection, documents and reports as they travel. What is not: the machines are in memory, so what the kernel takes is not in it;
//! that is in the tables of the one real machine. All of it shares the processors of this one.

use std::time::{Duration, Instant};

use cloudapi::{
    client::Client,
    types::{CreateMachine, NetworkChoice},
};
use futures_util::future::try_join_all;
use http::Method;
use model::id::InstanceId;
use serde_json::json;

use super::milliseconds;
use crate::{
    fleet::stage::Stage,
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
/// Machines have this long to report, an instance to run.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at an instance.
const LOOK: Duration = Duration::from_millis(50);

pub(super) fn measure() -> Result<Vec<Section>, String> {
    let runtime = runtime()?;
    let stage = runtime.block_on(Stage::new(MACHINES))?;
    let _headnode = stage.headnode()?;
    let agents = stage.agents()?;
    agents.all_report_after(0.0, PATIENCE)?;
    let client = stage.clients.first().ok_or("there are no tenants")?;
    runtime.block_on(async {
        let ids: Vec<InstanceId> = furnish(&stage, client).await?;
        let mut changes = Changes::default();
        for round in 0..ROUNDS {
            changes.rule(client, round).await?;
            changes.tag(client, ids[usize::from(round)]).await?;
        }
        Ok(vec![changes.section()])
    })
}

/// Instances with their firewall on, and a rule that refers to a tag on every machine that has one.
async fn furnish(stage: &Stage, client: &Client) -> Result<Vec<InstanceId>, String> {
    let mut ids = Vec::new();
    while ids.len() < INSTANCES {
        let some = (0..AT_ONCE.min(INSTANCES - ids.len())).map(|_| create(stage, client));
        ids.extend(try_join_all(some).await?);
    }
    for id in &ids {
        running(client, *id).await?;
    }
    let (_, machines) = enforced(client, "FROM tag role = web TO all vms ALLOW tcp PORT 1").await?;
    if machines < MACHINES {
        eprintln!("bench firewall: placement left {} machines without an instance", MACHINES - machines);
    }
    Ok(ids)
}

async fn create(stage: &Stage, client: &Client) -> Result<InstanceId, String> {
    let wanted = CreateMachine {
        package: "tiny".to_owned(),
        image: stage.image.to_string(),
        networks: vec![NetworkChoice::Id(stage.network)],
        firewall_enabled: Some(true),
        ..CreateMachine::default()
    };
    client.machine_create(&wanted).await.map(|machine| machine.id).map_err(|error| error.to_string())
}

async fn running(client: &Client, id: InstanceId) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let machine = client.machine(id).await.map_err(|error| error.to_string())?;
        if machine.state == "running" {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("instance {id} is {} instead of running", machine.state));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Makes a rule and waits until it is in force; its id, and on how many machines.
async fn enforced(client: &Client, rule: &str) -> Result<(String, usize), String> {
    let body = json!({"rule": rule, "enabled": true, "wait": "enforced"});
    let made = client.call(Method::POST, "/my/fwrules", Some(&body)).await.map_err(|error| error.to_string())?;
    let id = made["id"].as_str().ok_or("a rule without an id")?.to_owned();
    match (made["enforced"]["nodes"].as_u64(), made["enforced"]["live"].as_u64()) {
        (Some(nodes @ 1..), Some(live)) if nodes == live => Ok((id, usize::try_from(nodes).unwrap_or(0))),
        _ => Err(format!("the rule is not in force everywhere: {made}")),
    }
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
        let path = format!("/my/fwrules/{id}?wait=enforced");
        client.call(Method::DELETE, &path, None).await.map_err(|error| error.to_string())?;
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
