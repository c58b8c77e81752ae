//! Networks and the addresses on them.

use std::{borrow::Cow, collections::BTreeSet, net::IpAddr};

use cloudapi::{
    error::Code,
    types::{Network, NetworkIp},
};
use control::{
    names,
    networks::{
        self, IpView,
        pools::{self, PoolView},
    },
};
use model::id::{AccountId, NetworkId, PoolId};

use super::{
    call::Call,
    error::{ApiError, Faults},
    reply::Reply,
};

/// Addresses of one page: the contract's number.
const PAGE_MAX: usize = 1_000;

/// `GET /:account/networks`.
pub(super) async fn list(call: Call) -> Result<Reply, ApiError> {
    let mut faults = Faults::default();
    let (fabric, public) = (faults.take(call.params.flag("fabric")), faults.take(call.params.flag("public")));
    faults.finish()?;
    let networks = networks::list(call.control(), call.scope());
    let pools = pools::list(call.control(), call.scope());
    let passes = |is_fabric: bool, is_public: bool| {
        fabric.is_none_or(|wanted| wanted == is_fabric) && public.is_none_or(|wanted| wanted == is_public)
    };
    let networks = networks.iter().filter(|network| passes(network.fabric.is_some(), network.public));
    let pools = pools.iter().filter(|view| passes(false, view.public));
    let (networks, pools): (Vec<_>, Vec<_>) = (networks.collect(), pools.collect());
    let mut shown: Vec<Network<'_>> = networks.iter().map(|network| show(network)).collect();
    shown.extend(pools.iter().copied().map(show_pool));
    let members =
        networks.iter().map(|network| vec![network.id]).chain(pools.iter().map(|view| view.pool.networks.clone()));
    add_suffixes(&call, &mut shown, members.collect());
    Ok(Reply::json(&shown))
}

/// `GET /:account/networks/:network`: a network or a pool of them.
pub(super) async fn get(call: Call) -> Result<Reply, ApiError> {
    let id: NetworkId = call.id("network", 0)?;
    if let Ok(pool) = pools::get(call.control(), call.scope(), PoolId::new(id.uuid())) {
        let mut shown = [show_pool(&pool)];
        add_suffixes(&call, &mut shown, vec![pool.pool.networks.clone()]);
        return Ok(Reply::json(&shown[0]));
    }
    let network = networks::get(call.control(), call.scope(), id)?;
    let mut shown = [show_one(call.control(), &network)];
    add_suffixes(&call, &mut shown, vec![vec![id]]);
    Ok(Reply::json(&shown[0]))
}

/// Says what names end with on each network shown, `members` being the networks it stands for; on an account without names nothing is said.
fn add_suffixes(call: &Call, shown: &mut [Network<'_>], members: Vec<Vec<NetworkId>>) {
    if !call.account.names_enabled {
        return;
    }
    let all: Vec<NetworkId> = members.iter().flatten().copied().collect();
    let mut found = names::suffixes(call.control(), call.account.id, &all).into_iter();
    for (network, members) in shown.iter_mut().zip(members) {
        let mut suffixes: Vec<String> = Vec::new();
        for suffix in found.by_ref().take(members.len()).flatten() {
            if !suffixes.contains(&suffix) {
                suffixes.push(suffix);
            }
        }
        network.suffixes = Some(suffixes);
    }
}

/// One network, with the addresses its instances have towards the outside.
pub(super) fn show_one<'a>(control: &control::Control, network: &'a model::network::Network) -> Network<'a> {
    let known = networks::outside(control, network).into_iter().filter_map(|found| found.address);
    let addresses: BTreeSet<IpAddr> = known.collect();
    let nat_ips = (!addresses.is_empty() && !network.owners.is_empty()).then(|| addresses.into_iter().collect());
    Network { nat_ips, ..show(network) }
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

fn address(call: &Call) -> Result<IpAddr, ApiError> {
    let text = call.segment(1);
    text.parse().map_err(|_| ApiError::invalid("ip", format!("\"{text}\" is not an IP address")))
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
pub(super) fn show(network: &model::network::Network) -> Network<'_> {
    let owned = !network.owners.is_empty();
    let (start6, end6) = network.range6.filter(|_| owned).unzip();
    Network {
        id: network.id,
        name: Cow::Borrowed(&network.name),
        public: network.public,
        fabric: network.fabric.map(|_| true),
        description: network.description.as_deref().map(Cow::Borrowed),
        subnet: network.subnet.filter(|_| owned).map(|subnet| Cow::Owned(subnet.to_string())),
        provision_start_ip: network.range_start.filter(|_| owned),
        provision_end_ip: network.range_end.filter(|_| owned),
        gateway: network.gateway.filter(|_| owned),
        resolvers: owned.then_some(Cow::Borrowed(&*network.resolvers)),
        routes: owned.then(|| network.routes.iter().map(|(to, via)| (to.to_string(), *via)).collect()),
        internet_nat: owned.then_some(network.fabric.map_or(network.nat, |fabric| fabric.internet_nat)),
        nat_ips: None,
        vlan_id: network.fabric.map(|_| network.vlan),
        routed: network.fabric.is_some_and(|fabric| fabric.routed).then_some(true),
        subnet6: network.subnet6.filter(|_| owned).map(|subnet| subnet.to_string()),
        provision_start_ip6: start6,
        provision_end_ip6: end6,
        gateway6: network.gateway6.filter(|_| owned),
        suffixes: None,
    }
}

/// A pool looks like a network whose layout is nobody's business.
fn show_pool(view: &PoolView) -> Network<'_> {
    Network {
        id: NetworkId::new(view.pool.id.uuid()),
        name: Cow::Borrowed(&view.pool.name),
        public: view.public,
        fabric: None,
        description: view.pool.description.as_deref().map(Cow::Borrowed),
        subnet: None,
        provision_start_ip: None,
        provision_end_ip: None,
        gateway: None,
        resolvers: None,
        routes: None,
        internet_nat: None,
        nat_ips: None,
        vlan_id: None,
        routed: None,
        subnet6: None,
        provision_start_ip6: None,
        provision_end_ip6: None,
        gateway6: None,
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
