//! Where records are kept.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::join::is_address;

/// Which engine, and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSettings {
    /// What keeps the bytes.
    pub engine: StoreEngine,
    /// Members of the etcd cluster, `https://HOST[:PORT]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// The authority of their certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<PathBuf>,
    /// The certificate they know this headnode by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The members' `--max-txn-ops`.
    pub operations_max: usize,
    /// How large the file of a member that we run may become, MiB.
    pub quota_mib: u64,
    /// Kept back of it, MiB, so that a full store still deletes.
    pub reserve_mib: u64,
    /// `HOST:PORT` of the member on this machine for headnodes, when we run one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member_client: Option<String>,
    /// `HOST:PORT` of it for other members.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member_peer: Option<String>,
}

/// Smallest quota of a member, MiB.
const QUOTA_MIN_MIB: u64 = 64;
/// Largest: etcd becomes slow to start beyond.
const QUOTA_MAX_MIB: u64 = 8 << 10;
/// Smallest reserve, MiB: what all headnodes may write while they do not look.
const RESERVE_MIN_MIB: u64 = 16;

/// What keeps the bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreEngine {
    /// A file of this headnode while it is alone, members of an etcd cluster that headnodes run while there are several.
    #[default]
    Sqlite,
    /// A cluster that somebody else keeps.
    Etcd,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            engine: StoreEngine::default(),
            endpoints: Vec::new(),
            authority: None,
            certificate: None,
            key: None,
            operations_max: etcd::OPERATIONS_MAX_DEFAULT,
            quota_mib: 4 << 10,
            reserve_mib: 256,
            member_client: None,
            member_peer: None,
        }
    }
}

impl StoreSettings {
    pub(super) fn check(&self) -> Result<(), String> {
        let files = [("authority", &self.authority), ("certificate", &self.certificate), ("key", &self.key)];
        for (name, path) in files {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                return Err(format!("store.{name} must be an absolute path, not `{}`", path.display()));
            }
        }
        if !(QUOTA_MIN_MIB..=QUOTA_MAX_MIB).contains(&self.quota_mib) {
            return Err(format!("store.quota_mib must be {QUOTA_MIN_MIB} to {QUOTA_MAX_MIB}, not {}", self.quota_mib));
        }
        if !(RESERVE_MIN_MIB..=self.quota_mib / 2).contains(&self.reserve_mib) {
            return Err(format!(
                "store.reserve_mib must be {RESERVE_MIN_MIB} to {}, half of store.quota_mib, not {}",
                self.quota_mib / 2,
                self.reserve_mib
            ));
        }
        for (name, address) in [("member_client", &self.member_client), ("member_peer", &self.member_peer)] {
            if let Some(address) = address.as_ref().filter(|address| !is_address(address)) {
                return Err(format!("store.{name} must be HOST:PORT, not `{address}`"));
            }
        }
        if self.engine == StoreEngine::Sqlite {
            return match self.endpoints.is_empty() && files.iter().all(|(_, path)| path.is_none()) {
                true => Ok(()),
                false => Err("store.endpoints and certificates are for store.engine = \"etcd\"".to_owned()),
            };
        }
        if self.endpoints.is_empty() {
            return Err("store.endpoints must name the members of the etcd cluster".to_owned());
        }
        let given = files.iter().filter(|(_, path)| path.is_some()).count();
        if given != 0 && given != files.len() {
            return Err("store.authority, store.certificate and store.key go together; give all three".to_owned());
        }
        for text in &self.endpoints {
            let endpoint = etcd::Endpoint::parse(text).map_err(|why| format!("store.endpoints: {why}"))?;
            if endpoint.is_tls() && given == 0 {
                return Err(format!(
                    "store.endpoints: `{text}` needs store.authority, store.certificate and store.key"
                ));
            }
        }
        Ok(())
    }

    /// What the engine is given: every datacenter has keys of its own, and everybody who commits a name.
    pub(crate) fn etcd(&self, datacenter: &str, name: &str) -> etcd::Config {
        let tls = match (&self.authority, &self.certificate, &self.key) {
            (Some(authority), Some(certificate), Some(key)) => {
                Some(etcd::Tls { authority: authority.clone(), certificate: certificate.clone(), key: key.clone() })
            }
            _ => None,
        };
        etcd::Config {
            endpoints: self.endpoints.clone(),
            tls,
            prefix: format!("neso/{datacenter}"),
            name: name.to_owned(),
            operations_max: self.operations_max,
            room: None,
            data: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::{Settings, StoreEngine};

    #[test]
    fn mistakes_are_named() {
        let text = Settings::generate(None).unwrap();
        let with = |lines: &str| {
            let store = "engine = \"sqlite\"\n";
            assert!(text.contains(store));
            Settings::parse(&text.replace(store, &format!("{lines}\n")))
        };
        let wrong = |lines: &str| with(lines).unwrap_err();
        assert!(wrong("engine = \"oracle\"").contains("oracle"));
        assert!(wrong("engine = \"etcd\"").contains("store.endpoints"));
        assert!(wrong("endpoints = [\"https://10.0.0.1\"]").contains("store.engine"));
        assert!(wrong("engine = \"etcd\"\nendpoints = [\"https://10.0.0.1\"]").contains("store.authority"));
        assert!(wrong("engine = \"etcd\"\nendpoints = [\"http://10.0.0.1\"]").contains("loopback"));
        assert!(wrong("engine = \"etcd\"\nendpoints = [\"http://127.0.0.1\"]\nkey = \"/k\"").contains("all three"));
        assert!(wrong("engine = \"etcd\"\nendpoints = [\"http://127.0.0.1\"]\nkey = \"k\"").contains("absolute"));
        assert!(wrong("quota_mib = 1").contains("store.quota_mib"));
        assert!(wrong("quota_mib = 100\nreserve_mib = 51").contains("store.reserve_mib"));
        assert!(wrong("reserve_mib = 1").contains("store.reserve_mib"));
        assert!(wrong("member_peer = \"here\"").contains("store.member_peer"));
        assert_eq!(with("member_peer = \"10.0.0.1:2380\"").unwrap().store.quota_mib, 4096);
        let good = with("engine = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]").unwrap();
        assert_eq!(good.store.engine, StoreEngine::Etcd);
        assert_eq!(good.store.etcd("dc", "me").prefix, "neso/dc");
    }
}
