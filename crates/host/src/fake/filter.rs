//! Filters in memory: the last set that was applied.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::channel::{Receiver, Sender};

use super::Faults;
use crate::{
    error::Result,
    filter::{FilterSet, Filters, Firewall, LogNews, Logged},
};

/// The filters of one machine in memory. Clones share them.
#[derive(Clone, Default)]
pub struct FilterMachine {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    current: FilterSet,
    firewall: Firewall,
    applied: u64,
    flushed: bool,
    reader: Option<Sender<LogNews>>,
}

/// Lines that wait for whoever reads the log.
const LINES: usize = 64;

impl FilterMachine {
    /// The set in force; empty when there is none.
    pub fn current(&self) -> FilterSet {
        self.lock().current.clone()
    }

    /// The firewall in force.
    pub fn firewall(&self) -> Firewall {
        self.lock().firewall.clone()
    }

    /// How many times a set was applied that differed from the one in force.
    pub fn changes(&self) -> u64 {
        self.lock().applied
    }

    /// A rule logs a packet. False when nobody reads the log, or he is too slow.
    pub fn log(&self, logged: Logged) -> bool {
        self.lock().reader.as_ref().is_some_and(|reader| reader.try_send(LogNews::Packet(logged)).is_ok())
    }

    /// The machine loses power, or somebody flushes its rules: none is left.
    pub fn lose_power(&self) {
        let mut state = self.lock();
        state.current = FilterSet::default();
        state.firewall = Firewall::default();
        state.flushed = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The agent's handle on the filters of a [`FilterMachine`].
#[derive(Clone)]
pub struct FakeFilters {
    machine: FilterMachine,
    faults: Faults,
}

impl FakeFilters {
    /// A handle. Verbs to arm: `filters.apply`, `.firewall`, `.logged`, `.intact`, `.clear`.
    pub fn new(machine: FilterMachine, faults: Faults) -> Self {
        Self { machine, faults }
    }
}

impl Filters for FakeFilters {
    fn apply(&self, wanted: &FilterSet) -> Result<()> {
        self.faults.pass("filters.apply", "")?;
        let mut state = self.machine.lock();
        state.flushed = false;
        if state.current != *wanted {
            state.current = wanted.clone();
            state.applied += 1;
        }
        Ok(())
    }

    fn apply_firewall(&self, wanted: &Firewall) -> Result<()> {
        self.faults.pass("filters.firewall", "")?;
        let mut state = self.machine.lock();
        if state.firewall != *wanted {
            state.firewall = wanted.clone();
        }
        Ok(())
    }

    fn logged(&self) -> Result<Receiver<LogNews>> {
        self.faults.pass("filters.logged", "")?;
        let (sender, receiver) = base::channel::bounded("firewall log", LINES);
        self.machine.lock().reader = Some(sender);
        Ok(receiver)
    }

    fn intact(&self) -> Result<bool> {
        self.faults.pass("filters.intact", "")?;
        Ok(!self.machine.lock().flushed)
    }

    fn clear(&self) -> Result<()> {
        self.faults.pass("filters.clear", "")?;
        let mut state = self.machine.lock();
        state.current = FilterSet::default();
        state.firewall = Firewall::default();
        Ok(())
    }
}
