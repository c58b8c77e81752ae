//! Signing a zone (DNSSEC): from a zone, what changes in it, keys and a time, a signed zone.
//!
//! A change signs what it touches: the names it changes, the names before those that come or go (each name says which is next, NSEC), and the
//! zone's own record. A signature is kept as long as what it is over stays and its period lasts. Periods of names begin at different
//! times, worked out from the name alone, so that signing anew is spread over days and never depends on what came before: with Ed25519, whose
//! signatures have no chance in them, the same content, keys and time give the same zone to the byte. So each headnode may sign by
//! itself what all of them know, and a secondary may ask any.
//!
//! The time of signing goes by hours, in which nothing comes due: a zone that has been signed with the same keys in the same hour is not
//! looked through again, and a change costs what it touches and not what the zone holds.
//!
//! NSEC and not NSEC3: whoever may ask can find out all names of a signed zone. Hashing them makes that slower and not
//! impossible, and costs every denial; where names are secret, answer for them in a zone with a view.
//!
//! What signatures are over, and how they and NSEC are written, is the library's (`domain`); when what is signed by which key is ours.

use std::collections::{BTreeMap, BTreeSet};

use domain::{
    base::{
        Record, Rtype, Ttl, UnknownRecordData,
        iana::{Class, SecurityAlgorithm},
        rdata::ComposeRecordData,
    },
    rdata::dnssec::{ProtoRrsig, RtypeBitmapBuilder, Timestamp},
};

use crate::{
    key::{Duty, KeyError, ZoneKey},
    name::Name,
    order::Order,
    rrset::{Kind, Rrset, RrsetError},
    zone::{Change, Zone, ZoneError},
};

/// Seconds by which a signature begins before its period: clocks differ.
const BEFORE_S: u64 = 3600;
/// Seconds by which the time of signing goes on.
const STEP_S: u64 = 3600;
/// Seconds of a period, after which a name is signed anew.
const PERIOD_S: u64 = 4 * 86_400;
/// Seconds from a period's begin for which its signatures are good: what nobody renews goes bad after ten days at the earliest.
const VALIDITY_S: u64 = 14 * 86_400;
/// Keys of a zone at most: two kinds, each twice while it is rolled, and room for a roll that begins before the last has ended.
const KEYS_MAX: usize = 8;

/// Why a zone cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// No key, or more than are needed.
    #[error("a zone is signed with one to {KEYS_MAX} keys, not {0}")]
    Keys(usize),
    /// No key does this.
    #[error("no key signs {0}")]
    Idle(&'static str),
    /// A name below the apex has name servers of its own.
    #[error("`{0}` has name servers of its own: zones with such parts are not signed")]
    Cut(Name),
    /// A record that only signing makes.
    #[error("records of kind {1} at `{0}` are made by signing")]
    Made(Name, Kind),
    /// The key does not sign.
    #[error("the key {0} does not sign")]
    Key(u16),
    /// A set with its signatures is too large.
    #[error("sign `{0}`")]
    Set(Name, #[source] RrsetError),
    /// The changes do not fit the zone.
    #[error(transparent)]
    Zone(#[from] ZoneError),
}

/// Whether a zone must be signed, or signed anew, although nothing in it changes.
pub fn is_due(zone: &Zone, keys: &[ZoneKey], now_s: u64) -> bool {
    due(zone, keys, step(now_s)).next().is_some()
}

/// What all names of a zone have been signed with. Where it is the same, none of them is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SignedWith {
    /// The time of signing, seconds.
    at_s: u64,
    /// Each key's record and what it did.
    keys: Vec<(Vec<u8>, Duty)>,
}

/// The names that must be signed.
fn due<'a>(zone: &'a Zone, keys: &'a [ZoneKey], now_s: u64) -> impl Iterator<Item = &'a Name> {
    let is_good = move |name: &Name, rrset: &Rrset| {
        let begins_s = period(name, now_s);
        let mut signing = keys.iter().filter(|key| key.signs(rrset.kind()));
        let has = |key: &ZoneKey| rrset.signatures().any(|held| is_good(held, key, begins_s));
        rrset.signatures().count() == signing.clone().count() && signing.all(has)
    };
    let shows_keys = move |rrset: &Rrset| {
        rrset.kind() != Kind::DNSKEY
            || (usize::from(rrset.count()) == keys.len()
                && keys.iter().all(|key| rrset.data().any(|shown| shown == key.data())))
    };
    let names = zone.names().filter(move |(name, rrsets)| {
        !rrsets.iter().any(|rrset| rrset.kind() == Kind::NSEC)
            || !rrsets.iter().all(|rrset| is_good(name, rrset) && shows_keys(rrset))
    });
    names.map(|(name, _)| name)
}

/// The zone after `changes`, signed, at a later serial. `changes` know nothing of DNSSEC: their sets are those of addresses, texts and so
/// on, as they are in the zone without what signing makes; each name once. Whatever else is due is signed as well: all of
/// a zone that was not signed before. Who signs on several machines gives all of them the same time, such as the serial's. What it gives is a
/// zone as any: its last difference has what changed, and [`Zone::soa_signatures`] the signatures of its own record.
pub fn sign(zone: &Zone, changes: &[Change], serial: u32, keys: &[ZoneKey], now_s: u64) -> Result<Zone, SignError> {
    if keys.is_empty() || keys.len() > KEYS_MAX {
        return Err(SignError::Keys(keys.len()));
    }
    for (kind, what) in [(Kind::DNSKEY, "the zone's keys"), (Kind::SOA, "the zone's records")] {
        if !keys.iter().any(|key| key.signs(kind)) {
            return Err(SignError::Idle(what));
        }
    }
    let now_s = step(now_s);
    let with = SignedWith { at_s: now_s, keys: keys.iter().map(|key| (key.data().to_vec(), key.duty())).collect() };
    let is_looked_through = zone.signed_with() == Some(&with);
    let work = Work { zone, keys, now_s };
    let mut plain: BTreeMap<Name, Vec<Rrset>> = BTreeMap::new();
    for change in changes {
        work.check(change)?;
        plain.insert(change.name.clone(), change.after.clone());
    }
    let apex = zone.apex();
    let due = (!is_looked_through).then(|| due(zone, keys, now_s));
    for name in due.into_iter().flatten().chain([apex]) {
        plain.entry(name.clone()).or_insert_with(|| work.plain(name));
    }
    let order = work.order(&mut plain);
    let mut signed = Vec::new();
    for (name, rrsets) in plain {
        let after = if rrsets.is_empty() { Vec::new() } else { work.signed(&name, rrsets, &order)? };
        let before = zone.rrsets(&name).to_vec();
        if !is_same(&before, &after) {
            signed.push(Change { name, before, after });
        }
    }
    let next = zone.with(serial, &signed)?;
    let own = work.signatures(apex, next.soa_rrset())?;
    next.signed(&own, with).map_err(|source| SignError::Set(apex.clone(), source))
}

/// A whole zone, signed at its own serial. It has no differences: what led to it was another zone's.
pub fn sign_whole(zone: &Zone, keys: &[ZoneKey], now_s: u64) -> Result<Zone, SignError> {
    let serial = zone.serial();
    Ok(sign(&zone.renumbered(serial.wrapping_sub(1)), &[], serial, keys, now_s)?.without_history())
}

struct Work<'a> {
    zone: &'a Zone,
    keys: &'a [ZoneKey],
    now_s: u64,
}

/// Whether sets of a kind are made by signing.
pub(crate) fn is_made(kind: Kind) -> bool {
    matches!(kind, Kind::NSEC | Kind::DNSKEY | Kind::RRSIG)
}

fn is_same(before: &[Rrset], after: &[Rrset]) -> bool {
    before.len() == after.len() && after.iter().all(|rrset| before.contains(rrset))
}

impl Work<'_> {
    fn plain(&self, name: &Name) -> Vec<Rrset> {
        self.zone.unsigned(name)
    }

    fn check(&self, change: &Change) -> Result<(), SignError> {
        let name = &change.name;
        for rrset in &change.after {
            if is_made(rrset.kind()) {
                return Err(SignError::Made(name.clone(), rrset.kind()));
            }
            if rrset.kind() == Kind::NS && name != self.zone.apex() {
                return Err(SignError::Cut(name.clone()));
            }
        }
        if is_same(&self.plain(name), &change.before) { Ok(()) } else { Err(ZoneError::Before(name.clone()).into()) }
    }

    /// The names that there are afterwards, in order. Those whose next name changes are added to `plain`.
    fn order(&self, plain: &mut BTreeMap<Name, Vec<Rrset>>) -> Order {
        let held = self.zone.order();
        let mut order = held.clone();
        let mut moved = BTreeSet::new();
        for (name, rrsets) in plain.iter() {
            let is_held = order.contains(name);
            if is_held && rrsets.is_empty() {
                order.remove(name);
                moved.insert(name.clone());
            } else if !is_held && !rrsets.is_empty() {
                order.insert(name);
                moved.insert(name.clone());
            }
        }
        for name in moved {
            if let Some(before) = order.before(name.as_wire())
                && !plain.contains_key(before)
            {
                plain.insert(before.clone(), self.plain(before));
            }
        }
        order
    }

    /// All sets of a name, signed.
    fn signed(&self, name: &Name, mut rrsets: Vec<Rrset>, order: &Order) -> Result<Vec<Rrset>, SignError> {
        let is_apex = name == self.zone.apex();
        let set = |source| SignError::Set(name.clone(), source);
        if is_apex {
            let keys = Rrset::from_wire(Kind::DNSKEY, self.zone.soa().ttl_s, self.keys.iter().map(ZoneKey::data));
            rrsets.push(keys.map_err(set)?);
        }
        let own = if is_apex { Some(Kind::SOA) } else { None };
        let kinds = rrsets.iter().map(Rrset::kind).chain(own).chain([Kind::RRSIG, Kind::NSEC]);
        let mut next = order.after(name).unwrap_or(self.zone.apex()).as_wire().to_vec();
        next.extend(bitmap(kinds));
        let soa = self.zone.soa();
        let next = Rrset::from_wire(Kind::NSEC, soa.negative_s.min(soa.ttl_s), [next]);
        rrsets.push(next.map_err(set)?);
        let signed = rrsets.into_iter().map(|rrset| {
            let signatures = self.signatures(name, &rrset)?;
            rrset.with_signatures(&signatures).map_err(set)
        });
        signed.collect()
    }

    /// A signature of each key over a set: the one there is, where that is of this period.
    fn signatures(&self, name: &Name, rrset: &Rrset) -> Result<Vec<Vec<u8>>, SignError> {
        let begins_s = period(name, self.now_s);
        let held = self.zone.rrsets(name).iter().find(|held| held.without_signatures() == rrset.without_signatures());
        let signatures = self.keys.iter().filter(|key| key.signs(rrset.kind())).map(|key| {
            let good = held.and_then(|held| held.signatures().find(|held| is_good(held, key, begins_s)));
            match good {
                Some(good) => Ok(good.to_vec()),
                None => self.signature(name, rrset, key, begins_s).map_err(|_| SignError::Key(key.tag())),
            }
        });
        signatures.collect()
    }

    fn signature(&self, name: &Name, rrset: &Rrset, key: &ZoneKey, begins_s: u64) -> Result<Vec<u8>, KeyError> {
        // The star is not counted: so those who check see that the name they asked for was made from it.
        let labels = name.label_count() - usize::from(name.is_wildcard());
        let (kind, ttl) = (Rtype::from_int(rrset.kind().0), Ttl::from_secs(rrset.ttl_s()));
        let signature = ProtoRrsig::new(
            kind,
            SecurityAlgorithm::from_int(key.signing().number()),
            u8::try_from(labels).unwrap_or(u8::MAX),
            ttl,
            Timestamp::from(time(begins_s + VALIDITY_S)),
            Timestamp::from(time(begins_s.saturating_sub(BEFORE_S))),
            key.tag(),
            self.zone.apex().read(),
        );
        let mut signed = Vec::with_capacity(512);
        let Ok(()) = signature.compose_canonical(&mut signed);
        for data in rrset.data() {
            // Sets are kept in the canonical order, and names in them in lower case.
            let data = UnknownRecordData::from_octets(kind, data).map_err(|_| KeyError)?;
            let Ok(()) = Record::new(name.read(), Class::IN, ttl, data).compose_canonical(&mut signed);
        }
        let signature = signature.into_rrsig(key.sign(&signed)?).map_err(|_| KeyError)?;
        let mut data = Vec::with_capacity(160);
        let Ok(()) = signature.compose_canonical_rdata(&mut data);
        Ok(data)
    }
}

/// The time of signing at a time.
fn step(now_s: u64) -> u64 {
    now_s - now_s % STEP_S
}

/// When a name's present period began.
fn period(name: &Name, now_s: u64) -> u64 {
    // FNV-1a: the same everywhere and for ever.
    let hash = name
        .as_wire()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let offset_s = hash % PERIOD_S;
    ((now_s + offset_s) / PERIOD_S * PERIOD_S).saturating_sub(offset_s)
}

/// Times in signatures go around as serials do.
fn time(seconds: u64) -> u32 {
    u32::try_from(seconds & 0xffff_ffff).unwrap_or(0)
}

/// Whether a signature is this key's and of the period that began then.
fn is_good(signature: &[u8], key: &ZoneKey, begins_s: u64) -> bool {
    signature.get(12..16) == Some(&time(begins_s.saturating_sub(BEFORE_S)).to_be_bytes())
        && signature.get(2) == Some(&key.signing().number())
        && signature.get(16..18) == Some(&key.tag().to_be_bytes())
}

/// Kinds as NSEC lists them.
fn bitmap(kinds: impl IntoIterator<Item = Kind>) -> Vec<u8> {
    let mut listed = RtypeBitmapBuilder::new_vec();
    for kind in kinds {
        let Ok(()) = listed.add(Rtype::from_int(kind.0));
    }
    listed.finalize().as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_listed_as_the_standard_does() {
        // RFC 4034, 4.3: A MX RRSIG NSEC TYPE1234.
        let kinds = [Kind(1234), Kind::A, Kind(15), Kind::RRSIG, Kind::NSEC, Kind::A];
        let mut wanted = vec![0, 6, 0x40, 1, 0, 0, 0, 3, 4, 27];
        wanted.extend([0; 26]);
        wanted.push(0x20);
        assert_eq!(bitmap(kinds), wanted);
    }
}
