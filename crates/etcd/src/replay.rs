//! What the entries of a member's log do to what its file holds: what etcd would make of them, for the requests that this program makes.
//!
//! Anything else in the log (leases, keys under other prefixes that are compared or deleted, users) ends it: what follows might depend on it. That a request is of
//! those that are known is seen by its length: written again, it must be as long as it is.
//!
//! Entries are taken that the member did not know to be agreed. A member that leads takes in all of its log as well, and whoever begins anew from one makes it
//! lead. Others may have acknowledged them with it; whoever made a request of which nobody knows what came of it must expect both.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use prost::Message;

use crate::{
    keys::Keys,
    log::Log,
    messages::{AlarmMessage, AlarmRequest, DeleteRangeRequest, Expected, KeyValue, PutRequest, Request, TxnRequest},
};

/// The alarm of a full file: requests that write are refused.
const FULL: i32 = 1;
/// The alarm of a member whose data differ.
const DIFFERENT: i32 = 2;
const BEGIN: i32 = 1;
const END: i32 = 2;

/// What a member's file holds of the keyspace under one prefix, to go on from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    pub(crate) all: HashMap<Bytes, KeyValue>,
    /// etcd's own.
    pub(crate) revision: i64,
    /// By member and kind.
    pub(crate) alarms: BTreeSet<(u64, i32)>,
}

/// What a member's log has beyond its file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFacts {
    /// Entries that were taken from it.
    pub entries: u64,
    /// Of these, those that the member did not know to be agreed.
    pub not_agreed: u64,
    /// Why those behind were not.
    pub stopped: Option<String>,
}

/// A request in the log. What changes no key is here to be known.
#[derive(Clone, PartialEq, prost::Message)]
struct Logged {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(bytes = "bytes", optional, tag = "3")]
    range: Option<Bytes>,
    #[prost(message, optional, tag = "4")]
    put: Option<PutRequest>,
    #[prost(message, optional, tag = "5")]
    delete: Option<DeleteRangeRequest>,
    #[prost(message, optional, tag = "6")]
    txn: Option<TxnRequest>,
    #[prost(bytes = "bytes", optional, tag = "7")]
    compaction: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "8")]
    lease: Option<Bytes>,
    #[prost(message, optional, tag = "10")]
    alarm: Option<AlarmRequest>,
    #[prost(bytes = "bytes", optional, tag = "11")]
    lease_checkpoint: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "100")]
    header: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "1300")]
    version: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "1301")]
    member: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "1302")]
    downgrade: Option<Bytes>,
}

/// Of etcd's second generation, by itself or within the third's: members and their addresses. It has no keys of ours.
#[derive(Clone, PartialEq, prost::Message)]
struct Former {
    #[prost(bytes = "bytes", optional, tag = "2")]
    method: Option<Bytes>,
}

impl Kept {
    /// Goes on with all entries of `log`, up to one that cannot be followed.
    pub(crate) fn follow(&mut self, keys: &Keys, log: &Log) -> LogFacts {
        let mut facts = LogFacts::default();
        // Of a keyspace that was never written.
        self.revision = self.revision.max(1);
        for entry in &log.entries {
            if entry.kind == 0
                && let Err(why) = self.apply(keys, &entry.data)
            {
                facts.stopped = Some(format!("entry {} {why}", entry.index));
                return facts;
            }
            facts.entries += 1;
            facts.not_agreed += u64::from(entry.index > log.agreed);
        }
        facts.stopped.clone_from(&log.damage);
        facts
    }

    fn apply(&mut self, keys: &Keys, data: &Bytes) -> Result<(), String> {
        // A leader that begins says so with an empty one.
        if data.is_empty() || Former::decode(&data[..]).is_ok_and(|former| former.method.is_some()) {
            return Ok(());
        }
        let request = Logged::decode(data.clone()).map_err(|_| "cannot be read")?;
        if request.encoded_len() != data.len() {
            return Err("is a request that this program does not make".to_owned());
        }
        if let Some(alarm) = request.alarm {
            return self.alarm(&alarm);
        }
        let Logged { put, delete, txn, .. } = request;
        let txn = txn.unwrap_or_default();
        let is_put = |operation: &crate::messages::RequestOp| matches!(operation.request, Some(Request::Put(_)));
        let writes = put.is_some() || txn.success.iter().chain(&txn.failure).any(is_put);
        if self.alarms.iter().any(|(_, kind)| *kind == DIFFERENT) {
            return Err("was made when a member's data were known to be damaged".to_owned());
        }
        if writes && self.alarms.iter().any(|(_, kind)| *kind == FULL) {
            // Whoever asked was told that there is no room.
            return Ok(());
        }
        let mut work: Vec<Request> = put.map(Request::Put).into_iter().chain(delete.map(Request::Delete)).collect();
        self.choose(keys, txn, &mut work)?;
        self.write(keys, work)
    }

    /// What of a transaction is to be done. All checks, also of nested ones, are of what was there before it.
    fn choose(&self, keys: &Keys, txn: TxnRequest, work: &mut Vec<Request>) -> Result<(), String> {
        let mut holds = true;
        for compare in &txn.compare {
            check_key(keys, &compare.key)?;
            let found = self.all.get(&compare.key);
            holds &= match (&compare.expected, compare.target) {
                (Some(Expected::Version(version)), 0) => found.map_or(0, |kv| kv.version) == *version,
                (Some(Expected::ModRevision(revision)), 2) => found.map_or(0, |kv| kv.mod_revision) == *revision,
                (Some(Expected::Value(value)), 3) => found.is_some_and(|kv| kv.value == value),
                _ => return Err("has a check that this program does not make".to_owned()),
            };
        }
        for operation in if holds { txn.success } else { txn.failure } {
            match operation.request {
                Some(Request::Txn(inner)) => self.choose(keys, inner, work)?,
                Some(Request::Range(_)) | None => {}
                Some(request) => work.push(request),
            }
        }
        Ok(())
    }

    fn write(&mut self, keys: &Keys, work: Vec<Request>) -> Result<(), String> {
        for request in &work {
            if let Request::Delete(DeleteRangeRequest { key }) = request {
                check_key(keys, key)?;
            }
        }
        let (at, mut is_changed) = (self.revision + 1, false);
        for request in work {
            match request {
                Request::Put(PutRequest { key, value }) => {
                    is_changed = true;
                    // Other programs' keys count, and that is all.
                    if check_key(keys, &key).is_ok() {
                        let version = self.all.get(&key).map_or(0, |kv| kv.version) + 1;
                        drop(self.all.insert(key.clone(), KeyValue { key, value, version, mod_revision: at }));
                    }
                }
                Request::Delete(DeleteRangeRequest { key }) => is_changed |= self.all.remove(&key).is_some(),
                Request::Range(_) | Request::Txn(_) => {}
            }
        }
        if is_changed {
            self.revision = at;
        }
        Ok(())
    }

    fn alarm(&mut self, alarm: &AlarmRequest) -> Result<(), String> {
        let AlarmRequest { action, member, alarm } = *alarm;
        match action {
            BEGIN => drop(self.alarms.insert((member, alarm))),
            END => drop(self.alarms.remove(&(member, alarm))),
            // A question.
            0 => {}
            _ => return Err("does something unknown to an alarm".to_owned()),
        }
        Ok(())
    }

    /// Notes an alarm that the file has.
    pub(crate) fn note_alarm(&mut self, written: &[u8]) -> Result<(), String> {
        let AlarmMessage { member, alarm } =
            AlarmMessage::decode(written).map_err(|error| format!("an alarm cannot be read: {error}"))?;
        self.alarms.insert((member, alarm));
        Ok(())
    }
}

fn check_key(keys: &Keys, key: &Bytes) -> Result<(), String> {
    let (first, end) = keys.all();
    match *key >= first && *key < end {
        true => Ok(()),
        false => Err(format!("depends on `{}`, which is not this store's", String::from_utf8_lossy(key))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log::Entry,
        messages::{Compare, RangeRequest},
    };

    fn keys() -> Keys {
        Keys::below("neso/test")
    }

    fn key(name: &str) -> Bytes {
        keys().record(name)
    }

    fn put(name: &str, value: &'static str) -> Request {
        Request::Put(PutRequest { key: key(name), value: value.into() })
    }

    fn delete(name: &str) -> Request {
        Request::Delete(DeleteRangeRequest { key: key(name) })
    }

    fn txn(compare: Vec<Compare>, success: Vec<Request>, failure: Vec<Request>) -> TxnRequest {
        let all = |of: Vec<Request>| of.into_iter().map(Into::into).collect();
        TxnRequest { compare, success: all(success), failure: all(failure) }
    }

    fn logged(txn: TxnRequest) -> Bytes {
        let header = Some(Bytes::from_static(&[8, 7]));
        Logged { header, txn: Some(txn), ..Logged::default() }.encode_to_vec().into()
    }

    /// Entries from 8 on, of which 9 are known to be agreed.
    fn log(all: Vec<Bytes>) -> Log {
        let entries = all.into_iter().zip(8..).map(|(data, index)| Entry { kind: 0, index, data }).collect();
        Log { entries, agreed: 9, damage: None }
    }

    fn shown(kept: &Kept) -> Vec<(String, i64, i64, String)> {
        let mut all: Vec<_> = kept
            .all
            .values()
            .map(|kv| {
                let name = keys().record_of(&kv.key).unwrap();
                (name, kv.mod_revision, kv.version, String::from_utf8(kv.value.to_vec()).unwrap())
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn requests_do_what_etcd_does() {
        let mut kept = Kept::default();
        let is = |name: &str, expected| Compare::new(key(name), expected);
        let all = vec![
            Bytes::new(),
            logged(txn(vec![is("a", Expected::Version(0))], vec![put("a", "1"), put("b", "1")], vec![])),
            // Deletes nothing, so nothing happened; then one that did.
            logged(txn(vec![], vec![delete("c")], vec![])),
            logged(txn(vec![is("a", Expected::ModRevision(2))], vec![put("a", "2"), delete("b")], vec![])),
            // What is nested looks at what was before.
            logged(txn(
                vec![is("a", Expected::Value("1".into()))],
                vec![put("a", "never")],
                vec![
                    put("a", "3"),
                    Request::Txn(txn(
                        vec![is("a", Expected::ModRevision(3))],
                        vec![put("d", "1")],
                        vec![put("d", "2")],
                    )),
                ],
            )),
            logged(txn(
                vec![is("x", Expected::Value("".into()))],
                vec![put("x", "never")],
                vec![Request::Range(RangeRequest::default())],
            )),
        ];
        let facts = kept.follow(&keys(), &log(all));
        assert_eq!(facts, LogFacts { entries: 6, not_agreed: 4, stopped: None });
        let wanted = [("a", 4, 3, "3"), ("d", 4, 1, "1")];
        assert_eq!(
            shown(&kept),
            wanted.map(|(name, at, version, value)| (name.to_owned(), at, version, value.to_owned()))
        );
        assert_eq!(kept.revision, 4);
    }

    #[test]
    fn what_is_not_known_ends_it_and_what_came_before_stays() {
        let leased = {
            // A put with a lease.
            let mut request = vec![0x22, 6, 0x0a, 2, b'/', b'x', 0x18, 9];
            request.extend([0x08, 1]);
            Bytes::from(request)
        };
        let revoked = Bytes::from_static(&[0x4a, 2, 0x08, 1]);
        let foreign = logged(txn(vec![Compare::new("/x".into(), Expected::Version(0))], vec![put("z", "1")], vec![]));
        let foreign_delete =
            logged(txn(vec![], vec![put("z", "1"), Request::Delete(DeleteRangeRequest { key: "/x".into() })], vec![]));
        for (unknown, why) in [
            (leased, "does not make"),
            (revoked, "does not make"),
            (foreign, "`/x`"),
            (foreign_delete, "`/x`"),
            (Bytes::from_static(b"\xff"), "cannot be read"),
        ] {
            let mut kept = Kept::default();
            let facts = kept.follow(
                &keys(),
                &log(vec![
                    logged(txn(vec![], vec![put("a", "1")], vec![])),
                    unknown,
                    logged(txn(vec![], vec![put("b", "1")], vec![])),
                ]),
            );
            let stopped = facts.stopped.unwrap();
            assert!(stopped.starts_with("entry 9 ") && stopped.contains(why), "{stopped}");
            assert_eq!((facts.entries, shown(&kept).len(), kept.revision), (1, 1, 2));
        }
        // What a log could not be read beyond is said when all before was taken.
        let mut torn = log(vec![logged(txn(vec![], vec![put("a", "1")], vec![]))]);
        torn.damage = Some("cut".to_owned());
        let facts = Kept::default().follow(&keys(), &torn);
        assert_eq!((facts.entries, facts.stopped.as_deref()), (1, Some("cut")));
    }

    #[test]
    fn what_changes_no_key_and_what_was_refused_count_for_nothing() {
        let mut kept = Kept::default();
        let member = Bytes::from_static(&[0x08, 1, 0x12, 3, b'P', b'U', b'T', 0x28, 0]);
        let compaction = Logged { compaction: Some(Bytes::from_static(&[8, 1])), ..Logged::default() };
        let alarm = |action, kind| -> Bytes {
            let alarm = Some(AlarmRequest { action, member: 5, alarm: kind });
            Logged { alarm, ..Logged::default() }.encode_to_vec().into()
        };
        let write = |name: &str| logged(txn(vec![], vec![put(name, "1")], vec![]));
        let all = vec![
            member,
            compaction.encode_to_vec().into(),
            write("a"),
            alarm(BEGIN, FULL),
            write("b"),
            logged(txn(vec![], vec![delete("a")], vec![])),
            alarm(END, FULL),
            write("c"),
        ];
        let facts = kept.follow(&keys(), &log(all));
        assert_eq!((facts.entries, facts.stopped), (8, None));
        assert_eq!(shown(&kept), [("c".to_owned(), 4, 1, "1".to_owned())]);
        let facts = kept.follow(&keys(), &log(vec![alarm(BEGIN, DIFFERENT), write("d")]));
        assert!(facts.stopped.unwrap().contains("damaged"));
        let mut told = Kept::default();
        told.note_alarm(&AlarmMessage { member: 3, alarm: FULL }.encode_to_vec()).unwrap();
        told.follow(&keys(), &log(vec![write("a")]));
        assert!(told.all.is_empty() && told.note_alarm(b"\xff").is_err());
    }
}
