//! Records an adopted instance refers to and nobody knows: made again as far as its machine was told of them, under names that say so.
//!
//! Names, texts and people are not among what a machine is told; an operator fills them in. A network made again gives out no
//! address but those its instances have, since what else is in use there is not known.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    account::{Account, Profile},
    id::{AccountId, PackageId},
    network::{Address, FABRIC_VLAN_MAX, Fabric, FabricVlan, Network, NicTag},
    package::Package,
    target::{FabricTarget, LastTold, NetworkTarget, NicTarget, ZoneTarget},
    time::Timestamp,
};
use store::{Snapshot, Transaction};

use crate::tables::{ACCOUNTS, ADDRESSES, CLAIMS, Claim, NETWORKS, NIC_TAGS, PACKAGES, VLANS, address_key, vlan_key};

/// How names of what was made again begin.
const PREFIX: &str = "rebuilt-";

/// Digits of an id that are enough to tell it from others.
const ID_DIGITS: usize = 8;

fn name_for(id: impl ToString) -> String {
    format!("{PREFIX}{}", id.to_string().chars().take(ID_DIGITS).collect::<String>())
}

/// The account with `id`, under a login made of it.
pub(super) fn account(
    snapshot: &Snapshot,
    id: AccountId,
    now: Timestamp,
    notes: &mut Vec<String>,
    transaction: Transaction,
) -> Result<Transaction, String> {
    let login = name_for(id);
    let claim = Claim { name: Claim::login(&login), holder: id.to_string() };
    if snapshot.get(&CLAIMS, &claim.name).is_some() {
        return Err(format!("nobody knows its owner {id}, and an account \"{login}\" is there already"));
    }
    notes.push(format!("nobody knows its owner: account \"{login}\" stands for it, without keys"));
    let account = Account {
        id,
        login,
        profile: Profile::default(),
        operator: false,
        disabled: false,
        names_enabled: false,
        default_network: None,
        created_at: now,
        updated_at: now,
    };
    Ok(transaction.create(&CLAIMS, claim).create(&ACCOUNTS, account))
}

/// The package with `id`, which nobody is offered, unless it is known.
pub(super) fn package(
    snapshot: &Snapshot,
    id: PackageId,
    zone: &ZoneTarget,
    now: Timestamp,
    notes: &mut Vec<String>,
    transaction: Transaction,
) -> Transaction {
    if snapshot.get(&PACKAGES, &id.to_string()).is_some() {
        return transaction;
    }
    notes.push(format!("nobody knows its package: \"{}\" is made again, and offered to nobody", zone.package_name));
    let limits = &zone.limits;
    let package = Package {
        id,
        name: zone.package_name.clone(),
        version: zone.package_version.clone().unwrap_or_default(),
        group: None,
        description: None,
        memory: limits.memory,
        swap: limits.swap,
        disk: limits.disk,
        max_processes: limits.max_processes,
        vcpus: 0,
        cpu_cap: limits.cpu_cap,
        cpu_shares: limits.cpu_shares,
        traits: BTreeMap::new(),
        brand: None,
        active: false,
        created_at: now,
    };
    transaction.create(&PACKAGES, package)
}

/// The network of `nic`, unless it is known.
pub(super) fn network(
    snapshot: &Snapshot,
    told: &LastTold,
    nic: &NicTarget,
    now: Timestamp,
    notes: &mut Vec<String>,
    transaction: Transaction,
) -> Result<Transaction, String> {
    let id = nic.network;
    if snapshot.get(&NETWORKS, &id.to_string()).is_some() {
        return Ok(transaction);
    }
    if told.zone.nics.iter().take_while(|other| other.mac != nic.mac).any(|other| other.network == id) {
        // Made for the NIC before.
        return Ok(transaction);
    }
    let Some(target) = told.networks.get(&id) else {
        return Err(format!("nobody knows its network {id}, and its machine does not say what it is"));
    };
    let name = name_for(id);
    notes.push(format!("nobody knows its network {id}: \"{name}\" is made again, and gives out no other address"));
    let mut network = of_operator(told, nic, target, name, now);
    if let Some(fabric) = &target.fabric {
        let (vlan, transaction) = vlan(snapshot, fabric, now, transaction)?;
        network.nic_tag = Fabric::tag(fabric.vni);
        network.vlan = vlan;
        network.owners = vec![fabric.owner];
        network.fabric = Some(Fabric { vni: fabric.vni, internet_nat: fabric.internet_nat, routed: fabric.routed });
        return Ok(transaction.create(&NETWORKS, network));
    }
    let is_known = snapshot.get(&NIC_TAGS, &target.nic_tag).is_some();
    let transaction = match is_known {
        true => transaction,
        false => transaction.create(
            &NIC_TAGS,
            NicTag { name: target.nic_tag.clone(), mtu: target.mtu, description: None, created_at: now },
        ),
    };
    Ok(transaction.create(&NETWORKS, network))
}

/// Sets the addresses of an instance aside in other networks on the same wire, which do not know that they are taken: a datacenter that was made anew
/// begins with the subnets the old one had.
pub(super) fn set_aside(
    snapshot: &Snapshot,
    told: &LastTold,
    now: Timestamp,
    notes: &mut Vec<String>,
    mut transaction: Transaction,
) -> Result<Transaction, String> {
    for nic in &told.zone.nics {
        let Some(wire) = told.networks.get(&nic.network).filter(|network| network.fabric.is_none()) else { continue };
        let beside = snapshot.scan(&NETWORKS).filter(|network| {
            network.id != nic.network
                && network.fabric.is_none()
                && (&network.nic_tag, network.vlan) == (&wire.nic_tag, wire.vlan)
        });
        for network in beside {
            for ip in nic.addresses().map(|net| net.addr()).filter(|ip| covers(&network, *ip)) {
                match snapshot.get(&ADDRESSES, &address_key(network.id, ip)) {
                    None => {
                        notes.push(format!(
                            "{ip} is set aside in network \"{}\", which lies on the same wire",
                            network.name
                        ));
                        let reserved = Address {
                            network: network.id,
                            ip,
                            instance: None,
                            owner: None,
                            reserved: true,
                            created_at: now,
                        };
                        transaction = transaction.create(&ADDRESSES, reserved);
                    }
                    Some(taken) => {
                        if let Some(by) = taken.instance {
                            let name = &network.name;
                            return Err(format!(
                                "instance {by} has its address {ip} in network \"{name}\" on the same wire; take it away there first"
                            ));
                        }
                    }
                }
            }
        }
    }
    Ok(transaction)
}

fn covers(network: &Network, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => network.subnet.is_some_and(|subnet| subnet.contains(&ip)),
        IpAddr::V6(ip) => network.subnet6.is_some_and(|subnet| subnet.contains(&ip)),
    }
}

/// The network as it compiles to `target` again.
fn of_operator(told: &LastTold, nic: &NicTarget, target: &NetworkTarget, name: String, now: Timestamp) -> Network {
    let zone = &told.zone;
    let address = nic.address.map(|net| net.addr());
    let address6 = nic.addresses6.first().map(|net| net.addr());
    // An instance is told name servers and routes of all its networks together; they are the first's before any other's.
    let is_first = nic.primary;
    let is_ours = |hop: &IpAddr| {
        target.subnet.is_some_and(|net| ipnet::IpNet::V4(net).contains(hop))
            || target.subnet6.is_some_and(|net| ipnet::IpNet::V6(net).contains(hop))
    };
    Network {
        id: nic.network,
        name,
        description: Some("made again from what a machine was told".to_owned()),
        owners: vec![zone.owner],
        public: false,
        nic_tag: target.nic_tag.clone(),
        vlan: target.vlan,
        subnet: target.subnet,
        range_start: target.subnet.and(address),
        range_end: target.subnet.and(address),
        gateway: target.host_address.or(target.gateway).or(nic.gateway),
        resolvers: if is_first { zone.resolvers.clone() } else { Vec::new() },
        routes: zone.routes.iter().filter(|(_, hop)| is_ours(hop)).map(|(net, hop)| (*net, *hop)).collect(),
        mtu: target.mtu,
        host_gateway: target.host_address.is_some() || target.host_address6.is_some(),
        nat: target.nat,
        fabric: None,
        subnet6: target.subnet6,
        range6: target.subnet6.and(address6).map(|ip| (ip, ip)),
        gateway6: target.host_address6.or(target.gateway6).or(nic.gateway6),
        created_at: now,
    }
}

/// Number of the VLAN that carries `fabric`, which is made again under a number nobody is likely to have chosen unless it is known.
fn vlan(
    snapshot: &Snapshot,
    fabric: &FabricTarget,
    now: Timestamp,
    transaction: Transaction,
) -> Result<(u16, Transaction), String> {
    let name = Claim::vni(fabric.vni);
    if let Some(claim) = snapshot.get(&CLAIMS, &name) {
        let known = snapshot.get(&VLANS, &claim.holder).filter(|vlan| vlan.owner == fabric.owner);
        let known = known.ok_or_else(|| format!("segment {} is {}'s by now", fabric.vni, claim.holder))?;
        return Ok((known.vlan, transaction));
    }
    if snapshot.get(&ACCOUNTS, &fabric.owner.to_string()).is_none() {
        return Err(format!("segment {} is of account {}, which nobody knows", fabric.vni, fabric.owner));
    }
    let mut numbers = (1..=FABRIC_VLAN_MAX).rev();
    let number = numbers
        .find(|number| snapshot.get(&VLANS, &vlan_key(fabric.owner, *number)).is_none())
        .ok_or("its owner has no VLAN number left")?;
    let vlan = FabricVlan {
        owner: fabric.owner,
        vlan: number,
        name: name_for(number),
        description: None,
        vni: fabric.vni,
        created_at: now,
    };
    let claim = Claim { name, holder: vlan_key(fabric.owner, number) };
    Ok((number, transaction.create(&CLAIMS, claim).create(&VLANS, vlan)))
}
