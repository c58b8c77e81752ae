//! What each machine is told, kept up to date in memory.
//!
//! The document of a machine is made of parts, one per instance. One task follows the store's changes and makes only the
//! parts anew that a change touches; a part that comes out as it was (a fact was written, nothing else) changes nothing.
//!
//! The generation of a document is the revision of the change that last altered its content. After a restart it begins at the
//! highest revision of any record that goes into it. That is never less than before: whenever a record leaves a document, the
//! same commit writes one that stays (the machine's own when an instance is given back, the account's when a key goes).
//!
//! The firewall's part ([`super::walls`]) is followed in the same step; a machine that filters anything begins after a restart at the
//! store's own revision, because the addresses it was told may have come from records that are gone.
//!
//! A machine whose record says that the store was restored ([`crate::rebuild`]) is told nothing until that is over.
//!
//! After a store was restored from an older copy, machines have seen generations that this history will make again for other
//! content. So each machine's generations are revisions plus a base, which its record holds and which only rises.

mod asked;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use base::{shutdown::Shutdown, watch};
use model::{
    compile,
    id::{AccountId, FirewallRuleId, ImageId, InstanceId, NetworkId, ServerId},
    instance::Instance,
    network::Network,
    part::{Digest, Part},
    role::HeadnodeRole,
    server::Server,
    target::{ImageTarget, NetworkTarget, Target, ZoneTarget},
};
use store::{Entry, Snapshot};

use super::{
    peers::{self, Peers},
    reports::Stirred,
};

use crate::{
    Control, ControlConfig,
    accounts::keys,
    firewall::{Enforcement, Subject},
    headnodes,
    servers::walls::Walls,
    tables::{
        BY_IMAGE, BY_NETWORK, BY_OWNER, BY_SERVER, HEADNODES, IMAGES, INSTANCES, KEYS, NETWORKS, PACKAGES, SERVERS,
    },
};

pub use asked::{watch_news, watch_target};

/// The documents of all machines.
#[derive(Debug)]
pub struct Targets {
    datacenter: String,
    dns_domain: Option<String>,
    vxlan_port: u16,
    // A leaf lock: held while parts are made or copied, never across an await.
    state: Mutex<State>,
    /// [`State::revision`] for those who wait for it.
    followed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// Revision up to which changes have been followed.
    revision: u64,
    /// In order, so that who waits is woken in the same order each time.
    machines: BTreeMap<ServerId, Machine>,
    place_of: HashMap<InstanceId, ServerId>,
    walls: Walls,
    peers: Peers,
    /// See [`Target::headnodes`].
    headnodes: Vec<String>,
}

#[derive(Debug)]
struct Machine {
    generation: watch::Sender<u64>,
    /// See [`Server::generation_base`].
    base: u64,
    /// See [`Server::generation_floor`].
    floor: u64,
    role: Option<HeadnodeRole>,
    /// See [`Server::restored`]: it is told nothing, and what it has seen says nothing.
    muted: bool,
    /// In this run no generation stood for two contents: what the machine held from a run before was looked at.
    compared: bool,
    /// Generation of the newest document it was sent from here.
    sent_generation: u64,
    zones: BTreeMap<InstanceId, Zone>,
    networks: BTreeMap<NetworkId, NetworkTarget>,
    images: BTreeMap<ImageId, ImageTarget>,
    /// What it was sent last, oldest first, by digest.
    sent: VecDeque<(Digest, Target)>,
    stirred: Stirred,
}

#[derive(Debug)]
struct Zone {
    /// Revision of the change that last altered this part.
    revision: u64,
    target: Part<ZoneTarget>,
}

/// What a machine knows of what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Knowledge {
    /// The newest.
    Current,
    /// Something older, or nothing.
    Behind,
    /// The record is newer than the documents here: look again in a moment.
    Unclear,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            generation: watch::Sender::new(0),
            base: 0,
            floor: 0,
            role: None,
            muted: false,
            compared: false,
            sent_generation: 0,
            zones: BTreeMap::new(),
            networks: BTreeMap::new(),
            images: BTreeMap::new(),
            sent: VecDeque::new(),
            stirred: Stirred::default(),
        }
    }
}

/// Follows the store until `shutdown`.
pub(crate) fn start(control: Control, shutdown: Shutdown) {
    // Listening begins before the first look, so that no change falls between the two.
    let mut changes = control.store.changes();
    control.targets.rebuild(&control.snapshot());
    base::task::spawn("targets", async move {
        while let Some(change) = shutdown.unless(changes.next()).await {
            if change.lagged {
                control.targets.rebuild(&change.snapshot);
            } else {
                control.targets.follow(&change.snapshot, change.revision.0, &change.keys);
            }
        }
    });
}

/// The document of a machine, made from nothing but one snapshot; `None` for a machine nobody knows.
pub fn target_for(config: &ControlConfig, snapshot: &Snapshot, server: ServerId) -> Option<Target> {
    let targets = Targets::new(config);
    targets.rebuild(snapshot);
    targets.target(server)
}

// === impl Targets ===

impl Targets {
    pub(crate) fn new(config: &ControlConfig) -> Self {
        Self {
            datacenter: config.datacenter.clone(),
            dns_domain: config.guest_dns_domain.clone(),
            vxlan_port: config.fabric.vxlan_port,
            state: Mutex::default(),
            followed: watch::Sender::new(0),
        }
    }

    /// Waits until the documents show every change up to `revision`.
    pub(crate) async fn caught_up(&self, revision: u64) {
        let mut followed = self.followed.subscribe();
        // Its sender is in `self`, so it cannot close.
        let _ = followed.wait_for(|followed| *followed >= revision).await;
    }

    /// Generation of a machine's document; 0 when there is none yet.
    pub(crate) fn generation(&self, server: ServerId) -> u64 {
        self.lock().machines.get(&server).map_or(0, |machine| *machine.generation.borrow())
    }

    /// Whether a machine that has written down generation `seen` knows what it should know of an instance.
    pub(crate) fn knowledge(&self, server: ServerId, instance: &Entry<Instance>, seen: u64) -> Knowledge {
        let state = self.lock();
        if instance.revision().0 > state.revision {
            return Knowledge::Unclear;
        }
        let known = state.machines.get(&server).and_then(|machine| Some((machine, machine.zones.get(&instance.id)?)));
        match known {
            Some((machine, zone))
                if !machine.muted && seen > machine.floor && seen >= zone.revision.saturating_add(machine.base) =>
            {
                Knowledge::Current
            }
            _ => Knowledge::Behind,
        }
    }

    /// Up to which generation a machine that enforces generation `seen` has everything, as all headnodes count: they may have its document under
    /// other numbers, but what changes it from here on they number alike.
    pub(crate) fn covered(&self, server: ServerId, seen: u64) -> u64 {
        let state = self.lock();
        let Some(machine) = state.machines.get(&server) else { return seen };
        let generation = *machine.generation.borrow();
        if (1..=seen).contains(&generation) { seen.max(state.revision.saturating_add(machine.base)) } else { seen }
    }

    /// Resolves when a machine has no document any more.
    pub(crate) fn gone(&self, server: ServerId) -> impl Future<Output = ()> + use<> {
        let mut generation = self.subscribe(server);
        async move { while generation.changed().await.is_ok() {} }
    }

    /// On how many machines the newest version of a record is in force, by what each machine says it enforces.
    pub(crate) fn enforcement(&self, subject: Subject, seen: impl Fn(ServerId) -> u64) -> Enforcement {
        let mut state = self.lock();
        let State { machines, walls, .. } = &mut *state;
        let has = |server, revision: u64| {
            machines.get(&server).map(|machine| {
                let seen = seen(server);
                !machine.muted && seen > machine.floor && seen >= revision.saturating_add(machine.base)
            })
        };
        match subject {
            Subject::Rule(id) => walls.enforcement(id, has),
            Subject::Instance(id) => walls.enforcement_of(id, has),
        }
    }

    /// The machines that have a rule, or have not confirmed yet that they have it no more.
    pub(crate) fn enforcers(&self, rule: FirewallRuleId) -> Vec<ServerId> {
        self.lock().walls.enforcers(rule)
    }

    fn subscribe(&self, server: ServerId) -> watch::Receiver<u64> {
        self.lock().machines.entry(server).or_default().generation.subscribe()
    }

    fn target(&self, server: ServerId) -> Option<Target> {
        let state = self.lock();
        let machine = state.machines.get(&server)?;
        let generation = *machine.generation.borrow();
        if generation == 0 {
            return None;
        }
        let zones = machine.zones.iter().map(|(id, zone)| (*id, zone.target.clone())).collect();
        Some(Target {
            server,
            generation,
            datacenter: self.datacenter.clone(),
            networks: machine.networks.clone(),
            images: machine.images.clone(),
            zones,
            firewall: state.walls.target(server),
            underlay: state.peers.underlay(server),
            vxlan_port: self.vxlan_port,
            peers: state.peers.heard(server),
            headnode: machine.role.clone().map(Box::new),
            headnodes: state.headnodes.clone(),
        })
    }

    /// Instances of a machine whose records changed since this was asked last.
    pub(crate) fn take_stirred(&self, server: ServerId) -> Stirred {
        let mut state = self.lock();
        let nothing = Stirred::Some(BTreeSet::new());
        state.machines.get_mut(&server).map_or(Stirred::All, |machine| std::mem::replace(&mut machine.stirred, nothing))
    }

    /// Makes every document anew from one snapshot. Generations only rise.
    pub(crate) fn rebuild(&self, snapshot: &Snapshot) {
        let mut state = self.lock();
        let state = &mut *state;
        let known: BTreeSet<ServerId> = snapshot.scan(&SERVERS).map(|server| server.id).collect();
        state.machines.retain(|server, _| known.contains(server));
        state.place_of.clear();
        let walled_anew = state.walls.rebuild(snapshot);
        state.peers.clear();
        for network in snapshot.scan(&NETWORKS) {
            // Everybody's document is made anew below, so nobody need be marked.
            state.peers.lead(network.id, peers::routed(&network), &mut BTreeSet::new());
        }
        state.headnodes = headnodes::node_links(snapshot);
        let told = snapshot.scan(&HEADNODES).filter(|_| !state.headnodes.is_empty());
        let told = told.map(|headnode| headnode.revision().0).max().unwrap_or(0);
        let mut newest_of: HashMap<ServerId, u64> = HashMap::new();
        let mut keys_of: HashMap<AccountId, String> = HashMap::new();
        for server in snapshot.scan(&SERVERS) {
            let machine = state.machines.entry(server.id).or_default();
            let mut newest = server.revision().0.max(told);
            machine.count_from(&server);
            machine.role.clone_from(&server.headnode_role);
            machine.zones.clear();
            machine.stirred = Stirred::All;
            for entry in snapshot.find(&INSTANCES, BY_SERVER, &server.id.to_string()).filter(|entry| !entry.is_lost()) {
                let account_keys =
                    keys_of.entry(entry.owner).or_insert_with(|| keys::authorized_keys(snapshot, entry.owner));
                let target = Part::new(self.zone(snapshot, &entry, account_keys));
                newest = newest.max(peers::newest_revision(snapshot, &entry));
                // Later than any change of this part; the machine is told again at worst.
                machine.zones.insert(entry.id, Zone { revision: peers::newest_revision(snapshot, &entry), target });
                state.place_of.insert(entry.id, server.id);
                let members = peers::members(snapshot, &entry);
                state.peers.place(entry.id, Some((server.id, members)));
            }
            state.peers.meet(server.id, server.underlay);
            newest_of.insert(server.id, newest);
        }
        state.peers.settle();
        let State { machines, peers, walls, .. } = &mut *state;
        for (server, machine) in machines {
            let mut newest = newest_of.get(server).copied().unwrap_or(0);
            machine.complete(snapshot, *server, peers);
            let is_walled = walls.filters(*server) || walled_anew.contains(server);
            if is_walled || machine.networks.values().any(|network| network.fabric.is_some()) {
                // Addresses in it come from records everywhere, of which some may be gone: no single one tells how new it is.
                newest = newest.max(snapshot.revision().0);
            }
            let newest = if machine.muted { 0 } else { newest.saturating_add(machine.base) };
            machine.generation.send_if_modified(|generation| {
                let risen = newest > *generation;
                *generation = newest.max(*generation);
                risen
            });
        }
        state.revision = state.revision.max(snapshot.revision().0);
        self.followed.send_replace(state.revision);
    }

    /// Follows one commit: `snapshot` as it left the store, at `revision`, and the `(table, key)`s it changed.
    fn follow(&self, snapshot: &Snapshot, revision: u64, keys: &[(&'static str, Arc<str>)]) {
        let mut state = self.lock();
        if revision <= state.revision {
            return;
        }
        state.revision = revision;
        let mut instances: BTreeSet<InstanceId> = BTreeSet::new();
        let mut dirty: BTreeSet<ServerId> = BTreeSet::new();
        for (table, key) in keys {
            touched(snapshot, &mut state, table, key, &mut instances, &mut dirty);
        }
        for instance in instances {
            self.remake(snapshot, &mut state, revision, instance, &mut dirty);
        }
        dirty.extend(state.walls.follow(snapshot, revision, keys));
        let State { machines, peers, .. } = &mut *state;
        for server in &dirty {
            if let Some(machine) = machines.get_mut(server) {
                machine.complete(snapshot, *server, peers);
            }
        }
        dirty.append(&mut peers.settle());
        for machine in dirty.iter().filter_map(|server| machines.get(server)).filter(|machine| !machine.muted) {
            machine.generation.send_replace(revision.saturating_add(machine.base));
        }
        self.followed.send_replace(revision);
    }

    /// Makes the part of one instance anew; its machines become dirty if that changed anything.
    fn remake(
        &self,
        snapshot: &Snapshot,
        state: &mut State,
        revision: u64,
        id: InstanceId,
        dirty: &mut BTreeSet<ServerId>,
    ) {
        let entry = snapshot.get(&INSTANCES, &id.to_string()).filter(|entry| entry.is_on_machine() && !entry.is_lost());
        let (before, now) = (state.place_of.get(&id).copied(), entry.as_ref().map(|entry| entry.server));
        if let Some(left) = before.filter(|left| Some(*left) != now) {
            state.place_of.remove(&id);
            if let Some(machine) = state.machines.get_mut(&left) {
                machine.stirred.add(id);
                machine.zones.remove(&id);
                dirty.insert(left);
            }
        }
        let place = entry.as_ref().map(|entry| (entry.server, peers::members(snapshot, entry)));
        state.peers.place(id, place);
        let (Some(entry), Some(server)) = (entry, now) else { return };
        let target = self.zone(snapshot, &entry, &keys::authorized_keys(snapshot, entry.owner));
        let machine = state.machines.entry(server).or_default();
        machine.stirred.add(id);
        if machine.zones.get(&id).is_none_or(|zone| *zone.target != target) {
            machine.zones.insert(id, Zone { revision, target: Part::new(target) });
            state.place_of.insert(id, server);
            dirty.insert(server);
        }
    }

    fn zone(&self, snapshot: &Snapshot, instance: &Instance, account_keys: &str) -> ZoneTarget {
        let networks: Vec<Arc<Entry<Network>>> =
            instance.nics.iter().filter_map(|nic| snapshot.get(&NETWORKS, &nic.network.to_string())).collect();
        let network_of = |id| networks.iter().find(|network| network.id == id).map(|network| &network.value);
        let package = snapshot.get(&PACKAGES, &instance.package.to_string());
        ZoneTarget {
            package_version: package.map(|package| package.version.clone()),
            ..compile::zone(instance, network_of, account_keys, self.dns_domain.as_deref())
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl Machine {
    /// Takes over where generations are counted from; whether that is elsewhere than before.
    fn count_from(&mut self, server: &Server) -> bool {
        let before = (self.base, self.floor, self.muted);
        (self.base, self.floor, self.muted) =
            (server.generation_base, server.generation_floor, server.restored.is_some());
        before != (self.base, self.floor, self.muted)
    }

    /// Networks and images that the parts refer to, and networks that routers lead to.
    fn complete(&mut self, snapshot: &Snapshot, server: ServerId, peers: &Peers) {
        let nics = self.zones.values().flat_map(|zone| zone.target.nics.iter().map(|nic| nic.network));
        let networks: BTreeSet<NetworkId> = nics.chain(peers.led_to(server)).collect();
        let images: BTreeSet<ImageId> = self.zones.values().map(|zone| zone.target.image).collect();
        self.networks = networks
            .into_iter()
            .filter_map(|id| Some((id, compile::network(&*snapshot.get(&NETWORKS, &id.to_string())?))))
            .collect();
        self.images = images
            .into_iter()
            .filter_map(|id| Some((id, compile::image(&*snapshot.get(&IMAGES, &id.to_string())?)?)))
            .collect();
    }
}

/// Which parts a change of one record touches.
fn touched(
    snapshot: &Snapshot,
    state: &mut State,
    table: &str,
    key: &str,
    instances: &mut BTreeSet<InstanceId>,
    dirty: &mut BTreeSet<ServerId>,
) {
    let found = |index: &str, key: &str| -> Vec<Arc<Entry<Instance>>> {
        snapshot.find(&INSTANCES, index, key).filter(|entry| entry.is_on_machine()).collect()
    };
    if table == INSTANCES.name {
        instances.extend(key.parse::<InstanceId>());
    } else if table == KEYS.name {
        // Key: account, slash, fingerprint.
        let account = key.split('/').next().unwrap_or("");
        instances.extend(found(BY_OWNER, account).iter().map(|entry| entry.id));
    } else if table == NETWORKS.name {
        if let Ok(id) = key.parse::<NetworkId>() {
            let network = snapshot.get(&NETWORKS, key);
            state.peers.lead(id, network.as_deref().and_then(|network| peers::routed(network)), dirty);
        }
        for entry in found(BY_NETWORK, key) {
            instances.insert(entry.id);
            // The segment itself may have changed without any NIC's part doing so.
            dirty.insert(entry.server);
        }
    } else if table == IMAGES.name {
        dirty.extend(found(BY_IMAGE, key).iter().map(|entry| entry.server));
    } else if table == HEADNODES.name {
        let links = headnodes::node_links(snapshot);
        if links != state.headnodes {
            state.headnodes = links;
            dirty.extend(state.machines.keys());
        }
    } else if table == SERVERS.name
        && let Ok(server) = key.parse::<ServerId>()
    {
        match snapshot.get(&SERVERS, key) {
            None => {
                state.machines.remove(&server);
                state.peers.meet(server, None);
            }
            Some(entry) => {
                let is_elsewhere = state.peers.meet(server, entry.underlay);
                let machine = state.machines.entry(server).or_default();
                let is_other = std::mem::replace(&mut machine.role, entry.headnode_role.clone()) != entry.headnode_role;
                if is_elsewhere || is_other || machine.count_from(&entry) || *machine.generation.borrow() == 0 {
                    dirty.insert(server);
                }
            }
        }
    }
}
