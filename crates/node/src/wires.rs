//! The wires of this machine: one task tries those to machines with a peer of ours, and keeps what it found for reports.
//!
//! ```text
//!  target ──► wanted machines ──► batches of AT_ONCE, a pause between ──► Links::probe, as often as each Trial asks ──► facts ──► reports
//!                   ▲ every ROUND, and new ones at once                       and once in VXLAN    ▲ one at an operator's word
//! ```
//! So the work grows with the machines our own instances have neighbours on, and what is sent is bounded whatever their number:
//! [`AT_ONCE`] machines every [`PAUSE`], each with one packet where all is well. Nothing is kept on the disk: who starts anew tries
//! anew.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use base::watch;
use host::link::{Packet, Probe, Through};
use model::{
    part::Part,
    target::Target,
    time::Timestamp,
    wire::{self, MISSES, Trial, WIRES_MAX, WireFact, Wires},
};
use tokio::time::Instant;

use crate::shared::Shared;

/// Between two rounds over all wires.
const ROUND: Duration = Duration::from_secs(30);
/// Wires tried in one go.
const AT_ONCE: usize = 32;
/// Between two goes.
const PAUSE: Duration = Duration::from_millis(250);

/// What this machine found out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    facts: Part<BTreeMap<IpAddr, WireFact>>,
    /// Rounds running in which VXLAN was lost on the way to a machine that answers pings.
    missed: BTreeMap<IpAddr, u32>,
    /// When the last whole round began, by the machine's clock.
    round_at: Option<Timestamp>,
    /// How many machines there are, when they do not fit into one round.
    of: Option<u32>,
}

impl Found {
    /// Whether VXLAN gets to a machine, now that one more packet `came_back` or not.
    fn vxlan(&mut self, machine: IpAddr, came_back: Option<bool>) -> Option<bool> {
        let before = self.facts.get(&machine).and_then(|fact| fact.vxlan);
        match came_back {
            None => before,
            Some(true) => {
                self.missed.remove(&machine);
                Some(true)
            }
            Some(false) => {
                let missed = self.missed.entry(machine).or_default();
                *missed = missed.saturating_add(1);
                if *missed >= MISSES { Some(false) } else { before }
            }
        }
    }

    /// As a report says it.
    pub(crate) fn wires(&self, now: Timestamp) -> Wires {
        let age_ms = self.round_at.filter(|_| !self.facts.is_empty()).map(|at| now.millis_since(at));
        Wires { facts: self.facts.clone(), age_ms, of: self.of }
    }
}

/// Tries all wires, round after round, until shutdown.
pub(crate) async fn follow(shared: Arc<Shared>, mut targets: watch::Receiver<Arc<Target>>) {
    let (mut next_round, mut last) = (Instant::now(), None);
    loop {
        let target = targets.borrow_and_update().clone();
        let wanted = wire::wanted(&target);
        let is_round = !wanted.is_empty() && Instant::now() >= next_round;
        keep_only(&shared, &wanted);
        let known = shared.wires.borrow().facts.clone();
        let is_new = |machine: &IpAddr, needed: u32| known.get(machine).is_none_or(|fact| fact.needed != needed);
        let some: Vec<(IpAddr, u32)> = match is_round {
            true => {
                let (round, end) = wire::turn(&wanted, &known, last);
                last = end;
                keep_only(&shared, &round);
                round.into_iter().collect()
            }
            // Among very many every one is new most of the time: they wait for their turn.
            false if wanted.len() > WIRES_MAX => Vec::new(),
            false => wanted.iter().map(|(at, size)| (*at, *size)).filter(|(at, size)| is_new(at, *size)).collect(),
        };
        let of = u32::try_from(wanted.len()).ok().filter(|_| wanted.len() > WIRES_MAX);
        shared.wires.send_if_modified(|found| std::mem::replace(&mut found.of, of) != of);
        let (began, began_at) = (Instant::now(), shared.now());
        let work = async {
            match target.underlay {
                Some(from) if !some.is_empty() => try_all(&shared, from, &some).await,
                _ => Ok(()),
            }
        };
        let done = match shared.shutdown.unless(work).await {
            None => return,
            Some(done) => done,
        };
        match done {
            Ok(()) if is_round => {
                next_round = began + ROUND;
                shared.wires.send_modify(|found| found.round_at = Some(began_at));
            }
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(error = %base::errors::chain(&error), "the wires to other machines cannot be tried");
                next_round = Instant::now() + ROUND;
            }
        }
        // Only what concerns wires wakes before the next round; without any there is none.
        let changed = async {
            while targets.changed().await.is_ok() {
                let target = targets.borrow_and_update();
                if wire::wanted(&target) != wanted {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        let rest = async {
            match wanted.is_empty() {
                true => std::future::pending::<()>().await,
                false => tokio::time::sleep_until(next_round).await,
            }
        };
        tokio::select! {
            biased;
            () = shared.shutdown.wait() => return,
            () = changed => {}
            () = rest => {}
        }
    }
}

/// Tries one wire now; what was found, or why that cannot be done.
pub(crate) async fn try_one(shared: &Shared, machine: IpAddr) -> Result<WireFact, String> {
    let target = shared.target();
    let from = target.underlay.ok_or("this machine's document gives it no address between machines")?;
    let needed = wire::wanted(&target).remove(&machine);
    let needed = needed.ok_or_else(|| format!("this machine's document has no peer at {machine}"))?;
    let batch = [(machine, needed)];
    try_batch(shared, from, &batch).await.map_err(|error| base::errors::chain(&error))?;
    let found = shared.wires.borrow().facts.get(&machine).cloned();
    found.ok_or_else(|| format!("this machine has no peer at {machine} any more"))
}

/// Forgets machines that are none of `wanted`.
fn keep_only(shared: &Shared, wanted: &BTreeMap<IpAddr, u32>) {
    shared.wires.send_if_modified(|found| {
        let gone = found.facts.keys().any(|machine| !wanted.contains_key(machine));
        if gone {
            found.facts.retain(|machine, _| wanted.contains_key(machine));
            found.missed.retain(|machine, _| wanted.contains_key(machine));
        }
        gone
    });
}

async fn try_all(shared: &Shared, from: IpAddr, all: &[(IpAddr, u32)]) -> Result<(), host::Error> {
    for (number, batch) in all.chunks(AT_ONCE).enumerate() {
        if number > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        try_batch(shared, from, batch).await?;
    }
    Ok(())
}

/// One round over a few wires, all in step.
async fn try_batch(shared: &Shared, from: IpAddr, batch: &[(IpAddr, u32)]) -> Result<(), host::Error> {
    let before = shared.wires.borrow().facts.clone();
    let mut trials: Vec<(IpAddr, Trial)> =
        batch.iter().map(|(to, needed)| (*to, Trial::new(*needed, before.get(to)))).collect();
    loop {
        let open = trials.iter().enumerate().filter_map(|(at, (to, trial))| Some((at, *to, trial.next()?)));
        let (at, packets): (Vec<usize>, Vec<Packet>) = open.map(|(at, to, size)| (at, Packet { to, size })).unzip();
        if packets.is_empty() {
            break;
        }
        let sizes: Vec<u32> = packets.iter().map(|packet| packet.size).collect();
        let probe = Probe { from, packets, token: base::random::bits(), through: Through::Wire };
        let passed = shared.verbs.run("wires", move |host| host.links.probe(&probe)).await?;
        for ((at, size), passed) in at.into_iter().zip(sizes).zip(passed) {
            trials[at].1.answered(size, passed);
        }
    }
    let there = trials.iter().filter(|(_, trial)| trial.reaches()).map(|(to, _)| *to).collect();
    let tunnels = try_tunnels(shared, from, there).await;
    let now = shared.now();
    let changed = shared.wires.send_if_modified(|found| {
        let mut changed = false;
        for (to, trial) in &trials {
            let vxlan = found.vxlan(*to, tunnels.get(to).copied());
            let fact = trial.found(found.facts.get(to), now, vxlan);
            if found.facts.get(to) != Some(&fact) {
                tell(*to, found.facts.get(to), &fact);
                found.facts.insert(*to, fact);
                changed = true;
            }
        }
        changed
    });
    if changed {
        shared.board.nudge();
    }
    Ok(())
}

/// Sends a small packet in VXLAN to each of `machines`; which of them sent it back. Nothing is said where this machine cannot try.
async fn try_tunnels(shared: &Shared, from: IpAddr, machines: Vec<IpAddr>) -> BTreeMap<IpAddr, bool> {
    let packets = machines.iter().map(|to| Packet { to: *to, size: wire::SMALL }).collect();
    let probe = Probe { from, packets, token: base::random::bits(), through: Through::Tunnel };
    match shared.verbs.run("tunnels", move |host| host.links.probe(&probe)).await {
        Ok(passed) => machines.into_iter().zip(passed).collect(),
        Err(error) => {
            // Fabrics are made beside this; they may not be yet.
            tracing::debug!(error = %base::errors::chain(&error), "VXLAN to other machines cannot be tried");
            BTreeMap::new()
        }
    }
}

/// Says in the log what operators may have to look for later.
fn tell(machine: IpAddr, before: Option<&WireFact>, now: &WireFact) {
    let (mtu, needed) = (now.mtu.unwrap_or(0), now.needed);
    match (before.is_none_or(WireFact::is_well), now.is_well()) {
        (_, false) if !now.reachable => tracing::warn!(%machine, "another machine does not answer"),
        (_, false) if now.vxlan == Some(false) && mtu >= needed => {
            tracing::warn!(%machine, "another machine answers pings and no VXLAN: its UDP port is closed on the way, or there");
        }
        (_, false) => tracing::warn!(%machine, mtu, needed, "full packets do not pass to another machine"),
        (false, true) => tracing::info!(%machine, needed, "full packets pass to another machine again"),
        (true, true) => {}
    }
}
