//! The two conversations with the headnode that never stop: waiting for targets, and reporting.
//!
//! Neither waits for the other and neither ends: a headnode that is gone is asked again, more and more seldom. A target is
//! judged, written down, and only then shown to the dispatcher; what arrives while the disk is busy is fetched next, as one
//! document, however many changes it holds.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use base::backoff::Backoff;
use model::{
    clock::{self, ClockReading, Exchange, Gauge},
    delta::{Held, ReportNews, Said, TargetDelta, TargetNews},
    diff::Wiring,
    id::{InstanceId, NetworkId},
    target::{Report, Target},
    time::Timestamp,
};
use nodeapi::{HEARTBEAT_SECONDS, ReportAnswer};
use tokio::time::Instant;

use crate::{
    error::AgentError,
    keeper::{self, Keeper, Offer},
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

/// Fetches targets until shutdown. What they were at the end is one file then.
pub(crate) async fn fetch_targets(shared: Arc<Shared>, keeper: Keeper) {
    let keeper = Arc::new(Mutex::new(keeper));
    follow_targets(&shared, &keeper).await;
    let target = shared.target();
    let folded = shared.verbs.run("target", move |_| lock(&keeper).fold(&target)).await;
    if let Err(error) = folded {
        tracing::warn!(%error, "the target's journal stays; the next agent reads it");
    }
}

async fn follow_targets(shared: &Arc<Shared>, keeper: &Arc<Mutex<Keeper>>) {
    let mut pauses = Backoff::new(PAUSE_FLOOR, PAUSE_CEILING);
    // What is new in the next target is only of use to who holds this one.
    let mut is_whole_wanted = false;
    loop {
        let held = shared.target();
        let digest = (held.generation > 0 && !is_whole_wanted).then(|| held.digest());
        let offered = tokio::select! {
            biased;
            offered = shared.link.target(Held { generation: held.generation, digest }) => offered,
            () = shared.shutdown.wait() => return,
        };
        is_whole_wanted = false;
        let taken = match offered {
            Ok(Some(TargetNews::Whole(target))) => take(shared, keeper, &held, target, None).await,
            Ok(Some(TargetNews::Delta(delta))) => match delta.apply(&held) {
                Ok(target) => take(shared, keeper, &held, target, Some(delta)).await,
                Err(error) => {
                    is_whole_wanted = true;
                    Err(format!("what is new in target {} is of no use: {error}", delta.generation))
                }
            },
            Ok(None) => {
                shared.confirmed.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(base::errors::chain(&error)),
        };
        match taken {
            Ok(()) => pauses.reset(),
            Err(error) => {
                shared.activity.targets_failed.one();
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

async fn take(
    shared: &Arc<Shared>,
    keeper: &Arc<Mutex<Keeper>>,
    held: &Target,
    target: Target,
    delta: Option<Box<TargetDelta>>,
) -> Result<(), String> {
    match keeper::judge(shared.config.server, Some(held), &target) {
        Offer::Newer => {}
        Offer::Held => return Err("the headnode sent the target we said we have".to_owned()),
        Offer::Older => {
            return Err(format!("refused target {}: {} is held", target.generation, held.generation));
        }
        Offer::Foreign => return Err(format!("refused a target for machine {}", target.server)),
    }
    let target = Arc::new(target);
    let (keeper, written) = (keeper.clone(), target.clone());
    let result = shared.verbs.run("target", move |_| lock(&keeper).keep(&written, delta.as_deref())).await;
    result.map_err(|source| {
        let path = shared.config.data_dir.join("target.json");
        base::errors::chain(&AgentError::File { doing: "write", path, source })
    })?;
    base::crash::point("node.target.written");
    shared.confirmed.store(true, Ordering::Relaxed);
    shared.link.know(shared.config.server, &target.headnodes);
    shared.target.send_replace(target);
    shared.activity.targets.one();
    Ok(())
}

/// The keeper's one user at a time: a thread that writes, while the fetching task waits for it.
fn lock(keeper: &Mutex<Keeper>) -> MutexGuard<'_, Keeper> {
    // A panic while writing leaves no journal open, so the next target is written whole.
    keeper.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long the last report may take: whoever stops the machine waits for it.
const FAREWELL: Duration = Duration::from_secs(3);

/// Reports until shutdown, and then once more that this was the last.
pub(crate) async fn send_reports(shared: Arc<Shared>, identity: Identity) {
    let sequence = report_changes(&shared, &identity).await;
    let (mut report, _) = compose(&shared, &identity, sequence + 1);
    report.leaving = true;
    let asked = shared.verbs.run("goes down", |host| host.machine.goes_down());
    report.goes_down = tokio::time::timeout(FAREWELL, asked).await.unwrap_or(false);
    // A headnode that does not hear it notices the silence.
    let _ = tokio::time::timeout(FAREWELL, shared.link.report(&ReportNews::Whole(Box::new(report)))).await;
}

/// Reports until shutdown: at once when something is worth saying, else as a heartbeat. Returns the number of the last.
async fn report_changes(shared: &Arc<Shared>, identity: &Identity) -> u64 {
    let mut pauses = Backoff::new(PAUSE_FLOOR, PAUSE_CEILING);
    let mut sequence = 0_u64;
    let mut said = Said::default();
    let (begun, mut gauge) = (Instant::now(), Gauge::default());
    let mut headnode = shared.config.headnode.clone();
    loop {
        sequence += 1;
        headnode.mark_unchanged();
        let (mut report, later) = compose(shared, identity, sequence);
        report.clock = gauge.at(begun.elapsed());
        let news = said.news(&report);
        let asked = Instant::now();
        let answer = tokio::select! {
            biased;
            answer = shared.link.report(&news) => answer,
            () = shared.shutdown.wait() => return sequence,
        };
        let pause = match answer {
            Ok(answer) => {
                pauses.reset();
                shared.activity.reports.one();
                let heard_ms = shared.now_ms();
                if let Some(reading) = reading(heard_ms, &answer, asked.elapsed()) {
                    gauge.take(reading, begun.elapsed());
                    set_right(shared, gauge.at(begun.elapsed()), heard_ms);
                }
                let is_taken = said.answered(report, answer.held);
                if !is_taken && matches!(news, ReportNews::Delta(_)) {
                    // The headnode does not hold what this follows on: at once the whole, which it understands in any case.
                    continue;
                }
                let heartbeat = Duration::from_secs(HEARTBEAT_SECONDS);
                later.map_or(heartbeat, |later| heartbeat.min(later))
            }
            Err(error) => {
                said.unanswered();
                shared.activity.reports_failed.one();
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
            // Of a caller that runs no headnodes there is no news.
            Ok(()) = headnode.changed() => {}
            () = tokio::time::sleep(pause) => {}
            () = shared.shutdown.wait() => return sequence,
        }
    }
}

/// What an answer tells of this machine's clock.
fn reading(heard_ms: i64, answer: &ReportAnswer, waited: Duration) -> Option<ClockReading> {
    let heard = Timestamp(heard_ms);
    Exchange { heard, waited, received: answer.received_at?, answered: answer.answered_at? }.reading()
}

/// From now on this machine tells the headnode's time where its own clock is surely off. That one said `heard_ms` at the reading.
fn set_right(shared: &Shared, reading: Option<ClockReading>, heard_ms: i64) {
    let ahead = reading.map_or(0, ClockReading::correction_ms);
    let before = shared.clock_ahead_ms.swap(ahead, Ordering::Relaxed);
    if reading.is_some() {
        shared.clock_told.note(heard_ms);
    }
    match (before, ahead) {
        (0, 0) => {}
        (_, 0) => tracing::info!("this machine's clock agrees with the headnode's again"),
        _ if before.abs_diff(ahead) > clock::OFF_MS => {
            let off = clock::words(ahead);
            tracing::warn!(%off, "this machine's clock is not the headnode's; set it, and have it kept (NTP)");
            shared.board.nudge();
        }
        _ => {}
    }
}

/// Watches how often the kernel had to kill for lack of memory, until shutdown: a process that dies inside ends no zone, and
/// would be seen by nobody.
pub(crate) async fn watch_memory(shared: Arc<Shared>) {
    let period = Duration::from_secs(nodeapi::HEARTBEAT_SECONDS);
    loop {
        tokio::select! {
            biased;
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
) -> BTreeMap<InstanceId, Vec<(NetworkId, IpAddr)>> {
    let untold = here.filter(|id| !target.zones.contains_key(id));
    let wirings = untold.filter_map(|id| Some((id, shared.ledgers.read(id)?.remembered.wiring?)));
    let held = |wiring: &Wiring| {
        wiring.nics.iter().flat_map(|(nic, _)| nic.addresses().map(|net| (nic.network, net.addr()))).collect()
    };
    wirings.map(|(id, wiring)| (id, held(&wiring))).collect()
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
        let unseen = shared.metadata.unseen(*id, seen);
        if !unseen.is_empty() {
            fact.guest_metadata = unseen;
        }
    }
    let whereabouts = *shared.config.whereabouts.borrow();
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
        underlay: whereabouts.underlay,
        outside: whereabouts.outside,
        leaving: false,
        goes_down: false,
        wires: shared.wires.borrow().wires(shared.now()),
        clock: None,
        headnode: shared.config.headnode.borrow().clone(),
    };
    let later = later.map(|later| Duration::from_millis(u64::try_from(later - now).unwrap_or(0)));
    (report, later)
}
