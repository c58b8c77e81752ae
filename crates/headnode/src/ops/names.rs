//! Names of instances: zones, what is in them, and the name server here.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::get,
};
use control::{Scope, names, networks};
use dns::{Counters, KINDS_COUNTED, Outcome};
use opsapi::names::{NAMES_SHOWN_MAX, NameServerView, RefusedAddress, ZoneContent, ZoneView, listed};

use super::{Answer, Ops};

pub(super) fn routes() -> Router<Ops> {
    Router::new()
        .route("/v1/names/zones", get(zones))
        .route("/v1/names/zones/{apex}", get(zone))
        .route("/v1/names/server", get(server))
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
    let (zone, content) = names::show(&ops.control, apex.trim_end_matches('.').to_ascii_lowercase().as_str())?;
    let count = content.len();
    let names = content.into_iter().take(NAMES_SHOWN_MAX).collect();
    Ok(Json(ZoneContent { zone: zone.value.clone(), names, count }))
}

async fn server(State(ops): State<Ops>) -> Answer<NameServerView> {
    let (status, settings) = (ops.names.status(), &ops.settings.names.shared);
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
    }))
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
