//! Raw frames: what an interface sends and hears, byte by byte.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, recv, send, setsockopt, socket,
        sockopt,
    },
    time::{TimeVal, TimeValLike},
};
use serde_json::Value;

/// Longest wait for a frame: generous, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// A NIC's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Nic {
    pub(crate) mac: [u8; 6],
    /// Unspecified where it has none.
    pub(crate) ip: Ipv4Addr,
    pub(crate) ip6: Option<Ipv6Addr>,
}

impl Nic {
    /// The `n`th NIC of an instance as operators see it.
    pub(crate) fn of(view: &Value, n: usize) -> Self {
        let text = |key: &str| view["nics"][n][key].as_str().unwrap_or_else(|| panic!("{key} of NIC {n}: {view}"));
        let mac: Vec<u8> = text("mac").split(':').flat_map(|byte| u8::from_str_radix(byte, 16)).collect();
        let ip6 = view["nics"][n]["ip6"].as_str().map(|ip| ip.parse().expect("an IPv6 address"));
        let ip = view["nics"][n]["ip"].as_str().map(|ip| ip.parse().expect("an IPv4 address"));
        let ip = ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
        Self { mac: mac.try_into().expect("six bytes"), ip, ip6 }
    }

    /// Its IPv6 address, which it has.
    #[track_caller]
    pub(crate) fn six(&self) -> Ipv6Addr {
        self.ip6.expect("its network has IPv6")
    }
}

/// All frames of one interface.
pub(crate) struct Wire(OwnedFd);

impl Wire {
    /// Opens it in this network namespace.
    pub(crate) fn open(interface: &str) -> Self {
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
            .expect("a packet socket");
        let found = nix::ifaddrs::getifaddrs()
            .expect("the interfaces")
            .filter(|found| found.interface_name == interface)
            .filter_map(|found| found.address)
            .find(|address| address.family() == Some(AddressFamily::Packet));
        let address = found.unwrap_or_else(|| panic!("there is an interface {interface}"));
        bind(fd.as_raw_fd(), address.as_link_addr().expect("an Ethernet address")).expect("bound");
        Self(fd)
    }

    /// Sends a frame as it is.
    pub(crate) fn send(&self, frame: &[u8]) {
        send(self.0.as_raw_fd(), frame, MsgFlags::empty()).expect("a frame is sent");
    }

    /// Frames that arrive until one contains `end`.
    pub(crate) fn hear_until(&self, end: &[u8]) -> Vec<Vec<u8>> {
        setsockopt(&self.0, sockopt::ReceiveTimeout, &TimeVal::milliseconds(100)).expect("a timeout");
        let (mut heard, deadline, mut buffer) = (Vec::new(), Instant::now() + PATIENCE, [0; 2048]);
        while Instant::now() < deadline {
            let Ok(count) = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) else { continue };
            heard.push(buffer[..count].to_vec());
            if contains(&buffer[..count], end) {
                return heard;
            }
        }
        panic!("{:?} was not heard among {} frames", String::from_utf8_lossy(end), heard.len());
    }
}

/// Whether `bytes` has `part` somewhere.
pub(crate) fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
