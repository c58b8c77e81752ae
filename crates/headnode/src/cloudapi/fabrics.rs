//! Tenants' own VLANs and the networks on them.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, str::FromStr};

use cloudapi::types::{FabricVlan, Network};
use control::fabrics::{self, NetworkChange, NewFabricNetwork, NewVlan, VlanChange};
use http::{StatusCode, header};
use ipnet::IpNet;
use model::{id::NetworkId, layout::Layout, network::FABRIC_VLAN_MAX};
use serde_json::Value;

use super::{
    call::Call,
    error::{ApiError, Faults},
    networks::{show, show_one},
    params::Params,
    reply::Reply,
};

/// `GET /:account/fabrics/default/vlans`.
pub(super) async fn vlans(call: Call) -> Result<Reply, ApiError> {
    let vlans = fabrics::vlan_list(call.control(), Some(call.account.id));
    let shown: Vec<FabricVlan<'_>> = vlans.iter().map(|vlan| show_vlan(vlan)).collect();
    Ok(Reply::json(&shown))
}

/// `POST /:account/fabrics/default/vlans`.
pub(super) async fn vlan_create(call: Call) -> Result<Reply, ApiError> {
    let mut faults = Faults::default();
    let new = NewVlan {
        vlan: faults.take(vlan_id(&call.params)),
        name: faults.take(call.params.required("name")),
        description: faults.take(call.params.text("description")),
    };
    faults.finish()?;
    let vlan = fabrics::vlan_create(call.control(), call.account.id, new).await?;
    let location = format!("/{}/fabrics/default/vlans/{}", call.account.login, vlan.vlan);
    Ok(Reply::json(&show_vlan(&vlan)).status(StatusCode::CREATED).header(header::LOCATION, location))
}

/// `GET /:account/fabrics/default/vlans/:vlan`.
pub(super) async fn vlan(call: Call) -> Result<Reply, ApiError> {
    let vlan = fabrics::vlan_get(call.control(), call.account.id, call.id("VLAN", 0)?)?;
    Ok(Reply::json(&show_vlan(&vlan)))
}

/// `PUT /:account/fabrics/default/vlans/:vlan`.
pub(super) async fn vlan_update(call: Call) -> Result<Reply, ApiError> {
    let id = call.id("VLAN", 0)?;
    let mut faults = Faults::default();
    let change = VlanChange {
        name: faults.take(call.params.text("name")),
        description: faults.take(call.params.text("description")),
    };
    faults.finish()?;
    let vlan = fabrics::vlan_update(call.control(), call.account.id, id, change).await?;
    Ok(Reply::json(&show_vlan(&vlan)).status(StatusCode::ACCEPTED))
}

/// `DELETE /:account/fabrics/default/vlans/:vlan`.
pub(super) async fn vlan_delete(call: Call) -> Result<Reply, ApiError> {
    fabrics::vlan_delete(call.control(), call.account.id, call.id("VLAN", 0)?).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

/// `GET /:account/fabrics/default/vlans/:vlan/networks`.
pub(super) async fn networks(call: Call) -> Result<Reply, ApiError> {
    let networks = fabrics::network_list(call.control(), call.account.id, call.id("VLAN", 0)?)?;
    let shown: Vec<Network<'_>> = networks.iter().map(|network| show(network)).collect();
    Ok(Reply::json(&shown))
}

/// `POST /:account/fabrics/default/vlans/:vlan/networks`.
pub(super) async fn network_create(call: Call) -> Result<Reply, ApiError> {
    let vlan = call.id("VLAN", 0)?;
    // Without the VLAN nothing of the rest matters.
    fabrics::vlan_get(call.control(), call.account.id, vlan)?;
    let mut faults = Faults::default();
    let new = read(&call.params, &mut faults);
    faults.finish()?;
    let network = fabrics::network_create(call.control(), call.account.id, vlan, new).await?;
    let location = format!("/{}/fabrics/default/vlans/{vlan}/networks/{}", call.account.login, network.id);
    Ok(Reply::json(&show(&network)).status(StatusCode::CREATED).header(header::LOCATION, location))
}

/// `GET /:account/fabrics/default/vlans/:vlan/networks/:network`.
pub(super) async fn network(call: Call) -> Result<Reply, ApiError> {
    let (vlan, id) = ids(&call)?;
    let network = fabrics::network_get(call.control(), call.account.id, vlan, id)?;
    Ok(Reply::json(&show_one(call.control(), &network)))
}

/// `PUT /:account/fabrics/default/vlans/:vlan/networks/:network`.
pub(super) async fn network_update(call: Call) -> Result<Reply, ApiError> {
    let (vlan, id) = ids(&call)?;
    let params = &call.params;
    let mut faults = Faults::default();
    let change = NetworkChange {
        name: faults.take(params.text("name")),
        description: faults.take(params.text("description")),
        range_start: faults.take(params.parsed("provision_start_ip", "an IPv4 address")),
        range_end: faults.take(params.parsed("provision_end_ip", "an IPv4 address")),
        range6_start: faults.take(params.parsed("provision_start_ip6", "an IPv6 address")),
        range6_end: faults.take(params.parsed("provision_end_ip6", "an IPv6 address")),
        resolvers: faults.take(params.get("resolvers").map(|_| resolvers(params)).transpose()),
        routes: faults.take(routes(params)),
        internet_nat: faults.take(params.flag("internet_nat")),
        routed: faults.take(params.flag("routed")),
    };
    faults.finish()?;
    let network = fabrics::network_update(call.control(), call.account.id, vlan, id, change).await?;
    Ok(Reply::json(&show(&network)).status(StatusCode::ACCEPTED))
}

/// `DELETE /:account/fabrics/default/vlans/:vlan/networks/:network`.
pub(super) async fn network_delete(call: Call) -> Result<Reply, ApiError> {
    let (vlan, id) = ids(&call)?;
    fabrics::network_delete(call.control(), call.account.id, vlan, id).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

fn ids(call: &Call) -> Result<(u16, NetworkId), ApiError> {
    Ok((call.id("VLAN", 0)?, call.id("network", 1)?))
}

fn vlan_id(params: &Params) -> Result<u16, ApiError> {
    let id = params.number("vlan_id")?.ok_or_else(|| ApiError::missing("vlan_id"))?;
    let fitting = u16::try_from(id).ok().filter(|id| *id <= FABRIC_VLAN_MAX);
    fitting.ok_or_else(|| {
        ApiError::invalid("vlan_id", format!("vlan_id must be between 0 and {FABRIC_VLAN_MAX}, not {id}"))
    })
}

/// What a new network is to be, and what of it cannot be read.
fn read(params: &Params, faults: &mut Faults) -> NewFabricNetwork {
    let v4 = "an IPv4 address";
    let v6 = "an IPv6 address";
    let gateway = faults.take(params.parsed("gateway", v4));
    let gateway6 = faults.take(params.parsed("gateway6", v6));
    let subnet6 = faults.take(params.parsed("subnet6", "a subnet like fd00:1::/64"));
    // The contract demands IPv4's; ours may be without.
    let is_four = params.get("subnet").is_some() || params.get("subnet6").is_none();
    let four = |field| if is_four { demanded(params, field, v4) } else { params.parsed(field, v4) };
    NewFabricNetwork {
        name: faults.take(params.required("name")),
        description: faults.take(params.text("description")),
        layout: Layout {
            subnet: match is_four {
                true => faults.take(demanded(params, "subnet", "a subnet like 10.0.0.0/24")),
                false => None,
            },
            range_start: faults.take(four("provision_start_ip")),
            range_end: faults.take(four("provision_end_ip")),
            gateway,
            subnet6,
            range6_start: faults.take(params.parsed("provision_start_ip6", v6)),
            range6_end: faults.take(params.parsed("provision_end_ip6", v6)),
            gateway6,
            resolvers: faults.take(resolvers(params)),
            routes: faults.take(routes(params)).unwrap_or_default(),
            ..Layout::default()
        },
        // The contract's default; without a gateway there is nothing that could translate.
        internet_nat: faults.take(params.flag("internet_nat")).unwrap_or(gateway.is_some() || gateway6.is_some()),
        routed: faults.take(params.flag("routed")).unwrap_or(false),
    }
}

fn demanded<T: FromStr>(params: &Params, field: &str, what: &str) -> Result<Option<T>, ApiError> {
    params.parsed(field, what)?.map(Some).ok_or_else(|| ApiError::missing(field))
}

fn resolvers(params: &Params) -> Result<Vec<IpAddr>, ApiError> {
    let one = |value: &Value| {
        let parsed = value.as_str().and_then(|text| text.parse().ok());
        parsed.ok_or_else(|| ApiError::invalid("resolvers", format!("resolvers: {value} is not an IP address")))
    };
    params.list("resolvers").iter().map(one).collect()
}

/// An object of subnets and next hops, which may also be JSON text.
fn routes(params: &Params) -> Result<Option<BTreeMap<IpNet, IpAddr>>, ApiError> {
    let Some(value) = params.get("routes") else { return Ok(None) };
    let parsed = value.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    let Value::Object(routes) = parsed.as_ref().unwrap_or(value) else {
        return Err(ApiError::invalid("routes", "routes must be an object of next hops by subnet"));
    };
    let route = |(to, via): (&String, &Value)| {
        // A lone address is a route to one host.
        let subnet = to.parse().ok().or_else(|| to.parse::<IpAddr>().ok().map(IpNet::from));
        let hop = via.as_str().and_then(|text| text.parse().ok());
        match (subnet, hop) {
            (Some(subnet), Some(hop)) => Ok((subnet, hop)),
            (None, _) => Err(ApiError::invalid("routes", format!("routes: \"{to}\" is not a subnet like 10.1.0.0/16"))),
            (_, None) => Err(ApiError::invalid("routes", format!("routes: {via} is not an IP address"))),
        }
    };
    routes.iter().map(route).collect::<Result<_, _>>().map(Some)
}

fn show_vlan(vlan: &model::network::FabricVlan) -> FabricVlan<'_> {
    FabricVlan {
        vlan_id: vlan.vlan,
        name: Cow::Borrowed(&vlan.name),
        description: vlan.description.as_deref().map(Cow::Borrowed),
    }
}
