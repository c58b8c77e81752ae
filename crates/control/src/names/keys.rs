//! Keys of signed zones, kept as records: made, announced, used and taken away as [`model::names::dnssec`] says.
//!
//! A zone's keys change in one commit with its serial, so that every headnode signs the same content with the same keys. A zone in which nothing
//! changes gets a new serial twice a day: whoever serves it signs anew what is due then.

use std::sync::Arc;

use model::names::{
    Zone,
    dnssec::{KeyRole, MadeKey, ParentHas, RENEW_MS, Step, ZoneKeys, step},
    next_serial,
};
use store::{Entry, Snapshot, Transaction};

use crate::{
    Control, Error, Result,
    tables::{ZONE_KEYS, ZONES},
};

/// Steps of one zone in one commit at most: it begins with two keys, and nothing needs more than a few.
const STEPS_MAX: usize = 16;

/// Makes keys. Whoever starts the control plane has the ciphers, and what seals a key.
pub trait KeyMaker: Send + Sync {
    /// A new key for a zone.
    fn make(&self, apex: &str, role: KeyRole) -> Result<MadeKey, String>;
}

/// A zone that is signed, or should be.
#[derive(Debug, Clone)]
pub struct SignedZone {
    /// The zone.
    pub zone: Arc<Entry<Zone>>,
    /// Its keys; none as long as none was made.
    pub keys: Option<Arc<Entry<ZoneKeys>>>,
}

impl SignedZone {
    /// Whether it is to be signed.
    pub fn is_wanted(&self) -> bool {
        self.zone.head.as_ref().is_some_and(|head| head.signed)
    }
}

/// All zones that are signed or should be, by name.
pub fn signed(control: &Control) -> Vec<SignedZone> {
    let snapshot = control.snapshot();
    let all = snapshot.scan(&ZONES).map(|zone| SignedZone { keys: snapshot.get(&ZONE_KEYS, &zone.apex), zone });
    all.filter(|signed| signed.keys.is_some() || signed.is_wanted()).collect()
}

/// Asks for a new key in the place of the one a zone has.
pub async fn roll(control: &Control, apex: &str, role: KeyRole) -> Result<()> {
    change(control, apex, |keys, _| Ok(keys.rolling(role))).await
}

/// Takes an operator's word of which key a zone's parent names.
pub async fn parent(control: &Control, apex: &str, has: ParentHas) -> Result<()> {
    let now = control.now();
    change(control, apex, |keys, wanted| keys.told(has, wanted, now).map_err(Error::Conflict)).await
}

/// `next` is given a zone's keys, and whether it is to be signed.
async fn change(control: &Control, apex: &str, next: impl Fn(&ZoneKeys, bool) -> Result<ZoneKeys>) -> Result<()> {
    let decide = |snapshot: &Snapshot| {
        let entry = snapshot.get(&ZONE_KEYS, apex).ok_or_else(|| Error::not_found("signed zone", apex))?;
        let zone = snapshot.get(&ZONES, apex);
        let keys = next(&entry, zone.is_some_and(|zone| zone.head.as_ref().is_some_and(|head| head.signed)))?;
        let transaction = Transaction::new();
        // What it signs with stays the same until the keys are tended.
        Ok::<_, Error>((
            if keys == entry.value { transaction } else { transaction.replace(&ZONE_KEYS, &entry, keys) },
            (),
        ))
    };
    control.store.update(decide).await.map(|_| ())
}

/// Looks at the keys of all zones, and does what is due. Returns the zones that changed, or the first error: one zone keeps no other from its turn.
pub async fn tend(control: &Control, maker: &dyn KeyMaker) -> Result<Vec<String>> {
    let (mut changed, mut failed) = (Vec::new(), None);
    for signed in signed(control) {
        let apex = &signed.zone.apex;
        match control.store.update(|snapshot| decide(control, maker, snapshot, apex)).await {
            Ok((_, true)) => changed.push(apex.clone()),
            Ok((_, false)) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(changed), Err)
}

/// What is due in one zone, and whether anything is.
fn decide(control: &Control, maker: &dyn KeyMaker, snapshot: &Snapshot, apex: &str) -> Result<(Transaction, bool)> {
    let (transaction, now) = (Transaction::new(), control.now());
    let Some(zone) = snapshot.get(&ZONES, apex) else { return Ok((transaction, false)) };
    let entry = snapshot.get(&ZONE_KEYS, apex);
    let head = zone.head.as_ref();
    let wanted = head.is_some_and(|head| head.signed);
    let mut keys = entry.as_ref().map_or_else(|| ZoneKeys::none(apex), |entry| entry.value.clone());
    let mut is_over = entry.is_none() && !wanted;
    for _ in 0..STEPS_MAX {
        if is_over {
            break;
        }
        match step(&keys, wanted, head.map_or(0, |head| head.longest_ttl_seconds()), now) {
            Step::Rest => break,
            Step::Become(next) => keys = next,
            Step::End => is_over = true,
            Step::Make(role) => {
                let made = maker.make(apex, role);
                let made = made.map_err(|why| Error::Unavailable(format!("no key for {apex} can be made: {why}")))?;
                // Signatures, parents and operators know a key by its tag alone; of two with one tag the second is made again.
                if !keys.keys.iter().any(|key| key.tag == made.tag) {
                    keys = keys.with(role, made, now);
                }
            }
        }
    }
    let transaction = match (&entry, is_over) {
        (None, true) => return Ok((transaction, false)),
        (Some(entry), true) => transaction.delete(&ZONE_KEYS, entry),
        (None, false) => transaction.create(&ZONE_KEYS, keys),
        (Some(entry), false) if entry.value != keys => transaction.replace(&ZONE_KEYS, entry, keys),
        (Some(_), false) if now.0.saturating_sub(zone.changed_at.0) < RENEW_MS => return Ok((transaction, false)),
        (Some(_), false) => transaction,
    };
    let next = Zone { serial: next_serial(zone.serial, now), changed_at: now, ..zone.value.clone() };
    // Signatures that end are worse than a full disk.
    Ok((transaction.replace(&ZONES, &zone, next).may_use_reserve(), true))
}
