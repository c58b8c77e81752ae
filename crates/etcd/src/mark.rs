//! Finding out whether a commit happened.
//!
//! Everybody who commits has a *mark*: one key of its own, written by each of its commits in the same transaction, and each commit
//! checks that the mark is as the one before left it. That gives three things etcd alone does not:
//!
//! ```text
//!   commit:  if mark is at revision M and the checks hold:  write all, mark := written N
//!            else, if mark is at revision M:                           mark := refused N
//!
//!   answer lost ──► settle:  if mark is at revision M:  mark := fenced N     (N never happened, and now never can)
//!                            else read it:  written N → it happened, refused N → a check failed
//! ```
//! - An answer that was lost is found out, and not by looking alone: a commit that still lies in a frozen leader's queue can come
//!   true after somebody looked. The fence makes it fail.
//! - A commit that is tried again cannot happen twice.
//! - Every commit makes a revision and an event under our prefix, also one that only deletes what is not there, and also one that is
//!   refused. So a revision that was named to somebody is one the watch will show.
//!
//! Whoever opens the store under a name takes its mark over, which fences what an earlier process of that name left in the air.
//!
//! Rejected: a key per commit (somebody must clear them away), and comparing the written values afterwards (a later commit may have
//! overwritten them, and a commit that only checks leaves nothing).

use bytes::Bytes;

use crate::messages::{
    Compare, DeleteRangeRequest, Expected, PutRequest, RangeRequest, Request, RequestOp, TxnRequest, TxnResponse,
};

/// One attempt's own number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Nonce(pub(crate) u128);

/// What a mark says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Taken,
    Written,
    Refused,
    Fenced,
}

/// A mark, as the one who commits under it knows it.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    pub(crate) key: Bytes,
    /// Revision of its last change; 0 when it does not exist.
    pub(crate) revision: i64,
}

/// How one attempt ended. Each but the last brings the revision at which the mark is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It happened.
    Written(i64),
    /// A check failed.
    Refused(i64),
    /// It did not happen and cannot any more.
    Fenced(i64),
    /// The mark is somebody else's now.
    Superseded,
}

/// What is to be done if all holds.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) compare: Vec<Compare>,
    pub(crate) operations: Vec<RequestOp>,
}

impl Work {
    /// The key must be at `revision`; `None`: it must not exist.
    pub(crate) fn check(&mut self, key: Bytes, revision: Option<i64>) {
        self.compare.push(Compare::new(key, Expected::ModRevision(revision.unwrap_or(0))));
    }

    /// Put, or delete without a value.
    pub(crate) fn write(&mut self, key: Bytes, value: Option<Bytes>) {
        let request = match value {
            Some(value) => Request::Put(PutRequest { key, value }),
            None => Request::Delete(DeleteRangeRequest { key }),
        };
        self.operations.push(request.into());
    }
}

impl Mark {
    /// Do `work` under this mark.
    pub(crate) fn commit(&self, nonce: Nonce, work: Work) -> TxnRequest {
        let Work { mut compare, operations: mut success } = work;
        compare.push(self.unchanged());
        success.push(self.put(Word::Written, nonce));
        let refuse = self.or_read(Word::Refused, nonce);
        TxnRequest { compare, success, failure: vec![Request::Txn(refuse).into()] }
    }

    /// Make sure that attempt `nonce` has happened or never will.
    pub(crate) fn settle(&self, nonce: Nonce) -> TxnRequest {
        self.or_read(Word::Fenced, nonce)
    }

    /// Make the mark ours, if it is as it was read.
    pub(crate) fn take(&self, nonce: Nonce) -> TxnRequest {
        self.or_read(Word::Taken, nonce)
    }

    /// The answer to [`Mark::commit`].
    pub(crate) fn committed(&self, nonce: Nonce, answer: &TxnResponse) -> Result<Verdict, Unclear> {
        if answer.succeeded {
            return Ok(Verdict::Written(revision_of(answer)?));
        }
        let refused = answer.responses.first().and_then(|response| response.txn.as_ref()).ok_or(Unclear)?;
        match refused.succeeded {
            // The outer answer's revision is that of the whole transaction.
            true => Ok(Verdict::Refused(revision_of(answer)?)),
            false => self.read(nonce, refused),
        }
    }

    /// The answer to [`Mark::settle`].
    pub(crate) fn settled(&self, nonce: Nonce, answer: &TxnResponse) -> Result<Verdict, Unclear> {
        match answer.succeeded {
            true => Ok(Verdict::Fenced(revision_of(answer)?)),
            false => self.read(nonce, answer),
        }
    }

    /// The answer to [`Mark::take`]: its revision now, and whether it is ours.
    pub(crate) fn taken(&self, nonce: Nonce, answer: &TxnResponse) -> Result<(i64, bool), Unclear> {
        if answer.succeeded {
            return Ok((revision_of(answer)?, true));
        }
        let kv = first_value(answer)?;
        Ok(kv.map_or((0, false), |(revision, value)| (revision, value == word(Word::Taken, nonce))))
    }

    /// The key itself.
    pub(crate) fn look(&self) -> RangeRequest {
        RangeRequest { key: self.key.clone(), ..RangeRequest::default() }
    }

    fn read(&self, nonce: Nonce, answer: &TxnResponse) -> Result<Verdict, Unclear> {
        let Some((revision, value)) = first_value(answer)? else { return Ok(Verdict::Superseded) };
        let known = [
            (Word::Written, Verdict::Written(revision)),
            (Word::Refused, Verdict::Refused(revision)),
            (Word::Fenced, Verdict::Fenced(revision)),
        ];
        let found = known.into_iter().find(|(what, _)| value == word(*what, nonce));
        Ok(found.map_or(Verdict::Superseded, |(_, verdict)| verdict))
    }

    fn unchanged(&self) -> Compare {
        Compare::new(self.key.clone(), Expected::ModRevision(self.revision))
    }

    fn put(&self, what: Word, nonce: Nonce) -> RequestOp {
        Request::Put(PutRequest { key: self.key.clone(), value: word(what, nonce) }).into()
    }

    fn or_read(&self, what: Word, nonce: Nonce) -> TxnRequest {
        TxnRequest {
            compare: vec![self.unchanged()],
            success: vec![self.put(what, nonce)],
            failure: vec![Request::Range(self.look()).into()],
        }
    }
}

/// An answer that etcd does not give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("etcd's answer lacks what was asked for")]
pub(crate) struct Unclear;

fn revision_of(answer: &TxnResponse) -> Result<i64, Unclear> {
    answer.header.as_ref().map(|header| header.revision).filter(|revision| *revision > 0).ok_or(Unclear)
}

fn first_value(answer: &TxnResponse) -> Result<Option<(i64, Bytes)>, Unclear> {
    let range = answer.responses.first().and_then(|response| response.range.as_ref()).ok_or(Unclear)?;
    Ok(range.kvs.first().map(|kv| (kv.mod_revision, kv.value.clone())))
}

fn word(what: Word, nonce: Nonce) -> Bytes {
    let what = match what {
        Word::Taken => "taken",
        Word::Written => "written",
        Word::Refused => "refused",
        Word::Fenced => "fenced",
    };
    Bytes::from(format!("{what} {:032x}", nonce.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{Header, KeyValue, RangeResponse, ResponseOp};

    fn mark() -> Mark {
        Mark { key: Bytes::from_static(b"m"), revision: 7 }
    }

    fn answer(succeeded: bool, revision: i64, responses: Vec<ResponseOp>) -> TxnResponse {
        TxnResponse { header: Some(Header { member_id: 1, revision }), succeeded, responses }
    }

    fn found(value: Option<Bytes>) -> ResponseOp {
        let kvs =
            value.map(|value| KeyValue { key: "m".into(), mod_revision: 9, version: 1, value }).into_iter().collect();
        ResponseOp { range: Some(RangeResponse { header: None, kvs, more: false }), txn: None }
    }

    #[test]
    fn a_lost_answer_is_told_from_the_mark() {
        let (ours, other) = (Nonce(1), Nonce(2));
        let settled = |value| mark().settled(ours, &answer(false, 20, vec![found(value)])).unwrap();
        assert_eq!(mark().settled(ours, &answer(true, 8, vec![])), Ok(Verdict::Fenced(8)));
        assert_eq!(settled(Some(word(Word::Written, ours))), Verdict::Written(9));
        assert_eq!(settled(Some(word(Word::Refused, ours))), Verdict::Refused(9));
        assert_eq!(settled(Some(word(Word::Fenced, ours))), Verdict::Fenced(9));
        assert_eq!(settled(Some(word(Word::Written, other))), Verdict::Superseded);
        assert_eq!(settled(Some(word(Word::Taken, other))), Verdict::Superseded);
        assert_eq!(settled(None), Verdict::Superseded);
    }

    #[test]
    fn a_commits_answer_is_understood() {
        let nonce = Nonce(1);
        let nested = |inner| ResponseOp { range: None, txn: Some(inner) };
        let committed = |answer| mark().committed(nonce, &answer);
        assert_eq!(committed(answer(true, 8, vec![])), Ok(Verdict::Written(8)));
        assert_eq!(committed(answer(false, 8, vec![nested(answer(true, 0, vec![]))])), Ok(Verdict::Refused(8)));
        let taken_over = answer(false, 8, vec![nested(answer(false, 0, vec![found(Some("x".into()))]))]);
        assert_eq!(committed(taken_over), Ok(Verdict::Superseded));
        assert_eq!(committed(answer(false, 8, vec![])), Err(Unclear));
        assert_eq!(committed(TxnResponse { succeeded: true, ..TxnResponse::default() }), Err(Unclear));
    }

    #[test]
    fn every_branch_depends_on_the_mark() {
        let mut work = Work::default();
        work.check("a".into(), Some(3));
        work.write("a".into(), None);
        let commit = mark().commit(Nonce(1), work);
        let unchanged = Compare::new("m".into(), Expected::ModRevision(7));
        assert_eq!(commit.compare.last(), Some(&unchanged));
        assert_eq!(commit.success.len(), 2);
        let Some(Request::Txn(refusal)) = &commit.failure[0].request else { panic!("{:?}", commit.failure) };
        assert_eq!(refusal.compare, [unchanged]);
    }
}
