//! The firewall's log as the kernel hands it out: `log group N` of nftables, read over nfnetlink_log.
//!
//! A packet that a rule with logging decides is copied to whoever listens to the group; nobody listening costs nothing and loses
//! only the line. The copy begins with what the rule says of itself ([`Mark`]), then come bytes that a stranger sent: [`read`] and
//! [`packet`] take any, and are given any by a fuzz target.
//!
//! One thread reads, since a line may come at any moment. It ends a moment after the last reader is gone.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use base::channel::{Receiver, SendError, Sender};
use model::{
    firewall::{Action, Direction},
    id::{FirewallRuleId, InstanceId},
};
use nix::{errno::Errno, net::if_::if_indextoname};

use super::{
    netlink::{Message, attrs, text_of},
    nft_wire,
};
use crate::{
    error::{Error, Result},
    filter::{LogNews, Logged, LoggedPacket, Place},
};

const SUBSYSTEM: u16 = 4;
const MSG_PACKET: u16 = SUBSYSTEM << 8;
const MSG_CONFIG: u16 = (SUBSYSTEM << 8) | 1;
const CFG_CMD: u16 = 1;
const CFG_MODE: u16 = 2;
const CFG_TIMEOUT: u16 = 4;
const CMD_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const IFINDEX_INDEV: u16 = 4;
const IFINDEX_OUTDEV: u16 = 5;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;

/// Bytes of a packet that are copied: both headers, with options.
const COPY_BYTES: u32 = 256;

/// How long the kernel may gather lines before it hands them out, hundredths of a second: who follows the log does not notice.
const GATHER: u32 = 10;

/// How often the thread looks whether anybody reads, seconds.
const LOOK_SECONDS: i64 = 1;

/// Bytes the kernel may hold for the thread: some thousands of lines.
const RECEIVE_BYTES: usize = 4 << 20;

/// Lines that wait for the reader: more than all rules may write in the moment a slow disk takes.
const QUEUE: usize = 4_096;

/// Headers between the one of IPv6 and the transport's that are looked through.
const EXTENSIONS_MAX: usize = 8;

/// Begins what a rule says of itself.
const WORD: &str = "neso-fw";

/// What a rule says of itself in front of each line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Which way the packet goes, as the instance sees it.
    pub direction: Direction,
    /// What becomes of it.
    pub action: Action,
    /// The rule.
    pub rule: FirewallRuleId,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::Inbound => "in",
            Direction::Outbound => "out",
        };
        let action = match self.action {
            Action::Allow => "allow",
            Action::Block => "block",
        };
        // Ends with a space, since the kernel's own log goes on right behind it.
        write!(f, "{WORD} {direction} {action} {} ", self.rule)
    }
}

/// Not what one of our rules says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the mark of a rule")]
pub struct NoMark;

impl FromStr for Mark {
    type Err = NoMark;

    fn from_str(text: &str) -> std::result::Result<Self, NoMark> {
        let words: Vec<&str> = text.split_whitespace().take(5).collect();
        let [WORD, direction, action, rule] = words[..] else { return Err(NoMark) };
        let direction = match direction {
            "in" => Direction::Inbound,
            "out" => Direction::Outbound,
            _ => return Err(NoMark),
        };
        let action = match action {
            "allow" => Action::Allow,
            "block" => Action::Block,
            _ => return Err(NoMark),
        };
        Ok(Self { direction, action, rule: rule.parse().map_err(|_| NoMark)? })
    }
}

/// A line as the kernel hands it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What the rule says.
    pub mark: Mark,
    /// The kernel's number of the interface on the instance's side: a bridge.
    pub device: u32,
    /// What the packet says.
    pub packet: LoggedPacket,
}

/// A line in the payload of a netlink message, if it is one of ours and about a packet that can be read.
pub fn read(payload: &[u8]) -> Option<Line> {
    let (mut mark, mut seen, mut from, mut to) = (None, None, 0, 0);
    let number = |value: &[u8]| value.try_into().map_or(0, u32::from_be_bytes);
    for (kind, value) in attrs(payload.get(4..)?) {
        match kind {
            PREFIX => mark = text_of(value).parse::<Mark>().ok(),
            IFINDEX_INDEV => from = number(value),
            IFINDEX_OUTDEV => to = number(value),
            PAYLOAD => seen = packet(value),
            _ => {}
        }
    }
    let mark = mark?;
    let device = match mark.direction {
        Direction::Inbound => to,
        Direction::Outbound => from,
    };
    Some(Line { mark, device, packet: seen? })
}

/// What the begin of an IP packet says of itself; `None` where it has no whole header of its own.
pub fn packet(bytes: &[u8]) -> Option<LoggedPacket> {
    match bytes.first()? >> 4 {
        4 => packet4(bytes),
        6 => packet6(bytes),
        _ => None,
    }
}

fn packet4(bytes: &[u8]) -> Option<LoggedPacket> {
    const WHOLE: usize = 20;
    let head: &[u8; WHOLE] = bytes.get(..WHOLE)?.try_into().ok()?;
    let address = |at: usize| IpAddr::V4(Ipv4Addr::new(head[at], head[at + 1], head[at + 2], head[at + 3]));
    let length = usize::from(head[0] & 0x0f) * 4;
    let is_first = u16::from_be_bytes([head[6], head[7]]) & 0x1fff == 0;
    let transport = if is_first && length >= WHOLE { bytes.get(length..) } else { None };
    Some(said(address(12), address(16), head[9], transport))
}

fn packet6(bytes: &[u8]) -> Option<LoggedPacket> {
    const WHOLE: usize = 40;
    let head = bytes.get(..WHOLE)?;
    let address = |at: usize| {
        let octets: [u8; 16] = head[at..at + 16].try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(octets)))
    };
    let (mut next, mut rest) = (head[6], bytes.get(WHOLE..));
    for _ in 0..EXTENSIONS_MAX {
        let Some(extension) = rest.filter(|rest| rest.len() >= 8) else { break };
        let length = match next {
            // Hop by hop, routing, destination: in units of eight bytes, of which the first is not counted.
            0 | 43 | 60 => (usize::from(extension[1]) + 1) * 8,
            44 => {
                let is_first = u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 == 0;
                if !is_first {
                    return Some(said(address(8)?, address(24)?, extension[0], None));
                }
                8
            }
            _ => break,
        };
        next = extension[0];
        rest = extension.get(length..);
    }
    Some(said(address(8)?, address(24)?, next, rest))
}

fn said(source: IpAddr, destination: IpAddr, protocol: u8, transport: Option<&[u8]>) -> LoggedPacket {
    let begin = transport.and_then(|bytes| bytes.get(..4));
    let ports = begin.filter(|_| matches!(protocol, 6 | 17));
    let icmp = transport.and_then(|bytes| bytes.get(..2)).filter(|_| matches!(protocol, 1 | 58));
    LoggedPacket {
        source,
        destination,
        protocol,
        ports: ports.map(|p| (u16::from_be_bytes([p[0], p[1]]), u16::from_be_bytes([p[2], p[3]]))),
        icmp: icmp.map(|kind| (kind[0], kind[1])),
    }
}

/// Where instances have addresses, for the thread that reads.
#[derive(Clone, Default)]
pub(super) struct Owners(Arc<Mutex<Places>>);

type Places = BTreeMap<InstanceId, Vec<Place>>;

impl Owners {
    /// From now on.
    pub(super) fn set(&self, owners: Places) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = owners;
    }

    /// Whose address it is on a bridge.
    fn find(&self, bridge: &str, address: IpAddr) -> Option<InstanceId> {
        let owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = |place: &Place| place.address == address && place.bridge == bridge;
        owners.iter().find(|(_, places)| places.iter().any(is_there)).map(|(id, _)| *id)
    }
}

/// Listens to a group in the network namespace of this thread.
pub(super) fn listen(group: u16, owners: Owners) -> Result<Receiver<LogNews>> {
    let doing = move || format!("listen to group {group} of the packet filter's log");
    let mut socket = nft_wire::open()?;
    let [high, low] = group.to_be_bytes();
    let mode = [&COPY_BYTES.to_be_bytes()[..], &[COPY_PACKET, 0]].concat();
    let bind = Message::new(MSG_CONFIG, 0, &[0, 0, high, low])
        .attr(CFG_CMD, &[CMD_BIND])
        .attr(CFG_MODE, &mode)
        .attr(CFG_TIMEOUT, &GATHER.to_be_bytes());
    socket.request(bind).map_err(|refusal| refusal.doing(doing()))?;
    socket.listen(LOOK_SECONDS, RECEIVE_BYTES).map_err(|refusal| refusal.doing(doing()))?;
    let (sender, receiver) = base::channel::bounded("firewall log", QUEUE);
    let work = move || {
        let mut lost = 0;
        while !sender.is_closed() {
            match socket.heard() {
                Ok(heard) => {
                    let lines = heard.iter().filter(|(kind, _)| *kind == MSG_PACKET);
                    for line in lines.filter_map(|(_, payload)| read(payload)) {
                        pass_on(&sender, &owners, line, &mut lost);
                    }
                }
                Err(refusal) if refusal.errno == Errno::ETIMEDOUT => {}
                // The kernel had no room; how many lines that were, it does not say.
                Err(refusal) if refusal.errno == Errno::ENOBUFS => lost += 1,
                Err(refusal) => {
                    let error = refusal.doing(doing());
                    tracing::error!(error = %base::errors::chain(&error), "the firewall's log is not read any more");
                    return;
                }
            }
        }
    };
    base::task::thread("firewall log", work)
        .map_err(|source| Error::os("start the thread that reads the firewall's log", source))?;
    Ok(receiver)
}

fn pass_on(sender: &Sender<LogNews>, owners: &Owners, line: Line, lost: &mut u64) {
    let Line { mark: Mark { direction, action, rule }, device, packet } = line;
    let own = match direction {
        Direction::Inbound => packet.destination,
        Direction::Outbound => packet.source,
    };
    // One that is gone by now has nobody to tell.
    let bridge = if_indextoname(device).ok().and_then(|name| name.into_string().ok());
    let Some(instance) = bridge.and_then(|bridge| owners.find(&bridge, own)) else { return };
    if *lost > 0 && sender.try_send(LogNews::Lost(*lost)).is_ok() {
        *lost = 0;
    }
    let logged = Logged { rule, action, direction, instance, packet };
    if let Err(SendError::Full { .. }) = sender.try_send(LogNews::Packet(logged)) {
        *lost += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mark() -> Mark {
        Mark { direction: Direction::Outbound, action: Action::Block, rule: FirewallRuleId::random() }
    }

    /// An IPv4 packet of a protocol.
    fn four(protocol: u8, options: usize, offset: u16, transport: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 20 + options * 4];
        bytes[0] = 0x45 + u8::try_from(options).unwrap();
        bytes[6..8].copy_from_slice(&offset.to_be_bytes());
        bytes[9] = protocol;
        bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend_from_slice(transport);
        bytes
    }

    fn six(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 40];
        bytes[0] = 0x60;
        bytes[6] = next;
        bytes[8] = 0xfd;
        bytes[39] = 9;
        bytes.extend_from_slice(rest);
        bytes
    }

    #[test]
    fn what_a_rule_says_is_read_again() {
        let mark = mark();
        let text = mark.to_string();
        assert_eq!(text.parse(), Ok(mark));
        assert!(text.len() < 128, "the kernel keeps so many bytes");
        for wrong in ["", "neso-fw", "neso-fw in drop x ", &text.replace("out", "up"), &format!("{text} more")] {
            assert_eq!(wrong.parse::<Mark>(), Err(NoMark), "{wrong}");
        }
    }

    #[test]
    fn packets_of_both_families_say_where_they_go() {
        let ports = [0x04, 0x00, 0x00, 0x16];
        let tcp = packet(&four(6, 2, 0, &ports)).unwrap();
        assert_eq!((tcp.protocol, tcp.ports, tcp.source.to_string().as_str()), (6, Some((1024, 22)), "10.0.0.1"));
        assert_eq!(packet(&four(17, 0, 7, &ports)).unwrap().ports, None, "a later fragment has no ports");
        assert_eq!(packet(&four(1, 0, 0, &[8, 0])).unwrap().icmp, Some((8, 0)));
        assert_eq!(packet(&four(6, 0, 0, &ports[..3])).unwrap().ports, None, "cut short");
        assert_eq!(packet(&four(50, 0, 0, &ports)).unwrap().ports, None);
        assert_eq!(packet(&six(17, &ports)).unwrap().ports, Some((1024, 22)));
        let hops = [&[60, 0, 0, 0, 0, 0, 0, 0][..], &[6, 1], &[0; 14], &ports].concat();
        let behind = packet(&six(0, &hops)).unwrap();
        assert_eq!((behind.protocol, behind.ports), (6, Some((1024, 22))));
        let first = [&[6, 0, 0, 1, 0, 0, 0, 0][..], &ports].concat();
        assert_eq!(packet(&six(44, &first)).unwrap().ports, Some((1024, 22)));
        let later = [&[6, 0, 0, 9, 0, 0, 0, 0][..], &ports].concat();
        assert_eq!((packet(&six(44, &later)).unwrap().protocol, packet(&six(44, &later)).unwrap().ports), (6, None));
        assert_eq!(packet(&six(58, &[128, 0])).unwrap().icmp, Some((128, 0)));
        assert_eq!(packet(&[0x55; 60]), None);
    }

    #[test]
    fn a_line_names_the_bridge_of_the_instance() {
        let message = |mark: Mark| {
            Message::new(MSG_PACKET, 0, &[2, 0, 0, 7])
                .text(PREFIX, &mark.to_string())
                .attr(IFINDEX_INDEV, &3_u32.to_be_bytes())
                .attr(IFINDEX_OUTDEV, &4_u32.to_be_bytes())
                .attr(PAYLOAD, &four(1, 0, 0, &[8, 0]))
        };
        let (out, inward) = (mark(), Mark { direction: Direction::Inbound, ..mark() });
        let line = read(message(out).payload()).unwrap();
        assert_eq!((line.mark, line.device, line.packet.icmp), (out, 3, Some((8, 0))));
        assert_eq!(read(message(inward).payload()).unwrap().device, 4);
        assert_eq!(read(Message::new(MSG_PACKET, 0, &[2, 0, 0, 7]).payload()), None);
        assert_eq!(read(&[]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_packet_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(packet) = packet(&bytes) {
                prop_assert!(packet.source.is_ipv4() == (bytes[0] >> 4 == 4));
                prop_assert!(packet.ports.is_none() || packet.icmp.is_none());
            }
            let _ = read(&bytes);
        }

        #[test]
        fn cut_short_it_says_no_more(length in 0_usize..90, next in 0_u8..61) {
            let hops: Vec<u8> = (0..50).map(|at| if at % 8 == 0 { 60 } else { 0 }).collect();
            let whole = six(next, &hops);
            let cut = &whole[..length.min(whole.len())];
            prop_assert_eq!(packet(cut).is_some(), cut.len() >= 40);
        }
    }
}
