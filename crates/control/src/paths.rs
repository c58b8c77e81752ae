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
};
use store::Entry;

use crate::{Control, Error, Result, instances::InstanceView, servers, tables::SERVERS};

/// One end of the way, as recorded.
#[derive(Debug)]
pub struct Place {
    view: InstanceView,
    nic: Nic,
    server: Arc<Entry<Server>>,
    target: Target,
    seen: u64,
    firewall_seen: u64,
}

/// The NICs a packet from one instance to another takes: those on the same network or segment if there are such, else the
/// primary ones.
pub fn nics_between(from: &InstanceView, to: &InstanceView) -> (Option<Nic>, Option<Nic>) {
    let segment = |view: &InstanceView, nic: &Nic| {
        let network = view.nics.iter().find(|found| found.nic.mac == nic.mac)?.network.clone()?;
        Some((network.nic_tag.clone(), network.vlan))
    };
    let pairs = from.instance.nics.iter().flat_map(|nic| to.instance.nics.iter().map(move |other| (nic, other)));
    let shared = pairs.filter(|(nic, other)| {
        let here = segment(from, nic);
        here.is_some() && here == segment(to, other)
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
pub async fn place(control: &Control, view: InstanceView, nic: Option<Nic>) -> Result<Place> {
    let nic = nic.ok_or_else(|| Error::Conflict(format!("instance {} has no NIC", view.instance.id)))?;
    let id = view.instance.server;
    let server = control.snapshot().get(&SERVERS, &id.to_string()).ok_or_else(|| Error::not_found("server", id))?;
    // A machine that is known has a document; only the first moments of a headnode are waited for.
    let target = servers::watch_target(control, id, 0).await?;
    let target = target.ok_or_else(|| Error::Unavailable(format!("server {id} has no document yet")))?;
    let heard = control.nodes.heard(id);
    let seen = heard.as_ref().map_or(server.target_seen, |heard| heard.target_seen);
    let firewall_seen = heard.map_or(0, |heard| heard.firewall_seen);
    Ok(Place { view, nic, server, target, seen, firewall_seen })
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
    pub fn address(&self) -> IpAddr {
        self.nic.ip.into()
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

    /// It with what its machine saw.
    pub fn end<'a>(&'a self, sight: &'a Result<Sight, String>) -> End<'a> {
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
            seen: self.seen,
            firewall_seen: self.firewall_seen,
            underlay_mtu: self.server.underlay_mtu,
            sight,
        }
    }

    fn state(&self) -> PublicState {
        self.view.state
    }
}
