//! A real pool on a file of its own, gone with the value.

use std::path::PathBuf;

use host::linux::{
    dataset::LinuxDatasets,
    pool::{self, Backing, PoolConfig},
};
use model::{
    id::{ImageId, InstanceId},
    image::Compression,
    unit::Mib,
};
use tempfile::TempDir;

use super::Pack;

/// A pool and the directory it is in.
pub(super) struct Site {
    pub(super) config: PoolConfig,
    pub(super) outside: TempDir,
}

impl Site {
    /// A pool of the smallest size.
    pub(super) fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the kernel tier needs root: it mounts a file system");
        let outside = tempfile::Builder::new().prefix("neso-pool-test-").tempdir().expect("a directory");
        let config = PoolConfig {
            dir: outside.path().join("pool"),
            backing: Backing::File { path: outside.path().join("pool.img"), size: pool::SIZE_MIN },
        };
        Self { config, outside }
    }

    /// The datasets, as an agent opens them.
    pub(super) fn open(&self) -> LinuxDatasets {
        LinuxDatasets::open(&self.config).expect("a pool")
    }

    /// Imports `pack` and clones it.
    pub(super) fn root_of(&self, datasets: &LinuxDatasets, pack: &Pack, quota: Mib) -> (InstanceId, PathBuf) {
        use host::dataset::Datasets;
        let (image, instance) = (ImageId::random(), InstanceId::random());
        let (sha, bytes) = (pack.tar_sha(), pack.tar());
        datasets.import(image, &sha, Compression::None, &mut bytes.as_slice()).expect("an import");
        (instance, datasets.clone_image(image, instance, quota).expect("a clone"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Directories still open in a failing test keep it busy; the loop device goes with the last of them.
        let _ = nix::mount::umount2(&self.config.dir, nix::mount::MntFlags::MNT_DETACH);
    }
}
