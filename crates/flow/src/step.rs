//! What a kind of flow declares: its input, its context, its steps.
//!
//! A step looks at a snapshot and says what comes of it: done, done with these changes, not yet, or failed. It may run more than once with
//! the same effect, and it does not wait by sleeping: it names the records it waits for.
//!
//! ```text
//! fn steps() -> Vec<Step<Self>> {
//!     vec![
//!         Step::new("assign", |at| Box::pin(assign(at))).undo(|at| Box::pin(unassign(at))),
//!         Step::new("await_running", |at| Box::pin(await_running(at))),
//!     ]
//! }
//! async fn await_running(at: At<'_, Provision>) -> Result<Progress, StepError> { … }
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use store::{BoxFuture, Snapshot, Table, Transaction};

use crate::record::FlowRecord;

/// Tries of a step that answers [`StepError::Retry`] before it counts as failed, unless the step says otherwise.
pub const ATTEMPTS_DEFAULT: u32 = 10;

/// A kind of flow. A kind that was released is not edited: a changed one gets a new name (`provision-2`), so that flows begun by an
/// older program still find their steps.
pub trait FlowKind: Send + Sync + Sized + 'static {
    /// Name in records.
    const NAME: &'static str;
    /// What it is to do.
    type Input: Serialize + DeserializeOwned + Clone + Send + Sync + 'static;
    /// What its steps may use.
    type Context: Send + Sync + 'static;
    /// In order. Names are unique within the kind.
    fn steps() -> Vec<Step<Self>>;
}

/// What a step's body is called with, and gives.
pub type Body<K> = Box<dyn for<'a> Fn(At<'a, K>) -> BoxFuture<'a, Result<Progress, StepError>> + Send + Sync>;

/// One step.
pub struct Step<K: FlowKind> {
    /// Its name in records.
    pub name: &'static str,
    pub(crate) run: Body<K>,
    pub(crate) undo: Option<Body<K>>,
    pub(crate) attempts_max: u32,
}

impl<K: FlowKind> Step<K> {
    /// A step without undo: what it does needs none, or another step's undo covers it.
    pub fn new(
        name: &'static str,
        run: impl for<'a> Fn(At<'a, K>) -> BoxFuture<'a, Result<Progress, StepError>> + Send + Sync + 'static,
    ) -> Self {
        Self { name, run: Box::new(run), undo: None, attempts_max: ATTEMPTS_DEFAULT }
    }

    /// How to take it back. Called also when the step had only begun.
    #[must_use]
    pub fn undo(
        mut self,
        undo: impl for<'a> Fn(At<'a, K>) -> BoxFuture<'a, Result<Progress, StepError>> + Send + Sync + 'static,
    ) -> Self {
        self.undo = Some(Box::new(undo));
        self
    }

    /// How often it may answer [`StepError::Retry`], the last time included.
    #[must_use]
    pub fn attempts(mut self, attempts_max: u32) -> Self {
        self.attempts_max = attempts_max.max(1);
        self
    }
}

/// Where a step stands when it is called.
pub struct At<'a, K: FlowKind> {
    /// What the kind's steps may use.
    pub context: &'a K::Context,
    /// What the flow is to do.
    pub input: &'a K::Input,
    /// What earlier steps left, and this one leaves.
    pub notes: &'a mut Notes,
    /// The flow itself: id, subject, what went before, why it is being undone.
    pub flow: &'a FlowRecord,
    /// The newest durable state. A step that waits must look at this one and no other.
    pub snapshot: &'a Snapshot,
    /// Milliseconds since the epoch.
    pub now: i64,
    /// How often this step has failed before.
    pub attempt: u32,
}

/// What steps leave for later steps: small JSON values by name. Journaled with the step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Notes(Map<String, Value>);

impl Notes {
    /// What was left under `name`; `None` also when it is of another type.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        T::deserialize(self.0.get(name)?).ok()
    }

    /// Leave `value` under `name`.
    ///
    /// # Panics
    /// If it cannot be written as JSON.
    pub fn set<T: Serialize>(&mut self, name: &str, value: T) {
        let value = serde_json::to_value(value).expect("a note is plain data");
        self.0.insert(name.to_owned(), value);
    }
}

/// Decides what to commit, on the newest state; runs again when somebody was faster.
pub type Decision = Box<dyn FnMut(&Snapshot) -> Result<Transaction, StepError> + Send>;

/// What came of a step.
pub enum Progress {
    /// It is done, and no record changes.
    Done,
    /// It is done when this is committed, together with the journal. On a conflict the step runs again.
    Commit(Transaction),
    /// It is done when what this decides is committed, together with the journal. Better than [`Progress::Commit`] where many flows
    /// change one record.
    Decide(Decision),
    /// Not yet: run it again when one of these records changes.
    Wait(Wait),
}

impl Progress {
    /// [`Progress::Decide`].
    pub fn decide(decision: impl FnMut(&Snapshot) -> Result<Transaction, StepError> + Send + 'static) -> Self {
        Self::Decide(Box::new(decision))
    }
}

/// What a step waits for.
#[derive(Debug, Clone)]
pub struct Wait {
    pub(crate) reason: String,
    pub(crate) within: Duration,
    pub(crate) keys: Vec<(&'static str, String)>,
}

impl Wait {
    /// Wait at most `within`, counted from when the step was first tried; then the step fails. `reason` says for what
    /// ("the server to report the zone running").
    pub fn within(within: Duration, reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), within, keys: Vec::new() }
    }

    /// Run the step again when the record under `key` appears, changes or goes.
    #[must_use]
    pub fn on<T>(mut self, table: &'static Table<T>, key: impl Into<String>) -> Self {
        self.keys.push((table.name, key.into()));
        self
    }
}

impl From<Wait> for Progress {
    fn from(wait: Wait) -> Self {
        Self::Wait(wait)
    }
}

/// Why a step did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// It may work later.
    #[error("{0}")]
    Retry(String),
    /// It will not work; undo.
    #[error("{0}")]
    Fail(String),
}
