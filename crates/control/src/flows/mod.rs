//! Flows.
use model::{id::{FlowId, InstanceId, PackageId}, instance::Caller, target::Limits, time::Timestamp};
use serde::{Deserialize, Serialize};
use store::Transaction;

/// What a flow about an instance is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Input {
    /// The instance.
    pub instance: InstanceId,
    /// Who asked.
    pub caller: Caller,
    /// The word for the history.
    pub action: String,
    /// For a resize: what to go back to.
    pub before: Option<Before>,
}

/// Size of an instance before a resize.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Before {
    /// See [`model::instance::Instance::package`].
    pub package: PackageId,
    /// See [`model::instance::Instance::package_name`].
    pub package_name: String,
    /// See [`model::instance::Instance::limits`].
    pub limits: Limits,
}

impl Input {
    pub(crate) fn new(instance: InstanceId, caller: &Caller, action: &str) -> Self {
        Self { instance, caller: caller.clone(), action: action.to_owned(), before: None }
    }
}

/// Kinds of work a flow does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work { Provision, Start, Stop, Reboot, Resize, Nics, Destroy }

/// The transaction that starts a flow.
pub(crate) fn begin(_work: Work, _flow: FlowId, _input: Input, _now: Timestamp) -> Transaction {
    Transaction::new()
}
