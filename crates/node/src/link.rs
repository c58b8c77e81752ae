//! The two conversations with the headnode that never stop: waiting for targets, and reporting.
//!
//! Neither waits for the other and neither ends: a headnode that is gone is asked again, more and more seldom. A target is
//! judged, written down, and only then shown to the dispatcher; what arrives while the disk is busy is fetched next, as one
//! document, however many changes it holds.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use base::backoff::Backoff;
use model::{
    id::{InstanceId, NetworkId},
    target::{Report, Target},
};
use nodeapi::HEARTBEAT_SECONDS;

use crate::{
    error::AgentError,
    keeper::{self, Offer},
    shared::Shared,
};

/// First pause after a failed request.
const PAUSE_FLOOR: Duration = Duration::from_millis(200);

/// Longest pause: how late a node may notice that its headnode is back.
const PAUSE_CEILING: Duration = Duration::from_secs(10);

/// What a report says besides facts; read once at the start.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) hostname: String,
    pub(crate) hardware: model::server::Hardware,
}

/// Fetches targets until shutdown.
pub(crate) async fn fetch_targets(shared: Arc<Shared>) {
    let mut pauses = Backoff::new(PAUSE_FLOOR, PAUSE_CEILING);
    loop {
        let have = shared.target.borrow().generation;
        let offered = tokio::select! {
            biased;
            offered = shared.link.target(have) => offered,
            () = shared.shutdown.wait() => return,
        };
        let taken = match offered {
            Ok(Some(target)) => take(&shared, target).await,
            Ok(None) => {
                shared.confirmed.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(base::errors::chain(&error)),
        };
        match taken {
            Ok(()) => pauses.reset(),
            Err(error) => {
                tracing::warn!(%error, "no target");
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(pauses.next_delay()) => {}
                    () = shared.shutdown.wait() => return,
                }
            }
        }
    }
}

async fn take(shared: &Arc<Shared>, target: Target) -> Result<(), String> {
    let held = shared.target();
    let target = Arc::new(target);
    match keeper::judge(shared.config.server, Some(&held), &target) {
        Offer::Newer => {}
        Offer::Held => return Err("the headnode sent the target we said we have".to_owned()),
        Offer::Older => {
            return Err(format!("refused target {}: {} is held", target.generation, held.generation));
        }
        Offer::Foreign => return Err(format!("refused a target for machine {}", target.server)),
    }
    let (path, written) = (keeper::path(&shared.config.data_dir), target.clone());
    let result = shared.verbs.run("target", move |_| keeper::write(&path, &written)).await;
    result.map_err(|source| {
        let path = keeper::path(&shared.config.data_dir);
        base::errors::chain(&AgentError::File { doing: "write", path, source })
    })?;
    base::crash::point("node.target.written");
    shared.confirmed.store(true, Ordering::Relaxed);
    shared.target.send_replace(target);
    Ok(())
}

/// How long the last report may take: whoever stops the machine waits for it.
const FAREWELL: Duration = Duration::from_secs(1);

/// Reports until shutdown, and then once more that this was the last.
pub(crate) async fn send_reports(shared: Arc<Shared>, identity: Identity) {
    let sequence = report_changes(&shared, &identity).await;
    let (mut report, _) = compose(&shared, &identity, sequence + 1);
    report.leaving = true;
    // A headnode that does not hear it notices the silence.
    let _ = tokio::time::timeout(FAREWELL, shared.link.report(&report)).await;
}

/// Reports until shutdown: at once when something is worth saying, else as a heartbeat. Returns the number of the last.
async fn report_changes(shared: &Arc<Shared>, identity: &Identity) -> u64 {
    let mut pauses = Backoff::new(PAUSE_FLOOR, PAUSE_CEILING);
    let mut sequence = 0_u64;
    loop {
        sequence += 1;
        let (report, later) = compose(shared, identity, sequence);
        let answer = tokio::select! {
            biased;
            answer = shared.link.report(&report) => answer,
            () = shared.shutdown.wait() => return sequence,
        };
        let pause = match answer {
            Ok(_) => {
                pauses.reset();
                let heartbeat = Duration::from_secs(HEARTBEAT_SECONDS);
                later.map_or(heartbeat, |later| heartbeat.min(later))
            }
            Err(error) => {
                let pause = pauses.next_delay();
                tracing::warn!(error = %base::errors::chain(&error), "no report");
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(pause) => {}
                    () = shared.shutdown.wait() => return sequence,
                }
                continue;
            }
        };
        tokio::select! {
            biased;
            () = shared.board.news() => {}
            () = tokio::time::sleep(pause) => {}
            () = shared.shutdown.wait() => return sequence,
        }
    }
}

/// Watches how often the kernel had to kill for lack of memory, until shutdown: a process that dies inside ends no zone, and
/// would be seen by nobody.
pub(crate) async fn watch_memory(shared: Arc<Shared>) {
    let period = Duration::from_secs(nodeapi::HEARTBEAT_SECONDS);
    loop {
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            () = shared.shutdown.wait() => return,
        }
        let running = shared.board.running();
        let kills = shared.verbs.run("memory", move |host| {
            // One that ended meanwhile says itself how.
            let killed = |id: &InstanceId| Some((*id, host.zones.oom_kills(*id).ok().filter(|kills| *kills > 0)?));
            running.iter().filter_map(killed).collect()
        });
        shared.board.oom_kills(kills.await);
    }
}

/// Addresses of instances here that `target` does not speak of. There are none unless the control plane lost its memory, so
/// that reading their ledgers for each report costs nothing.
fn untold_addresses(
    shared: &Shared,
    target: &Target,
    here: impl Iterator<Item = InstanceId>,
) -> BTreeMap<InstanceId, Vec<(NetworkId, Ipv4Addr)>> {
    let untold = here.filter(|id| !target.zones.contains_key(id));
    let wirings = untold.filter_map(|id| Some((id, shared.ledgers.read(id)?.remembered.wiring?)));
    wirings
        .map(|(id, wiring)| (id, wiring.nics.iter().map(|(nic, _)| (nic.network, nic.address.addr())).collect()))
        .collect()
}

/// A report of now, and how long until something that is held back should be said.
fn compose(shared: &Shared, identity: &Identity, sequence: u64) -> (Report, Option<Duration>) {
    let now = shared.now_ms();
    let target = shared.target();
    // Read before the board: what is on the board is never older than what is said to be seen.
    let seen = shared.seen.load(Ordering::Acquire);
    let (mut zones, images, later) = shared.board.read(now);
    for (id, fact) in &mut zones {
        let seen = target.zones.get(id).map_or(0, |zone| zone.guest_metadata_seen);
        fact.guest_metadata = shared.metadata.unseen(*id, seen);
    }
    let report = Report {
        server: shared.config.server,
        sequence,
        hostname: identity.hostname.clone(),
        boot_id: shared.boot_id.clone(),
        target_seen: seen,
        firewall_seen: shared.firewall_seen.load(Ordering::Acquire),
        hardware: identity.hardware.clone(),
        untold_addresses: untold_addresses(shared, &target, zones.keys().copied()),
        zones,
        images,
        underlay: *shared.config.underlay.borrow(),
        leaving: false,
    };
    let later = later.map(|later| Duration::from_millis(u64::try_from(later - now).unwrap_or(0)));
    (report, later)
}
