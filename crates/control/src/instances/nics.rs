//! NICs of an instance, added and removed while it runs.

use std::net::Ipv6Addr;

use model::{
    id::{InstanceId, MacAddr},
    instance::Caller,
    network::Nic,
};
use store::Transaction;

use super::{
    InstanceView, NicView,
    change::{usable, with_flow},
    create::{HELD_MAX, NICS_MAX, NetworkChoice, check_ips6},
    decide, decide_on,
};
use crate::{
    Control, Error, FieldCode, Result, Scope, flows,
    networks::{
        self,
        allocate::{self, Given, Holder, Taken},
    },
    tables::SERVERS,
};

/// The NICs in the order of their interfaces.
pub fn list(control: &Control, scope: Scope, id: InstanceId) -> Result<Vec<NicView>> {
    super::get(control, scope, id).map(|view| view.nics)
}

/// The NIC with an Ethernet address.
pub fn get(control: &Control, scope: Scope, id: InstanceId, mac: MacAddr) -> Result<NicView> {
    list(control, scope, id)?.into_iter().find(|view| view.nic.mac == mac).ok_or_else(|| Error::not_found("NIC", mac))
}

/// The NIC an instance has on the network of `choice` already, if it has one.
pub fn on_network(control: &Control, scope: Scope, id: InstanceId, choice: &NetworkChoice) -> Result<Option<NicView>> {
    Ok(list(control, scope, id)?.into_iter().find(|view| view.nic.network == choice.network))
}

/// Adds a NIC.
pub async fn add(
    control: &Control,
    caller: &Caller,
    scope: Scope,
    id: InstanceId,
    choice: NetworkChoice,
) -> Result<NicView> {
    choice.check().map_err(|why| Error::invalid("network", why))?;
    let (view, added) = decide_on(control, scope, id, |snapshot, entry| {
        let state = InstanceView::of(control, snapshot, entry.clone()).state;
        usable("add a NIC to", entry, state)?;
        let is_used = |id| entry.nics.iter().any(|nic| nic.network == id);
        let server = snapshot.get(&SERVERS, &entry.server.to_string());
        let wired = server.as_ref().and_then(|server| server.nic_tags.as_ref());
        let network = networks::look_up(control, snapshot, Scope::Account(entry.owner), &choice, wired, is_used)?
            .ok_or_else(|| Error::invalid("network", format!("there is no network {}", choice.network)))?;
        if choice.names_an_address() && network.id != choice.network {
            let why = "a certain address can be asked for on a network, not on a pool of networks";
            return Err(Error::invalid("network", why));
        }
        if choice.names_an_address() && network.public {
            let why = format!("network \"{}\" is public; its addresses cannot be chosen", network.name);
            return Err(Error::invalid("network", why));
        }
        if network.fabric.is_none() && wired.is_some_and(|wired| !wired.contains(&network.nic_tag)) {
            let why = format!("the instance's machine is not wired to network \"{}\"", network.name);
            return Err(Error::field("network", FieldCode::Conflict, why));
        }
        if entry.nics.iter().any(|nic| nic.network == network.id) {
            let why = format!("the instance has a NIC on network \"{}\" already", network.name);
            return Err(Error::field("network", FieldCode::Conflict, why));
        }
        if entry.nics.len() >= NICS_MAX {
            return Err(Error::Conflict(format!("the instance has {NICS_MAX} NICs already")));
        }
        let holder = Holder { instance: id, owner: entry.owner, now: control.now() };
        let mut taken = Taken::default();
        let transaction = Transaction::new();
        let (Given { ip, ip6, more6 }, transaction) =
            allocate::addresses_of(control, snapshot, &network, choice.wanted(), holder, &mut taken, transaction)?;
        let (mac, transaction) = allocate::mac(snapshot, id, allocate::chance, &mut taken, transaction)?;
        let mut instance = entry.value.clone();
        let interface = free_interface(&instance.nics);
        let primary = choice.primary || instance.nics.is_empty();
        if primary {
            instance.nics.iter_mut().for_each(|nic| nic.primary = false);
        }
        instance.nics.push(Nic { mac, interface, network: network.id, ip, ip6, more6, primary });
        if held(&instance.nics) > HELD_MAX {
            let why = format!("an instance can hold {HELD_MAX} addresses at most, Ethernet addresses among them");
            return Err(Error::invalid("network", why));
        }
        let mut decision = with_flow::<flows::Nics>(control, instance, caller, "add_nics");
        decision.transaction = decision.transaction.and(transaction);
        Ok((Some(decision), mac))
    })
    .await?;
    view.nics
        .into_iter()
        .find(|view| view.nic.mac == added)
        .ok_or_else(|| Error::Conflict("the NIC was removed again meanwhile".to_owned()))
}

/// Makes the IPv6 addresses of a NIC those of `wanted`, in that order, 1 to 8 of them; the instance runs on.
///
/// One that is taken away is free again when the machine says that it is no longer in force.
pub async fn set_addresses6(
    control: &Control,
    caller: &Caller,
    scope: Scope,
    id: InstanceId,
    mac: MacAddr,
    wanted: &[Ipv6Addr],
) -> Result<NicView> {
    const FIELD: &str = "ipv6_ips";
    if wanted.is_empty() {
        return Err(Error::invalid(FIELD, "must name at least one address; a NIC without any is to be removed"));
    }
    check_ips6(wanted).map_err(|why| Error::invalid(FIELD, why))?;
    let view = decide(control, scope, id, |snapshot, entry| {
        let state = InstanceView::of(control, snapshot, entry.clone()).state;
        usable("change a NIC of", entry, state)?;
        let mut instance = entry.value.clone();
        let Some(nic) = instance.nics.iter_mut().find(|nic| nic.mac == mac) else {
            return Err(Error::not_found("NIC", mac));
        };
        if nic.addresses6().eq(wanted.iter().copied()) {
            return Ok(None);
        }
        let network = networks::visible(snapshot, Scope::All, nic.network)
            .ok_or_else(|| Error::not_found("network", nic.network))?;
        if network.public && scope != Scope::All {
            let why = format!("network \"{}\" is public; its addresses cannot be chosen", network.name);
            return Err(Error::invalid(FIELD, why));
        }
        let new: Vec<Ipv6Addr> = wanted.iter().copied().filter(|ip| nic.addresses6().all(|held| held != *ip)).collect();
        let holder = Holder { instance: id, owner: entry.owner, now: control.now() };
        let mut taken = Taken::default();
        let transaction = allocate::these(control, snapshot, &network, &new, holder, &mut taken, Transaction::new())
            .map_err(|error| error.of_field("networks", FIELD))?;
        (nic.ip6, nic.more6) = (wanted.first().copied(), wanted.get(1..).unwrap_or_default().to_vec());
        if held(&instance.nics) > HELD_MAX {
            let why = format!("an instance can hold {HELD_MAX} addresses at most, Ethernet addresses among them");
            return Err(Error::invalid(FIELD, why));
        }
        let mut decision = with_flow::<flows::Nics>(control, instance, caller, "update_nics");
        decision.transaction = decision.transaction.and(transaction);
        Ok(Some(decision))
    })
    .await?;
    view.nics.into_iter().find(|view| view.nic.mac == mac).ok_or_else(|| Error::not_found("NIC", mac))
}

/// Removes a NIC.
///
/// Its address is free again when the machine says that the NIC is no longer in force.
pub async fn remove(
    control: &Control,
    caller: &Caller,
    scope: Scope,
    id: InstanceId,
    mac: MacAddr,
) -> Result<InstanceView> {
    decide(control, scope, id, |snapshot, entry| {
        let state = InstanceView::of(control, snapshot, entry.clone()).state;
        usable("remove a NIC from", entry, state)?;
        let mut instance = entry.value.clone();
        let Some(at) = instance.nics.iter().position(|nic| nic.mac == mac) else {
            return Err(Error::not_found("NIC", mac));
        };
        let nic = instance.nics.remove(at);
        if nic.primary
            && let Some(first) = instance.nics.first_mut()
        {
            first.primary = true;
        }
        Ok(Some(with_flow::<flows::Nics>(control, instance, caller, "remove_nics")))
    })
    .await
}

/// What of NICs is taken and given back in one commit: addresses and Ethernet addresses.
pub(super) fn held(nics: &[Nic]) -> usize {
    nics.iter().map(|nic| 1 + nic.addresses().count()).sum()
}

/// The lowest interface name that is free.
fn free_interface(nics: &[Nic]) -> String {
    (0..=nics.len())
        .map(|number| format!("net{number}"))
        .find(|name| nics.iter().all(|nic| nic.interface != *name))
        .expect("one more name than NICs")
}
