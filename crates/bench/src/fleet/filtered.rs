//! Instances with their firewall on, and a rule on every machine that has one.

use std::time::{Duration, Instant};

use cloudapi::{
    client::Client,
    types::{CreateMachine, NetworkChoice},
};
use futures_util::future::try_join_all;
use http::Method;
use model::id::InstanceId;
use serde_json::json;

use super::stage::Stage;

/// An instance has this long to run.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at an instance.
const LOOK: Duration = Duration::from_millis(50);

/// What was made.
pub(crate) struct Furnished {
    /// The instances.
    pub(crate) ids: Vec<InstanceId>,
    /// How many machines have one.
    pub(crate) machines: usize,
}

/// Makes `count` instances, `at_once` requests under way, waits until they run, and makes a rule that refers to a tag on every machine that has
/// one.
pub(crate) async fn furnish(stage: &Stage, client: &Client, count: usize, at_once: usize) -> Result<Furnished, String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let some = (0..at_once.min(count - ids.len())).map(|_| create(stage, client));
        ids.extend(try_join_all(some).await?);
    }
    for id in &ids {
        running(client, *id).await?;
    }
    let (_, machines) = enforced(client, "FROM tag role = web TO all vms ALLOW tcp PORT 1").await?;
    Ok(Furnished { ids, machines })
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
pub(crate) async fn enforced(client: &Client, rule: &str) -> Result<(String, usize), String> {
    let body = json!({"rule": rule, "enabled": true, "wait": "enforced"});
    let made = client.call(Method::POST, "/my/fwrules", Some(&body)).await.map_err(|error| error.to_string())?;
    let id = made["id"].as_str().ok_or("a rule without an id")?.to_owned();
    match (made["enforced"]["nodes"].as_u64(), made["enforced"]["live"].as_u64()) {
        (Some(nodes @ 1..), Some(live)) if nodes == live => Ok((id, usize::try_from(nodes).unwrap_or(0))),
        _ => Err(format!("the rule is not in force everywhere: {made}")),
    }
}

/// Deletes a rule and waits until no machine enforces it.
pub(crate) async fn forgotten(client: &Client, id: &str) -> Result<(), String> {
    let path = format!("/my/fwrules/{id}?wait=enforced");
    client.call(Method::DELETE, &path, None).await.map(drop).map_err(|error| error.to_string())
}
