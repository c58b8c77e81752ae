//! What a node does next for one instance: the difference between what should be, what it remembers and what it sees.
//!
//! Three values go in. The [`ZoneTarget`] is what should be. [`Remembered`] is what the node wrote down: counters it has
//! carried out, the machine boot of the last start, what was applied. [`Observed`] is what the kernel and the pool hold.
//! Out comes the list of [`Step`]s that leads from here to there; an empty list means there is nothing to do. A node that
//! dies between two steps, or in the middle of one, computes the list again and every step may be repeated.
//!
//! ```text
//!                       ┌────────────── reboot: Stop, then again ──────────────┐
//!  nothing ─► Root ─► Namespaces ─► Network ─► Start ─► running ─► Stop ─► Disconnect ─► stopped
//!     ▲                                                                                    │
//!     └───────────────────────────── Remove (only for Absent) ◄────────────────────────────┘
//! ```
//!
//! When is a zone that does not run started? When a request to start or reboot it is not yet carried out; when the machine has
//! booted since its last start, unless it had been halted from inside; when its own `reboot` ended it. A zone
//! that ended in any other way stays as it is until one of these happens, as in Triton: a loop of crashes helps nobody.
//!
//! A stopped zone keeps no NIC: a network namespace answers pings without any process in it, and its address may be
//! given to somebody else.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    id::NetworkId,
    instance::Wanted,
    target::{Exit, Limits, NetworkTarget, NicTarget, Target, ZoneTarget},
    unit::Mib,
};

/// NICs and routes of an instance with the segments they are on: enough to make them again without the target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wiring {
    /// In order of their interface number.
    pub nics: Vec<(NicTarget, NetworkTarget)>,
    /// Static routes besides the default one.
    pub routes: BTreeMap<IpNet, IpAddr>,
}

/// A NIC names a segment that the target does not describe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the target describes no network {0}")]
pub struct UnknownNetwork(pub NetworkId);

impl Wiring {
    /// The wiring `zone` should have, by the segments in `target`.
    pub fn of(target: &Target, zone: &ZoneTarget) -> Result<Self, UnknownNetwork> {
        let segment = |nic: &NicTarget| target.networks.get(&nic.network).cloned().ok_or(UnknownNetwork(nic.network));
        let nics = zone.nics.iter().map(|nic| Ok((nic.clone(), segment(nic)?))).collect::<Result<_, _>>()?;
        Ok(Self { nics, routes: zone.routes.clone() })
    }
}

/// How a boot ended that nobody ended on purpose from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// Halted from inside: stays off, also when the machine boots.
    Halted,
    /// Rebooted from inside: started again at once.
    Rebooted,
    /// Exited or was killed: started again when the machine boots.
    Died,
}

impl Ended {
    /// Judges by the words of an [`Exit`], which the zone's supervisor wrote.
    pub fn of(exit: &Exit) -> Self {
        if exit.reason.starts_with("halted") || exit.reason.starts_with("powered off") {
            Self::Halted
        } else if exit.reason.starts_with("rebooted") {
            Self::Rebooted
        } else {
            Self::Died
        }
    }
}

/// What a node wrote down about an instance, as far as decisions need it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// See [`ZoneTarget::starts`]: the value carried out.
    pub starts_done: u64,
    /// See [`ZoneTarget::reboots`]: the value carried out.
    pub reboots_done: u64,
    /// The machine's boot id at the last start.
    pub boot_id: Option<String>,
    /// How the last boot ended, if by itself.
    pub ended: Option<Ended>,
    /// Removal has begun; there is no way back.
    pub removing: bool,
    /// Wiring in force, or to be in force at the next start.
    pub wiring: Option<Wiring>,
    /// Limits in force, or to be in force at the next start.
    pub limits: Option<Limits>,
    /// Quota the root has.
    pub quota: Option<Mib>,
}

/// What is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Observed {
    /// A root file system.
    pub root: bool,
    /// Any trace in the kernel: namespaces, cgroups, runtime files.
    pub traces: bool,
    /// NICs.
    pub connected: bool,
    /// Init runs.
    pub running: bool,
}

impl Observed {
    /// Whether there is anything at all.
    pub const fn anything(&self) -> bool {
        self.root || self.traces || self.connected || self.running
    }
}

/// One thing to do. Each may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make the root from the image, fetching the image first if it is missing.
    Root,
    /// Give the root the target's quota.
    Quota,
    /// Make user and network namespace.
    Namespaces,
    /// Make NICs, addresses, routes and filters as the target says.
    Network,
    /// Boot.
    Start,
    /// Halt.
    Stop,
    /// Remove the NICs.
    Disconnect,
    /// Apply the target's limits to what runs.
    Limits,
    /// Nothing to do but to write down that the target's counters, limits and wiring are carried out.
    Accept,
    /// Remove every trace and forget.
    Remove,
}

/// Whether what was planned for `old` still leads to `new`: nothing that [`plan`] or its steps look at has changed. Words for the
/// guest (name, metadata, tags) may have.
pub fn same_plan(old: &ZoneTarget, new: &ZoneTarget) -> bool {
    let key = |zone: &ZoneTarget| (zone.wanted, zone.starts, zone.reboots, zone.brand, zone.image);
    key(old) == key(new) && old.limits == new.limits && old.nics == new.nics && old.routes == new.routes
}

/// The steps from here to `zone`, in order. `wiring` is [`Wiring::of`] the zone, `boot_id` the machine's boot now.
pub fn plan(
    zone: &ZoneTarget,
    wiring: &Wiring,
    remembered: &Remembered,
    observed: Observed,
    boot_id: &str,
) -> Vec<Step> {
    if zone.wanted == Wanted::Absent || remembered.removing {
        return if observed.anything() || *remembered != Remembered::default() { vec![Step::Remove] } else { vec![] };
    }
    let mut steps = Vec::new();
    if !observed.root {
        steps.push(Step::Root);
    } else if remembered.quota != Some(zone.limits.disk) {
        steps.push(Step::Quota);
    }
    let rewired = remembered.wiring.as_ref() != Some(wiring);
    let relimited = remembered.limits.as_ref() != Some(&zone.limits);
    let started = remembered.starts_done >= zone.starts && remembered.reboots_done >= zone.reboots;
    let accept = if rewired || relimited || !started { Some(Step::Accept) } else { None };
    match (zone.wanted, observed.running) {
        (Wanted::Running, true) if remembered.reboots_done < zone.reboots => {
            steps.extend([Step::Stop, Step::Namespaces, Step::Network, Step::Start]);
        }
        (Wanted::Running, true) => {
            if rewired || observed.connected == wiring.nics.is_empty() {
                steps.push(Step::Network);
            }
            if relimited {
                steps.push(Step::Limits);
            }
            if remembered.starts_done < zone.starts {
                steps.push(Step::Accept);
            }
        }
        (Wanted::Running, false) if !started || start_is_due(remembered, boot_id) => {
            steps.extend([Step::Namespaces, Step::Network, Step::Start]);
        }
        (Wanted::Running | Wanted::Stopped, false) => {
            if observed.connected {
                steps.push(Step::Disconnect);
            }
            steps.extend(accept);
        }
        (Wanted::Stopped, true) => {
            steps.extend([Step::Stop, Step::Disconnect]);
            steps.extend(accept);
        }
        (Wanted::Absent, _) => {}
    }
    steps
}

/// Whether a zone without any open request is to be started.
fn start_is_due(remembered: &Remembered, boot_id: &str) -> bool {
    match remembered.ended {
        Some(Ended::Halted) => false,
        Some(Ended::Rebooted) => true,
        Some(Ended::Died) | None => remembered.boot_id.as_deref() != Some(boot_id),
    }
}

/// Writes down in `remembered` that `step` is done, and in `observed` what it changed.
pub fn carried_out(
    step: Step,
    zone: &ZoneTarget,
    wiring: &Wiring,
    remembered: &mut Remembered,
    observed: &mut Observed,
    boot_id: &str,
) {
    match step {
        Step::Root => {
            observed.root = true;
            remembered.quota = Some(zone.limits.disk);
        }
        Step::Quota => remembered.quota = Some(zone.limits.disk),
        Step::Namespaces => observed.traces = true,
        Step::Network => {
            observed.connected = !wiring.nics.is_empty();
            remembered.wiring = Some(wiring.clone());
        }
        Step::Start => {
            observed.running = true;
            remembered.limits = Some(zone.limits.clone());
            remembered.boot_id = Some(boot_id.to_owned());
            remembered.ended = None;
            counted(zone, remembered);
        }
        Step::Stop => {
            observed.running = false;
            remembered.ended = None;
        }
        Step::Disconnect => observed.connected = false,
        Step::Limits => remembered.limits = Some(zone.limits.clone()),
        Step::Accept => {
            remembered.limits = Some(zone.limits.clone());
            remembered.wiring = Some(wiring.clone());
            counted(zone, remembered);
        }
        Step::Remove => {
            *observed = Observed::default();
            *remembered = Remembered::default();
        }
    }
}

/// Takes over the target's counters; they never fall, also when a control plane's do.
fn counted(zone: &ZoneTarget, remembered: &mut Remembered) {
    remembered.starts_done = remembered.starts_done.max(zone.starts);
    remembered.reboots_done = remembered.reboots_done.max(zone.reboots);
}

/// What the sweep of leftovers may do with something that no one asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftover {
    /// Leave it alone; report it.
    Keep,
    /// Remove NICs and kernel traces, which hold no data.
    Disconnect,
    /// Remove everything: somebody had asked for it and the node died while doing it.
    Remove,
}

/// Judges an instance of which there is something on this machine.
///
/// Data is only removed when removal was once asked for, by the target or by the mark the node wrote before it began.
/// Kernel objects without a process hold no data; they may go when neither the target nor the ledger knows the
/// instance, and only once a control plane has spoken in this run of the agent (`confirmed`): until then the target on disk may
/// be older than the truth.
pub fn leftover(
    zone: Option<&ZoneTarget>,
    remembered: Option<&Remembered>,
    observed: Observed,
    confirmed: bool,
) -> Leftover {
    let asked = zone.is_some_and(|zone| zone.wanted == Wanted::Absent);
    let begun = remembered.is_some_and(|remembered| remembered.removing);
    if asked || begun {
        return Leftover::Remove;
    }
    if zone.is_some() || remembered.is_some() || observed.running || !confirmed {
        return Leftover::Keep;
    }
    if observed.traces || observed.connected { Leftover::Disconnect } else { Leftover::Keep }
}
