//! Links over rtnetlink: one bridge per segment, one veth pair per NIC.
//!
//! ```text
//!    zone's namespace          host
//!    eth0 ◄───── veth ─────► nv90b8d0…   port of nb-<tag>, alias `neso <instance>`
//! ```
//! The alias says whose a NIC is; the other end's index, read in the zone's namespace, finds a zone's NICs without
//! looking at everybody's. A zone's root may rename, re-address or delete its ends; [`Links::attach`] trusts none of it and
//! makes again what differs.
//!
//! Bridges learn nothing and flood nothing to zones: a static entry per NIC says where its address is, so a zone sees
//! frames for itself, broadcasts and multicasts, whatever the others send.
//!
//! Addresses of either family are given, never found out: nobody asks whether another has them, and inside a zone no router
//! advertisement is believed. A bridge has IPv6 only where the host has an address on it, host ends never.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    os::fd::{AsFd, AsRawFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::{
    id::{InstanceId, MacAddr},
    path::{Look, Sight},
    target::{LINK_LOCAL_BITS, NetworkTarget, NicTarget},
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::socket::SockProtocol,
};

use super::{
    bridge_calls,
    fabric::Rules,
    link_wire::{self as wire, Link, NewNic, Route},
    netlink::{Message, Refusal, Socket},
    traffic,
};
use crate::{
    error::{Error, Result},
    fabric::FabricSet,
    link::{LinkNames, Links, NetworkSetup, NicStatus, Probe, Through, Traffic},
};

/// Most NICs of an instance, as CloudAPI has it.
const NICS_MAX: usize = 32;

/// Links in the network namespace of the calling thread.
#[derive(Debug, Clone)]
pub struct LinuxLinks {
    names: LinkNames,
    /// NICs attached in this life, by instance. A list of all links costs the square of their number, so
    /// [`Links::detach`] asks for it only where this does not know; what it may miss, a list of [`Links::nics`] finds.
    attached: Arc<Mutex<HashMap<InstanceId, BTreeSet<String>>>>,
    /// Rules loaded in this life; held while fabrics are made.
    rules: Arc<Mutex<Rules>>,
    /// Whether bridges were spared the detour in this life; again with each that is made.
    is_spared: Arc<AtomicBool>,
}

impl LinuxLinks {
    /// Links with these names.
    pub fn new(names: LinkNames) -> Self {
        Self { names, attached: Arc::default(), rules: Arc::default(), is_spared: Arc::default() }
    }

    fn attached(&self) -> MutexGuard<'_, HashMap<InstanceId, BTreeSet<String>>> {
        // Every change is one insertion or removal, so a panic elsewhere leaves nothing half done.
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host's ends of an instance's NICs.
    fn ports(&self, host: &mut Socket, instance: InstanceId) -> Result<Vec<Link>> {
        let known = self.attached().get(&instance).cloned();
        let all = match known {
            Some(names) => {
                let found = names.iter().map(|name| one_link(host, name)).collect::<Result<Vec<_>>>()?;
                found.into_iter().flatten().collect()
            }
            None => links(host)?,
        };
        let alias = alias_of(instance);
        Ok(all.into_iter().filter(|link| link.alias == alias && self.names.mac_of(&link.name).is_some()).collect())
    }

    /// Makes the two ends of a NIC; the host's end is up and known to its bridge when this returns.
    fn make(&self, host: &mut Socket, instance: InstanceId, netns: &File, plan: &Planned<'_>) -> Result<()> {
        let host_name = self.names.nic(plan.nic.mac);
        let doing = || format!("make NIC `{host_name}` of {instance}");
        let new = NewNic {
            host_name: &host_name,
            bridge: plan.bridge,
            netns: netns.as_raw_fd(),
            inner_name: &plan.nic.interface,
            mac: plan.nic.mac,
            mtu: u32::from(plan.nic.mtu),
        };
        let dressed =
            || vec![wire::new_nic(&new), wire::dress_port(&host_name, &alias_of(instance)), wire::get_link(&host_name)];
        let mut answers = host.batch(dressed()).map_err(|refusal| refusal.doing(doing()))?;
        if let Some(Err(Refusal { errno: Errno::EEXIST, .. })) = answers.first() {
            // Left by another life of this zone, whose namespace may be going still.
            tolerate(host.request(wire::delete_link_named(&host_name)), Errno::ENODEV)
                .map_err(|refusal| refusal.doing(format!("delete leftover NIC `{host_name}`")))?;
            answers = host.batch(dressed()).map_err(|refusal| refusal.doing(doing()))?;
        }
        let mut found = None;
        for answer in answers {
            found = answer.map_err(|refusal| refusal.doing(doing()))?.first().and_then(|link| wire::read_link(link));
        }
        let port = found.ok_or_else(|| Error::Missing(format!("NIC `{host_name}`")))?;
        carry_out(host, vec![wire::set_place(port.index, plan.nic.mac), wire::set_up(port.index)], doing)
    }

    /// Corrects what can be corrected of a NIC that is kept.
    fn correct(&self, host: &mut Socket, inner: &mut Socket, found: &Found, plan: &Planned<'_>) -> Result<()> {
        let doing = || format!("change NIC `{}`", found.port.name);
        let mtu = u32::from(plan.nic.mtu);
        let mut changes = Vec::new();
        if found.port.master != plan.bridge {
            changes.push(wire::set_master(found.port.index, plan.bridge));
            changes.push(wire::dress_port(&found.port.name, &found.port.alias));
        }
        if found.port.mtu != mtu {
            changes.push(wire::set_mtu(found.port.index, mtu));
        }
        changes.push(wire::set_place(found.port.index, plan.nic.mac));
        changes.push(wire::set_up(found.port.index));
        carry_out(host, changes, doing)?;
        if found.inner.mtu != mtu {
            carry_out(inner, vec![wire::set_mtu(found.inner.index, mtu)], doing)?;
        }
        Ok(())
    }

    /// The NICs of an instance: its ends inside, each with the host's end it belongs to.
    fn find(&self, host: &mut Socket, inner: &mut Socket, instance: InstanceId) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        let alias = alias_of(instance);
        for inner_link in links(inner)?.into_iter().filter(|link| link.kind == "veth" && link.peer != 0) {
            let answer = match host.request(wire::get_link_at(inner_link.peer)) {
                Err(Refusal { errno: Errno::ENODEV, .. }) => continue,
                other => other.map_err(|refusal| refusal.doing("look at a NIC"))?,
            };
            let Some(port) = answer.first().and_then(|link| wire::read_link(link)) else { continue };
            // All three, since a zone's root can make pairs of its own whose indexes happen to fit.
            if port.peer == inner_link.index && port.alias == alias && self.names.mac_of(&port.name).is_some() {
                found.push(Found { inner: inner_link, port });
            }
        }
        Ok(found)
    }

    /// Looks the bridges up and checks what is wanted.
    fn plan<'a>(&self, host: &mut Socket, setup: &'a NetworkSetup) -> Result<BTreeMap<MacAddr, Planned<'a>>> {
        if setup.nics.len() > NICS_MAX {
            return Err(Error::Refused {
                what: format!("{} NICs", setup.nics.len()),
                why: format!("an instance has at most {NICS_MAX}"),
            });
        }
        let mut bridges = BTreeMap::new();
        let mut planned = BTreeMap::new();
        for (nic, network) in &setup.nics {
            let name = self.names.bridge(network);
            let bridge = match bridges.get(&name) {
                Some(index) => *index,
                None => {
                    let found = one_link(host, &name)?.ok_or_else(|| Error::Missing(format!("bridge `{name}`")))?;
                    bridges.insert(name, found.index);
                    found.index
                }
            };
            planned.insert(nic.mac, Planned { nic, bridge });
        }
        Ok(planned)
    }
}

/// A NIC to be there.
struct Planned<'a> {
    nic: &'a NicTarget,
    bridge: u32,
}

/// A NIC that is there.
struct Found {
    inner: Link,
    port: Link,
}

impl Found {
    fn is(&self, names: &LinkNames, nic: &NicTarget) -> bool {
        names.mac_of(&self.port.name) == Some(nic.mac)
            && self.inner.mac == Some(nic.mac)
            && self.inner.name == nic.interface
    }
}

// === impl Links ===

impl Links for LinuxLinks {
    fn ensure_bridge(&self, network: &NetworkTarget) -> Result<String> {
        let name = self.names.bridge(network);
        let doing = || format!("make bridge `{name}`");
        let mut host = open()?;
        let (mac, mtu) = (bridge_mac(&name), u32::from(network.mtu));
        let bridge = match one_link(&mut host, &name)? {
            Some(bridge) => bridge,
            None => {
                tolerate(host.request(wire::new_bridge(&name, mac, mtu)), Errno::EEXIST)
                    .map_err(|refusal| refusal.doing(doing()))?;
                self.is_spared.store(false, Ordering::Release);
                one_link(&mut host, &name)?.ok_or_else(|| Error::Missing(format!("bridge `{name}`")))?
            }
        };
        if !self.is_spared.load(Ordering::Acquire) {
            bridge_calls::spare(&self.names)?;
            self.is_spared.store(true, Ordering::Release);
        }
        harden(&name, network.fabric.is_some() || network.host_address6.is_some())?;
        let mut changes = Vec::new();
        if bridge.mtu != mtu {
            changes.push(wire::set_mtu(bridge.index, mtu));
        }
        let wanted = host_addresses(network, bridge.mac.unwrap_or(mac))?;
        let held = addresses(&mut host, bridge.index)?;
        let (gone, new) = (held.difference(&wanted), wanted.difference(&held));
        changes.extend(gone.map(|net| wire::delete_address(bridge.index, *net)));
        changes.extend(new.map(|net| wire::add_address(bridge.index, *net)));
        if !bridge.up {
            changes.push(wire::set_up(bridge.index));
        }
        carry_out(&mut host, changes, doing)?;
        Ok(name)
    }

    fn remove_bridges_except(&self, needed: &[NetworkTarget]) -> Result<()> {
        let needed: BTreeSet<String> = needed.iter().map(|network| self.names.bridge(network)).collect();
        let mut host = open()?;
        let prefix = self.names.bridge_prefix();
        for link in links(&mut host)? {
            if link.kind == "bridge" && link.name.starts_with(&prefix) && !needed.contains(&link.name) {
                tolerate(host.request(wire::delete_link(link.index)), Errno::ENODEV)
                    .map_err(|refusal| refusal.doing(format!("delete bridge `{}`", link.name)))?;
            }
        }
        Ok(())
    }

    fn attach(&self, instance: InstanceId, netns: &Path, setup: &NetworkSetup) -> Result<()> {
        let doing = || format!("attach the NICs of {instance}");
        let namespace = File::open(netns)
            .map_err(|source| Error::os(format!("open network namespace `{}`", netns.display()), source))?;
        let mut host = open()?;
        let mut inner = Socket::open_in(&namespace, SockProtocol::NetlinkRoute)
            .map_err(|source| Error::os(format!("enter network namespace `{}`", netns.display()), source))?;

        let mut planned = self.plan(&mut host, setup)?;
        // Noted before they are made, beside what was there: an attempt that fails half-way leaves some.
        let names = setup.nics.iter().map(|(nic, _)| self.names.nic(nic.mac));
        if let Some(known) = self.attached().get_mut(&instance) {
            known.extend(names.clone());
        }
        let found = self.find(&mut host, &mut inner, instance)?;
        let there: BTreeSet<String> = found.iter().map(|found| found.port.name.clone()).chain(names).collect();
        self.attached().entry(instance).or_insert(there);
        for found in found {
            let mac = self.names.mac_of(&found.port.name);
            let kept = mac.and_then(|mac| planned.get(&mac)).filter(|plan| found.is(&self.names, plan.nic));
            match kept {
                Some(plan) => {
                    self.correct(&mut host, &mut inner, &found, plan)?;
                    planned.remove(&plan.nic.mac.to_owned());
                }
                None => tolerate(host.request(wire::delete_link(found.port.index)), Errno::ENODEV)
                    .map_err(|refusal| refusal.doing(format!("delete NIC `{}`", found.port.name)))?,
            }
        }
        for (nic, _) in &setup.nics {
            if let Some(plan) = planned.get(&nic.mac) {
                self.make(&mut host, instance, &namespace, plan)?;
            }
        }
        discipline(&namespace, setup)?;
        address_nics(&mut inner, setup, doing)?;
        route(&mut inner, setup, doing)
    }

    fn detach(&self, instance: InstanceId) -> Result<()> {
        let mut host = open()?;
        for link in self.ports(&mut host, instance)? {
            tolerate(host.request(wire::delete_link(link.index)), Errno::ENODEV)
                .map_err(|refusal| refusal.doing(format!("delete NIC `{}`", link.name)))?;
        }
        self.attached().remove(&instance);
        Ok(())
    }

    fn program(&self, fabrics: &FabricSet) -> Result<()> {
        // Each part says for itself what it knows of the kernel, so a panic elsewhere leaves nothing half done.
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        super::fabric::program(self, &self.names, fabrics, &mut rules)
    }

    fn sight(&self, look: &Look) -> Result<Sight> {
        super::sight::look(&self.names, look)
    }

    fn probe(&self, probe: &Probe) -> Result<Vec<bool>> {
        match probe.through {
            Through::Wire => super::probe::probe(probe),
            Through::Tunnel => super::wires::probe(&self.names, probe),
        }
    }

    fn nics(&self) -> Result<Vec<NicStatus>> {
        let all = links(&mut open()?)?;
        let name_of: BTreeMap<u32, &str> = all.iter().map(|link| (link.index, link.name.as_str())).collect();
        let nics = all.iter().filter_map(|link| {
            let instance = link.alias.strip_prefix(ALIAS)?.parse().ok()?;
            let mac = self.names.mac_of(&link.name)?;
            let bridge = name_of.get(&link.master).filter(|_| link.up).map(|name| (*name).to_owned());
            Some(NicStatus { instance, mac, host_name: link.name.clone(), bridge })
        });
        Ok(nics.collect())
    }

    fn meters(&self) -> Result<Traffic> {
        traffic::read(&self.names)
    }
}

/// What the alias of every host end starts with, before the instance's id.
const ALIAS: &str = "neso ";

fn alias_of(instance: InstanceId) -> String {
    format!("{ALIAS}{instance}")
}

pub(super) fn open() -> Result<Socket> {
    Socket::open(SockProtocol::NetlinkRoute).map_err(|source| Error::os("open an rtnetlink socket", source))
}

/// Carries out changes, all of which must succeed.
pub(super) fn carry_out(socket: &mut Socket, changes: Vec<Message>, doing: impl Fn() -> String) -> Result<()> {
    for answer in socket.batch(changes).map_err(|refusal| refusal.doing(doing()))? {
        answer.map_err(|refusal| refusal.doing(doing()))?;
    }
    Ok(())
}

/// Takes one refusal for success: what was to be made is there, or what was to go is gone.
pub(super) fn tolerate(
    answer: std::result::Result<Vec<Vec<u8>>, Refusal>,
    errno: Errno,
) -> std::result::Result<(), Refusal> {
    match answer {
        Err(refusal) if refusal.errno != errno => Err(refusal),
        _ => Ok(()),
    }
}

pub(super) fn links(socket: &mut Socket) -> Result<Vec<Link>> {
    let answer = socket.request(wire::get_links()).map_err(|refusal| refusal.doing("list links"))?;
    Ok(answer.iter().filter_map(|payload| wire::read_link(payload)).collect())
}

pub(super) fn one_link(socket: &mut Socket, name: &str) -> Result<Option<Link>> {
    match socket.request(wire::get_link(name)) {
        Err(Refusal { errno: Errno::ENODEV, .. }) => Ok(None),
        other => {
            let answer = other.map_err(|refusal| refusal.doing(format!("look at link `{name}`")))?;
            Ok(answer.first().and_then(|payload| wire::read_link(payload)))
        }
    }
}

pub(super) fn addresses(socket: &mut Socket, link: u32) -> Result<BTreeSet<IpNet>> {
    Ok(all_addresses(socket)?.remove(&link).unwrap_or_default())
}

/// Addresses by the index of their link.
fn all_addresses(socket: &mut Socket) -> Result<BTreeMap<u32, BTreeSet<IpNet>>> {
    let answer = socket.request(wire::get_addresses()).map_err(|refusal| refusal.doing("list addresses"))?;
    let mut all: BTreeMap<u32, BTreeSet<IpNet>> = BTreeMap::new();
    for (link, net) in answer.iter().filter_map(|payload| wire::read_address(payload)) {
        all.entry(link).or_default().insert(net);
    }
    Ok(all)
}

/// What the host holds on the bridge of `network`. Without a link-local address the kernel would ask nobody for his Ethernet address
/// on behalf of packets it only forwards.
fn host_addresses(network: &NetworkTarget, mac: MacAddr) -> Result<BTreeSet<IpNet>> {
    let with_prefix = |address, prefix_len| {
        IpNet::new(address, prefix_len)
            .map_err(|source| Error::Refused { what: format!("host address {address}"), why: source.to_string() })
    };
    let own = network.host_address.zip(network.subnet);
    let v4 = own.map(|(address, subnet)| with_prefix(address.into(), subnet.prefix_len()));
    let own = network.host_address6.zip(network.subnet6);
    let v6 = own.map(|(address, subnet)| with_prefix(address.into(), subnet.prefix_len()));
    let local = own.map(|_| with_prefix(mac.link_local().into(), LINK_LOCAL_BITS));
    v4.into_iter().chain(v6).chain(local).collect()
}

/// Parameters of an interface inside that the kernel lets only `/proc` set: addresses are what we give, and whoever says he is a
/// router is not believed. Before the interface is up, or it would have found itself an address already.
const MANNERS: [(&str, &str); 4] =
    [("disable_ipv6", "0"), ("addr_gen_mode", "1"), ("accept_ra", "0"), ("accept_redirects", "0")];

/// Sets [`MANNERS`] of the NICs with IPv6.
fn discipline(netns: &File, setup: &NetworkSetup) -> Result<()> {
    let six: Vec<&str> = setup
        .nics
        .iter()
        .filter(|(nic, _)| !nic.addresses6.is_empty())
        .map(|(nic, _)| nic.interface.as_str())
        .collect();
    if six.is_empty() {
        return Ok(());
    }
    inside_of(netns, || {
        for (interface, (name, value)) in six.iter().flat_map(|interface| MANNERS.map(|manner| (interface, manner))) {
            set_sysctl(&format!("net/ipv6/conf/{interface}/{name}"), value)?;
        }
        Ok(())
    })
}

/// Runs `act` in a network namespace, on a thread that ends at once.
pub(super) fn inside_of<R: Send>(netns: &File, act: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::os("enter a network namespace", errno.into()))?;
            act()
        });
        there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Gives the NICs inside exactly their addresses, and brings them and the loopback up.
fn address_nics(inner: &mut Socket, setup: &NetworkSetup, doing: impl Fn() -> String) -> Result<()> {
    let by_name: BTreeMap<String, Link> = links(inner)?.into_iter().map(|link| (link.name.clone(), link)).collect();
    let mut changes: Vec<Message> = by_name.get("lo").map(|lo| wire::set_up(lo.index)).into_iter().collect();
    let mut held = all_addresses(inner)?;
    for (nic, _) in &setup.nics {
        let link = by_name.get(&nic.interface).ok_or_else(|| Error::Missing(format!("NIC `{}`", nic.interface)))?;
        let mut held = held.remove(&link.index).unwrap_or_default();
        if nic.addresses6.is_empty() {
            // What the kernel gives itself where nobody told it not to; nothing leaves from it.
            held.retain(|net| !is_link_local(net));
        }
        let wanted: BTreeSet<IpNet> = nic.addresses().chain(nic.link_local().map(IpNet::V6)).collect();
        changes.extend(held.difference(&wanted).map(|net| wire::delete_address(link.index, *net)));
        changes.extend(wanted.difference(&held).map(|net| wire::add_address(link.index, *net)));
        changes.push(wire::set_up(link.index));
    }
    carry_out(inner, changes, doing)
}

/// Makes our routes inside exactly those of `setup`; routes a tenant added are left alone.
fn route(inner: &mut Socket, setup: &NetworkSetup, doing: impl Fn() -> String) -> Result<()> {
    let index_of: BTreeMap<String, u32> = links(inner)?.into_iter().map(|link| (link.name, link.index)).collect();
    let wanted = wanted_routes(setup, &index_of)?;
    let answer = inner.request(wire::get_routes()).map_err(|refusal| refusal.doing("list routes"))?;
    let held: BTreeSet<Route> = answer.iter().filter_map(|payload| wire::read_route(payload)).collect();
    let mut changes: Vec<Message> = held.difference(&wanted).map(wire::delete_route).collect();
    changes.extend(wanted.difference(&held).map(wire::add_route));
    carry_out(inner, changes, doing)
}

/// The default route goes through the primary NIC; the others through the NIC whose subnet has their next hop.
fn wanted_routes(setup: &NetworkSetup, index_of: &BTreeMap<String, u32>) -> Result<BTreeSet<Route>> {
    let out_of = |nic: &NicTarget| index_of.get(&nic.interface).copied().unwrap_or(0);
    let mut wanted = BTreeSet::new();
    for (nic, _) in setup.nics.iter().filter(|(nic, _)| nic.primary) {
        let v4 = nic.gateway.map(|via| (Ipv4Net::default().into(), via.into()));
        let v6 = nic.gateway6.map(|via| (Ipv6Net::default().into(), via.into()));
        wanted.extend(v4.into_iter().chain(v6).map(|(to, via)| Route { to, via, out: out_of(nic) }));
    }
    for (to, via) in &setup.routes {
        let nic = setup.nics.iter().map(|(nic, _)| nic).find(|nic| nic.addresses().any(|net| net.contains(via)));
        let nic = nic.ok_or_else(|| Error::Refused {
            what: format!("route to {to} via {via}"),
            why: "no NIC is on the next hop's subnet".to_owned(),
        })?;
        wanted.insert(Route { to: to.trunc(), via: *via, out: out_of(nic) });
    }
    Ok(wanted)
}

pub(super) fn is_link_local(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local())
}

/// An Ethernet address for a bridge that is the same after every boot: locally administered, from its name's checksum.
fn bridge_mac(name: &str) -> MacAddr {
    let sum = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let [_, _, _, a, b, c, d, e] = sum.to_be_bytes();
    MacAddr([0x02, a, b, c, d, e])
}

/// Sets what the kernel lets only `/proc` set: a bridge answers for its own address alone, believes no redirect, and has
/// no IPv6 or only what we give it. A fabric's has it without any address, or the kernel would keep no neighbours to answer for.
fn harden(bridge: &str, six: bool) -> Result<()> {
    let v4 = [
        // Answer ARP only for addresses of this very bridge.
        ("arp_ignore", "1"),
        // Take a packet only from where its answer would go.
        ("rp_filter", "1"),
        ("accept_redirects", "0"),
        ("send_redirects", "0"),
        ("route_localnet", "0"),
    ];
    for (name, value) in v4 {
        set_sysctl(&format!("net/ipv4/conf/{bridge}/{name}"), value)?;
    }
    let v6: &[(&str, &str)] = match six {
        // The order matters: no address may appear when IPv6 does.
        true => &[("addr_gen_mode", "1"), ("accept_ra", "0"), ("accept_redirects", "0"), ("disable_ipv6", "0")],
        false => &[("disable_ipv6", "1")],
    };
    for (name, value) in v6 {
        match set_sysctl(&format!("net/ipv6/conf/{bridge}/{name}"), value) {
            // A kernel without IPv6 has none to disable.
            Err(Error::Os { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// Whether a kernel parameter of the calling thread's network namespace has a value.
pub(super) fn sysctl_is(path: &str, value: &str) -> Result<bool> {
    let full = format!("/proc/sys/{path}");
    let held = fs::read_to_string(&full).map_err(|source| Error::os(format!("read `{full}`"), source))?;
    Ok(held.trim() == value)
}

/// Sets a kernel parameter of the calling thread's network namespace, unless it has the value already.
pub(super) fn set_sysctl(path: &str, value: &str) -> Result<()> {
    let full = format!("/proc/sys/{path}");
    if sysctl_is(path, value)? {
        return Ok(());
    }
    fs::write(&full, value).map_err(|source| Error::os(format!("set `{full}` to {value}"), source))
}
