//! Names of instances: zones, what is in them, and the name server here.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{get, post},
};
use control::{
    Error, Scope,
    names::{self, keys},
    networks,
};
use dns::{Counters, KINDS_COUNTED, Outcome};
use model::time::Timestamp;
use opsapi::names::{
    KeyView, KeysChange, NAMES_SHOWN_MAX, NameServerView, PeerView, RefusedAddress, SignedZone, ZoneContent, ZoneView,
    listed,
};

use super::{Answer, Ops};

pub(super) fn routes() -> Router<Ops> {
    Router::new()
        .route("/v1/names/zones", get(zones))
        .route("/v1/names/zones/{apex}", get(zone))
        .route("/v1/names/server", get(server))
        .route("/v1/names/dnssec", get(signed))
        .route("/v1/names/dnssec/{apex}", post(change_keys))
}

async fn zones(State(ops): State<Ops>) -> Answer<Vec<ZoneView>> {
    let called = |id| match networks::get(&ops.control, Scope::All, id) {
        Ok(network) => network.name.clone(),
        Err(_) => id.to_string(),
    };
    let views = names::list(&ops.control).into_iter().map(|view| ZoneView {
        networks: listed(&view.zone).map(|networks| networks.iter().copied().map(called).collect()),
        zone: view.zone.value.clone(),
        instances: view.instances,
        names: view.names,
    });
    Ok(Json(views.collect()))
}

async fn zone(State(ops): State<Ops>, Path(apex): Path<String>) -> Answer<ZoneContent> {
    let (zone, content) = names::show(&ops.control, &called(&apex))?;
    let count = content.len();
    let names = content.into_iter().take(NAMES_SHOWN_MAX).collect();
    Ok(Json(ZoneContent { zone: zone.value.clone(), names, count }))
}

async fn signed(State(ops): State<Ops>) -> Answer<Vec<SignedZone>> {
    Ok(Json(keys::signed(&ops.control).into_iter().map(view).collect()))
}

async fn change_keys(
    State(ops): State<Ops>,
    Path(apex): Path<String>,
    Json(change): Json<KeysChange>,
) -> Answer<SignedZone> {
    let apex = called(&apex);
    match change {
        KeysChange::Roll(role) => keys::roll(&ops.control, &apex, role).await?,
        KeysChange::Parent(has) => keys::parent(&ops.control, &apex, has).await?,
    }
    let signed = keys::signed(&ops.control).into_iter().find(|signed| signed.zone.apex == apex);
    Ok(Json(view(signed.ok_or_else(|| Error::not_found("signed zone", &apex))?)))
}

/// A zone's name as it is recorded.
fn called(apex: &str) -> String {
    apex.trim_end_matches('.').to_ascii_lowercase()
}

fn view(signed: keys::SignedZone) -> SignedZone {
    let record = signed.keys.as_ref();
    let keys = record.iter().flat_map(|record| &record.keys).map(|key| KeyView {
        role: key.role,
        tag: key.tag,
        stage: key.stage,
        since: key.since,
        parent_record: key.parent_record.clone(),
    });
    SignedZone {
        apex: signed.zone.apex.clone(),
        wanted: signed.is_wanted(),
        keys: keys.collect(),
        waits_for: record.and_then(|record| record.waits_for(signed.is_wanted())),
    }
}

async fn server(State(ops): State<Ops>) -> Answer<NameServerView> {
    let status = ops.names.status();
    // What is followed now; what the settings said at the start as long as nothing is.
    let settings = status.said.clone().unwrap_or_else(|| Arc::new(ops.settings.names.shared.clone()));
    let zones = names::list(&ops.control).into_iter().map(|view| (view.zone.apex.clone(), view.zone.serial)).collect();
    let transfers = settings.transfers.iter().map(|transfer| match &transfer.key {
        Some(key) => format!("{} with key {key}", transfer.network),
        None => transfer.network.to_string(),
    });
    Ok(Json(NameServerView {
        enabled: settings.enabled,
        addresses: status.addresses,
        refused: status.refused.into_iter().map(|(address, why)| RefusedAddress { address, why }).collect(),
        error: status.error,
        counters: status.counters.map(|counters| read(&counters)).unwrap_or_default(),
        transfers: transfers.collect(),
        notify: settings.notify.iter().map(|notify| notify.address).collect(),
        peers: status.running.iter().flat_map(|running| running.peers()).map(|peer| shown(&zones, peer)).collect(),
    }))
}

fn shown(zones: &BTreeMap<String, u32>, peer: dns::Peer) -> PeerView {
    let zone = peer.zone.to_string();
    PeerView {
        address: peer.client,
        current: zones.get(&zone).copied(),
        zone,
        has: peer.has,
        asked_at: peer.asked_at_s.map(|seconds| Timestamp(i64::try_from(seconds).unwrap_or(0).saturating_mul(1_000))),
        was_whole: peer.was_whole,
        told: peer.told,
    }
}

/// The counters by names, those that are 0 left out.
fn read(counters: &Counters) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    let mut put = |name: String, counter: &AtomicU64| {
        let count = counter.load(Ordering::Relaxed);
        if count > 0 {
            all.insert(name, count);
        }
    };
    for (name, counter) in [
        ("queries over UDP", &counters.udp),
        ("queries over TCP", &counters.tcp),
        ("truncated", &counters.truncated),
        ("limited", &counters.limited),
        ("dropped", &counters.dropped),
        ("connections refused", &counters.connections_refused),
        ("transfers of whole zones", &counters.transfers_whole),
        ("transfers of differences", &counters.transfers_differences),
        ("transfers refused", &counters.transfers_refused),
        ("transfers failed", &counters.transfers_failed),
        ("notify sent", &counters.notify_sent),
        ("notify answered", &counters.notify_answered),
        ("notify failed", &counters.notify_failed),
        ("notify received", &counters.notify_received),
    ] {
        put(name.to_owned(), counter);
    }
    for (at, counter) in counters.kinds.iter().enumerate() {
        let kind = KINDS_COUNTED.get(at).map_or_else(|| "other kinds".to_owned(), ToString::to_string);
        put(format!("asked for {kind}"), counter);
    }
    for (outcome, counter) in Outcome::ALL.into_iter().zip(&counters.outcomes) {
        put(format!("answered {}", outcome.name()), counter);
    }
    all
}
