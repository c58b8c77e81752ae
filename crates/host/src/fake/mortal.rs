//! A host whose agent can be killed: at a chosen verb, before or after the verb took effect, or at any moment.
//!
//! An agent that runs its verbs in place ends on the spot when a verb panics, as with SIGKILL: nothing after the verb
//! happens any more. From then on every verb through this host panics, so whatever is left of the agent's tasks dies at
//! its next touch of the machine, until the test has thrown them away. The machine itself notices nothing.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use base::channel::Receiver;
use model::{
    id::{ImageId, InstanceId},
    image::Compression,
    meters::ZoneMeters,
    path::{Look, Sight},
    target::{Limits, NetworkTarget},
    unit::Mib,
};
use tokio::sync::{Notify, mpsc};

use crate::{
    Host,
    dataset::{Datasets, PoolUsage},
    error::Result,
    fabric::FabricSet,
    filter::{FilterSet, Filters, Firewall, LogNews},
    link::{Links, NetworkSetup, NicStatus, Probe, Traffic},
    zone::{ConsoleMark, ConsolePiece, IdRange, ZoneEvent, ZoneSpec, ZoneStatus, Zones},
};

/// One agent's view of a machine, and that agent's life.
#[derive(Clone)]
pub struct Mortal {
    inner: Host,
    passed: Arc<AtomicUsize>,
    fate: Option<Fate>,
    dead: Arc<AtomicBool>,
    died: Arc<Notify>,
}

/// When an agent dies by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    /// At which verb that changes something, counted from 1.
    pub verb: usize,
    /// Whether that verb takes effect.
    pub takes_effect: bool,
}

impl Mortal {
    /// The life of one agent on `inner`; without a fate it ends only by [`Mortal::kill`].
    pub fn new(inner: Host, fate: Option<Fate>) -> Self {
        Self { inner, passed: Arc::default(), fate, dead: Arc::default(), died: Arc::default() }
    }

    /// The doors as this agent has them. Its machine door is the plain one: it changes nothing.
    pub fn host(&self) -> Host {
        let this = Arc::new(self.clone());
        let machine = self.inner.machine.clone();
        Host { zones: this.clone(), datasets: this.clone(), links: this.clone(), filters: this, machine }
    }

    /// Ends the life now.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.died.notify_one();
    }

    /// Whether the life has ended.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Waits for the end of the life.
    pub async fn died(&self) {
        self.died.notified().await;
    }

    /// Verbs that change something, so far.
    pub fn passed(&self) -> usize {
        self.passed.load(Ordering::SeqCst)
    }

    fn act<T>(&self, verb: impl FnOnce(&Host) -> T) -> T {
        self.look();
        let count = self.passed.fetch_add(1, Ordering::SeqCst) + 1;
        match self.fate.filter(|fate| fate.verb == count) {
            None => verb(&self.inner),
            Some(fate) => {
                if fate.takes_effect {
                    verb(&self.inner);
                }
                self.kill();
                die()
            }
        }
    }

    /// A verb that changes nothing: the dead see nothing either.
    fn look(&self) -> &Host {
        if self.dead.load(Ordering::SeqCst) {
            die();
        }
        &self.inner
    }
}

fn die() -> ! {
    // Past the panic hook: dying is what the test wants, not news.
    std::panic::resume_unwind(Box::new("killed"))
}

impl Zones for Mortal {
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
        self.look().zones.status(instance)
    }

    fn list(&self) -> Result<Vec<ZoneStatus>> {
        self.look().zones.list()
    }

    fn meters(&self, instance: InstanceId) -> Result<ZoneMeters> {
        self.look().zones.meters(instance)
    }

    fn oom_kills(&self, instance: InstanceId) -> Result<u64> {
        self.look().zones.oom_kills(instance)
    }

    fn console(&self, instance: InstanceId, after: Option<ConsoleMark>, max_bytes: usize) -> Result<ConsolePiece> {
        self.look().zones.console(instance, after, max_bytes)
    }

    fn destroy(&self, instance: InstanceId) -> Result<()> {
        self.act(|host| host.zones.destroy(instance))
    }

    fn events(&self) -> mpsc::Receiver<ZoneEvent> {
        self.look().zones.events()
    }
}

impl Datasets for Mortal {
    fn import(&self, image: ImageId, sha256: &str, compression: Compression, archive: &mut dyn Read) -> Result<()> {
        self.act(|host| host.datasets.import(image, sha256, compression, archive))
    }

    fn images(&self) -> Result<Vec<ImageId>> {
        self.look().datasets.images()
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
        self.look().datasets.roots()
    }

    fn used_bytes(&self, instance: InstanceId) -> Result<u64> {
        self.look().datasets.used_bytes(instance)
    }

    fn remove_root(&self, instance: InstanceId) -> Result<()> {
        self.act(|host| host.datasets.remove_root(instance))
    }

    fn pool(&self) -> Result<PoolUsage> {
        self.look().datasets.pool()
    }
}

impl Links for Mortal {
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

    fn program(&self, fabrics: &FabricSet) -> Result<()> {
        self.act(|host| host.links.program(fabrics))
    }

    fn sight(&self, look: &Look) -> Result<Sight> {
        self.look().links.sight(look)
    }

    fn probe(&self, probe: &Probe) -> Result<Vec<bool>> {
        self.look().links.probe(probe)
    }

    fn meters(&self) -> Result<Traffic> {
        self.look().links.meters()
    }

    fn nics(&self) -> Result<Vec<NicStatus>> {
        self.look().links.nics()
    }
}

impl Filters for Mortal {
    fn apply(&self, wanted: &FilterSet) -> Result<()> {
        self.act(|host| host.filters.apply(wanted))
    }

    fn apply_firewall(&self, wanted: &Firewall) -> Result<()> {
        self.act(|host| host.filters.apply_firewall(wanted))
    }

    fn logged(&self) -> Result<Receiver<LogNews>> {
        self.look().filters.logged()
    }

    fn intact(&self) -> Result<bool> {
        self.look().filters.intact()
    }

    fn clear(&self) -> Result<()> {
        self.act(|host| host.filters.clear())
    }
}
