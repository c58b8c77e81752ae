//! Networks, the addresses on them, pools of them, and the NIC tags they lie on.
//!
//! The operator makes the networks of this folder; tenants make theirs in [`crate::fabrics`].

pub(crate) mod allocate;
mod ips;
pub mod pools;
pub mod tags;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use model::{
    address,
    id::{AccountId, NetworkId, PoolId, ServerId},
    layout::{Layout, Leads},
    network::Network,
    placement::wiring,
    rules,
};
use store::{Entry, Snapshot, Transaction};

use crate::{
    Control, Error, FieldCode, Result, Scope,
    error::{Faults, counted},
    instances::NetworkChoice,
    tables::{ADDRESSES, BY_NETWORK, EVERYBODY, INSTANCES, NETWORKS, POOLS, SEEN_BY, SERVERS},
};

pub(crate) use ips::addresses;
pub use ips::{IpView, ip, ips, reserve_ip};

/// Reserved addresses that go with their network: what one commit takes.
const RESERVED_MAX: usize = 32;
/// Bytes of a description at most.
const DESCRIPTION_MAX_BYTES: usize = 1_024;

/// What a new network is made of; see [`Network`] for the fields.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the names are those of the record")]
pub struct NewNetwork {
    pub name: String,
    pub description: Option<String>,
    pub owners: Vec<AccountId>,
    pub public: bool,
    pub nic_tag: String,
    pub vlan: u16,
    pub layout: Layout,
    pub host_gateway: bool,
    pub nat: bool,
}

/// Makes a network, and its NIC tag when nobody made that before.
pub async fn create(control: &Control, new: NewNetwork) -> Result<Arc<Entry<Network>>> {
    let id = NetworkId::from_random(base::random::wide_bits());
    let network = check(id, control, new)?;
    control
        .store
        .update(|snapshot| {
            for other in snapshot.scan(&NETWORKS).filter(|other| other.fabric.is_none()) {
                beside(&network, &other)?;
            }
            if pools::named(snapshot, &network.owners, &network.name) {
                return Err(Error::AlreadyExists { what: "pool", name: network.name.clone() });
            }
            let transaction = tags::with_tag(snapshot, &network, Transaction::new())?;
            Ok((transaction.create(&NETWORKS, network.clone()), ()))
        })
        .await?;
    get(control, Scope::All, id)
}

/// Whether `network` can be made beside `other`, both of the operator's.
fn beside(network: &Network, other: &Network) -> Result<()> {
    if common(&other.owners, &network.owners) && other.name == network.name {
        return Err(Error::AlreadyExists { what: "network", name: network.name.clone() });
    }
    let same_segment = (&other.nic_tag, other.vlan) == (&network.nic_tag, network.vlan);
    let overlap = address::overlap(network, other);
    let field = if overlap.is_some_and(|subnet| matches!(subnet, IpNet::V6(_))) { "subnet6" } else { "subnet" };
    let is_same = other.subnets().eq(network.subnets());
    if let Some(subnet) = overlap.filter(|_| same_segment && !is_same) {
        let why = format!("overlaps {subnet} of network \"{}\" on the same segment", other.name);
        return Err(Error::field(field, FieldCode::Conflict, why));
    }
    if same_segment {
        // A segment is one bridge, with one address of the machine and one rule for what leaves it.
        let why = format!(
            "network \"{}\" is on this segment already; give another tag, or the same with another VLAN",
            other.name
        );
        return Err(Error::field("nic_tag", FieldCode::Conflict, why));
    }
    if let Some(subnet) = overlap.filter(|_| other.host_gateway && network.host_gateway) {
        let why = format!(
            "overlaps {subnet} of network \"{}\", and the machine cannot hold the gateways of both",
            other.name
        );
        return Err(Error::field(field, FieldCode::Conflict, why));
    }
    Ok(())
}

/// The network with an id, if it may be seen.
pub fn get(control: &Control, scope: Scope, id: NetworkId) -> Result<Arc<Entry<Network>>> {
    visible(&control.snapshot(), scope, id).ok_or_else(|| Error::not_found("network", id))
}

/// The networks that may be seen, public ones first, then by name.
pub fn list(control: &Control, scope: Scope) -> Vec<Arc<Entry<Network>>> {
    let mut networks = all_visible(&control.snapshot(), scope);
    networks.sort_by(|one, other| (!one.public, &one.name).cmp(&(!other.public, &other.name)));
    networks
}

/// Addresses of one answer of [`outside`] at most: an operator reads them, a tenant puts them into a filter.
const OUTSIDE_MAX: usize = 1_000;

/// A machine that translates for instances of a network, and the address the outside sees then.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outside {
    /// Its name.
    pub hostname: String,
    /// The machine.
    pub server: ServerId,
    /// The address; `None` while it has none, or has not said.
    pub address: Option<IpAddr>,
}

/// Where the traffic of a network's instances leaves the datacenter: the machines they are on, by name. Empty where nothing is
/// translated.
pub fn outside(control: &Control, network: &Network) -> Vec<Outside> {
    if !network.fabric.map_or(network.nat, |fabric| fabric.internet_nat) {
        return Vec::new();
    }
    let snapshot = control.snapshot();
    let users = snapshot.find(&INSTANCES, BY_NETWORK, &network.id.to_string());
    let servers: BTreeSet<ServerId> = users.map(|instance| instance.server).collect();
    let found = servers.iter().filter_map(|id| snapshot.get(&SERVERS, &id.to_string()));
    let mut all: Vec<Outside> = found
        .map(|server| Outside { hostname: server.hostname.clone(), server: server.id, address: server.outside })
        .take(OUTSIDE_MAX)
        .collect();
    all.sort();
    all
}

/// Deletes a network that no instance uses, whoever made it.
pub async fn delete(control: &Control, id: NetworkId) -> Result<()> {
    control
        .store
        .update(|snapshot| {
            let network = visible(snapshot, Scope::All, id).ok_or_else(|| Error::not_found("network", id))?;
            Ok::<_, Error>((removal(snapshot, &network)?, ()))
        })
        .await?;
    Ok(())
}

/// Deletes `network` and its reserved addresses, if nothing needs it.
pub(crate) fn removal(snapshot: &Snapshot, network: &Entry<Network>) -> Result<Transaction> {
    let id = network.id.to_string();
    let in_use = |by: String| Err(Error::InUse(format!("network \"{}\" is used by {by}", network.name)));
    let users = snapshot.find(&INSTANCES, BY_NETWORK, &id).count();
    if users > 0 {
        return in_use(counted(users, "instance"));
    }
    if let Some(pool) = snapshot.find(&POOLS, BY_NETWORK, &id).next() {
        return in_use(format!("pool \"{}\"", pool.name));
    }
    let known: Vec<_> = ips::all(snapshot, network.id).take(RESERVED_MAX + 1).collect();
    // A NIC that was removed is gone when its machine says so, not before.
    if let Some(instance) = known.iter().find_map(|address| address.instance) {
        return in_use(format!("a NIC that is being removed from instance {instance}"));
    }
    if known.len() > RESERVED_MAX {
        let why =
            format!("network \"{}\" has more than {RESERVED_MAX} reserved addresses; free them first", network.name);
        return Err(Error::InUse(why));
    }
    let transaction = Transaction::new().delete(&NETWORKS, network);
    Ok(known.iter().fold(transaction, |all, address| all.delete(&ADDRESSES, address)))
}

/// The network with an id, if `scope` sees it.
pub(crate) fn visible(snapshot: &Snapshot, scope: Scope, id: NetworkId) -> Option<Arc<Entry<Network>>> {
    snapshot.get(&NETWORKS, &id.to_string()).filter(|network| sees(scope, &network.owners))
}

/// The network that `choice` names, or the one it gets of a pool on a machine that is wired to `wired` (anything, when it does not
/// say); none of those in `except`.
pub(crate) fn look_up(
    control: &Control,
    snapshot: &Snapshot,
    scope: Scope,
    choice: &NetworkChoice,
    wired: Option<&BTreeSet<String>>,
    except: impl Fn(NetworkId) -> bool,
) -> Result<Option<Arc<Entry<Network>>>> {
    if let Some(network) = visible(snapshot, scope, choice.network) {
        return Ok(Some(network));
    }
    let Some(pool) = pools::visible(snapshot, scope, PoolId::new(choice.network.uuid())) else { return Ok(None) };
    let open = [pools::open(control, snapshot, pool, except, 1)?];
    let choices = open.each_ref().map(pools::OpenPool::choice);
    let given = wiring::assign(&choices, wired).map_err(|choice| Error::NoAddress { network: choice.pool.clone() })?;
    Ok(given.first().and_then(|id| open[0].network(*id)))
}

/// All that `scope` sees.
pub(crate) fn all_visible(snapshot: &Snapshot, scope: Scope) -> Vec<Arc<Entry<Network>>> {
    match scope {
        Scope::All => snapshot.scan(&NETWORKS).collect(),
        Scope::Account(account) => {
            let shared = snapshot.find(&NETWORKS, SEEN_BY, EVERYBODY);
            shared.chain(snapshot.find(&NETWORKS, SEEN_BY, &account.to_string())).collect()
        }
    }
}

/// The network with a name, if `scope` sees it; everybody's before one's own.
pub(crate) fn by_name(snapshot: &Snapshot, scope: Scope, name: &str) -> Option<Arc<Entry<Network>>> {
    let of = |key: &str| snapshot.find(&NETWORKS, SEEN_BY, key).find(|network| network.name == name);
    of(EVERYBODY).or_else(|| match scope {
        Scope::All => snapshot.scan(&NETWORKS).find(|network| network.name == name),
        Scope::Account(account) => of(&account.to_string()),
    })
}

/// Whether an object of `owners`, which is everybody's when there are none, is in `scope`.
fn sees(scope: Scope, owners: &[AccountId]) -> bool {
    match scope {
        Scope::All => true,
        Scope::Account(account) => owners.is_empty() || owners.contains(&account),
    }
}

/// Whether somebody sees the objects of both.
fn common(owners: &[AccountId], others: &[AccountId]) -> bool {
    owners.is_empty() || others.is_empty() || owners.iter().any(|owner| others.contains(owner))
}

fn check(id: NetworkId, control: &Control, new: NewNetwork) -> Result<Network> {
    let mut faults = Faults::default();
    faults.check("nic_tag", rules::check_nic_tag(&new.nic_tag));
    if new.vlan > 4_094 {
        faults.check("vlan_id", Err("must be between 0 and 4094".to_owned()));
    }
    let layout = new.layout.filled();
    check_layout(
        &new.name,
        new.description.as_deref(),
        &layout,
        Leads::Operators { host_gateway: new.host_gateway, nat: new.nat },
        &mut faults,
    );
    faults.finish()?;
    let mut network = Network {
        description: new.description,
        owners: new.owners,
        public: new.public,
        nic_tag: new.nic_tag,
        vlan: new.vlan,
        host_gateway: new.host_gateway,
        nat: new.nat,
        ..Network::bare(id, new.name, control.now())
    };
    layout.lay_out(&mut network);
    Ok(network)
}

/// What holds for every network, whoever makes it.
pub(crate) fn check_layout(name: &str, description: Option<&str>, layout: &Layout, leads: Leads, faults: &mut Faults) {
    faults.check("name", rules::check_name(name));
    check_description(description, faults);
    for fault in layout.faults(leads) {
        faults.add(fault.field, FieldCode::Invalid, fault.message);
    }
}

/// A description that is not too long.
pub(crate) fn check_description(description: Option<&str>, faults: &mut Faults) {
    if description.is_some_and(|text| text.len() > DESCRIPTION_MAX_BYTES) {
        faults.check("description", Err(format!("is longer than {DESCRIPTION_MAX_BYTES} bytes")));
    }
}
