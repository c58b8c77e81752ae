//! What a packet pays: datagrams from one zone to another over the machine's bridge, at the rate of one core.
//!
//! Frames are made beforehand and handed to a packet socket of the sender's NIC; the kernel carries each as far as the receiver's
//! NIC before the call returns, so the rate is that of the whole way. What arrives is read from the counter of the receiver's port: a
//! firewall that drops would show.

use std::{
    fs,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Instant,
};

use host::filter::Filters as _;
use model::id::{FirewallRuleId, MacAddr};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike as _, sendto, socket},
};

use super::{
    ground::{Ground, Zone},
    world::{World, record},
};
use crate::report::{Row, Section};

/// Datagrams of a round.
const DATAGRAMS: u32 = 20_000;
/// Rounds of each machine, taking turns.
const ROUNDS: u16 = 9;
/// Of the receiver.
const PORT: u16 = 4_321;

/// A machine under a flood.
struct Lane {
    name: String,
    ground: Ground,
    from: Zone,
    to: Zone,
    one_flow: Vec<f64>,
    new_flows: Vec<f64>,
}

pub(super) fn measure() -> Result<Vec<Section>, String> {
    let mut lanes = Vec::new();
    for (name, rules) in [("no firewall", None), ("1 rule", Some(0)), ("1,000 rules", Some(999))] {
        lanes.push(Lane::new(name, rules)?);
    }
    for round in 0..ROUNDS {
        for lane in &mut lanes {
            let one = lane.flood(|_| 50_000)?;
            lane.one_flow.push(one);
            // Ports no round before had, so that each frame begins a flow.
            let new = lane.flood(|number| 1_024 + round * 7_000 + u16::try_from(number % 7_000).unwrap_or(0))?;
            lane.new_flows.push(new);
        }
    }
    let rows = |pick: fn(&Lane) -> &Vec<f64>| {
        lanes
            .iter()
            .map(|lane| Row { name: lane.name.clone(), unit: "/s", samples: Ok(pick(lane).clone()) })
            .collect::<Vec<_>>()
    };
    Ok(vec![
        Section {
            about: format!("Packets a second through a bridge port, one flow, {DATAGRAMS} datagrams a round, machines in turn; with a firewall the receiver is one of {} filtered instances, and its rule the last of so many.", super::world::HERE + 1),
            rows: rows(|lane| &lane.one_flow),
        },
        Section {
            about: "The same where flows are short: 7,000 source ports a round, so that one packet in three is the first of its flow and walks the rules.".to_owned(),
            rows: rows(|lane| &lane.new_flows),
        },
    ])
}

impl Lane {
    fn new(name: &str, others: Option<u32>) -> Result<Self, String> {
        let mut ground = Ground::new()?;
        let (from, to) = (ground.zone(1)?, ground.zone(2)?);
        if let Some(others) = others {
            let mut world = World::new(others);
            let id = world.admit(to.mac, to.address);
            let text = format!("FROM subnet 10.88.0.0/16 TO vm {id} ALLOW udp PORT {PORT}");
            world.rules.push(record(FirewallRuleId::random(), None, &text));
            let firewall = world.firewall();
            ground.enter(|site| site.filters.apply_firewall(&firewall).map_err(|error| base::errors::chain(&error)))?;
        }
        Ok(Self { name: name.to_owned(), ground, from, to, one_flow: Vec::new(), new_flows: Vec::new() })
    }

    /// Datagrams a second that arrived, sent from the source port that `port` gives each.
    fn flood(&self, port: impl Fn(u32) -> u16) -> Result<f64, String> {
        let frames: Vec<Vec<u8>> = (0..DATAGRAMS).map(|number| self.frame(port(number))).collect();
        let before = self.arrived()?;
        let seconds = self.from.namespace.enter(|| {
            let (wire, eth0) = wire()?;
            let start = Instant::now();
            for frame in &frames {
                sendto(wire.as_raw_fd(), frame, &eth0, MsgFlags::empty())
                    .map_err(|errno| format!("cannot send a frame: {errno}"))?;
            }
            Ok(start.elapsed().as_secs_f64())
        })?;
        let arrived = self.arrived()? - before;
        if arrived < u64::from(DATAGRAMS) * 99 / 100 {
            return Err(format!("{}: {arrived} of {DATAGRAMS} datagrams arrived", self.name));
        }
        Ok(arrived as f64 / seconds)
    }

    /// Frames the machine has handed to the receiver's NIC.
    fn arrived(&self) -> Result<u64, String> {
        let devices = self.ground.enter(|_| {
            fs::read_to_string("/proc/thread-self/net/dev")
                .map_err(|error| format!("cannot read interface counters: {error}"))
        })?;
        let line = devices.lines().find_map(|line| line.trim().strip_prefix(&self.to.port)?.strip_prefix(':'));
        // After the name come eight columns of what was received.
        let sent = line.and_then(|line| line.split_whitespace().nth(9)?.parse().ok());
        sent.ok_or_else(|| format!("interface {} has no counter", self.to.port))
    }

    fn frame(&self, port: u16) -> Vec<u8> {
        let packet = udp((self.from.address, port), (self.to.address, PORT));
        let MacAddr(to) = self.to.mac;
        let MacAddr(from) = self.from.mac;
        [&to[..], &from, &0x0800_u16.to_be_bytes(), &packet].concat()
    }
}

/// A packet socket and where it sends: `eth0` of this namespace.
fn wire() -> Result<(OwnedFd, LinkAddr), String> {
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
    let fd = fd.map_err(|errno| format!("cannot open a packet socket: {errno}"))?;
    let mut all = getifaddrs().map_err(|errno| format!("cannot list interfaces: {errno}"))?;
    let eth0 = all.find(|one| {
        one.interface_name == "eth0"
            && one.address.is_some_and(|address| address.family() == Some(AddressFamily::Packet))
    });
    let address = eth0.and_then(|one| one.address?.as_link_addr().copied());
    Ok((fd, address.ok_or("the zone has no eth0")?))
}

/// An IPv4 packet with a UDP datagram of 18 bytes, which makes the smallest frame there is.
fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    const TEXT: [u8; 18] = [0; 18];
    let length = 28 + TEXT.len() as u16;
    let mut head = vec![0x45, 0];
    head.extend_from_slice(&length.to_be_bytes());
    head.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
    head.extend_from_slice(&from.0.octets());
    head.extend_from_slice(&to.0.octets());
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    for word in [from.1, to.1, length - 20, 0] {
        head.extend_from_slice(&word.to_be_bytes());
    }
    head.extend_from_slice(&TEXT);
    head
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
