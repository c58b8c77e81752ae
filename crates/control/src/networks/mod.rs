//! Networks and the addresses on them.

pub(crate) mod allocate;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::Ipv4Net;
use model::{
    address::{self, Pool},
    id::{AccountId, NetworkId},
    network::{Address, Network},
    rules,
};
use store::{Entry, Snapshot, Transaction};

use crate::{
    Control, Error, FieldCode, Result, Scope,
    error::{Faults, counted},
    tables::{ADDRESSES, BY_NETWORK, INSTANCES, NETWORKS, address_key},
};

/// Name servers of a network at most.
const RESOLVERS_MAX: usize = model::compile::RESOLVERS_MAX;
/// Static routes of a network at most.
const ROUTES_MAX: usize = 64;
/// Reserved addresses that go with their network: what one commit takes.
const RESERVED_MAX: usize = 32;
/// Bytes of a description at most.
const DESCRIPTION_MAX_BYTES: usize = 1_024;

/// What a new network is made of; see [`Network`] for the fields.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are those of the record")]
pub struct NewNetwork {
    pub name: String,
    pub description: Option<String>,
    pub owners: Vec<AccountId>,
    pub public: bool,
    pub nic_tag: String,
    pub vlan: u16,
    pub subnet: Ipv4Net,
    /// The first address after the gateway unless given.
    pub range_start: Option<Ipv4Addr>,
    /// The last address of the subnet unless given.
    pub range_end: Option<Ipv4Addr>,
    pub gateway: Option<Ipv4Addr>,
    pub resolvers: Vec<IpAddr>,
    pub routes: BTreeMap<Ipv4Net, Ipv4Addr>,
    pub mtu: u16,
    pub host_gateway: bool,
    pub nat: bool,
}

/// One address of a network as tenants see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpView {
    /// The address.
    pub ip: Ipv4Addr,
    /// Its record; `None` for one that nobody holds or reserved.
    pub record: Option<Address>,
    /// The datacenter uses it itself: network, broadcast and gateway addresses.
    pub managed: bool,
}

/// Makes a network.
pub async fn create(control: &Control, new: NewNetwork) -> Result<Arc<Entry<Network>>> {
    let id = NetworkId::from_random(base::random::wide_bits());
    let network = check(id, control, new)?;
    control
        .store
        .update(|snapshot| {
            for other in snapshot.scan(&NETWORKS) {
                let common = other.owners.is_empty()
                    || network.owners.is_empty()
                    || other.owners.iter().any(|owner| network.owners.contains(owner));
                if common && other.name == network.name {
                    return Err(Error::AlreadyExists { what: "network", name: network.name.clone() });
                }
                let same_segment = (&other.nic_tag, other.vlan) == (&network.nic_tag, network.vlan);
                let overlap = other.subnet.contains(&network.subnet) || network.subnet.contains(&other.subnet);
                if same_segment && overlap && other.subnet != network.subnet {
                    let why = format!("overlaps {} of network \"{}\" on the same segment", other.subnet, other.name);
                    return Err(Error::field("subnet", FieldCode::Conflict, why));
                }
                if same_segment {
                    // A segment is one bridge, with one address of the machine and one rule for what leaves it.
                    let why = format!(
                        "network \"{}\" is on this segment already; give another tag, or the same with another VLAN",
                        other.name
                    );
                    return Err(Error::field("nic_tag", FieldCode::Conflict, why));
                }
                if overlap && other.host_gateway && network.host_gateway {
                    let why = format!(
                        "overlaps {} of network \"{}\", and the machine cannot hold the gateways of both",
                        other.subnet, other.name
                    );
                    return Err(Error::field("subnet", FieldCode::Conflict, why));
                }
            }
            Ok((Transaction::new().create(&NETWORKS, network.clone()), ()))
        })
        .await?;
    get(control, Scope::All, id)
}

/// The network with an id, if it may be seen.
pub fn get(control: &Control, scope: Scope, id: NetworkId) -> Result<Arc<Entry<Network>>> {
    visible(&control.snapshot(), scope, id).ok_or_else(|| Error::not_found("network", id))
}

/// The networks that may be seen, public ones first, then by name.
pub fn list(control: &Control, scope: Scope) -> Vec<Arc<Entry<Network>>> {
    let mut networks: Vec<_> = control.snapshot().scan(&NETWORKS).filter(|network| sees(scope, network)).collect();
    networks.sort_by(|one, other| (!one.public, &one.name).cmp(&(!other.public, &other.name)));
    networks
}

/// Deletes a network that no instance uses.
pub async fn delete(control: &Control, id: NetworkId) -> Result<()> {
    control
        .store
        .update(|snapshot| {
            let network = visible(snapshot, Scope::All, id).ok_or_else(|| Error::not_found("network", id))?;
            let users = snapshot.find(&INSTANCES, BY_NETWORK, &id.to_string()).count();
            if users > 0 {
                let users = counted(users, "instance");
                return Err(Error::InUse(format!("network \"{}\" is used by {users}", network.name)));
            }
            let mut transaction = Transaction::new().delete(&NETWORKS, &network);
            let reserved: Vec<_> = addresses(snapshot, id, Ipv4Addr::UNSPECIFIED).take(RESERVED_MAX + 1).collect();
            if reserved.len() > RESERVED_MAX {
                let why = format!(
                    "network \"{}\" has more than {RESERVED_MAX} reserved addresses; free them first",
                    network.name
                );
                return Err(Error::InUse(why));
            }
            for address in &reserved {
                transaction = transaction.delete(&ADDRESSES, address);
            }
            Ok((transaction, ()))
        })
        .await?;
    Ok(())
}

/// Addresses in use or reserved, in order, and those the datacenter uses itself.
pub fn ips(control: &Control, scope: Scope, network: NetworkId) -> Result<Vec<IpView>> {
    let snapshot = control.snapshot();
    let network = visible(&snapshot, scope, network).ok_or_else(|| Error::not_found("network", network))?;
    let mut views: BTreeMap<Ipv4Addr, IpView> = addresses(&snapshot, network.id, Ipv4Addr::UNSPECIFIED)
        .map(|address| (address.ip, IpView { ip: address.ip, record: Some(address.value.clone()), managed: false }))
        .collect();
    let own = [Some(network.subnet.network()), network.gateway, Some(network.subnet.broadcast())];
    for ip in own.into_iter().flatten() {
        views.entry(ip).or_insert(IpView { ip, record: None, managed: true }).managed = true;
    }
    Ok(views.into_values().collect())
}

/// One address of a network, used or not.
pub fn ip(control: &Control, scope: Scope, network: NetworkId, ip: Ipv4Addr) -> Result<IpView> {
    let snapshot = control.snapshot();
    let network = visible(&snapshot, scope, network).ok_or_else(|| Error::not_found("network", network))?;
    if !network.subnet.contains(&ip) {
        return Err(Error::not_found("address", ip));
    }
    let record = snapshot.get(&ADDRESSES, &address_key(network.id, ip)).map(|address| address.value.clone());
    Ok(IpView { ip, record, managed: !Pool::of(&network).may_hold(ip) })
}

/// Reserves an address, so that it is only given to who asks for it, or ends that.
pub async fn reserve_ip(
    control: &Control,
    scope: Scope,
    network: NetworkId,
    ip: Ipv4Addr,
    reserved: bool,
) -> Result<IpView> {
    let now = control.now();
    control
        .store
        .update(|snapshot| {
            let network = visible(snapshot, scope, network).ok_or_else(|| Error::not_found("network", network))?;
            if matches!(scope, Scope::Account(_)) && network.owners.is_empty() {
                let why =
                    format!("network \"{}\" belongs to the datacenter; only operators reserve there", network.name);
                return Err(Error::NotAuthorized(why));
            }
            if !Pool::of(&network).may_hold(ip) {
                return Err(Error::invalid("ip", format!("{ip} cannot be held by an instance of {}", network.subnet)));
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

/// The network with an id, if `scope` sees it.
pub(crate) fn visible(snapshot: &Snapshot, scope: Scope, id: NetworkId) -> Option<Arc<Entry<Network>>> {
    snapshot.get(&NETWORKS, &id.to_string()).filter(|network| sees(scope, network))
}

/// The network with a name, if `scope` sees it.
pub(crate) fn by_name(snapshot: &Snapshot, scope: Scope, name: &str) -> Option<Arc<Entry<Network>>> {
    snapshot.scan(&NETWORKS).find(|network| network.name == name && sees(scope, network))
}

/// Records of addresses of a network in order, from `from` on.
pub(crate) fn addresses(
    snapshot: &Snapshot,
    network: NetworkId,
    from: Ipv4Addr,
) -> impl Iterator<Item = Arc<Entry<Address>>> {
    // `range` begins after a key; the key before `from` ends just below it.
    let after = match from.to_bits().checked_sub(1) {
        Some(before) => address_key(network, Ipv4Addr::from_bits(before)),
        None => format!("{network}/"),
    };
    snapshot.range(&ADDRESSES, &after).take_while(move |address| address.network == network)
}

fn sees(scope: Scope, network: &Network) -> bool {
    match scope {
        Scope::All => true,
        Scope::Account(account) => network.owners.is_empty() || network.owners.contains(&account),
    }
}

fn check(id: NetworkId, control: &Control, new: NewNetwork) -> Result<Network> {
    let mut faults = Faults::default();
    faults.check("name", rules::check_name(&new.name));
    faults.check("nic_tag", rules::check_nic_tag(&new.nic_tag));
    if new.vlan > 4_094 {
        faults.check("vlan_id", Err("must be between 0 and 4094".to_owned()));
    }
    if new.resolvers.len() > RESOLVERS_MAX {
        faults.check("resolvers", Err(format!("has more than {RESOLVERS_MAX} entries")));
    }
    if new.routes.len() > ROUTES_MAX {
        faults.check("routes", Err(format!("has more than {ROUTES_MAX} entries")));
    }
    if new.description.as_ref().is_some_and(|text| text.len() > DESCRIPTION_MAX_BYTES) {
        faults.check("description", Err(format!("is longer than {DESCRIPTION_MAX_BYTES} bytes")));
    }
    if !(576..=9_000).contains(&new.mtu) {
        faults.check("mtu", Err("must be between 576 and 9000 bytes".to_owned()));
    }
    let (first, last) = (new.subnet.network().to_bits(), new.subnet.broadcast().to_bits());
    let after_gateway =
        new.gateway.map_or(first, |gateway| if gateway.to_bits() == first + 1 { first + 1 } else { first });
    let network = Network {
        id,
        name: new.name,
        description: new.description,
        owners: new.owners,
        public: new.public,
        nic_tag: new.nic_tag,
        vlan: new.vlan,
        subnet: new.subnet,
        range_start: new.range_start.unwrap_or(Ipv4Addr::from_bits(after_gateway.saturating_add(1))),
        range_end: new.range_end.unwrap_or(Ipv4Addr::from_bits(last.saturating_sub(1))),
        gateway: new.gateway,
        resolvers: new.resolvers,
        routes: new.routes,
        mtu: new.mtu,
        host_gateway: new.host_gateway,
        nat: new.nat,
        created_at: control.now(),
    };
    if let Err(plan) = address::check_plan(&network) {
        faults.add(plan.field, FieldCode::Invalid, plan.message);
    }
    faults.finish()?;
    Ok(network)
}
