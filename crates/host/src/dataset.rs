//! Datasets: read-only images, and the writable roots cloned from them.

use std::{collections::BTreeMap, io::Read, path::PathBuf};

use model::{
    id::{ImageId, InstanceId},
    image::Compression,
    unit::Mib,
};

use crate::error::{Error, Result};

/// Use of the pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolUsage {
    /// Bytes in all.
    pub size_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
}

/// Root file systems and images.
pub trait Datasets: Send + Sync {
    /// Makes a read-only image dataset from a tar archive. `archive` yields the file as stored; its SHA-256 must be
    /// `sha256`, and no member may leave the root. On any error nothing remains. An image that is there is left alone.
    fn import(&self, image: ImageId, sha256: &str, compression: Compression, archive: &mut dyn Read) -> Result<()>;

    /// Images that are complete.
    fn images(&self) -> Result<Vec<ImageId>>;

    /// Drops an image dataset; instances cloned from it live on.
    fn remove_image(&self, image: ImageId) -> Result<()>;

    /// Clones an image into a writable root with a quota, and returns its directory. One that is there is left alone.
    fn clone_image(&self, image: ImageId, instance: InstanceId, quota: Mib) -> Result<PathBuf>;

    /// Changes the quota of a root. One below what it holds is refused.
    fn set_quota(&self, instance: InstanceId, quota: Mib) -> Result<()>;

    /// Roots that exist.
    fn roots(&self) -> Result<Vec<InstanceId>>;

    /// Bytes a root uses of its quota; what was written in the last half minute may not count yet.
    fn used_bytes(&self, instance: InstanceId) -> Result<u64>;

    /// The same of all roots at once.
    fn used_by_roots(&self) -> Result<BTreeMap<InstanceId, u64>> {
        let mut used = BTreeMap::new();
        for instance in self.roots()? {
            match self.used_bytes(instance) {
                // Gone between the two looks.
                Err(Error::Missing(_)) => {}
                found => drop(used.insert(instance, found?)),
            }
        }
        Ok(used)
    }

    /// Destroys a root and all in it.
    fn remove_root(&self, instance: InstanceId) -> Result<()>;

    /// Size and use of the pool.
    fn pool(&self) -> Result<PoolUsage>;
}

/// Refuses a quota below what is used: the instance could write nothing, not even what makes room.
pub(crate) fn room_for(used_bytes: u64, quota: Mib) -> Result<()> {
    if used_bytes <= quota.bytes() {
        return Ok(());
    }
    Err(Error::Refused {
        what: format!("a disk quota of {quota}"),
        why: format!("the instance holds {} MiB; remove files inside first", used_bytes.div_ceil(1 << 20)),
    })
}
