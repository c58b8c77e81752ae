//! Packages and networks.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{get, post},
};
use control::{Control, Scope, networks, packages};
use model::{
    layout::Layout,
    network::{Address, Network},
    package::Package,
    unit::{CpuCap, CpuShares, Mib},
};
use opsapi::{NatAddress, NetworkView, NewNetwork, NewPackage};
use store::Entry;

use super::{Answer, Body, Ops, Refusal, value, values};

/// Processes of a package that names no number.
const MAX_PROCESSES: u32 = 2_000;
/// Weight of a package that names none.
const CPU_SHARES: u32 = 100;
/// Bytes, of a network that names none.
const MTU: u16 = 1_500;

pub(super) fn routes() -> Router<Ops> {
    Router::new()
        .route("/v1/packages", get(list_packages).post(create_package))
        .route("/v1/packages/{package}", get(one_package))
        .route("/v1/packages/{package}/activate", post(activate_package))
        .route("/v1/packages/{package}/deactivate", post(deactivate_package))
        .route("/v1/networks", get(list_networks).post(create_network))
        .route("/v1/networks/{network}", get(one_network).delete(delete_network))
        .route("/v1/networks/{network}/ips", get(list_ips))
}

async fn list_packages(State(ops): State<Ops>) -> Answer<Vec<Package>> {
    let filter = packages::PackageFilter { inactive: true, ..Default::default() };
    Ok(Json(values(&packages::list(&ops.control, &filter))))
}

async fn one_package(State(ops): State<Ops>, Path(package): Path<String>) -> Answer<Package> {
    Ok(Json(value(&packages::get(&ops.control, &package)?)))
}

async fn create_package(State(ops): State<Ops>, Body(new): Body<NewPackage>) -> Answer<Package> {
    let new = packages::NewPackage {
        id: new.id,
        name: new.name,
        version: new.version.unwrap_or_else(|| "1.0.0".to_owned()),
        group: new.group,
        description: new.description,
        memory: Mib(new.memory),
        swap: new.swap.map(Mib),
        disk: Mib(new.disk),
        max_processes: new.max_processes.unwrap_or(MAX_PROCESSES),
        vcpus: new.vcpus,
        cpu_cap: new.cpu_cap.map(CpuCap),
        cpu_shares: CpuShares(new.cpu_shares.unwrap_or(CPU_SHARES)),
        traits: new.traits,
        brand: None,
    };
    Ok(Json(value(&packages::create(&ops.control, new).await?)))
}

async fn activate_package(State(ops): State<Ops>, Path(package): Path<String>) -> Answer<Package> {
    Ok(Json(value(&packages::set_active(&ops.control, &package, true).await?)))
}

async fn deactivate_package(State(ops): State<Ops>, Path(package): Path<String>) -> Answer<Package> {
    Ok(Json(value(&packages::set_active(&ops.control, &package, false).await?)))
}

/// A network by id or name; a name that several have is refused.
pub(super) fn find_network(control: &Control, network: &str) -> Result<Arc<Entry<Network>>, Refusal> {
    if let Ok(id) = network.parse() {
        return Ok(networks::get(control, Scope::All, id)?);
    }
    let mut named: Vec<_> =
        networks::list(control, Scope::All).into_iter().filter(|found| found.name == network).collect();
    match (named.pop(), named.len()) {
        (Some(found), 0) => Ok(found),
        (None, _) => Err(control::Error::not_found("network", network).into()),
        (Some(_), more) => {
            let why = format!("{} networks are called \"{network}\"; name one by its id", more + 1);
            Err(control::Error::Conflict(why).into())
        }
    }
}

async fn list_networks(State(ops): State<Ops>) -> Answer<Vec<Network>> {
    Ok(Json(values(&networks::list(&ops.control, Scope::All))))
}

async fn one_network(State(ops): State<Ops>, Path(network): Path<String>) -> Answer<NetworkView> {
    let network = find_network(&ops.control, &network)?;
    let nat = |found: networks::Outside| NatAddress {
        server: found.server,
        hostname: found.hostname,
        address: found.address,
    };
    let nat_addresses = networks::outside(&ops.control, &network).into_iter().map(nat).collect();
    Ok(Json(NetworkView { network: value(&network), nat_addresses }))
}

async fn create_network(State(ops): State<Ops>, Body(new): Body<NewNetwork>) -> Answer<Network> {
    let new = networks::NewNetwork {
        name: new.name,
        description: new.description,
        owners: new.owners,
        public: new.public,
        nic_tag: new.nic_tag,
        vlan: new.vlan,
        layout: Layout {
            subnet: new.subnet,
            range_start: new.range_start,
            range_end: new.range_end,
            gateway: new.gateway,
            subnet6: new.subnet6,
            range6_start: new.range6_start,
            range6_end: new.range6_end,
            gateway6: new.gateway6,
            resolvers: new.resolvers,
            routes: new.routes,
            mtu: new.mtu.unwrap_or(MTU),
        },
        host_gateway: new.host_gateway,
        nat: new.nat,
    };
    Ok(Json(value(&networks::create(&ops.control, new).await?)))
}

async fn delete_network(State(ops): State<Ops>, Path(network): Path<String>) -> Answer<()> {
    let id = find_network(&ops.control, &network)?.id;
    Ok(Json(networks::delete(&ops.control, id).await?))
}

async fn list_ips(State(ops): State<Ops>, Path(network): Path<String>) -> Answer<Vec<Address>> {
    let id = find_network(&ops.control, &network)?.id;
    let found = networks::ips(&ops.control, Scope::All, id)?;
    Ok(Json(found.into_iter().filter_map(|view| view.record).collect()))
}
