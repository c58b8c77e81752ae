//! Servers: the machines of the fleet as the control plane knows them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::{
    id::{MacAddr, ServerId},
    role::{HeadnodeFact, HeadnodeRole},
    time::Timestamp,
    unit::Mib,
};

mod condition;
mod identity;
mod invite;

pub use condition::{Condition, REBOOT_MS, Sign, condition};
pub use identity::{Likeness, MACS_MAX, MachineIdentity, credible};
pub use invite::Invite;

/// A machine. Record of table `servers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Never changes; carried in the machine's certificate.
    pub id: ServerId,
    /// What it calls itself.
    pub hostname: String,
    /// May take new instances.
    pub accepts_instances: bool,
    /// This machine also runs a headnode.
    pub headnode: bool,
    /// What the machine is told about that; it stays after the headnode has ended, so that one that was away hears of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headnode_role: Option<HeadnodeRole>,
    /// How far the machine is with that, as it reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headnode_fact: Option<HeadnodeFact>,
    /// What it reported at its last start.
    pub hardware: Hardware,
    /// What its instances were promised together; changed in the same commit as each placement.
    pub reserved: Reserved,
    /// When it was last heard of, as of the last commit (heartbeats live in memory and are written once a minute).
    pub last_seen_at: Option<Timestamp>,
    /// The kernel's boot id of the running boot.
    pub boot_id: Option<String>,
    /// Highest generation of its target the machine has written down.
    pub target_seen: u64,
    /// Added to store revisions to make generations of this machine's target. Zero until a store was restored from a copy that
    /// is older than what the machine has seen, or settings made another target of the same records.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation_base: u64,
    /// Generations up to this one were not made from this store's history: having seen one of them says nothing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation_floor: u64,
    /// There after a restore, until what the machine has was compared with the records; so long it is told nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    /// Free text of the operator.
    pub comments: String,
    /// Properties by name that only requests asking for them may use: see [`Trait`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub traits: BTreeMap<String, Trait>,
    /// What fails together: the machines of one rack share its switch and its power.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// NIC tags it is wired to, as it reports; `None` when it did not say, which counts as all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic_tags: Option<BTreeSet<String>>,
    /// Where the datacenter's policy is overridden.
    #[serde(default, skip_serializing_if = "Ratios::is_empty")]
    pub ratios: Ratios,
    /// How much room is left, the larger the better: [`crate::placement::roominess`] of the record, kept in it so that machines
    /// can be listed by it. Written by whoever changes what it is made of.
    #[serde(default)]
    pub roominess: u32,
    /// Which machine holds this server's certificate, as of its joining; `None` until a machine was heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<MachineIdentity>,
    /// Its address between machines, as it reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<IpAddr>,
    /// Largest packet of the interface that has [`Server::underlay`], bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay_mtu: Option<u32>,
    /// Address the outside sees when it translates for instances, as it reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<IpAddr>,
    /// How far its clock is ahead of the headnode's, milliseconds, while it is surely off: see [`crate::clock::noted`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_ms: Option<i64>,
    /// The headnode its reports arrive at; `None` when they arrive nowhere. Written by headnodes about themselves, when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_by: Option<ServerId>,
    /// What its last report said that other headnodes must know at once.
    #[serde(default, skip_serializing_if = "Word::is_default")]
    pub word: Word,
    /// Since when and why it is being emptied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// When it joined.
    pub created_at: Timestamp,
}

impl Server {
    /// A machine of which nothing is known but its name: open, empty, and without any room until it says what it is made of.
    pub fn new(id: ServerId, hostname: impl Into<String>, created_at: Timestamp) -> Self {
        Self {
            id,
            hostname: hostname.into(),
            accepts_instances: true,
            headnode: false,
            headnode_role: None,
            headnode_fact: None,
            hardware: Hardware::default(),
            reserved: Reserved::default(),
            last_seen_at: None,
            boot_id: None,
            target_seen: 0,
            generation_base: 0,
            generation_floor: 0,
            restored: None,
            comments: String::new(),
            traits: BTreeMap::new(),
            rack: None,
            nic_tags: None,
            ratios: Ratios::default(),
            roominess: 0,
            identity: None,
            underlay: None,
            underlay_mtu: None,
            outside: None,
            clock_ahead_ms: None,
            heard_by: None,
            word: Word::default(),
            drain: None,
            created_at,
        }
    }
}

/// What a machine's last report said of it, for headnodes that do not hear it themselves. Only written where there are several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// Every change of its firewall up to this generation is in force: [`crate::target::Report::firewall_seen`], or higher where no change came
    /// after that.
    #[serde(default)]
    pub firewall_seen: u64,
    /// See [`crate::target::Report::leaving`].
    #[serde(default)]
    pub leaving: bool,
    /// See [`crate::target::Report::goes_down`].
    #[serde(default)]
    pub goes_down: bool,
}

impl Word {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How far a machine's word and the records of a restored store have been compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// When the backup was taken, or the machine came.
    pub taken_at: Timestamp,
    /// There was no restore: the machine came with instances of a datacenter that is no more.
    #[serde(default)]
    pub brought: bool,
    /// The machine has spoken, and what it has no more is marked in the records.
    #[serde(default)]
    pub compared: bool,
    /// Instances it has and no record knows.
    #[serde(default)]
    pub strangers: usize,
    /// Rules it enforces and no record knows, or of an older version; `None` until it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<usize>,
}

/// Where a machine is in the networks around it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// Where other machines meet it.
    pub underlay: Option<Underlay>,
    /// The address it has towards the outside.
    pub outside: Option<IpAddr>,
}

/// Where a machine is met by other machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    /// Its address.
    pub address: IpAddr,
    /// Largest packet of the interface that has it, bytes.
    pub mtu: u32,
}

/// Interfaces made for guests, containers and tunnels, by the beginning of their names: no other machine is met there.
const INNER_INTERFACES: [&str; 16] = [
    "br-",
    "cali",
    "cilium",
    "cni",
    "docker",
    "flannel",
    "lxc",
    "lxd",
    "podman",
    "tailscale",
    "tap",
    "tun",
    "veth",
    "virbr",
    "vnet",
    "wg",
];

/// The address at which other machines meet one with these, if only one comes into question: IPv4 before IPv6, and nothing on an
/// interface that is ours or made for guests. Otherwise all that might be meant.
pub fn obvious_underlay(addresses: &[(String, IpAddr)], is_ours: impl Fn(&str) -> bool) -> Result<IpAddr, Vec<IpAddr>> {
    let inner = |name: &str| is_ours(name) || INNER_INTERFACES.iter().any(|start| name.starts_with(start));
    let mut found: Vec<IpAddr> =
        addresses.iter().filter(|(name, _)| !inner(name)).map(|(_, address)| *address).collect();
    if found.iter().any(IpAddr::is_ipv4) {
        found.retain(IpAddr::is_ipv4);
    }
    found.sort();
    found.dedup();
    match found.as_slice() {
        [only] => Ok(*only),
        _ => Err(found),
    }
}

/// A machine that is being emptied takes nothing new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Since when.
    pub since: Timestamp,
    /// In the operator's words.
    pub reason: String,
}

/// A disk as its machine reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The kernel's name.
    pub name: String,
    /// Size, bytes.
    pub size: u64,
    /// Model text; empty when it has none.
    pub model: String,
    /// Turns.
    pub rotational: bool,
}

/// A network card as its machine reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// The kernel's name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Speed, Mbit/s; `None` without a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<u32>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a machine is made of, as it reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Memory the kernel can use.
    pub memory: Mib,
    /// Logical CPUs.
    pub cpus: u32,
    /// CPU model text.
    pub cpu_model: String,
    /// Size of the pool for datasets.
    pub pool_size: Mib,
    /// Kernel release.
    pub kernel: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Its disks, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Its network cards, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cards: Vec<Card>,
    /// Vendor, product and serial number, as the firmware says.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub product: String,
    /// What tells it from other machines.
    #[serde(default)]
    pub identity: MachineIdentity,
    /// NIC tags it is wired to, as its settings say; `None` when they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic_tags: Option<BTreeSet<String>>,
}

/// Sum of what instances on a machine were promised.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// Number of instances.
    pub instances: u32,
    /// Sum of memory.
    pub memory: Mib,
    /// Sum of disk quotas.
    pub disk: Mib,
    /// Sum of CPU caps, percent of one core; instances without a cap count nothing.
    pub cpu: u64,
    /// Number of instances without a CPU cap.
    #[serde(default)]
    pub uncapped: u32,
}

/// A property of a machine that keeps it for those who ask for it, as Triton's traits do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Trait {
    /// Has it or has it not.
    Flag(bool),
    /// One value.
    Text(String),
    /// Several values; one in common is enough.
    List(Vec<String>),
}

impl Trait {
    /// Whether a machine with this one serves a request for `asked`.
    pub fn serves(&self, asked: &Self) -> bool {
        let values = |of: &Self| match of {
            Self::Flag(_) => Vec::new(),
            Self::Text(one) => vec![one.clone()],
            Self::List(several) => several.clone(),
        };
        match (self, asked) {
            (Self::Flag(has), Self::Flag(wants)) => has == wants,
            (Self::Flag(_), _) | (_, Self::Flag(_)) => false,
            _ => values(self).iter().any(|value| values(asked).contains(value)),
        }
    }
}

/// A machine's own rules of how much it may promise; what is `None` is as the datacenter's policy says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ratios {
    /// Memory kept for the machine itself, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_kept: Option<Mib>,
    /// Percent of the remaining memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_percent: Option<u32>,
    /// Percent of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_percent: Option<u32>,
    /// Percent of all cores' time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// Instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances_max: Option<u32>,
}

impl Ratios {
    /// Whether the datacenter's policy holds throughout.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_is_obvious_and_two_are_not() {
        let machine = |all: &[(&str, &str)]| {
            let parsed = all.iter().map(|(name, address)| ((*name).to_owned(), address.parse().expect("an address")));
            obvious_underlay(&parsed.collect::<Vec<_>>(), |name| name.starts_with("nb-"))
        };
        let found = Ok(IpAddr::from([192, 168, 1, 5]));
        let guests = [("docker0", "172.17.0.1"), ("nb-ext", "10.80.0.1"), ("virbr0", "192.168.122.1")];
        assert_eq!(machine(&[&guests[..], &[("eth0", "192.168.1.5")]].concat()), found);
        assert_eq!(machine(&[("eth0", "192.168.1.5"), ("eth0", "2001:db8::5")]), found, "IPv4 goes first");
        assert_eq!(machine(&[("eth0", "2001:db8::5")]), Ok("2001:db8::5".parse().expect("an address")));
        assert_eq!(machine(&guests), Err(Vec::new()));
        let both = machine(&[("eth0", "192.168.1.5"), ("eth1", "10.0.0.5")]).expect_err("either may be meant");
        assert_eq!(both, [IpAddr::from([10, 0, 0, 5]), IpAddr::from([192, 168, 1, 5])]);
    }
}
