//! Networks on tenants' VLANs.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use model::{
    address,
    id::{AccountId, NetworkId},
    layout::{Layout, Leads},
    network::{Fabric, FabricVlan, Network},
    time::Timestamp,
};
use store::{Entry, Snapshot, Transaction};

use super::vlans;
use crate::{
    Control, Error, FieldCode, Result, Scope,
    error::Faults,
    networks::{self, pools},
    tables::{ACCOUNTS, BY_VNI, NETWORKS, SEEN_BY, VLANS},
};

/// Networks an account may have on its fabric: what one list can show, more than anybody draws by hand.
const NETWORKS_MAX: usize = 1_000;

/// What a new network is made of; see [`Network`] for the fields.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the names are those of the record")]
pub struct NewFabricNetwork {
    pub name: String,
    pub description: Option<String>,
    /// Its MTU is that of all fabrics, whatever it says.
    pub layout: Layout,
    pub internet_nat: bool,
    pub routed: bool,
}

/// What changes of a network; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the names are those of the record")]
pub struct NetworkChange {
    pub name: Option<String>,
    pub description: Option<String>,
    pub range_start: Option<Ipv4Addr>,
    pub range_end: Option<Ipv4Addr>,
    pub range6_start: Option<Ipv6Addr>,
    pub range6_end: Option<Ipv6Addr>,
    pub resolvers: Option<Vec<IpAddr>>,
    pub routes: Option<BTreeMap<IpNet, IpAddr>>,
    pub internet_nat: Option<bool>,
    pub routed: Option<bool>,
}

/// Makes a network on a VLAN of `owner`'s.
pub async fn network_create(
    control: &Control,
    owner: AccountId,
    vlan: u16,
    new: NewFabricNetwork,
) -> Result<Arc<Entry<Network>>> {
    let (id, now) = (NetworkId::from_random(base::random::wide_bits()), control.now());
    let (_, id) = control
        .update(|snapshot| {
            let vlan = vlans::recorded(snapshot, owner, vlan)?;
            let network = check(control.config.fabric.mtu, &vlan, id, new.clone(), now)?;
            beside_others(snapshot, owner, &network)?;
            Ok::<_, Error>((Transaction::new().require(&VLANS, &vlan).create(&NETWORKS, network), id))
        })
        .await?;
    network_get(control, owner, vlan, id)
}

/// A network on a VLAN of `owner`'s.
pub fn network_get(control: &Control, owner: AccountId, vlan: u16, id: NetworkId) -> Result<Arc<Entry<Network>>> {
    recorded(&control.snapshot(), owner, vlan, id)
}

/// The networks on a VLAN of `owner`'s, by name.
pub fn network_list(control: &Control, owner: AccountId, vlan: u16) -> Result<Vec<Arc<Entry<Network>>>> {
    let snapshot = control.snapshot();
    let vlan = vlans::recorded(&snapshot, owner, vlan)?;
    let mut networks: Vec<_> = snapshot.find(&NETWORKS, BY_VNI, &vlan.vni.to_string()).collect();
    networks.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(networks)
}

/// Changes a network. Instances keep the addresses they have, inside a new range or not.
pub async fn network_update(
    control: &Control,
    owner: AccountId,
    vlan: u16,
    id: NetworkId,
    change: NetworkChange,
) -> Result<Arc<Entry<Network>>> {
    control
        .update(|snapshot| {
            let entry = recorded(snapshot, owner, vlan, id)?;
            let changed = changed(&entry, &change)?;
            beside_others(snapshot, owner, &changed)?;
            Ok::<_, Error>((Transaction::new().replace(&NETWORKS, &entry, changed), ()))
        })
        .await?;
    network_get(control, owner, vlan, id)
}

/// Deletes a network no instance uses.
pub async fn network_delete(control: &Control, owner: AccountId, vlan: u16, id: NetworkId) -> Result<()> {
    let now = control.now();
    control
        .update(|snapshot| {
            let entry = recorded(snapshot, owner, vlan, id)?;
            let mut transaction = networks::removal(snapshot, &entry)?;
            let account = snapshot.get(&ACCOUNTS, &owner.to_string());
            if let Some(account) = account.filter(|account| account.default_network == Some(id)) {
                let mut without = account.value.clone();
                (without.default_network, without.updated_at) = (None, now);
                transaction = transaction.replace(&ACCOUNTS, &account, without);
            }
            Ok::<_, Error>((transaction, ()))
        })
        .await?;
    Ok(())
}

/// The record of a network on a VLAN of `owner`'s.
fn recorded(snapshot: &Snapshot, owner: AccountId, vlan: u16, id: NetworkId) -> Result<Arc<Entry<Network>>> {
    let vlan = vlans::recorded(snapshot, owner, vlan)?;
    let on_it = |network: &Network| network.fabric.is_some_and(|fabric| fabric.vni == vlan.vni);
    let found = snapshot.get(&NETWORKS, &id.to_string()).filter(|network| on_it(network));
    found.ok_or_else(|| Error::not_found("network", id))
}

/// The network that `new` asks for, if it makes sense by itself.
pub(super) fn check(
    mtu: u16,
    vlan: &FabricVlan,
    id: NetworkId,
    new: NewFabricNetwork,
    now: Timestamp,
) -> Result<Network> {
    let layout = Layout { mtu, ..new.layout }.filled();
    let fabric = Fabric { vni: vlan.vni, internet_nat: new.internet_nat, routed: new.routed };
    let mut network = Network {
        description: new.description,
        owners: vec![vlan.owner],
        nic_tag: Fabric::tag(vlan.vni),
        vlan: vlan.vlan,
        fabric: Some(fabric),
        ..Network::bare(id, new.name, now)
    };
    judge(&network, &layout)?;
    layout.lay_out(&mut network);
    Ok(network)
}

/// Whether `network`, which is not laid out so yet, may be.
fn judge(network: &Network, layout: &Layout) -> Result<()> {
    let mut faults = Faults::default();
    let (name, description) = (&network.name, network.description.as_deref());
    networks::check_layout(name, description, layout, Leads::of(network), &mut faults);
    faults.finish_as(|field| match field {
        "range_start" => "provision_start_ip",
        "range_end" => "provision_end_ip",
        "range6_start" => "provision_start_ip6",
        "range6_end" => "provision_end_ip6",
        other => other,
    })
}

fn changed(network: &Network, change: &NetworkChange) -> Result<Network> {
    let mut changed = network.clone();
    if let Some(name) = &change.name {
        changed.name.clone_from(name);
    }
    if change.description.is_some() {
        changed.description.clone_from(&change.description);
    }
    if let Some(fabric) = &mut changed.fabric {
        fabric.internet_nat = change.internet_nat.unwrap_or(fabric.internet_nat);
        fabric.routed = change.routed.unwrap_or(fabric.routed);
    }
    let held = Layout::of(network);
    let layout = Layout {
        range_start: change.range_start.or(held.range_start),
        range_end: change.range_end.or(held.range_end),
        range6_start: change.range6_start.or(held.range6_start),
        range6_end: change.range6_end.or(held.range6_end),
        resolvers: change.resolvers.clone().unwrap_or(held.resolvers),
        routes: change.routes.clone().unwrap_or(held.routes),
        ..held
    };
    judge(&changed, &layout)?;
    layout.lay_out(&mut changed);
    Ok(changed)
}

/// Whether `network` fits beside what else its owner has and sees.
fn beside_others(snapshot: &Snapshot, owner: AccountId, network: &Network) -> Result<()> {
    let seen = networks::all_visible(snapshot, Scope::Account(owner));
    if seen.iter().any(|other| other.id != network.id && other.name == network.name)
        || pools::named(snapshot, &network.owners, &network.name)
    {
        return Err(Error::AlreadyExists { what: "network", name: network.name.clone() });
    }
    let own = snapshot.find(&NETWORKS, SEEN_BY, &owner.to_string());
    let fabrics = own.filter_map(|other| Some((other.fabric?, other)));
    let mut count = 0;
    for (fabric, other) in fabrics.filter(|(_, other)| other.id != network.id) {
        count += 1;
        let Some(mine) = network.fabric else { continue };
        let Some(subnet) = address::overlap(network, &other) else { continue };
        let field = if matches!(subnet, IpNet::V6(_)) { "subnet6" } else { "subnet" };
        let why = if mine.vni == fabric.vni {
            format!("overlaps {subnet} of network \"{}\" on the same VLAN", other.name)
        } else if mine.routed && fabric.routed {
            format!("overlaps {subnet} of network \"{}\", and traffic is routed between the two", other.name)
        } else {
            continue;
        };
        return Err(Error::field(field, FieldCode::Conflict, why));
    }
    if count >= NETWORKS_MAX {
        return Err(Error::Conflict(format!(
            "there are {NETWORKS_MAX} networks already, the most an account may have"
        )));
    }
    Ok(())
}
