//! Headnodes: the machines that run the control plane, what each says of itself, and who does what among them.
//!
//! Any number of headnodes work at once over one store. Each registers itself ([`Headnode`]) and *beats* ([`Beat`]): it commits a small
//! record over and over. A beat is a commit, so it says more than that a process lives: whoever cannot commit does not beat, and what was
//! his passes to others. Nobody is elected and nobody deposed.
//!
//! Work that one headnode is to do is divided by [`owner`], which all of them work out alike from who beats. They may disagree for a
//! moment; then something is done twice, which revisions make harmless.

use serde::{Deserialize, Serialize};

use crate::{behind::Behind, id::ServerId, part::Digest, time::Timestamp};

/// Headnodes a datacenter has at most. An odd handful is plenty; each reads every record.
pub const HEADNODES_MAX: usize = 9;
/// A beat counts for so long after it has arrived, milliseconds: four beats, so that one that is late changes nothing.
pub const BEAT_FRESH_MS: u64 = 4_000;
/// Between beats when there are several headnodes, milliseconds.
pub const BEAT_MS: u64 = 1_000;
/// Between beats of a headnode that is alone, milliseconds: nobody waits for them.
pub const BEAT_ALONE_MS: u64 = 10_000;

/// A headnode. Record of table `headnodes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Headnode {
    /// The machine it runs on; a headnode is known by its server's id.
    pub id: ServerId,
    /// What the machine calls itself.
    pub hostname: String,
    /// `HOST:PORT` of `CloudAPI`, as tenants reach it.
    pub cloudapi: String,
    /// `HOST:PORT` of the node link, as nodes and other headnodes reach it.
    pub node_link: String,
    /// `HOST:PORT` of the ops API, as operators reach it.
    pub ops: String,
    /// The member of the store's cluster on this machine, when we run one there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberAddresses>,
    /// Whether it takes part.
    pub stage: Stage,
    /// When it was first known.
    pub joined_at: Timestamp,
    /// What tells the settings all headnodes must agree on from others.
    pub shared_settings: Digest,
    /// Version of the program it runs.
    pub release: String,
}

/// How a member of the store's cluster is reached, both `https://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAddresses {
    /// By headnodes.
    pub client: String,
    /// By other members.
    pub peer: String,
}

/// Whether a headnode takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It is being made one; it serves, and owns no work yet.
    Joining,
    /// It is one.
    Active,
    /// It is being taken out; it owns no work any more.
    Leaving,
}

/// A sign of progress. Record of table `beats`, kept apart so that it is small.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Whose it is.
    pub headnode: ServerId,
    /// Grows by one with each beat of one run.
    pub sequence: u64,
    /// When it was made, by the headnode's own clock.
    pub at: Timestamp,
    /// When this run of the headnode began, likewise.
    pub started_at: Timestamp,
    /// How the headnode finds itself.
    pub health: Health,
}

/// What a headnode has measured of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// From the decision to the answer of the last beats' commits, milliseconds: the median.
    #[serde(default)]
    pub commit_ms: u64,
    /// By how much the last beats of others came later than the ones before, by their makers' clocks, milliseconds: the largest.
    #[serde(default)]
    pub lag_ms: u64,
    /// How far its clock is ahead of the others', milliseconds: the median; `None` when it has heard nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_ms: Option<i64>,
    /// How long its disk takes to keep a little for good, milliseconds: the median of the last times; `None` when that was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync_ms: Option<u64>,
    /// For how long the store has been further than its member, milliseconds; `None` when it has none, or that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member_behind_ms: Option<u64>,
    /// The same of what it shows itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror_behind_ms: Option<u64>,
    /// Files of images that it should have and has not.
    #[serde(default)]
    pub images_missing: u64,
    /// What makes it sick is its own machine's for certain, not the store's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_fault: bool,
    /// Why it does not trust itself to work, with the measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sick: Option<String>,
}

impl Health {
    /// For how long the store has been further than its member, or than what it shows: the longer one, milliseconds.
    pub fn behind_ms(&self) -> Option<u64> {
        self.member_behind_ms.max(self.mirror_behind_ms)
    }
}

/// What a headnode judges itself by.
#[derive(Debug, Clone, Copy)]
pub struct Signs<'a> {
    /// How long its last commits took from the decision to the answer, milliseconds, oldest first.
    pub commits_ms: &'a [u64],
    /// How far the clocks of others that beat were ahead of its own, milliseconds.
    pub others_ahead_ms: &'a [i64],
    /// Of the disk its files and its member's are on.
    pub disk: &'a DiskSigns,
    /// Of its copies of the store.
    pub copies: &'a CopySigns,
}

/// What is measured of a headnode's copies of the store; `None` where there is none, or nothing is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopySigns {
    /// The one in its memory that it answers from.
    pub mirror: Option<Behind>,
    /// That of its member.
    pub member: Option<Behind>,
    /// Why its member does not say how far it is.
    pub member_silent: Option<String>,
}

/// What is measured of a headnode's disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiskSigns {
    /// Percent of it that is free; `None` when that cannot be told.
    pub free_percent: Option<f64>,
    /// How long it took to keep a little for good the last times, milliseconds, oldest first.
    pub syncs_ms: Vec<u64>,
    /// How long it has been at it for now, milliseconds.
    pub syncing_ms: Option<u64>,
    /// Why it did not the last time.
    pub error: Option<String>,
}

/// Why a headnode should leave the work to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sickness {
    /// With the measurement.
    pub why: String,
    /// It is its own machine's for certain. Slow commits may be the fault of whoever leads the store.
    pub own_fault: bool,
}

/// A commit that takes longer is too slow to work with, milliseconds.
pub const COMMIT_SLOW_MS: u64 = 2_000;
/// Slow ones among the last five that make a headnode sick: one hiccup does not.
const COMMITS_SLOW: usize = 3;
/// A clock that is wrong by more makes certificates and histories wrong, milliseconds. The time a beat is on its way is in it.
pub const CLOCK_WRONG_MS: u64 = 10_000;
/// Others it takes to know that it is the own clock that is wrong.
const CLOCK_WITNESSES: usize = 2;
/// A disk that takes longer to keep a little for good is too slow for the store, milliseconds. A good one takes one or two, a spinning one in use twenty.
pub const SYNC_SLOW_MS: u64 = 800;
/// Slow ones among the last five that make a headnode sick.
const SYNCS_SLOW: usize = 3;
/// A disk that has been at it for so long hangs, milliseconds; nobody waits for the third time then.
pub const SYNC_HANGS_MS: u64 = 4_000;
/// A copy of the store that the store has left behind for longer is not worth working with, milliseconds. An election takes two seconds, a member that is started again a few, and
/// neither is behind by more than that on a machine that is merely busy.
pub const COPY_BEHIND_MS: u64 = 10_000;
/// Percent of the disk below which it is nearly full.
pub const DISK_FREE_PERCENT: f64 = 2.0;

impl Signs<'_> {
    /// The median of the commits.
    pub fn commit_ms(&self) -> u64 {
        median(self.commits_ms).unwrap_or(0)
    }

    /// How far the own clock is ahead of that of the other that agrees best with it, milliseconds.
    pub fn clock_offset_ms(&self) -> Option<i64> {
        offset(self.others_ahead_ms)
    }
}

fn offset(others_ahead_ms: &[i64]) -> Option<i64> {
    others_ahead_ms.iter().min_by_key(|ahead| ahead.unsigned_abs()).map(|ahead| ahead.saturating_neg())
}

/// How far the own clock is ahead of those of all others, where it is certainly the own one that is wrong.
pub fn clock_wrong_ms(others_ahead_ms: &[i64]) -> Option<i64> {
    let offset = offset(others_ahead_ms).filter(|offset| offset.unsigned_abs() > CLOCK_WRONG_MS);
    offset.filter(|_| others_ahead_ms.len() >= CLOCK_WITNESSES)
}

impl DiskSigns {
    /// The median of the times it took to keep a little for good.
    pub fn sync_ms(&self) -> Option<u64> {
        median(&self.syncs_ms)
    }

    fn sick(&self) -> Option<String> {
        if let Some(error) = &self.error {
            return Some(format!("its disk does not keep what is written: {error}"));
        }
        if let Some(long) = self.syncing_ms.filter(|long| *long > SYNC_HANGS_MS) {
            return Some(format!("its disk hangs: it has not kept a little for good (fsync) for {long} ms"));
        }
        let slow = self.syncs_ms.iter().filter(|took| **took > SYNC_SLOW_MS).count();
        if slow >= SYNCS_SLOW {
            let (count, worst) = (self.syncs_ms.len(), self.syncs_ms.iter().max().copied().unwrap_or(0));
            return Some(format!(
                "its disk is slow: {slow} of the last {count} times it took longer than {SYNC_SLOW_MS} ms to keep a little for good (fsync), at \
                 worst {worst} ms"
            ));
        }
        let free = self.free_percent.filter(|free| *free < DISK_FREE_PERCENT)?;
        Some(format!("its disk is nearly full: {free:.1} % are free"))
    }
}

impl CopySigns {
    /// Its member, which it has for itself: whatever holds it up is its own machine, or the way to it.
    fn sick_member(&self) -> Option<String> {
        let Behind { ms, revisions } = self.member.filter(|behind| behind.ms > COPY_BEHIND_MS)?;
        let silent = self.member_silent.as_ref().map_or_else(String::new, |why| format!("; it does not answer: {why}"));
        Some(format!("its member of the store is behind: by {revisions} changes, for {ms} ms{silent}"))
    }

    /// What it shows, which comes from any member.
    fn sick_mirror(&self) -> Option<String> {
        let Behind { ms, revisions } = self.mirror.filter(|behind| behind.ms > COPY_BEHIND_MS)?;
        Some(format!("what it shows is behind the store: by {revisions} changes, for {ms} ms"))
    }
}

fn median(all: &[u64]) -> Option<u64> {
    let mut sorted = all.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

/// Why a headnode with these signs should leave the work to others; `None` when it is well.
pub fn sick(signs: &Signs<'_>) -> Option<Sickness> {
    let own = |why| Some(Sickness { why, own_fault: true });
    if let Some(why) = signs.disk.sick() {
        return own(why);
    }
    if let Some(offset) = clock_wrong_ms(signs.others_ahead_ms) {
        let way = if offset > 0 { "ahead of" } else { "behind" };
        return own(format!("its clock is {} ms {way} those of all others", offset.unsigned_abs()));
    }
    if let Some(why) = signs.copies.sick_member() {
        return own(why);
    }
    if let Some(why) = signs.copies.sick_mirror() {
        return Some(Sickness { why, own_fault: false });
    }
    let slow = signs.commits_ms.iter().filter(|took| **took > COMMIT_SLOW_MS).count();
    (slow >= COMMITS_SLOW).then(|| {
        let (count, worst) = (signs.commits_ms.len(), signs.commits_ms.iter().max().copied().unwrap_or(0));
        let why =
            format!("{slow} of its last {count} commits took longer than {COMMIT_SLOW_MS} ms, the slowest {worst} ms");
        Sickness { why, own_fault: false }
    })
}

/// A headnode that might lead the store in the place of a sick one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Successor {
    /// Which.
    pub id: ServerId,
    /// It takes part, and its last beat arrived less than [`BEAT_FRESH_MS`] ago.
    pub beats: bool,
    /// By its own word.
    pub sick: bool,
    /// See [`Health::own_fault`].
    pub own_fault: bool,
}

/// Who of `others` should lead the store instead of one with `sickness`: somebody who is well; else, where the sickness is that one's own for certain,
/// somebody who only suffers from it.
pub fn successor(sickness: &Sickness, others: &[Successor]) -> Option<ServerId> {
    let beating = || others.iter().filter(|one| one.beats);
    let well = beating().filter(|one| !one.sick).map(|one| one.id).min();
    well.or_else(|| beating().filter(|one| sickness.own_fault && !one.own_fault).map(|one| one.id).min())
}

/// A headnode as another one sees it at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// Which.
    pub id: ServerId,
    /// Of its record.
    pub stage: Stage,
    /// Its last beat arrived less than [`BEAT_FRESH_MS`] ago.
    pub fresh: bool,
    /// By its own word.
    pub sick: bool,
}

/// Those that share the work, in the order of their ids: active ones that beat and are well. Where there is none, sick ones; where there is none
/// either, whoever beats: work that is done badly is better than work nobody does.
pub fn workers(seen: &[Sighting]) -> Vec<ServerId> {
    let choose = |fits: &dyn Fn(&Sighting) -> bool| {
        let mut ids: Vec<ServerId> = seen.iter().filter(|one| one.fresh && fits(one)).map(|one| one.id).collect();
        ids.sort();
        ids
    };
    let active = |one: &Sighting| one.stage == Stage::Active;
    let steps: [Vec<ServerId>; 3] = [choose(&|one| active(one) && !one.sick), choose(&active), choose(&|_| true)];
    steps.into_iter().find(|ids| !ids.is_empty()).unwrap_or_default()
}

/// Who of `workers` does `what`: the one whose id makes the highest number with it. When one comes or goes, only what becomes or was its own
/// changes hands.
pub fn owner(workers: &[ServerId], what: &str) -> Option<ServerId> {
    workers.iter().copied().max_by_key(|id| (weight(*id, what), *id))
}

/// Which of `count` addresses a machine tries first: machines spread evenly, and each always comes to the same answer.
pub fn first_of(count: usize, machine: ServerId) -> usize {
    let count = u64::try_from(count.max(1)).unwrap_or(1);
    usize::try_from(weight(machine, "first address") % count).unwrap_or(0)
}

/// A number made of both, the same on every machine and in every release. FNV-1a, and the last step of `MurmurHash3` that makes every bit
/// depend on all others.
fn weight(id: ServerId, what: &str) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let uuid = id.uuid();
    let bytes = uuid.as_bytes().iter().chain(what.as_bytes());
    let mut hash = bytes.fold(BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
    for factor in [0xff51_afd7_ed55_8ccd_u64, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u128) -> ServerId {
        ServerId::from_random(number)
    }

    fn sighting(number: u128, stage: Stage, fresh: bool, sick: bool) -> Sighting {
        Sighting { id: id(number), stage, fresh, sick }
    }

    #[test]
    fn well_ones_work_and_somebody_always_does() {
        let joining = sighting(1, Stage::Joining, true, false);
        let well = sighting(2, Stage::Active, true, false);
        let sick = sighting(3, Stage::Active, true, true);
        let silent = sighting(4, Stage::Active, false, false);
        assert_eq!(workers(&[sick, well, joining, silent]), [well.id]);
        assert_eq!(workers(&[sick, joining, silent]), [sick.id]);
        assert_eq!(workers(&[joining, silent]), [joining.id]);
        assert_eq!(workers(&[silent]), []);
    }

    #[test]
    fn all_releases_come_to_the_same_answer() {
        let three = [id(1), id(2), id(3)];
        let owners: Vec<usize> = ["", "a", "flow-1", "flow-2", "flow-3", "flow-4"]
            .iter()
            .map(|what| three.iter().position(|id| Some(*id) == owner(&three, what)).unwrap())
            .collect();
        assert_eq!(owners, [0, 1, 2, 0, 1, 1], "changing this hands work to nobody while releases are mixed");
        assert_eq!([id(1), id(2), id(3), id(4)].map(|id| first_of(3, id)), [1, 2, 2, 2]);
    }

    #[test]
    fn records_of_a_first_release_are_read() {
        let beat: Beat = serde_json::from_value(serde_json::json!({
            "headnode": id(1), "sequence": 1, "at": "2026-11-28T10:00:00.000Z", "started_at": "2026-11-28T09:00:00.000Z",
            "health": {},
        }))
        .unwrap();
        assert_eq!(beat.health, Health::default());
    }

    #[test]
    fn one_hiccup_is_no_sickness_and_a_wrong_clock_needs_two_witnesses() {
        let with = |commits_ms: &[u64], others_ahead_ms: &[i64], disk: &DiskSigns| {
            sick(&Signs { commits_ms, others_ahead_ms, disk, copies: &CopySigns::default() })
                .map(|sickness| sickness.why)
        };
        let (unknown, half) = (DiskSigns::default(), DiskSigns { free_percent: Some(50.0), ..DiskSigns::default() });
        assert_eq!(with(&[], &[], &unknown), None);
        assert_eq!(with(&[10, 9_000, 10, 9_000, 10], &[0, 5], &half), None);
        let slow = with(&[10, 9_000, 10, 9_001, 2_001], &[], &unknown).unwrap();
        assert_eq!(slow, "3 of its last 5 commits took longer than 2000 ms, the slowest 9001 ms");
        assert_eq!(with(&[10], &[3_600_000], &unknown), None, "either may be wrong");
        assert_eq!(with(&[10], &[3_600_000, 20], &unknown), None, "it is the other one");
        let wrong = with(&[10], &[-3_600_000, -3_599_990], &unknown).unwrap();
        assert_eq!(wrong, "its clock is 3599990 ms ahead of those of all others");
        assert!(with(&[10], &[3_600_000, 3_599_990], &unknown).unwrap().contains("behind"));
        let copies = CopySigns::default();
        let signs = Signs { commits_ms: &[5, 1, 9], others_ahead_ms: &[-30, 20], disk: &unknown, copies: &copies };
        assert_eq!((signs.commit_ms(), signs.clock_offset_ms()), (5, Some(-20)));
    }

    #[test]
    fn a_disk_that_is_slow_hangs_refuses_or_is_full_is_told_from_a_slow_store() {
        let copies = CopySigns::default();
        let with = |disk: DiskSigns| {
            sick(&Signs { commits_ms: &[9_000; 5], others_ahead_ms: &[], disk: &disk, copies: &copies }).unwrap()
        };
        let told = |disk| Some(with(disk)).filter(|sickness| sickness.own_fault).map(|sickness| sickness.why);
        let well = DiskSigns { free_percent: Some(50.0), syncs_ms: vec![1, 900, 2, 900, 1], ..DiskSigns::default() };
        assert_eq!(told(well.clone()), None, "two hiccups of the disk; the commits are not its own fault for certain");
        assert_eq!(well.sync_ms(), Some(2));
        let slow = told(DiskSigns { syncs_ms: vec![1, 900, 2, 900, 801], ..well.clone() }).unwrap();
        assert!(slow.contains("3 of the last 5 times") && slow.contains("worst 900 ms"), "{slow}");
        assert_eq!(told(DiskSigns { syncing_ms: Some(SYNC_HANGS_MS), ..well.clone() }), None);
        let hangs = told(DiskSigns { syncing_ms: Some(SYNC_HANGS_MS + 1), ..well.clone() }).unwrap();
        assert!(hangs.contains("4001 ms"), "{hangs}");
        let refuses = told(DiskSigns { error: Some("Read-only file system".to_owned()), ..well.clone() }).unwrap();
        assert!(refuses.contains("Read-only file system"), "{refuses}");
        assert!(told(DiskSigns { free_percent: Some(1.25), ..well }).unwrap().contains("1.2 % are free"));
    }

    #[test]
    fn a_copy_of_the_store_may_be_behind_for_a_while() {
        let disk = DiskSigns::default();
        let told = |copies: &CopySigns| sick(&Signs { commits_ms: &[], others_ahead_ms: &[], disk: &disk, copies });
        let behind = |ms| Some(Behind { ms, revisions: 7 });
        let at_limit =
            CopySigns { mirror: behind(COPY_BEHIND_MS), member: behind(COPY_BEHIND_MS), ..CopySigns::default() };
        assert_eq!(told(&at_limit), None);
        // However many changes that are.
        let many = Some(Behind { ms: 900, revisions: 1_000_000 });
        assert_eq!(told(&CopySigns { mirror: many, member: many, ..CopySigns::default() }), None);
        let member = CopySigns { member: behind(COPY_BEHIND_MS + 1), ..at_limit.clone() };
        let sickness = told(&member).unwrap();
        assert_eq!(sickness.why, "its member of the store is behind: by 7 changes, for 10001 ms");
        assert!(sickness.own_fault, "nobody else works with that one");
        let silent = CopySigns { member_silent: Some("no answer".to_owned()), ..member.clone() };
        assert!(told(&silent).unwrap().why.ends_with("for 10001 ms; it does not answer: no answer"));
        assert_eq!(
            told(&CopySigns { member_silent: Some("no answer".to_owned()), ..at_limit.clone() }),
            None,
            "not yet"
        );
        let mirror = CopySigns { mirror: behind(12_000), ..at_limit };
        let sickness = told(&mirror).unwrap();
        assert_eq!(sickness.why, "what it shows is behind the store: by 7 changes, for 12000 ms");
        assert!(!sickness.own_fault, "it may be the members'");
    }

    #[test]
    fn a_sick_leader_hands_over_to_who_is_better_off() {
        let one = |number, beats, sick, own_fault| Successor { id: id(number), beats, sick, own_fault };
        let sickness = |own_fault| Sickness { why: "s".to_owned(), own_fault };
        let (well, silent) = (one(1, true, false, false), one(2, false, false, false));
        let (suffers, sick) = (one(3, true, true, false), one(4, true, true, true));
        assert_eq!(successor(&sickness(true), &[sick, suffers, well, silent]), Some(well.id));
        assert_eq!(successor(&sickness(false), &[suffers, well, silent]), Some(well.id));
        assert_eq!(successor(&sickness(true), &[sick, suffers, silent]), Some(suffers.id));
        assert_eq!(successor(&sickness(false), &[suffers, silent]), None, "all commits are slow: it may be anybody");
        assert_eq!(successor(&sickness(true), &[sick, silent]), None);
    }

    proptest! {
        #[test]
        fn one_that_goes_takes_nothing_from_those_that_stay(
            numbers in prop::collection::btree_set(any::<u128>(), 2..9),
            gone in any::<prop::sample::Index>(),
            whats in prop::collection::vec("[a-z0-9-]{0,36}", 1..40),
        ) {
            let all: Vec<ServerId> = numbers.into_iter().map(id).collect();
            let gone = *gone.get(&all);
            let left: Vec<ServerId> = all.iter().copied().filter(|id| *id != gone).collect();
            let mut turned = all.clone();
            turned.reverse();
            for what in &whats {
                let before = owner(&all, what).unwrap();
                prop_assert_eq!(owner(&turned, what), Some(before), "the order is of no account");
                let after = owner(&left, what).unwrap();
                prop_assert!(left.contains(&after));
                prop_assert!(before == gone || before == after);
            }
        }

        #[test]
        fn work_is_spread(seed in any::<u64>(), count in 2..6_usize) {
            let all: Vec<ServerId> = (0..count).map(|n| id(u128::from(seed) << 64 | (n as u128) << 20 | 7)).collect();
            let total = 3_000;
            let mut shares = vec![0_usize; count];
            for number in 0..total {
                let owner = owner(&all, &format!("{seed:x}-{number}")).unwrap();
                shares[all.iter().position(|id| *id == owner).unwrap()] += 1;
            }
            let fair = total / count;
            prop_assert!(shares.iter().all(|share| share.abs_diff(fair) < fair / 3), "{:?}", shares);
        }
    }
}
