//! Routers: one network namespace per tenant with routed or translated networks on this machine.
//!
//! ```text
//!   bridge nb-x<vni> ── ng<vni> │ f<vni>  gateway's addresses ─► forward ─► transit │ nt-<slot> ── host ── outside
//!                               └──────── namespace /run/netns/neso-<prefix>-<account> ┘
//! ```
//! Translation happens twice: the router hides the tenant's addresses, which may be equal to another's, behind its own transit
//! address, and the host hides that behind the address it has towards the outside. Between a tenant's own routed networks
//! each machine routes what its own instances send, so answers may come through another machine's router: nothing of that is
//! tracked.
//!
//! The namespace is bound to a file, so that it outlives the agent, and `ip netns exec` finds it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    thread,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::{
    id::{AccountId, MacAddr},
    target::{FabricTarget, LINK_LOCAL_BITS, NetworkTarget},
};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::socket::SockProtocol,
};

use super::{
    fabric::Rules,
    fabric_wire as fabric,
    filter_rules::METADATA6,
    forwarding,
    link::{addresses, carry_out, inside_of, is_link_local, links, one_link, open, set_sysctl, tolerate},
    link_wire::{self as wire, Link, NewNic, Route},
    netlink::Socket,
    rules_kept::{self, Loaded, Table},
};
use crate::{
    error::{Error, Result},
    fabric::{FabricSet, gateway_mac},
    link::LinkNames,
};

/// Where namespaces with names live, as `ip netns` has it.
pub(super) const NAMESPACES: &str = "/run/netns";

/// Connections a tenant may have to the outside at once from one machine: a quarter of what the kernel tracks by default, so that
/// no tenant can use up the table.
const CONNECTIONS_MAX: u32 = 65_536;

/// Routers on one machine at most: transit addresses are pairs out of [`TRANSIT`].
const SLOTS: u16 = 32_768;

/// Addresses between the host and its routers; seen by nobody else.
const TRANSIT: [u8; 2] = [100, 127];

/// The same in IPv6, for routers of tenants who have any: the first 64 bits.
const TRANSIT6: [u16; 4] = [0xfd4e, 0x6573, 0x6f74, 0];

/// Name of the way out, inside.
const OUT: &str = "transit";

/// Largest packet towards the outside, bytes.
const OUT_MTU: u32 = 1500;

/// Makes the machine's routers equal to those of `wanted`. `there` are the links of the host as they were before.
pub(super) fn program(names: &LinkNames, wanted: &FabricSet, there: &[Link], rules: &mut Rules) -> Result<()> {
    let mut host = open()?;
    let mut slots: BTreeMap<AccountId, u16> = BTreeMap::new();
    let ports: BTreeSet<u32> = wanted.routers.values().flatten().filter_map(vni_of).collect();
    for link in there {
        let slot = names.slot_of_transit(&link.name);
        let owner = link.alias.strip_prefix(ALIAS).and_then(|owner| owner.parse::<AccountId>().ok());
        let stray = match (slot, owner.filter(|owner| wanted.routers.contains_key(owner))) {
            (Some(slot), Some(owner)) => slots.insert(owner, slot).is_some(),
            (Some(_), None) => true,
            (None, _) => names.vni_of_router(&link.name).is_some_and(|vni| !ports.contains(&vni)),
        };
        if stray {
            tolerate(host.request(wire::delete_link(link.index)), Errno::ENODEV)
                .map_err(|refusal| refusal.doing(format!("delete router's link `{}`", link.name)))?;
        }
    }
    remove_strangers(names, wanted)?;
    rules.routers.retain(|owner, _| wanted.routers.contains_key(owner));
    let table = host_table(names);
    if wanted.routers.is_empty() {
        return rules_kept::remove(&table, &mut rules.transit);
    }
    set_sysctl("net/ipv4/ip_forward", "1")?;
    if wanted.routers.values().any(|networks| has_six(networks)) {
        forwarding::enable6()?;
    }
    Table { name: &table, sets: &[], text: host_rules(names) }.keep(&mut rules.transit)?;
    for (owner, networks) in &wanted.routers {
        let taken: BTreeSet<u16> = slots.values().copied().collect();
        let slot = match slots.get(owner) {
            Some(slot) => *slot,
            None => (0..SLOTS).find(|slot| !taken.contains(slot)).ok_or_else(|| Error::Refused {
                what: format!("router of {owner}"),
                why: format!("a machine has at most {SLOTS}"),
            })?,
        };
        slots.insert(*owner, slot);
        let path = make(names, &mut host, *owner, slot, networks)?;
        let mut held = rules.routers.remove(owner);
        keep_rules(&path, networks, &mut held)?;
        rules.routers.extend(held.map(|held| (*owner, held)));
    }
    Ok(())
}

/// Whether a router of these networks has to do with IPv6.
fn has_six(networks: &[NetworkTarget]) -> bool {
    networks.iter().any(|network| network.gateway6.is_some())
}

fn vni_of(network: &NetworkTarget) -> Option<u32> {
    network.fabric.as_ref().map(|fabric| fabric.vni)
}

/// What the alias of every transit link starts with, before the owner's id.
const ALIAS: &str = "neso router ";

/// Makes a router's namespace and what it has there; returns where it is bound.
fn make(
    names: &LinkNames,
    host: &mut Socket,
    owner: AccountId,
    slot: u16,
    networks: &[NetworkTarget],
) -> Result<PathBuf> {
    let doing = || format!("make the router of {owner}");
    let path = ensure_namespace(&namespace(names, owner))?;
    let netns = File::open(&path)
        .map_err(|source| Error::os(format!("open network namespace `{}`", path.display()), source))?;
    let mut inner = Socket::open_in(&netns, SockProtocol::NetlinkRoute)
        .map_err(|source| Error::os(format!("enter network namespace `{}`", path.display()), source))?;
    let six = has_six(networks);
    let [outer, inside] = transit(slot, six);
    inside_of(&netns, || {
        let v6 = if six { &SYSCTLS6[..] } else { &[] };
        SYSCTLS.iter().chain(v6).try_for_each(|(path, value)| set_sysctl(path, value))
    })?;

    let way_out = NewNic {
        host_name: &names.transit(slot),
        bridge: 0,
        netns: netns.as_raw_fd(),
        inner_name: OUT,
        mac: transit_mac(slot),
        mtu: OUT_MTU,
    };
    let link = ensure_pair(host, &mut inner, &way_out, &doing)?;
    carry_out(host, vec![wire::set_alias(link.index, &format!("{ALIAS}{owner}"))], doing)?;
    set_sysctl(&format!("net/ipv4/conf/{}/rp_filter", link.name), "1")?;
    if six {
        // Its link-local address is ours to give, so that it is good from the first packet.
        set_sysctl(&format!("net/ipv6/conf/{}/addr_gen_mode", link.name), "1")?;
    }
    let outer = with_link_local(&outer, link.mac.filter(|_| six));
    let held = addresses(host, link.index)?;
    let mut changes = vec![wire::set_up(link.index)];
    let gone = held.difference(&outer).filter(|net| !is_link_local(net));
    changes.extend(gone.map(|net| wire::delete_address(link.index, *net)));
    changes.extend(outer.difference(&held).map(|net| wire::add_address(link.index, *net)));
    carry_out(host, changes, doing)?;

    let inside = with_link_local(&inside, six.then(|| transit_mac(slot)));
    let mut wanted: BTreeMap<String, BTreeSet<IpNet>> = [(OUT.to_owned(), inside)].into();
    for network in networks {
        let Some(vni) = vni_of(network) else { continue };
        let name = names.bridge(network);
        let bridge = one_link(host, &name)?.ok_or_else(|| Error::Missing(format!("bridge `{name}`")))?;
        let port = NewNic {
            host_name: &names.router_port(vni),
            bridge: bridge.index,
            netns: netns.as_raw_fd(),
            inner_name: &port_inside(vni),
            mac: gateway_mac(vni),
            mtu: u32::from(network.mtu),
        };
        let link = ensure_pair(host, &mut inner, &port, &doing)?;
        let mut changes = Vec::new();
        if link.master != bridge.index {
            changes.push(wire::set_master(link.index, bridge.index));
        }
        changes.extend([fabric::dress_router(&link.name), wire::set_place(link.index, gateway_mac(vni))]);
        carry_out(host, changes, doing)?;
        let held = wanted.entry(port_inside(vni)).or_default();
        held.extend(gateways(network, vni));
    }
    address(&mut inner, &wanted, &outer, &doing)?;
    Ok(path)
}

/// Makes what a router lets through what its networks say.
fn keep_rules(path: &Path, networks: &[NetworkTarget], held: &mut Option<Loaded>) -> Result<()> {
    let netns =
        File::open(path).map_err(|source| Error::os(format!("open network namespace `{}`", path.display()), source))?;
    let sets = ["translated", "routed", "routed_subnet", "translated6", "routed6", "routed_subnet6"];
    let table = Table { name: "router", sets: &sets, text: router_rules(networks) };
    inside_of(&netns, || table.keep(held))
}

/// Addresses of a router on a network.
fn gateways(network: &NetworkTarget, vni: u32) -> BTreeSet<IpNet> {
    let v4 = network.gateway.zip(network.subnet);
    let v4 = v4.and_then(|(ip, subnet)| IpNet::new(ip.into(), subnet.prefix_len()).ok());
    let v6 = network.gateway6.zip(network.subnet6);
    let v6 = v6.and_then(|(ip, subnet)| IpNet::new(ip.into(), subnet.prefix_len()).ok());
    let both: Vec<IpNet> = v4.into_iter().chain(v6).collect();
    with_link_local(&both, v6.map(|_| gateway_mac(vni)))
}

/// Addresses of an interface with the link-local one of its Ethernet address: without it the kernel would ask nobody for his
/// Ethernet address on behalf of packets it only forwards.
fn with_link_local(nets: &[IpNet], mac: Option<MacAddr>) -> BTreeSet<IpNet> {
    let local = mac.and_then(|mac| IpNet::new(mac.link_local().into(), LINK_LOCAL_BITS).ok());
    nets.iter().copied().chain(local).collect()
}

/// What a router's namespace needs of the kernel.
const SYSCTLS: [(&str, &str); 4] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
];

/// The same where the tenant has IPv6. For new interfaces they have to be set before there are any.
const SYSCTLS6: [(&str, &str); 4] = [
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/all/accept_redirects", "0"),
    ("net/ipv6/conf/all/forwarding", "1"),
];

/// Makes a pair with one end in the router, unless both ends are there; returns the host's end.
fn ensure_pair(host: &mut Socket, inner: &mut Socket, pair: &NewNic<'_>, doing: &impl Fn() -> String) -> Result<Link> {
    if let Some(found) = one_link(host, pair.host_name)? {
        let other = one_link(inner, pair.inner_name)?;
        if other.is_some_and(|other| other.peer == found.index && found.peer == other.index && other.mtu == pair.mtu) {
            return Ok(found);
        }
        tolerate(host.request(wire::delete_link(found.index)), Errno::ENODEV)
            .map_err(|refusal| refusal.doing(doing()))?;
    }
    carry_out(host, vec![wire::new_nic(pair)], doing)?;
    one_link(host, pair.host_name)?.ok_or_else(|| Error::Missing(format!("router's link `{}`", pair.host_name)))
}

/// Gives the router exactly these addresses, and its way out over those of `next_hops` that may lead there.
fn address(
    inner: &mut Socket,
    wanted: &BTreeMap<String, BTreeSet<IpNet>>,
    next_hops: &BTreeSet<IpNet>,
    doing: &impl Fn() -> String,
) -> Result<()> {
    let mut changes = Vec::new();
    let mut out = 0;
    for link in links(inner)? {
        if link.name == "lo" {
            changes.push(wire::set_up(link.index));
        }
        let Some(nets) = wanted.get(&link.name) else { continue };
        let held = addresses(inner, link.index)?;
        let gone = held.difference(nets).filter(|net| !is_link_local(net));
        changes.extend(gone.map(|net| wire::delete_address(link.index, *net)));
        changes.extend(nets.difference(&held).map(|net| wire::add_address(link.index, *net)));
        changes.push(wire::set_up(link.index));
        if link.name == OUT {
            out = link.index;
        }
    }
    for next_hop in next_hops.iter().filter(|net| !is_link_local(net)) {
        let to = match next_hop {
            IpNet::V4(_) => Ipv4Net::default().into(),
            IpNet::V6(_) => Ipv6Net::default().into(),
        };
        changes.push(wire::add_route(&Route { to, via: next_hop.addr(), out }));
    }
    carry_out(inner, changes, doing)
}

/// Addresses of a slot: the host's and the router's.
fn transit(slot: u16, six: bool) -> [Vec<IpNet>; 2] {
    let ([a, b], [e, f, g, h]) = (TRANSIT, TRANSIT6);
    [0, 1].map(|end| {
        let number = slot * 2 + end;
        let [c, d] = number.to_be_bytes();
        let net = |address: IpAddr, length| IpNet::new(address, length).expect("its prefix length fits");
        let v6 = six.then(|| net(Ipv6Addr::new(e, f, g, h, 0, 0, 0, number).into(), 127));
        std::iter::once(net(Ipv4Addr::new(a, b, c, d).into(), 31)).chain(v6).collect()
    })
}

/// What the addresses of all slots lie in.
fn transit6() -> Ipv6Net {
    let [a, b, c, d] = TRANSIT6;
    Ipv6Net::new(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), 64).expect("64 is a prefix length")
}

fn transit_mac(slot: u16) -> MacAddr {
    let [a, b] = slot.to_be_bytes();
    MacAddr([0x02, 0x4e, 0x74, 0, a, b])
}

fn port_inside(vni: u32) -> String {
    format!("f{vni:06x}")
}

// === Namespaces ===

pub(super) fn namespace_prefix(names: &LinkNames) -> String {
    format!("neso-{}-", names.prefix())
}

fn namespace(names: &LinkNames, owner: AccountId) -> PathBuf {
    Path::new(NAMESPACES).join(format!("{}{owner}", namespace_prefix(names)))
}

/// Makes a namespace that is bound to `path`, unless there is one.
pub(super) fn ensure_namespace(path: &Path) -> Result<PathBuf> {
    let doing = |what: &str| format!("{what} `{}`", path.display());
    if let Ok(file) = File::open(path)
        && inside_of(&file, || Ok(())).is_ok()
    {
        return Ok(path.to_owned());
    }
    fs::create_dir_all(NAMESPACES).map_err(|source| Error::os(doing("make the directory of"), source))?;
    File::create(path).map_err(|source| Error::os(doing("make the file of network namespace"), source))?;
    thread::scope(|scope| {
        let making = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        making.join().unwrap_or(Err(Errno::EIO))
    })
    .map_err(|errno| Error::os(doing("make network namespace"), errno.into()))?;
    Ok(path.to_owned())
}

/// Removes the namespaces of routers that are not wanted.
fn remove_strangers(names: &LinkNames, wanted: &FabricSet) -> Result<()> {
    let Ok(found) = fs::read_dir(NAMESPACES) else { return Ok(()) };
    for entry in found.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(&namespace_prefix(names)));
        let Some(owner) = owner.and_then(|owner| owner.parse::<AccountId>().ok()) else { continue };
        if wanted.routers.contains_key(&owner) {
            continue;
        }
        remove_namespace(&entry.path())?;
    }
    Ok(())
}

/// Removes the namespace that is bound to `path`, if there is one, with all that is in it.
pub(super) fn remove_namespace(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // The file of a namespace that was never made, or not even that.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(Error::os(format!("unbind `{}`", path.display()), errno.into())),
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::os(format!("remove `{}`", path.display()), source))
        }
        _ => Ok(()),
    }
}

// === Rules ===

fn host_table(names: &LinkNames) -> String {
    format!("{}_transit", names.prefix())
}

/// Of the host a router reaches nothing; through it only the outside, as the host.
fn host_rules(names: &LinkNames) -> String {
    let (table, transit, ours) = (host_table(names), names.transit_prefix(), names.prefix());
    let ([a, b], six) = (TRANSIT, transit6());
    let mut text = rules_kept::removal(&table);
    let _ = write!(
        text,
        r#"table inet {table} {{
    chain input {{
        type filter hook input priority filter - 10; policy accept;
        iifname != "{transit}*" accept
        ct state established,related accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        drop
    }}
    chain forward {{
        type filter hook forward priority filter - 10; policy accept;
        oifname "{transit}*" ct state established,related accept
        oifname "{transit}*" drop
        iifname != "{transit}*" accept
        ip daddr 169.254.0.0/16 drop
        ip saddr != {a}.{b}.0.0/16 drop
        ip6 daddr {{ {METADATA6} }} drop
        ip6 saddr != {six} drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat - 10; policy accept;
        oifname "{ours}b-*" accept
        ip saddr {a}.{b}.0.0/16 masquerade
        ip6 saddr {six} masquerade
    }}
}}
"#
    );
    text
}

/// What a router lets through.
fn router_rules(networks: &[NetworkTarget]) -> String {
    let of = |wanted: fn(&FabricTarget) -> bool| {
        networks.iter().filter_map(move |network| network.fabric.as_ref().filter(|f| wanted(f)).map(|f| (network, f)))
    };
    let elements = |all: BTreeSet<String>| match all.is_empty() {
        true => String::new(),
        false => format!("elements = {{ {} }}", all.into_iter().collect::<Vec<_>>().join(", ")),
    };
    let with_port = |wanted, subnet: fn(&NetworkTarget) -> Option<IpNet>| {
        elements(
            of(wanted)
                .filter_map(|(network, fabric)| {
                    Some(format!("\"{}\" . {}", port_inside(fabric.vni), subnet(network)?.trunc()))
                })
                .collect(),
        )
    };
    let alone = |subnet: fn(&NetworkTarget) -> Option<IpNet>| {
        elements(of(is_routed).filter_map(|(network, _)| Some(subnet(network)?.trunc().to_string())).collect())
    };
    let (nat, nat6) = (with_port(is_translated, subnet4), with_port(is_translated, subnet6));
    let (routed, routed6) = (with_port(is_routed, subnet4), with_port(is_routed, subnet6));
    let (subnets, subnets6) = (alone(subnet4), alone(subnet6));
    let removal = rules_kept::removal("router");
    format!(
        r#"{removal}table inet router {{
    counter too_many {{ }}
    set translated {{ type ifname . ipv4_addr; flags interval; {nat} }}
    set routed {{ type ifname . ipv4_addr; flags interval; {routed} }}
    set routed_subnet {{ type ipv4_addr; flags interval; auto-merge; {subnets} }}
    set translated6 {{ type ifname . ipv6_addr; flags interval; {nat6} }}
    set routed6 {{ type ifname . ipv6_addr; flags interval; {routed6} }}
    set routed_subnet6 {{ type ipv6_addr; flags interval; auto-merge; {subnets6} }}
    chain untracked {{
        type filter hook prerouting priority raw; policy accept;
        iifname . ip saddr @routed ip daddr @routed_subnet notrack
        iifname . ip6 saddr @routed6 ip6 daddr @routed_subnet6 notrack
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        icmp type echo-request accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, echo-request }} accept
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        iifname . ip saddr @routed oifname . ip daddr @routed accept
        iifname . ip6 saddr @routed6 oifname . ip6 daddr @routed6 accept
        iifname "{OUT}" ct state established,related accept
        oifname != "{OUT}" drop
        ip daddr 169.254.0.0/16 drop
        ip6 daddr {{ {METADATA6} }} drop
        ct state invalid drop
        ct state established,related accept
        ct state new ct count over {CONNECTIONS_MAX} counter name too_many drop
        iifname . ip saddr @translated accept
        iifname . ip6 saddr @translated6 accept
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{OUT}" masquerade
    }}
}}
"#
    )
}

const fn is_translated(fabric: &FabricTarget) -> bool {
    fabric.internet_nat
}

const fn is_routed(fabric: &FabricTarget) -> bool {
    fabric.routed
}

fn subnet4(network: &NetworkTarget) -> Option<IpNet> {
    network.subnet.map(IpNet::V4)
}

fn subnet6(network: &NetworkTarget) -> Option<IpNet> {
    network.subnet6.map(IpNet::V6)
}
