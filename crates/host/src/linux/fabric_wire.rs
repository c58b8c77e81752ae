//! VXLAN devices, forwarding entries and neighbours as rtnetlink messages, and back.
//!
//! Numbers are those of the kernel's `if_link.h` and `neighbour.h`.

use std::{net::IpAddr, os::fd::RawFd};

use model::id::MacAddr;

use super::{
    link_wire::Tunnel,
    netlink::{Message, attrs, flag, number_of},
};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;

const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_TTL: u16 = 5;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_BRPORT_GUARD: u16 = 5;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_MCAST_FLOOD: u16 = 27;
const IFLA_BRPORT_BCAST_FLOOD: u16 = 30;
const IFLA_BRPORT_NEIGH_SUPPRESS: u16 = 32;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFF_UP: u32 = 1;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_IFINDEX: u16 = 8;
const NUD_REACHABLE: u16 = 0x02;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;
const NTF_MASTER: u8 = 4;

/// Hops an outer packet may take.
const TTL: u8 = 64;

/// Makes a VXLAN device as a port of a bridge: it learns nothing.
pub(super) fn new_vxlan(name: &str, tunnel: Tunnel, bridge: u32, mtu: u32) -> Message {
    Message::new(RTM_NEWLINK, flag::CREATE | flag::EXCL, &[0; 16])
        .text(IFLA_IFNAME, name)
        .attr(IFLA_MTU, &mtu.to_ne_bytes())
        .attr(IFLA_MASTER, &bridge.to_ne_bytes())
        .nest(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, &[], |data| described(data, tunnel))
        })
}

/// Makes a VXLAN device in a network namespace, which sends and hears from this one: it learns nothing.
pub(super) fn new_inner_vxlan(name: &str, tunnel: Tunnel, netns: RawFd, mac: MacAddr) -> Message {
    Message::new(RTM_NEWLINK, flag::CREATE | flag::EXCL, &[0; 16])
        .text(IFLA_IFNAME, name)
        .attr(IFLA_ADDRESS, &mac.0)
        .attr(IFLA_NET_NS_FD, &netns.to_ne_bytes())
        .nest(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, &[], |data| described(data, tunnel))
        })
}

fn described(data: Message, tunnel: Tunnel) -> Message {
    let data = match tunnel.local {
        IpAddr::V4(local) => data.attr(IFLA_VXLAN_LOCAL, &local.octets()),
        IpAddr::V6(local) => data.attr(IFLA_VXLAN_LOCAL6, &local.octets()),
    };
    data.attr(IFLA_VXLAN_ID, &tunnel.vni.to_ne_bytes())
        .attr(IFLA_VXLAN_TTL, &[TTL])
        .attr(IFLA_VXLAN_LEARNING, &[0])
        .attr(IFLA_VXLAN_PORT, &tunnel.port.to_be_bytes())
}

/// Makes a VXLAN device a port that learns nothing, is flooded with nothing, and whose addresses the bridge answers for; up.
pub(super) fn dress_vxlan(name: &str) -> Message {
    let port = |data: Message| {
        data.attr(IFLA_BRPORT_LEARNING, &[0])
            .attr(IFLA_BRPORT_UNICAST_FLOOD, &[0])
            .attr(IFLA_BRPORT_MCAST_FLOOD, &[0])
            .attr(IFLA_BRPORT_BCAST_FLOOD, &[0])
            .attr(IFLA_BRPORT_NEIGH_SUPPRESS, &[1])
            .attr(IFLA_BRPORT_GUARD, &[1])
            .attr(IFLA_BRPORT_ISOLATED, &[0])
    };
    dress(name, port)
}

/// Makes a router's host end a port that learns nothing and is flooded with no unicast; up.
pub(super) fn dress_router(name: &str) -> Message {
    dress(name, |data| {
        data.attr(IFLA_BRPORT_LEARNING, &[0]).attr(IFLA_BRPORT_UNICAST_FLOOD, &[0]).attr(IFLA_BRPORT_GUARD, &[1])
    })
}

fn dress(name: &str, port: impl FnOnce(Message) -> Message) -> Message {
    let mut header = [0; 16];
    header[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
    header[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    Message::new(RTM_NEWLINK, 0, &header)
        .text(IFLA_IFNAME, name)
        .nest(IFLA_AF_SPEC, &[], |families| {
            families.nest(u16::from(AF_INET6), &[], |v6| v6.attr(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]))
        })
        .nest(IFLA_LINKINFO, &[], |info| {
            info.text(IFLA_INFO_SLAVE_KIND, "bridge").nest(IFLA_INFO_SLAVE_DATA, &[], port)
        })
}

fn neighbour(kind: u16, flags: u16, family: u8, link: u32, state: u16, marks: u8) -> Message {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = marks;
    Message::new(kind, flags, &header)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

const fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

/// Says behind which machine an Ethernet address is, to the VXLAN device and to its bridge.
pub(super) fn add_remote(vxlan: u32, mac: MacAddr, machine: IpAddr) -> Message {
    let flags = flag::CREATE | flag::REPLACE;
    neighbour(RTM_NEWNEIGH, flags, AF_BRIDGE, vxlan, NUD_NOARP | NUD_REACHABLE, NTF_SELF | NTF_MASTER)
        .attr(NDA_LLADDR, &mac.0)
        .attr(NDA_DST, &octets(machine))
}

/// Says behind which machine an Ethernet address is, to a VXLAN device without a bridge.
pub(super) fn add_lone_remote(vxlan: u32, mac: MacAddr, machine: IpAddr) -> Message {
    let flags = flag::CREATE | flag::REPLACE;
    neighbour(RTM_NEWNEIGH, flags, AF_BRIDGE, vxlan, NUD_NOARP | NUD_REACHABLE, NTF_SELF)
        .attr(NDA_LLADDR, &mac.0)
        .attr(NDA_DST, &octets(machine))
}

/// Takes back what [`add_lone_remote`] said.
pub(super) fn delete_lone_remote(vxlan: u32, mac: MacAddr) -> Message {
    neighbour(RTM_DELNEIGH, 0, AF_BRIDGE, vxlan, 0, NTF_SELF).attr(NDA_LLADDR, &mac.0)
}

/// Takes back what [`add_remote`] said, from the device and from the bridge.
pub(super) fn delete_remote(vxlan: u32, mac: MacAddr) -> [Message; 2] {
    [NTF_SELF, NTF_MASTER].map(|mark| neighbour(RTM_DELNEIGH, 0, AF_BRIDGE, vxlan, 0, mark).attr(NDA_LLADDR, &mac.0))
}

/// Says whose Ethernet address an address is, for the bridge to answer with.
pub(super) fn add_neighbour(bridge: u32, address: IpAddr, mac: MacAddr) -> Message {
    let flags = flag::CREATE | flag::REPLACE;
    neighbour(RTM_NEWNEIGH, flags, family(address), bridge, NUD_PERMANENT, 0)
        .attr(NDA_DST, &octets(address))
        .attr(NDA_LLADDR, &mac.0)
}

/// Takes back what [`add_neighbour`] said.
pub(super) fn delete_neighbour(bridge: u32, address: IpAddr) -> Message {
    neighbour(RTM_DELNEIGH, 0, family(address), bridge, 0, 0).attr(NDA_DST, &octets(address))
}

/// Asks for the entries of a VXLAN device and those of its bridge that lead to it.
pub(super) fn get_remotes(vxlan: u32) -> Message {
    // As a link's header and not a neighbour's, or the kernel would not filter.
    let mut header = [0; 16];
    header[0] = AF_BRIDGE;
    header[4..8].copy_from_slice(&vxlan.to_ne_bytes());
    Message::new(RTM_GETNEIGH, flag::DUMP, &header)
}

/// Asks for the neighbours of both families on a bridge.
pub(super) fn get_neighbours(bridge: u32) -> [Message; 2] {
    [AF_INET, AF_INET6]
        .map(|family| neighbour(RTM_GETNEIGH, flag::DUMP, family, 0, 0, 0).attr(NDA_IFINDEX, &bridge.to_ne_bytes()))
}

/// One entry of an answer to [`get_remotes`] or [`get_neighbours`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) link: u32,
    pub(super) mac: MacAddr,
    /// The machine, or the address; `None` for an entry of a bridge.
    pub(super) to: Option<IpAddr>,
    pub(super) permanent: bool,
    /// Of the VXLAN device and not of its bridge.
    pub(super) of_device: bool,
}

/// Reads an entry; `None` for one without an Ethernet address.
pub(super) fn read_entry(payload: &[u8]) -> Option<Entry> {
    let header = payload.get(..12)?;
    let find = |wanted: u16| attrs(&payload[12..]).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let address = |value: &[u8]| -> Option<IpAddr> {
        <[u8; 4]>::try_from(value).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
    };
    Some(Entry {
        link: number_of(&header[4..]),
        mac: MacAddr(find(NDA_LLADDR)?.try_into().ok()?),
        to: find(NDA_DST).and_then(address),
        permanent: u16::from_ne_bytes([header[8], header[9]]) & NUD_PERMANENT != 0,
        of_device: header[10] & NTF_SELF != 0,
    })
}
