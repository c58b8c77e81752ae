//! Fabrics over rtnetlink: see [`crate::fabric`] for what is made.
//!
//! What the kernel has is read anew each time, of our devices alone, and only what differs is changed: so a restart of the
//! agent moves no packet, and whatever somebody deleted comes back with the next look.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use model::{
    id::{AccountId, MacAddr},
    peers::Peer,
};
use nix::errno::Errno;

use super::{
    fabric_wire as fabric,
    link::{LinuxLinks, carry_out, links, one_link, open, tolerate},
    link_wire::{self as wire, Link, Tunnel},
    netlink::Socket,
    router,
    rules_kept::Loaded,
    underlay, wires,
};
use crate::{
    error::{Error, Result},
    fabric::{FabricSet, Segment},
    link::{LinkNames, Links as _},
};

/// Messages sent in one go. All are answered before the first answer is read, and each answer counts with some 800 bytes against a
/// socket's buffer, which holds 208 KiB: half of it.
pub(super) const BATCH: usize = 128;

/// Rules this process loaded for fabrics.
#[derive(Debug, Default)]
pub(super) struct Rules {
    underlay: Option<Loaded>,
    pub(super) transit: Option<Loaded>,
    pub(super) routers: BTreeMap<AccountId, Loaded>,
}

/// Makes the kernel equal to `wanted`.
pub(super) fn program(ours: &LinuxLinks, names: &LinkNames, wanted: &FabricSet, rules: &mut Rules) -> Result<()> {
    let mut host = open()?;
    let there = links(&mut host)?;
    let stray = there.iter().filter(|link| {
        let vni = names.vni_of_vxlan(&link.name).filter(|_| link.kind == "vxlan");
        vni.is_some_and(|vni| wanted.underlay.is_none() || !wanted.segments.contains_key(&vni))
    });
    // Before there is a device that hears.
    underlay::guard(names, wanted, &mut rules.underlay)?;
    for link in stray {
        tolerate(host.request(wire::delete_link(link.index)), Errno::ENODEV)
            .map_err(|refusal| refusal.doing(format!("delete VXLAN device `{}`", link.name)))?;
    }
    for (vni, segment) in &wanted.segments {
        let name = ours.ensure_bridge(&segment.network)?;
        let bridge = one_link(&mut host, &name)?.ok_or_else(|| Error::Missing(format!("bridge `{name}`")))?;
        let Some(underlay) = wanted.underlay else { continue };
        let tunnel = Tunnel { vni: *vni, local: underlay, port: wanted.port };
        let vxlan = ensure_vxlan(&mut host, names, tunnel, &bridge, u32::from(segment.network.mtu))?;
        tell_remotes(&mut host, &vxlan, segment)?;
        tell_neighbours(&mut host, &bridge, segment)?;
    }
    router::program(names, wanted, &there, rules)?;
    wires::program(names, wanted)
}

fn ensure_vxlan(host: &mut Socket, names: &LinkNames, tunnel: Tunnel, bridge: &Link, mtu: u32) -> Result<Link> {
    let name = names.vxlan(tunnel.vni);
    let doing = || format!("make VXLAN device `{name}`");
    if let Some(found) = one_link(host, &name)? {
        if found.vxlan == Some(tunnel) && found.kind == "vxlan" {
            let mut changes = Vec::new();
            if found.master != bridge.index {
                changes.push(wire::set_master(found.index, bridge.index));
            }
            if found.mtu != mtu {
                changes.push(wire::set_mtu(found.index, mtu));
            }
            if !changes.is_empty() || !found.up {
                changes.push(fabric::dress_vxlan(&name));
            }
            carry_out(host, changes, doing)?;
            return Ok(found);
        }
        // Another address of this machine, or another port: the device cannot change them.
        tolerate(host.request(wire::delete_link(found.index)), Errno::ENODEV)
            .map_err(|refusal| refusal.doing(doing()))?;
    }
    let made = vec![fabric::new_vxlan(&name, tunnel, bridge.index, mtu), fabric::dress_vxlan(&name)];
    carry_out(host, made, doing)?;
    one_link(host, &name)?.ok_or_else(|| Error::Missing(format!("VXLAN device `{name}`")))
}

/// Makes the entries that lead to other machines exactly the segment's.
fn tell_remotes(host: &mut Socket, vxlan: &Link, segment: &Segment) -> Result<()> {
    let doing = || format!("change the peers of `{}`", vxlan.name);
    let answer = host.request(fabric::get_remotes(vxlan.index)).map_err(|refusal| refusal.doing(doing()))?;
    let entries = answer.iter().filter_map(|payload| fabric::read_entry(payload));
    let (mut machines, mut ports): (BTreeMap<MacAddr, IpAddr>, BTreeSet<MacAddr>) = Default::default();
    for entry in entries.filter(|entry| entry.link == vxlan.index) {
        match entry.to.filter(|_| entry.of_device) {
            Some(machine) => drop(machines.insert(entry.mac, machine)),
            // The device's own address is an entry of its bridge too, and permanent.
            None if entry.of_device || entry.permanent => {}
            None => drop(ports.insert(entry.mac)),
        }
    }
    let held: BTreeSet<MacAddr> = machines.keys().chain(&ports).copied().collect();
    let gone = held.iter().filter(|mac| !segment.peers.contains_key(mac));
    let gone: Vec<_> = gone.flat_map(|mac| fabric::delete_remote(vxlan.index, *mac)).collect();
    for part in gone.chunks(BATCH) {
        for answer in host.batch(part.to_vec()).map_err(|refusal| refusal.doing(doing()))? {
            // One of the two may be gone already.
            tolerate(answer, Errno::ENOENT).map_err(|refusal| refusal.doing(doing()))?;
        }
    }
    let right = |mac: &MacAddr, peer: &Peer| machines.get(mac) == Some(&peer.underlay) && ports.contains(mac);
    let new = segment.peers.iter().filter(|(mac, peer)| !right(mac, peer));
    let new: Vec<_> = new.map(|(mac, peer)| fabric::add_remote(vxlan.index, *mac, peer.underlay)).collect();
    new.chunks(BATCH).try_for_each(|part| carry_out(host, part.to_vec(), doing))
}

/// Makes the addresses that the bridge answers for exactly the segment's.
fn tell_neighbours(host: &mut Socket, bridge: &Link, segment: &Segment) -> Result<()> {
    let doing = || format!("change the neighbours on `{}`", bridge.name);
    let mut held: BTreeMap<IpAddr, MacAddr> = BTreeMap::new();
    for question in fabric::get_neighbours(bridge.index) {
        let answer = host.request(question).map_err(|refusal| refusal.doing(doing()))?;
        let entries = answer.iter().filter_map(|payload| fabric::read_entry(payload));
        let ours = entries.filter(|entry| entry.link == bridge.index && entry.permanent);
        held.extend(ours.filter_map(|entry| Some((entry.to?, entry.mac))));
    }
    let wanted = segment.peers.iter().flat_map(|(mac, peer)| peer.addresses.iter().map(|address| (*address, *mac)));
    let wanted: BTreeMap<IpAddr, MacAddr> = wanted.collect();
    let gone = held.keys().filter(|address| !wanted.contains_key(address));
    let mut changes: Vec<_> = gone.map(|address| fabric::delete_neighbour(bridge.index, *address)).collect();
    let new = wanted.iter().filter(|(address, mac)| held.get(address) != Some(mac));
    changes.extend(new.map(|(address, mac)| fabric::add_neighbour(bridge.index, *address, *mac)));
    changes.chunks(BATCH).try_for_each(|part| carry_out(host, part.to_vec(), doing))
}
