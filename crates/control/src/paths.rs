//! Where a packet between two instances would stop: what the records and documents say of it.
//!
//! The walk itself is [`model::path`]'s. Here both ends are found and what their machines should be asked; asking is whoever holds
//! the machines' lines.

use std::{net::IpAddr, sync::Arc};

use model::{
    id::ServerId,
    network::Nic,
    path::{End, Look, Sight},
    server::Server,
    state::PublicState,
    target::Target,
    time::Timestamp,
    wire::Tried,
};
use store::Entry;

use crate::{Control, Error, Result, instances::InstanceView, liveness::Heard, servers, tables::SERVERS};

/// One end of the way, as recorded.
#[derive(Debug)]
pub struct Place {
    view: InstanceView,
    nic: Nic,
    address: IpAddr,
    server: Arc<Entry<Server>>,
    target: Target,
    heard: Option<Heard>,
    now: Timestamp,
}

/// Between which of two instances' addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Their IPv4 addresses.
    V4,
    /// Their IPv6 addresses.
    V6,
}

impl Family {
    /// The address of a NIC.
    fn of(self, nic: &Nic) -> Option<IpAddr> {
        match self {
            Self::V4 => nic.ip.map(IpAddr::V4),
            Self::V6 => nic.ip6.map(IpAddr::V6),
        }
    }
}

/// The NICs a packet from one instance to another takes: those on the same network or segment if there are such, else the
/// primary ones.
pub fn nics_between(from: &InstanceView, to: &InstanceView, family: Family) -> (Option<Nic>, Option<Nic>) {
    let segment = |view: &InstanceView, nic: &Nic| {
        let network = view.nics.iter().find(|found| found.nic.mac == nic.mac)?.network.clone()?;
        Some((network.nic_tag.clone(), network.vlan))
    };
    let pairs = from.instance.nics.iter().flat_map(|nic| to.instance.nics.iter().map(move |other| (nic, other)));
    let shared = pairs.filter(|(nic, other)| {
        let here = segment(from, nic);
        here.is_some() && here == segment(to, other) && family.of(nic).is_some() && family.of(other).is_some()
    });
    // A subnet of its own decides among several; the first is as good as any.
    match shared.min_by_key(|(nic, other)| nic.network != other.network) {
        Some((nic, other)) => (Some(nic.clone()), Some(other.clone())),
        None => (primary(from), primary(to)),
    }
}

/// The NIC the default route goes out of.
pub fn primary(view: &InstanceView) -> Option<Nic> {
    view.instance.nics.iter().find(|nic| nic.primary).or(view.instance.nics.first()).cloned()
}

/// One end: an instance, and which of its NICs.
pub async fn place(control: &Control, view: InstanceView, nic: Option<Nic>, family: Family) -> Result<Place> {
    let nic = nic.ok_or_else(|| Error::Conflict(format!("instance {} has no NIC", view.instance.id)))?;
    let address = family.of(&nic).ok_or_else(|| {
        Error::Conflict(format!("instance {} has no IPv6 address on its NIC {}", view.instance.id, nic.mac))
    })?;
    let id = view.instance.server;
    let server = control.snapshot().get(&SERVERS, &id.to_string()).ok_or_else(|| Error::not_found("server", id))?;
    // A machine that is known has a document; only the first moments of a headnode are waited for.
    let target = servers::watch_target(control, id, 0).await?;
    let target = target.ok_or_else(|| Error::Unavailable(format!("server {id} has no document yet")))?;
    Ok(Place { view, nic, address, server, target, heard: control.nodes.heard(id), now: control.now() })
}

impl Place {
    /// Its machine.
    pub fn server(&self) -> ServerId {
        self.server.id
    }

    /// The instance's name.
    pub fn alias(&self) -> &str {
        &self.view.instance.alias
    }

    /// The address the packet has there.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Where its machine is met.
    pub fn underlay(&self) -> Option<IpAddr> {
        self.target.underlay
    }

    /// What its machine found out about the wire to another's, or why it did not.
    pub fn tried(&self, other: &Self) -> std::result::Result<Tried, String> {
        let nothing = || "the machine has not tried it yet".to_owned();
        let machine = other.underlay().ok_or("the other machine has no address between machines")?;
        let heard = self.heard.as_ref().ok_or("the machine was not heard of since the headnode began")?;
        let fact = heard.wires.facts.get(&machine).ok_or_else(nothing)?;
        Ok(Tried { fact: fact.clone(), age_ms: heard.wires_age_ms(self.now).ok_or_else(nothing)? })
    }

    /// What its machine is to look at; `None` when its document does not have the network yet.
    pub fn look(&self, other: Option<&Self>) -> Option<Look> {
        let network = self.target.networks.get(&self.nic.network)?.clone();
        let other = other.filter(|other| other.server.id != self.server.id).and_then(|other| {
            let network = other.target.networks.get(&other.nic.network)?.clone();
            Some((network, other.nic.mac, other.address()))
        });
        Some(Look { mac: self.nic.mac, network, other })
    }

    /// It with what its machine saw, and what that found out about the wire to the other end's.
    pub fn end<'a>(&'a self, sight: &'a Result<Sight, String>, wire: &'a Result<Tried, String>) -> End<'a> {
        End {
            instance: self.view.instance.id,
            alias: self.alias(),
            state: self.state(),
            mac: self.nic.mac,
            address: self.address(),
            network: self.nic.network,
            server: self.server.id,
            host: &self.server.hostname,
            target: &self.target,
            seen: self.heard.as_ref().map_or(self.server.target_seen, |heard| heard.target_seen),
            firewall_seen: self.heard.as_ref().map_or(0, |heard| heard.firewall_seen),
            underlay_mtu: self.server.underlay_mtu,
            sight,
            wire,
        }
    }

    fn state(&self) -> PublicState {
        self.view.state
    }
}
