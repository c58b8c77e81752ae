//! A machine's network in a namespace of its own: links and filters as the node makes them, and zones.

use std::os::fd::AsRawFd as _;
use std::{fs::File, net::Ipv4Addr, path::PathBuf, process::Command, thread};

use host::{
    filter::{BridgeFilter, FilterSet, Filters as _, NicFilter},
    link::{LinkNames, Links as _, NetworkSetup},
    linux::{filter::LinuxFilters, link::LinuxLinks},
};
use ipnet::Ipv4Net;
use model::{
    id::{InstanceId, MacAddr, NetworkId},
    target::{NetworkTarget, NicTarget},
};
use nix::sched::{CloneFlags, setns, unshare};

use super::world::BRIDGE;

/// A network namespace that ends with the value, and what makes links and filters there.
pub(super) struct Ground {
    namespace: Namespace,
    site: Site,
}

/// What works in the namespace it is used in.
pub(super) struct Site {
    pub(super) filters: LinuxFilters,
    links: LinuxLinks,
    names: LinkNames,
    set: FilterSet,
    network: NetworkTarget,
}

/// A zone with one NIC on the machine's bridge.
pub(super) struct Zone {
    pub(super) namespace: Namespace,
    pub(super) mac: MacAddr,
    pub(super) address: Ipv4Addr,
    /// The machine's end of its NIC.
    pub(super) port: String,
}

pub(super) struct Namespace {
    file: File,
}

impl Ground {
    /// A machine with one bridge, [`BRIDGE`].
    pub(super) fn new() -> Result<Self, String> {
        let names = LinkNames::default();
        let subnet: Ipv4Net =
            "10.88.0.0/16".parse().map_err(|error| format!("the subnet of the benchmark: {error}"))?;
        let network = NetworkTarget {
            nic_tag: "ext".to_owned(),
            vlan: 0,
            subnet: Some(subnet),
            host_address: subnet.hosts().next(),
            nat: false,
            mtu: 1500,
            ..NetworkTarget::default()
        };
        let site = Site {
            filters: LinuxFilters::new("neso", names.clone()),
            links: LinuxLinks::new(names.clone()),
            names,
            set: FilterSet::default(),
            network,
        };
        let mut ground = Self { namespace: Namespace::new()?, site };
        ground.namespace.run(&["ip", "link", "set", "lo", "up"])?;
        let Self { namespace, site } = &mut ground;
        namespace.enter(|| site.bridge())?;
        Ok(ground)
    }

    /// Runs `inside` on the machine.
    pub(super) fn enter<R: Send>(&self, inside: impl FnOnce(&Site) -> Result<R, String> + Send) -> Result<R, String> {
        self.namespace.enter(|| inside(&self.site))
    }

    /// Makes a zone; `number` tells it from others.
    pub(super) fn zone(&mut self, number: u32) -> Result<Zone, String> {
        let Self { namespace, site } = self;
        namespace.enter(|| site.zone(number))
    }
}

impl Site {
    fn bridge(&mut self) -> Result<(), String> {
        let name = self.links.ensure_bridge(&self.network).map_err(|error| base::errors::chain(&error))?;
        if name != BRIDGE {
            return Err(format!("the bridge is called {name}, not {BRIDGE}"));
        }
        self.set.bridges.insert(name, BridgeFilter::of(&self.network));
        self.filters.apply(&self.set).map_err(|error| base::errors::chain(&error))
    }

    fn zone(&mut self, number: u32) -> Result<Zone, String> {
        let subnet = self.network.subnet.ok_or("there is no subnet")?;
        let address = subnet.hosts().nth(number as usize + 8).ok_or("the subnet is full")?;
        let mac = MacAddr::from_suffix(0xff_0000 + number);
        let nic = NicTarget {
            mac,
            interface: "eth0".to_owned(),
            network: NetworkId::random(),
            address: Some(Ipv4Net::new_assert(address, subnet.prefix_len())),
            gateway: subnet.hosts().next(),
            addresses6: Vec::new(),
            gateway6: None,
            primary: true,
            mtu: 1500,
        };
        let namespace = Namespace::new()?;
        let setup = NetworkSetup { nics: vec![(nic, self.network.clone())], routes: Default::default() };
        let id = InstanceId::random();
        let failed = |error: host::error::Error| base::errors::chain(&error);
        self.links.attach(id, &namespace.path(), &setup).map_err(failed)?;
        self.set.nics.insert(mac, NicFilter { instance: id, addresses: vec![address.into()] });
        self.filters.apply(&self.set).map_err(failed)?;
        Ok(Zone { namespace, mac, address, port: self.names.nic(mac) })
    }
}

impl Namespace {
    fn new() -> Result<Self, String> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| format!("cannot make a network namespace: {errno}"))?;
            File::open("/proc/thread-self/ns/net").map_err(|error| format!("cannot open a network namespace: {error}"))
        });
        let file = made.join().map_err(|_| "the thread that makes namespaces ended early")??;
        Ok(Self { file })
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Runs `inside` there, on a thread of its own.
    pub(super) fn enter<R: Send>(&self, inside: impl FnOnce() -> Result<R, String> + Send) -> Result<R, String> {
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .map_err(|errno| format!("cannot enter a network namespace: {errno}"))?;
                inside()
            });
            there.join().map_err(|_| "a thread in a network namespace ended early".to_owned())?
        })
    }

    fn run(&self, command: &[&str]) -> Result<(), String> {
        self.enter(|| {
            let done = Command::new(command[0]).args(&command[1..]).output();
            let done = done.map_err(|error| format!("cannot run {}: {error}", command[0]))?;
            match done.status.success() {
                true => Ok(()),
                false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&done.stderr))),
            }
        })
    }
}
