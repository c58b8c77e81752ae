//! The datacenter at a glance, and its loops.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use control::tables::{ACCOUNTS, IMAGES, NETWORKS, PACKAGES, SERVERS};
use flow::loops::LoopStatus;
use flow::{FLOWS, FlowState};
use model::{state::PublicState, time::Timestamp};
use opsapi::{CertificateView, Counts, Datacenter, LoopView};

use super::{Answer, Ops, Refusal, instances};

/// Below this much free space next to the store, somebody should act, bytes.
const STORE_SPACE_LOW_BYTES: u64 = 512 << 20;

pub(super) fn routes() -> Router<Ops> {
    Router::new()
        .route("/v1/datacenter", get(datacenter))
        .route("/v1/loops", get(loops))
        .route("/v1/certificates", get(list_certificates))
        .route("/v1/certificates/renew", post(renew_certificates))
}

async fn datacenter(State(ops): State<Ops>) -> Answer<Datacenter> {
    let config = &ops.control.config;
    let store_free_bytes = free_bytes(&ops);
    let counts = counts(&ops);
    let mut findings = Vec::new();
    findings.extend(ops.control.headnodes.lacking().map(|lack| lack.for_operators()));
    if store_free_bytes < STORE_SPACE_LOW_BYTES {
        findings.push(format!("only {} MiB are free next to the store", store_free_bytes >> 20));
    }
    if counts.flows_parked > 0 {
        findings.push(format!(
            "{} flows gave up and need a person: `neso adm flow list --unfinished`",
            counts.flows_parked
        ));
    }
    if counts.instances_failed > 0 {
        findings.push(match counts.instances_failed {
            1 => "1 instance could not be made; it says why".to_owned(),
            more => format!("{more} instances could not be made; each says why"),
        });
    }
    let (backups, about_backups) = super::backups::look(&ops).await;
    findings.extend(about_backups);
    Ok(Json(Datacenter {
        name: config.datacenter.clone(),
        region: config.region.clone(),
        version: base::release::name().to_owned(),
        started_at: ops.started_at,
        now: ops.control.now(),
        store_revision: ops.control.snapshot().revision().0,
        store_free_bytes,
        resident_bytes: resident_bytes(),
        counts,
        certificates: certificates(&ops),
        backups,
        findings,
    }))
}

fn counts(ops: &Ops) -> Counts {
    let control = &ops.control;
    let snapshot = control.snapshot();
    let found: Vec<_> = instances::all(control).collect();
    let in_state = |state| found.iter().filter(|found| found.state == state).count();
    let flows_in = |states: &[FlowState]| snapshot.scan(&FLOWS).filter(|flow| states.contains(&flow.state)).count();
    Counts {
        accounts: snapshot.count(&ACCOUNTS),
        packages: snapshot.count(&PACKAGES),
        networks: snapshot.count(&NETWORKS),
        images: snapshot.count(&IMAGES),
        servers: snapshot.count(&SERVERS),
        instances: found.len(),
        instances_running: in_state(PublicState::Running),
        instances_failed: in_state(PublicState::Failed),
        flows_running: flows_in(&[FlowState::Running, FlowState::Undoing]),
        flows_parked: flows_in(&[FlowState::Parked]),
    }
}

fn certificates(ops: &Ops) -> Vec<CertificateView> {
    let pki = &ops.pki;
    [("authority", &pki.ca), ("headnode", &pki.server), ("node", &pki.node), ("operator", &pki.operator)]
        .into_iter()
        .filter_map(|(name, identity)| {
            let expires_at = identity.expires_at().ok()?;
            Some(CertificateView { name: name.to_owned(), expires_at, serial: identity.serial().ok()? })
        })
        .collect()
}

async fn list_certificates(State(ops): State<Ops>) -> Answer<Vec<CertificateView>> {
    Ok(Json(certificates(&ops)))
}

async fn renew_certificates(State(ops): State<Ops>) -> Answer<Vec<CertificateView>> {
    let renewing = ops.certificates.clone();
    let renewed = base::task::blocking("renew certificates", move || renewing.renew()).await;
    renewed.map_err(|error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", base::errors::chain(&error))
    })?;
    list_certificates(State(ops)).await
}

/// Bytes a new file could take next to the store.
fn free_bytes(ops: &Ops) -> u64 {
    nix::sys::statvfs::statvfs(&ops.settings.headnode_dir())
        .map_or(0, |stat| stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Memory of this process that is in RAM.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
    kib << 10
}

async fn loops(State(ops): State<Ops>) -> Answer<Vec<LoopView>> {
    let now = ops.control.now();
    let view = |status: LoopStatus| LoopView {
        name: status.name.to_owned(),
        period_ms: status.period_ms,
        age_ms: status.last_success_at.map(|ended| now.millis_since(Timestamp(ended))),
        passes: status.passes,
        summary: status.last_summary,
        error: status.last_error,
    };
    Ok(Json(ops.loops.status().into_iter().map(view).collect()))
}
