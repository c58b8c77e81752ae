//! What the kernel has on the way of a packet: see [`model::path`]. Only reads.

use std::net::IpAddr;

use model::{
    id::MacAddr,
    path::{Look, Sight, Tunnel},
    target::NetworkTarget,
};

use super::{
    fabric_wire as fabric,
    link::{one_link, open},
    link_wire::Link,
    netlink::Socket,
};
use crate::{
    error::{Error, Result},
    link::LinkNames,
};

/// Looks at all that `look` asks for.
pub(super) fn look(names: &LinkNames, look: &Look) -> Result<Sight> {
    let mut host = open()?;
    let bridge = one_link(&mut host, &names.bridge(&look.network))?;
    let nic = one_link(&mut host, &names.nic(look.mac))?.map(|link| is_port(&link, bridge.as_ref()));
    let router = match &look.network.fabric {
        Some(fabric) => one_link(&mut host, &names.router_port(fabric.vni))?,
        None => None,
    };
    let router = router.is_some_and(|link| is_port(&link, bridge.as_ref()));
    let tunnel = match &look.other {
        Some((network, mac, address)) => tunnel(&mut host, names, network, *mac, *address)?,
        None => None,
    };
    Ok(Sight { nic, filters: None, router, tunnel })
}

/// What leads to `mac` on another machine; `None` on a network that is no fabric.
fn tunnel(
    host: &mut Socket,
    names: &LinkNames,
    network: &NetworkTarget,
    mac: MacAddr,
    address: IpAddr,
) -> Result<Option<Tunnel>> {
    let Some(segment) = &network.fabric else { return Ok(None) };
    let bridge = one_link(host, &names.bridge(network))?;
    let device = one_link(host, &names.vxlan(segment.vni))?;
    let (Some(bridge), Some(device)) = (bridge, device) else { return Ok(Some(Tunnel::default())) };
    let doing = || -> String { format!("look at the peers of `{}`", device.name) };
    let mut seen = Tunnel { device: is_port(&device, Some(&bridge)), ..Tunnel::default() };
    let answer = host.request(fabric::get_remotes(device.index)).map_err(|refusal| refusal.doing(doing()))?;
    let entries = answer.iter().filter_map(|payload| fabric::read_entry(payload));
    for entry in entries.filter(|entry| entry.link == device.index && entry.mac == mac) {
        match entry.to.filter(|_| entry.of_device) {
            Some(machine) => seen.machine = Some(machine),
            None => seen.port |= !entry.of_device,
        }
    }
    for question in fabric::get_neighbours(bridge.index) {
        let answer = host.request(question).map_err(|refusal| -> Error { refusal.doing(doing()) })?;
        let mut entries = answer.iter().filter_map(|payload| fabric::read_entry(payload));
        let found = entries.find(|entry| entry.link == bridge.index && entry.permanent && entry.to == Some(address));
        seen.neighbour = seen.neighbour.or(found.map(|entry| entry.mac));
    }
    Ok(Some(seen))
}

/// Whether a link is up and a port of a bridge that is up.
fn is_port(link: &Link, bridge: Option<&Link>) -> bool {
    link.up && bridge.is_some_and(|bridge| bridge.up && link.master == bridge.index)
}
