//! The journal of one flow, as it is stored, and its pure transitions.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::{Index, Table};
use uuid::Uuid;

use crate::step::{FlowKind, Notes};

/// Longest reason kept in a record, in bytes.
const REASON_BYTES_MAX: usize = 2048;

/// Index of [`FLOWS`] with one key of the same name: flows that run or are being undone.
pub const OPEN: &str = "open";
/// Index of [`FLOWS`] with one key of the same name: flows that have ended.
pub const ENDED: &str = "ended";
/// Index of [`FLOWS`]: the flows of a subject.
pub const BY_SUBJECT: &str = "subject";

/// Every flow by id, which is the order they were made in.
pub static FLOWS: Table<FlowRecord> = Table {
    name: "flows",
    version: 1,
    key: |flow| flow.id.to_string(),
    indexes: &[
        Index { name: OPEN, keys: |flow| flow.state.is_open().then(|| OPEN.to_owned()).into_iter().collect() },
        Index { name: ENDED, keys: |flow| flow.state.is_ended().then(|| ENDED.to_owned()).into_iter().collect() },
        Index { name: BY_SUBJECT, keys: |flow| vec![flow.subject.clone()] },
    ],
    upgrade: |from_version, _| Err(format!("version {from_version} was never written")),
};

/// A flow's name. Ids made later by one process sort later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FlowId(Uuid);

impl FlowId {
    /// A new id (UUID version 7) for a flow made at `now` (milliseconds since the epoch).
    pub fn new(now: i64) -> Self {
        /// Bits of the tail behind the variant.
        const LOW_BITS: u32 = 62;
        let (ms, tail) = base::random::ordered(u64::try_from(now).unwrap_or(0));
        let (high, low) = (tail >> LOW_BITS & 0xfff, tail & ((1 << LOW_BITS) - 1));
        Self(Uuid::from_u128(u128::from(ms) << 80 | 0x7 << 76 | high << 64 | 0b10 << LOW_BITS | low))
    }
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that is no flow id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a flow id")]
pub struct InvalidFlowId(String);

impl FromStr for FlowId {
    type Err = InvalidFlowId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| InvalidFlowId(text.chars().take(64).collect()))
    }
}

/// Where a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowState {
    /// Steps are being done.
    Running,
    /// A step failed; what was done is being undone.
    Undoing,
    /// Every step is done.
    Succeeded,
    /// Everything that was done is undone; `error` says why.
    Failed,
    /// Cannot go on by itself; `error` says why. An operator may let it try again.
    Parked,
}

impl FlowState {
    /// Whether the engine has work with it.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Running | Self::Undoing)
    }

    /// Whether nothing will ever happen to it.
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// Where a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Not done yet; it may have begun.
    Pending,
    /// Done.
    Done,
    /// Failed, and not undone yet.
    Failed,
    /// Was done or had begun, and is undone.
    Undone,
}

/// One step of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The step's name in its kind.
    pub name: String,
    /// Where it is.
    pub state: StepState,
    /// How often it was tried and failed, in doing or in undoing, whichever is going on.
    pub attempts: u32,
    /// When it was first tried; milliseconds since the epoch.
    pub started_at: Option<i64>,
    /// When it was done, failed for good, or undone; milliseconds since the epoch.
    pub ended_at: Option<i64>,
    /// Why it last failed, or what it waits for.
    pub error: Option<String>,
}

/// One flow: what it is to do and how far it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// Its name.
    pub id: FlowId,
    /// [`FlowKind::NAME`] of its kind.
    pub kind: String,
    /// What it works on (an instance's id, say). Flows with the same subject run one after the other; empty: no order.
    pub subject: String,
    /// For whom it works (an account's id, say): who has many flows open does not keep others waiting. Empty: for nobody by name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The kind's input.
    pub input: Value,
    /// What steps left for later steps.
    #[serde(default)]
    pub notes: Notes,
    /// Every step, in order.
    pub steps: Vec<StepRecord>,
    /// Where it is.
    pub state: FlowState,
    /// Why it failed or is parked.
    pub error: Option<String>,
    /// Milliseconds since the epoch.
    pub created_at: i64,
    /// Milliseconds since the epoch.
    pub ended_at: Option<i64>,
}

/// A new flow of kind `K`. Put it into the same transaction as the objects it works on.
///
/// # Panics
/// If `input` cannot be written as JSON (a map whose keys are not texts): the kind is wrong, not its data.
pub fn record_for<K: FlowKind>(id: FlowId, subject: impl Into<String>, input: &K::Input, now: i64) -> FlowRecord {
    let step = |step: crate::step::Step<K>| StepRecord {
        name: step.name.to_owned(),
        state: StepState::Pending,
        attempts: 0,
        started_at: None,
        ended_at: None,
        error: None,
    };
    FlowRecord {
        id,
        kind: K::NAME.to_owned(),
        subject: subject.into(),
        group: String::new(),
        input: serde_json::to_value(input).expect("a flow's input is plain data"),
        notes: Notes::default(),
        steps: K::steps().into_iter().map(step).collect(),
        state: FlowState::Running,
        error: None,
        created_at: now,
        ended_at: None,
    }
}

/// What the engine does next with a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Run(usize),
    Undo(usize),
    End(FlowState),
    Nothing,
}

impl FlowRecord {
    /// The same, working for `group`.
    #[must_use]
    pub fn in_group(self, group: impl Into<String>) -> Self {
        Self { group: group.into(), ..self }
    }

    pub(crate) fn next(&self) -> Next {
        match self.state {
            FlowState::Running => match self.steps.iter().position(|step| step.state != StepState::Done) {
                Some(step) => Next::Run(step),
                None => Next::End(FlowState::Succeeded),
            },
            FlowState::Undoing => {
                let to_undo = |step: &StepRecord| matches!(step.state, StepState::Done | StepState::Failed);
                match self.steps.iter().rposition(to_undo) {
                    Some(step) => Next::Undo(step),
                    None => Next::End(FlowState::Failed),
                }
            }
            FlowState::Succeeded | FlowState::Failed | FlowState::Parked => Next::Nothing,
        }
    }

    /// A step is done or undone; ends the flow when it was the last.
    pub(crate) fn finish_step(&mut self, step: usize, now: i64) {
        let undoing = self.state == FlowState::Undoing;
        let step = &mut self.steps[step];
        step.state = if undoing { StepState::Undone } else { StepState::Done };
        step.attempts = 0;
        step.ended_at = Some(now);
        if !undoing {
            step.error = None;
        }
        self.end_if_over(now);
    }

    /// End the flow when nothing is left to do.
    pub(crate) fn end_if_over(&mut self, now: i64) {
        if let Next::End(state) = self.next() {
            self.state = state;
            self.ended_at = Some(now);
        }
    }

    /// A step has failed for good, or the flow is not wanted any more: begin to undo.
    pub(crate) fn fail_step(&mut self, step: usize, why: &str, now: i64) {
        let why = shorten(why);
        let step = &mut self.steps[step];
        step.state = StepState::Failed;
        step.attempts = 0;
        step.started_at.get_or_insert(now);
        step.ended_at = Some(now);
        step.error = Some(why.clone());
        self.error = Some(format!("{}: {why}", step.name));
        self.state = FlowState::Undoing;
    }

    /// Nothing more can be done with it by itself.
    pub(crate) fn park(&mut self, why: &str) {
        let why = shorten(why);
        self.error = Some(match self.error.take() {
            Some(first) if !first.contains(&why) => format!("{first}; then {why}"),
            Some(first) => first,
            None => why,
        });
        self.state = FlowState::Parked;
    }

    pub(crate) fn note_attempt(&mut self, step: usize, why: &str) {
        let step = &mut self.steps[step];
        step.attempts = step.attempts.saturating_add(1);
        step.error = Some(shorten(why));
    }

    /// The same flow, told to stop and undo what it has done; itself when it is not running. Commit it with
    /// [`replace`](store::Transaction::replace): the engine notices at once, also while the flow waits.
    #[must_use]
    pub fn cancelled(&self, why: &str, now: i64) -> Self {
        let mut record = self.clone();
        if let (FlowState::Running, Next::Run(step)) = (self.state, self.next()) {
            record.fail_step(step, why, now);
        }
        record
    }

    /// The same flow, let loose again when it was parked; itself otherwise.
    #[must_use]
    pub fn unparked(&self) -> Self {
        let mut record = self.clone();
        if self.state == FlowState::Parked {
            let failed = self.steps.iter().any(|step| matches!(step.state, StepState::Failed | StepState::Undone));
            record.state = if failed { FlowState::Undoing } else { FlowState::Running };
            for step in &mut record.steps {
                step.attempts = 0;
            }
            if !failed {
                record.error = None;
            }
        }
        record
    }
}

fn shorten(why: &str) -> String {
    let mut end = why.len().min(REASON_BYTES_MAX);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    why[..end].to_owned()
}
