//! The machines' own segment: whether VXLAN gets through is tried in it, with pings that the other kernel answers.
//!
//! ```text
//!  ┌ namespace neso-<prefix>-wires ┐
//!  │ <prefix>x000000  fd4e:7769:… ─┼── VXLAN number 0, from the host's address between machines ──► the other machine's
//!  └───────────────────────────────┘
//! ```
//! The device lives in a namespace of its own, so nothing of the host can be reached through it; its datagrams leave from and arrive at the
//! host, on the very port and through the very rules that tenants' take. Entries are static, as everywhere between machines.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    net::IpAddr,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use ipnet::{IpNet, Ipv6Net};
use model::id::MacAddr;
use nix::{errno::Errno, sys::socket::SockProtocol};

use super::{
    fabric::BATCH,
    fabric_wire as fabric,
    link::{addresses, carry_out, inside_of, is_link_local, one_link, open, set_sysctl, tolerate},
    link_wire::{self as wire, Link, Tunnel},
    netlink::Socket,
    router::{NAMESPACES, ensure_namespace, namespace_prefix, remove_namespace},
};
use crate::{
    error::{Error, Result},
    fabric::{FabricSet, WIRES_VNI, WireEnd},
    link::{LinkNames, Packet, Probe},
};

/// There where the kernel has IPv6.
const IPV6: &str = "/proc/sys/net/ipv6";

/// What the namespace needs of the kernel before it has a device: addresses are what we give.
const SYSCTLS: [(&str, &str); 2] =
    [("net/ipv6/conf/default/addr_gen_mode", "1"), ("net/ipv6/conf/default/accept_ra", "0")];

fn namespace(names: &LinkNames) -> PathBuf {
    Path::new(NAMESPACES).join(format!("{}wires", namespace_prefix(names)))
}

/// Makes the segment what `wanted` asks for: an end of this machine's, and entries that lead to those of machines with a peer. Without any it
/// goes.
pub(super) fn program(names: &LinkNames, wanted: &FabricSet) -> Result<()> {
    let (path, machines) = (namespace(names), wanted.machines());
    let Some(own) = wanted.underlay.filter(|_| !machines.is_empty() && Path::new(IPV6).exists()) else {
        return remove_namespace(&path);
    };
    let netns = in_namespace(&ensure_namespace(&path)?)?;
    let mut inner = Socket::open_in(&netns, SockProtocol::NetlinkRoute)
        .map_err(|source| Error::os(format!("enter network namespace `{}`", path.display()), source))?;
    inside_of(&netns, || SYSCTLS.iter().try_for_each(|(path, value)| set_sysctl(path, value)))?;
    let tunnel = Tunnel { vni: WIRES_VNI, local: own, port: wanted.port };
    let link = ensure_device(names, &netns, &mut inner, tunnel)?;
    let ends: BTreeMap<WireEnd, IpAddr> = machines.into_iter().map(|machine| (WireEnd::of(machine), machine)).collect();
    address(&mut inner, &link, WireEnd::of(own))?;
    tell(&mut inner, &link, &ends)
}

fn in_namespace(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::os(format!("open network namespace `{}`", path.display()), source))
}

fn ensure_device(names: &LinkNames, netns: &File, inner: &mut Socket, tunnel: Tunnel) -> Result<Link> {
    let (name, mac) = (names.vxlan(tunnel.vni), WireEnd::of(tunnel.local).mac);
    let doing = || format!("make VXLAN device `{name}`");
    if let Some(found) = one_link(inner, &name)? {
        if found.vxlan == Some(tunnel) && found.mac == Some(mac) {
            return Ok(found);
        }
        tolerate(inner.request(wire::delete_link(found.index)), Errno::ENODEV)
            .map_err(|refusal| refusal.doing(doing()))?;
    }
    // Asked for in the host's namespace, which is the one its datagrams leave from.
    carry_out(&mut open()?, vec![fabric::new_inner_vxlan(&name, tunnel, netns.as_raw_fd(), mac)], doing)?;
    one_link(inner, &name)?.ok_or_else(|| Error::Missing(format!("VXLAN device `{name}`")))
}

fn address(inner: &mut Socket, link: &Link, own: WireEnd) -> Result<()> {
    let doing = || format!("give `{}` its address", link.name);
    let net = Ipv6Net::new(own.address, WireEnd::NET_BITS).map(IpNet::V6);
    let wanted: BTreeSet<IpNet> = net.into_iter().collect();
    let held = addresses(inner, link.index)?;
    let gone = held.difference(&wanted).filter(|net| !is_link_local(net));
    let mut changes: Vec<_> = gone.map(|net| wire::delete_address(link.index, *net)).collect();
    changes.extend(wanted.difference(&held).map(|net| wire::add_address(link.index, *net)));
    if !link.up {
        changes.push(wire::set_up(link.index));
    }
    carry_out(inner, changes, doing)
}

/// Makes the entries that lead to other machines exactly those of `ends`.
fn tell(inner: &mut Socket, link: &Link, ends: &BTreeMap<WireEnd, IpAddr>) -> Result<()> {
    let doing = || format!("change the machines behind `{}`", link.name);
    let (mut machines, mut neighbours): (BTreeMap<MacAddr, IpAddr>, BTreeMap<IpAddr, MacAddr>) = Default::default();
    let [_, six] = fabric::get_neighbours(link.index);
    for (question, found) in [(fabric::get_remotes(link.index), true), (six, false)] {
        let answer = inner.request(question).map_err(|refusal| refusal.doing(doing()))?;
        let entries = answer.iter().filter_map(|payload| fabric::read_entry(payload));
        for entry in entries.filter(|entry| entry.link == link.index) {
            match entry.to {
                Some(machine) if found && entry.of_device => drop(machines.insert(entry.mac, machine)),
                Some(address) if !found && entry.permanent => drop(neighbours.insert(address, entry.mac)),
                _ => {}
            }
        }
    }
    let wanted: BTreeMap<MacAddr, IpAddr> = ends.iter().map(|(end, machine)| (end.mac, *machine)).collect();
    let known: BTreeMap<IpAddr, MacAddr> = ends.keys().map(|end| (IpAddr::V6(end.address), end.mac)).collect();
    let mut changes: Vec<_> = machines
        .keys()
        .filter(|mac| !wanted.contains_key(mac))
        .map(|mac| fabric::delete_lone_remote(link.index, *mac))
        .collect();
    let gone = neighbours.keys().filter(|address| !known.contains_key(address));
    changes.extend(gone.map(|address| fabric::delete_neighbour(link.index, *address)));
    let new = wanted.iter().filter(|(mac, machine)| machines.get(mac) != Some(machine));
    changes.extend(new.map(|(mac, machine)| fabric::add_lone_remote(link.index, *mac, *machine)));
    let new = known.iter().filter(|(address, mac)| neighbours.get(address) != Some(mac));
    changes.extend(new.map(|(address, mac)| fabric::add_neighbour(link.index, *address, *mac)));
    changes.chunks(BATCH).try_for_each(|part| carry_out(inner, part.to_vec(), doing))
}

/// Sends packets through the tunnel.
pub(super) fn probe(names: &LinkNames, probe: &Probe) -> Result<Vec<bool>> {
    let netns = in_namespace(&namespace(names))?;
    let end = |machine| IpAddr::V6(WireEnd::of(machine).address);
    let packets = probe.packets.iter().map(|packet| Packet { to: end(packet.to), size: packet.size });
    let inner = Probe { from: end(probe.from), packets: packets.collect(), ..probe.clone() };
    inside_of(&netns, || super::probe::probe(&inner))
}
