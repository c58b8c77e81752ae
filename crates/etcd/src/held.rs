//! What one member holds, read without asking the others: it may be past, and it is all there is while no majority answers.
//!
//! A member that has been part of a majority since it started answers such reads (etcd calls them *serializable*). One that has started and found no
//! majority yet answers nobody at all, so of the member on this machine the file is read (see `bolt`). Both show only what was committed; the last few
//! commits may be missing, because a member hears of a commit a moment after it happened.

use std::{
    collections::BTreeMap,
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
    log::Log,
    messages::{KeyValue, RangeRequest, RangeResponse, StatusRequest, StatusResponse, path},
    replay::{Kept, LogFacts},
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

/// What a member's data directory holds beside the records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Beside {
    /// Revision of the keyspace in the file.
    pub(crate) revision: i64,
    /// What is added to it, in the file.
    pub(crate) base: Option<Bytes>,
    /// Number of the last entry of the log that is in the file.
    pub(crate) applied: u64,
    /// Each member the file knows, as etcd writes it down: JSON.
    pub(crate) members: Vec<Bytes>,
    /// What was taken from the log.
    pub(crate) log: LogFacts,
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
    pub(crate) fn read_file(keys: &Keys, data: &Path) -> Result<Self, FileError> {
        let kept = read(keys, data)?.0;
        Ok(Self::of(keys, kept.revision, kept.all.into_values()))
    }

    /// From the file, and then from the log, as far as that can be followed.
    pub(crate) fn read_all(keys: &Keys, data: &Path) -> Result<(Self, Beside), FileError> {
        let (kept, beside) = settled(|| {
            // In this order: what leaves the log meanwhile is in the next file.
            let (mut kept, mut beside) = read(keys, data)?;
            beside.base = kept.all.get(&keys.base()).map(|kv| kv.value.clone());
            beside.log = kept.follow(keys, &Log::read(data, beside.applied));
            Ok((kept, beside))
        })?;
        Ok((Self::of(keys, kept.revision, kept.all.into_values()), beside))
    }
}

/// What `look` sees when it could follow the log to its end, or sees the same as the time before: what was read while it was written may look like anything,
/// but not twice; that is damage.
fn settled<T>(mut look: impl FnMut() -> Result<(T, Beside), FileError>) -> Result<(T, Beside), FileError> {
    let mut seen = look()?;
    for _ in 1..ATTEMPTS {
        if seen.1.log.stopped.is_none() {
            break;
        }
        std::thread::sleep(ATTEMPT_PAUSE);
        let before = std::mem::replace(&mut seen, look()?).1;
        if seen.1 == before {
            break;
        }
    }
    Ok(seen)
}

/// The file below a member's data directory.
pub(crate) fn file_of(data: &Path) -> PathBuf {
    data.join("member").join("snap").join("db")
}

fn read(keys: &Keys, data: &Path) -> Result<(Kept, Beside), FileError> {
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

fn read_bolt(keys: &Keys, bolt: &Bolt) -> Result<(Kept, Beside), FileError> {
    let (first, end) = keys.all();
    let mut kept = Kept::default();
    // The order is that of revisions: what comes later counts.
    bolt.each("key", &mut |key, value| {
        let head = key.get(..REVISION_BYTES).ok_or("a revision is cut")?;
        let main = i64::try_from((&head[..]).get_u64()).map_err(|_| "a revision is no revision")?;
        kept.revision = kept.revision.max(main);
        let kv = KeyValue::decode(value).map_err(|error| format!("a value cannot be read: {error}"))?;
        if kv.key < first || kv.key >= end {
            return Ok(());
        }
        match key.get(REVISION_BYTES) {
            Some(_) => drop(kept.all.remove(&kv.key)),
            // Its own bytes, not a part of the page's.
            None => {
                let own =
                    KeyValue { key: Bytes::copy_from_slice(&kv.key), value: Bytes::copy_from_slice(&kv.value), ..kv };
                kept.all.insert(own.key.clone(), own);
            }
        }
        Ok(())
    })?;
    let mut beside = Beside::default();
    bolt.each("meta", &mut |key, mut value| {
        match key {
            b"consistent_index" if value.len() == 8 => beside.applied = value.get_u64(),
            // All before was forgotten, and it may be the newest there is.
            b"scheduledCompactRev" | b"finishedCompactRev" if value.len() >= 8 => {
                kept.revision = kept.revision.max(i64::try_from(value.get_u64()).unwrap_or(0));
            }
            _ => {}
        }
        Ok(())
    })?;
    bolt.each("members", &mut |_, value| {
        beside.members.push(value);
        Ok(())
    })?;
    bolt.each("alarm", &mut |key, _| kept.note_alarm(key))?;
    beside.revision = kept.revision;
    Ok((kept, beside))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often is looked where the log stops at each of `stops`, one look after the other, and where it stops in what counts.
    fn looks(stops: &[Option<&str>]) -> (usize, Option<String>) {
        let mut count = 0;
        let look = || {
            let stopped = stops[count].map(str::to_owned);
            count += 1;
            Ok(((), Beside { log: LogFacts { stopped, ..LogFacts::default() }, ..Beside::default() }))
        };
        let seen = settled(look).unwrap().1;
        (count, seen.log.stopped)
    }

    #[test]
    fn a_log_that_stops_at_one_place_twice_is_not_read_again() {
        let (here, there) = (Some("here"), Some("there"));
        assert_eq!(looks(&[None]), (1, None));
        assert_eq!(looks(&[here, None]), (2, None));
        assert_eq!(looks(&[here, here, None]), (2, Some("here".to_owned())));
        assert_eq!(looks(&[here, there, there, None]), (3, Some("there".to_owned())));
        assert_eq!(looks(&[here, there, here, there, here, None]), (ATTEMPTS, Some("here".to_owned())));
    }
}
