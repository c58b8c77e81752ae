//! Flows: what a person waits for.
//!
//! A verb has changed the intent already, in the commit that made the flow; nothing is left to *do*. A flow waits until the
//! machine's facts say what was asked for, then writes the outcome into the instance's history. If they do not in time, or say that
//! it cannot be, the flow's undo writes why, and takes back what would otherwise stay half done: a failed provision is
//! told to leave no trace, a failed resize gets its old size again.
//!
//! ```text
//!   verb: intent + flow, one commit ──► judge(intent, fact) ─┬─ not yet: sleep until the record changes
//!                                                          ├─ done: history, end of flow, one commit
//!                                                          └─ failed: undo, history, end of flow, one commit
//! ```
//!
//! Every kind is one [`Work`]: a name, a deadline, a pure judgement, and what its undo changes. Flows of one instance run
//! one after the other, so a later verb's flow waits until the earlier one has found itself overtaken.

mod works;

use std::{marker::PhantomData, sync::Arc, time::Duration};

use flow::{At, FLOWS, FlowKind, FlowRecord, Progress, Step, StepError, Wait};
use model::{
    id::{FlowId, InstanceId, PackageId},
    instance::{AuditEntry, Caller, Instance, Wanted},
    target::{Limits, Phase},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use store::{Entry, Snapshot, Transaction};

use crate::{
    Control, Error, Result,
    headnodes::{HeadnodeAdd, HeadnodeRemove},
    tables::INSTANCES,
};

pub use works::{Destroy, Metadata, Nics, Provision, Reboot, Resize, Start, Stop};

/// Archived flows listed at once.
pub const ARCHIVED_MAX: usize = 10_000;

/// What a flow about an instance is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// The instance.
    pub instance: InstanceId,
    /// Who asked.
    pub caller: Caller,
    /// The word for the history.
    pub action: String,
    /// Value of [`model::instance::Intent::starts`] that was asked for.
    pub starts: u64,
    /// Value of [`model::instance::Intent::reboots`] that was asked for.
    pub reboots: u64,
    /// Value of [`Instance::metadata_edits`] that was asked for.
    #[serde(default)]
    pub metadata_edits: u64,
    /// Its machine had given it up before this was asked for, so that alone means nothing.
    pub failed_before: bool,
    /// Limits that were asked for.
    pub limits: Limits,
    /// For a resize: what to go back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
}

/// Size of an instance before a resize.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Before {
    /// See [`Instance::package`].
    pub package: PackageId,
    /// See [`Instance::package_name`].
    pub package_name: String,
    /// See [`Instance::limits`].
    pub limits: Limits,
}

/// A kind of waiting.
pub trait Work: Send + Sync + 'static {
    /// Name of the kind of flow. A released kind is not edited: a changed one gets a new name.
    const NAME: &'static str;
    /// Name of its one step.
    const STEP: &'static str;

    /// How long it may take: as long as a change of an instance that is there, unless the work says otherwise.
    fn deadline(control: &Control) -> Duration {
        works::millis(control.config.change_deadline_ms)
    }

    /// What intent and fact say of it.
    fn judge(instance: &Instance, input: &Input) -> Verdict;

    /// What to change in the record when it is done, besides the history.
    fn done(_instance: &mut Instance, _now: Timestamp) -> Vec<Phase> {
        Vec::new()
    }

    /// What to take back when it failed, besides the history.
    fn failed(
        _control: &Control,
        _snapshot: &Snapshot,
        _instance: &mut Instance,
        _input: &Input,
        _why: &str,
    ) -> Transaction {
        Transaction::new()
    }
}

/// What intent and fact say of a work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// What is waited for.
    NotYet(&'static str),
    /// It is so.
    Done,
    /// It will not be so, and why.
    Failed(String),
}

/// The flow of a [`Work`].
pub struct Waiting<W>(PhantomData<W>);

impl<W: Work> FlowKind for Waiting<W> {
    const NAME: &'static str = W::NAME;
    type Input = Input;
    type Context = Control;

    fn steps() -> Vec<Step<Self>> {
        let step = Step::new(W::STEP, |at| Box::pin(std::future::ready(run::<W>(&at))));
        vec![step.undo(|at| Box::pin(std::future::ready(Ok(undo::<W>(&at)))))]
    }
}

/// Makes `engine` know every kind of flow of this crate.
#[must_use]
pub fn register(engine: flow::Engine<Control>) -> flow::Engine<Control> {
    engine
        .register::<Waiting<Provision>>()
        .register::<Waiting<Start>>()
        .register::<Waiting<Stop>>()
        .register::<Waiting<Reboot>>()
        .register::<Waiting<Resize>>()
        .register::<Waiting<Nics>>()
        .register::<Waiting<Metadata>>()
        .register::<Waiting<Destroy>>()
        .register::<HeadnodeAdd>()
        .register::<HeadnodeRemove>()
}

/// Flows, newest first: all, or those about one subject (an instance's id).
pub fn list(control: &Control, subject: Option<&str>, limit: usize) -> Vec<Arc<Entry<FlowRecord>>> {
    let snapshot = control.snapshot();
    let mut flows: Vec<_> = match subject {
        Some(subject) => snapshot.find(&FLOWS, flow::record::BY_SUBJECT, subject).collect(),
        None => snapshot.scan(&FLOWS).collect(),
    };
    flows.reverse();
    flows.truncate(limit);
    flows
}

/// Flows that have left the store, newest first: all, or those about one subject. At most `limit`, which is held to
/// [`ARCHIVED_MAX`].
pub async fn archived(control: &Control, subject: Option<String>, limit: usize) -> Result<Vec<FlowRecord>> {
    let Some(archive) = &control.archive else { return Ok(Vec::new()) };
    let read = |line: &str| serde_json::from_str::<FlowRecord>(line).ok();
    let wanted = move |line: &str| match &subject {
        // The text first: most lines are about others, and need not be understood.
        Some(subject) => line.contains(subject.as_str()) && read(line).is_some_and(|flow| flow.subject == *subject),
        None => true,
    };
    let lines = archive.newest(flow::trim::ARCHIVE_KIND, limit.min(ARCHIVED_MAX), wanted).await;
    let lines = lines.map_err(|error| Error::Unavailable(base::errors::chain(&error)))?;
    let mut flows: Vec<FlowRecord> = lines.iter().filter_map(|line| read(line)).collect();
    flows.sort_by_key(|flow| std::cmp::Reverse(flow.id));
    // A crash between archive and store archives some twice.
    flows.dedup_by_key(|flow| flow.id);
    Ok(flows)
}

/// One flow.
pub fn get(control: &Control, id: &str) -> Result<Arc<Entry<FlowRecord>>> {
    control.snapshot().get(&FLOWS, id).ok_or_else(|| Error::not_found("flow", id))
}

/// A new flow of kind `W` about `instance`, whose intent has been changed already: notes it in the record, and returns
/// the transaction that makes it.
pub(crate) fn begin<W: Work>(
    instance: &mut Instance,
    caller: &Caller,
    action: &str,
    before: Option<Before>,
    now: Timestamp,
) -> Transaction {
    let input = Input {
        instance: instance.id,
        caller: caller.clone(),
        action: action.to_owned(),
        starts: instance.intent.starts,
        reboots: instance.intent.reboots,
        metadata_edits: instance.metadata_edits,
        failed_before: instance.fact.as_ref().is_some_and(works::is_given_up),
        limits: instance.limits.clone(),
        before,
    };
    let id = flow::FlowId::new(now.0);
    instance.flow = id.to_string().parse::<FlowId>().ok();
    let record = flow::record_for::<Waiting<W>>(id, instance.id.to_string(), &input, now.0);
    Transaction::new().create(&FLOWS, record.in_group(instance.owner.to_string()))
}

fn run<W: Work>(at: &At<'_, Waiting<W>>) -> Result<Progress, StepError> {
    let key = at.input.instance.to_string();
    let Some(entry) = at.snapshot.get(&INSTANCES, &key) else {
        return Err(StepError::Fail("the instance's record is gone".to_owned()));
    };
    if entry.is_lost() {
        return Err(StepError::Fail(crate::rebuild::LOST.to_owned()));
    }
    match W::judge(&entry, at.input) {
        Verdict::NotYet(what) => Ok(Wait::within(W::deadline(at.context), what).on(&INSTANCES, key).into()),
        Verdict::Failed(why) => Err(StepError::Fail(why)),
        Verdict::Done => {
            let (input, flow, now) = (at.input.clone(), at.flow.id, Timestamp(at.now));
            Ok(Progress::decide(move |snapshot| {
                let Some(entry) = snapshot.get(&INSTANCES, &key) else { return Ok(Transaction::new()) };
                let mut instance = entry.value.clone();
                let timeline = W::done(&mut instance, now);
                conclude(&mut instance, flow, &input, now, None, timeline);
                Ok(Transaction::new().replace(&INSTANCES, &entry, instance).may_use_reserve())
            }))
        }
    }
}

fn undo<W: Work>(at: &At<'_, Waiting<W>>) -> Progress {
    let (control, input, flow) = (at.context.clone(), at.input.clone(), at.flow.id);
    let (now, key) = (Timestamp(at.now), at.input.instance.to_string());
    let first = at.flow.steps.first();
    let why = first.and_then(|step| step.error.clone()).unwrap_or_else(|| "it was given up".to_owned());
    Progress::decide(move |snapshot| {
        let Some(entry) = snapshot.get(&INSTANCES, &key) else { return Ok(Transaction::new()) };
        let mut instance = entry.value.clone();
        let taken_back = W::failed(&control, snapshot, &mut instance, &input, &why);
        conclude(&mut instance, flow, &input, now, Some(why.clone()), Vec::new());
        Ok(taken_back.replace(&INSTANCES, &entry, instance).may_use_reserve())
    })
}

/// The line in the history, and the end of the flow.
fn conclude(
    instance: &mut Instance,
    flow: flow::FlowId,
    input: &Input,
    now: Timestamp,
    error: Option<String>,
    timeline: Vec<Phase>,
) {
    if instance.flow.is_some_and(|current| current.to_string() == flow.to_string()) {
        instance.flow = None;
    }
    instance.record(AuditEntry {
        action: input.action.clone(),
        success: error.is_none(),
        time: now,
        caller: input.caller.clone(),
        error,
        timeline,
    });
}

/// Why a work that wants the instance to be `wanted` cannot succeed any more, when something else was asked for since.
fn overtaken(instance: &Instance, wanted: Wanted) -> Option<Verdict> {
    let by = match instance.intent.wanted {
        now if now == wanted => return None,
        Wanted::Running => "overtaken by a later start",
        Wanted::Stopped => "overtaken by a later stop",
        Wanted::Absent => "overtaken by the deletion of the instance",
    };
    Some(Verdict::Failed(by.to_owned()))
}
