//! A pool in memory: sizes are counted, archives are checked, nothing is unpacked to a disk.
//!
//! A real pool writes what changed to its disks every few seconds, in order; the loss of power takes back the last changes. Here
//! somebody says when it writes ([`DatasetMachine::sync`]) and how much is lost ([`DatasetMachine::lose_power`]).

use std::{
    collections::BTreeMap,
    io::Read,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use model::{
    id::{ImageId, InstanceId},
    image::Compression,
    unit::Mib,
};

use super::Faults;
use crate::{
    archive,
    dataset::{Datasets, PoolUsage, room_for},
    error::{Error, Result},
};

/// Size of a fake pool unless told otherwise.
const POOL_BYTES: u64 = 1 << 40;

/// The pool of one machine in memory. Clones share it.
#[derive(Clone, Default)]
pub struct DatasetMachine {
    state: Arc<Mutex<State>>,
}

struct State {
    size_bytes: u64,
    images: BTreeMap<ImageId, u64>,
    roots: BTreeMap<InstanceId, Root>,
    /// What was there before each change since the last write; nothing is noted unless somebody asked for it.
    unwritten: Option<Vec<Before>>,
}

/// What a change replaced.
enum Before {
    Image(ImageId, Option<u64>),
    Root(InstanceId, Option<Root>),
}

#[derive(Clone)]
struct Root {
    image: ImageId,
    quota: Mib,
    used_bytes: u64,
}

impl Default for State {
    fn default() -> Self {
        Self { size_bytes: POOL_BYTES, images: BTreeMap::new(), roots: BTreeMap::new(), unwritten: None }
    }
}

impl DatasetMachine {
    /// Changes the size of the pool; what is in it stays.
    pub fn set_size(&self, bytes: u64) {
        self.lock().size_bytes = bytes;
    }

    /// Size and use, as the door would say.
    pub fn usage(&self) -> PoolUsage {
        let state = self.lock();
        PoolUsage { size_bytes: state.size_bytes, used_bytes: state.used() }
    }

    /// An instance writes `bytes` more into its root, within its quota and the pool.
    pub fn write(&self, instance: InstanceId, bytes: u64) -> Result<()> {
        let mut state = self.lock();
        let room = state.size_bytes.saturating_sub(state.used());
        let doing = format!("write to root {instance}");
        let root = state.roots.get_mut(&instance).ok_or_else(|| missing(instance))?;
        if root.used_bytes.saturating_add(bytes) > root.quota.bytes() || bytes > room {
            return Err(Error::NoSpace { doing });
        }
        root.used_bytes += bytes;
        Ok(())
    }

    /// Image and quota of a root.
    pub fn root(&self, instance: InstanceId) -> Option<(ImageId, Mib)> {
        self.lock().roots.get(&instance).map(|root| (root.image, root.quota))
    }

    /// Everything is on its disks from here on; what changes later is not until this is called again.
    pub fn sync(&self) {
        self.lock().unwritten = Some(Vec::new());
    }

    /// The machine loses power: of the changes since the last [`DatasetMachine::sync`], as many of the last ones are lost as
    /// `lost` says of their number.
    pub fn lose_power(&self, lost: impl FnOnce(usize) -> usize) {
        let mut state = self.lock();
        let unwritten = state.unwritten.take().unwrap_or_default();
        let lost = lost(unwritten.len()).min(unwritten.len());
        for before in unwritten.into_iter().rev().take(lost) {
            match before {
                Before::Image(image, Some(bytes)) => drop(state.images.insert(image, bytes)),
                Before::Image(image, None) => drop(state.images.remove(&image)),
                Before::Root(instance, Some(root)) => drop(state.roots.insert(instance, root)),
                Before::Root(instance, None) => drop(state.roots.remove(&instance)),
            }
        }
        state.unwritten = Some(Vec::new());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note(&mut self, before: Before) {
        if let Some(unwritten) = &mut self.unwritten {
            unwritten.push(before);
        }
    }

    fn set_image(&mut self, image: ImageId, bytes: Option<u64>) {
        let before = match bytes {
            Some(bytes) => self.images.insert(image, bytes),
            None => self.images.remove(&image),
        };
        self.note(Before::Image(image, before));
    }

    fn set_root(&mut self, instance: InstanceId, root: Option<Root>) {
        let before = match root {
            Some(root) => self.roots.insert(instance, root),
            None => self.roots.remove(&instance),
        };
        self.note(Before::Root(instance, before));
    }

    fn used(&self) -> u64 {
        self.images.values().sum::<u64>() + self.roots.values().map(|root| root.used_bytes).sum::<u64>()
    }
}

/// The agent's handle on the pool of a [`DatasetMachine`].
#[derive(Clone)]
pub struct FakeDatasets {
    machine: DatasetMachine,
    faults: Faults,
}

impl FakeDatasets {
    /// A handle. Verbs to arm: `datasets.import`, `.images`, `.remove_image`, `.clone_image`, `.set_quota`, `.roots`,
    /// `.used_bytes`, `.remove_root`, `.pool`.
    pub fn new(machine: DatasetMachine, faults: Faults) -> Self {
        Self { machine, faults }
    }

    fn enter(&self, verb: &str, subject: &str) -> Result<MutexGuard<'_, State>> {
        self.faults.pass(verb, subject)?;
        Ok(self.machine.lock())
    }
}

impl Datasets for FakeDatasets {
    fn import(&self, image: ImageId, sha256: &str, compression: Compression, source: &mut dyn Read) -> Result<()> {
        self.faults.pass("datasets.import", &image.to_string())?;
        if self.machine.lock().images.contains_key(&image) {
            return Ok(());
        }
        let bytes = archive::check(source, sha256, compression)?;
        let mut state = self.machine.lock();
        if state.used().saturating_add(bytes) > state.size_bytes {
            return Err(Error::NoSpace { doing: format!("import image {image}") });
        }
        state.set_image(image, Some(bytes));
        Ok(())
    }

    fn images(&self) -> Result<Vec<ImageId>> {
        Ok(self.enter("datasets.images", "")?.images.keys().copied().collect())
    }

    fn remove_image(&self, image: ImageId) -> Result<()> {
        self.enter("datasets.remove_image", &image.to_string())?.set_image(image, None);
        Ok(())
    }

    fn clone_image(&self, image: ImageId, instance: InstanceId, quota: Mib) -> Result<PathBuf> {
        let mut state = self.enter("datasets.clone_image", &instance.to_string())?;
        let path = PathBuf::from(format!("/fake/pool/roots/{instance}"));
        if state.roots.contains_key(&instance) {
            return Ok(path);
        }
        if !state.images.contains_key(&image) {
            return Err(Error::Missing(format!("image {image}")));
        }
        if state.used() >= state.size_bytes {
            return Err(Error::NoSpace { doing: format!("clone image {image} for {instance}") });
        }
        state.set_root(instance, Some(Root { image, quota, used_bytes: 0 }));
        Ok(path)
    }

    fn set_quota(&self, instance: InstanceId, quota: Mib) -> Result<()> {
        let mut state = self.enter("datasets.set_quota", &instance.to_string())?;
        let root = state.roots.get(&instance).ok_or_else(|| missing(instance))?.clone();
        room_for(root.used_bytes, quota)?;
        state.set_root(instance, Some(Root { quota, ..root }));
        Ok(())
    }

    fn roots(&self) -> Result<Vec<InstanceId>> {
        Ok(self.enter("datasets.roots", "")?.roots.keys().copied().collect())
    }

    fn used_bytes(&self, instance: InstanceId) -> Result<u64> {
        let state = self.enter("datasets.used_bytes", &instance.to_string())?;
        Ok(state.roots.get(&instance).ok_or_else(|| missing(instance))?.used_bytes)
    }

    fn remove_root(&self, instance: InstanceId) -> Result<()> {
        self.enter("datasets.remove_root", &instance.to_string())?.set_root(instance, None);
        Ok(())
    }

    fn pool(&self) -> Result<PoolUsage> {
        self.faults.pass("datasets.pool", "")?;
        Ok(self.machine.usage())
    }
}

fn missing(instance: InstanceId) -> Error {
    Error::Missing(format!("root of {instance}"))
}
