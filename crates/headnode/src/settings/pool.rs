//! Where instances' disks live.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where instances' disks live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Size of the loop file in GiB when the pool is one. The file is sparse.
    pub size_gib: u64,
    /// A directory on btrfs to use instead of a loop file.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// A whole disk or partition to use instead of a loop file; formatted if it is blank.
    #[serde(default)]
    pub device: Option<PathBuf>,
}

impl Pool {
    pub(super) fn check(&self) -> Result<(), String> {
        for (name, path) in [("directory", &self.directory), ("device", &self.device)] {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                return Err(format!("pool.{name} must be an absolute path, not `{}`", path.display()));
            }
        }
        match self.directory.is_some() && self.device.is_some() {
            true => Err("pool.directory and pool.device exclude each other; keep one of them".into()),
            false => Ok(()),
        }
    }
}
