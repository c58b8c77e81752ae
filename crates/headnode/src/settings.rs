//! Settings: one TOML file that says everything a datacenter on one machine needs to know.
//!
//! Every path and every name we give to something in the kernel (bridges, nftables table, cgroup, id ranges) comes from
//! here and from nowhere else, so that several datacenters can live side by side on one machine: tests start theirs
//! under a directory of their own with [`Settings::generate`] and a root. Generated text carries its own explanation;
//! ports, subnets and names are chosen once, when the file is written, and stay.

use std::{
    fmt::Write as _,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

mod backup;
mod door;
mod fabric;
mod join;
mod names;
mod network;
mod placement;
mod pool;
mod shared;
mod store;

pub use backup::Backup;
pub use door::Door;
pub use fabric::Fabric;
pub use join::{Join, is_address};
pub use names::{Names, NamesKey, NamesNotify, NamesTransfer, NamesZone, SharedNames};
pub use network::NetworkSettings;
pub use placement::{Placement, PlacementWeights};
pub use pool::Pool;
pub(crate) use shared::adopt;
pub use shared::{AdoptError, Shared};
pub use store::{StoreEngine, StoreSettings};

/// Where the settings file lies unless told otherwise, below the root.
pub const DEFAULT_FILE: &str = "etc/neso/neso.toml";

/// Everything the file says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where they were read from, if from a file.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// What this datacenter is called.
    pub datacenter: Datacenter,
    /// Directories.
    pub paths: Paths,
    /// Where records are kept.
    #[serde(default)]
    pub store: StoreSettings,
    /// Addresses we listen on.
    pub listen: Listen,
    /// What tenants meet at the CloudAPI door.
    #[serde(default)]
    pub cloudapi: Door,
    /// Names and ranges we use in the kernel.
    pub kernel: Kernel,
    /// Where instances' disks live.
    pub pool: Pool,
    /// The network that reaches outside.
    pub external: NetworkSettings,
    /// The network between instances.
    pub private: NetworkSettings,
    /// Rules of placement.
    pub placement: Placement,
    /// What the first `neso up` makes.
    pub first_run: FirstRun,
    /// Networks between machines.
    #[serde(default)]
    pub fabric: Fabric,
    /// When backups are taken, and where they go.
    #[serde(default)]
    pub backup: Backup,
    /// Names of instances.
    #[serde(default)]
    pub names: Names,
    /// On a machine without a headnode: where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<Join>,
}

/// What this datacenter is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Datacenter {
    /// Name; clients see it.
    pub name: String,
    /// Region; informative.
    pub region: String,
    /// Suffix of instances' DNS names.
    pub dns_suffix: String,
}

/// Directories, all absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paths {
    /// What must survive: store, images, certificates, pool.
    pub data: PathBuf,
    /// What a reboot may lose: process ids, namespaces, sockets.
    pub run: PathBuf,
    /// Log files of the two processes.
    pub log: PathBuf,
    /// The operator's certificate and key.
    pub operator: PathBuf,
}

/// Addresses we listen on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// CloudAPI, TLS: what tenants talk to.
    pub cloudapi: SocketAddr,
    /// Node link, mutual TLS: what nodes talk to.
    pub node_link: SocketAddr,
    /// Ops API, mutual TLS: what `neso adm` talks to.
    pub ops: SocketAddr,
    /// Container monitor, TLS with certificates of tenants: what their Prometheus talks to. Files of older releases do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmon: Option<SocketAddr>,
    /// Further host names and addresses the CloudAPI certificate is valid for.
    #[serde(default)]
    pub names: Vec<String>,
}

/// Names and ranges we use in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Start of interface names: one or two lower-case letters or digits, a letter first.
    pub link_prefix: String,
    /// nftables tables.
    pub nft_table: String,
    /// Parent cgroup of zones.
    pub cgroup: String,
    /// First host user id given to zones; 65,536 per zone.
    pub id_base: u32,
    /// How many zones get ids from there; as many as there are ids when absent.
    #[serde(default)]
    pub id_ranges: Option<u32>,
}

/// What the first `neso up` makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirstRun {
    /// Login of the operator's account.
    pub operator: String,
    /// Login of the tenant's account.
    pub tenant: String,
    /// Images to build and import, by name.
    pub images: Vec<String>,
    /// Image of the first instance; empty makes none.
    pub instance_image: String,
    /// Package of the first instance.
    pub instance_package: String,
    /// Where the tenant's SSH key is made; empty is `.ssh` in the invoking user's home.
    #[serde(default)]
    pub key_directory: Option<PathBuf>,
}

/// Why settings could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file could not be read or written.
    #[error("failed to {doing} settings `{path}`")]
    Io {
        /// `read` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The text is not what it should be.
    #[error("settings `{path}` are wrong: {why}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line and reason.
        why: String,
    },
    /// No port or subnet could be found for a new file.
    #[error("failed to choose {what} for new settings: {why}")]
    Choose {
        /// What was looked for.
        what: &'static str,
        /// Why there is none.
        why: String,
    },
}

impl Settings {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Io {
            doing: "read",
            path: path.to_owned(),
            source,
        })?;
        let mut settings = Self::parse(&text).map_err(|why| SettingsError::Invalid { path: path.to_owned(), why })?;
        settings.file = Some(path.to_owned());
        Ok(settings)
    }

    /// Reads and checks a text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let settings: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), String> {
        let Paths { data, run, log, operator } = &self.paths;
        for (name, path) in [("data", data), ("run", run), ("log", log), ("operator", operator)] {
            if !path.is_absolute() {
                return Err(format!("paths.{name} must be an absolute path, not `{}`", path.display()));
            }
        }
        self.store.check()?;
        self.pool.check()?;
        self.cloudapi.check()?;
        self.fabric.check()?;
        self.backup.check()?;
        self.names.check()?;
        self.placement.check()?;
        self.join.as_ref().map_or(Ok(()), Join::check)?;
        let kernel = &self.kernel;
        name_is_plain("kernel.link_prefix", &kernel.link_prefix, LINK_PREFIX_MAX)?;
        let prefix = kernel.link_prefix.as_bytes();
        let fits = prefix.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            && prefix.first().is_some_and(u8::is_ascii_lowercase)
            && prefix.get(1) != Some(&b'v');
        if !fits {
            let rule = "lower-case letters or digits, a letter first and no `v` second";
            return Err(format!("kernel.link_prefix must be one or two {rule}, not `{}`", kernel.link_prefix));
        }
        name_is_plain("kernel.nft_table", &kernel.nft_table, 32)?;
        if kernel.nft_table.contains('-') {
            return Err(format!("kernel.nft_table must not have `-` in it, but `{}` does", kernel.nft_table));
        }
        name_is_plain("kernel.cgroup", &kernel.cgroup, 64)?;
        if !kernel.id_base.is_multiple_of(ID_RANGE) || kernel.id_base == 0 {
            return Err(format!("kernel.id_base must be a multiple of {ID_RANGE} above 0, not {}", kernel.id_base));
        }
        network::check(&self.external, &self.private)?;
        Ok(())
    }

    /// Text of a new settings file. Without a root it is for the whole machine; with one, every path lies below the
    /// root, ports are free ones of the loopback address, and names in the kernel are the root's own.
    pub fn generate(root: Option<&Path>) -> Result<String, SettingsError> {
        let choice = match root {
            None => Choice::machine(),
            Some(root) => Choice::rooted(root)?,
        };
        let taken = subnets_in_use();
        let external = choose_subnet(&choice.external, &taken)?;
        let private = choose_subnet(&choice.private, &taken)?;
        let mut text = String::new();
        choice.write(&mut text, external, private);
        Ok(text)
    }

    /// Files of the headnode: store and images.
    pub fn headnode_dir(&self) -> PathBuf {
        self.paths.data.join("headnode")
    }

    /// Where backups go.
    pub fn backup_dir(&self) -> PathBuf {
        self.backup.directory.clone().unwrap_or_else(|| self.paths.data.join("backups"))
    }

    /// Files of the node: target, zone ledgers.
    pub fn node_dir(&self) -> PathBuf {
        self.paths.data.join("node")
    }

    /// Certificates and keys.
    pub fn pki_dir(&self) -> PathBuf {
        self.paths.data.join("pki")
    }

    /// Where the pool is mounted, or the directory it is.
    pub fn pool_dir(&self) -> PathBuf {
        self.pool.directory.clone().unwrap_or_else(|| self.paths.data.join("pool"))
    }

    /// The pool's loop file; `None` when the pool is a directory or a disk.
    pub fn pool_file(&self) -> Option<PathBuf> {
        (self.pool.directory.is_none() && self.pool.device.is_none()).then(|| self.paths.data.join("pool.img"))
    }

    /// Where the container monitor listens.
    pub fn monitor_address(&self) -> SocketAddr {
        self.listen.cmon.unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, MONITOR_PORT)))
    }

    /// Names of the container monitor: one in each zone of instances' names, or where that zone would be.
    pub fn monitor_names(&self) -> Vec<String> {
        let zones = self.names.apexes(&self.datacenter).into_iter();
        let names = zones.map(|apex| format!("{}.{apex}", model::names::MONITOR_LABEL));
        names.filter(|name| model::names::check_name(name).is_ok()).collect()
    }

    /// URL of the container monitor, by its first name.
    pub fn monitor_url(&self) -> Option<String> {
        Some(format!("https://{}:{}", self.monitor_names().first()?, self.monitor_address().port()))
    }

    /// URL tenants on this machine use.
    pub fn cloudapi_url(&self) -> String {
        format!("https://{}", local(self.listen.cloudapi))
    }
}

/// Where this machine itself reaches what listens at `listen`.
pub fn local(listen: SocketAddr) -> SocketAddr {
    match listen.ip().is_unspecified() {
        true => SocketAddr::from((Ipv4Addr::LOCALHOST, listen.port())),
        false => listen,
    }
}

/// Triton's port of the container monitor, which Prometheus takes for granted.
const MONITOR_PORT: u16 = 9_163;
/// Longest prefix of interface names: they have 15 characters, of which an Ethernet address and a letter take 13.
const LINK_PREFIX_MAX: usize = 2;
/// User ids of one zone.
const ID_RANGE: u32 = 65_536;
/// First of the user ids we hand out; above the host's own and those of other container tools.
const ID_BASE: u32 = 0x1000_0000;
/// Id ranges set aside for each rooted datacenter; 240 such datacenters fit.
const ZONES_PER_ROOT: u32 = 256;

fn name_is_plain(field: &str, name: &str, max: usize) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || name.len() > max || !name.bytes().all(plain) {
        return Err(format!("{field} must be 1 to {max} letters, digits, `-` or `_`, not `{name}`"));
    }
    Ok(())
}

/// What differs between a datacenter on the whole machine and one below a root.
struct Choice {
    data: PathBuf,
    run: PathBuf,
    log: PathBuf,
    operator: PathBuf,
    key_directory: Option<PathBuf>,
    cloudapi: SocketAddr,
    node_link: SocketAddr,
    ops: SocketAddr,
    cmon: SocketAddr,
    names_listen: Option<SocketAddr>,
    link_prefix: String,
    nft_table: String,
    cgroup: String,
    id_base: u32,
    id_ranges: Option<u32>,
    pool_gib: u64,
    external: Vec<Ipv4Net>,
    private: Vec<Ipv4Net>,
}

impl Choice {
    fn machine() -> Self {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let sixteen = |second: u8| Ipv4Net::new_assert(Ipv4Addr::new(10, second, 0, 0), 16);
        Self {
            data: "/var/lib/neso".into(),
            run: "/run/neso".into(),
            log: "/var/log/neso".into(),
            operator: "/etc/neso/operator".into(),
            key_directory: None,
            cloudapi: any(8443),
            node_link: any(8444),
            ops: local(8445),
            cmon: any(MONITOR_PORT),
            names_listen: None,
            link_prefix: "n".into(),
            nft_table: "neso".into(),
            cgroup: "neso".into(),
            id_base: ID_BASE,
            id_ranges: None,
            pool_gib: 64,
            external: (80..128).map(sixteen).collect(),
            private: (192..224).map(sixteen).collect(),
        }
    }

    fn rooted(root: &Path) -> Result<Self, SettingsError> {
        let mut hasher = DefaultHasher::new();
        root.hash(&mut hasher);
        let hash = hasher.finish();
        let tag = format!("{:04x}", hash & 0xffff);
        let [cloudapi, node_link, ops, cmon, names] = free_ports()?;
        let slot = |second: u8| {
            move |third: u64| {
                let third = u8::try_from((hash / 7 + third * 16) & 0xf0).unwrap_or(0);
                Ipv4Net::new_assert(Ipv4Addr::new(10, second, third, 0), 20)
            }
        };
        let seconds = |base: u64| {
            (0..16).flat_map(move |step| {
                let second = u8::try_from(base + (hash + step) % 16).unwrap_or(128);
                (0..16).map(slot(second))
            })
        };
        Ok(Self {
            data: root.join("var/lib/neso"),
            run: root.join("run/neso"),
            log: root.join("var/log/neso"),
            operator: root.join("etc/neso/operator"),
            key_directory: Some(root.join("home/.ssh")),
            cloudapi,
            node_link,
            ops,
            cmon,
            names_listen: Some(names),
            link_prefix: link_prefix(hash),
            nft_table: format!("neso_{tag}"),
            cgroup: format!("neso-{tag}"),
            id_base: ID_BASE + u32::try_from(hash % 240).unwrap_or(0) * ZONES_PER_ROOT * ID_RANGE,
            id_ranges: Some(ZONES_PER_ROOT),
            pool_gib: 4,
            external: seconds(144).collect(),
            private: seconds(160).collect(),
        })
    }

    fn write(&self, text: &mut String, external: Ipv4Net, private: Ipv4Net) {
        let key_directory = match &self.key_directory {
            Some(path) => format!("key_directory = {}", quoted(path)),
            None => "# key_directory = \"/home/me/.ssh\"".to_owned(),
        };
        let written = write!(
            text,
            include_str!("settings.template.toml"),
            data = quoted(&self.data),
            run = quoted(&self.run),
            log = quoted(&self.log),
            operator = quoted(&self.operator),
            cloudapi = self.cloudapi,
            node_link = self.node_link,
            ops = self.ops,
            cmon = self.cmon,
            names_listen = match self.names_listen {
                Some(address) => format!("listen = [\"{address}\"]"),
                None => "# listen = [\"127.0.0.1:53\", \"10.0.0.1:53\"]".to_owned(),
            },
            link_prefix = self.link_prefix,
            nft_table = self.nft_table,
            cgroup = self.cgroup,
            id_base = self.id_base,
            id_ranges = match self.id_ranges {
                Some(count) => format!("id_ranges = {count}"),
                None => "# id_ranges = 1000".to_owned(),
            },
            pool_gib = self.pool_gib,
            external = external,
            private = private,
            key_directory = key_directory,
        );
        debug_assert!(written.is_ok(), "writing to a string cannot fail");
    }
}

/// Two characters of a hash: a letter, then a letter or digit, but no `v`, which marks NICs.
fn link_prefix(hash: u64) -> String {
    const LETTERS: &[u8] = b"abcdefghijklmopqrstuvwxyz";
    const ALL: &[u8] = b"abcdefghijklmnopqrstuwxyz0123456789";
    let pick = |from: &[u8], hash: u64| char::from(from[usize::try_from(hash % from.len() as u64).unwrap_or(0)]);
    [pick(LETTERS, hash >> 16), pick(ALL, hash >> 24)].iter().collect()
}

/// A path as a TOML string.
fn quoted(path: &Path) -> String {
    toml::Value::String(path.to_string_lossy().into_owned()).to_string()
}

/// Different ports nobody listens on now. Held until all are known, so that they differ.
fn free_ports() -> Result<[SocketAddr; 5], SettingsError> {
    let choose = |error: io::Error| SettingsError::Choose { what: "a free port", why: error.to_string() };
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let held = (0..5).map(|_| bind().map_err(choose)).collect::<Result<Vec<_>, _>>()?;
    let address = |at: usize| held[at].local_addr().map_err(choose);
    Ok([address(0)?, address(1)?, address(2)?, address(3)?, address(4)?])
}

fn choose_subnet(candidates: &[Ipv4Net], taken: &[Ipv4Net]) -> Result<Ipv4Net, SettingsError> {
    let clashes = |net: &Ipv4Net, other: &Ipv4Net| net.contains(other) || other.contains(net);
    candidates.iter().find(|net| !taken.iter().any(|other| clashes(net, other))).copied().ok_or_else(|| {
        SettingsError::Choose {
            what: "a private subnet",
            why: "the machine has routes to every candidate; write the file by hand".into(),
        }
    })
}

/// Subnets the machine has routes to now, the default route aside. Unreadable means none.
fn subnets_in_use() -> Vec<Ipv4Net> {
    parse_routes(&std::fs::read_to_string("/proc/net/route").unwrap_or_default())
}

/// The kernel prints addresses as the machine's own integers in hex.
fn parse_routes(text: &str) -> Vec<Ipv4Net> {
    let address = |hex: &str| u32::from_str_radix(hex, 16).ok().map(|raw| Ipv4Addr::from(raw.to_ne_bytes()));
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let net = Ipv4Net::with_netmask(address(fields.get(1)?)?, address(fields.get(7)?)?).ok()?;
            (net.prefix_len() > 0).then_some(net)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_text_parses_to_what_it_says() {
        let machine = Settings::parse(&Settings::generate(None).unwrap()).unwrap();
        assert_eq!(machine.paths.data, Path::new("/var/lib/neso"));
        assert_eq!(machine.kernel.link_prefix, "n");

        let one = Settings::parse(&Settings::generate(Some(Path::new("/tmp/one"))).unwrap()).unwrap();
        let two = Settings::parse(&Settings::generate(Some(Path::new("/tmp/two"))).unwrap()).unwrap();
        assert!(one.paths.run.starts_with("/tmp/one"));
        assert_ne!(one.kernel.link_prefix, two.kernel.link_prefix);
        assert_ne!(one.kernel.nft_table, two.kernel.nft_table);
        assert_ne!(one.listen.cloudapi, one.listen.ops);
        assert_ne!(Some(one.listen.ops), one.listen.cmon);
        assert_eq!(machine.monitor_url().as_deref(), Some("https://cmon.dc-1.neso.internal:9163"));
    }

    #[test]
    fn files_of_older_releases_have_a_monitor() {
        let text = Settings::generate(None).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("cmon = ")).collect();
        let old = Settings::parse(&lines.join("\n")).unwrap();
        assert_eq!(old.listen.cmon, None);
        assert_eq!(old.monitor_address(), Settings::parse(&text).unwrap().monitor_address());
    }

    #[test]
    fn mistakes_are_named() {
        let text = Settings::generate(None).unwrap();
        let wrong = |from: &str, to: &str| Settings::parse(&text.replace(from, to)).unwrap_err();
        assert!(wrong("\"n\"", "\"long\"").contains("kernel.link_prefix"));
        assert!(wrong("[pool]", "[pool]\nsise = 1").contains("sise"));
        assert!(wrong("[pool]", "[pool]\ndevice = \"vdb\"").contains("pool.device"));
        assert!(wrong("[pool]", "[pool]\ndevice = \"/dev/vdb\"\ndirectory = \"/srv\"").contains("exclude"));
        assert!(wrong("\"/run/neso\"", "\"run\"").contains("paths.run"));
    }

    #[test]
    fn routes_are_read_in_the_kernels_order() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                     eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\n\
                     eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n";
        let expected: Vec<Ipv4Net> = match cfg!(target_endian = "little") {
            true => vec!["192.168.1.0/24".parse().unwrap()],
            false => return,
        };
        assert_eq!(parse_routes(table), expected);
    }
}
