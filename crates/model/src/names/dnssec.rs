//! Keys of a signed zone: which there should be, and what each does when.
//!
//! ```text
//! ZSK, signs the records   Announced ──(all who ask know it)──────────────► Signing ──(the next signs)──────► Leaving ──► gone
//! KSK, signs the keys      Announced ──(all know it)──► Offered ──(parent)──► Signing ──(parent has the next)──► Leaving ──► gone
//! ```
//! A ZSK is changed by itself, by publishing the next one first. A KSK is changed when somebody asks for it, since the parent has to name the next:
//! both sign the zone's keys until the parent's operator has been given the new digest, has taken it, and we are told so. Who forgets to tell
//! us loses nothing: the old key stays.
//!
//! Whoever has resolved a name holds records, signatures and keys for as long as they may be remembered. So nothing goes that somebody may
//! still need: each arrow waits for that time, and for secondaries to have come after us.
//!
//! What a key is made of is not known here. [`step`] says what is to happen next, and whoever has the ciphers makes keys.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// How long a ZSK signs.
pub const ZSK_MS: i64 = 90 * DAY_MS;
/// How long secondaries may need to have what we have.
pub const SPREAD_MS: i64 = 60 * 60 * 1_000;
/// How long others may remember which keys the parent names; it says so itself, and most say a day.
pub const PARENT_MS: i64 = 2 * DAY_MS;
/// A zone in which nothing changes is looked at so often for signatures to renew. They are good for days after that.
pub const RENEW_MS: i64 = 12 * 60 * 60 * 1_000;
/// Keys of one role at once: further rolls wait.
pub const KEYS_OF_ROLE_MAX: usize = 4;
/// One day in milliseconds.
const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// The keys of a zone. Record of table `zone_keys`, key the zone's name. It stays as long as the parent may name one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneKeys {
    /// The zone.
    pub apex: String,
    /// The oldest first.
    pub keys: Vec<ZoneKey>,
    /// What an operator asked to be changed for new ones, and was not begun yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rolls: Vec<KeyRole>,
}

/// A key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneKey {
    /// What it signs.
    pub role: KeyRole,
    /// The short number it has in signatures and at the parent.
    pub tag: u16,
    /// The record for the parent, as a zone file has it; of a KSK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_record: Option<String>,
    /// Its private half, which only headnodes can open.
    pub sealed: String,
    /// How far it is.
    pub stage: KeyStage,
    /// Since when.
    pub since: Timestamp,
}

/// What a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyRole {
    /// The zone's keys; the parent names it.
    Ksk,
    /// Everything else.
    Zsk,
}

/// How far a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyStage {
    /// It is among the zone's keys, and not everybody knows yet.
    Announced,
    /// A KSK that the parent may name from now on.
    Offered,
    /// It does what it is for; of a KSK: the parent names it.
    Signing,
    /// Another does; it stays until nobody needs it.
    Leaving,
}

/// A new key, by whoever has the ciphers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeKey {
    /// See [`ZoneKey::tag`].
    pub tag: u16,
    /// See [`ZoneKey::parent_record`].
    pub parent_record: Option<String>,
    /// See [`ZoneKey::sealed`].
    pub sealed: String,
}

/// What is to happen with a zone's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing now.
    Rest,
    /// A key has to be made, for [`ZoneKeys::with`].
    Make(KeyRole),
    /// The keys change.
    Become(ZoneKeys),
    /// The zone is signed no more.
    End,
}

/// What an operator says of a zone's parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParentHas {
    /// It names the key with this tag, and none that was named before.
    Key(u16),
    /// It names none.
    None,
}

/// The next thing to happen. `wanted`: whether the zone is to be signed; `ttl_seconds`: the longest that anything in it may be remembered.
pub fn step(keys: &ZoneKeys, wanted: bool, ttl_seconds: u32, now: Timestamp) -> Step {
    let known_ms = i64::from(ttl_seconds).saturating_mul(1_000).saturating_add(SPREAD_MS);
    let for_ms = |key: &ZoneKey, ms: i64| now.0.saturating_sub(key.since.0) >= ms;
    if !wanted {
        // Without signatures a zone whose parent names a key is bad for everybody who checks.
        let is_needed = keys.keys.iter().filter(|key| key.role == KeyRole::Ksk).any(|key| match key.stage {
            KeyStage::Announced => false,
            // Whoever was asked to put it into the parent may have done so, and not said it.
            KeyStage::Offered | KeyStage::Signing => true,
            KeyStage::Leaving => !for_ms(key, PARENT_MS),
        });
        return if is_needed { Step::Rest } else { Step::End };
    }
    for role in [KeyRole::Ksk, KeyRole::Zsk] {
        let of_role = keys.keys.iter().filter(|key| key.role == role);
        let (mut staying, count) = (of_role.clone().filter(|key| key.stage != KeyStage::Leaving), of_role.count());
        let is_coming = staying.clone().any(|key| key.stage != KeyStage::Signing);
        let is_old = role == KeyRole::Zsk && staying.clone().all(|key| for_ms(key, ZSK_MS));
        let is_asked = keys.rolls.contains(&role);
        if staying.next().is_none() || (!is_coming && count < KEYS_OF_ROLE_MAX && (is_asked || is_old)) {
            return Step::Make(role);
        }
        if is_asked && is_coming {
            // One is on its way already.
            let mut next = keys.clone();
            next.rolls.retain(|asked| *asked != role);
            return Step::Become(next);
        }
    }
    let mut next = keys.clone();
    next.keys.retain(|key| {
        let needed_ms = if key.role == KeyRole::Ksk { known_ms.saturating_add(PARENT_MS) } else { known_ms };
        key.stage != KeyStage::Leaving || !for_ms(key, needed_ms)
    });
    for at in 0..next.keys.len() {
        let key = &next.keys[at];
        if key.stage == KeyStage::Announced && for_ms(key, known_ms) {
            let stage = if key.role == KeyRole::Ksk { KeyStage::Offered } else { KeyStage::Signing };
            next.advance(at, stage, now);
        }
    }
    if next == *keys { Step::Rest } else { Step::Become(next) }
}

impl ZoneKeys {
    /// Of a zone that has none yet.
    pub fn none(apex: &str) -> Self {
        Self { apex: apex.to_owned(), keys: Vec::new(), rolls: Vec::new() }
    }

    /// With a key that [`Step::Make`] asked for.
    #[must_use]
    pub fn with(&self, role: KeyRole, made: MadeKey, now: Timestamp) -> Self {
        let mut next = self.clone();
        let is_first = !next.keys.iter().any(|key| key.role == role);
        // Signatures of the first ZSK are as new as itself; whom a KSK's parent names is the parent's.
        let stage = if role == KeyRole::Zsk && is_first { KeyStage::Signing } else { KeyStage::Announced };
        let MadeKey { tag, parent_record, sealed } = made;
        next.keys.push(ZoneKey { role, tag, parent_record, sealed, stage, since: now });
        next.rolls.retain(|asked| *asked != role);
        next
    }

    /// After an operator asked for a new key.
    #[must_use]
    pub fn rolling(&self, role: KeyRole) -> Self {
        let mut next = self.clone();
        if !next.rolls.contains(&role) {
            next.rolls.push(role);
        }
        next
    }

    /// After word of what the parent has; or why that cannot be. `wanted`: whether the zone is to be signed; while it is, a key that is offered goes on
    /// being so.
    pub fn told(&self, parent: ParentHas, wanted: bool, now: Timestamp) -> Result<Self, String> {
        let mut next = self.clone();
        let ParentHas::Key(tag) = parent else {
            for at in 0..next.keys.len() {
                let key = &next.keys[at];
                let is_named = key.stage == KeyStage::Signing || key.stage == KeyStage::Offered && !wanted;
                if key.role == KeyRole::Ksk && is_named {
                    next.advance(at, KeyStage::Leaving, now);
                }
            }
            return Ok(next);
        };
        let found = next.keys.iter().position(|key| key.role == KeyRole::Ksk && key.tag == tag);
        let at = found.ok_or_else(|| format!("zone {} has no KSK with tag {tag}", self.apex))?;
        match next.keys[at].stage {
            KeyStage::Offered => next.advance(at, KeyStage::Signing, now),
            KeyStage::Signing => {}
            KeyStage::Announced => {
                return Err(format!(
                    "KSK {tag} of {} is too new: who holds the zone's older keys cannot check what it signs; wait until it is offered",
                    self.apex
                ));
            }
            KeyStage::Leaving => return Err(format!("KSK {tag} of {} is on its way out", self.apex)),
        }
        Ok(next)
    }

    /// What has to be done outside, as text for people. `wanted`: whether the zone is to be signed.
    pub fn waits_for(&self, wanted: bool) -> Option<String> {
        let find = |stage| self.keys.iter().find(|key| key.role == KeyRole::Ksk && key.stage == stage);
        if !wanted {
            let key = find(KeyStage::Signing).or_else(|| find(KeyStage::Offered))?;
            return Some(format!(
                "take key {} out of the parent zone, then say `neso adm names dnssec {} --parent-has none`",
                key.tag, self.apex
            ));
        }
        let key = find(KeyStage::Offered)?;
        Some(format!(
            "put key {} into the parent zone in the place of any other, then say `neso adm names dnssec {} --parent-has {}`",
            key.tag, self.apex, key.tag
        ))
    }

    /// A key that comes to sign takes the place of the one that does.
    fn advance(&mut self, at: usize, stage: KeyStage, now: Timestamp) {
        let role = self.keys[at].role;
        for (place, key) in self.keys.iter_mut().enumerate() {
            if place == at {
                (key.stage, key.since) = (stage, now);
            } else if stage == KeyStage::Signing && key.role == role && key.stage == KeyStage::Signing {
                (key.stage, key.since) = (KeyStage::Leaving, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: u32 = 3_600;
    const KNOWN_MS: i64 = 3_600 * 1_000 + SPREAD_MS;

    /// Makes keys with tags that count up, and takes steps until there is rest.
    struct World {
        keys: ZoneKeys,
        now: i64,
        made: u16,
        ended: bool,
    }

    impl World {
        fn new() -> Self {
            let mut world = Self { keys: ZoneKeys::none("example"), now: 1_000, made: 0, ended: false };
            world.settle(true);
            world
        }

        fn settle(&mut self, wanted: bool) {
            for _ in 0..20 {
                match step(&self.keys, wanted, TTL, Timestamp(self.now)) {
                    Step::Rest => return,
                    Step::End => {
                        self.ended = true;
                        return;
                    }
                    Step::Become(next) => self.keys = next,
                    Step::Make(role) => {
                        self.made += 1;
                        let made = MadeKey { tag: self.made, parent_record: None, sealed: String::new() };
                        self.keys = self.keys.with(role, made, Timestamp(self.now));
                    }
                }
            }
            panic!("there is no rest: {:?}", self.keys);
        }

        fn after(&mut self, ms: i64) -> String {
            self.now += ms;
            self.settle(true);
            self.text()
        }

        fn text(&self) -> String {
            let keys = self.keys.keys.iter().map(|key| format!("{}{:?}{:?}", key.tag, key.role, key.stage));
            keys.collect::<Vec<_>>().join(" ")
        }
    }

    #[test]
    fn a_zsk_is_announced_before_it_signs_and_stays_after() {
        let mut world = World::new();
        assert_eq!(world.text(), "1KskAnnounced 2ZskSigning");
        assert_eq!(world.after(KNOWN_MS), "1KskOffered 2ZskSigning");
        assert_eq!(world.after(ZSK_MS - KNOWN_MS - 1), "1KskOffered 2ZskSigning");
        assert_eq!(world.after(1), "1KskOffered 2ZskSigning 3ZskAnnounced");
        assert_eq!(world.after(KNOWN_MS - 1), "1KskOffered 2ZskSigning 3ZskAnnounced");
        assert_eq!(world.after(1), "1KskOffered 2ZskLeaving 3ZskSigning");
        assert_eq!(world.after(KNOWN_MS - 1), "1KskOffered 2ZskLeaving 3ZskSigning");
        assert_eq!(world.after(1), "1KskOffered 3ZskSigning");
    }

    #[test]
    fn a_ksk_waits_for_the_parent() {
        let mut world = World::new();
        world.keys = world.keys.rolling(KeyRole::Ksk);
        assert_eq!(world.after(0), "1KskAnnounced 2ZskSigning", "one is on its way already");
        assert!(world.keys.rolls.is_empty());
        let now = |world: &World| Timestamp(world.now);
        let why = world.keys.told(ParentHas::Key(1), true, now(&world)).unwrap_err();
        assert!(why.contains("too new"), "{why}");
        assert_eq!(world.after(KNOWN_MS), "1KskOffered 2ZskSigning");
        assert!(world.keys.waits_for(true).is_some_and(|text| text.contains("--parent-has 1")));
        world.keys = world.keys.told(ParentHas::Key(1), true, now(&world)).unwrap();
        assert_eq!(world.after(0), "1KskSigning 2ZskSigning");
        assert_eq!(world.keys.waits_for(true), None);
        assert!(world.keys.waits_for(false).is_some_and(|text| text.contains("--parent-has none")));
        world.keys = world.keys.rolling(KeyRole::Ksk);
        assert_eq!(world.after(0), "1KskSigning 2ZskSigning 3KskAnnounced");
        assert_eq!(world.after(KNOWN_MS), "1KskSigning 2ZskSigning 3KskOffered");
        assert_eq!(world.after(10 * DAY_MS), "1KskSigning 2ZskSigning 3KskOffered", "whoever forgets loses nothing");
        world.keys = world.keys.told(ParentHas::Key(3), true, now(&world)).unwrap();
        assert_eq!(world.after(PARENT_MS), "1KskLeaving 2ZskSigning 3KskSigning");
        assert_eq!(world.after(KNOWN_MS), "2ZskSigning 3KskSigning");
        assert!(world.keys.told(ParentHas::Key(1), true, now(&world)).is_err());
    }

    #[test]
    fn a_zone_ends_when_the_parent_names_no_key() {
        let mut world = World::new();
        world.settle(false);
        assert!(world.ended, "the parent never named one");
        let mut world = World::new();
        world.after(KNOWN_MS);
        world.keys = world.keys.told(ParentHas::Key(1), true, Timestamp(world.now)).unwrap();
        world.now += 100 * DAY_MS;
        world.settle(false);
        assert!(!world.ended);
        world.keys = world.keys.told(ParentHas::None, false, Timestamp(world.now)).unwrap();
        world.now += PARENT_MS - 1;
        world.settle(false);
        assert!(!world.ended, "others remember what the parent said");
        world.now += 1;
        world.settle(false);
        assert!(world.ended);
    }

    #[test]
    fn a_zone_does_not_end_while_its_key_may_be_in_the_parent_unsaid() {
        let mut world = World::new();
        assert_eq!(world.after(KNOWN_MS), "1KskOffered 2ZskSigning");
        assert_eq!(
            world.keys.told(ParentHas::None, true, Timestamp(world.now)).unwrap(),
            world.keys,
            "it is still offered"
        );
        world.now += 100 * DAY_MS;
        world.settle(false);
        assert!(!world.ended && world.keys.waits_for(false).is_some_and(|text| text.contains("--parent-has none")));
        world.keys = world.keys.told(ParentHas::None, false, Timestamp(world.now)).unwrap();
        world.settle(false);
        assert!(!world.ended, "others remember what the parent said");
        world.now += PARENT_MS;
        world.settle(false);
        assert!(world.ended);
    }

    proptest! {
        /// Whatever is asked and told: keys and records are always signed, by what everybody knows, and there is an end to the keys.
        #[test]
        fn what_others_hold_can_always_be_checked(words in prop::collection::vec((0_u8..5, 0_i64..3 * KNOWN_MS), 1..60)) {
            let mut world = World::new();
            let mut announced: std::collections::BTreeMap<u16, i64> = std::collections::BTreeMap::new();
            for (word, ms) in words {
                let before = world.keys.clone();
                world.keys = match word {
                    0 => world.keys.rolling(KeyRole::Ksk),
                    1 => world.keys.rolling(KeyRole::Zsk),
                    2 => {
                        let offered = before.keys.iter().find(|key| key.stage == KeyStage::Offered);
                        let tag = offered.map_or(1, |key| key.tag);
                        before.told(ParentHas::Key(tag), true, Timestamp(world.now)).unwrap_or(before)
                    }
                    _ => before,
                };
                world.settle(true);
                let stages = |role| {
                    let of_role = world.keys.keys.iter().filter(move |key| key.role == role);
                    of_role.map(|key| key.stage).collect::<Vec<_>>()
                };
                let signing = stages(KeyRole::Zsk).iter().filter(|stage| **stage == KeyStage::Signing).count();
                prop_assert_eq!(signing, 1);
                prop_assert!(stages(KeyRole::Ksk).iter().any(|stage| *stage != KeyStage::Leaving));
                prop_assert!(world.keys.keys.len() <= 2 * KEYS_OF_ROLE_MAX);
                for key in &world.keys.keys {
                    let since = *announced.entry(key.tag).or_insert(world.now);
                    let first = key.tag <= 2;
                    if key.role == KeyRole::Zsk && key.stage == KeyStage::Signing && !first {
                        prop_assert!(world.now - since >= KNOWN_MS, "{:?} signs too early", key);
                    }
                }
                world.now += ms;
                world.settle(true);
            }
        }
    }
}
