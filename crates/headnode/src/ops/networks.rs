//! NIC tags, pools, reserved addresses and tenants' VLANs.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{delete, get, post},
};
use control::{
    Scope, fabrics,
    networks::{
        self,
        pools::{self, PoolView},
        tags::{self, TagView},
    },
};
use model::network::{Address, FabricVlan, Pool};
use opsapi::{NewNicTag, NewPool, NicTagView};

use super::{Answer, Body, Ops, infra::find_network, values};

pub(super) fn routes() -> Router<Ops> {
    Router::new()
        .route("/v1/networks/{network}/ips/{ip}/reserve", post(reserve))
        .route("/v1/networks/{network}/ips/{ip}/release", post(release))
        .route("/v1/nic-tags", get(list_tags).post(create_tag))
        .route("/v1/nic-tags/{name}", delete(delete_tag))
        .route("/v1/pools", get(list_pools).post(create_pool))
        .route("/v1/pools/{pool}", delete(delete_pool))
        .route("/v1/fabrics", get(list_vlans))
}

async fn reserve(State(ops): State<Ops>, Path((network, ip)): Path<(String, IpAddr)>) -> Answer<Option<Address>> {
    set_reserved(&ops, &network, ip, true).await
}

async fn release(State(ops): State<Ops>, Path((network, ip)): Path<(String, IpAddr)>) -> Answer<Option<Address>> {
    set_reserved(&ops, &network, ip, false).await
}

async fn set_reserved(ops: &Ops, network: &str, ip: IpAddr, reserved: bool) -> Answer<Option<Address>> {
    let id = find_network(&ops.control, network)?.id;
    Ok(Json(networks::reserve_ip(&ops.control, Scope::All, id, ip, reserved).await?.record))
}

fn view(found: TagView) -> NicTagView {
    NicTagView { tag: found.tag, networks: found.networks }
}

async fn list_tags(State(ops): State<Ops>) -> Answer<Vec<NicTagView>> {
    Ok(Json(tags::list(&ops.control).into_iter().map(view).collect()))
}

async fn create_tag(State(ops): State<Ops>, Body(new): Body<NewNicTag>) -> Answer<NicTagView> {
    let mtu = new.mtu.unwrap_or(tags::MTU_MIN);
    Ok(Json(view(tags::create(&ops.control, &new.name, mtu, new.description).await?)))
}

async fn delete_tag(State(ops): State<Ops>, Path(name): Path<String>) -> Answer<()> {
    Ok(Json(tags::delete(&ops.control, &name).await?))
}

fn record(found: &PoolView) -> Pool {
    found.pool.value.clone()
}

async fn list_pools(State(ops): State<Ops>) -> Answer<Vec<Pool>> {
    Ok(Json(pools::list(&ops.control, Scope::All).iter().map(record).collect()))
}

async fn create_pool(State(ops): State<Ops>, Body(new): Body<NewPool>) -> Answer<Pool> {
    let mut networks = Vec::with_capacity(new.networks.len());
    for network in &new.networks {
        networks.push(find_network(&ops.control, network)?.id);
    }
    let new = pools::NewPool { name: new.name, description: new.description, owners: new.owners, networks };
    Ok(Json(record(&pools::create(&ops.control, new).await?)))
}

async fn delete_pool(State(ops): State<Ops>, Path(pool): Path<String>) -> Answer<()> {
    let named = pools::list(&ops.control, Scope::All).into_iter().map(|view| view.pool);
    let found: Vec<Arc<_>> =
        named.filter(|record| record.id.to_string() == pool || record.name == pool).take(2).collect();
    match found.as_slice() {
        [one] => Ok(Json(pools::delete(&ops.control, one.id).await?)),
        [] => Err(control::Error::not_found("pool", pool).into()),
        _ => Err(control::Error::Conflict(format!("several pools are called \"{pool}\"; name one by its id")).into()),
    }
}

async fn list_vlans(State(ops): State<Ops>) -> Answer<Vec<FabricVlan>> {
    Ok(Json(values(&fabrics::vlan_list(&ops.control, None))))
}
