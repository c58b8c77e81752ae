//! What machines have added up is counted: each is asked for the hours that have ended since it was asked last.
//!
//! One headnode asks, the first of those that work; a second that asks too does no harm ([`control::usage`]). A machine keeps its hours for
//! weeks, so one that was away, or a datacenter without headnodes for that long, or one restored from a backup, catches up by
//! itself. What a machine takes along when it is lost for good are the hours since it was asked last: as a rule the one it was in.
//!
//! What machines say is believed within bounds: hours in their order and none that is to come, as large as hours may be, rows for the owners
//! of instances. One whose hours are not taken stops nobody else's.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base::errors::chain;
use control::{Control, usage};
use flow::loops::Loop;
use futures_util::{StreamExt as _, stream};
use model::{
    id::ServerId,
    state::Reachability,
    usage::{Hour, HourUsage},
};
use nodeapi::inquiry::{Answer, Question};
use store::BoxFuture;

use crate::inquiries::{AskError, Inquiries};

/// Between two looks at who has ended an hour; only those who have are asked.
const PERIOD: Duration = Duration::from_secs(30);
/// How long a pass may take; the next one takes the rest.
const DEADLINE: Duration = Duration::from_secs(600);
/// Machines asked at once.
const AT_ONCE: usize = 8;
/// Questions to one machine in a pass: a month and more of a large machine.
const PAGES_MAX: usize = 64;

/// Counts.
pub(crate) struct CountUsage {
    control: Control,
    inquiries: Inquiries,
    /// Why hours of machines were not counted in the last pass, so that each reason is logged once. Leaf data.
    failing: Mutex<BTreeMap<ServerId, String>>,
}

impl CountUsage {
    /// For the machines of a control plane.
    pub(crate) fn new(control: &Control, inquiries: &Inquiries) -> Self {
        Self { control: control.clone(), inquiries: inquiries.clone(), failing: Mutex::default() }
    }

    async fn run(&self) -> Result<String, control::Error> {
        let control = &self.control;
        if !control.headnodes.roster().is_first() {
            return Ok(String::new());
        }
        let is_there = |server: ServerId| control.nodes.reachability(server, control.now()) == Reachability::Reachable;
        let mut open = usage::behind(control, control.now());
        open.retain(|(server, _)| is_there(*server));
        let asks = open.into_iter().map(async |(server, through)| (server, self.catch_up(server, through).await));
        let mut asks = stream::iter(asks).buffer_unordered(AT_ONCE);
        let (mut hours, mut failed, mut unwritten) = (0, BTreeMap::new(), None);
        while let Some((server, outcome)) = asks.next().await {
            match outcome {
                Ok(counted) => hours += counted,
                Err(Trouble::Asking(error)) => _ = failed.insert(server, chain(&error)),
                Err(Trouble::Counting(error)) => {
                    failed.insert(server, chain(&error));
                    unwritten = Some(error);
                }
            }
        }
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        for (server, why) in failed.iter().filter(|(server, why)| failing.get(server) != Some(*why)) {
            tracing::warn!(%server, why, "what the instances of a machine used is not counted; it is asked again");
        }
        *failing = failed;
        drop(failing);
        // The store refuses: the loop has failed, whatever was counted beside.
        if let Some(error) = unwritten {
            return Err(error);
        }
        Ok(if hours == 0 { String::new() } else { format!("counted {hours} hours of machines") })
    }

    /// Counts what a machine has after `through`. Returns how many hours.
    async fn catch_up(&self, server: ServerId, through: Option<Hour>) -> Result<usize, Trouble> {
        let (mut after, mut counted) = (through, 0);
        for _ in 0..PAGES_MAX {
            let answer = self.inquiries.ask(server, Question::Usage { after }).await.map_err(Trouble::Asking)?;
            let Answer::Usage(page) = answer else {
                return Err(Trouble::Asking(AskError::Refused(format!("server {server} answered another question"))));
            };
            let in_order = page.hours.iter().map(|usage| Some(usage.hour)).is_sorted_by(|one, next| one < next);
            if !in_order || page.hours.first().is_some_and(|first| Some(first.hour) <= after) {
                return Err(Trouble::Asking(AskError::Refused(format!("server {server} answered hours out of order"))));
            }
            let present = Hour::of(self.control.now());
            for usage in &page.hours {
                if usage.hour > present {
                    let why =
                        format!("server {server} tells of {}, which is yet to come; look at its clock", usage.hour);
                    return Err(Trouble::Asking(AskError::Refused(why)));
                }
                usage.check().map_err(|why| {
                    Trouble::Asking(AskError::Refused(format!("server {server} tells too much: {why}")))
                })?;
                self.count(server, usage).await?;
                after = Some(usage.hour);
                counted += 1;
            }
            if !page.more || page.hours.is_empty() {
                break;
            }
        }
        Ok(counted)
    }

    async fn count(&self, server: ServerId, hour: &HourUsage) -> Result<(), Trouble> {
        let refused = usage::count(&self.control, server, hour).await.map_err(Trouble::Counting)?;
        if refused > 0 {
            tracing::warn!(%server, hour = %hour.hour, refused, "a machine bills accounts for instances that are not theirs; nobody pays");
        }
        Ok(())
    }
}

/// Why a machine's hours are not counted.
enum Trouble {
    /// It does not say.
    Asking(AskError),
    /// They cannot be written down.
    Counting(control::Error),
}

impl Loop for CountUsage {
    fn name(&self) -> &'static str {
        "count usage"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    fn deadline(&self) -> Duration {
        DEADLINE
    }

    fn pass(&self) -> BoxFuture<'_, Result<String, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(async { Ok(self.run().await?) })
    }
}

#[cfg(test)]
mod tests;
