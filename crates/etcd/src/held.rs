//! What one member holds, read without asking the others: it may be past, and it is all there is while no majority answers.
//!
//! A member that has been part of a majority since it started answers such reads (etcd calls them *serializable*). One that has started and found no
//! majority yet answers nobody at all, so of the member on this machine the file is read (see `bolt`). Both show only what was committed; the last few
//! commits may be missing, because a member hears of a commit a moment after it happened.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures_util::future::join_all;
use prost::Message as _;

use crate::{
    ANSWER_MAX, Endpoint, PATIENCE_MAX, Tls,
    bolt::{Bolt, FileError},
    call::{CallError, Channel},
    keys::Keys,
    messages::{KeyValue, RangeRequest, RangeResponse, StatusRequest, StatusResponse, path},
};

/// Keys asked of a member at once.
const PAGE_KEYS: i64 = 500;
/// How often a file is read that was written meanwhile.
const ATTEMPTS: usize = 5;
/// Between these attempts: etcd writes ten times a second at most.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(300);
/// A revision in the file: number, `_`, number within a transaction; and `t` where a key was deleted.
const REVISION_BYTES: usize = 17;

/// A keyspace under one prefix, at one of etcd's revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    /// etcd's own.
    pub(crate) revision: i64,
    pub(crate) format: Option<Bytes>,
    pub(crate) base: Option<Bytes>,
    /// Value and etcd's revision, by the store's key.
    pub(crate) records: BTreeMap<String, (i64, Bytes)>,
}

/// What a member's file says beside the records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileFacts {
    /// Revision of its keyspace.
    pub revision: u64,
    /// Keys under the prefix.
    pub keys: usize,
    /// Number of the last entry of the log that is in it.
    pub applied: u64,
    /// Each member it knows, as etcd writes it down: JSON.
    pub members: Vec<Bytes>,
}

impl Held {
    fn of(keys: &Keys, revision: i64, all: impl IntoIterator<Item = KeyValue>) -> Self {
        let mut held = Self { revision, format: None, base: None, records: BTreeMap::new() };
        for kv in all {
            if kv.key == keys.format() {
                held.format = Some(kv.value);
            } else if kv.key == keys.base() {
                held.base = Some(kv.value);
            } else if let Some(key) = keys.record_of(&kv.key) {
                held.records.insert(key, (kv.mod_revision, kv.value));
            }
        }
        held
    }

    /// From the one of `endpoints` that answers and is furthest.
    pub(crate) async fn ask(keys: &Keys, endpoints: &[Endpoint], tls: Option<&Tls>) -> Result<Self, CallError> {
        let asked = join_all(endpoints.iter().map(async |endpoint| {
            let channel = Channel::dial(endpoint, tls).await?;
            let status: StatusResponse = channel.unary(path::STATUS, &StatusRequest {}, ANSWER_MAX).await?;
            Ok::<_, CallError>((status.header.map_or(0, |header| header.revision), channel))
        }));
        let mut last = None;
        let mut answered = Vec::new();
        for outcome in asked.await {
            match outcome {
                Ok(answer) => answered.push(answer),
                Err(error) => last = Some(error),
            }
        }
        answered.sort_by_key(|(revision, _)| std::cmp::Reverse(*revision));
        for (_, channel) in answered {
            match Self::read(keys, &channel).await {
                Ok(held) => return Ok(held),
                Err(error) => last = Some(error),
            }
        }
        let nobody = || CallError::Unsent { endpoint: "etcd".to_owned(), why: "no endpoint is given".to_owned() };
        Err(last.unwrap_or_else(nobody))
    }

    /// All of it, at one revision, from one member.
    async fn read(keys: &Keys, channel: &Channel) -> Result<Self, CallError> {
        let (mut key, range_end) = keys.all();
        let (mut revision, mut limit, mut all) = (0, PAGE_KEYS, Vec::new());
        loop {
            let question = RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit,
                revision,
                serializable: true,
                ..RangeRequest::default()
            };
            let page: RangeResponse = match channel.unary_of_itself(path::RANGE, &question, PATIENCE_MAX).await {
                // Large records: fewer at a time.
                Err(CallError::TooLarge { .. }) if limit > 1 => {
                    limit /= 2;
                    continue;
                }
                answer => answer?,
            };
            if revision == 0 {
                revision = page.header.as_ref().map_or(0, |header| header.revision);
            }
            if let Some(last) = page.kvs.last() {
                key = [&last.key[..], &[0]].concat().into();
            }
            all.extend(page.kvs);
            if !page.more {
                return Ok(Self::of(keys, revision, all));
            }
        }
    }

    /// From the file below a member's data directory. Takes as long as reading all of it.
    pub(crate) fn read_file(keys: &Keys, data: &Path) -> Result<(Self, FileFacts), FileError> {
        let file = file_of(data);
        for _ in 0..ATTEMPTS {
            let bolt = Bolt::open(&file)?;
            let read = read_bolt(keys, &bolt);
            // What was read while it was written may look like anything.
            if bolt.is_as_it_was()? {
                return read;
            }
            std::thread::sleep(ATTEMPT_PAUSE);
        }
        Err(FileError::Busy(file))
    }
}

/// The file below a member's data directory.
pub(crate) fn file_of(data: &Path) -> PathBuf {
    data.join("member").join("snap").join("db")
}

fn read_bolt(keys: &Keys, bolt: &Bolt) -> Result<(Held, FileFacts), FileError> {
    let (first, end) = keys.all();
    // The order is that of revisions: what comes later counts.
    let (mut newest, mut revision): (HashMap<Bytes, KeyValue>, i64) = (HashMap::new(), 0);
    bolt.each("key", &mut |key, value| {
        let head = key.get(..REVISION_BYTES).ok_or("a revision is cut")?;
        let main = i64::try_from((&head[..]).get_u64()).map_err(|_| "a revision is no revision")?;
        revision = revision.max(main);
        let kv = KeyValue::decode(value).map_err(|error| format!("a value cannot be read: {error}"))?;
        if kv.key < first || kv.key >= end {
            return Ok(());
        }
        match key.get(REVISION_BYTES) {
            Some(_) => drop(newest.remove(&kv.key)),
            // Its own bytes, not a part of the page's.
            None => {
                let own =
                    KeyValue { key: Bytes::copy_from_slice(&kv.key), value: Bytes::copy_from_slice(&kv.value), ..kv };
                newest.insert(own.key.clone(), own);
            }
        }
        Ok(())
    })?;
    let mut facts = FileFacts { keys: newest.len(), ..FileFacts::default() };
    bolt.each("meta", &mut |key, mut value| {
        match key {
            b"consistent_index" if value.len() == 8 => facts.applied = value.get_u64(),
            // All before was forgotten, and it may be the newest there is.
            b"scheduledCompactRev" | b"finishedCompactRev" if value.len() >= 8 => {
                revision = revision.max(i64::try_from(value.get_u64()).unwrap_or(0));
            }
            _ => {}
        }
        Ok(())
    })?;
    bolt.each("members", &mut |_, value| {
        facts.members.push(value);
        Ok(())
    })?;
    facts.revision = u64::try_from(revision).unwrap_or(0);
    Ok((Held::of(keys, revision, newest.into_values()), facts))
}

/// What the file below a member's data directory says, of the keyspace under `prefix`.
///
/// # Errors
/// When it cannot be read, or is damaged.
pub fn file_facts(data: &Path, prefix: &str) -> Result<FileFacts, FileError> {
    Ok(Held::read_file(&Keys::below(prefix), data)?.1)
}
