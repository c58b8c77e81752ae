//! What changed from one document to the next: [`TargetDelta`] down, [`ReportDelta`] up.
//!
//! A document stays the whole truth ([`crate::target`]); a delta is only a shorter way to say the next one to somebody who has the
//! one before. `between(a, b)` applied to `a` is `b`, exactly: a delta names the digest of the document it starts from and of the
//! one it leads to, and whoever applies it checks both. Where either does not fit, nothing is applied, the holder says what it
//! holds (or that it holds nothing), and is sent the whole.
//!
//! The digest leaves out what counts or marks time (generation, sequence, what was seen), so a document that says the same under a
//! new number is a delta of nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::{
    clock::ClockReading,
    firewall::{AddressSet, FirewallTarget, InstanceFilter, Layer, LayerId, RuleTarget, SetId, SetTarget},
    id::{FirewallRuleId, ImageId, InstanceId, MacAddr, NetworkId, ServerId},
    part::{Digest, Part, Sum},
    peers::{Peer, Segment},
    role::HeadnodeRole,
    target::{ImageTarget, NetworkTarget, Report, Target, ZoneFact, ZoneTarget},
    wire::WireFact,
};

/// What a node says it holds when it asks for news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Generation of its target; 0 for none.
    pub generation: u64,
    /// Digest of its target, by which it can be told what changed; `None` asks for the whole.
    pub digest: Option<Digest>,
}

/// A newer target, in one of two forms.
#[derive(Debug, Clone, PartialEq)]
pub enum TargetNews {
    /// All of it.
    Whole(Target),
    /// What is new since the target the node holds.
    Delta(Box<TargetDelta>),
}

/// A report, in one of two forms.
#[derive(Debug, Clone, PartialEq)]
pub enum ReportNews {
    /// All of it.
    Whole(Box<Report>),
    /// What is new since the report the headnode holds.
    Delta(Box<ReportDelta>),
}

/// What a node knows the headnode to hold of its reports: nothing, until an answer says so.
#[derive(Debug, Default)]
pub struct Said(Option<(Digest, Report)>);

/// A delta does not belong here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// It is for another machine.
    #[error("it is for another machine")]
    Foreign,
    /// It starts from a document that is not the one held.
    #[error("it starts from {base}, and {held} is held")]
    Base {
        /// What it starts from.
        base: Digest,
        /// What is held.
        held: Digest,
    },
    /// It does not lead where it says.
    #[error("it leads to {reached} and should lead to {meant}")]
    Result {
        /// Where it leads.
        reached: Digest,
        /// Where it should.
        meant: Digest,
    },
}

/// What changed in a map: entries to put in, over what is there, and keys to take out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(deserialize = "K: Ord + Deserialize<'de>, V: Deserialize<'de>"))]
pub struct Changes<K: Ord, V> {
    /// New entries, and new values of old ones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub put: BTreeMap<K, V>,
    /// Keys that are gone.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub gone: BTreeSet<K>,
}

/// From one target to a later one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetDelta {
    /// The machine it is for.
    pub server: ServerId,
    /// Digest of the target it starts from.
    pub base: Digest,
    /// Generation of the target it leads to.
    pub generation: u64,
    /// Digest of the target it leads to.
    pub digest: Digest,
    /// See [`Target::datacenter`]; always said.
    pub datacenter: String,
    /// See [`Target::underlay`]; always said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<IpAddr>,
    /// See [`Target::vxlan_port`]; always said.
    #[serde(default = "crate::target::vxlan_port")]
    pub vxlan_port: u16,
    /// See [`Target::headnode`]; always said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headnode: Option<Box<HeadnodeRole>>,
    /// See [`Target::networks`].
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    pub networks: Changes<NetworkId, NetworkTarget>,
    /// See [`Target::images`].
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    pub images: Changes<ImageId, ImageTarget>,
    /// See [`Target::zones`]. Gone from the document, which is not gone from the machine: that is [`crate::instance::Wanted::Absent`].
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    pub zones: Changes<InstanceId, Part<ZoneTarget>>,
    /// See [`Target::firewall`].
    #[serde(default, skip_serializing_if = "FirewallDelta::is_empty")]
    pub firewall: FirewallDelta,
    /// See [`Target::peers`].
    #[serde(default, skip_serializing_if = "PeersDelta::is_empty")]
    pub peers: PeersDelta,
    /// See [`Target::headnodes`]; always said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headnodes: Vec<String>,
}

/// From one firewall to another.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FirewallDelta {
    /// See [`FirewallTarget::instances`].
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    pub instances: Changes<InstanceId, InstanceFilter>,
    /// See [`FirewallTarget::layers`].
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    pub layers: Changes<LayerId, Layer>,
    /// See [`FirewallTarget::rules`].
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    pub rules: Changes<FirewallRuleId, RuleTarget>,
    /// See [`FirewallTarget::sets`].
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    pub sets: Changes<SetId, SetTarget>,
    /// Addresses in and out of sets that stay: one instance more must not say all others again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub members: BTreeMap<SetId, Members>,
}

/// Addresses in and out of a set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Members {
    /// In.
    #[serde(default)]
    pub joined: AddressSet,
    /// Out.
    #[serde(default)]
    pub left: AddressSet,
}

/// From one table of peers to another.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PeersDelta {
    /// By VNI, new ones among them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub changed: BTreeMap<u32, Changes<MacAddr, Peer>>,
    /// VNIs that are gone.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub gone: BTreeSet<u32>,
}

/// From one report to the next, as long as only instances' facts, wires and what counts or marks time differ: whatever else a report
/// says changes so seldom that it is said whole then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportDelta {
    /// Who reports.
    pub server: ServerId,
    /// Digest of the report it starts from.
    pub base: Digest,
    /// Digest of the report it leads to.
    pub digest: Digest,
    /// See [`Report::sequence`].
    pub sequence: u64,
    /// See [`Report::target_seen`].
    pub target_seen: u64,
    /// See [`Report::firewall_seen`].
    pub firewall_seen: u64,
    /// See [`Report::leaving`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// See [`Report::zones`].
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    pub zones: Changes<InstanceId, Part<ZoneFact>>,
    /// See [`crate::wire::Wires::facts`].
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    pub wires: Changes<IpAddr, WireFact>,
    /// See [`crate::wire::Wires::age_ms`]; always said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wires_age_ms: Option<u64>,
    /// See [`crate::wire::Wires::of`]; always said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wires_of: Option<u32>,
    /// See [`Report::clock`]; always said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<ClockReading>,
}

// === impl Changes ===

impl<K: Ord, V> Changes<K, V> {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.gone.is_empty()
    }
}

impl<K: Ord, V> Default for Changes<K, V> {
    fn default() -> Self {
        Self { put: BTreeMap::new(), gone: BTreeSet::new() }
    }
}

impl<K: Ord + Clone, V: PartialEq + Clone> Changes<K, V> {
    /// What to change in `old` so that it is `new`.
    pub fn between(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Self {
        let put = new.iter().filter(|(key, value)| old.get(key) != Some(value));
        let gone = old.keys().filter(|key| !new.contains_key(key));
        Self { put: put.map(|(key, value)| (key.clone(), value.clone())).collect(), gone: gone.cloned().collect() }
    }

    /// Changes `map`.
    pub fn apply(&self, map: &mut BTreeMap<K, V>) {
        for key in &self.gone {
            map.remove(key);
        }
        map.extend(self.put.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
}

// === impl TargetDelta ===

impl Target {
    /// What tells its content from others; the generation is not part of it.
    pub fn digest(&self) -> Digest {
        let Self {
            server,
            generation: _,
            datacenter,
            networks,
            images,
            zones,
            firewall,
            underlay,
            vxlan_port,
            peers,
            headnode,
            headnodes,
        } = self;
        let mut sum = Sum::default();
        sum.value(&(server, datacenter, underlay, vxlan_port, networks, images));
        for (id, zone) in zones {
            sum.part(id.uuid().as_bytes(), zone);
        }
        sum.digest(firewall.digest());
        for (vni, segment) in peers {
            sum.value(vni);
            sum.digest(segment.digest());
        }
        // Of a node that does not know of roles, too.
        if let Some(role) = headnode {
            sum.value(role);
        }
        // Where there are none, programs that do not know of them come to the same digest.
        if !headnodes.is_empty() {
            sum.value(headnodes);
        }
        sum.done()
    }
}

impl TargetDelta {
    /// From `old` to `new`, two targets of one machine.
    pub fn between(old: &Target, new: &Target) -> Self {
        let Target {
            server,
            generation,
            datacenter,
            networks,
            images,
            zones,
            firewall,
            underlay,
            vxlan_port,
            peers,
            headnode,
            headnodes,
        } = new;
        Self {
            server: *server,
            base: old.digest(),
            generation: *generation,
            digest: new.digest(),
            datacenter: datacenter.clone(),
            underlay: *underlay,
            vxlan_port: *vxlan_port,
            headnode: headnode.clone(),
            networks: Changes::between(&old.networks, networks),
            images: Changes::between(&old.images, images),
            zones: Changes::between(&old.zones, zones),
            firewall: if old.firewall.is(firewall) {
                FirewallDelta::default()
            } else {
                FirewallDelta::between(&old.firewall, firewall)
            },
            peers: PeersDelta::between(&old.peers, peers),
            headnodes: headnodes.clone(),
        }
    }

    /// The target it leads to from `base`.
    pub fn apply(&self, base: &Target) -> Result<Target, Misfit> {
        if self.server != base.server {
            return Err(Misfit::Foreign);
        }
        let held = base.digest();
        if self.base != held {
            return Err(Misfit::Base { base: self.base, held });
        }
        let mut target = Target {
            generation: self.generation,
            datacenter: self.datacenter.clone(),
            underlay: self.underlay,
            vxlan_port: self.vxlan_port,
            headnode: self.headnode.clone(),
            headnodes: self.headnodes.clone(),
            ..base.clone()
        };
        self.networks.apply(&mut target.networks);
        self.images.apply(&mut target.images);
        self.zones.apply(&mut target.zones);
        if !self.firewall.is_empty() {
            self.firewall.apply(&mut target.firewall);
        }
        self.peers.apply(&mut target.peers);
        let reached = target.digest();
        if reached != self.digest {
            return Err(Misfit::Result { reached, meant: self.digest });
        }
        Ok(target)
    }
}

impl FirewallDelta {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn between(old: &FirewallTarget, new: &FirewallTarget) -> Self {
        let FirewallTarget { instances, layers, rules, sets } = new;
        let mut delta = Self {
            instances: Changes::between(&old.instances, instances),
            layers: Changes::between(&old.layers, layers),
            rules: Changes::between(&old.rules, rules),
            ..Self::default()
        };
        for (id, set) in sets {
            match old.sets.get(id) {
                Some(before) if before == set => {}
                Some(before) if before.key == set.key => {
                    delta.members.insert(*id, Members::between(&before.addresses, &set.addresses));
                }
                _ => drop(delta.sets.put.insert(*id, set.clone())),
            }
        }
        delta.sets.gone = old.sets.keys().filter(|id| !sets.contains_key(id)).copied().collect();
        delta
    }

    fn apply(&self, firewall: &mut FirewallTarget) {
        self.instances.apply(&mut firewall.instances);
        self.layers.apply(&mut firewall.layers);
        self.rules.apply(&mut firewall.rules);
        self.sets.apply(&mut firewall.sets);
        for (id, members) in &self.members {
            if let Some(set) = firewall.sets.get_mut(id) {
                members.apply(&mut set.addresses);
            }
        }
    }
}

impl Members {
    fn between(old: &AddressSet, new: &AddressSet) -> Self {
        let missing = |one: &AddressSet, other: &AddressSet| AddressSet {
            v4: one.v4.difference(&other.v4).copied().collect(),
            v6: one.v6.difference(&other.v6).copied().collect(),
        };
        Self { joined: missing(new, old), left: missing(old, new) }
    }

    fn apply(&self, set: &mut AddressSet) {
        for address in &self.left.v4 {
            set.v4.remove(address);
        }
        for address in &self.left.v6 {
            set.v6.remove(address);
        }
        set.v4.extend(&self.joined.v4);
        set.v6.extend(&self.joined.v6);
    }
}

impl PeersDelta {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.gone.is_empty()
    }

    fn between(old: &BTreeMap<u32, Segment>, new: &BTreeMap<u32, Segment>) -> Self {
        let none = Segment::default();
        let changed = new.iter().map(|(vni, segment)| (*vni, segment.changes_from(old.get(vni).unwrap_or(&none))));
        Self {
            // A segment nobody is on is told by being there at all.
            changed: changed.filter(|(vni, changes)| !changes.is_empty() || !old.contains_key(vni)).collect(),
            gone: old.keys().filter(|vni| !new.contains_key(vni)).copied().collect(),
        }
    }

    fn apply(&self, peers: &mut BTreeMap<u32, Segment>) {
        for vni in &self.gone {
            peers.remove(vni);
        }
        for (vni, changes) in &self.changed {
            peers.entry(*vni).or_default().apply(changes);
        }
    }
}

// === impl ReportNews ===

impl ReportNews {
    /// Who reports.
    pub const fn server(&self) -> ServerId {
        match self {
            Self::Whole(report) => report.server,
            Self::Delta(delta) => delta.server,
        }
    }
}

// === impl Said ===

impl Said {
    /// The shortest form of `report` that the headnode can understand.
    pub fn news(&self, report: &Report) -> ReportNews {
        let delta = self.0.as_ref().and_then(|(digest, held)| ReportDelta::between(*digest, held, report));
        delta.map_or_else(|| ReportNews::Whole(Box::new(report.clone())), |delta| ReportNews::Delta(Box::new(delta)))
    }

    /// Notes the answer to `report`, which says what the headnode holds now. False when that is something else: a delta was
    /// not taken in then, and the next form is the whole.
    pub fn answered(&mut self, report: Report, held: Option<Digest>) -> bool {
        let digest = report.digest();
        let is_held = held == Some(digest);
        self.0 = is_held.then_some((digest, report));
        is_held
    }

    /// Whether the headnode took it in is not known: the next form is the whole.
    pub fn unanswered(&mut self) {
        self.0 = None;
    }
}

// === impl ReportDelta ===

impl Report {
    /// What tells its content from others; what counts or marks time is not part of it.
    pub fn digest(&self) -> Digest {
        let Self {
            server,
            sequence: _,
            hostname,
            boot_id,
            target_seen: _,
            firewall_seen: _,
            hardware,
            zones,
            images,
            underlay,
            outside,
            leaving: _,
            goes_down: _,
            untold_addresses,
            wires,
            clock: _,
            headnode,
        } = self;
        let mut sum = Sum::default();
        sum.value(&(server, hostname, boot_id, hardware, images, underlay, outside));
        sum.value(&untold_addresses);
        for (id, fact) in zones {
            sum.part(id.uuid().as_bytes(), fact);
        }
        // Of a node that does not know of wires, too.
        if !wires.facts.is_empty() {
            sum.digest(wires.facts.digest());
        }
        if let Some(fact) = headnode {
            sum.value(fact);
        }
        sum.done()
    }
}

impl ReportDelta {
    /// From `old`, whose digest is `base`, to `new`; `None` when something else than facts differs.
    pub fn between(base: Digest, old: &Report, new: &Report) -> Option<Self> {
        let Report {
            server,
            sequence,
            hostname,
            boot_id,
            target_seen,
            firewall_seen,
            hardware,
            zones,
            images,
            underlay,
            outside,
            leaving,
            goes_down,
            untold_addresses,
            wires,
            clock,
            headnode,
        } = new;
        let same = (&old.server, &old.hostname, &old.boot_id, &old.hardware) == (server, hostname, boot_id, hardware)
            && (&old.images, &old.underlay, &old.outside) == (images, underlay, outside)
            && (&old.untold_addresses, &old.headnode) == (untold_addresses, headnode)
            // Said once in a boot, and whole.
            && !goes_down;
        same.then(|| Self {
            server: *server,
            base,
            digest: new.digest(),
            sequence: *sequence,
            target_seen: *target_seen,
            firewall_seen: *firewall_seen,
            leaving: *leaving,
            zones: Changes::between(&old.zones, zones),
            wires: match old.wires.facts.is(&wires.facts) {
                true => Changes::default(),
                false => Changes::between(&old.wires.facts, &wires.facts),
            },
            wires_age_ms: wires.age_ms,
            wires_of: wires.of,
            clock: *clock,
        })
    }

    /// The report it leads to from `held`, whose digest is `digest`.
    pub fn apply(&self, digest: Digest, held: &Report) -> Result<Report, Misfit> {
        if self.server != held.server {
            return Err(Misfit::Foreign);
        }
        if self.base != digest {
            return Err(Misfit::Base { base: self.base, held: digest });
        }
        let mut report = Report {
            sequence: self.sequence,
            target_seen: self.target_seen,
            firewall_seen: self.firewall_seen,
            leaving: self.leaving,
            goes_down: false,
            clock: self.clock,
            ..held.clone()
        };
        self.zones.apply(&mut report.zones);
        if !self.wires.is_empty() {
            self.wires.apply(&mut report.wires.facts);
        }
        report.wires.age_ms = self.wires_age_ms;
        report.wires.of = self.wires_of;
        let reached = report.digest();
        if reached != self.digest {
            return Err(Misfit::Result { reached, meant: self.digest });
        }
        Ok(report)
    }
}
