//! Disks, network cards and firmware, as `/sys` shows them, and what of it tells this machine from others.
//!
//! Everything may be missing: containers and small boards have no firmware tables, and a network namespace shows no cards. What
//! cannot be read is left out and never an error.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use model::server::{Card, Disk, MACS_MAX, MachineIdentity, credible};

/// Bytes of the kernel's unit of a disk's size.
const SECTOR_BYTES: u64 = 512;
/// Most disks that are reported.
const DISKS_MAX: usize = 256;
/// Value of `addr_assign_type` of an address that is the card's own.
const BURNT_IN: &str = "0";
/// Names of block devices that are no disks.
const NO_DISKS: [&str; 7] = ["loop", "ram", "zram", "dm-", "md", "nbd", "sr"];

/// Where the kernel and the system say what the machine is.
#[derive(Debug, Clone)]
pub struct Sources {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/etc/machine-id`.
    pub machine_id: PathBuf,
}

impl Default for Sources {
    fn default() -> Self {
        Self { sys: "/sys".into(), machine_id: "/etc/machine-id".into() }
    }
}

impl Sources {
    /// Disks by name, those the kernel makes of others left out.
    pub fn disks(&self) -> Vec<Disk> {
        let disk = |name: String| {
            let directory = self.sys.join("block").join(&name);
            let size = word(&directory.join("size"))?.parse::<u64>().ok()?.checked_mul(SECTOR_BYTES)?;
            let model = word(&directory.join("device/model")).unwrap_or_default();
            let rotational = word(&directory.join("queue/rotational")).as_deref() == Some("1");
            (size > 0 && !NO_DISKS.iter().any(|no| name.starts_with(no))).then_some(Disk {
                name,
                size,
                model,
                rotational,
            })
        };
        names(&self.sys.join("block")).into_iter().filter_map(disk).take(DISKS_MAX).collect()
    }

    /// Network cards by name: interfaces with a device behind them.
    pub fn cards(&self) -> Vec<Card> {
        let card = |name: String| {
            let directory = self.sys.join("class/net").join(&name);
            if !directory.join("device").exists() {
                return None;
            }
            let mac = word(&directory.join("address"))?.parse().ok()?;
            // -1 without a link, an error when the card is down.
            let speed = word(&directory.join("speed")).and_then(|speed| speed.parse().ok());
            Some(Card { name, mac, speed })
        };
        names(&self.sys.join("class/net")).into_iter().filter_map(card).take(MACS_MAX).collect()
    }

    /// Vendor, product and serial number.
    pub fn product(&self) -> String {
        let firmware = self.sys.join("class/dmi/id");
        let words = ["sys_vendor", "product_name", "product_serial"].map(|name| word(&firmware.join(name)));
        words.into_iter().flatten().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// What tells this machine from others.
    pub fn identity(&self) -> MachineIdentity {
        let burnt_in = |card: Card| {
            let directory = self.sys.join("class/net").join(&card.name);
            // A card in a bond shows the bond's address and keeps its own here.
            if let Some(own) = word(&directory.join("bonding_slave/perm_hwaddr")) {
                return own.parse().ok();
            }
            (word(&directory.join("addr_assign_type")).as_deref() == Some(BURNT_IN)).then_some(card.mac)
        };
        MachineIdentity {
            firmware: word(&self.sys.join("class/dmi/id/product_uuid")).and_then(|text| credible(&text)),
            macs: self.cards().into_iter().filter_map(burnt_in).collect::<BTreeSet<_>>(),
            installation: word(&self.machine_id).and_then(|text| credible(&text)),
        }
    }
}

/// The machine's addresses with the interfaces that have them, the loopback device's and those of one link alone aside.
pub fn addresses() -> Vec<(String, IpAddr)> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let reaches_far = |address: &IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    };
    all.filter_map(|interface| {
        let address = address_of(&interface).filter(reaches_far)?;
        Some((interface.interface_name, address))
    })
    .collect()
}

fn address_of(interface: &nix::ifaddrs::InterfaceAddress) -> Option<IpAddr> {
    let known = interface.address.as_ref()?;
    let v4 = known.as_sockaddr_in().map(|known| IpAddr::V4(known.ip()));
    v4.or_else(|| known.as_sockaddr_in6().map(|known| IpAddr::V6(known.ip())))
}

/// Largest packet, bytes, of the interface that has `address`.
pub fn mtu_of(address: IpAddr) -> Option<u32> {
    let has = |interface: &nix::ifaddrs::InterfaceAddress| address_of(interface) == Some(address);
    let name = nix::ifaddrs::getifaddrs().ok()?.find(has)?.interface_name;
    let path = Path::new("/sys/class/net").join(name).join("mtu");
    word(&path)?.parse().ok()
}

fn word(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Sources) {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a file in a directory")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        let sources = Sources { sys: root.path().to_owned(), machine_id: root.path().join("machine-id") };
        (root, sources)
    }

    #[test]
    fn a_machine_says_what_it_is() {
        let (_root, sources) = machine(&[
            ("block/sda/size", "1000\n"),
            ("block/sda/device/model", "Spinner\n"),
            ("block/sda/queue/rotational", "1\n"),
            ("block/loop0/size", "8\n"),
            ("block/sdb/size", "0\n"),
            ("class/net/eth0/address", "00:11:22:33:44:55\n"),
            ("class/net/eth0/addr_assign_type", "0\n"),
            ("class/net/eth0/device/x", ""),
            ("class/net/eth0/speed", "-1\n"),
            ("class/net/eth1/address", "00:11:22:33:44:55\n"),
            ("class/net/eth1/addr_assign_type", "3\n"),
            ("class/net/eth1/device/x", ""),
            ("class/net/eth1/bonding_slave/perm_hwaddr", "00:11:22:33:44:66\n"),
            ("class/net/veth0/address", "00:11:22:33:44:77\n"),
            ("class/dmi/id/sys_vendor", "Maker\n"),
            ("class/dmi/id/product_uuid", "00000000-0000-0000-0000-000000000000\n"),
            ("machine-id", "0123456789abcdef0123456789abcdef\n"),
        ]);
        let disk = Disk { name: "sda".into(), size: 512_000, model: "Spinner".into(), rotational: true };
        assert_eq!(sources.disks(), [disk]);
        assert_eq!(sources.cards().len(), 2);
        assert_eq!(sources.product(), "Maker");
        let identity = sources.identity();
        assert_eq!(identity.firmware, None);
        let macs: Vec<String> = identity.macs.iter().map(ToString::to_string).collect();
        assert_eq!(macs, ["00:11:22:33:44:55", "00:11:22:33:44:66"]);
        assert!(identity.installation.is_some());
    }

    #[test]
    fn a_machine_that_says_nothing_is_no_error() {
        let (_root, sources) = machine(&[]);
        assert_eq!(sources.identity(), MachineIdentity::default());
        assert_eq!((sources.disks(), sources.cards(), sources.product()), (Vec::new(), Vec::new(), String::new()));
    }
}
