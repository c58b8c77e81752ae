//! The firewall's part of every machine's document, kept up to date in memory.
//!
//! Three kinds of change reach it. An instance that gets or loses a tag, an address or its life changes the addresses behind some
//! keys: only machines whose document refers to one of those have that set's content looked up again, and nothing else. An instance
//! whose own traffic is filtered, and a rule, make the machines they concern be compiled anew. Everything else a commit may do
//! (facts, histories, intents) costs one comparison of views.
//!
//! Beside the documents it remembers, per rule and machine, the revision that last changed how the rule stands there, and per instance
//! and machine the revision at which the machine's part last changed because the instance did. What a machine says it
//! enforces, held against those, is the proof of enforcement.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use model::{
    firewall::{
        Directory, FirewallRule, FirewallTarget, InstanceView, Selector, SetKey, compile, directory::changed_sets,
    },
    id::{AccountId, FirewallRuleId, InstanceId, ServerId},
    instance::Instance,
    part::Part,
};
use store::{Entry, Snapshot};

use crate::{
    firewall::Enforcement,
    tables::{FIREWALL_RULES, INSTANCES},
};

/// Deleted rules whose last machines are remembered for those who wait for the end of their effect.
const DEPARTED_MAX: usize = 1_000;

/// Instances whose last changes are remembered one by one; those before count as changes of the machines they touched.
const TRACED_MAX: usize = 2_000;

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Walls {
    directory: Directory,
    rules: HashMap<FirewallRuleId, Arc<Entry<FirewallRule>>>,
    /// Rules by owner; global ones under `None`.
    by_owner: HashMap<Option<AccountId>, BTreeSet<FirewallRuleId>>,
    here: HashMap<ServerId, BTreeSet<InstanceId>>,
    place_of: HashMap<InstanceId, ServerId>,
    targets: HashMap<ServerId, Part<FirewallTarget>>,
    /// Machines whose document refers to the addresses behind a key.
    users: HashMap<SetKey, BTreeSet<ServerId>>,
    marks: HashMap<FirewallRuleId, BTreeMap<ServerId, Mark>>,
    departed: VecDeque<FirewallRuleId>,
    traces: HashMap<InstanceId, BTreeMap<ServerId, u64>>,
    /// Keys of `traces`, in the order in which they came.
    traced: VecDeque<InstanceId>,
    /// Revisions at which machines' parts changed for reasons that are not known, or not any more.
    since: HashMap<ServerId, u64>,
}

/// How a rule stands in a machine's document.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Since when.
    revision: u64,
    /// Whether the document has it; otherwise it had, and the machine may still enforce it.
    is_there: bool,
}

/// What a set of changes calls for.
#[derive(Debug, Default)]
struct Work {
    /// Machines to be compiled anew.
    stale: BTreeSet<ServerId>,
    /// Keys whose addresses may differ.
    changed: BTreeSet<SetKey>,
    /// Instances that are the reason.
    instances: Vec<InstanceId>,
}

impl Walls {
    /// The firewall's part of a machine's document.
    pub(super) fn target(&self, server: ServerId) -> Part<FirewallTarget> {
        self.targets.get(&server).cloned().unwrap_or_default()
    }

    /// Whether any instance on a machine is filtered.
    pub(super) fn filters(&self, server: ServerId) -> bool {
        self.targets.get(&server).is_some_and(|target| !target.instances.is_empty())
    }

    /// Makes everything anew from one snapshot, and says whose document differs. What comes out as it was keeps its marks.
    pub(super) fn rebuild(&mut self, snapshot: &Snapshot) -> BTreeSet<ServerId> {
        let before = std::mem::take(self);
        *self = Self {
            targets: before.targets,
            marks: before.marks,
            departed: before.departed,
            traces: before.traces,
            traced: before.traced,
            since: before.since,
            ..Self::default()
        };
        for entry in snapshot.scan(&FIREWALL_RULES) {
            self.by_owner.entry(entry.owner).or_default().insert(entry.id);
            self.rules.insert(entry.id, entry);
        }
        for entry in snapshot.scan(&INSTANCES).filter(|entry| !entry.released) {
            self.directory.insert(view(&entry));
            self.here.entry(entry.server).or_default().insert(entry.id);
            self.place_of.insert(entry.id, entry.server);
        }
        let known: BTreeSet<ServerId> = self.targets.keys().chain(self.here.keys()).copied().collect();
        let revision = snapshot.revision().0;
        let differing: BTreeSet<ServerId> =
            known.into_iter().filter(|server| self.recompile(*server, revision)).collect();
        self.since.extend(differing.iter().map(|server| (*server, revision)));
        self.users.clear();
        for (server, target) in &self.targets {
            for set in target.sets.values() {
                self.users.entry(set.key.clone()).or_default().insert(*server);
            }
        }
        differing
    }

    /// Follows one commit and says whose document differs.
    pub(super) fn follow(
        &mut self,
        snapshot: &Snapshot,
        revision: u64,
        keys: &[(&'static str, Arc<str>)],
    ) -> BTreeSet<ServerId> {
        let mut work = Work::default();
        for (table, key) in keys {
            if *table == INSTANCES.name
                && let Ok(id) = key.parse()
            {
                self.take_instance(snapshot, id, &mut work);
            } else if *table == FIREWALL_RULES.name
                && let Ok(id) = key.parse()
            {
                self.take_rule(snapshot, id, &mut work);
            }
        }
        let mut differing = BTreeSet::new();
        for server in &work.stale {
            if self.recompile(*server, revision) {
                differing.insert(*server);
            }
        }
        let mut looked_up: BTreeMap<ServerId, Vec<&SetKey>> = BTreeMap::new();
        for key in &work.changed {
            for server in self.users.get(key).into_iter().flatten().filter(|server| !work.stale.contains(server)) {
                looked_up.entry(*server).or_default().push(key);
            }
        }
        for (server, keys) in looked_up {
            let Some(target) = self.targets.get_mut(&server) else { continue };
            if target.refresh(&self.directory, keys) {
                differing.insert(server);
            }
        }
        for id in work.instances {
            self.trace(id, &differing, revision);
        }
        differing
    }

    /// On how many machines a rule is in force as its record says. `has` tells whether a machine enforces what was so at a
    /// revision; `None` if there is no such machine any more.
    pub(super) fn enforcement(
        &mut self,
        rule: FirewallRuleId,
        has: impl Fn(ServerId, u64) -> Option<bool>,
    ) -> Enforcement {
        let mut enforcement = Enforcement::default();
        let Some(marks) = self.marks.get_mut(&rule) else { return enforcement };
        marks.retain(|server, mark| {
            let Some(is_live) = has(*server, mark.revision) else { return false };
            // A machine that has let go of the rule is none of its machines any more.
            if is_live && !mark.is_there {
                return false;
            }
            enforcement.count(*server, mark.revision, is_live);
            true
        });
        enforcement
    }

    /// The machines that have a rule, or have not confirmed yet that they have it no more.
    pub(super) fn enforcers(&self, rule: FirewallRuleId) -> Vec<ServerId> {
        self.marks.get(&rule).into_iter().flat_map(BTreeMap::keys).copied().collect()
    }

    /// On how many machines what an instance's record says of its tags, its addresses and its firewall is in force: those that filter
    /// it or refer to it, and those that did until a change they have not confirmed. `has` is as for [`Walls::enforcement`].
    pub(super) fn enforcement_of(
        &mut self,
        id: InstanceId,
        has: impl Fn(ServerId, u64) -> Option<bool>,
    ) -> Enforcement {
        let mut concerned: BTreeMap<ServerId, u64> = BTreeMap::new();
        if let Some(view) = self.directory.get(id) {
            let own = self.place_of.get(&id).filter(|_| view.firewall_enabled);
            let keys: Vec<SetKey> = view.keys().collect();
            let users = keys.iter().filter_map(|key| self.users.get(key)).flatten();
            let since = |server: &ServerId| (*server, self.since.get(server).copied().unwrap_or(0));
            concerned.extend(own.into_iter().chain(users).map(since));
        }
        if let Some(trace) = self.traces.get_mut(&id) {
            trace.retain(|server, revision| {
                let refers = concerned.contains_key(server);
                // A machine that has let go of the instance is none of its machines any more.
                let keep = has(*server, *revision).is_some_and(|is_live| refers || !is_live);
                if keep {
                    let newest = concerned.entry(*server).or_default();
                    *newest = (*newest).max(*revision);
                }
                keep
            });
        }
        let mut enforcement = Enforcement::default();
        for (server, revision) in concerned {
            let Some(is_live) = has(server, revision) else { continue };
            enforcement.count(server, revision, is_live);
        }
        enforcement
    }

    /// Remembers which machines' parts an instance's change touched.
    fn trace(&mut self, id: InstanceId, servers: &BTreeSet<ServerId>, revision: u64) {
        if servers.is_empty() {
            return;
        }
        if !self.traces.contains_key(&id) {
            self.traced.push_back(id);
            if self.traced.len() > TRACED_MAX
                && let Some(forgotten) = self.traced.pop_front()
            {
                for (server, revision) in self.traces.remove(&forgotten).unwrap_or_default() {
                    let since = self.since.entry(server).or_default();
                    *since = (*since).max(revision);
                }
            }
        }
        self.traces.entry(id).or_default().extend(servers.iter().map(|server| (*server, revision)));
    }

    fn take_instance(&mut self, snapshot: &Snapshot, id: InstanceId, work: &mut Work) {
        let entry = snapshot.get(&INSTANCES, &id.to_string()).filter(|entry| !entry.released);
        let (after, place) = (entry.as_ref().map(|entry| view(entry)), entry.as_ref().map(|entry| entry.server));
        let was_at = self.place_of.get(&id).copied();
        if self.directory.get(id) == after.as_ref() && was_at == place {
            return;
        }
        let before = match after.clone() {
            Some(after) => self.directory.insert(after),
            None => self.directory.remove(id),
        };
        work.instances.push(id);
        work.changed.append(&mut changed_sets(before.as_ref(), after.as_ref()));
        for (server, view) in [(was_at, &before), (place, &after)] {
            if view.as_ref().is_some_and(|view| view.firewall_enabled) {
                work.stale.extend(server);
            }
        }
        if let Some(left) = was_at
            && let Some(here) = self.here.get_mut(&left)
        {
            here.remove(&id);
        }
        match place {
            Some(server) => {
                self.here.entry(server).or_default().insert(id);
                self.place_of.insert(id, server);
            }
            None => drop(self.place_of.remove(&id)),
        }
    }

    fn take_rule(&mut self, snapshot: &Snapshot, id: FirewallRuleId, work: &mut Work) {
        let after = snapshot.get(&FIREWALL_RULES, &id.to_string());
        let before = match after.clone() {
            Some(after) => self.rules.insert(id, after),
            None => {
                self.departed.push_back(id);
                if self.departed.len() > DEPARTED_MAX
                    && let Some(forgotten) = self.departed.pop_front()
                {
                    self.marks.remove(&forgotten);
                }
                self.rules.remove(&id)
            }
        };
        // Owners never change.
        let Some(rule) = after.as_ref().or(before.as_ref()) else { return };
        let owned = self.by_owner.entry(rule.owner).or_default();
        match after {
            Some(_) => owned.insert(id),
            None => owned.remove(&id),
        };
        match rule.owner {
            None => work.stale.extend(self.here.keys()),
            Some(owner) => {
                let all = SetKey { scope: Some(owner), selector: Selector::AllVms };
                let instances = self.directory.members(&all);
                work.stale.extend(instances.iter().filter_map(|id| self.place_of.get(id)));
            }
        }
    }

    /// Compiles a machine's part and says whether it differs.
    fn recompile(&mut self, server: ServerId, revision: u64) -> bool {
        let here: Vec<&InstanceView> =
            self.here.get(&server).into_iter().flatten().filter_map(|id| self.directory.get(*id)).collect();
        let owners: BTreeSet<Option<AccountId>> = here
            .iter()
            .filter(|view| view.firewall_enabled)
            .map(|view| Some(view.owner))
            .chain(std::iter::once(None))
            .collect();
        let ids = owners.iter().filter_map(|owner| self.by_owner.get(owner)).flatten();
        let rules = ids.filter_map(|id| self.rules.get(id)).map(|entry| &entry.value);
        let target = Part::new(compile(rules, &self.directory, here.iter().copied()));
        let before = self.target(server);
        if before == target {
            return false;
        }
        for (id, rule) in &target.rules {
            if before.rules.get(id) != Some(rule) {
                self.marks.entry(*id).or_default().insert(server, Mark { revision, is_there: true });
            }
        }
        for id in before.rules.keys().filter(|id| !target.rules.contains_key(id)) {
            self.marks.entry(*id).or_default().insert(server, Mark { revision, is_there: false });
        }
        for (_, set) in before.sets.iter().filter(|(id, _)| !target.sets.contains_key(id)) {
            if let Some(users) = self.users.get_mut(&set.key) {
                users.remove(&server);
                if users.is_empty() {
                    self.users.remove(&set.key);
                }
            }
        }
        for (_, set) in target.sets.iter().filter(|(id, _)| !before.sets.contains_key(id)) {
            self.users.entry(set.key.clone()).or_default().insert(server);
        }
        self.targets.insert(server, target);
        true
    }
}

fn view(instance: &Instance) -> InstanceView {
    let addresses = instance.nics.iter().flat_map(model::network::Nic::addresses).collect();
    InstanceView::new(instance.id, instance.owner, &instance.tags, addresses, instance.firewall_enabled)
}
