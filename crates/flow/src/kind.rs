//! Kinds without their types: what the engine keeps in its table of kinds.

use std::sync::Arc;

use store::{BoxFuture, Snapshot};

use crate::{
    record::FlowRecord,
    step::{At, FlowKind, Notes, Progress, Step, StepError},
};

/// Doing or undoing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The step's body.
    Run,
    /// The step's undo.
    Undo,
}

/// What a call of a step needs beside the kind's own types.
pub(crate) struct Call<'a, C> {
    pub(crate) phase: Phase,
    pub(crate) step: usize,
    pub(crate) context: &'a C,
    pub(crate) notes: &'a mut Notes,
    pub(crate) flow: &'a FlowRecord,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) now: i64,
}

pub(crate) trait AnyKind<C>: Send + Sync {
    /// The steps of `record` with its input understood, or why it cannot be run.
    fn load(&self, record: &FlowRecord) -> Result<Box<dyn AnyFlow<C>>, String>;
    fn steps(&self) -> Vec<&'static str>;
}

pub(crate) trait AnyFlow<C>: Send + Sync {
    fn call<'a>(&'a self, call: Call<'a, C>) -> BoxFuture<'a, Result<Progress, StepError>>;
    fn attempts_max(&self, step: usize) -> u32;
    fn step_name(&self, step: usize) -> &'static str;
}

pub(crate) struct Kind<K: FlowKind> {
    steps: Arc<Vec<Step<K>>>,
}

struct Flow<K: FlowKind> {
    steps: Arc<Vec<Step<K>>>,
    input: K::Input,
}

impl<K: FlowKind> Kind<K> {
    pub(crate) fn new() -> Self {
        Self { steps: Arc::new(K::steps()) }
    }
}

impl<K: FlowKind> AnyKind<K::Context> for Kind<K> {
    fn load(&self, record: &FlowRecord) -> Result<Box<dyn AnyFlow<K::Context>>, String> {
        let recorded = record.steps.iter().map(|step| step.name.as_str());
        if !recorded.eq(self.steps.iter().map(|step| step.name)) {
            return Err(format!(
                "flows of kind `{}` have other steps in this program than in this record",
                record.kind
            ));
        }
        let input = serde_json::from_value(record.input.clone())
            .map_err(|error| format!("the input of this flow is not understood: {error}"))?;
        Ok(Box::new(Flow::<K> { steps: self.steps.clone(), input }))
    }

    fn steps(&self) -> Vec<&'static str> {
        self.steps.iter().map(|step| step.name).collect()
    }
}

impl<K: FlowKind> AnyFlow<K::Context> for Flow<K> {
    fn call<'a>(&'a self, call: Call<'a, K::Context>) -> BoxFuture<'a, Result<Progress, StepError>> {
        let step = &self.steps[call.step];
        let body = match call.phase {
            Phase::Run => Some(&step.run),
            Phase::Undo => step.undo.as_ref(),
        };
        let Some(body) = body else { return Box::pin(std::future::ready(Ok(Progress::Done))) };
        body(At {
            context: call.context,
            input: &self.input,
            notes: call.notes,
            flow: call.flow,
            snapshot: call.snapshot,
            now: call.now,
            attempt: call.flow.steps[call.step].attempts,
        })
    }

    fn attempts_max(&self, step: usize) -> u32 {
        self.steps[step].attempts_max
    }

    fn step_name(&self, step: usize) -> &'static str {
        self.steps[step].name
    }
}
