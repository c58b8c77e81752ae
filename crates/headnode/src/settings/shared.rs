//! What the settings of all headnodes must say alike, since each of them decides with its own: a headnode with another rule of placement would
//! place otherwise, one with another VXLAN port would tell machines another document.
//!
//! Where this machine listens, where its files lie and what its kernel calls things is its own. A difference is no error, for settings are
//! changed on one headnode after the other; it is told by [`Shared::digest`] in the headnodes' records.

use std::{net::IpAddr, path::PathBuf};

use ipnet::{IpNet, Ipv6Net};
use model::part::Digest;
use nodeapi::kit::SharedSections;
use serde::{Deserialize, Serialize};

use super::{
    Backup, Datacenter, Door, Fabric, Names, NetworkSettings, Placement, Settings, SharedNames, StoreEngine,
    StoreSettings,
};

/// See the head of this file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    /// All of it.
    pub datacenter: Datacenter,
    /// All of it.
    pub cloudapi: Door,
    /// All of it.
    pub placement: Placement,
    /// What is said where a headnode runs.
    pub fabric: SharedFabric,
    /// All of it: instances reach headnodes at its first address.
    pub external: NetworkSettings,
    /// All of it.
    pub private: NetworkSettings,
    /// How often, how long, and the key; where they go is each machine's own.
    pub backup: SharedBackup,
    /// All but where this machine answers.
    #[serde(default)]
    pub names: SharedNames,
    /// A cluster that somebody else keeps; `None` where neso keeps the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreSettings>,
}

/// The part of [`Fabric`] that all headnodes share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedFabric {
    /// See [`Fabric::vnis`].
    pub vnis: [u32; 2],
    /// See [`Fabric::mtu`].
    pub mtu: u16,
    /// See [`Fabric::vxlan_port`].
    pub vxlan_port: u16,
    /// See [`Fabric::first_network`].
    pub first_network: bool,
    /// See [`Fabric::first_vlan`].
    pub first_vlan: u16,
    /// See [`Fabric::first_subnet`].
    pub first_subnet: IpNet,
    /// See [`Fabric::first_subnet6`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_subnet6: Option<Ipv6Net>,
    /// See [`Fabric::first_resolvers`].
    pub first_resolvers: Vec<IpAddr>,
}

/// The part of [`Backup`] that all headnodes share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedBackup {
    /// See [`Backup::every_hours`].
    pub every_hours: u32,
    /// See [`Backup::keep_days`].
    pub keep_days: u32,
    /// See [`Backup::key_file`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

/// Why settings could not be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// They are not what this program knows.
    #[error("the headnode's settings are not understood here: {0}")]
    Unknown(String),
    /// They do not fit this machine's own.
    #[error("the headnode's settings do not fit into this machine's: {0}")]
    Misfit(String),
}

impl Shared {
    /// What tells these settings from others.
    pub fn digest(&self) -> Digest {
        Digest::of(self)
    }

    /// As they travel.
    pub fn sections(&self) -> SharedSections {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(sections)) => sections.into_iter().collect(),
            _ => SharedSections::new(),
        }
    }

    /// As they arrive.
    pub fn of_sections(sections: &SharedSections) -> Result<Self, AdoptError> {
        let value = serde_json::Value::Object(sections.clone().into_iter().collect());
        serde_json::from_value(value).map_err(|error| AdoptError::Unknown(error.to_string()))
    }

    /// Names of the sections that differ.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (ours, theirs) = (self.sections(), other.sections());
        let names = ours.keys().chain(theirs.keys().filter(|name| !ours.contains_key(*name)));
        names.filter(|name| ours.get(*name) != theirs.get(*name)).cloned().collect()
    }
}

impl Settings {
    /// What all headnodes' settings must say alike.
    pub fn shared(&self) -> Shared {
        let Fabric {
            underlay_address: _,
            nic_tags: _,
            vnis,
            mtu,
            vxlan_port,
            first_network,
            first_vlan,
            first_subnet,
            first_subnet6,
            first_resolvers,
        } = self.fabric.clone();
        let Backup { every_hours, keep_days, key_file, .. } = self.backup.clone();
        Shared {
            datacenter: self.datacenter.clone(),
            cloudapi: self.cloudapi.clone(),
            placement: self.placement.clone(),
            fabric: SharedFabric {
                vnis,
                mtu,
                vxlan_port,
                first_network,
                first_vlan,
                first_subnet,
                first_subnet6,
                first_resolvers,
            },
            external: self.external.clone(),
            private: self.private.clone(),
            backup: SharedBackup { every_hours, keep_days, key_file },
            names: self.names.shared.clone(),
            store: (self.store.engine == StoreEngine::Etcd).then(|| self.store.clone()),
        }
    }

    /// These settings with what all headnodes share.
    fn adopting(&self, shared: &Shared) -> Self {
        let SharedFabric {
            vnis,
            mtu,
            vxlan_port,
            first_network,
            first_vlan,
            first_subnet,
            first_subnet6,
            first_resolvers,
        } = shared.fabric.clone();
        let SharedBackup { every_hours, keep_days, key_file } = shared.backup.clone();
        Self {
            datacenter: shared.datacenter.clone(),
            cloudapi: shared.cloudapi.clone(),
            placement: shared.placement.clone(),
            fabric: Fabric {
                vnis,
                mtu,
                vxlan_port,
                first_network,
                first_vlan,
                first_subnet,
                first_subnet6,
                first_resolvers,
                ..self.fabric.clone()
            },
            external: shared.external.clone(),
            private: shared.private.clone(),
            backup: Backup { every_hours, keep_days, key_file, ..self.backup.clone() },
            names: Names { shared: shared.names.clone(), ..self.names.clone() },
            // Where neso keeps the store, how its member here is reached is this machine's own affair.
            store: match &shared.store {
                Some(store) => store.clone(),
                None if self.store.engine == StoreEngine::Sqlite => self.store.clone(),
                None => StoreSettings::default(),
            },
            ..self.clone()
        }
    }
}

/// The text of a settings file in which the shared sections say what `shared` says. Sections that say it already, and everything else,
/// stay as they were written.
pub(crate) fn adopt(text: &str, shared: &Shared) -> Result<String, AdoptError> {
    let misfit = |why: String| AdoptError::Misfit(why);
    let old = Settings::parse(text).map_err(misfit)?;
    let new = old.adopting(shared);
    let mut text = text.to_owned();
    section(&mut text, "datacenter", &old.datacenter, &new.datacenter)?;
    section(&mut text, "store", &old.store, &new.store)?;
    section(&mut text, "cloudapi", &old.cloudapi, &new.cloudapi)?;
    section(&mut text, "fabric", &old.fabric, &new.fabric)?;
    section(&mut text, "external", &old.external, &new.external)?;
    section(&mut text, "private", &old.private, &new.private)?;
    section(&mut text, "placement", &old.placement, &new.placement)?;
    section(&mut text, "backup", &old.backup, &new.backup)?;
    section(&mut text, "names", &old.names, &new.names)?;
    let read = Settings::parse(&text).map_err(misfit)?;
    match read == new {
        true => Ok(text),
        false => Err(misfit("the file would not say what was written".to_owned())),
    }
}

/// Writes one section anew if it differs.
fn section<T: Serialize + PartialEq>(text: &mut String, name: &str, old: &T, new: &T) -> Result<(), AdoptError> {
    if old == new {
        return Ok(());
    }
    let whole = toml::Table::from_iter([(
        name.to_owned(),
        toml::Value::try_from(new).map_err(|error| AdoptError::Misfit(format!("{name}: {error}")))?,
    )]);
    let body = toml::to_string(&whole).map_err(|error| AdoptError::Misfit(format!("{name}: {error}")))?;
    let written = format!("# Written when this machine became a headnode: the same on all of them.\n{body}\n");
    let (before, after) = cut(text, name);
    *text = format!("{before}{written}{after}");
    Ok(())
}

/// The text before a section and what follows it; a section that is not there is at the end.
fn cut<'a>(text: &'a str, name: &str) -> (&'a str, &'a str) {
    let (own, inner, list) = (format!("[{name}]"), format!("[{name}."), format!("[[{name}."));
    let (mut from, mut to, mut at) = (None, text.len(), 0);
    for line in text.split_inclusive('\n') {
        let head = line.trim();
        let is_own = head == own || head.starts_with(&inner) || head.starts_with(&list);
        match (is_own, from) {
            (true, None) => from = Some(at),
            (false, Some(_)) if head.starts_with('[') => {
                to = at;
                break;
            }
            _ => {}
        }
        at += line.len();
    }
    let from = from.unwrap_or(text.len());
    (&text[..from], &text[to.max(from)..])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn of(root: &str, edit: impl FnOnce(String) -> String) -> (String, Settings) {
        let text = edit(Settings::generate(Some(Path::new(root))).unwrap());
        let settings = Settings::parse(&text).unwrap();
        (text, settings)
    }

    #[test]
    fn a_machine_takes_over_what_is_shared_and_keeps_what_is_its_own() {
        let (_, head) = of("/tmp/head", |text| {
            text.replace("name = \"dc-1\"", "name = \"east\"")
                .replace("mtu = 1400", "mtu = 8900")
                .replace("memory = 2\n", "memory = -2\n")
                .replace("throttle_rate = 50", "throttle_rate = 0.5")
                .replace("keep_days = 30", "keep_days = 7")
        });
        let (text, own) = of("/tmp/other", |text| {
            let fabric = "[fabric]\nunderlay_address = \"10.0.0.9\"\nnic_tags = [\"ext\"]";
            let join = "\n[join]\nheadnodes = [\"10.0.0.1:8444\"]\n";
            format!("{}{join}", text.replace("[fabric]", fabric).replace("copies = []", "copies = [\"/srv\"]"))
        });
        assert_ne!(own.shared().digest(), head.shared().digest());
        let travelled = Shared::of_sections(&head.shared().sections()).unwrap();
        let adopted = adopt(&text, &travelled).unwrap();
        let read = Settings::parse(&adopted).unwrap();
        assert_eq!(read.shared(), head.shared());
        assert_eq!(read.shared().digest(), head.shared().digest());
        assert_eq!((&read.paths, &read.kernel, &read.listen), (&own.paths, &own.kernel, &own.listen));
        assert_eq!((&read.join, &read.pool), (&own.join, &own.pool));
        assert_eq!(read.fabric.underlay_address, own.fabric.underlay_address);
        assert_eq!((&read.fabric.nic_tags, &read.backup.copies), (&own.fabric.nic_tags, &own.backup.copies));
        assert!(adopted.contains("# Nodes dial in here"), "a person's own words stay");
        assert_eq!(adopt(&adopted, &travelled).unwrap(), adopted, "again it changes nothing");
        let unchanged = adopt(&text, &own.shared()).unwrap();
        assert_eq!(unchanged, text);
    }

    #[test]
    fn lists_of_tables_are_replaced_with_their_section() {
        let with = |text: String, zone: &str| {
            text.replace("[first_run]\n", &format!("[[names.zones]]\nname = \"{zone}\"\n\n[first_run]\n"))
        };
        let (_, head) = of("/tmp/head", |text| with(text, "a.example"));
        let (text, own) = of("/tmp/other", |text| with(text, "b.example"));
        assert!(own.shared().differences(&head.shared()).contains(&"names".to_owned()));
        let read = Settings::parse(&adopt(&text, &head.shared()).unwrap()).unwrap();
        assert_eq!((&read.names.shared, &read.names.listen), (&head.names.shared, &own.names.listen));
        assert_eq!(read.names.shared.zones[0].name, "a.example");
    }

    #[test]
    fn a_section_that_is_missing_is_added_and_nonsense_refused() {
        let (text, own) = of("/tmp/silent", |text| {
            let (before, after) = (text.find("[backup]").unwrap(), text.find("[first_run]").unwrap());
            format!("{}{}", &text[..before], &text[after..])
        });
        let mut shared = own.shared();
        shared.backup.keep_days = 3;
        assert_eq!(Settings::parse(&adopt(&text, &shared).unwrap()).unwrap().backup.keep_days, 3);
        shared.fabric.mtu = 1;
        assert!(adopt(&text, &shared).unwrap_err().to_string().contains("fabric.mtu"));
        let mut sections = own.shared().sections();
        sections.insert("weather".into(), serde_json::json!({}));
        assert!(Shared::of_sections(&sections).unwrap_err().to_string().contains("weather"));
        let mut other = own.shared();
        other.placement.instances_max += 1;
        assert_eq!(own.shared().differences(&other), ["placement"]);
    }

    #[test]
    fn a_cluster_somebody_else_keeps_goes_along() {
        let (_, head) = of("/tmp/etcd", |text| {
            text.replace("engine = \"sqlite\"", "engine = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]")
        });
        let (text, _) = of("/tmp/node", |text| text);
        let read = Settings::parse(&adopt(&text, &head.shared()).unwrap()).unwrap();
        assert_eq!(read.store, head.store);
    }
}
