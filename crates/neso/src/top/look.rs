//! What is asked for one picture, each within a limit.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, stream};
use headnode::monitoring::Wanted;
use model::{
    id::{InstanceId, ServerId},
    meters::NodeMeters,
};
use opsapi::{Client, Datacenter, FlowView, InstanceView, ServerView};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{adm::alerts, failure::Outcome};

/// Machines that are asked in one look; of the others nothing is said but that they are there.
const ASKED_MAX: usize = 200;
/// Questions that are out at once.
const AT_ONCE: usize = 16;
/// How long all machines together may take; those that have not answered by then are shown without what they use.
const DEADLINE: Duration = Duration::from_secs(12);

/// How long one of them may: those that fell silent just now keep the others from nothing.
const PATIENCE: Duration = Duration::from_secs(3);

/// Everything as of one moment.
pub(super) struct Look {
    pub(super) datacenter: Datacenter,
    pub(super) servers: Vec<ServerView>,
    pub(super) meters: BTreeMap<ServerId, NodeMeters>,
    pub(super) flows: Vec<FlowView>,
    /// Or why it is not known whether there are any.
    pub(super) alerts: Result<Vec<alerts::Alert>, String>,
}

impl Look {
    pub(super) async fn take(client: &Client, settings: &headnode::Settings) -> Outcome<Self> {
        let servers = client.servers().await?;
        let asked = servers.iter().filter(|server| server.reachable).map(|server| server.server.id).take(ASKED_MAX);
        // One that is silent, or older than the question, is shown without what it uses.
        let meters = gathered(asked, async |id| client.meters(&id.to_string()).await.ok()).await;
        Ok(Self {
            datacenter: client.datacenter().await?,
            servers,
            meters,
            flows: client.flows(true).await?,
            alerts: alerts(settings).await,
        })
    }
}

async fn alerts(settings: &headnode::Settings) -> Result<Vec<alerts::Alert>, String> {
    let wanted = Wanted::load(settings).map_err(|error| error.to_string())?;
    let wanted = wanted.ok_or("this machine runs no Prometheus; `neso adm monitoring enable` starts one")?;
    alerts::found(&wanted, false).await.map_err(|failure| failure.message)
}

/// The records of some instances.
pub(super) async fn known(
    client: &Client,
    ids: impl Iterator<Item = InstanceId>,
) -> BTreeMap<InstanceId, InstanceView> {
    gathered(ids, async |id| client.instance(&id.to_string()).await.ok()).await
}

/// What is answered in time.
async fn gathered<K: Ord + Copy, V>(
    keys: impl Iterator<Item = K>,
    ask: impl AsyncFn(K) -> Option<V>,
) -> BTreeMap<K, V> {
    let deadline = Instant::now() + DEADLINE;
    let ask = &ask;
    let answers = stream::iter(keys)
        .map(async |key| (key, timeout(PATIENCE, ask(key)).await.ok().flatten()))
        .buffer_unordered(AT_ONCE);
    let mut answers = std::pin::pin!(answers);
    let mut found = BTreeMap::new();
    while let Ok(Some((key, answer))) = timeout_at(deadline, answers.next()).await {
        found.extend(answer.map(|answer| (key, answer)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_left_out_and_the_others_are_not() {
        let ask = async |key: usize| match key % 3 {
            0 => std::future::pending().await,
            1 => None,
            _ => Some(key * 10),
        };
        let found = gathered(0..12, ask).await;
        assert_eq!(found, BTreeMap::from([(2, 20), (5, 50), (8, 80), (11, 110)]));
        // A whole rack that has just fallen silent, before all others.
        let rack = async |key: usize| if key < 3 * AT_ONCE { std::future::pending().await } else { Some(key) };
        assert_eq!(gathered(0..3 * AT_ONCE + 5, rack).await.len(), 5);
        let begun = Instant::now();
        assert!(gathered(0..ASKED_MAX, async |_: usize| std::future::pending::<Option<()>>().await).await.is_empty());
        assert!(begun.elapsed() <= DEADLINE);
    }
}
