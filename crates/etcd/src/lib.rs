//! The store's engine over etcd: several headnodes, one keyspace.
//!
//! ```text
//!   Etcd ── commit ──► mark (exactly once) ──► cluster (who is asked) ──► call (gRPC over HTTP/2) ──► a member
//!     └──── watch ───► watch (in order, never silent for long) ───────────┘
//! ```
//! What the store asks of an engine, etcd has: one growing revision, a modification revision per key, compare-and-commit of several
//! keys, a watch from a revision. What it lacks is added here: an answer lost in transit is found out (see `mark`), a member that is
//! frozen or cut off is left for another, and etcd's limits are checked before a request is sent.
//!
//! **Limits.** A transaction names two records less than [`Config::operations_max`]. etcd counts the longest of its lists, of checks or of writes, and
//! what is nested in it; the mark adds one to each. A request has 1.5 MiB, etcd's default. The first is asked of the cluster when it is
//! opened, by a transaction of that length that cannot come true; the second is checked before a request is sent.
//!
//! **What may happen to a commit.** Committed and refused are certain, always. When no member can be reached for 30 seconds the
//! commit fails with words that say that it may have happened, and the next one finds that out before it does anything.
//!
//! **Room.** Of the members' quota a reserve is kept back, so that a full store still deletes (see `space`). **Revisions** have a number added to
//! them that is kept in etcd, so that those of a store that moved here go on growing (see `revisions`).
//!
//! This crate starts no etcd but for tests and measurements ([`local`]), and compacts nothing by itself ([`Etcd::compact`]); [`Admin`] is for those who
//! keep a cluster.

use std::{
    ops::Bound,
    sync::{
        Arc, Mutex as Leaf, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base::backoff::Backoff;
use bytes::Bytes;
use prost::Message as _;
use store::{
    BoxFuture, Engine, EngineError, Revision,
    engine::{Batch, Limits, Outcome, Page, Record, Watch},
};
use tokio::{sync::Mutex, time::Instant};

mod admin;
mod bolt;
mod call;
mod cluster;
mod endpoint;
mod held;
mod keys;
pub mod local;
mod log;
mod mark;
mod messages;
mod open;
mod peer;
mod replay;
mod revisions;
mod space;
mod watch;

pub use admin::{Admin, AdminError, Alarm, Listed, Status, Vote};
pub use bolt::FileError;
pub use endpoint::{Endpoint, Tls, TlsError};
pub use open::{Config, OPERATIONS_MAX_DEFAULT, OpenError, Survived, survived};
pub use replay::LogFacts;
pub use space::Room;

use call::{CallError, Code};
use cluster::Cluster;
use held::Held;
use keys::Keys;
use mark::{Mark, Nonce, Verdict, Work};
use messages::{
    CompactionRequest, CompactionResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, StatusRequest,
    StatusResponse, TxnResponse, path,
};
use revisions::Base;
use space::{Before, Space};
use watch::{EtcdWatch, Followed, Pending};

/// What a request may weigh: etcd's default of 1.5 MiB.
const REQUEST_BYTES_MAX: usize = 3 << 19;
/// Keys and values of one commit; with every key named twice and the longest keys there are, 128 of them stay under the request's limit.
const COMMIT_BYTES_MAX: usize = 1 << 20;
/// How long a member has for one answer: longer than an election among healthy ones and a slow disk's flush take.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// The most a member is given when answers take long again and again.
const PATIENCE_MAX: Duration = Duration::from_secs(10);
/// How long a commit, or a page, is tried with one member after the other.
const TRIED_MAX: Duration = Duration::from_secs(30);
/// Waits between attempts of a commit.
const RETRY_FLOOR: Duration = Duration::from_millis(20);
const RETRY_CEILING: Duration = Duration::from_secs(1);

/// A keyspace in an etcd cluster.
pub struct Etcd {
    cluster: Arc<Cluster>,
    keys: Keys,
    limits: Limits,
    config: Config,
    // Changed only where nobody uses the store yet.
    base: AtomicU64,
    space: Space,
    /// What one member holds; nothing as soon as a majority was there.
    // Leaf data: copied and replaced.
    held: Arc<Leaf<Option<Arc<Held>>>>,
    /// Held while a commit is in the air: the next one must know what became of the mark.
    lane: Mutex<Lane>,
}

struct Lane {
    mark: Mark,
    /// An attempt of which it is not known whether it happened.
    unsettled: Option<Nonce>,
}

/// What an attempt came to.
enum Attempt {
    Known(Verdict),
    /// It did not happen, for this reason, and it makes no sense to try again.
    Hopeless(CallError),
    /// It may have happened.
    Unknown(CallError),
}

impl Etcd {
    /// Forget all history before `revision`, so that etcd can give its room back. Whoever follows from an earlier one has to load
    /// everything again.
    ///
    /// # Errors
    /// When no member does it.
    pub async fn compact(&self, revision: Revision) -> Result<(), EngineError> {
        let question = CompactionRequest { revision: self.base().down(revision).unwrap_or(0).max(1), physical: false };
        let asked =
            self.cluster.ask_any::<_, CompactionResponse>(path::COMPACT, &question, ANSWER_MAX, deadline()).await;
        match asked {
            // Somebody else did.
            Err(CallError::Refused { code: Code::OutOfRange, message, .. }) if message.contains("compacted") => Ok(()),
            asked => asked.map(|_| ()).map_err(|error| failed("compact etcd's history", error)),
        }
    }

    async fn page(&self, after: &str, limit: usize) -> Result<Page, EngineError> {
        let mut limit = limit.max(1);
        if let Some(held) = self.held() {
            return Ok(self.page_of(&held, after, limit));
        }
        let answer = loop {
            let question = RangeRequest {
                key: self.keys.records_after(after),
                range_end: self.keys.records_end(),
                limit: i64::try_from(limit).unwrap_or(i64::MAX),
                ..RangeRequest::default()
            };
            match self.cluster.ask_any::<_, RangeResponse>(path::RANGE, &question, PATIENCE_MAX, deadline()).await {
                // Large records: fewer at a time.
                Err(CallError::TooLarge { .. }) if limit > 1 => limit /= 2,
                answer => break answer.map_err(|error| failed("read records from etcd", error))?,
            }
        };
        let base = self.base();
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        let record = |kv: messages::KeyValue| {
            let key = self.keys.record_of(&kv.key)?;
            Some(Record { key, revision: base.up(kv.mod_revision), value: kv.value })
        };
        Ok(Page {
            revision: base.up(revision),
            records: answer.kvs.into_iter().filter_map(record).collect(),
            more: answer.more,
        })
    }

    /// The same of what one member holds.
    fn page_of(&self, held: &Held, after: &str, limit: usize) -> Page {
        let base = self.base();
        let from = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
        let mut rest = held.records.range::<str, _>((from, Bound::Unbounded));
        let record = |(key, (revision, value)): (&String, &(i64, Bytes))| Record {
            key: key.clone(),
            revision: base.up(*revision),
            value: value.clone(),
        };
        let records = rest.by_ref().take(limit).map(record).collect();
        Page { revision: base.up(held.revision), records, more: rest.next().is_some() }
    }

    /// Whether it was opened without a majority and none was seen since: it can be read, as one member holds it.
    pub fn is_waiting(&self) -> bool {
        self.held().is_some()
    }

    /// Whether a majority answers now.
    pub async fn has_majority(&self) -> bool {
        let question = RangeRequest { key: self.lane_key(), count_only: true, ..RangeRequest::default() };
        let until = Instant::now() + ANSWER_MAX;
        let asked = self.cluster.ask_any::<_, RangeResponse>(path::RANGE, &question, ANSWER_MAX, until).await;
        asked.is_ok()
    }

    /// How far the member at `endpoint` is, by its own word.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn revision_of(&self, endpoint: &str) -> Result<Revision, AdminError> {
        let admin = Admin::new(&[endpoint.to_owned()], self.config.tls.clone())?;
        let status = admin.status(endpoint).await?;
        Ok(self.base().up(i64::try_from(status.revision).unwrap_or(i64::MAX)))
    }

    fn held(&self) -> Option<Arc<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every commit writes its mark, so the newest mark is the newest commit; the keyspace's own revision may be another user's of the same cluster.
    /// etcd answers a read only after it has made sure that no other member is further.
    async fn newest_mark(&self) -> Result<Revision, EngineError> {
        if self.is_waiting() {
            return Err(failed("ask etcd how far it is", NoMajority));
        }
        let (key, range_end) = self.keys.marks();
        let question = RangeRequest { key, range_end, ..RangeRequest::default() };
        let asked = self.cluster.ask::<_, RangeResponse>(path::RANGE, &question, ANSWER_MAX).await;
        let marks = asked.map_err(|error| failed("ask etcd how far it is", error))?.kvs;
        Ok(self.base().up(marks.iter().map(|mark| mark.mod_revision).max().unwrap_or(0)))
    }

    async fn commit_batch(&self, batch: Batch) -> Result<Outcome, EngineError> {
        if self.is_waiting() {
            return Err(failed("commit to etcd", NoMajority));
        }
        let mut lane = self.lane.lock().await;
        self.look_for_room(&batch).await?;
        let (base, deadline) = (self.base(), deadline());
        let mut backoff = Backoff::new(RETRY_FLOOR, RETRY_CEILING);
        let mut patience = ANSWER_MAX;
        self.find_out(&mut lane, &mut patience, deadline).await?;
        loop {
            let nonce = Nonce(base::random::wide_bits());
            // Before anything is sent: whoever stops waiting for this future leaves that behind.
            lane.unsettled = Some(nonce);
            let verdict = match self.attempt(&lane.mark, nonce, &batch, patience).await? {
                Attempt::Known(verdict) => Some(lane.know(verdict)),
                Attempt::Hopeless(error) => {
                    lane.unsettled = None;
                    return Err(refusal(error));
                }
                Attempt::Unknown(error) => {
                    tracing::info!(error = base::errors::chain(&error), "a commit's answer was lost; finding out");
                    self.find_out(&mut lane, &mut patience, deadline).await?
                }
            };
            match verdict {
                Some(Verdict::Written(revision)) => return Ok(Outcome::Committed(base.up(revision))),
                Some(Verdict::Refused(revision)) => return Ok(Outcome::Conflict(base.up(revision))),
                Some(Verdict::Superseded) => return Err(self.superseded()),
                Some(Verdict::Fenced(_)) | None if Instant::now() < deadline => {
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                Some(Verdict::Fenced(_)) | None => {
                    return Err(failed("commit to etcd", NotInTime { members: self.cluster.names() }));
                }
            }
        }
    }

    /// Send `batch` once.
    async fn attempt(
        &self,
        mark: &Mark,
        nonce: Nonce,
        batch: &Batch,
        patience: Duration,
    ) -> Result<Attempt, EngineError> {
        let mut work = Work::default();
        for (key, expected) in &batch.checks {
            work.check(self.keys.record(key), expected.map(|expected| self.base().expected(expected)));
        }
        for (key, value) in &batch.writes {
            work.write(self.keys.record(key), value.clone());
        }
        let question = mark.commit(nonce, work);
        let bytes = question.encoded_len();
        self.space.wrote(bytes as u64);
        if bytes > REQUEST_BYTES_MAX {
            return Err(failed("commit to etcd", Oversized { bytes }));
        }
        Ok(match self.cluster.ask::<_, TxnResponse>(path::TXN, &question, patience).await {
            Ok(answer) => {
                Attempt::Known(mark.committed(nonce, &answer).map_err(|error| failed("commit to etcd", error))?)
            }
            // The next member is asked at once, and fencing what was never sent does no harm.
            Err(error @ CallError::Unsent { .. }) => Attempt::Unknown(error),
            Err(error) if error.is_definite() => Attempt::Hopeless(error),
            Err(error) => Attempt::Unknown(error),
        })
    }

    /// What became of the attempt that is not known about, if there is one. Members are given more time with each that does not answer.
    async fn find_out(
        &self,
        lane: &mut Lane,
        patience: &mut Duration,
        deadline: Instant,
    ) -> Result<Option<Verdict>, EngineError> {
        let Some(nonce) = lane.unsettled else { return Ok(None) };
        let mut backoff = Backoff::new(RETRY_FLOOR, RETRY_CEILING);
        loop {
            let question = lane.mark.settle(nonce);
            match self.cluster.ask::<_, TxnResponse>(path::TXN, &question, *patience).await {
                Ok(answer) => {
                    let verdict = lane.mark.settled(nonce, &answer);
                    return Ok(Some(lane.know(verdict.map_err(|error| failed("find out about a commit", error))?)));
                }
                Err(error) if !error.is_the_members_fault() || Instant::now() >= deadline => {
                    return Err(failed("find out whether a commit happened; it may have", error));
                }
                Err(CallError::Unsent { .. }) => {}
                Err(_) => *patience = (*patience * 2).min(PATIENCE_MAX),
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    fn superseded(&self) -> EngineError {
        failed("commit to etcd", Superseded { name: self.config.name.clone() })
    }
}

impl Lane {
    /// Note where the mark is now.
    fn know(&mut self, verdict: Verdict) -> Verdict {
        match verdict {
            Verdict::Written(revision) | Verdict::Refused(revision) | Verdict::Fenced(revision) => {
                self.mark.revision = revision;
                self.unsettled = None;
            }
            // The revision stays one that will never be again, so that every later commit learns the same.
            Verdict::Superseded => self.unsettled = None,
        }
        verdict
    }
}

impl Engine for Etcd {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn load<'a>(&'a self, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Page, EngineError>> {
        Box::pin(self.page(after, limit))
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Outcome, EngineError>> {
        Box::pin(self.commit_batch(batch))
    }

    fn newest(&self) -> Option<BoxFuture<'_, Result<Revision, EngineError>>> {
        Some(Box::pin(self.newest_mark()))
    }

    fn watch(&self, after: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, EngineError>> {
        Box::pin(async move {
            let look = self.lane_key();
            let from = Followed { cluster: self.cluster.clone(), keys: self.keys.clone(), base: self.base(), look };
            Ok(match self.is_waiting() {
                true => Box::new(Pending::new(from, after, self.held.clone())) as Box<dyn Watch>,
                false => Box::new(EtcdWatch::open(from, after).await?),
            })
        })
    }
}

impl Etcd {
    /// The members are at `endpoints` from now on.
    ///
    /// # Errors
    /// When one of them is none, or there is none.
    pub fn set_endpoints(&self, endpoints: &[String]) -> Result<(), String> {
        let endpoints = endpoints.iter().map(|text| Endpoint::parse(text)).collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err("no endpoint of etcd is given".to_owned());
        }
        self.cluster.set_endpoints(endpoints);
        Ok(())
    }

    /// Make every revision there is and will be greater than `above`, which a store had that moves here. Only before anybody uses it here.
    ///
    /// # Errors
    /// When no member writes it down.
    pub async fn raise(&self, above: Revision) -> Result<(), EngineError> {
        let question = PutRequest { key: self.keys.base(), value: above.0.to_string().into() };
        let put = self.cluster.ask_any::<_, PutResponse>(path::PUT, &question, PATIENCE_MAX, deadline()).await;
        put.map_err(|error| failed("write down what is added to etcd's revisions", error))?;
        self.base.store(above.0, Ordering::SeqCst);
        Ok(())
    }

    /// Note how large a member's file is, and how much of it is in use: what a commit that may not use the reserve finds.
    pub fn note_space(&self, size_bytes: u64, used_bytes: u64) {
        self.space.measure(size_bytes, used_bytes);
    }

    fn base(&self) -> Base {
        Base(self.base.load(Ordering::SeqCst))
    }

    /// Whether there is room for `batch`.
    async fn look_for_room(&self, batch: &Batch) -> Result<(), EngineError> {
        if batch.may_use_reserve {
            return Ok(());
        }
        let bytes: usize = batch.writes.iter().map(|(_, value)| value.as_ref().map_or(0, Bytes::len)).sum();
        match self.space.before(bytes as u64) {
            Before::Go => Ok(()),
            Before::Full => Err(EngineError::Full),
            Before::Measure => {
                let asked = self.cluster.ask::<_, StatusResponse>(path::STATUS, &StatusRequest {}, ANSWER_MAX).await;
                // Who does not answer this will not take the commit either, and then another one is asked.
                let Ok(status) = asked else { return Ok(()) };
                let bytes = |signed| u64::try_from(signed).unwrap_or(0);
                match self.space.measure(bytes(status.size), bytes(status.used)) {
                    true => Ok(()),
                    false => Err(EngineError::Full),
                }
            }
        }
    }

    /// A key that exists, to read something cheap.
    fn lane_key(&self) -> Bytes {
        self.keys.mark(&self.config.name)
    }
}

/// No member could be asked for as long as we try.
#[derive(Debug, thiserror::Error)]
#[error("none of {members} carried it out within {} s; it did not happen", TRIED_MAX.as_secs())]
struct NotInTime {
    members: String,
}

/// Nobody was there to agree.
#[derive(Debug, thiserror::Error)]
#[error("no majority of its members has answered since this process began")]
struct NoMajority;

/// A commit that etcd would not take.
#[derive(Debug, thiserror::Error)]
#[error("it has {bytes} bytes with all its keys, and etcd takes requests of {REQUEST_BYTES_MAX}")]
struct Oversized {
    bytes: usize,
}

/// Somebody else commits under our name.
#[derive(Debug, thiserror::Error)]
#[error(
    "another process has opened this store as `{name}` since; names must differ: end one of the two, or start this one again"
)]
struct Superseded {
    name: String,
}

/// What a refusal by etcd means to the store.
fn refusal(error: CallError) -> EngineError {
    match &error {
        CallError::Refused { code: Code::ResourceExhausted, message, .. } if message.contains("space exceeded") => {
            EngineError::Full
        }
        _ => failed("commit to etcd", error),
    }
}

fn failed(doing: &str, source: impl std::error::Error + Send + Sync + 'static) -> EngineError {
    EngineError::Failed { doing: doing.to_owned(), source: Box::new(source) }
}

fn deadline() -> Instant {
    Instant::now() + TRIED_MAX
}
