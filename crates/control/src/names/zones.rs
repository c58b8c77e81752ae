//! Which zones there should be, out of the operator's settings and the networks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use model::{
    headnode::Stage,
    id::{NetworkId, PoolId},
    names::{Data, Group, MONITOR_LABEL, ZoneHead, ZoneKind, reverse},
    network::Network,
};
use store::Snapshot;

use super::{NamesConfig, REST, ZoneConfig};
use crate::tables::{EVERYBODY, HEADNODES, NETWORKS, POOLS, SEEN_BY};

/// Label of the headnodes as name servers.
const SERVER_LABEL: &str = "ns";
/// Zones for addresses at most: beyond them addresses have no names, which is said.
const REVERSE_MAX: usize = 4_096;

/// The zones that there should be, by name.
pub(super) fn wanted(config: &NamesConfig, snapshot: &Snapshot) -> BTreeMap<String, ZoneHead> {
    let mut zones = BTreeMap::new();
    for zone in &config.zones {
        let head = head(config, zone, snapshot);
        zones.insert(zone.apex.clone(), head);
    }
    let (true, Some(first)) = (config.reverse, config.zones.first()) else { return zones };
    let servers = servers(config, first);
    for apex in reverse_zones(snapshot) {
        let head = ZoneHead {
            kind: ZoneKind::Reverse,
            networks: None,
            hostmaster: hostmaster(config, &first.apex),
            name_servers: servers.clone(),
            glue: Vec::new(),
            ttl_seconds: config.ttl_seconds,
            ns_ttl_seconds: config.ns_ttl_seconds,
            clients: Vec::new(),
            signed: config.signed,
        };
        // One that the operator names is the operator's.
        zones.entry(apex).or_insert(head);
    }
    zones
}

fn head(config: &NamesConfig, zone: &ZoneConfig, snapshot: &Snapshot) -> ZoneHead {
    let name_servers = servers(config, zone);
    let own = format!("{SERVER_LABEL}.{}", zone.apex);
    let mut glue = Vec::new();
    if name_servers.contains(&own) {
        glue.push(Group {
            names: vec![SERVER_LABEL.to_owned()],
            shared: false,
            data: addresses(snapshot, Asked::Names),
        });
    }
    // Whoever watches an instance asks the monitor by the instance's id.
    let monitor = vec![format!("*.{MONITOR_LABEL}"), MONITOR_LABEL.to_owned()];
    glue.push(Group { names: monitor, shared: false, data: addresses(snapshot, Asked::Monitor) });
    glue.retain(|group| !group.data.is_empty());
    ZoneHead {
        kind: ZoneKind::Forward,
        networks: networks(zone, snapshot),
        hostmaster: hostmaster(config, &zone.apex),
        name_servers,
        glue,
        ttl_seconds: config.ttl_seconds,
        ns_ttl_seconds: config.ns_ttl_seconds,
        clients: zone.clients.clone(),
        signed: zone.signed,
    }
}

fn servers(config: &NamesConfig, zone: &ZoneConfig) -> Vec<String> {
    for said in [&zone.name_servers, &config.name_servers] {
        if !said.is_empty() {
            return said.clone();
        }
    }
    vec![format!("{SERVER_LABEL}.{}", zone.apex)]
}

fn hostmaster(config: &NamesConfig, apex: &str) -> String {
    config.hostmaster.clone().unwrap_or_else(|| format!("hostmaster.{apex}"))
}

/// What headnodes are asked for.
#[derive(Clone, Copy)]
enum Asked {
    /// By name servers of others, and by guests.
    Names,
    /// By tenants, who reach `CloudAPI`.
    Monitor,
}

/// Where headnodes are reached, as far as they say addresses and not names.
fn addresses(snapshot: &Snapshot, asked: Asked) -> Vec<Data> {
    let serving = snapshot.scan(&HEADNODES).filter(|headnode| headnode.stage != Stage::Leaving);
    let address = |text: &str| text.parse::<SocketAddr>().ok().map(|at| at.ip()).filter(|ip| !ip.is_unspecified());
    let found: BTreeSet<IpAddr> = serving
        .filter_map(|headnode| match asked {
            Asked::Names => address(&headnode.node_link),
            Asked::Monitor => address(&headnode.cloudapi).or_else(|| address(&headnode.node_link)),
        })
        .collect();
    let data = found.into_iter().map(|address| match address {
        IpAddr::V4(address) => Data::A(address),
        IpAddr::V6(address) => Data::Aaaa(address),
    });
    data.collect()
}

/// The networks a zone lists; `None` for the one with the rest.
fn networks(zone: &ZoneConfig, snapshot: &Snapshot) -> Option<Vec<NetworkId>> {
    if zone.networks.iter().any(|network| network == REST) {
        return None;
    }
    let mut found = BTreeSet::new();
    for wanted in &zone.networks {
        let before = found.len();
        found.extend(
            snapshot.find(&NETWORKS, SEEN_BY, EVERYBODY).filter(|known| known.name == *wanted).map(|known| known.id),
        );
        for pool in snapshot.find(&POOLS, SEEN_BY, EVERYBODY).filter(|known| known.name == *wanted) {
            found.extend(&pool.networks);
        }
        if let Some(network) = snapshot.get(&NETWORKS, wanted) {
            found.insert(network.id);
        }
        if let Some(pool) = wanted.parse::<PoolId>().ok().and_then(|id| snapshot.get(&POOLS, &id.to_string())) {
            found.extend(&pool.networks);
        }
        if found.len() == before {
            tracing::debug!(zone = zone.apex, network = wanted, "a zone lists a network that is not there, or twice");
        }
    }
    Some(found.into_iter().collect())
}

/// Zones of the addresses of all networks but tenants' own, whose addresses are not unique.
fn reverse_zones(snapshot: &Snapshot) -> BTreeSet<String> {
    let mut zones = BTreeSet::new();
    for network in snapshot.scan(&NETWORKS).filter(|network| network.fabric.is_none()) {
        zones.extend(of_network(&network.value));
        if zones.len() > REVERSE_MAX {
            tracing::warn!(network = %network.id, "there are more than {REVERSE_MAX} zones for addresses; the rest have none");
            while zones.len() > REVERSE_MAX {
                zones.pop_last();
            }
            break;
        }
    }
    zones
}

fn of_network(network: &Network) -> Vec<String> {
    network.subnets().flat_map(reverse::zones).collect()
}
