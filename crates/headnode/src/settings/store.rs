//! Where records are kept.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
}

/// What keeps the bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreEngine {
    /// A file of this headnode alone.
    #[default]
    Sqlite,
    /// A cluster that several headnodes share.
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
        let good = with("engine = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]").unwrap();
        assert_eq!(good.store.engine, StoreEngine::Etcd);
        assert_eq!(good.store.etcd("dc", "me").prefix, "neso/dc");
    }
}
