//! Choosing addresses and Ethernet addresses for NICs inside one decision.

use std::{collections::BTreeSet, net::Ipv4Addr};

use model::{
    address::Pool,
    id::{AccountId, InstanceId, MacAddr, NetworkId},
    network::{Address, Network, Nic},
    time::Timestamp,
};
use store::{Snapshot, Transaction};

use crate::{
    Control, Error, FieldCode, Result,
    networks::addresses,
    tables::{ADDRESSES, BY_HOLDER, CLAIMS, Claim, address_key},
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
    addresses: BTreeSet<(NetworkId, Ipv4Addr)>,
    macs: BTreeSet<MacAddr>,
}

/// Takes an address of `network` for `holder`: `wanted` if given, else the next free one.
pub(crate) fn address(
    control: &Control,
    snapshot: &Snapshot,
    network: &Network,
    wanted: Option<Ipv4Addr>,
    holder: Holder,
    taken: &mut Taken,
    transaction: Transaction,
) -> Result<(Ipv4Addr, Transaction)> {
    if let Some(ip) = wanted {
        return named(control, snapshot, network, ip, holder, taken, transaction);
    }
    let strangers = control.nodes.addresses_of_strangers(network.id);
    let mut last_given = control.last_given.lock().expect("no holder of this lock panics");
    let used_from = |from| addresses(snapshot, network.id, from).map(|address| address.ip);
    let (pool, mut last) = (Pool::of(network), last_given.get(&network.id).copied());
    // Each address of a stranger is met once at most.
    let mut free = (0..=strangers.len()).filter_map(|_| {
        last = pool.next_free(last, used_from);
        last
    });
    let ip =
        free.find(|ip| !strangers.contains(ip)).ok_or_else(|| Error::NoAddress { network: network.name.clone() })?;
    // Only a hint: should the decision be given up, one address is skipped this round.
    last_given.insert(network.id, ip);
    taken.addresses.insert((network.id, ip));
    Ok((ip, transaction.create(&ADDRESSES, held(network.id, ip, false, holder))))
}

/// Takes the address that was asked for.
fn named(
    control: &Control,
    snapshot: &Snapshot,
    network: &Network,
    ip: Ipv4Addr,
    holder: Holder,
    taken: &mut Taken,
    transaction: Transaction,
) -> Result<(Ipv4Addr, Transaction)> {
    if !Pool::of(network).may_hold(ip) {
        let why = format!("{ip} cannot be held by an instance of network \"{}\" ({})", network.name, network.subnet);
        return Err(Error::invalid("networks", why));
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
    Ok((ip, transaction))
}

fn held(network: NetworkId, ip: Ipv4Addr, reserved: bool, holder: Holder) -> Address {
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
        if kept.iter().any(|nic| (nic.network, nic.ip) == (address.network, address.ip)) {
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
