//! A host that kills the agent at a chosen verb, before or after the verb took effect.
//!
//! The agent runs its verbs in place, so a panic inside a verb stops its task on the spot, as SIGKILL would: nothing after the verb
//! happens any more. From then on every other verb panics too, until the test has thrown the whole runtime away.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use host::{
    Host,
    dataset::{Datasets, PoolUsage},
    error::Result,
    filter::{FilterSet, Filters},
    link::{Links, NetworkSetup, NicStatus},
    zone::{IdRange, ZoneEvent, ZoneSpec, ZoneStatus, ZoneUsage, Zones},
};
use model::{
    id::{ImageId, InstanceId},
    image::Compression,
    target::{Limits, NetworkTarget},
    unit::Mib,
};
use tokio::sync::{Notify, mpsc};

/// When the agent dies.
#[derive(Clone)]
pub(crate) struct Killer {
    inner: Host,
    passed: Arc<AtomicUsize>,
    at: usize,
    after_effect: bool,
    dead: Arc<AtomicBool>,
    died: Arc<Notify>,
}

impl Killer {
    /// Dies at the `at`th verb that changes something, counted from 1; never for 0.
    pub(crate) fn new(inner: Host, at: usize, after_effect: bool) -> Self {
        Self { inner, passed: Arc::default(), at, after_effect, dead: Arc::default(), died: Arc::default() }
    }

    pub(crate) fn host(&self) -> Host {
        let this = Arc::new(self.clone());
        Host {
            zones: this.clone(),
            datasets: this.clone(),
            links: this.clone(),
            filters: this,
            machine: self.inner.machine.clone(),
        }
    }

    pub(crate) async fn died(&self) {
        self.died.notified().await;
    }

    pub(crate) fn passed(&self) -> usize {
        self.passed.load(Ordering::SeqCst)
    }

    fn act<T>(&self, verb: impl FnOnce(&Host) -> T) -> T {
        if self.dead.load(Ordering::SeqCst) {
            die();
        }
        let this_one = self.passed.fetch_add(1, Ordering::SeqCst) + 1 == self.at;
        let result = if this_one && !self.after_effect { None } else { Some(verb(&self.inner)) };
        if this_one {
            self.dead.store(true, Ordering::SeqCst);
            self.died.notify_one();
        }
        match result {
            Some(result) if !this_one => result,
            _ => die(),
        }
    }
}

fn die() -> ! {
    // Without the hook's noise: dying is what the test wants.
    std::panic::resume_unwind(Box::new("killed"))
}

impl Zones for Killer {
    fn prepare(&self, instance: InstanceId, ids: IdRange) -> Result<PathBuf> {
        self.act(|host| host.zones.prepare(instance, ids))
    }

    fn start(&self, spec: &ZoneSpec) -> Result<ZoneStatus> {
        self.act(|host| host.zones.start(spec))
    }

    fn stop(&self, instance: InstanceId, grace: Duration) -> Result<ZoneStatus> {
        self.act(|host| host.zones.stop(instance, grace))
    }

    fn set_limits(&self, instance: InstanceId, limits: &Limits) -> Result<()> {
        self.act(|host| host.zones.set_limits(instance, limits))
    }

    fn status(&self, instance: InstanceId) -> Result<ZoneStatus> {
        self.inner.zones.status(instance)
    }

    fn list(&self) -> Result<Vec<ZoneStatus>> {
        self.inner.zones.list()
    }

    fn usage(&self, instance: InstanceId) -> Result<ZoneUsage> {
        self.inner.zones.usage(instance)
    }

    fn console_log(&self, instance: InstanceId, max_bytes: usize) -> Result<Vec<u8>> {
        self.inner.zones.console_log(instance, max_bytes)
    }

    fn destroy(&self, instance: InstanceId) -> Result<()> {
        self.act(|host| host.zones.destroy(instance))
    }

    fn events(&self) -> mpsc::Receiver<ZoneEvent> {
        self.inner.zones.events()
    }
}

impl Datasets for Killer {
    fn import(&self, image: ImageId, sha256: &str, compression: Compression, archive: &mut dyn Read) -> Result<()> {
        self.act(|host| host.datasets.import(image, sha256, compression, archive))
    }

    fn images(&self) -> Result<Vec<ImageId>> {
        self.inner.datasets.images()
    }

    fn remove_image(&self, image: ImageId) -> Result<()> {
        self.act(|host| host.datasets.remove_image(image))
    }

    fn clone_image(&self, image: ImageId, instance: InstanceId, quota: Mib) -> Result<PathBuf> {
        self.act(|host| host.datasets.clone_image(image, instance, quota))
    }

    fn set_quota(&self, instance: InstanceId, quota: Mib) -> Result<()> {
        self.act(|host| host.datasets.set_quota(instance, quota))
    }

    fn roots(&self) -> Result<Vec<InstanceId>> {
        self.inner.datasets.roots()
    }

    fn used_bytes(&self, instance: InstanceId) -> Result<u64> {
        self.inner.datasets.used_bytes(instance)
    }

    fn remove_root(&self, instance: InstanceId) -> Result<()> {
        self.act(|host| host.datasets.remove_root(instance))
    }

    fn pool(&self) -> Result<PoolUsage> {
        self.inner.datasets.pool()
    }
}

impl Links for Killer {
    fn ensure_bridge(&self, network: &NetworkTarget) -> Result<String> {
        self.act(|host| host.links.ensure_bridge(network))
    }

    fn remove_bridges_except(&self, needed: &[NetworkTarget]) -> Result<()> {
        self.act(|host| host.links.remove_bridges_except(needed))
    }

    fn attach(&self, instance: InstanceId, netns: &Path, setup: &NetworkSetup) -> Result<()> {
        self.act(|host| host.links.attach(instance, netns, setup))
    }

    fn detach(&self, instance: InstanceId) -> Result<()> {
        self.act(|host| host.links.detach(instance))
    }

    fn nics(&self) -> Result<Vec<NicStatus>> {
        self.inner.links.nics()
    }
}

impl Filters for Killer {
    fn apply(&self, wanted: &FilterSet) -> Result<()> {
        self.act(|host| host.filters.apply(wanted))
    }

    fn clear(&self) -> Result<()> {
        self.act(|host| host.filters.clear())
    }
}
