//! The machine in memory: its identity, its clock, its power switch.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{
    meters::{CpuMeters, MachineMeters},
    server::Hardware,
    time::Timestamp,
    unit::Mib,
};

use super::{
    Faults,
    dataset::{DatasetMachine, FakeDatasets},
    filter::{FakeFilters, FilterMachine},
    link::{FakeLinks, LinkMachine},
    zone::{FakeZones, ZoneMachine},
};
use crate::{Host, error::Result, machine::Machine};

/// Memory of a fake machine unless it was given another.
const MEMORY: Mib = Mib(64 * 1024);

/// CPUs of a fake machine.
const CPUS: u32 = 16;

/// A whole machine in memory. Clones share it; it outlives the agents on it.
#[derive(Clone, Default)]
pub struct FakeMachine {
    /// Its zones.
    pub zones: ZoneMachine,
    /// Its pool.
    pub datasets: DatasetMachine,
    /// Its bridges and NICs.
    pub links: LinkMachine,
    /// Its filters.
    pub filters: FilterMachine,
    /// Faults waiting to strike.
    pub faults: Faults,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    now: Timestamp,
    boots: u64,
    goes_down: bool,
    hostname: Option<String>,
    memory: Option<Mib>,
}

impl FakeMachine {
    /// A machine that was just switched on, empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// The five doors, as a fresh agent opens them.
    pub fn host(&self) -> Host {
        Host {
            zones: Arc::new(FakeZones::new(self.zones.clone(), self.faults.clone())),
            datasets: Arc::new(FakeDatasets::new(self.datasets.clone(), self.faults.clone())),
            links: Arc::new(FakeLinks::new(self.links.clone(), self.faults.clone())),
            filters: Arc::new(FakeFilters::new(self.filters.clone(), self.faults.clone())),
            machine: Arc::new(self.clone()),
        }
    }

    /// Sets the wall clock.
    pub fn set_now(&self, now: Timestamp) {
        self.lock().now = now;
        self.zones.set_now(now);
    }

    /// Sets the host name.
    pub fn set_hostname(&self, hostname: &str) {
        self.lock().hostname = Some(hostname.to_owned());
    }

    /// Gives it another amount of memory; who has looked already is not told.
    pub fn set_memory(&self, memory: Mib) {
        self.lock().memory = Some(memory);
    }

    /// Somebody tells it to go down; until it does, whoever asks hears that.
    pub fn begin_shutdown(&self) {
        self.lock().goes_down = true;
    }

    /// Loses power and boots again: zones, links and filters are gone, datasets remain, the boot id is another.
    pub fn reboot(&self) {
        self.zones.lose_power();
        self.links.lose_power();
        self.filters.lose_power();
        let mut state = self.lock();
        (state.boots, state.goes_down) = (state.boots + 1, false);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine for FakeMachine {
    fn hardware(&self) -> Result<Hardware> {
        self.faults.pass("machine.hardware", "")?;
        Ok(Hardware {
            memory: self.lock().memory.unwrap_or(MEMORY),
            cpus: CPUS,
            cpu_model: "Fake CPU".to_owned(),
            pool_size: Mib::from_bytes(self.datasets.usage().size_bytes),
            kernel: "6.18.0-fake".to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Hardware::default()
        })
    }

    fn hostname(&self) -> Result<String> {
        self.faults.pass("machine.hostname", "")?;
        Ok(self.lock().hostname.clone().unwrap_or_else(|| "fake".to_owned()))
    }

    fn boot_id(&self) -> Result<String> {
        self.faults.pass("machine.boot_id", "")?;
        Ok(format!("00000000-0000-4000-8000-{:012x}", self.lock().boots))
    }

    fn goes_down(&self) -> bool {
        self.lock().goes_down
    }

    fn meters(&self) -> Result<MachineMeters> {
        self.faults.pass("machine.meters", "")?;
        let total = self.lock().memory.unwrap_or(MEMORY).bytes();
        let cpus = vec![CpuMeters::default(); usize::try_from(CPUS).unwrap_or(1)];
        Ok(MachineMeters { cpus, memory: [("MemTotal".to_owned(), total)].into(), ..MachineMeters::default() })
    }

    fn now(&self) -> Timestamp {
        self.lock().now
    }
}
