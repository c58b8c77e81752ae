//! What instances use now, as counters: `GET /:account/stats`, which is ours. Two answers make rates ([`model::rates`]).

use std::borrow::Cow;

use model::{id::InstanceId, meters::InstanceMeters, rates::Moment, time::Timestamp};
use serde::{Deserialize, Serialize};

/// An instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stats<'a> {
    /// Which.
    pub id: InstanceId,
    /// Its name.
    pub name: Cow<'a, str>,
    /// Its state.
    pub state: Cow<'a, str>,
    /// When its counters were read; `None` when they were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// When that was by a clock that nobody sets, milliseconds: for rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_ms: Option<u64>,
    /// Its counters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meters: Option<Cow<'a, InstanceMeters>>,
    /// Why they were not read, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<Cow<'a, str>>,
}

impl Stats<'_> {
    /// When its counters were read, and the counters.
    pub fn look(&self) -> Option<(Moment, &InstanceMeters)> {
        Some((Moment { at: self.at?, up_ms: self.up_ms }, self.meters.as_deref()?))
    }
}
