//! Links, addresses, routes and bridge entries as rtnetlink messages, and back.
//!
//! Numbers are those of the kernel's `linux/rtnetlink.h`, `if_link.h`, `if_addr.h` and `neighbour.h`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::RawFd,
};

use ipnet::IpNet;
use model::id::MacAddr;

use super::netlink::{Message, attrs, flag, number_of, text_of};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const VETH_INFO_PEER: u16 = 1;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BR_STP_STATE: u16 = 5;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const IFLA_BR_NF_CALL_IPTABLES: u16 = 36;
const IFLA_BR_NF_CALL_IP6TABLES: u16 = 37;
const IFLA_BRPORT_GUARD: u16 = 5;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFF_UP: u32 = 1;
/// Leaves the statistics out of answers: most of their bytes.
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// Use an address at once, without asking whether somebody else has it: the control plane gives each out once.
const IFA_F_NODAD: u8 = 2;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;
/// Marks routes as ours, so that those a tenant adds are left alone: an `N`, far from the numbers in use.
const RTPROT_OURS: u8 = 78;

const NDA_LLADDR: u16 = 2;
const NUD_NOARP: u16 = 0x40;
const NTF_MASTER: u8 = 4;

/// A link as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Option<MacAddr>,
    pub(super) mtu: u32,
    pub(super) kind: String,
    pub(super) alias: String,
    pub(super) master: u32,
    /// Index of the other end, in the namespace where that is.
    pub(super) peer: u32,
    pub(super) up: bool,
    /// What a VXLAN device with an address of its own carries.
    pub(super) vxlan: Option<Tunnel>,
}

/// What tells one VXLAN device from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tunnel {
    pub(super) vni: u32,
    /// Own address.
    pub(super) local: IpAddr,
    /// UDP port.
    pub(super) port: u16,
}

/// A route of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    pub(super) to: IpNet,
    pub(super) via: IpAddr,
    pub(super) out: u32,
}

/// A veth pair to make.
pub(super) struct NewNic<'a> {
    pub(super) host_name: &'a str,
    pub(super) bridge: u32,
    pub(super) netns: RawFd,
    pub(super) inner_name: &'a str,
    pub(super) mac: MacAddr,
    pub(super) mtu: u32,
}

fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// Asks for every link.
pub(super) fn get_links() -> Message {
    Message::new(RTM_GETLINK, flag::DUMP, &link_header(0, 0, 0))
        .attr(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes())
}

/// Asks for one link by name.
pub(super) fn get_link(name: &str) -> Message {
    Message::new(RTM_GETLINK, 0, &link_header(0, 0, 0)).text(IFLA_IFNAME, name)
}

/// Asks for one link by index.
pub(super) fn get_link_at(index: u32) -> Message {
    Message::new(RTM_GETLINK, 0, &link_header(index, 0, 0))
}

/// Deletes a link.
pub(super) fn delete_link(index: u32) -> Message {
    Message::new(RTM_DELLINK, 0, &link_header(index, 0, 0))
}

/// Deletes a link by name.
pub(super) fn delete_link_named(name: &str) -> Message {
    Message::new(RTM_DELLINK, 0, &link_header(0, 0, 0)).text(IFLA_IFNAME, name)
}

/// Brings a link up.
pub(super) fn set_up(index: u32) -> Message {
    Message::new(RTM_NEWLINK, 0, &link_header(index, IFF_UP, IFF_UP))
}

/// Changes the MTU of a link.
pub(super) fn set_mtu(index: u32, mtu: u32) -> Message {
    Message::new(RTM_NEWLINK, 0, &link_header(index, 0, 0)).attr(IFLA_MTU, &mtu.to_ne_bytes())
}

/// Makes a bridge: no spanning tree, no multicast snooping, and an address of its own, since it would otherwise take
/// the lowest of its ports' and change it as they come and go.
pub(super) fn new_bridge(name: &str, mac: MacAddr, mtu: u32) -> Message {
    Message::new(RTM_NEWLINK, flag::CREATE | flag::EXCL, &link_header(0, 0, 0))
        .text(IFLA_IFNAME, name)
        .attr(IFLA_ADDRESS, &mac.0)
        .attr(IFLA_MTU, &mtu.to_ne_bytes())
        .nest(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "bridge").nest(IFLA_INFO_DATA, &[], |data| {
                data.attr(IFLA_BR_FORWARD_DELAY, &0_u32.to_ne_bytes())
                    .attr(IFLA_BR_STP_STATE, &0_u32.to_ne_bytes())
                    .attr(IFLA_BR_MCAST_SNOOPING, &[0])
            })
        })
}

/// Lets the frames of a bridge pass the IP hooks of the packet filter, or not.
pub(super) fn set_bridge_calls(index: u32, on: bool) -> Message {
    Message::new(RTM_NEWLINK, 0, &link_header(index, 0, 0)).nest(IFLA_LINKINFO, &[], |info| {
        info.text(IFLA_INFO_KIND, "bridge").nest(IFLA_INFO_DATA, &[], |data| {
            data.attr(IFLA_BR_NF_CALL_IPTABLES, &[u8::from(on)]).attr(IFLA_BR_NF_CALL_IP6TABLES, &[u8::from(on)])
        })
    })
}

/// Makes a NIC: the host's end a port of its bridge, the other end in the zone's namespace, both down (the kernel cannot
/// bring up an end that is not yet one of a pair).
pub(super) fn new_nic(nic: &NewNic<'_>) -> Message {
    Message::new(RTM_NEWLINK, flag::CREATE | flag::EXCL, &link_header(0, 0, 0))
        .text(IFLA_IFNAME, nic.host_name)
        .attr(IFLA_MTU, &nic.mtu.to_ne_bytes())
        .attr(IFLA_MASTER, &nic.bridge.to_ne_bytes())
        .nest(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, &[], |data| {
                data.nest(VETH_INFO_PEER, &link_header(0, 0, 0), |peer| {
                    peer.text(IFLA_IFNAME, nic.inner_name)
                        .attr(IFLA_ADDRESS, &nic.mac.0)
                        .attr(IFLA_MTU, &nic.mtu.to_ne_bytes())
                        .attr(IFLA_NET_NS_FD, &nic.netns.to_ne_bytes())
                })
            })
        })
}

/// Makes a host's end a port that learns nothing, is flooded with nothing and tolerates no spanning tree, says whose it
/// is, and keeps IPv6 from giving it an address.
pub(super) fn dress_port(name: &str, alias: &str) -> Message {
    let message = Message::new(RTM_NEWLINK, 0, &link_header(0, 0, 0)).text(IFLA_IFNAME, name);
    without_ipv6(message.text(IFLA_IFALIAS, alias)).nest(IFLA_LINKINFO, &[], |info| {
        info.text(IFLA_INFO_SLAVE_KIND, "bridge").nest(IFLA_INFO_SLAVE_DATA, &[], |data| {
            data.attr(IFLA_BRPORT_GUARD, &[1]).attr(IFLA_BRPORT_LEARNING, &[0]).attr(IFLA_BRPORT_UNICAST_FLOOD, &[0])
        })
    })
}

/// Says what a link is for.
pub(super) fn set_alias(index: u32, alias: &str) -> Message {
    Message::new(RTM_NEWLINK, 0, &link_header(index, 0, 0)).text(IFLA_IFALIAS, alias)
}

/// Moves a port to another bridge.
pub(super) fn set_master(index: u32, bridge: u32) -> Message {
    Message::new(RTM_NEWLINK, 0, &link_header(index, 0, 0)).attr(IFLA_MASTER, &bridge.to_ne_bytes())
}

fn without_ipv6(message: Message) -> Message {
    message.nest(IFLA_AF_SPEC, &[], |families| {
        families.nest(u16::from(AF_INET6), &[], |v6| v6.attr(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]))
    })
}

/// Tells a bridge behind which port an Ethernet address is.
pub(super) fn set_place(port: u32, mac: MacAddr) -> Message {
    let mut header = [0; 12];
    header[0] = AF_BRIDGE;
    header[4..8].copy_from_slice(&port.to_ne_bytes());
    header[8..10].copy_from_slice(&NUD_NOARP.to_ne_bytes());
    header[10] = NTF_MASTER;
    Message::new(RTM_NEWNEIGH, flag::CREATE | flag::REPLACE, &header).attr(NDA_LLADDR, &mac.0)
}

/// Asks for every address of either family.
pub(super) fn get_addresses() -> Message {
    Message::new(RTM_GETADDR, flag::DUMP, &[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0])
}

fn address(kind: u16, flags: u16, link: u32, address: IpNet) -> Message {
    let marks = if address.addr().is_ipv6() { IFA_F_NODAD } else { 0 };
    let mut header = [family(address.addr()), address.prefix_len(), marks, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    let octets = octets(address.addr());
    let message = Message::new(kind, flags, &header).attr(IFA_LOCAL, &octets).attr(IFA_ADDRESS, &octets);
    match address {
        IpNet::V4(net) if net.prefix_len() <= 30 => message.attr(IFA_BROADCAST, &net.broadcast().octets()),
        _ => message,
    }
}

const fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Adds an address to a link; one that is there is left.
pub(super) fn add_address(link: u32, net: IpNet) -> Message {
    address(RTM_NEWADDR, flag::CREATE | flag::REPLACE, link, net)
}

/// Takes an address from a link.
pub(super) fn delete_address(link: u32, net: IpNet) -> Message {
    address(RTM_DELADDR, 0, link, net)
}

/// Asks for every route of either family.
pub(super) fn get_routes() -> Message {
    Message::new(RTM_GETROUTE, flag::DUMP, &[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

fn route(kind: u16, flags: u16, route: &Route) -> Message {
    let scope_universe = 0;
    let family = family(route.via);
    let header =
        [family, route.to.prefix_len(), 0, 0, RT_TABLE_MAIN, RTPROT_OURS, scope_universe, RTN_UNICAST, 0, 0, 0, 0];
    let mut message = Message::new(kind, flags, &header);
    if route.to.prefix_len() > 0 {
        message = message.attr(RTA_DST, &octets(route.to.network()));
    }
    message.attr(RTA_GATEWAY, &octets(route.via)).attr(RTA_OIF, &route.out.to_ne_bytes())
}

/// Adds a route, or changes the one to the same destination.
pub(super) fn add_route(wanted: &Route) -> Message {
    route(RTM_NEWROUTE, flag::CREATE | flag::REPLACE, wanted)
}

/// Deletes a route.
pub(super) fn delete_route(gone: &Route) -> Message {
    route(RTM_DELROUTE, 0, gone)
}

/// Reads an answer to [`get_links`] or [`get_link`].
pub(super) fn read_link(payload: &[u8]) -> Option<Link> {
    let header = payload.get(..16)?;
    let mut link =
        Link { index: number_of(&header[4..]), up: number_of(&header[8..]) & IFF_UP != 0, ..Link::default() };
    for (kind, value) in attrs(&payload[16..]) {
        match kind {
            IFLA_IFNAME => link.name = text_of(value),
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(MacAddr),
            IFLA_MTU => link.mtu = number_of(value),
            IFLA_MASTER => link.master = number_of(value),
            IFLA_LINK => link.peer = number_of(value),
            IFLA_IFALIAS => link.alias = text_of(value),
            IFLA_LINKINFO => {
                let find = |wanted: u16| attrs(value).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
                link.kind = find(IFLA_INFO_KIND).map(text_of).unwrap_or_default();
                link.vxlan = find(IFLA_INFO_DATA).filter(|_| link.kind == "vxlan").and_then(read_vxlan);
            }
            _ => {}
        }
    }
    Some(link)
}

fn read_vxlan(data: &[u8]) -> Option<Tunnel> {
    let (mut vni, mut local, mut port) = (0, None, 0);
    for (kind, value) in attrs(data) {
        match kind {
            IFLA_VXLAN_ID => vni = number_of(value),
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => local = read_ip(value),
            IFLA_VXLAN_PORT => port = <[u8; 2]>::try_from(value).map_or(0, u16::from_be_bytes),
            _ => {}
        }
    }
    local.map(|local| Tunnel { vni, local, port })
}

/// Reads an answer to [`get_addresses`]: the link and the address.
pub(super) fn read_address(payload: &[u8]) -> Option<(u32, IpNet)> {
    let header = payload.get(..8)?;
    // In IPv4 the other one is that of a peer; IPv6 has no more than it, peers aside.
    let kind = match header[0] {
        AF_INET => IFA_LOCAL,
        AF_INET6 => IFA_ADDRESS,
        _ => return None,
    };
    let (_, own) = attrs(&payload[8..]).find(|(found, _)| *found == kind)?;
    Some((number_of(&header[4..]), IpNet::new(read_ip(own)?, header[1]).ok()?))
}

fn read_ip(value: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(value).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

/// Reads an answer to [`get_routes`]; `None` for routes that are not ours.
pub(super) fn read_route(payload: &[u8]) -> Option<Route> {
    let header = payload.get(..12)?;
    if header[4] != RT_TABLE_MAIN || header[5] != RTPROT_OURS {
        return None;
    }
    let find = |wanted: u16| attrs(&payload[12..]).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let anywhere = match header[0] {
        AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let to = find(RTA_DST).and_then(read_ip).unwrap_or(anywhere);
    Some(Route {
        to: IpNet::new(to, header[1]).ok()?,
        via: find(RTA_GATEWAY).and_then(read_ip)?,
        out: find(RTA_OIF).map_or(0, number_of),
    })
}
