//! Networks and the addresses on them.

use std::{borrow::Cow, net::Ipv4Addr};

use cloudapi::{
    error::Code,
    types::{Network, NetworkIp},
};
use control::networks::{self, IpView};
use model::id::{AccountId, NetworkId};

use super::{
    call::Call,
    error::{ApiError, Faults},
    reply::Reply,
};

/// Addresses of one page: the contract's number.
const PAGE_MAX: usize = 1_000;

/// `GET /:account/networks`.
pub(super) async fn list(call: Call) -> Result<Reply, ApiError> {
    let networks = match call.params.flag("fabric")? {
        Some(true) => Vec::new(),
        _ => networks::list(call.control(), call.scope()),
    };
    let shown: Vec<Network<'_>> = networks.iter().map(|network| show(network)).collect();
    Ok(Reply::json(&shown))
}

/// `GET /:account/networks/:network`.
pub(super) async fn get(call: Call) -> Result<Reply, ApiError> {
    let network = networks::get(call.control(), call.scope(), call.id("network", 0)?)?;
    Ok(Reply::json(&show(&network)))
}

/// `GET /:account/networks/:network/ips`.
pub(super) async fn ips(call: Call) -> Result<Reply, ApiError> {
    let id = private(&call)?;
    let mut faults = Faults::default();
    let number =
        |number: Option<u64>, default| number.map_or(default, |number| usize::try_from(number).unwrap_or(usize::MAX));
    let limit = number(faults.take(call.params.number("limit")), PAGE_MAX).clamp(1, PAGE_MAX);
    let offset = number(faults.take(call.params.number("offset")), 0);
    faults.finish()?;
    let views = networks::ips(call.control(), call.scope(), id)?;
    let page = views.iter().skip(offset).take(limit);
    let shown: Vec<NetworkIp> = page.map(|view| show_ip(view, call.account.id)).collect();
    Ok(Reply::json(&shown).counted(shown.len(), Some(limit)))
}

/// `GET /:account/networks/:network/ips/:ip`.
pub(super) async fn ip(call: Call) -> Result<Reply, ApiError> {
    let view = networks::ip(call.control(), call.scope(), private(&call)?, address(&call)?)?;
    Ok(Reply::json(&show_ip(&view, call.account.id)))
}

/// `PUT /:account/networks/:network/ips/:ip`.
pub(super) async fn ip_update(call: Call) -> Result<Reply, ApiError> {
    let id = private(&call)?;
    let reserved = call.params.flag("reserved")?.ok_or_else(|| ApiError::missing("reserved"))?;
    let scope = if call.operator { control::Scope::All } else { call.scope() };
    let view = networks::reserve_ip(call.control(), scope, id, address(&call)?, reserved).await?;
    Ok(Reply::json(&show_ip(&view, call.account.id)))
}

fn address(call: &Call) -> Result<Ipv4Addr, ApiError> {
    let text = call.segment(1);
    text.parse().map_err(|_| ApiError::invalid("ip", format!("\"{text}\" is not an IPv4 address")))
}

/// Addresses of public networks are the operators' business.
fn private(call: &Call) -> Result<NetworkId, ApiError> {
    let network = networks::get(call.control(), call.scope(), call.id("network", 0)?)?;
    if network.public && !call.operator {
        let message = "addresses can be listed and changed on private networks only";
        return Err(ApiError::new(Code::NotAuthorized, message));
    }
    Ok(network.id)
}

/// How a network is laid out is shown to those it belongs to; of shared ones, only that they are there.
fn show(network: &model::network::Network) -> Network<'_> {
    let owned = !network.owners.is_empty();
    Network {
        id: network.id,
        name: Cow::Borrowed(&network.name),
        public: network.public,
        fabric: None,
        description: network.description.as_deref().map(Cow::Borrowed),
        subnet: owned.then(|| Cow::Owned(network.subnet.to_string())),
        provision_start_ip: owned.then_some(network.range_start),
        provision_end_ip: owned.then_some(network.range_end),
        gateway: network.gateway.filter(|_| owned),
        resolvers: owned.then_some(Cow::Borrowed(&*network.resolvers)),
        routes: owned.then(|| network.routes.iter().map(|(to, via)| (to.to_string(), *via)).collect()),
        internet_nat: owned.then_some(network.nat),
        suffixes: None,
    }
}

/// Who holds an address is shown only to the holder.
fn show_ip(view: &IpView, account: AccountId) -> NetworkIp {
    let own = view.record.as_ref().filter(|address| address.owner == Some(account));
    NetworkIp {
        ip: view.ip,
        reserved: view.managed || view.record.as_ref().is_some_and(|address| address.reserved),
        managed: view.managed,
        owner_uuid: own.and_then(|address| address.owner),
        belongs_to_uuid: own.and_then(|address| address.instance),
    }
}
