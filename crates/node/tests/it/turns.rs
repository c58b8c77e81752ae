//! What was planned while waiting for a turn is planned again when something else is wanted by then.

use std::{
    collections::BTreeSet,
    io::Read,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex},
};

use host::{
    dataset::{Datasets, PoolUsage},
    error::Result,
};
use model::{
    id::{ImageId, InstanceId},
    image::Compression,
    instance::Wanted,
    target::ZoneState,
    unit::Mib,
};

use crate::world::World;

/// Datasets whose clones wait until the gate opens.
struct Gated {
    inner: Arc<dyn Datasets>,
    open: Mutex<bool>,
    opened: Condvar,
    cloned: Mutex<BTreeSet<InstanceId>>,
}

impl Gated {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

impl Datasets for Gated {
    fn clone_image(&self, image: ImageId, instance: InstanceId, quota: Mib) -> Result<PathBuf> {
        self.cloned.lock().unwrap().insert(instance);
        drop(self.opened.wait_while(self.open.lock().unwrap(), |open| !*open).unwrap());
        self.inner.clone_image(image, instance, quota)
    }

    fn import(&self, image: ImageId, sha256: &str, compression: Compression, archive: &mut dyn Read) -> Result<()> {
        self.inner.import(image, sha256, compression, archive)
    }

    fn images(&self) -> Result<Vec<ImageId>> {
        self.inner.images()
    }

    fn remove_image(&self, image: ImageId) -> Result<()> {
        self.inner.remove_image(image)
    }

    fn set_quota(&self, instance: InstanceId, quota: Mib) -> Result<()> {
        self.inner.set_quota(instance, quota)
    }

    fn roots(&self) -> Result<Vec<InstanceId>> {
        self.inner.roots()
    }

    fn used_bytes(&self, instance: InstanceId) -> Result<u64> {
        self.inner.used_bytes(instance)
    }

    fn remove_root(&self, instance: InstanceId) -> Result<()> {
        self.inner.remove_root(instance)
    }

    fn pool(&self) -> Result<PoolUsage> {
        self.inner.pool()
    }
}

#[tokio::test]
async fn nothing_is_made_that_was_unwanted_while_it_waited() {
    let world = World::new();
    let host = world.machine.host();
    let permits = usize::try_from(host.machine.hardware().unwrap().cpus).unwrap() * 2;
    let gated = Arc::new(Gated {
        inner: host.datasets.clone(),
        open: Mutex::new(false),
        opened: Condvar::new(),
        cloned: Mutex::default(),
    });
    let agent = world.start_on(host::Host { datasets: gated.clone(), ..host });
    // As many as may be made at once, and some more: those wait for their turn.
    let all: Vec<InstanceId> = (0..permits + 3).map(|_| world.create(0)).collect();
    while gated.cloned.lock().unwrap().len() < permits {
        tokio::task::yield_now().await;
    }
    world.headnode.wait_seen().await;
    let begun = gated.cloned.lock().unwrap().clone();
    let waiting: Vec<InstanceId> = all.iter().copied().filter(|id| !begun.contains(id)).collect();
    assert_eq!(waiting.len(), 3);
    for id in &waiting {
        world.headnode.zone(*id, |zone| zone.wanted = Wanted::Absent);
    }
    world.headnode.wait_seen().await;
    gated.open();
    for id in &all {
        let state = if waiting.contains(id) { ZoneState::Absent } else { ZoneState::Running };
        world.headnode.wait_state(*id, state).await;
    }
    assert_eq!(*gated.cloned.lock().unwrap(), begun, "a root was made that nobody wanted any more");
    agent.end().await;
}
