//! Names of instances: the zones, who answers for them, and who may have them whole.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use control::names::{NamesConfig, REST, ZoneConfig};
use ipnet::IpNet;
use model::names::check_name;
use serde::{Deserialize, Serialize};

use super::Datacenter;

/// Zones at most.
const ZONES_MAX: usize = 16;
/// Entries of each other list at most.
const LIST_MAX: usize = 64;
/// Addresses to answer at, at most.
const LISTEN_MAX: usize = 16;
/// The longest a record may be remembered, seconds: a week.
const TTL_MAX_SECONDS: u32 = 7 * 24 * 3_600;
/// Where name servers are expected.
const PORT: u16 = 53;
/// Ways to sign a message.
const ALGORITHMS: [&str; 3] = ["hmac-sha256", "hmac-sha384", "hmac-sha512"];

/// See the head of this file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Names {
    /// Where this machine answers; port 53 of the loopback address and of the one others reach it at when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Vec<SocketAddr>>,
    /// What all headnodes say alike.
    #[serde(flatten)]
    pub shared: SharedNames,
    /// What nobody knows; refused by its name.
    #[serde(flatten, skip_serializing)]
    pub(super) unknown: BTreeMap<String, serde_json::Value>,
}

/// What all headnodes say alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SharedNames {
    /// Whether there are any.
    pub enabled: bool,
    /// Whether instances of new accounts have them.
    pub new_accounts: bool,
    /// What the NS records say; the headnodes when there are none.
    pub name_servers: Vec<String>,
    /// Where mail about the zones goes, as a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostmaster: Option<String>,
    /// Seconds a record may be remembered.
    pub ttl_seconds: u32,
    /// Seconds the list of name servers may be remembered.
    pub ns_ttl_seconds: u32,
    /// Whether addresses lead back to names.
    pub reverse: bool,
    /// Whether zones are signed unless they say otherwise (DNSSEC).
    pub dnssec: bool,
    /// Most equal answers a second to one client over UDP; 0 is no limit.
    pub answers_per_second: u32,
    /// The zones; one with every network when there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<NamesZone>,
    /// Keys that messages of secondaries are signed with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<NamesKey>,
    /// Who may have whole zones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub transfers: Vec<NamesTransfer>,
    /// Whom to tell of changes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<NamesNotify>,
}

/// One zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamesZone {
    /// Its whole name.
    pub name: String,
    /// Networks or pools by name or id, or `*`.
    #[serde(default = "every_network")]
    pub networks: Vec<String>,
    /// Who may ask; everybody when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<IpNet>,
    /// Its name servers when they are others than those of all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub name_servers: Vec<String>,
    /// Whether it is signed when others are not, or not when others are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dnssec: Option<bool>,
}

/// A key both sides of a transfer know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamesKey {
    /// What both sides call it.
    pub name: String,
    /// `hmac-sha256`, `hmac-sha384` or `hmac-sha512`.
    #[serde(default = "usual_algorithm")]
    pub algorithm: String,
    /// File with the secret as base64; on every headnode.
    pub file: PathBuf,
}

/// Who may have whole zones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamesTransfer {
    /// From where.
    pub network: IpNet,
    /// With which key, if with any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Whom to tell of changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamesNotify {
    /// Where.
    pub address: SocketAddr,
    /// With which key, if with any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

fn every_network() -> Vec<String> {
    vec![REST.to_owned()]
}

fn usual_algorithm() -> String {
    ALGORITHMS[0].to_owned()
}

impl Default for SharedNames {
    fn default() -> Self {
        let NamesConfig { ttl_seconds, ns_ttl_seconds, reverse, new_accounts, .. } = NamesConfig::default();
        Self {
            enabled: true,
            new_accounts,
            name_servers: Vec::new(),
            hostmaster: None,
            ttl_seconds,
            ns_ttl_seconds,
            reverse,
            dnssec: false,
            answers_per_second: 200,
            zones: Vec::new(),
            keys: Vec::new(),
            transfers: Vec::new(),
            notify: Vec::new(),
        }
    }
}

impl Names {
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(field) = self.unknown.keys().next() {
            return Err(format!("names.{field}: there is no such setting"));
        }
        let shared = &self.shared;
        let lists = [
            ("listen", self.listen.as_ref().map_or(0, Vec::len), LISTEN_MAX),
            ("zones", shared.zones.len(), ZONES_MAX),
            ("keys", shared.keys.len(), LIST_MAX),
            ("transfers", shared.transfers.len(), LIST_MAX),
            ("notify", shared.notify.len(), LIST_MAX),
            ("name_servers", shared.name_servers.len(), LIST_MAX),
        ];
        if let Some((field, count, most)) = lists.into_iter().find(|(_, count, most)| count > most) {
            return Err(format!("names.{field} may have {most} entries at most, not {count}"));
        }
        if let Some(address) = self.listen.iter().flatten().find(|address| address.ip().is_unspecified()) {
            return Err(format!(
                "names.listen must name each address by itself, not {address}: an answer leaves from the address that was asked"
            ));
        }
        if let Some(address) = self.listen.iter().flatten().find(|address| address.port() == 0) {
            return Err(format!("names.listen must name a port, 53 as a rule: {address} does not"));
        }
        let ttls = [("ttl_seconds", shared.ttl_seconds), ("ns_ttl_seconds", shared.ns_ttl_seconds)];
        if let Some((field, ttl)) = ttls.into_iter().find(|(_, ttl)| *ttl > TTL_MAX_SECONDS) {
            return Err(format!("names.{field} must be {TTL_MAX_SECONDS} at most, not {ttl}"));
        }
        let named = |field: &str, name: &str| check_name(name).map_err(|why| format!("names.{field}: {why}"));
        for name in shared.name_servers.iter().chain(&shared.hostmaster) {
            named("name_servers and names.hostmaster", name)?;
        }
        for (at, zone) in shared.zones.iter().enumerate() {
            named("zones", &zone.name)?;
            for name in &zone.name_servers {
                named("zones.name_servers", name)?;
            }
            let same = |other: &NamesZone| other.name.eq_ignore_ascii_case(&zone.name);
            if shared.zones[..at].iter().any(same) {
                return Err(format!("names.zones has \"{}\" twice", zone.name));
            }
            if zone.networks.is_empty() || zone.networks.len() > LIST_MAX || zone.clients.len() > LIST_MAX {
                return Err(format!(
                    "names.zones \"{}\" must list 1 to {LIST_MAX} networks and {LIST_MAX} clients at most",
                    zone.name
                ));
            }
        }
        self.check_keys()
    }

    fn check_keys(&self) -> Result<(), String> {
        let SharedNames { keys, transfers, notify, .. } = &self.shared;
        for key in keys {
            check_name(&key.name).map_err(|why| format!("names.keys: {why}"))?;
            if !ALGORITHMS.contains(&key.algorithm.as_str()) {
                return Err(format!(
                    "names.keys \"{}\" must be of {}, not \"{}\"",
                    key.name,
                    ALGORITHMS.join(", "),
                    key.algorithm
                ));
            }
            if !key.file.is_absolute() {
                return Err(format!(
                    "names.keys \"{}\": file must be an absolute path, not `{}`",
                    key.name,
                    key.file.display()
                ));
            }
        }
        let users = transfers.iter().map(|transfer| &transfer.key).chain(notify.iter().map(|notify| &notify.key));
        for user in users.flatten() {
            if !keys.iter().any(|key| key.name == *user) {
                return Err(format!("names.transfers or names.notify has key \"{user}\", which names.keys has not"));
            }
        }
        Ok(())
    }

    /// What the control plane needs of it.
    pub(crate) fn config(&self, datacenter: &Datacenter) -> NamesConfig {
        let shared = &self.shared;
        let lower = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect::<Vec<_>>();
        let zones = shared.zones.iter().map(|zone| ZoneConfig {
            apex: zone.name.to_ascii_lowercase(),
            networks: zone.networks.clone(),
            clients: zone.clients.clone(),
            name_servers: lower(&zone.name_servers),
            signed: zone.dnssec.unwrap_or(shared.dnssec),
        });
        let zones: Vec<ZoneConfig> = match (shared.enabled, shared.zones.is_empty()) {
            (false, _) => Vec::new(),
            (true, false) => zones.collect(),
            (true, true) => {
                let usual = NamesConfig::one(self.usual_zone(datacenter)).zones;
                usual.into_iter().map(|zone| ZoneConfig { signed: shared.dnssec, ..zone }).collect()
            }
        };
        NamesConfig {
            zones,
            name_servers: lower(&shared.name_servers),
            hostmaster: shared.hostmaster.as_ref().map(|name| name.to_ascii_lowercase()),
            ttl_seconds: shared.ttl_seconds,
            ns_ttl_seconds: shared.ns_ttl_seconds,
            reverse: shared.reverse,
            signed: shared.dnssec,
            new_accounts: shared.new_accounts,
        }
    }

    /// The zones with names of instances; without names, the one there would be.
    pub(super) fn apexes(&self, datacenter: &Datacenter) -> Vec<String> {
        match self.shared.zones.as_slice() {
            [] => vec![self.usual_zone(datacenter)],
            zones => zones.iter().map(|zone| zone.name.to_ascii_lowercase()).collect(),
        }
    }

    /// The zone there is when the file says none.
    fn usual_zone(&self, datacenter: &Datacenter) -> String {
        let label = model::names::label_of(&datacenter.name);
        format!("{label}.{}", datacenter.dns_suffix.trim_matches('.')).to_ascii_lowercase()
    }

    /// Where to answer, on a machine that others reach at `own`.
    pub fn addresses(&self, own: Option<IpAddr>) -> Vec<SocketAddr> {
        match &self.listen {
            Some(listen) => listen.clone(),
            None => {
                let mut addresses = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))];
                addresses.extend(own.filter(|own| !own.is_loopback()).map(|own| SocketAddr::from((own, PORT))));
                addresses
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    fn read(names: &str) -> Result<Settings, String> {
        let text = Settings::generate(None).unwrap();
        let (before, after) = (text.find("[names]").unwrap(), text.find("[first_run]").unwrap());
        Settings::parse(&format!("{}{names}\n{}", &text[..before], &text[after..]))
    }

    #[test]
    fn the_file_says_what_the_program_takes_for_granted() {
        let said = Settings::parse(&Settings::generate(None).unwrap()).unwrap();
        assert_eq!(said.names, Names::default());
        assert_eq!(read("").unwrap().names, Names::default());
        let config = said.names.config(&said.datacenter);
        assert_eq!(config, NamesConfig::one("dc-1.neso.internal"));
        assert_eq!(said.names.addresses(None), ["127.0.0.1:53".parse().unwrap()]);
        assert_eq!(said.names.addresses("10.0.0.7".parse().ok())[1], "10.0.0.7:53".parse().unwrap());
        let rooted = Settings::parse(&Settings::generate(Some(std::path::Path::new("/tmp/one"))).unwrap()).unwrap();
        let listen = rooted.names.addresses(None);
        assert!(listen.len() == 1 && listen[0].ip().is_loopback() && listen[0].port() > 1_000, "{listen:?}");
    }

    #[test]
    fn zones_and_secondaries() {
        let settings = read(
            "[names]\nnew_accounts = true\nname_servers = [\"NS1.example.com\"]\n\
             [[names.zones]]\nname = \"Cns.Example.com\"\nnetworks = [\"external\"]\n\
             [[names.zones]]\nname = \"in.example.com\"\ndnssec = true\nclients = [\"10.0.0.0/8\"]\nname_servers = [\"ns9.example.com\"]\n\
             [[names.keys]]\nname = \"t\"\nfile = \"/etc/t\"\n\
             [[names.transfers]]\nnetwork = \"192.0.2.0/24\"\nkey = \"t\"\n\
             [[names.notify]]\naddress = \"192.0.2.1:53\"\n",
        )
        .unwrap();
        let config = settings.names.config(&settings.datacenter);
        let apexes: Vec<&str> = config.zones.iter().map(|zone| zone.apex.as_str()).collect();
        assert_eq!(apexes, ["cns.example.com", "in.example.com"]);
        assert_eq!(
            (&config.zones[0].networks, &config.zones[1].networks),
            (&vec!["external".to_owned()], &vec![REST.to_owned()])
        );
        assert_eq!(config.zones[1].name_servers, ["ns9.example.com"]);
        assert_eq!((config.zones[0].signed, config.zones[1].signed, config.signed), (false, true, false));
        let all = read("[names]\ndnssec = true").unwrap();
        let all = all.names.config(&all.datacenter);
        assert!(all.zones[0].signed && all.signed);
        assert_eq!(config.name_servers, ["ns1.example.com"]);
        assert!(config.new_accounts);
        assert_eq!(read("[names]\nenabled = false").map(|s| s.names.config(&s.datacenter).zones), Ok(Vec::new()));
    }

    #[test]
    fn mistakes_are_named() {
        for (names, word) in [
            ("[names]\nlissen = []", "names.lissen"),
            ("[names]\nlisten = [\"0.0.0.0:53\"]", "names.listen must name each address"),
            ("[names]\nlisten = [\"127.0.0.1:0\"]", "names.listen must name a port"),
            ("[names]\nttl_seconds = 9999999", "names.ttl_seconds"),
            ("[names]\nname_servers = [\"a_b\"]", "names.name_servers"),
            ("[names]\n[[names.zones]]\nname = \"a..b\"", "names.zones"),
            ("[names]\n[[names.zones]]\nname = \"a.b\"\nnetworks = []", "must list 1 to 64 networks"),
            ("[names]\n[[names.zones]]\nname = \"a.b\"\n[[names.zones]]\nname = \"A.b\"", "twice"),
            ("[names]\n[[names.keys]]\nname = \"t\"\nfile = \"t\"", "absolute path"),
            (
                "[names]\n[[names.keys]]\nname = \"t\"\nfile = \"/t\"\nalgorithm = \"hmac-md5\"",
                "hmac-sha256, hmac-sha384",
            ),
            ("[names]\n[[names.transfers]]\nnetwork = \"10.0.0.0/8\"\nkey = \"x\"", "has key \"x\""),
        ] {
            let why = read(names).unwrap_err();
            assert!(why.contains(word), "{names}: {why}");
        }
    }
}
