//! A host, zones and an outside, each a network namespace of its own: nothing here touches the machine's network.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use host::{
    filter::{BridgeFilter, FilterSet, Filters, NicFilter},
    link::{LinkNames, Links, NetworkSetup},
    linux::{filter::LinuxFilters, link::LinuxLinks},
};
use ipnet::{Ipv4Net, Ipv6Net};
use model::{
    id::{InstanceId, MacAddr, NetworkId},
    target::{NetworkTarget, NicTarget},
};
use nix::sched::{CloneFlags, setns, unshare};

/// How long something may take that shall happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long to look for something that shall not happen and leaves no other sign: a connection that is dropped.
pub(super) const SILENCE: Duration = Duration::from_millis(300);

/// Runs `test` as on a host whose network is empty.
pub(super) fn in_host<R: Send>(test: impl FnOnce() -> R + Send) -> R {
    assert!(nix::unistd::geteuid().is_root(), "the kernel tier needs root: it makes network namespaces");
    thread::scope(|scope| {
        let host = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            run(&["ip", "link", "set", "lo", "up"]);
            test()
        });
        host.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A network namespace that lives as long as the value.
pub(super) struct Namespace {
    file: File,
}

impl Namespace {
    pub(super) fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            File::open("/proc/thread-self/ns/net").expect("its file")
        });
        Self { file: file.join().expect("it was made") }
    }

    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Runs `inside` there.
    pub(super) fn enter<R: Send>(&self, inside: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("it can be entered");
                inside()
            });
            there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command there and returns what it wrote.
    pub(super) fn run(&self, command: &[&str]) -> String {
        self.enter(|| run(command))
    }
}

/// Runs a command in this thread's namespace and returns what it wrote.
#[expect(clippy::disallowed_types, reason = "a test plays a person at the machine")]
pub(super) fn run(command: &[&str]) -> String {
    let done = Command::new(command[0]).args(&command[1..]).output().expect("the command is installed");
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("plain text")
}

/// Packets a named counter of ours has seen.
pub(super) fn counted(family: &str, counter: &str) -> u64 {
    let text = run(&["nft", "list", "counter", family, "neso", counter]);
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "packets").expect("a counter of packets");
    words[at + 1].parse().expect("a number")
}

pub(super) fn network(tag: &str, subnet: &str) -> NetworkTarget {
    let subnet: Ipv4Net = subnet.parse().expect("a subnet");
    NetworkTarget {
        nic_tag: tag.to_owned(),
        vlan: 0,
        subnet: Some(subnet),
        host_address: subnet.hosts().next(),
        nat: false,
        mtu: 1500,
        ..NetworkTarget::default()
    }
}

/// The same with IPv6, of which the host holds the first address too.
pub(super) fn network6(tag: &str, subnet: &str, subnet6: &str) -> NetworkTarget {
    let subnet6: Ipv6Net = subnet6.parse().expect("an IPv6 subnet");
    let host_address6 = Some(Ipv6Addr::from_bits(subnet6.network().to_bits() + 1));
    NetworkTarget { subnet6: Some(subnet6), host_address6, ..network(tag, subnet) }
}

/// The same without IPv4.
pub(super) fn without4(network: NetworkTarget) -> NetworkTarget {
    NetworkTarget { subnet: None, host_address: None, gateway: None, nat: false, ..network }
}

pub(super) fn nic(suffix: u32, interface: &str, address: &str) -> NicTarget {
    let address: Ipv4Net = address.parse().expect("an address with its prefix");
    NicTarget {
        mac: MacAddr::from_suffix(suffix),
        interface: interface.to_owned(),
        network: NetworkId::random(),
        address: Some(address),
        gateway: address.hosts().next(),
        addresses6: Vec::new(),
        gateway6: None,
        primary: interface == "eth0",
        mtu: 1500,
    }
}

/// A NIC with the `nth` address of a network, and that address.
pub(super) fn nic_on(network: &NetworkTarget, suffix: u32, nth: usize) -> (NicTarget, Ipv4Addr) {
    let Some(subnet) = network.subnet else {
        let none = NicTarget { address: None, gateway: None, ..nic(suffix, "eth0", "10.0.0.1/8") };
        return (none, Ipv4Addr::UNSPECIFIED);
    };
    let address = subnet.hosts().nth(nth).expect("the subnet is large enough");
    (nic(suffix, "eth0", &format!("{address}/{}", subnet.prefix_len())), address)
}

/// A host with links and filters, and zones on it.
pub(super) struct Site {
    pub(super) links: LinuxLinks,
    pub(super) filters: LinuxFilters,
    pub(super) set: FilterSet,
    macs: u32,
}

/// A zone with one NIC.
pub(super) struct Zone {
    pub(super) namespace: Namespace,
    pub(super) mac: MacAddr,
    /// Unspecified where the network has no IPv4.
    pub(super) address: Ipv4Addr,
    /// Where the network has IPv6.
    pub(super) address6: Option<Ipv6Addr>,
}

impl Zone {
    /// Its IPv6 address, which it has.
    pub(super) fn six(&self) -> Ipv6Addr {
        self.address6.expect("its network has IPv6")
    }

    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let all = std::iter::once(IpAddr::V4(self.address)).chain(self.address6.map(IpAddr::V6));
        all.filter(|ip| !ip.is_unspecified()).collect()
    }
}

impl Site {
    pub(super) fn new() -> Self {
        let names = LinkNames::default();
        let filters = LinuxFilters::new("neso", names.clone());
        Self { links: LinuxLinks::new(names), filters, set: FilterSet::default(), macs: 0 }
    }

    /// Makes a bridge and its filters.
    pub(super) fn bridge(&mut self, network: &NetworkTarget) {
        let name = self.links.ensure_bridge(network).expect("a bridge");
        self.set.bridges.insert(name, BridgeFilter::of(network));
        self.filters.apply(&self.set).expect("filters");
    }

    /// Makes a zone with one NIC, filtered.
    pub(super) fn zone(&mut self, network: &NetworkTarget) -> Zone {
        let zone = self.unfiltered_zone(network);
        let filter = NicFilter { instance: InstanceId::random(), addresses: zone.addresses() };
        self.set.nics.insert(zone.mac, filter);
        self.filters.apply(&self.set).expect("filters");
        zone
    }

    /// Makes a zone with one NIC that no filter knows.
    pub(super) fn unfiltered_zone(&mut self, network: &NetworkTarget) -> Zone {
        self.macs += 1;
        let (mut nic, address) = nic_on(network, self.macs, self.macs as usize + 8);
        let own = |subnet: Ipv6Net| Ipv6Addr::from_bits(subnet.network().to_bits() + u128::from(self.macs) + 8);
        let address6 = network.subnet6.map(own);
        let net6 = address6.zip(network.subnet6).map(|(ip, net)| Ipv6Net::new(ip, net.prefix_len()).expect("a length"));
        nic.addresses6 = net6.into_iter().collect();
        nic.gateway6 = network.host_address6;
        let (namespace, mac) = (Namespace::new(), nic.mac);
        let setup = NetworkSetup { nics: vec![(nic, network.clone())], routes: Default::default() };
        self.links.attach(InstanceId::random(), &namespace.path(), &setup).expect("a NIC");
        Zone { namespace, mac, address, address6 }
    }
}

/// Listens on every address of this namespace.
pub(super) fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port")
}

/// The same of IPv6.
pub(super) fn listen6() -> TcpListener {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("a port")
}

/// Whether a connection from this namespace comes about, waiting `patience`.
pub(super) fn connects(to: SocketAddr, patience: Duration) -> bool {
    TcpStream::connect_timeout(&to, patience).is_ok()
}
