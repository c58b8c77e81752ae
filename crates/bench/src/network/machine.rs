//! Two machines with a wire between them, as the product makes them part of a fabric, and as a person would with `ip`.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr},
};

use host::{
    fabric::{FabricSet, Segment},
    filter::{BridgeFilter, FilterSet, Filters as _, NicFilter},
    link::{LinkNames, Links as _, NetworkSetup},
    linux::{filter::LinuxFilters, link::LinuxLinks},
};
use ipnet::Ipv4Net;
use model::{
    id::{AccountId, InstanceId, MacAddr, NetworkId},
    peers::Peer,
    target::{FabricTarget, NetworkTarget, NicTarget},
};

use super::space::{Space, wire};

/// Largest packet on the wire between machines, bytes.
const WIRE_MTU: u16 = 1500;
/// Largest packet of a segment over it.
pub(super) const SEGMENT_MTU: u16 = 1450;
/// The segment's number.
const VNI: u32 = 42;
/// Of the interfaces of each machine; no datacenter is made with one. They differ because the namespace in which a machine tries its wires is named
/// by its prefix, in a directory that both share.
const PREFIXES: [&str; 2] = ["zp", "zq"];
/// Addresses of the two machines.
const MACHINES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
/// The segment's subnet.
pub(super) const SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16);

/// A namespace at the end of a path, and its address.
pub(super) struct Zone {
    pub(super) space: Space,
    pub(super) address: Ipv4Addr,
    instance: InstanceId,
    mac: MacAddr,
}

impl Zone {
    /// The `number`th address, with no NIC yet.
    pub(super) fn new(number: u32) -> Result<Self, String> {
        let address = SUBNET.hosts().nth(number as usize).ok_or("the subnet is too small")?;
        let (instance, mac) = (InstanceId::random(), MacAddr::from_suffix(number));
        Ok(Self { space: Space::new()?, address, instance, mac })
    }
}

fn two_wired() -> Result<[Space; 2], String> {
    let machines = [Space::new()?, Space::new()?];
    let [one, two] = MACHINES.map(|address| format!("{address}/24"));
    wire((&machines[0], "under", Some(&one)), (&machines[1], "under", Some(&two)), WIRE_MTU)?;
    Ok(machines)
}

/// Two machines of a fabric, made by the code an agent runs: anti-spoofing, bridges, VXLAN devices and static entries.
pub(super) struct Fabric {
    machines: [Machine; 2],
    network: NetworkTarget,
}

struct Machine {
    space: Space,
    links: LinuxLinks,
    filters: LinuxFilters,
    filtered: FilterSet,
    fabrics: FabricSet,
}

impl Fabric {
    pub(super) fn new() -> Result<Self, String> {
        let fabric = FabricTarget { vni: VNI, owner: AccountId::random(), internet_nat: false, routed: false };
        let network = NetworkTarget {
            nic_tag: format!("x{VNI:06x}"),
            subnet: Some(SUBNET),
            mtu: SEGMENT_MTU,
            fabric: Some(fabric),
            ..NetworkTarget::default()
        };
        let [one, two] = two_wired()?;
        let mut fabric = Self { machines: [Machine::new(one, 0)?, Machine::new(two, 1)?], network };
        fabric.machines.iter_mut().try_for_each(|machine| machine.join(&fabric.network))?;
        Ok(fabric)
    }

    /// Gives a zone its NIC on a machine, and tells the other of it: all that two agents do for it.
    pub(super) fn connect(&mut self, zone: &Zone, at: usize) -> Result<(), String> {
        let (network, there) = (self.network.clone(), MACHINES[at]);
        self.machines[at].attach(zone, &network)?;
        let peer = Peer { addresses: vec![zone.address.into()], underlay: there.into() };
        self.machines[1 - at].change_peers(|peers| drop(peers.insert(zone.mac, peer)))
    }

    /// The reverse.
    pub(super) fn disconnect(&mut self, zone: &Zone, at: usize) -> Result<(), String> {
        self.machines[at].detach(zone)?;
        self.machines[1 - at].change_peers(|peers| drop(peers.remove(&zone.mac)))
    }
}

impl Machine {
    fn new(space: Space, number: usize) -> Result<Self, String> {
        let names = LinkNames::new(PREFIXES[number]).map_err(text)?;
        let fabrics = FabricSet { underlay: Some(IpAddr::from(MACHINES[number])), ..FabricSet::default() };
        let filters = LinuxFilters::new("neso", names.clone());
        Ok(Self { space, links: LinuxLinks::new(names), filters, filtered: FilterSet::default(), fabrics })
    }

    fn join(&mut self, network: &NetworkTarget) -> Result<(), String> {
        let Self { space, links, filters, filtered, fabrics } = self;
        fabrics.segments.insert(VNI, Segment { network: network.clone(), peers: BTreeMap::new() });
        space.enter(|| {
            links.program(fabrics).map_err(text)?;
            let bridge = links.ensure_bridge(network).map_err(text)?;
            filtered.bridges.insert(bridge, BridgeFilter::of(network));
            filters.apply(filtered).map_err(text)
        })
    }

    fn attach(&mut self, zone: &Zone, network: &NetworkTarget) -> Result<(), String> {
        let nic = NicTarget {
            mac: zone.mac,
            interface: "eth0".to_owned(),
            network: NetworkId::random(),
            address: Some(Ipv4Net::new(zone.address, SUBNET.prefix_len()).map_err(text)?),
            gateway: None,
            addresses6: Vec::new(),
            gateway6: None,
            primary: true,
            mtu: SEGMENT_MTU,
        };
        let setup = NetworkSetup { nics: vec![(nic, network.clone())], routes: BTreeMap::new() };
        let Self { space, links, filters, filtered, .. } = self;
        filtered.nics.insert(zone.mac, NicFilter { instance: zone.instance, addresses: vec![zone.address.into()] });
        space.enter(|| {
            // As an agent does: what may leave a NIC is settled before the NIC is there.
            filters.apply(filtered).map_err(text)?;
            links.attach(zone.instance, &zone.space.path(), &setup).map_err(text)
        })
    }

    fn detach(&mut self, zone: &Zone) -> Result<(), String> {
        let Self { space, links, filters, filtered, .. } = self;
        filtered.nics.remove(&zone.mac);
        space.enter(|| {
            links.detach(zone.instance).map_err(text)?;
            filters.apply(filtered).map_err(text)
        })
    }

    fn change_peers(&mut self, change: impl FnOnce(&mut BTreeMap<MacAddr, Peer>)) -> Result<(), String> {
        let Self { space, links, fabrics, .. } = self;
        change(&mut fabrics.segments.get_mut(&VNI).ok_or("the segment is not there")?.peers);
        space.enter(|| links.program(fabrics).map_err(text))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All but one namespace goes with the machine's own.
        let Self { space, links, .. } = self;
        if let Err(why) = space.enter(|| links.program(&FabricSet::default()).map_err(text)) {
            eprintln!("bench network: a namespace is left behind: {why}");
        }
    }
}

/// Two machines with plain VXLAN between two bridges, as `ip` makes it by default: learning and flooding, no filter.
pub(super) struct ByHand {
    machines: [Space; 2],
}

impl ByHand {
    pub(super) fn new() -> Result<Self, String> {
        let machines = two_wired()?;
        for (at, machine) in machines.iter().enumerate() {
            // As on a machine of ours; and as on one where nobody loaded the module.
            machine.enter(spare_bridges)?;
            let (local, remote) = (MACHINES[at], MACHINES[1 - at]);
            for command in [
                format!("ip link add br0 mtu {SEGMENT_MTU} type bridge"),
                format!(
                    "ip link add vx0 mtu {SEGMENT_MTU} type vxlan id {VNI} local {local} remote {remote} dstport 4789 dev under"
                ),
                "ip link set vx0 master br0".to_owned(),
                "ip link set vx0 up".to_owned(),
                "ip link set br0 up".to_owned(),
            ] {
                machine.run(&command)?;
            }
        }
        Ok(Self { machines })
    }

    /// Gives a zone its NIC.
    pub(super) fn connect(&self, zone: &Zone, at: usize) -> Result<(), String> {
        let machine = &self.machines[at];
        let port = format!("v{}", zone.mac.bare());
        let address = format!("{}/{}", zone.address, SUBNET.prefix_len());
        wire((&zone.space, "eth0", Some(&address)), (machine, &port, None), SEGMENT_MTU)?;
        machine.run(&format!("ip link set {port} master br0")).map(drop)
    }

    /// Takes it away.
    pub(super) fn disconnect(&self, zone: &Zone, at: usize) -> Result<(), String> {
        self.machines[at].run(&format!("ip link delete v{}", zone.mac.bare())).map(drop)
    }
}

/// Keeps bridged frames from the rules for routed packets, which they would pay for without any rule.
fn spare_bridges() -> Result<(), String> {
    for switch in ["iptables", "ip6tables", "arptables"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{switch}");
        match fs::write(&path, "0") {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(format!("cannot write {path}: {error}")),
            _ => {}
        }
    }
    Ok(())
}

/// Two zones with nothing between them but a pair of interfaces.
pub(super) fn bare(one: &Zone, other: &Zone) -> Result<(), String> {
    let [here, there] = [one, other].map(|zone| format!("{}/{}", zone.address, SUBNET.prefix_len()));
    wire((&one.space, "eth0", Some(&here)), (&other.space, "eth0", Some(&there)), WIRE_MTU)
}

fn text(error: impl std::error::Error) -> String {
    base::errors::chain(&error)
}
