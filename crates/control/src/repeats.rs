//! Calls with a name, which are carried out once however often they are sent.
//!
//! ```text
//!   begin ─┬─ answered before ──────────────────────────────────────────────► the same answer
//!          ├─ the name stands for another request ──────────────────────────► refused
//!          └─ open: the verb runs with a Control that knows the call
//!                     update 0 ─┬─ no record: decide, commit decision AND record, which keeps what the decision returned
//!                               └─ record:    nothing is decided; what was returned then is returned again
//!                     update 1 …
//!             answered: the answer joins the record, and only then leaves
//! ```
//! A crash before the commit leaves nothing, so the repeated call is the first. A crash after it leaves the record: the repeated
//! call runs through the same verb, whose commits are found done, and derives its answer from what they made. A crash after the
//! answer was recorded leaves the answer. Nothing of this needs the process that carried out the first call, and two headnodes
//! that get the same call at once meet in the store: the record is created by one of them only.
//!
//! The rejected alternative, a record of "under way" written before the call, cannot tell after a crash whether the call was
//! carried out. Calls that are refused leave no record and may be sent again, with the same name and other contents.

mod turns;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use model::{
    id::AccountId,
    repeat::{ANSWER_MAX_BYTES, Answer, BOUNDS, Repeat, RepeatKey, to_drop},
};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use store::{Entry, Revision, Snapshot, Transaction};

use self::turns::Turn;
pub(crate) use self::turns::Turns;
use crate::{
    Control, Error, FieldCode, Result,
    tables::{BY_AGE, REPEATS, repeat_key},
};

/// The header that carries the name, and the field that errors name.
pub const FIELD: &str = "Idempotency-Key";
/// How long a call waits for an earlier one of the same name: most take milliseconds, and clients wait a minute.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// After so many answered calls of this process, an account's old ones are looked through: that costs as much as they are many.
const TRIM_EVERY: usize = 64;
/// Records dropped in one commit.
const DROPPED_MAX: usize = 50;

/// One call with a name, on its way through a verb.
#[derive(Debug)]
pub(crate) struct NamedCall {
    account: AccountId,
    key: RepeatKey,
    request: String,
    /// Commits of this call so far.
    commits: AtomicUsize,
}

/// What becomes of a call that was given a name.
pub enum Begun {
    /// It was carried out and answered so, in the door's words.
    Answered(String),
    /// It is to be run.
    Open(OpenCall),
}

/// A named call that runs. As long as it lives, others of its name wait.
pub struct OpenCall {
    /// The control plane that its verbs are to be called with.
    pub control: Control,
    /// Whether it was carried out before, without being answered as far as anybody knows.
    pub repeated: bool,
    call: Arc<NamedCall>,
    _turn: Turn,
}

/// A hash of what is asked for: a repetition must be equal in every part.
pub fn hash(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Begins a call that `account` named `key` and whose contents have the [`hash`] `request`. Waits while one of the same name is
/// under way.
///
/// # Errors
/// [`Error::InProgress`] when that takes too long; [`Error::Invalid`] when the name was given to another request.
pub async fn begin(control: &Control, account: AccountId, key: RepeatKey, request: String) -> Result<Begun> {
    let turn = control.turns.take(&*control.clock, account, &key, WAIT_MAX).await.ok_or(Error::InProgress)?;
    let call = NamedCall { account, key, request, commits: AtomicUsize::new(0) };
    let repeat = call.recorded(control, &control.snapshot())?;
    if let Some(Answer::Kept(answer)) = repeat.as_ref().and_then(|repeat| repeat.answer.as_ref()) {
        return Ok(Begun::Answered(answer.clone()));
    }
    let call = Arc::new(call);
    let control = Control { call: Some(call.clone()), ..control.clone() };
    Ok(Begun::Open(OpenCall { control, repeated: repeat.is_some(), call, _turn: turn }))
}

impl OpenCall {
    /// Records the answer; what is to be sent is returned, which is another one if this call ran elsewhere too and was answered there
    /// first. `None` stands for an answer with secrets in it, which is not recorded and so found anew each time.
    pub async fn answered(self, answer: Option<String>) -> Result<Option<String>> {
        let Self { control, call, .. } = &self;
        let sent = answer.clone();
        let kept = answer.filter(|text| text.len() <= ANSWER_MAX_BYTES).map_or(Answer::FoundAnew, Answer::Kept);
        let line = control.line();
        let stored = line.update(|snapshot| {
            let found = call.recorded(control, snapshot)?;
            if let Some(Answer::Kept(earlier)) = found.as_ref().and_then(|entry| entry.answer.as_ref()) {
                return Ok((Transaction::new(), Some(earlier.clone())));
            }
            let mut repeat = found.map_or_else(|| call.fresh(control), |entry| entry.value.clone());
            repeat.answer = Some(kept.clone());
            // Also on a full disk: a call that works there is repeated as one that worked.
            Ok::<_, Error>((call.write(snapshot, repeat, Transaction::new()).may_use_reserve(), None))
        });
        let earlier = match stored.await {
            Ok((_, earlier)) => earlier,
            // The call was carried out all the same; should it be repeated, its answer is found anew.
            Err(Error::Unavailable(why)) => {
                tracing::warn!(why, "the answer of a call is not remembered");
                None
            }
            Err(error) => return Err(error),
        };
        base::crash::point("repeat.answered");
        if control.turns.count_answered() % TRIM_EVERY == 0 {
            drop_some(control, call.account).await?;
        }
        Ok(earlier.or(sent))
    }
}

impl Control {
    /// Decides on the newest state and commits, as [`store::Store::update`] does; a call with a name does so once: when it is
    /// repeated, nothing is decided, and what the decision returned then is returned. So whatever follows from a decision (the id of
    /// what was made) must be in what it returns.
    pub(crate) async fn update<R: Serialize + DeserializeOwned>(
        &self,
        mut decide: impl FnMut(&Snapshot) -> Result<(Transaction, R)>,
    ) -> Result<(Revision, R)> {
        let Some(call) = &self.call else { return self.line().update(decide).await };
        let position = call.commits.load(Ordering::Relaxed);
        let done = self
            .line()
            .update(|snapshot| {
                let found = call.recorded(self, snapshot)?;
                if let Some(made) = found.as_ref().and_then(|entry| entry.made.get(position)) {
                    let made = serde_json::from_value(made.clone()).map_err(|_| call.other_request())?;
                    return Ok::<_, Error>((Transaction::new(), made));
                }
                let (transaction, made) = decide(snapshot)?;
                let mut repeat = found.map_or_else(|| call.fresh(self), |entry| entry.value.clone());
                repeat.made.push(serde_json::to_value(&made).expect("what a decision returns is plain data"));
                Ok((call.write(snapshot, repeat, transaction), made))
            })
            .await?;
        base::crash::point("repeat.committed");
        call.commits.store(position + 1, Ordering::Relaxed);
        Ok(done)
    }

    /// Whether this call has a name and its next commit was made before: then what is true now may be its own doing.
    pub fn is_repeated(&self) -> bool {
        let Some(call) = &self.call else { return false };
        let found = call.recorded(self, &self.snapshot()).ok().flatten();
        found.is_some_and(|entry| entry.made.len() > call.commits.load(Ordering::Relaxed))
    }
}

impl NamedCall {
    /// What is remembered of this call.
    fn recorded(&self, control: &Control, snapshot: &Snapshot) -> Result<Option<Arc<Entry<Repeat>>>> {
        let found = snapshot.get(&REPEATS, &repeat_key(self.account, self.key.as_str()));
        match found.filter(|entry| !entry.is_stale(control.now())) {
            Some(entry) if entry.request != self.request => Err(self.other_request()),
            found => Ok(found),
        }
    }

    fn other_request(&self) -> Error {
        let why = format!("\"{}\" was given to another request in the last 24 hours; use a new one", self.key);
        Error::field(FIELD, FieldCode::Conflict, why)
    }

    fn fresh(&self, control: &Control) -> Repeat {
        Repeat {
            account: self.account,
            key: self.key.clone(),
            request: self.request.clone(),
            made: Vec::new(),
            answer: None,
            created_at: control.now(),
        }
    }

    /// `transaction` with the record in it. The record is small: a transaction that works on a full disk still does.
    fn write(&self, snapshot: &Snapshot, repeat: Repeat, transaction: Transaction) -> Transaction {
        let takes_reserve = !transaction.is_empty() && transaction.takes_reserve();
        let transaction = match snapshot.get(&REPEATS, &repeat_key(self.account, self.key.as_str())) {
            Some(entry) => transaction.replace(&REPEATS, &entry, repeat),
            None => transaction.create(&REPEATS, repeat),
        };
        if takes_reserve { transaction.may_use_reserve() } else { transaction }
    }
}

/// Forgets what is too old, and of accounts with too many the oldest. Returns how many.
pub async fn trim(control: &Control) -> Result<usize> {
    let mut accounts: Vec<AccountId> = control.snapshot().scan(&REPEATS).map(|repeat| repeat.account).collect();
    // In the order of keys, so equal ones stand together.
    accounts.dedup();
    let mut dropped = 0;
    for account in accounts {
        dropped += drop_some(control, account).await?;
    }
    Ok(dropped)
}

async fn drop_some(control: &Control, account: AccountId) -> Result<usize> {
    let snapshot = control.snapshot();
    let all: Vec<_> = snapshot.ordered(&REPEATS, BY_AGE, &format!("{account}/")).collect();
    let records: Vec<&Repeat> = all.iter().map(|entry| &entry.value).collect();
    let doomed = to_drop(&records, control.now(), BOUNDS);
    for some in doomed.chunks(DROPPED_MAX) {
        let transaction = some.iter().fold(Transaction::new(), |all_of, at| all_of.delete(&REPEATS, &all[*at]));
        match control.store.commit(transaction).await {
            // One of them was used just now; the next pass sees it.
            Ok(_) | Err(store::CommitError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(doomed.len())
}
