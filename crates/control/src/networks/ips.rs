//! The addresses of a network: listing them, and reserving some.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use model::{
    address::Range,
    id::NetworkId,
    network::{Address, Network},
};
use store::{Entry, Snapshot, Transaction};

use super::visible;
use crate::{
    Control, Error, Result, Scope,
    tables::{ADDRESSES, address_key},
};

/// One address of a network as tenants see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpView {
    /// The address.
    pub ip: IpAddr,
    /// Its record; `None` for one that nobody holds or reserved.
    pub record: Option<Address>,
    /// The datacenter uses it itself: network, broadcast and gateway addresses.
    pub managed: bool,
}

/// Addresses in use or reserved, in order, and those the datacenter uses itself; IPv4 first.
pub fn ips(control: &Control, scope: Scope, network: NetworkId) -> Result<Vec<IpView>> {
    let snapshot = control.snapshot();
    let network = visible(&snapshot, scope, network).ok_or_else(|| Error::not_found("network", network))?;
    let mut views: BTreeMap<IpAddr, IpView> = all(&snapshot, network.id)
        .map(|address| (address.ip, IpView { ip: address.ip, record: Some(address.value.clone()), managed: false }))
        .collect();
    for ip in managed(&network) {
        views.entry(ip).or_insert(IpView { ip, record: None, managed: true }).managed = true;
    }
    Ok(views.into_values().collect())
}

fn managed(network: &Network) -> impl Iterator<Item = IpAddr> {
    let (first, last) =
        (network.subnet.map(|subnet| subnet.network()), network.subnet.map(|subnet| subnet.broadcast()));
    let v4 = [first, network.gateway, last].into_iter().flatten().map(IpAddr::V4);
    let v6 = [network.subnet6.map(|subnet| subnet.network()), network.gateway6].into_iter().flatten().map(IpAddr::V6);
    v4.chain(v6)
}

/// One address of a network, used or not.
pub fn ip(control: &Control, scope: Scope, network: NetworkId, ip: IpAddr) -> Result<IpView> {
    let snapshot = control.snapshot();
    let network = visible(&snapshot, scope, network).ok_or_else(|| Error::not_found("network", network))?;
    if !network.subnets().any(|subnet| subnet.contains(&ip)) {
        return Err(Error::not_found("address", ip));
    }
    let record = snapshot.get(&ADDRESSES, &address_key(network.id, ip)).map(|address| address.value.clone());
    Ok(IpView { ip, record, managed: !may_hold(&network, ip) })
}

/// Reserves an address, so that it is only given to who asks for it, or ends that.
pub async fn reserve_ip(
    control: &Control,
    scope: Scope,
    network: NetworkId,
    ip: IpAddr,
    reserved: bool,
) -> Result<IpView> {
    let now = control.now();
    control
        .update(|snapshot| {
            let network = visible(snapshot, scope, network).ok_or_else(|| Error::not_found("network", network))?;
            if matches!(scope, Scope::Account(_)) && network.owners.is_empty() {
                let why =
                    format!("network \"{}\" belongs to the datacenter; only operators reserve there", network.name);
                return Err(Error::NotAuthorized(why));
            }
            if !may_hold(&network, ip) {
                return Err(Error::invalid("ip", unfit(&network, ip)));
            }
            let transaction = Transaction::new();
            let transaction = match snapshot.get(&ADDRESSES, &address_key(network.id, ip)) {
                Some(address) if address.instance.is_none() && !reserved => transaction.delete(&ADDRESSES, &address),
                Some(address) if address.reserved != reserved => {
                    let changed = Address { reserved, ..address.value.clone() };
                    transaction.replace(&ADDRESSES, &address, changed)
                }
                None if reserved => {
                    let owner = match scope {
                        Scope::Account(account) => Some(account),
                        Scope::All => None,
                    };
                    let network = network.id;
                    let address = Address { network, ip, instance: None, owner, reserved, created_at: now };
                    transaction.create(&ADDRESSES, address)
                }
                _ => transaction,
            };
            Ok((transaction, ()))
        })
        .await?;
    self::ip(control, scope, network, ip)
}

/// Why no instance of `network` can hold `ip`.
pub(super) fn unfit(network: &Network, ip: IpAddr) -> String {
    match network.subnet_for(ip) {
        Some(subnet) => format!("{ip} cannot be held by an instance of network \"{}\" ({subnet})", network.name),
        None => {
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            format!("network \"{}\" has no {family} subnet, so nobody can hold {ip} there", network.name)
        }
    }
}

fn may_hold(network: &Network, ip: IpAddr) -> bool {
    Range::for_ip(network, ip).is_some_and(|range| range.may_hold(ip))
}

/// Records of every address of a network.
pub(crate) fn all(snapshot: &Snapshot, network: NetworkId) -> impl Iterator<Item = Arc<Entry<Address>>> {
    snapshot.range(&ADDRESSES, &format!("{network}/")).take_while(move |address| address.network == network)
}

/// Records of addresses of one family of a network in order, from `from` on.
pub(crate) fn addresses(
    snapshot: &Snapshot,
    network: NetworkId,
    from: IpAddr,
) -> impl Iterator<Item = Arc<Entry<Address>>> {
    // `range` begins after a key; the key before `from` ends just below it.
    let before = match from {
        IpAddr::V4(ip) => ip.to_bits().checked_sub(1).map(|before| Ipv4Addr::from_bits(before).into()),
        IpAddr::V6(ip) => ip.to_bits().checked_sub(1).map(|before| std::net::Ipv6Addr::from_bits(before).into()),
    };
    let after = before.map_or_else(|| format!("{network}/"), |before| address_key(network, before));
    snapshot
        .range(&ADDRESSES, &after)
        .take_while(move |address| address.network == network)
        .filter(move |address| address.ip.is_ipv6() == from.is_ipv6())
}
