//! The way of a packet from one instance to another, hop by hop, and where it stops.
//!
//! [`walk`] holds three things against each other: what the records want ([`End`]), the documents the two machines were given
//! ([`Target`]), and what their kernels have ([`Sight`], which a machine answers to a [`Look`]). A hop nobody could look at is not
//! taken for good: it is unknown, and says why. What lies between the machines is told by their own trying of it ([`Tried`]).

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::{
    firewall::{Action, DecidedBy, Direction, Packet, PacketKind},
    id::{InstanceId, MacAddr, NetworkId, ServerId},
    peers::Peer,
    state::PublicState,
    target::{NetworkTarget, Outside6, Target},
    wire::{STALE_MS, Tried, overhead},
};

/// What a machine is asked to look at in its kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// The NIC of an instance here.
    pub mac: MacAddr,
    /// The network it is on.
    pub network: NetworkTarget,
    /// The other end, when that is on another machine: its network, Ethernet address and address.
    pub other: Option<(NetworkTarget, MacAddr, IpAddr)>,
}

/// What a machine's kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// The host's end of the NIC: whether it is a port of the network's bridge and up. `None` when there is none.
    pub nic: Option<bool>,
    /// Whether the rules this machine's agent loaded are in force, all of them; `None` when nobody looked.
    pub filters: Option<bool>,
    /// The owner's router on the NIC's network, if it has a port there that is up.
    pub router: bool,
    /// The way to the other end's machine.
    pub tunnel: Option<Tunnel>,
}

/// What a kernel knows of an instance on another machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// Whether the segment's VXLAN device is there, a port of its bridge and up.
    pub device: bool,
    /// Where frames for the Ethernet address are sent.
    pub machine: Option<IpAddr>,
    /// Whether the bridge hands such frames to the device.
    pub port: bool,
    /// The Ethernet address the bridge answers with for the address.
    pub neighbour: Option<MacAddr>,
}

/// One end of the way: an instance's NIC and its machine.
#[derive(Debug, Clone)]
pub struct End<'a> {
    /// Which instance.
    pub instance: InstanceId,
    /// What it is called.
    pub alias: &'a str,
    /// What it does.
    pub state: PublicState,
    /// Its NIC.
    pub mac: MacAddr,
    /// The address there.
    pub address: IpAddr,
    /// The network it is on.
    pub network: NetworkId,
    /// Its machine.
    pub server: ServerId,
    /// Host name of its machine.
    pub host: &'a str,
    /// What its machine was given.
    pub target: &'a Target,
    /// The generation its machine has written down.
    pub seen: u64,
    /// The generation whose firewall its machine enforces.
    pub firewall_seen: u64,
    /// Largest packet of its machine's interface to other machines, bytes.
    pub underlay_mtu: Option<u32>,
    /// What its machine's kernel has, or why that is not known.
    pub sight: &'a Result<Sight, String>,
    /// What its machine found out about the wire to the other end's, or why that is not known.
    pub wire: &'a Result<Tried, String>,
}

/// Where the way leads.
#[derive(Debug, Clone)]
pub enum Far<'a> {
    /// To an instance.
    Instance(End<'a>),
    /// To an address that is no instance's.
    Address(IpAddr),
}

/// What becomes of the packet at a hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passes.
    Passes,
    /// It goes no further, as far as anybody can tell.
    Stops,
    /// Nobody knows.
    Unknown,
}

/// One station of the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Host name of the machine; empty between machines.
    pub host: String,
    /// What is there.
    pub what: String,
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// Why, in words.
    pub says: String,
}

/// Every hop from `from` to `to`, also those after one where the packet stops: there may be more than one reason.
pub fn walk(from: &End<'_>, to: &Far<'_>, kind: PacketKind) -> Vec<Hop> {
    let mut hops = Vec::new();
    let peer = match to {
        Far::Instance(end) => end.address,
        Far::Address(address) => *address,
    };
    leave(from, peer, kind, &mut hops);
    match to {
        Far::Address(address) => outside(from, *address, &mut hops),
        Far::Instance(to) => {
            between(from, to, &mut hops);
            arrive(from, to, kind, &mut hops);
        }
    }
    hops
}

// === hops at both ends ===

fn leave(from: &End<'_>, peer: IpAddr, kind: PacketKind, hops: &mut Vec<Hop>) {
    hops.push(from.runs());
    hops.push(from.informed());
    hops.push(from.nic());
    hops.push(from.filters());
    hops.push(from.firewall(Packet { direction: Direction::Outbound, peer, kind }));
}

fn arrive(from: &End<'_>, to: &End<'_>, kind: PacketKind, hops: &mut Vec<Hop>) {
    if from.server != to.server {
        hops.push(to.informed());
        hops.push(to.filters());
    }
    hops.push(to.firewall(Packet { direction: Direction::Inbound, peer: from.address, kind }));
    hops.push(to.nic());
    hops.push(to.runs());
}

impl End<'_> {
    fn hop(&self, what: &str, verdict: Verdict, says: impl Into<String>) -> Hop {
        Hop { host: self.host.to_owned(), what: what.to_owned(), verdict, says: says.into() }
    }

    fn runs(&self) -> Hop {
        let verdict = match self.state {
            PublicState::Running => Verdict::Passes,
            PublicState::Offline => Verdict::Unknown,
            _ => Verdict::Stops,
        };
        self.hop("instance", verdict, format!("{} is {}", self.alias, self.state.as_str()))
    }

    fn informed(&self) -> Hop {
        let newest = self.target.generation;
        match self.seen >= newest {
            true => self.hop("agent", Verdict::Passes, format!("has its newest document, {newest}")),
            false => {
                let says =
                    format!("has document {}, and {newest} is the newest: what is below may not be so yet", self.seen);
                self.hop("agent", Verdict::Unknown, says)
            }
        }
    }

    /// A hop that only the kernel can tell.
    fn seen(&self, what: &str, judge: impl FnOnce(&Sight) -> (Verdict, String)) -> Hop {
        match self.sight {
            Ok(sight) => {
                let (verdict, says) = judge(sight);
                self.hop(what, verdict, says)
            }
            Err(why) => self.hop(what, Verdict::Unknown, why.clone()),
        }
    }

    fn nic(&self) -> Hop {
        self.seen("NIC", |sight| match sight.nic {
            Some(true) => (Verdict::Passes, format!("{} is up on its bridge", self.mac)),
            Some(false) => (Verdict::Stops, format!("{} is down or not on its bridge", self.mac)),
            None => (Verdict::Stops, format!("there is no interface for {}", self.mac)),
        })
    }

    fn filters(&self) -> Hop {
        self.seen("anti-spoofing", |sight| match sight.filters {
            Some(true) => {
                (Verdict::Passes, format!("in force; {} may use {} as {}", self.alias, self.address, self.mac))
            }
            None => (Verdict::Unknown, "nobody looked".to_owned()),
            Some(false) => {
                (Verdict::Unknown, "somebody changed this machine's rules; its agent loads them again".to_owned())
            }
        })
    }

    fn firewall(&self, packet: Packet) -> Hop {
        let (what, way) = match packet.direction {
            Direction::Outbound => ("firewall out", "to"),
            Direction::Inbound => ("firewall in", "from"),
        };
        let decision = self.target.firewall.evaluate(self.instance, packet);
        let by = match decision.by {
            DecidedBy::Disabled => format!("{} has no firewall", self.alias),
            DecidedBy::Default => format!("no rule matches traffic {way} {}, and that is the default", packet.peer),
            DecidedBy::Rule(id) => format!("by rule {id}"),
        };
        let (verdict, done) = match decision.action {
            Action::Allow => (Verdict::Passes, "let through"),
            Action::Block => (Verdict::Stops, "dropped"),
        };
        let filtered = decision.by != DecidedBy::Disabled;
        match filtered && self.firewall_seen < self.target.generation {
            true => {
                self.hop(what, Verdict::Unknown, format!("should be {done}: {by}; the machine has not confirmed it"))
            }
            false => self.hop(what, verdict, format!("{done}: {by}")),
        }
    }

    fn network(&self) -> Option<&NetworkTarget> {
        self.target.networks.get(&self.network)
    }

    /// The entry of this machine's document for an instance elsewhere.
    fn peer(&self, vni: u32, mac: MacAddr) -> Option<Peer> {
        self.target.peers.get(&vni)?.get(mac)
    }

    /// Whether and how this machine reaches the other's instance.
    fn tunnel(&self, other: &End<'_>, vni: u32) -> Hop {
        let what = "peer entry";
        let Some(underlay) = self.target.underlay else {
            return self.hop(what, Verdict::Stops, "the machine has no address between machines: fabrics end at it");
        };
        let Some(peer) = self.peer(vni, other.mac) else {
            let says = format!(
                "the document does not say where {} is: its machine has no address between machines",
                other.mac
            );
            return self.hop(what, Verdict::Stops, says);
        };
        self.seen(what, |sight| {
            let Some(tunnel) = &sight.tunnel else {
                return (Verdict::Unknown, "the machine did not look".to_owned());
            };
            let stops = |why: String| (Verdict::Stops, format!("{why}; its agent looks after this every 30 s"));
            if !tunnel.device {
                return stops(format!("there is no VXLAN device for segment {vni} that is up"));
            }
            match tunnel.machine {
                None => return stops(format!("no entry says where {} is", other.mac)),
                Some(machine) if machine != peer.underlay => {
                    return stops(format!("{} is sent to {machine}, and its machine is {}", other.mac, peer.underlay));
                }
                Some(_) => {}
            }
            if !tunnel.port {
                return stops(format!("the bridge does not hand {} to the VXLAN device", other.mac));
            }
            if peer.addresses.contains(&other.address) && tunnel.neighbour != Some(other.mac) {
                return stops(format!("nobody answers for {}", other.address));
            }
            (Verdict::Passes, format!("{} is behind {}, from {underlay}", other.mac, peer.underlay))
        })
    }

    /// Whether a full packet of the segment fits between machines.
    fn width(&self, segment: &NetworkTarget) -> Hop {
        let what = "underlay MTU";
        let needed = self.needed(segment);
        match self.underlay_mtu {
            None => self.hop(what, Verdict::Unknown, format!("not reported; {needed} bytes are needed")),
            Some(mtu) if mtu < needed => {
                let says = format!("{mtu} bytes, and packets of {} bytes need {needed}: large ones stop", segment.mtu);
                self.hop(what, Verdict::Stops, says)
            }
            Some(mtu) => self.hop(what, Verdict::Passes, format!("{mtu} bytes, of which {needed} are needed")),
        }
    }

    /// What a full packet of the segment becomes between machines, bytes.
    fn needed(&self, segment: &NetworkTarget) -> u32 {
        u32::from(segment.mtu) + overhead(self.target.underlay.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
    }

    /// Whether full packets of the segment arrive at the other's machine, as this one has tried.
    fn wire(&self, other: &End<'_>, segment: &NetworkTarget) -> Hop {
        let (needed, to) = (self.needed(segment), other.host);
        let tried = match self.wire {
            Err(why) => return self.hop("wire", Verdict::Unknown, why.clone()),
            Ok(tried) => tried,
        };
        let ago = match tried.age_ms {
            0 => "tried just now".to_owned(),
            age => format!("tried {} s ago", age.div_ceil(1_000)),
        };
        let fact = &tried.fact;
        let (verdict, says) = match fact.mtu.filter(|_| fact.reachable) {
            None => (Verdict::Stops, format!("{to} does not answer since {}; {ago}", fact.since)),
            Some(mtu) if mtu < needed => {
                let says = format!(
                    "packets of up to {mtu} bytes arrive at {to}, and those of {} bytes need {needed}: large ones are \
                     lost; {ago}",
                    segment.mtu
                );
                (Verdict::Stops, says)
            }
            Some(_) if fact.vxlan == Some(false) => {
                let says =
                    format!("{to} answers pings and no VXLAN: its UDP port is closed on the way, or there; {ago}");
                (Verdict::Stops, says)
            }
            Some(mtu) => {
                let vxlan = if fact.vxlan.is_some() { ", and VXLAN passes" } else { "" };
                let says = format!("{to} sent back {mtu} bytes, of which {needed} are needed{vxlan}; {ago}");
                (Verdict::Passes, says)
            }
        };
        match tried.age_ms > STALE_MS {
            true => self.hop("wire", Verdict::Unknown, format!("it is too long ago that {says}")),
            false => self.hop("wire", verdict, says),
        }
    }

    fn router(&self) -> Hop {
        self.seen("router", |sight| match sight.router {
            true => (Verdict::Passes, "the owner's router has a port on the network".to_owned()),
            false => (Verdict::Stops, "the owner's router has no port on the network that is up".to_owned()),
        })
    }
}

// === hops between the ends ===

fn between(from: &End<'_>, to: &End<'_>, hops: &mut Vec<Hop>) {
    let (Some(here), Some(there)) = (from.network(), to.network()) else {
        hops.push(from.hop("network", Verdict::Unknown, "a document does not have the instance's network yet"));
        return;
    };
    let same = match (&here.fabric, &there.fabric) {
        (Some(one), Some(other)) => one.vni == other.vni,
        (None, None) => from.network == to.network || (&here.nic_tag, here.vlan) == (&there.nic_tag, there.vlan),
        _ => false,
    };
    if !same && !route(from, to, (here, there), hops) {
        return;
    }
    if from.server == to.server {
        let says = "both are on this machine";
        hops.push(from.hop("bridge", Verdict::Passes, says));
        return;
    }
    let Some(fabric) = &there.fabric else {
        let says = format!("between machines, NIC tag \"{}\" is a wire that nobody here looks at", there.nic_tag);
        hops.push(Hop { host: String::new(), what: "wire".to_owned(), verdict: Verdict::Unknown, says });
        return;
    };
    hops.push(from.tunnel(to, fabric.vni));
    hops.push(from.width(there));
    hops.push(from.wire(to, there));
    // Answers go by the other machine's entry for this end.
    if let Some(back) = &here.fabric {
        let mut hop = to.tunnel(from, back.vni);
        hop.what = "peer entry back".to_owned();
        hops.push(hop);
        hops.push(to.width(here));
        let mut hop = to.wire(from, here);
        hop.what = "wire back".to_owned();
        hops.push(hop);
    }
}

/// The hop from one network to another; false when none leads there.
fn route(from: &End<'_>, to: &End<'_>, (here, there): (&NetworkTarget, &NetworkTarget), hops: &mut Vec<Hop>) -> bool {
    let routed = match (&here.fabric, &there.fabric) {
        (Some(one), Some(other)) => {
            one.owner == other.owner && one.routed && other.routed && has_gateway(here, to.address)
        }
        _ => false,
    };
    hops.push(match routed {
        true => from.router(),
        false => {
            from.hop("network", Verdict::Stops, "the instances share no network, and no router of ours joins theirs")
        }
    });
    routed
}

/// Whether a network's router has an address of the family of `address`.
fn has_gateway(network: &NetworkTarget, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => network.gateway.is_some(),
        IpAddr::V6(_) => network.gateway6.is_some(),
    }
}

fn outside(from: &End<'_>, to: IpAddr, hops: &mut Vec<Hop>) {
    let Some(network) = from.network() else {
        hops.push(from.hop("network", Verdict::Unknown, "the document does not have the instance's network yet"));
        return;
    };
    match &network.fabric {
        Some(fabric) if fabric.internet_nat && has_gateway(network, to) => hops.push(from.router()),
        Some(_) => {
            return hops.push(from.hop(
                "network",
                Verdict::Stops,
                "the network does not lead outside: no internet NAT",
            ));
        }
        None if to.is_ipv6() => match network.outside6 {
            Outside6::None => {
                return hops.push(from.hop("network", Verdict::Stops, "IPv6 does not leave the network"));
            }
            Outside6::Masqueraded => {
                hops.push(from.hop("NAT", Verdict::Passes, "the machine translates IPv6 that leaves the network"));
            }
            Outside6::Routed => hops.push(from.hop("gateway", Verdict::Passes, "the machine forwards it as it is")),
        },
        None if network.nat => {
            hops.push(from.hop("NAT", Verdict::Passes, "the machine translates what leaves the network"));
        }
        None => hops.push(from.hop("gateway", Verdict::Unknown, "the network's own gateway decides")),
    }
    let says = "what is beyond the machine is not ours to see".to_owned();
    hops.push(Hop { host: String::new(), what: "outside".to_owned(), verdict: Verdict::Unknown, says });
}
