//! The publisher: keeps the records of names what they should be.
//!
//! It follows the store's changes and looks only at instances that a change may concern; who becomes the first headnode, or was too slow to be
//! told everything, looks at all. Once a second it asks which machines have fallen silent or speak again, which no record says. What
//! differs is committed in batches, each with the next serial of every zone it touches.
//!
//! A headnode that has just started has heard nobody. Until it knows, names of instances stay as they are: otherwise those of dead machines
//! would come back into their services for half a minute with every restart.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use base::shutdown::Shutdown;
use futures_util::FutureExt as _;
use model::{
    id::{InstanceId, ServerId},
    names::{Group, Plan, Published, Subject, Zone, ZoneHead, is_ahead, next_serial},
    network::Network,
    state::{Reachability, public},
};
use store::{Change, Entry, Snapshot, Transaction};

use super::{owns_label, zones};
use crate::{
    Control, Error, Result,
    tables::{ACCOUNTS, BY_NETWORK, BY_OWNER, BY_SERVER, HEADNODES, INSTANCES, NAMES, NETWORKS, POOLS, SERVERS, ZONES},
};

/// How often silence is looked for.
const LOOK: Duration = Duration::from_secs(1);
/// After a commit that did not work.
const AGAIN: Duration = Duration::from_secs(2);
/// Everything is looked at so often, whatever changes said: what an error of ours left undone is mended.
const WHOLE_MS: i64 = 300_000;
/// Instances looked at for one commit at most.
const LOOKED_MAX: usize = 500;
/// Records written by one commit at most, as long as it is about several instances: the smallest store takes 128.
const WRITES_MAX: usize = 96;
/// Zones changed by one commit at most.
const ZONES_MAX: usize = 64;

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Zones that began, ended or changed beside names of instances.
    pub zones: usize,
    /// Instances whose names changed.
    pub instances: usize,
}

/// What is to be looked at.
#[derive(Debug, Default)]
struct Work {
    /// Everything.
    all: bool,
    /// The zones themselves.
    zones: bool,
    /// These, in order, so that a run can be repeated.
    instances: BTreeSet<InstanceId>,
    /// Machines as they were seen last; `None` and not there at all are the same.
    machines: HashMap<ServerId, Option<Reachability>>,
    looked_at_all_ms: i64,
}

/// Publishes until `shutdown`, while this is the first headnode.
pub async fn keep_published(control: Control, shutdown: Shutdown) {
    // Listening begins before the first look, so that no change falls between the two.
    let mut changes = control.store.changes();
    let mut work = Work { all: true, ..Work::default() };
    loop {
        let mut pause = LOOK;
        if control.headnodes.roster().is_first() {
            work.look_for_silence(&control);
            match shutdown.unless(work.pass(&control)).await {
                None => return,
                Some(Ok(Summary { zones: 0, instances: 0 })) => {}
                Some(Ok(done)) => tracing::debug!(zones = done.zones, instances = done.instances, "names changed"),
                Some(Err(error)) => {
                    tracing::warn!(error = base::errors::chain(&error), "names could not be published; trying again");
                    work.all = true;
                    pause = AGAIN;
                }
            }
        } else {
            // Whoever is first now does it; this one looks at all when its turn comes.
            work.all = true;
        }
        let wake = control.clock.sleep(pause);
        tokio::pin!(wake);
        loop {
            tokio::select! {
                biased;
                () = shutdown.wait() => return,
                change = changes.next() => {
                    work.note(&change);
                    // What came meanwhile goes into the same commits: while serials are ahead of the clock there is one a second.
                    while let Some(change) = changes.next().now_or_never() {
                        work.note(&change);
                    }
                    if work.is_due() && pause == LOOK {
                        break;
                    }
                }
                () = &mut wake => break,
            }
        }
    }
}

/// Looks at everything once and publishes what differs, whoever is first.
pub async fn publish_all(control: &Control) -> Result<Summary> {
    Work { all: true, ..Work::default() }.pass(control).await
}

// === impl Work ===

impl Work {
    fn is_due(&self) -> bool {
        self.zones || !self.instances.is_empty()
    }

    /// What a change may concern.
    fn note(&mut self, change: &Change) {
        if self.all {
            return;
        }
        if change.lagged {
            self.all = true;
            return;
        }
        for (table, key) in &change.keys {
            self.note_record(&change.snapshot, table, key);
        }
    }

    fn note_record(&mut self, snapshot: &Snapshot, table: &str, key: &str) {
        let mut all_of = |index: &str| {
            self.instances.extend(snapshot.find(&INSTANCES, index, key).map(|instance| instance.id));
        };
        if table == INSTANCES.name {
            self.instances.extend(key.parse::<InstanceId>());
        } else if table == ACCOUNTS.name {
            all_of(BY_OWNER);
        } else if table == NETWORKS.name {
            all_of(BY_NETWORK);
            self.zones = true;
        } else if table == POOLS.name || table == HEADNODES.name {
            self.zones = true;
        }
    }

    /// Instances of machines that are reachable no more, or again.
    fn look_for_silence(&mut self, control: &Control) {
        let (snapshot, now) = (control.snapshot(), control.now());
        if now.0.saturating_sub(self.looked_at_all_ms) > WHOLE_MS {
            self.all = true;
        }
        let mut machines = HashMap::new();
        for server in snapshot.scan(&SERVERS) {
            let fate = fate(control, server.id);
            if self.machines.get(&server.id).copied().flatten() != fate {
                let instances = snapshot.find(&INSTANCES, BY_SERVER, &server.id.to_string());
                self.instances.extend(instances.map(|instance| instance.id));
            }
            machines.insert(server.id, fate);
        }
        self.machines = machines;
    }

    /// Publishes everything that is noted.
    async fn pass(&mut self, control: &Control) -> Result<Summary> {
        let mut done = Summary::default();
        if self.all || self.zones {
            let changed = publish_zones(control).await?;
            // Which zone has which network may have changed with them.
            self.all |= changed > 0;
            self.zones = false;
            done.zones = changed;
        }
        if self.all {
            let snapshot = control.snapshot();
            let published = snapshot.scan(&NAMES).map(|published| published.instance);
            let present = snapshot.scan(&INSTANCES).filter(|instance| !instance.released).map(|instance| instance.id);
            self.instances = published.chain(present).collect();
            self.all = false;
            self.looked_at_all_ms = control.now().0;
        }
        while !self.instances.is_empty() {
            let batch: Vec<InstanceId> = self.instances.iter().take(LOOKED_MAX).copied().collect();
            let (_, outcome) =
                control.store.update(|snapshot| Ok::<_, Error>(decide(control, snapshot, &batch))).await?;
            for id in &batch[..outcome.looked_at] {
                self.instances.remove(id);
            }
            done.instances += outcome.changed;
            if outcome.ahead {
                // Serials are numbers of seconds; they may run ahead of the clock for a while and not for ever.
                control.clock.sleep(LOOK).await;
            }
        }
        Ok(done)
    }
}

/// What one commit is about.
#[derive(Debug, Default)]
struct Outcome {
    /// How many of the batch were looked at.
    looked_at: usize,
    changed: usize,
    ahead: bool,
}

/// What is different for the first of `batch`, as far as one commit goes.
fn decide(control: &Control, snapshot: &Snapshot, batch: &[InstanceId]) -> (Transaction, Outcome) {
    let zones: Vec<Arc<Entry<Zone>>> = snapshot.scan(&ZONES).collect();
    let plan = Plan::of(zones.iter().map(|zone| &zone.value));
    let mut outcome = Outcome::default();
    let mut transaction = Transaction::new();
    let mut touched: BTreeSet<String> = BTreeSet::new();
    for id in batch {
        let entry = snapshot.get(&NAMES, &id.to_string());
        let Some(mut parts) = wanted(control, snapshot, &plan, *id) else {
            // As soon as it can be told, all instances of the machine are looked at.
            outcome.looked_at += 1;
            continue;
        };
        // Addresses whose zone is not there have no names; the zones are looked at first.
        parts.retain(|apex, _| {
            zones.binary_search_by(|zone| zone.apex.cmp(apex)).is_ok_and(|at| zones[at].head.is_some())
        });
        let different = differences(entry.as_deref().map(|entry| &entry.value), &parts);
        if !different.is_empty() {
            let writes = outcome.changed + touched.len() + different.len() + 1;
            if outcome.changed > 0 && writes > WRITES_MAX {
                break;
            }
            touched.extend(different);
            outcome.changed += 1;
            let published = Published { instance: *id, parts: parts.into_iter().collect() };
            transaction = match (&entry, published.parts.is_empty()) {
                (Some(entry), true) => transaction.delete(&NAMES, entry),
                (Some(entry), false) => transaction.replace(&NAMES, entry, published),
                (None, _) => transaction.create(&NAMES, published),
            };
        }
        outcome.looked_at += 1;
    }
    let now = control.now();
    for apex in &touched {
        if let Ok(at) = zones.binary_search_by(|zone| zone.apex.cmp(apex)) {
            let zone = Zone { serial: next_serial(zones[at].serial, now), changed_at: now, ..zones[at].value.clone() };
            outcome.ahead |= is_ahead(zone.serial, now);
            transaction = transaction.replace(&ZONES, &zones[at], zone);
        }
    }
    // Names follow what is decided already, so nothing else needs to be as it was; and names that are wrong are worse than a full disk.
    (transaction.may_use_reserve(), outcome)
}

/// The zones in which an instance is to have other names than it has.
fn differences(before: Option<&Published>, after: &BTreeMap<String, Vec<Group>>) -> BTreeSet<String> {
    let mut different: BTreeSet<String> = BTreeSet::new();
    if let Some(before) = before {
        let gone = before.parts.iter().filter(|(apex, groups)| after.get(*apex) != Some(*groups));
        different.extend(gone.map(|(apex, _)| apex.clone()));
    }
    let is_new = |apex: &String| before.is_none_or(|before| !before.parts.contains_key(apex));
    different.extend(after.keys().filter(|apex| is_new(apex)).cloned());
    different
}

/// What an instance is to have; `None` while that cannot be told.
fn wanted(control: &Control, snapshot: &Snapshot, plan: &Plan, id: InstanceId) -> Option<BTreeMap<String, Vec<Group>>> {
    let Some(instance) = snapshot.get(&INSTANCES, &id.to_string()) else { return Some(BTreeMap::new()) };
    let Some(owner) = snapshot.get(&ACCOUNTS, &instance.owner.to_string()) else { return Some(BTreeMap::new()) };
    let reachability = fate(control, instance.server)?;
    let networks: Vec<Arc<Entry<Network>>> =
        instance.nics.iter().filter_map(|nic| snapshot.get(&NETWORKS, &nic.network.to_string())).collect();
    let networks: Vec<&Network> = networks.iter().map(|network| &network.value).collect();
    let subject = Subject {
        instance: &instance,
        owner: &owner,
        owns_label: owns_label(snapshot, &owner),
        state: public(&instance, reachability),
        networks: &networks,
    };
    Some(subject.parts(plan))
}

/// Whether a machine is reachable; `None` while this headnode has not listened for long enough to say.
fn fate(control: &Control, server: ServerId) -> Option<Reachability> {
    let reachability = control.nodes.reachability(server, control.now());
    match reachability {
        Reachability::Reachable if control.nodes.heard(server).is_none() => None,
        known => Some(known),
    }
}

/// Makes the zones' records what they should be. Returns how many were not.
async fn publish_zones(control: &Control) -> Result<usize> {
    let mut changed = 0;
    loop {
        let (_, count) = control.store.update(|snapshot| Ok::<_, Error>(decide_zones(control, snapshot))).await?;
        changed += count;
        if count < ZONES_MAX {
            return Ok(changed);
        }
    }
}

fn decide_zones(control: &Control, snapshot: &Snapshot) -> (Transaction, usize) {
    let wanted = zones::wanted(&control.config.names, snapshot);
    let now = control.now();
    let known: BTreeMap<String, Arc<Entry<Zone>>> =
        snapshot.scan(&ZONES).map(|zone| (zone.apex.clone(), zone)).collect();
    let apexes: BTreeSet<&String> = wanted.keys().chain(known.keys()).collect();
    let mut transaction = Transaction::new();
    let mut count = 0;
    for apex in apexes {
        let (before, head): (_, Option<&ZoneHead>) = (known.get(apex), wanted.get(apex));
        if count == ZONES_MAX || before.map_or(head.is_none(), |before| before.head.as_ref() == head) {
            continue;
        }
        let serial = next_serial(before.map_or(0, |before| before.serial), now);
        let zone = Zone { apex: apex.clone(), serial, changed_at: now, head: head.cloned() };
        transaction = match before {
            Some(before) => transaction.replace(&ZONES, before, zone),
            None => transaction.create(&ZONES, zone),
        };
        count += 1;
    }
    (transaction.may_use_reserve(), count)
}
