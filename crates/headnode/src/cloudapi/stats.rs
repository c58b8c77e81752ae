//! `GET /:account/stats`: what the account's instances use, as the kernels of their machines count it.
//!
//! Each machine is asked once for all of its instances, and its answer serves whoever asks within some seconds
//! ([`crate::meters`]), so a loop without a pause costs machines nothing. A machine that does not answer is said so beside each of its
//! instances. One that is known to be silent is not asked, so that a rack without power keeps nobody waiting for long.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use cloudapi::types::stats::Stats;
use control::instances::{self, InstanceFilter, PAGE_MAX};
use futures_util::{StreamExt as _, stream};
use model::{
    id::{InstanceId, ServerId},
    meters::NodeMeters,
    state::Reachability,
};
use tokio::time::{Instant, timeout_at};

use super::{
    call::Call,
    error::{ApiError, Faults},
    machines::not_here,
    reply::Reply,
};
use crate::inquiries::AskError;

/// Machines asked at once for one request.
const AT_ONCE: usize = 16;
/// How long all machines together may take: a client waits no longer for an answer, and what some say is worth more than nothing.
const DEADLINE: Duration = Duration::from_secs(12);

/// `GET /:account/stats`.
pub(super) async fn list(call: Call) -> Result<Reply, ApiError> {
    let Some(meters) = call.api.options.meters.clone() else {
        return Err(not_here("what instances use"));
    };
    let (params, mut faults) = (&call.params, Faults::default());
    let number =
        |number: Option<u64>, default| number.map_or(default, |number| usize::try_from(number).unwrap_or(usize::MAX));
    let limit = number(faults.take(params.number("limit")), PAGE_MAX).clamp(1, PAGE_MAX);
    let offset = number(faults.take(params.number("offset")), 0);
    let machine: Option<InstanceId> = faults.take(params.parsed("machine", "the id of an instance"));
    faults.finish()?;
    let views = match machine {
        Some(id) => vec![instances::get(call.control(), call.scope(), id)?],
        None => instances::list(call.control(), call.scope(), &InstanceFilter::default(), limit, offset),
    };
    let mut servers: Vec<_> = views.iter().map(|view| view.instance.server).collect();
    servers.sort_unstable();
    servers.dedup();
    let now = call.control().now();
    servers.retain(|server| call.control().nodes.reachability(*server, now) == Reachability::Reachable);
    let asks = servers.into_iter().map(async |server| (server, meters.of(server).await));
    let mut answers = std::pin::pin!(stream::iter(asks).buffer_unordered(AT_ONCE));
    let deadline = Instant::now() + DEADLINE;
    let mut heard: BTreeMap<ServerId, Result<Arc<NodeMeters>, AskError>> = BTreeMap::new();
    while let Ok(Some((server, answer))) = timeout_at(deadline, answers.next()).await {
        heard.insert(server, answer);
    }
    let all: Vec<_> = views
        .iter()
        .map(|view| {
            let heard = heard.get(&view.instance.server).and_then(|heard| heard.as_ref().ok());
            let own = heard.and_then(|heard| heard.instances.get(&view.instance.id));
            // Why a machine does not answer is the operator's.
            let missing = match (heard, own) {
                (None, _) => Some("its machine does not answer".into()),
                (Some(_), None) => Some("its machine knows nothing of it yet".into()),
                (Some(_), Some(_)) => None,
            };
            Stats {
                id: view.instance.id,
                name: (&view.instance.alias).into(),
                state: view.state.as_str().into(),
                at: own.and(heard).map(|heard| heard.at),
                up_ms: own.and(heard).and_then(|heard| heard.machine.up_ms),
                meters: own.map(std::borrow::Cow::Borrowed),
                missing,
            }
        })
        .collect();
    Ok(Reply::json(&all).counted(all.len(), Some(limit)))
}
