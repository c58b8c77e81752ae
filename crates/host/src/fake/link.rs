//! Bridges and NICs in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use model::{
    id::InstanceId,
    meters::LinkMeters,
    path::{Look, Sight, Tunnel},
    target::NetworkTarget,
};

use super::Faults;
use crate::{
    error::{Error, Result},
    fabric::FabricSet,
    link::{LinkNames, Links, NetworkSetup, NicStatus, Packet, Probe, Through, Traffic},
};

/// The links of one machine in memory. Clones share them.
#[derive(Clone, Default)]
pub struct LinkMachine {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    bridges: BTreeMap<String, NetworkTarget>,
    attached: BTreeMap<InstanceId, NetworkSetup>,
    fabrics: FabricSet,
    /// Largest packet of the wires that are not well.
    wires: BTreeMap<IpAddr, u32>,
    /// Machines that VXLAN does not reach.
    closed: BTreeSet<IpAddr>,
}

impl LinkMachine {
    /// Bridges by name.
    pub fn bridges(&self) -> BTreeMap<String, NetworkTarget> {
        self.lock().bridges.clone()
    }

    /// What is set inside a zone's network namespace.
    pub fn attached(&self, instance: InstanceId) -> Option<NetworkSetup> {
        self.lock().attached.get(&instance).cloned()
    }

    /// Segments between machines, their peers and routers.
    pub fn fabrics(&self) -> FabricSet {
        self.lock().fabrics.clone()
    }

    /// From now on packets larger than `width` bytes are lost on the way to `machine`: all of them when it is 0.
    pub fn narrow_wire(&self, machine: IpAddr, width: u32) {
        self.lock().wires.insert(machine, width);
    }

    /// From now on VXLAN does not get to `machine`, or does again.
    pub fn close_tunnel(&self, machine: IpAddr, is_closed: bool) {
        let mut state = self.lock();
        match is_closed {
            true => state.closed.insert(machine),
            false => state.closed.remove(&machine),
        };
    }

    /// Somebody deletes the machine's bridges; the NICs stay, as ports of nothing.
    pub fn lose_bridges(&self) {
        self.lock().bridges.clear();
    }

    /// The machine loses power: no link is left.
    pub fn lose_power(&self) {
        *self.lock() = State::default();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The agent's handle on the links of a [`LinkMachine`].
#[derive(Clone)]
pub struct FakeLinks {
    machine: LinkMachine,
    faults: Faults,
    names: LinkNames,
}

impl FakeLinks {
    /// A handle. Verbs to arm: `links.ensure_bridge`, `.remove_bridges_except`, `.attach`, `.detach`,
    /// `.program`, `.sight`, `.probe`, `.nics`.
    pub fn new(machine: LinkMachine, faults: Faults) -> Self {
        Self { machine, faults, names: LinkNames::default() }
    }
}

impl Links for FakeLinks {
    fn ensure_bridge(&self, network: &NetworkTarget) -> Result<String> {
        let name = self.names.bridge(network);
        self.faults.pass("links.ensure_bridge", &name)?;
        self.machine.lock().bridges.insert(name.clone(), network.clone());
        Ok(name)
    }

    fn remove_bridges_except(&self, needed: &[NetworkTarget]) -> Result<()> {
        self.faults.pass("links.remove_bridges_except", "")?;
        let needed: Vec<String> = needed.iter().map(|network| self.names.bridge(network)).collect();
        self.machine.lock().bridges.retain(|name, _| needed.contains(name));
        Ok(())
    }

    fn attach(&self, instance: InstanceId, _netns: &Path, setup: &NetworkSetup) -> Result<()> {
        self.faults.pass("links.attach", &instance.to_string())?;
        let mut state = self.machine.lock();
        for (_, network) in &setup.nics {
            let bridge = self.names.bridge(network);
            if !state.bridges.contains_key(&bridge) {
                return Err(Error::Missing(format!("bridge `{bridge}`")));
            }
        }
        state.attached.insert(instance, setup.clone());
        Ok(())
    }

    fn detach(&self, instance: InstanceId) -> Result<()> {
        self.faults.pass("links.detach", &instance.to_string())?;
        self.machine.lock().attached.remove(&instance);
        Ok(())
    }

    fn program(&self, fabrics: &FabricSet) -> Result<()> {
        self.faults.pass("links.program", "")?;
        let mut state = self.machine.lock();
        for segment in fabrics.segments.values() {
            state.bridges.insert(self.names.bridge(&segment.network), segment.network.clone());
        }
        state.fabrics = fabrics.clone();
        Ok(())
    }

    fn sight(&self, look: &Look) -> Result<Sight> {
        self.faults.pass("links.sight", "")?;
        let state = self.machine.lock();
        let is_there = |network: &NetworkTarget| state.bridges.contains_key(&self.names.bridge(network));
        let mut nics = state.attached.values().flat_map(|setup| &setup.nics);
        let nic = nics.find(|(nic, _)| nic.mac == look.mac).map(|(_, network)| is_there(network));
        let routed = state.fabrics.routers.values().flatten();
        let router = routed.into_iter().any(|network| network.nic_tag == look.network.nic_tag);
        let tunnel = look.other.as_ref().and_then(|(network, mac, address)| {
            let vni = network.fabric.as_ref()?.vni;
            let segment = state.fabrics.segments.get(&vni).filter(|_| state.fabrics.underlay.is_some());
            let peer = segment.and_then(|segment| segment.peers.get(mac));
            let machine = peer.map(|peer| peer.underlay);
            let neighbour = peer.filter(|peer| peer.addresses.contains(address)).map(|_| *mac);
            Some(Tunnel { device: segment.is_some(), machine, port: peer.is_some(), neighbour })
        });
        Ok(Sight { nic, filters: None, router, tunnel })
    }

    fn probe(&self, probe: &Probe) -> Result<Vec<bool>> {
        self.faults.pass("links.probe", "")?;
        let state = self.machine.lock();
        let is_open = |to| probe.through == Through::Wire || !state.closed.contains(&to);
        let is_wide = |packet: &Packet| state.wires.get(&packet.to).is_none_or(|width| packet.size <= *width);
        let passes = |packet: &Packet| is_open(packet.to) && is_wide(packet);
        Ok(probe.packets.iter().map(passes).collect())
    }

    fn meters(&self) -> Result<Traffic> {
        self.faults.pass("links.meters", "")?;
        let state = self.machine.lock();
        let nics = state.attached.values().flat_map(|setup| &setup.nics);
        let nics = nics.map(|(nic, _)| (nic.mac, LinkMeters::default()));
        Ok(Traffic { nics: nics.collect(), ..Traffic::default() })
    }

    fn nics(&self) -> Result<Vec<NicStatus>> {
        self.faults.pass("links.nics", "")?;
        let state = self.machine.lock();
        let nics = state.attached.iter().flat_map(|(instance, setup)| {
            setup.nics.iter().map(|(nic, network)| NicStatus {
                instance: *instance,
                mac: nic.mac,
                host_name: self.names.nic(nic.mac),
                bridge: Some(self.names.bridge(network)).filter(|name| state.bridges.contains_key(name)),
            })
        });
        Ok(nics.collect())
    }
}
