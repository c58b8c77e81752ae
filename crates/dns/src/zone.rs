//! A zone: immutable and persistent. A change makes a new one that shares everything it does not touch, and keeps the difference, so
//! that secondaries can be told what is new.
//!
//! Names lie in a hash map by their bytes, because a question is one look-up then. A name that has nothing but names below it (an *empty
//! non-terminal*: it exists, without records) has an entry as well; each entry counts the names directly below, so that the last one
//! to go takes those above with it.

use std::{collections::VecDeque, sync::Arc};

use imbl::{GenericHashMap, shared_ptr::DefaultSharedPtr};

use crate::{
    hash::NameHash,
    name::{self, Name},
    order::Order,
    rrset::{Kind, Rrset, RrsetError, Soa},
    sign::{self, SignedWith},
};

/// Differences a zone keeps at most: a secondary that missed more gets the whole zone.
const HISTORY_DIFFERENCES_MAX: usize = 1000;
/// Changes of names in all kept differences at most.
const HISTORY_CHANGES_MAX: usize = 50_000;

/// What one name had, and what it has instead. A name with nothing is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Whose records change.
    pub name: Name,
    /// Its record sets so far, in any order.
    pub before: Vec<Rrset>,
    /// Its record sets from now on, in any order.
    pub after: Vec<Rrset>,
}

/// How a zone came from one serial to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The serial it had.
    pub from: u32,
    /// The serial it got.
    pub to: u32,
    /// What changed; each name once.
    pub changes: Vec<Change>,
}

/// A difference as a zone keeps it.
#[derive(Debug, Clone)]
pub(crate) struct Past {
    pub(crate) difference: Difference,
    /// The zone's own record before and after, with its signatures; none when it was loaded from what does not have them.
    pub(crate) own: Option<(Rrset, Rrset)>,
}

/// Why something is not a zone, or cannot follow one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// A name that does not belong there.
    #[error("`{name}` is not in the zone `{apex}`")]
    Outside {
        /// The name.
        name: Name,
        /// The zone.
        apex: Name,
    },
    /// A change of something else than what there is.
    #[error("`{0}` has not the records that the change takes away")]
    Before(Name),
    /// The same kind twice at one name, or one name twice.
    #[error("`{0}` has two sets of kind {1}")]
    Twice(Name, Kind),
    /// An alias beside other records, or at the apex.
    #[error("`{0}` is an alias and something else")]
    Alias(Name),
    /// The zone's own record is made from its [`Soa`] and serial; signatures go with what they sign.
    #[error("records of kind {1} at `{0}` are made by the zone")]
    Own(Name, Kind),
    /// Serials only grow.
    #[error("serial {to} does not follow {from}")]
    Serial {
        /// The serial so far.
        from: u32,
        /// The serial that was to follow.
        to: u32,
    },
    /// The zone has no name server.
    #[error("the zone `{0}` has no NS records at its apex")]
    NoServer(Name),
}

/// What is known of one name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Node {
    /// Sorted by kind; none for an empty non-terminal.
    pub(crate) rrsets: Option<Arc<[Rrset]>>,
    /// How many names lie directly below.
    below: u32,
}

type Nodes = GenericHashMap<Name, Node, NameHash, DefaultSharedPtr>;

/// Names and their records at one serial. A clone costs a pointer.
#[derive(Debug, Clone)]
pub struct Zone(Arc<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    apex: Name,
    soa: Soa,
    serial: u32,
    soa_rrset: Rrset,
    nodes: Nodes,
    /// Names that have records.
    names: usize,
    /// Names below the apex with name servers of their own.
    cuts: usize,
    /// Names with records that stand for many: their first label is `*`.
    wildcards: usize,
    /// Of a signed zone: the names that say which is next.
    order: Order,
    /// Of a zone that was signed and not changed since otherwise: what all its names were signed with.
    signed_with: Option<Arc<SignedWith>>,
    history: VecDeque<Arc<Past>>,
    history_changes: usize,
}

impl Zone {
    /// The zone `apex` at a serial. `names` has each name once, the apex with its NS records among them; the SOA record is made here.
    /// `history` is what led to it, the oldest first; what does not end in `serial` without a gap is left out.
    pub fn load(
        apex: Name,
        soa: Soa,
        serial: u32,
        names: impl IntoIterator<Item = (Name, Vec<Rrset>)>,
        history: impl IntoIterator<Item = Difference>,
    ) -> Result<Self, ZoneError> {
        let soa_rrset = soa.rrset(serial);
        let nodes = Nodes::with_hasher(NameHash::new());
        let mut inner = Inner {
            apex,
            soa,
            serial,
            soa_rrset,
            nodes,
            names: 0,
            cuts: 0,
            wildcards: 0,
            order: Order::default(),
            signed_with: None,
            history: VecDeque::new(),
            history_changes: 0,
        };
        inner.nodes.insert(inner.apex.clone(), Node::default());
        for (name, rrsets) in names {
            inner.change(&Change { name, before: Vec::new(), after: rrsets })?;
        }
        inner.check_apex()?;
        for difference in history {
            if inner.history.back().is_some_and(|last| last.difference.to != difference.from) {
                inner.forget();
            }
            inner.remember(Past { difference, own: None });
        }
        if inner.history.back().is_some_and(|last| last.difference.to != serial) {
            inner.forget();
        }
        Ok(Self(Arc::new(inner)))
    }

    /// The zone after `changes` (each name once), at a later serial.
    pub fn with(&self, serial: u32, changes: &[Change]) -> Result<Self, ZoneError> {
        if !is_later(serial, self.0.serial) {
            return Err(ZoneError::Serial { from: self.0.serial, to: serial });
        }
        let mut inner = Inner::clone(&self.0);
        for change in changes {
            inner.change(change)?;
        }
        inner.check_apex()?;
        inner.serial = serial;
        inner.soa_rrset = inner.soa.rrset(serial);
        inner.signed_with = None;
        let difference = Difference { from: self.0.serial, to: serial, changes: changes.to_vec() };
        inner.remember(Past { difference, own: Some((self.0.soa_rrset.clone(), inner.soa_rrset.clone())) });
        Ok(Self(Arc::new(inner)))
    }

    /// The name under which all others lie.
    pub fn apex(&self) -> &Name {
        &self.0.apex
    }

    /// Its serial.
    pub fn serial(&self) -> u32 {
        self.0.serial
    }

    /// What it says about itself.
    pub fn soa(&self) -> &Soa {
        &self.0.soa
    }

    /// How many names have records.
    pub fn name_count(&self) -> usize {
        self.0.names
    }

    /// The record sets of a name, the zone's own record apart; none when there are none.
    pub fn rrsets(&self, name: &Name) -> &[Rrset] {
        self.0.nodes.get(name).map_or(&[], Node::rrsets)
    }

    /// The record sets of a name without what signing makes, and without signatures.
    pub fn unsigned(&self, name: &Name) -> Vec<Rrset> {
        let sets = self.rrsets(name).iter().filter(|rrset| !sign::is_made(rrset.kind()));
        sets.map(Rrset::without_signatures).collect()
    }

    /// Every name with its record sets, in no order; the zone's own record apart.
    pub fn names(&self) -> impl Iterator<Item = (&Name, &[Rrset])> {
        self.0.nodes.iter().map(|(name, node)| (name, node.rrsets())).filter(|(_, rrsets)| !rrsets.is_empty())
    }

    /// The differences since a serial, the oldest first; none when they are not known any more, or never were.
    pub fn since(&self, serial: u32) -> Option<impl Iterator<Item = &Difference>> {
        Some(self.past(serial)?.map(|past| &past.difference))
    }

    /// The same zone, all of whose names were signed with this, with signatures over its own record, which no other change keeps.
    pub(crate) fn signed(&self, own: &[Vec<u8>], with: SignedWith) -> Result<Self, RrsetError> {
        let mut inner = Inner::clone(&self.0);
        inner.signed_with = Some(Arc::new(with));
        inner.soa_rrset = inner.soa_rrset.with_signatures(own)?;
        if let Some(last) = inner.history.back_mut() {
            let own = last.own.clone().map(|(before, _)| (before, inner.soa_rrset.clone()));
            *last = Arc::new(Past { difference: last.difference.clone(), own });
        }
        Ok(Self(Arc::new(inner)))
    }

    /// What all its names were signed with, if that is known.
    pub(crate) fn signed_with(&self) -> Option<&SignedWith> {
        self.0.signed_with.as_deref()
    }

    /// The signatures over its own record.
    pub fn soa_signatures(&self) -> impl Iterator<Item = &[u8]> {
        self.0.soa_rrset.signatures()
    }

    /// Whether its names say which is next: whether it is signed.
    pub fn is_signed(&self) -> bool {
        !self.0.order.is_empty()
    }

    /// The same content at another serial, with nothing that led to it.
    pub(crate) fn renumbered(&self, serial: u32) -> Self {
        let mut inner = Inner::clone(&self.0);
        (inner.serial, inner.soa_rrset) = (serial, inner.soa.rrset(serial));
        inner.forget();
        Self(Arc::new(inner))
    }

    /// The same zone without the differences that led to it.
    pub(crate) fn without_history(&self) -> Self {
        let mut inner = Inner::clone(&self.0);
        inner.forget();
        Self(Arc::new(inner))
    }

    /// See [`Zone::since`].
    pub(crate) fn past(&self, serial: u32) -> Option<impl Iterator<Item = &Arc<Past>>> {
        let first = self.0.history.iter().position(|past| past.difference.from == serial)?;
        Some(self.0.history.range(first..))
    }

    /// The names that say which is next.
    pub(crate) fn order(&self) -> &Order {
        &self.0.order
    }

    /// The name that shows that another, given as bytes, is not there or has no more than it says; with its record of that.
    pub(crate) fn denial(&self, wire: &[u8]) -> Option<(&Name, &Rrset)> {
        let name = self.0.order.at_or_before(wire)?;
        Some((name, self.0.nodes.get(name)?.rrset(Kind::NSEC)?))
    }

    /// The zone's own record.
    pub(crate) fn soa_rrset(&self) -> &Rrset {
        &self.0.soa_rrset
    }

    /// The zone's own record before and after a difference.
    pub(crate) fn own_records(&self, past: &Past) -> (Rrset, Rrset) {
        let computed = || (self.0.soa.rrset(past.difference.from), self.0.soa.rrset(past.difference.to));
        past.own.clone().unwrap_or_else(computed)
    }

    /// What is known of a name, given as bytes; none when it does not exist.
    pub(crate) fn node(&self, wire: &[u8]) -> Option<&Node> {
        self.0.nodes.get(wire)
    }

    /// What stands for a name that is not there: `*` below the nearest name above it that is (RFC 4592).
    pub(crate) fn wildcard(&self, wire: &[u8]) -> Option<&Node> {
        if !self.has_wildcards() {
            return None;
        }
        let above = upwards(wire, &self.0.apex).skip(1).find(|above| self.0.nodes.contains_key(*above))?;
        let any = [name::ANY, above].concat();
        // A name that only has names below it stands for nothing.
        self.0.nodes.get(any.as_slice()).filter(|node| !node.rrsets().is_empty())
    }

    /// Whether any name stands for many.
    pub(crate) fn has_wildcards(&self) -> bool {
        self.0.wildcards > 0
    }

    /// The name servers of a name, with the name as the zone has it.
    pub(crate) fn servers(&self, wire: &[u8]) -> Option<(&[u8], &Rrset)> {
        let (name, node) = self.0.nodes.get_key_value(wire)?;
        node.rrset(Kind::NS).map(|rrset| (name.as_wire(), rrset))
    }

    /// Whether names below the apex have name servers of their own.
    pub(crate) fn has_cuts(&self) -> bool {
        self.0.cuts > 0
    }
}

// === impl Node ===

impl Node {
    /// Its record sets, sorted by kind.
    pub(crate) fn rrsets(&self) -> &[Rrset] {
        self.rrsets.as_deref().unwrap_or_default()
    }

    /// The set of a kind.
    pub(crate) fn rrset(&self, kind: Kind) -> Option<&Rrset> {
        self.rrsets().iter().find(|rrset| rrset.kind() == kind)
    }
}

// === impl Inner ===

impl Inner {
    fn change(&mut self, change: &Change) -> Result<(), ZoneError> {
        let name = &change.name;
        let mut after = change.after.clone();
        after.sort_by_key(Rrset::kind);
        self.check(name, &after)?;
        let mut before = change.before.clone();
        before.sort_by_key(Rrset::kind);
        let now = self.nodes.get(name).map_or(&[][..], Node::rrsets);
        if now != before {
            return Err(ZoneError::Before(name.clone()));
        }
        let is_cut = |rrsets: &[Rrset]| name != &self.apex && rrsets.iter().any(|rrset| rrset.kind() == Kind::NS);
        let (was_cut, is_cut) = (is_cut(&before), is_cut(&after));
        self.names = self.names + usize::from(!after.is_empty()) - usize::from(!before.is_empty());
        self.cuts = self.cuts + usize::from(is_cut) - usize::from(was_cut);
        if name.is_wildcard() {
            self.wildcards = self.wildcards + usize::from(!after.is_empty()) - usize::from(!before.is_empty());
        }
        if after.is_empty() {
            self.take(name);
        } else {
            self.put(name, after.into());
        }
        Ok(())
    }

    fn check(&self, name: &Name, rrsets: &[Rrset]) -> Result<(), ZoneError> {
        if !name.is_under(&self.apex) {
            return Err(ZoneError::Outside { name: name.clone(), apex: self.apex.clone() });
        }
        if let Some(own) = rrsets.iter().find(|rrset| matches!(rrset.kind(), Kind::SOA | Kind::RRSIG)) {
            return Err(ZoneError::Own(name.clone(), own.kind()));
        }
        if let Some(pair) = rrsets.windows(2).find(|pair| pair[0].kind() == pair[1].kind()) {
            return Err(ZoneError::Twice(name.clone(), pair[0].kind()));
        }
        let is_alias = rrsets.iter().any(|rrset| rrset.kind() == Kind::CNAME);
        let beside = rrsets.iter().any(|rrset| !matches!(rrset.kind(), Kind::CNAME | Kind::NSEC));
        if is_alias && (beside || name == &self.apex) {
            return Err(ZoneError::Alias(name.clone()));
        }
        Ok(())
    }

    fn check_apex(&self) -> Result<(), ZoneError> {
        let apex = self.nodes.get(&self.apex);
        match apex.and_then(|node| node.rrset(Kind::NS)) {
            Some(_) => Ok(()),
            None => Err(ZoneError::NoServer(self.apex.clone())),
        }
    }

    fn put(&mut self, name: &Name, rrsets: Arc<[Rrset]>) {
        let is_marked = rrsets.iter().any(|rrset| rrset.kind() == Kind::NSEC);
        if is_marked {
            self.order.insert(name);
        } else if !self.order.is_empty() {
            self.order.remove(name);
        }
        if let Some(node) = self.nodes.get_mut(name) {
            node.rrsets = Some(rrsets);
            return;
        }
        self.nodes.insert(name.clone(), Node { rrsets: Some(rrsets), below: 0 });
        let mut above = name.parent();
        while let Some(parent) = above.filter(|parent| parent.is_under(&self.apex)) {
            if let Some(node) = self.nodes.get_mut(&parent) {
                node.below += 1;
                return;
            }
            above = parent.parent();
            self.nodes.insert(parent, Node { rrsets: None, below: 1 });
        }
    }

    fn take(&mut self, name: &Name) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.rrsets = None;
        if !self.order.is_empty() {
            self.order.remove(name);
        }
        let mut empty = node.below == 0;
        let mut name = name.clone();
        while empty && name != self.apex {
            self.nodes.remove(&name);
            let Some(parent) = name.parent() else { return };
            let Some(node) = self.nodes.get_mut(&parent) else { return };
            node.below -= 1;
            empty = node.below == 0 && node.rrsets.is_none();
            name = parent;
        }
    }

    fn forget(&mut self) {
        self.history.clear();
        self.history_changes = 0;
    }

    fn remember(&mut self, past: Past) {
        self.history_changes += past.difference.changes.len();
        self.history.push_back(Arc::new(past));
        while self.history.len() > HISTORY_DIFFERENCES_MAX || self.history_changes > HISTORY_CHANGES_MAX {
            let Some(oldest) = self.history.pop_front() else { return };
            self.history_changes -= oldest.difference.changes.len();
        }
    }
}

/// Whether a serial follows another, around the end of the numbers as well (RFC 1982).
pub(crate) fn is_later(serial: u32, than: u32) -> bool {
    let ahead = serial.wrapping_sub(than);
    ahead != 0 && ahead < 1 << 31
}

/// The bytes of the names from `wire` up to, and with, the apex.
pub(crate) fn upwards<'a>(wire: &'a [u8], apex: &Name) -> impl Iterator<Item = &'a [u8]> {
    let len = apex.as_wire().len();
    std::iter::successors(Some(wire), |wire| name::parent(wire)).take_while(move |wire| wire.len() >= len)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::rrset::Data;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn soa() -> Soa {
        let (primary, mailbox) = (name("ns.example"), name("hostmaster.example"));
        Soa { primary, mailbox, refresh_s: 1, retry_s: 1, expire_s: 100, negative_s: 30, ttl_s: 30 }
    }

    fn servers() -> Rrset {
        Rrset::new(3600, &[Data::Ns(name("ns.example"))]).unwrap()
    }

    fn address(last: u8) -> Rrset {
        Rrset::new(30, &[Data::A([192, 0, 2, last].into())]).unwrap()
    }

    fn zone() -> Zone {
        Zone::load(name("example"), soa(), 1, [(name("example"), vec![servers()])], []).unwrap()
    }

    fn change(of: &str, before: &[u8], after: &[u8]) -> Change {
        let sets = |all: &[u8]| all.iter().map(|last| address(*last)).collect();
        Change { name: name(of), before: sets(before), after: sets(after) }
    }

    #[test]
    fn names_between_exist_as_long_as_something_lies_below() {
        let with = zone().with(2, &[change("a.b.c.example", &[], &[1])]).unwrap();
        let exists = |zone: &Zone, text: &str| zone.node(name(text).as_wire()).is_some();
        assert!(exists(&with, "b.c.example") && exists(&with, "c.example"));
        let two = with.with(3, &[change("c.example", &[], &[1]), change("a.b.c.example", &[1], &[])]).unwrap();
        assert!(!exists(&two, "b.c.example") && exists(&two, "c.example"));
        let none = two.with(4, &[change("c.example", &[1], &[])]).unwrap();
        assert!(!exists(&none, "c.example") && exists(&none, "example"));
        assert!(exists(&with, "a.b.c.example"), "the older zone is as it was");
        assert_eq!((with.name_count(), none.name_count()), (2, 1));
    }

    #[test]
    fn what_cannot_follow_is_refused() {
        let zone = zone().with(5, &[change("a.example", &[], &[1])]).unwrap();
        let refused = |serial, change: Change| zone.with(serial, &[change]).unwrap_err();
        assert_eq!(refused(5, change("b.example", &[], &[1])), ZoneError::Serial { from: 5, to: 5 });
        assert_eq!(refused(6, change("a.example", &[2], &[3])), ZoneError::Before(name("a.example")));
        assert_eq!(refused(6, change("a.example", &[1], &[2, 3])), ZoneError::Twice(name("a.example"), Kind::A));
        let outside = ZoneError::Outside { name: name("a.other"), apex: name("example") };
        assert_eq!(refused(6, change("a.other", &[], &[1])), outside);
        let alias = Rrset::new(1, &[Data::Cname(name("b.example"))]).unwrap();
        let beside = Change { name: name("a.example"), before: vec![address(1)], after: vec![alias, address(1)] };
        assert_eq!(refused(6, beside), ZoneError::Alias(name("a.example")));
        let headless = Change { name: name("example"), before: vec![servers()], after: vec![] };
        assert_eq!(refused(6, headless), ZoneError::NoServer(name("example")));
        let own = Change { name: name("b.example"), before: vec![], after: vec![soa().rrset(1)] };
        assert_eq!(refused(6, own), ZoneError::Own(name("b.example"), Kind::SOA));
    }

    #[test]
    fn serials_go_around_the_end() {
        assert!(is_later(0, u32::MAX) && is_later(5, u32::MAX - 5));
        assert!(!is_later(u32::MAX, 0) && !is_later(7, 7));
    }

    #[test]
    fn history_has_no_gap_and_an_end() {
        let mut zone = zone();
        for serial in 2..=1500 {
            let (before, after): (&[u8], &[u8]) = if serial % 2 == 0 { (&[], &[1]) } else { (&[1], &[]) };
            zone = zone.with(serial, &[change("a.example", before, after)]).unwrap();
        }
        let serials = |zone: &Zone, from| zone.since(from).map(|all| all.map(|one| one.to).collect::<Vec<_>>());
        assert_eq!(serials(&zone, 1498), Some(vec![1499, 1500]));
        assert_eq!(serials(&zone, 500).map(|all| all.len()), Some(1000));
        assert_eq!(serials(&zone, 499), None, "too long ago");
        assert_eq!(serials(&zone, 1500), None, "nothing is newer");
        let history: Vec<Difference> = zone.since(1490).unwrap().cloned().collect();
        let names: Vec<_> = zone.names().map(|(name, rrsets)| (name.clone(), rrsets.to_vec())).collect();
        let loaded = |serial, history: Vec<Difference>| {
            Zone::load(name("example"), soa(), serial, names.clone(), history).unwrap()
        };
        assert_eq!(serials(&loaded(1500, history.clone()), 1490).map(|all| all.len()), Some(10));
        assert_eq!(serials(&loaded(1501, history.clone()), 1490), None, "it does not lead here");
        let gap = history.into_iter().filter(|difference| difference.to != 1495).collect();
        assert_eq!(serials(&loaded(1500, gap), 1495).map(|all| all.len()), Some(5), "what follows the gap is good");
    }

    proptest! {
        #[test]
        fn a_zone_after_changes_is_the_zone_loaded_anew(
            steps in prop::collection::vec((prop::collection::vec(0_u8..3, 1..4), prop::option::of(0_u8..3)), 0..40)
        ) {
            let mut zone = zone();
            let mut wanted: BTreeMap<Name, u8> = BTreeMap::new();
            for (serial, (labels, value)) in (2..).zip(steps) {
                let text: String = labels.iter().map(|label| format!("n{label}.")).collect();
                let name = name(&format!("{text}example"));
                let before = wanted.get(&name).map(|last| address(*last)).into_iter().collect();
                let after = value.map(address).into_iter().collect();
                zone = zone.with(serial, &[Change { name: name.clone(), before, after }]).unwrap();
                match value {
                    Some(value) => wanted.insert(name, value),
                    None => wanted.remove(&name),
                };
            }
            let names = wanted.iter().map(|(name, last)| (name.clone(), vec![address(*last)]));
            let apex = (name("example"), vec![servers()]);
            let loaded = Zone::load(name("example"), soa(), zone.serial(), names.chain([apex]), []).unwrap();
            let all = |zone: &Zone| -> BTreeMap<Name, Vec<Rrset>> {
                zone.0.nodes.iter().map(|(name, node)| (name.clone(), node.rrsets().to_vec())).collect()
            };
            prop_assert_eq!(all(&zone), all(&loaded));
            let existing: BTreeSet<Name> = wanted.keys().flat_map(|name| {
                upwards(name.as_wire(), zone.apex()).map(|wire| Name::from_wire(wire).unwrap()).collect::<Vec<_>>()
            }).chain([name("example")]).collect();
            prop_assert_eq!(all(&zone).into_keys().collect::<BTreeSet<_>>(), existing);
            prop_assert_eq!(zone.name_count(), wanted.len() + 1);
        }
    }
}
