//! What a machine needs to run a headnode: asked for with `GET /v1/headnode-kit` by one whose document says that it should.
//!
//! A kit holds the keys of the datacenter. It goes over the node link alone, to the machine that was asked to be a headnode and while it is;
//! nothing here prints what is in a [`Secret`].

use std::{collections::BTreeMap, fmt};

use model::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Largest kit, bytes: a few keys, certificates and settings.
pub const KIT_MAX_BYTES: usize = 1 << 20;

/// Most files of a kit.
pub const KIT_FILES_MAX: usize = 64;

/// See the head of this file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadnodeKit {
    /// The datacenter it is of.
    pub datacenter: String,
    /// Which role it is for: [`model::role::HeadnodeRole::since`].
    pub since: Timestamp,
    /// Files to write.
    pub files: Vec<KitFile>,
    /// What all headnodes' settings say alike.
    pub settings: SharedSections,
}

/// Sections of settings as JSON objects, by name. Whoever takes them in checks them as if a person had written them.
pub type SharedSections = BTreeMap<String, serde_json::Value>;

/// One file of a kit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitFile {
    /// In which directory.
    pub place: KitPlace,
    /// Its name there, or for [`KitPlace::Anywhere`] its whole path.
    pub name: String,
    /// What is in it.
    pub content: Secret,
}

/// Where a file of a kit belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KitPlace {
    /// Beside the certificates.
    Pki,
    /// Beside the store.
    Headnode,
    /// Where the settings say.
    Anywhere,
}

/// A text that is printed nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

/// A backup that a headnode offers to another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedBackup {
    /// Of its file.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its file, lower-case hex.
    pub sha256: String,
}

/// Names a headnode says it holds at most.
pub const BACKUPS_HELD_MAX: usize = 16;
/// Largest list of offered backups, bytes.
pub const BACKUPS_MAX_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_is_not_printed() {
        let file = KitFile { place: KitPlace::Pki, name: "ca.key".into(), content: Secret("sesame".into()) };
        let kit = HeadnodeKit {
            datacenter: "dc".into(),
            since: Timestamp(1),
            files: vec![file],
            settings: SharedSections::new(),
        };
        let printed = format!("{kit:?}");
        assert!(printed.contains("ca.key") && !printed.contains("sesame"), "{printed}");
        let read: HeadnodeKit = serde_json::from_str(&serde_json::to_string(&kit).unwrap()).unwrap();
        assert_eq!(read, kit);
    }
}
