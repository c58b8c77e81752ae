//! Looks after this headnode's member, and after the cluster while that member leads.
//!
//! Each headnode keeps the addresses it starts from up to date, notices when its member's data are gone, and lets its member write its file anew when
//! most of it is free. What concerns all members is done by the headnode whose member leads: history is forgotten, alarms are ended. Two that think so at
//! once do no harm.
//!
//! History is kept for those who follow the store and fell behind. It is short: somebody who is further behind loads everything anew, which the mirror does
//! by itself.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use etcd::{Admin, Alarm, Listed, Room, Status};
use flow::loops::Loop;
use futures_util::future::join_all;
use model::{headnode::Stage, time::Timestamp};
use store::BoxFuture;

use control::headnodes::members::{Members as _, MembersError, Promotion};

use crate::{
    members::{
        file::ClusterFile,
        keep::{Keeper, endpoints_of, failed, invitation, own_first, refused, status},
        process::{self, has_data, url},
    },
    pki,
};

/// How often all of it is looked at.
const PERIOD: Duration = Duration::from_secs(10);
/// Revisions of history that are kept.
const KEEP_REVISIONS: u64 = 10_000;
/// How long history is kept, milliseconds: the shorter of the two counts.
const KEEP_MS: u64 = 300_000;
/// Revisions that are forgotten at once, at least: forgetting costs.
const FORGET_MIN: u64 = 500;
/// Revisions that are kept when there is no room.
const KEEP_WHEN_FULL: u64 = 10;
/// Moments remembered: as many as are looked at while history is kept, and a few more.
const MOMENTS_MAX: usize = 64;
/// Files smaller than this are left as they are, bytes.
const SMALL: u64 = 64 << 20;
/// How long a member has the turn to write its file anew, milliseconds.
const TURN_MS: u64 = 60_000;
/// How much of the quota may be in use for an alarm to be ended, percent.
const ALARM_ENDS_PERCENT: u64 = 90;

/// The loop.
pub struct TendMembers {
    keeper: Arc<Keeper>,
    // Leaf data: moments are added and read.
    past: Mutex<Past>,
}

/// When the keyspace was at which revision, and what was forgotten.
#[derive(Default)]
struct Past {
    moments: VecDeque<(Timestamp, u64)>,
    forgotten: u64,
}

/// All members and what each says.
struct Seen {
    known: Vec<Listed>,
    said: Vec<Result<Status, String>>,
    own: Option<usize>,
}

impl TendMembers {
    /// For this headnode.
    pub fn new(keeper: Arc<Keeper>) -> Self {
        Self { keeper, past: Mutex::default() }
    }

    async fn tend(&self) -> Result<String, MembersError> {
        let keeper = &self.keeper;
        if keeper.in_members()?.is_none() {
            return Ok(String::new());
        }
        let (admin, file) = keeper.admin()?;
        let mut done = Vec::new();
        if let Some(member) = &file.member {
            let made = pki::store_certificates(keeper.settings(), &member.name, &process::hosts(member), keeper.now());
            made.map_err(failed("renew the store's certificates"))?;
        }
        let known = admin.members().await.map_err(failed("list the store's members"))?;
        let said = join_all(known.iter().map(|member| status(&admin, member))).await;
        let name = keeper.server().to_string();
        let own = known.iter().position(|member| member.name == name);
        let seen = Seen { known, said, own };
        self.keep_addresses(&seen, &file).await?;
        if let Some(deed) = self.keep_own(&admin, &seen, &file).await? {
            done.push(deed);
        }
        if let Some(deed) = self.keep_room(&admin, &seen).await? {
            done.push(deed);
        }
        Ok(done.join(", "))
    }

    /// Notes where the members are, for the next start and for calls from now on; and that our own was at work.
    async fn keep_addresses(&self, seen: &Seen, file: &ClusterFile) -> Result<(), MembersError> {
        let endpoints = endpoints_of(&seen.known);
        if endpoints.is_empty() {
            return Ok(());
        }
        let works = seen.own_status().is_some();
        let change = |file: &mut ClusterFile| {
            file.endpoints.clone_from(&endpoints);
            if let Some(member) = &mut file.member {
                member.started |= works;
            }
        };
        self.keeper.change_file(change).await?;
        if file.endpoints != endpoints
            && let Some(engine) = self.keeper.engine()
        {
            let known = ClusterFile { endpoints: endpoints.clone(), ..file.clone() };
            engine.set_endpoints(&own_first(&known)).map_err(|why| refused(&why))?;
            tracing::info!(endpoints = endpoints.join(", "), "the store's members are others now");
        }
        Ok(())
    }

    /// A member that has lost its data is taken out and added again; one that was, gets its vote back.
    async fn keep_own(&self, admin: &Admin, seen: &Seen, file: &ClusterFile) -> Result<Option<String>, MembersError> {
        let keeper = &self.keeper;
        let Some(member) = &file.member else { return Ok(None) };
        if keeper.stage() != Some(Stage::Active) {
            // Whoever adds it or takes it out does all that.
            return Ok(None);
        }
        let peer = url(&member.peer);
        let there = seen.known.iter().find(|known| known.name == member.name || known.peers.contains(&peer));
        if !member.started || has_data(&ClusterFile::data_dir(keeper.settings())) {
            return match there {
                Some(known) if known.learner && !known.name.is_empty() => {
                    match keeper.promote(keeper.server()).await? {
                        Promotion::Voting => Ok(Some("this machine's member votes again".to_owned())),
                        Promotion::NotYet(why) => Ok(Some(format!("this machine's member has no vote yet: {why}"))),
                    }
                }
                _ => Ok(None),
            };
        }
        tracing::warn!("the data of this machine's member are gone; it is taken out of the cluster and added again");
        if let Some(known) = there.filter(|known| !known.name.is_empty()) {
            keeper.status().await?.check_removal(keeper.server())?;
            admin.remove(known.id).await.map_err(failed("take out the member that lost its data"))?;
        }
        base::crash::point("members.heal.removed");
        admin.add_learner(&peer).await.map_err(failed("add the member that lost its data"))?;
        let known = admin.members().await.map_err(failed("list the store's members"))?;
        let invited = invitation(&member.name, &peer, &known, member.token.clone());
        let change = |file: &mut ClusterFile| {
            if let Some(member) = &mut file.member {
                member.initial_cluster.clone_from(&invited.initial_cluster);
                (member.first, member.started) = (false, false);
            }
        };
        keeper.change_file(change).await?;
        Ok(Some("this machine's member lost its data and begins anew".to_owned()))
    }

    async fn keep_room(&self, admin: &Admin, seen: &Seen) -> Result<Option<String>, MembersError> {
        let Some((own, status)) = seen.own_status() else { return Ok(None) };
        let largest = seen.said.iter().flatten().max_by_key(|status| status.size_bytes).unwrap_or(status);
        if let Some(engine) = self.keeper.engine() {
            engine.note_space(largest.size_bytes, largest.used_bytes);
        }
        let room = self.keeper.room();
        let now = self.keeper.now();
        if status.leader == status.id {
            let tight = !room.is_left(largest.size_bytes, largest.used_bytes);
            let keep = if tight { KEEP_WHEN_FULL } else { KEEP_REVISIONS };
            let target = self.past(|past| past.forget_to(now, status.revision, keep));
            if let Some(revision) = target {
                admin.compact(revision).await.map_err(failed("forget old history"))?;
                self.past(|past| past.forgotten = revision);
            }
            let alarms = admin.alarms().await.map_err(failed("read the members' alarms"))?;
            let full: Vec<u64> = alarms.iter().filter(|(_, alarm)| *alarm == Alarm::Space).map(|(id, _)| *id).collect();
            if !full.is_empty() {
                return self.end_alarms(admin, seen, &full).await.map(Some);
            }
        }
        let all_well = seen.said.iter().all(Result::is_ok);
        if all_well && is_mostly_free(status.size_bytes, status.used_bytes) && seen.is_our_turn(now) {
            return self.shrink(admin, seen, own, status).await.map(Some);
        }
        Ok(None)
    }

    /// Our member writes its file anew; somebody else leads meanwhile.
    async fn shrink(&self, admin: &Admin, seen: &Seen, own: &Listed, status: &Status) -> Result<String, MembersError> {
        let endpoint = own.clients.first().cloned().unwrap_or_default();
        let other = seen.known.iter().find(|member| member.id != own.id && !member.learner);
        if status.leader == status.id
            && let Some(other) = other
        {
            admin.move_leader(&endpoint, other.id).await.map_err(failed("hand over the lead"))?;
        }
        admin.defragment(&endpoint).await.map_err(failed("make the member's file smaller"))?;
        let after = admin.status(&endpoint).await.map_err(failed("look at the member's file"))?;
        Ok(format!("the member's file has {} MiB, {} before", after.size_bytes >> 20, status.size_bytes >> 20))
    }

    /// etcd is full: forget all history, give the room back, and let it be written to again.
    async fn end_alarms(&self, admin: &Admin, seen: &Seen, full: &[u64]) -> Result<String, MembersError> {
        let revision = seen.own_status().map_or(0, |(_, status)| status.revision);
        admin.compact(revision).await.map_err(failed("forget all history"))?;
        let quota = self.keeper.room().quota_bytes;
        let mut largest = 0;
        for endpoint in seen.known.iter().filter_map(|member| member.clients.first()) {
            admin.defragment(endpoint).await.map_err(failed("make a member's file smaller"))?;
            let status = admin.status(endpoint).await.map_err(failed("look at a member's file"))?;
            largest = largest.max(status.size_bytes);
        }
        if largest > quota / 100 * ALARM_ENDS_PERCENT {
            return Err(refused(&format!(
                "the store is full: {} MiB are in use of a quota of {} MiB; raise store.quota_mib on all headnodes and restart them one after the other",
                largest >> 20,
                quota >> 20
            )));
        }
        for id in full {
            admin.disarm(*id, Alarm::Space).await.map_err(failed("end an alarm"))?;
        }
        Ok("the store was full and has room again".to_owned())
    }

    fn past<T>(&self, change: impl FnOnce(&mut Past) -> T) -> T {
        change(&mut self.past.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Seen {
    fn own_status(&self) -> Option<(&Listed, &Status)> {
        let own = self.own?;
        Some((self.known.get(own)?, self.said.get(own)?.as_ref().ok()?))
    }

    /// One member after the other has its minute, so that no two write their files at once.
    fn is_our_turn(&self, now: Timestamp) -> bool {
        let mut ids: Vec<u64> = self.known.iter().map(|member| member.id).collect();
        ids.sort_unstable();
        let own = self.own.and_then(|own| self.known.get(own));
        let position = own.and_then(|own| ids.iter().position(|id| *id == own.id));
        position.is_some_and(|position| is_turn(position, ids.len(), now))
    }
}

/// Whether it is the turn of the one at `position` among `count`.
fn is_turn(position: usize, count: usize, now: Timestamp) -> bool {
    let minute = u64::try_from(now.0).unwrap_or(0) / TURN_MS;
    let count = u64::try_from(count.max(1)).unwrap_or(1);
    u64::try_from(position).unwrap_or(0) == minute % count
}

/// Whether a file of `size` bytes, of which `used` are in use, is worth writing anew.
fn is_mostly_free(size: u64, used: u64) -> bool {
    size > SMALL && size > used.saturating_mul(2)
}

impl Past {
    /// Notes that the keyspace is at `revision` now; to which one it is time to forget, keeping `keep` of them at most.
    fn forget_to(&mut self, now: Timestamp, revision: u64, keep: u64) -> Option<u64> {
        self.moments.push_back((now, revision));
        while self.moments.len() > MOMENTS_MAX {
            self.moments.pop_front();
        }
        let old = |at: Timestamp| now.0.saturating_sub(at.0) >= i64::try_from(KEEP_MS).unwrap_or(i64::MAX);
        let by_time = self.moments.iter().filter(|(at, _)| old(*at)).map(|(_, revision)| *revision).max();
        let by_count = revision.saturating_sub(keep);
        let target = by_time.unwrap_or(0).max(by_count);
        let least = self.forgotten.saturating_add(FORGET_MIN.min(keep));
        (target > 0 && target >= least).then_some(target)
    }
}

impl Keeper {
    /// How large members' files may become.
    fn room(&self) -> Room {
        let store = &self.settings().store;
        Room { quota_bytes: store.quota_mib << 20, reserve_bytes: store.reserve_mib << 20 }
    }
}

impl Loop for TendMembers {
    fn name(&self) -> &'static str {
        "tend the store's members"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    fn pass(&self) -> BoxFuture<'_, Result<String, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(async { Ok(self.tend().await?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp(1_800_000_000_000 + seconds * 1_000)
    }

    #[test]
    fn history_is_forgotten_by_its_number_or_its_age() {
        let mut past = Past::default();
        assert_eq!(past.forget_to(at(0), 400, KEEP_REVISIONS), None);
        assert_eq!(past.forget_to(at(10), 10_300, KEEP_REVISIONS), None, "too few to be worth it");
        assert_eq!(past.forget_to(at(20), 10_600, KEEP_REVISIONS), Some(600));
        past.forgotten = 600;
        assert_eq!(past.forget_to(at(30), 10_900, KEEP_REVISIONS), None);
        assert_eq!(past.forget_to(at(40), 12_000, KEEP_REVISIONS), Some(2_000));
        past.forgotten = 2_000;
        // Nothing more is written: what was there five minutes ago goes all the same.
        assert_eq!(past.forget_to(at(200), 12_000, KEEP_REVISIONS), None);
        assert_eq!(past.forget_to(at(345), 12_000, KEEP_REVISIONS), Some(12_000));
        past.forgotten = 12_000;
        assert_eq!(past.forget_to(at(355), 12_000, KEEP_REVISIONS), None);
        assert_eq!(past.forget_to(at(360), 12_020, KEEP_WHEN_FULL), Some(12_010), "there is no room");
    }

    #[test]
    fn one_after_the_other_writes_its_file_anew() {
        for minute in 0..12 {
            let turns = (0..3).filter(|position| is_turn(*position, 3, at(minute * 60))).count();
            assert_eq!(turns, 1);
        }
        assert!(is_turn(0, 1, at(60)) && is_turn(0, 0, at(60)));
        assert!(!is_mostly_free(SMALL, 0) && is_mostly_free(SMALL * 4, SMALL) && !is_mostly_free(SMALL * 4, SMALL * 3));
    }
}
