//! Choosing addresses and Ethernet addresses for NICs inside one decision.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use model::{
    address::Range,
    id::{AccountId, InstanceId, MacAddr, NetworkId},
    network::{Address, Network, Nic},
    time::Timestamp,
};
use store::{Snapshot, Transaction};

use crate::{
    Control, Error, FieldCode, Result,
    networks::addresses,
    tables::{ADDRESSES, BY_HOLDER, CLAIMS, Claim, NETWORKS, address_key},
};

/// Tries for an Ethernet address nobody has. With 2^24 suffixes and 100,000 NICs one try fails with 0.6 %.
const MAC_TRIES: usize = 16;

/// Who will hold what is allocated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holder {
    pub(crate) instance: InstanceId,
    pub(crate) owner: AccountId,
    pub(crate) now: Timestamp,
}

/// Allocations of one decision: what it has taken already is not yet in the snapshot.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    addresses: BTreeSet<(NetworkId, IpAddr)>,
    macs: BTreeSet<MacAddr>,
}

/// What a NIC asks for of its network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wanted<'a> {
    /// A certain IPv4 address; `None` for any, if the network has any.
    pub(crate) ip: Option<Ipv4Addr>,
    /// Certain IPv6 addresses; none for any, if the network has any.
    pub(crate) ips6: &'a [Ipv6Addr],
}

/// What a NIC got of its network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// See [`Nic::ip`].
    pub(crate) ip: Option<Ipv4Addr>,
    /// See [`Nic::ip6`].
    pub(crate) ip6: Option<Ipv6Addr>,
    /// See [`Nic::more6`].
    pub(crate) more6: Vec<Ipv6Addr>,
}

/// Takes an address of each family of `network` for `holder`: those `wanted` names, else the next free ones.
pub(crate) fn addresses_of(
    control: &Control,
    snapshot: &Snapshot,
    network: &Network,
    wanted: Wanted<'_>,
    holder: Holder,
    taken: &mut Taken,
    mut transaction: Transaction,
) -> Result<(Given, Transaction)> {
    let named_first = wanted.ip.map(IpAddr::V4).into_iter().chain(wanted.ips6.iter().copied().map(IpAddr::V6));
    let mut all: Vec<IpAddr> = Vec::new();
    for ip in named_first {
        transaction = named(control, snapshot, network, ip, holder, taken, transaction)?;
        all.push(ip);
    }
    for range in [Range::of(network), Range::of6(network)].into_iter().flatten() {
        if !all.iter().any(|ip| ip.is_ipv6() == range.is_ipv6()) {
            let (ip, with_ip) = any(control, snapshot, (network, range), holder, taken, transaction)?;
            transaction = with_ip;
            all.push(ip);
        }
    }
    let mut given = Given::default();
    for ip in all {
        match ip {
            IpAddr::V4(ip) => given.ip = Some(ip),
            IpAddr::V6(ip) if given.ip6.is_none() => given.ip6 = Some(ip),
            IpAddr::V6(ip) => given.more6.push(ip),
        }
    }
    Ok((given, transaction))
}

/// Whether `network` can give somebody an address of each of its families.
pub(crate) fn has_room(control: &Control, snapshot: &Snapshot, network: &Network) -> bool {
    let mut ranges = [Range::of(network), Range::of6(network)].into_iter().flatten();
    ranges.all(|range| next_free(control, snapshot, network.id, &range).is_some())
}

fn next_free(control: &Control, snapshot: &Snapshot, network: NetworkId, range: &Range) -> Option<IpAddr> {
    let strangers = control.nodes.addresses_of_strangers(network);
    let mut last = {
        let last_given = control.last_given.lock().expect("no holder of this lock panics");
        last_given.get(&(network, range.is_ipv6())).copied()
    };
    // Each address of a stranger is met once at most.
    let mut free = (0..=strangers.len()).filter_map(|_| {
        last = range.next_free(last, |from| addresses(snapshot, network, from).map(|address| address.ip));
        last
    });
    free.find(|ip| !strangers.contains(ip))
}

/// For a decision that is made again because it did not come true. Where somebody else has what it `tried` to take, another headnode
/// gives out the same addresses in the same order: from now on this one goes on elsewhere in the range, or they would meet at every
/// next address.
pub(crate) fn step_aside(control: &Control, snapshot: &Snapshot, tried: &[Nic]) {
    for (network, ip) in tried.iter().flat_map(|nic| nic.addresses().map(|ip| (nic.network, ip))) {
        if snapshot.get(&ADDRESSES, &address_key(network, ip)).is_none() {
            continue;
        }
        let record = snapshot.get(&NETWORKS, &network.to_string());
        if let Some(range) = record.and_then(|record| Range::for_ip(&record, ip)) {
            let mut last_given = control.last_given.lock().expect("no holder of this lock panics");
            last_given.insert((network, range.is_ipv6()), range.somewhere(base::random::bits()));
        }
    }
}

/// Takes the next free address.
fn any(
    control: &Control,
    snapshot: &Snapshot,
    (network, range): (&Network, Range),
    holder: Holder,
    taken: &mut Taken,
    transaction: Transaction,
) -> Result<(IpAddr, Transaction)> {
    let ip = next_free(control, snapshot, network.id, &range)
        .ok_or_else(|| Error::NoAddress { network: network.name.clone() })?;
    // Only a hint: should the decision be given up, one address is skipped this round.
    let mut last_given = control.last_given.lock().expect("no holder of this lock panics");
    last_given.insert((network.id, range.is_ipv6()), ip);
    taken.addresses.insert((network.id, ip));
    Ok((ip, transaction.create(&ADDRESSES, held(network.id, ip, false, holder))))
}

/// Takes certain addresses of `network` for `holder`.
pub(crate) fn these(
    control: &Control,
    snapshot: &Snapshot,
    network: &Network,
    ips: &[Ipv6Addr],
    holder: Holder,
    taken: &mut Taken,
    transaction: Transaction,
) -> Result<Transaction> {
    ips.iter().try_fold(transaction, |transaction, ip| {
        named(control, snapshot, network, IpAddr::V6(*ip), holder, taken, transaction)
    })
}

/// Takes the address that was asked for.
fn named(
    control: &Control,
    snapshot: &Snapshot,
    network: &Network,
    ip: IpAddr,
    holder: Holder,
    taken: &mut Taken,
    transaction: Transaction,
) -> Result<Transaction> {
    if !Range::for_ip(network, ip).is_some_and(|range| range.may_hold(ip)) {
        return Err(Error::invalid("networks", super::ips::unfit(network, ip)));
    }
    let in_use =
        || Error::field("networks", FieldCode::Conflict, format!("{ip} is in use on network \"{}\"", network.name));
    let transaction = match snapshot.get(&ADDRESSES, &address_key(network.id, ip)) {
        _ if control.nodes.addresses_of_strangers(network.id).contains(&ip) => return Err(in_use()),
        None => transaction.create(&ADDRESSES, held(network.id, ip, false, holder)),
        Some(address) if address.instance.is_none() && address.owner.is_none_or(|owner| owner == holder.owner) => {
            transaction.replace(&ADDRESSES, &address, held(network.id, ip, address.reserved, holder))
        }
        Some(_) => return Err(in_use()),
    };
    if !taken.addresses.insert((network.id, ip)) {
        return Err(in_use());
    }
    Ok(transaction)
}

fn held(network: NetworkId, ip: IpAddr, reserved: bool, holder: Holder) -> Address {
    Address {
        network,
        ip,
        instance: Some(holder.instance),
        owner: Some(holder.owner),
        reserved,
        created_at: holder.now,
    }
}

/// Gives back every address and Ethernet address `holder` holds, except those of the NICs in `kept`. A reserved address
/// stays reserved.
pub(crate) fn give_back(
    snapshot: &Snapshot,
    holder: InstanceId,
    kept: &[Nic],
    mut transaction: Transaction,
) -> Transaction {
    let id = holder.to_string();
    for address in snapshot.find(&ADDRESSES, BY_HOLDER, &id) {
        if kept.iter().any(|nic| nic.network == address.network && nic.addresses().any(|ip| ip == address.ip)) {
            continue;
        }
        transaction = if address.reserved {
            let freed = Address { instance: None, ..address.value.clone() };
            transaction.replace(&ADDRESSES, &address, freed)
        } else {
            transaction.delete(&ADDRESSES, &address)
        };
    }
    for claim in snapshot.find(&CLAIMS, BY_HOLDER, &id).filter(|claim| claim.name.starts_with(Claim::MAC)) {
        if !kept.iter().any(|nic| Claim::mac(nic.mac) == claim.name) {
            transaction = transaction.delete(&CLAIMS, &claim);
        }
    }
    transaction
}

/// Takes an Ethernet address nobody has. `chance` supplies random suffixes.
pub(crate) fn mac(
    snapshot: &Snapshot,
    holder: InstanceId,
    mut chance: impl FnMut() -> u32,
    taken: &mut Taken,
    transaction: Transaction,
) -> Result<(MacAddr, Transaction)> {
    for _ in 0..MAC_TRIES {
        let mac = MacAddr::from_suffix(chance());
        let name = Claim::mac(mac);
        if snapshot.get(&CLAIMS, &name).is_none() && taken.macs.insert(mac) {
            return Ok((mac, transaction.create(&CLAIMS, Claim { name, holder: holder.to_string() })));
        }
    }
    Err(Error::Conflict("no free Ethernet address was found; try again".to_owned()))
}

/// Random suffixes for [`mac`].
pub(crate) fn chance() -> u32 {
    // The upper half: of a good source both are as good.
    u32::try_from(base::random::bits() >> 32).unwrap_or(0)
}
