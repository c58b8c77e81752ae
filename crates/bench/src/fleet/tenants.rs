//! Tenants who make an instance, delete it and wait until it is gone, over and over; and one who asks for thousands meanwhile.

use std::time::{Duration, Instant};

use cloudapi::{
    client::Client,
    types::{CreateMachine, NetworkChoice},
};
use futures_util::future::try_join_all;
use model::id::InstanceId;

use super::stage::Stage;

/// Deletes of each tenant when nobody floods, and at least when somebody does.
const ROUNDS: usize = 8;
/// Requests of the flood under way.
const FLOOD: usize = 64;
/// Between two looks at an instance.
const LOOK: Duration = Duration::from_millis(20);
/// An instance has this long.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the tenants saw.
pub(super) struct Deletes {
    /// From the request until the instance is gone, milliseconds.
    pub(super) ms: Vec<f64>,
    /// Of the flood.
    pub(super) creates_per_second: f64,
    /// Instances there are afterwards.
    pub(super) instances: usize,
}

/// All tenants but the first make and delete, while the first creates `flood`, if any.
pub(super) async fn deletes(stage: &Stage, flood: Option<usize>) -> Result<Deletes, String> {
    let (first, others) = stage.clients.split_first().ok_or("there are no tenants")?;
    let begun = Instant::now();
    let flooding = flood_with(stage, first, flood.unwrap_or(0));
    let deleting = try_join_all(others.iter().map(|client| make_and_delete(stage, client)));
    let ((took, made), ms) = futures_util::future::try_join(
        async {
            let made = flooding.await?;
            Ok::<_, String>((begun.elapsed(), made))
        },
        deleting,
    )
    .await?;
    Ok(Deletes {
        ms: ms.into_iter().flatten().collect(),
        creates_per_second: made as f64 / took.as_secs_f64(),
        instances: made,
    })
}

async fn flood_with(stage: &Stage, client: &Client, count: usize) -> Result<usize, String> {
    let each = (0..FLOOD).map(|worker| async move {
        let share = (count + FLOOD - 1 - worker) / FLOOD;
        for _ in 0..share {
            create(stage, client).await?;
        }
        Ok::<_, String>(share)
    });
    Ok(try_join_all(each).await?.into_iter().sum())
}

async fn make_and_delete(stage: &Stage, client: &Client) -> Result<Vec<f64>, String> {
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let id = create(stage, client).await?;
        until(client, id, "running").await?;
        let begun = Instant::now();
        client.machine_delete(id).await.map_err(|error| error.to_string())?;
        until(client, id, "deleted").await?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(times)
}

async fn create(stage: &Stage, client: &Client) -> Result<InstanceId, String> {
    let wanted = CreateMachine {
        package: "tiny".to_owned(),
        image: stage.image.to_string(),
        networks: vec![NetworkChoice::Id(stage.network)],
        ..CreateMachine::default()
    };
    client.machine_create(&wanted).await.map(|machine| machine.id).map_err(|error| error.to_string())
}

async fn until(client: &Client, id: InstanceId, state: &str) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let machine = client.machine(id).await.map_err(|error| error.to_string())?;
        if machine.state == state {
            return Ok(());
        }
        if machine.state == "failed" || begun.elapsed() > PATIENCE {
            return Err(format!("instance {id} is {} instead of {state}", machine.state));
        }
        tokio::time::sleep(LOOK).await;
    }
}
