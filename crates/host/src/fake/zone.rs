//! Zones in memory, with the semantics of the real ones.
//!
//! The state hangs on an [`Arc`], not on the handle: dropping a [`FakeZones`] and making another over the same
//! [`ZoneMachine`] is an agent that was killed and started again, and its zones run on. What happens without the agent
//! asking (init exits, a zone runs out of memory) is played by [`ZoneMachine::end_boot`].

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::{
    id::InstanceId,
    meters::ZoneMeters,
    target::{Exit, Limits},
    time::Timestamp,
};
use tokio::sync::mpsc;

use super::faults::Faults;
use crate::{
    error::{Error, Result},
    zone::{ConsoleMark, ConsolePiece, IdRange, ZoneEvent, ZoneSpec, ZoneStatus, Zones},
};

/// Events kept for a subscriber that does not read: more only repeat "look".
const EVENTS: usize = 1024;

/// First host pid given to an init, far from real ones in readers' eyes.
const FIRST_PID: u32 = 1_000_000;

/// The zones of one machine that exists in memory. Clones share it.
#[derive(Clone, Default)]
pub struct ZoneMachine {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    now: Timestamp,
    boots: u32,
    zones: BTreeMap<InstanceId, Zone>,
    subscriber: Option<mpsc::Sender<ZoneEvent>>,
}

struct Zone {
    ids: IdRange,
    boot: Option<Boot>,
    exit: Option<Exit>,
    console: Vec<u8>,
}

struct Boot {
    pid: u32,
    started_at: Timestamp,
    limits: Limits,
    spec: ZoneSpec,
    oom_kills: u64,
}

impl ZoneMachine {
    /// Sets the clock that stamps starts and exits.
    pub fn set_now(&self, now: Timestamp) {
        self.lock().now = now;
    }

    /// Ends the boot of a zone from inside, as when its init exits; tells the subscriber. False if nothing ran.
    pub fn end_boot(&self, instance: InstanceId, code: Option<i32>, signal: Option<i32>, reason: &str) -> bool {
        let mut state = self.lock();
        let at = state.now;
        let Some(zone) = state.zones.get_mut(&instance) else { return false };
        if zone.boot.take().is_none() {
            return false;
        }
        zone.exit = Some(Exit { at, code, signal, reason: reason.to_owned(), asked: false });
        state.tell(instance);
        true
    }

    /// Kills a process of a running zone for lack of memory; the zone runs on.
    pub fn kill_for_memory(&self, instance: InstanceId) {
        if let Some(boot) = self.lock().zones.get_mut(&instance).and_then(|zone| zone.boot.as_mut()) {
            boot.oom_kills += 1;
        }
    }

    /// The machine loses power: nothing runs and nothing that lived in memory is left.
    pub fn lose_power(&self) {
        self.lock().zones.clear();
    }

    /// Appends to the console of a zone, as its programs would.
    pub fn write_console(&self, instance: InstanceId, text: &[u8]) {
        if let Some(zone) = self.lock().zones.get_mut(&instance) {
            zone.console.extend_from_slice(text);
        }
    }

    /// What a running zone was started with.
    pub fn spec(&self, instance: InstanceId) -> Option<ZoneSpec> {
        let state = self.lock();
        Some(state.zones.get(&instance)?.boot.as_ref()?.spec.clone())
    }

    /// How many boots there ever were on this machine.
    pub fn boots(&self) -> u32 {
        self.lock().boots
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&mut self, instance: InstanceId) {
        if let Some(subscriber) = &self.subscriber {
            // A full channel holds an event already, and each says the same: look.
            let _ = subscriber.try_send(ZoneEvent { instance });
        }
    }

    fn status(&self, instance: InstanceId) -> Result<ZoneStatus> {
        let zone = self.zones.get(&instance).ok_or_else(|| missing(instance))?;
        Ok(ZoneStatus {
            instance,
            running: zone.boot.is_some(),
            started_at: zone.boot.as_ref().map(|boot| boot.started_at),
            pid: zone.boot.as_ref().map(|boot| boot.pid),
            exit: if zone.boot.is_some() { None } else { zone.exit.clone() },
            limits: zone.boot.as_ref().map(|boot| boot.limits.clone()),
        })
    }
}

/// The agent's handle on the zones of a [`ZoneMachine`].
#[derive(Clone)]
pub struct FakeZones {
    machine: ZoneMachine,
    faults: Faults,
}

impl FakeZones {
    /// A handle, as a fresh agent opens it. Verbs to arm are `zones.prepare`, `zones.start`, `zones.stop`,
    /// `zones.set_limits`, `zones.status`, `zones.list`, `zones.usage`, `zones.oom_kills`, `zones.console` and `zones.destroy`.
    pub fn new(machine: ZoneMachine, faults: Faults) -> Self {
        Self { machine, faults }
    }

    fn enter(&self, verb: &str, instance: InstanceId) -> Result<MutexGuard<'_, State>> {
        self.faults.pass(verb, &instance.to_string())?;
        Ok(self.machine.lock())
    }
}

impl Zones for FakeZones {
    fn prepare(&self, instance: InstanceId, ids: IdRange) -> Result<PathBuf> {
        let mut state = self.enter("zones.prepare", instance)?;
        let path = PathBuf::from(format!("/fake/zones/{instance}/ns/net"));
        if let Some(zone) = state.zones.get(&instance) {
            if zone.ids == ids {
                return Ok(path);
            }
            if zone.boot.is_some() {
                return Err(Error::Refused {
                    what: format!("another id range for zone {instance}"),
                    why: "it runs with the one it has".to_owned(),
                });
            }
        }
        let zone = state.zones.entry(instance).or_insert(Zone { ids, boot: None, exit: None, console: Vec::new() });
        zone.ids = ids;
        Ok(path)
    }

    fn start(&self, spec: &ZoneSpec) -> Result<ZoneStatus> {
        let mut state = self.enter("zones.start", spec.instance)?;
        if spec.init.is_empty() {
            return Err(Error::Refused {
                what: format!("the init of zone {}", spec.instance),
                why: "it names no program".to_owned(),
            });
        }
        let now = state.now;
        let pid = FIRST_PID + state.boots;
        let zone = state
            .zones
            .get_mut(&spec.instance)
            .ok_or_else(|| Error::Missing(format!("prepared zone {}", spec.instance)))?;
        if zone.boot.is_none() {
            zone.exit = None;
            zone.boot =
                Some(Boot { pid, started_at: now, limits: spec.limits.clone(), spec: spec.clone(), oom_kills: 0 });
            state.boots += 1;
        }
        state.status(spec.instance)
    }

    fn stop(&self, instance: InstanceId, _grace: Duration) -> Result<ZoneStatus> {
        let mut state = self.enter("zones.stop", instance)?;
        let at = state.now;
        let zone = state.zones.get_mut(&instance).ok_or_else(|| missing(instance))?;
        if zone.boot.take().is_some() {
            zone.exit = Some(Exit { at, code: None, signal: Some(2), reason: "halted".to_owned(), asked: false });
            state.tell(instance);
        }
        state.status(instance)
    }

    fn set_limits(&self, instance: InstanceId, limits: &Limits) -> Result<()> {
        let mut state = self.enter("zones.set_limits", instance)?;
        let boot = state.zones.get_mut(&instance).and_then(|zone| zone.boot.as_mut());
        boot.ok_or_else(|| Error::Missing(format!("running zone {instance}")))?.limits = limits.clone();
        Ok(())
    }

    fn status(&self, instance: InstanceId) -> Result<ZoneStatus> {
        self.enter("zones.status", instance)?.status(instance)
    }

    fn list(&self) -> Result<Vec<ZoneStatus>> {
        self.faults.pass("zones.list", "")?;
        let state = self.machine.lock();
        state.zones.keys().map(|instance| state.status(*instance)).collect()
    }

    fn meters(&self, instance: InstanceId) -> Result<ZoneMeters> {
        let state = self.enter("zones.meters", instance)?;
        let boot = state.zones.get(&instance).and_then(|zone| zone.boot.as_ref());
        let boot = boot.ok_or_else(|| Error::Missing(format!("running zone {instance}")))?;
        Ok(ZoneMeters {
            started_at: Some(boot.started_at),
            memory_bytes: boot.limits.memory.bytes() / 8,
            processes: 1,
            cpu_user_ns: state.now.millis_since(boot.started_at).saturating_mul(1_000_000) / 100,
            oom_kills: boot.oom_kills,
            ..ZoneMeters::default()
        })
    }

    fn oom_kills(&self, instance: InstanceId) -> Result<u64> {
        let state = self.enter("zones.oom_kills", instance)?;
        let boot = state.zones.get(&instance).and_then(|zone| zone.boot.as_ref());
        boot.map(|boot| boot.oom_kills).ok_or_else(|| Error::Missing(format!("running zone {instance}")))
    }

    fn console(&self, instance: InstanceId, after: Option<ConsoleMark>, max_bytes: usize) -> Result<ConsolePiece> {
        let state = self.enter("zones.console", instance)?;
        let console = state.zones.get(&instance).map_or(&[][..], |zone| &zone.console);
        let known = after.and_then(|mark| usize::try_from(mark.offset).ok()).filter(|from| *from <= console.len());
        let from = known.unwrap_or_else(|| console.len().saturating_sub(max_bytes));
        let to = console.len().min(from.saturating_add(max_bytes));
        Ok(ConsolePiece {
            bytes: console[from..to].to_vec(),
            end: (to > 0).then_some(ConsoleMark { file: 0, born: 0, offset: to as u64 }),
            lost: after.is_some() && known.is_none(),
        })
    }

    fn destroy(&self, instance: InstanceId) -> Result<()> {
        self.enter("zones.destroy", instance)?.zones.remove(&instance);
        Ok(())
    }

    fn events(&self) -> mpsc::Receiver<ZoneEvent> {
        let (sender, receiver) = mpsc::channel(EVENTS);
        self.machine.lock().subscriber = Some(sender);
        receiver
    }
}

fn missing(instance: InstanceId) -> Error {
    Error::Missing(format!("zone {instance}"))
}
