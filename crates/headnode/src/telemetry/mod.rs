//! What a headnode tells of itself, for Prometheus and for whoever reads plain text.
//!
//! Next to nothing is counted for this alone: flows, headnodes and machines are read from the records, loops and the store from their own
//! accounts, certificates and backups from the disk. Only requests have counters here ([`requests`]). The text is made anew when it is asked for and
//! kept for a moment, so that many who ask cost as much as one.
//!
//! The text format is [`model::metrics`]' own, as for instances and machines; a library for it would bring a second way to say the same.

pub mod families;
mod machine;
mod records;
pub mod requests;
pub mod rules;

use std::{sync::Arc, time::Duration};

use base::histogram::Reading;
use control::{
    Control,
    headnodes::members::{Cluster, KeptIn},
};
use flow::loops::Board;
use model::{
    metrics::{Distribution, Exposition, Family, Labels, Value},
    time::Timestamp,
};
use tokio::time::Instant;

use crate::{backup::Offers, inquiries::Inquiries, names::NameServer, nodelink::NodeCertificates, settings::Settings};

pub use requests::{Door, Requests};

/// For how long a text is good.
const FRESH: Duration = Duration::from_secs(5);
/// How long it may take to hear how the store's members are: more than one that is gone is waited for, so that it is told of and the others with it.
const MEMBERS_PATIENCE: Duration = Duration::from_secs(8);

/// See the head of this file. Clones are one.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    sources: Sources,
    made: tokio::sync::Mutex<Option<(Instant, String)>>,
}

/// What is told of.
#[derive(Clone)]
pub struct Sources {
    /// The records, the store, headnodes and machines.
    pub control: Control,
    /// Where files lie.
    pub settings: Settings,
    /// Requests that were answered.
    pub requests: Requests,
    /// Questions to machines.
    pub inquiries: Inquiries,
    /// What machines showed.
    pub certificates: NodeCertificates,
    /// The loops.
    pub loops: Board,
    /// Kinds of flows.
    pub flow_kinds: Vec<&'static str>,
    /// The name server.
    pub names: NameServer,
    /// Backups that others hold.
    pub offers: Offers,
    /// When this process began.
    pub started_at: Timestamp,
}

impl Telemetry {
    /// Tells of `sources`.
    pub fn new(sources: Sources) -> Self {
        Self(Arc::new(Inner { sources, made: tokio::sync::Mutex::new(None) }))
    }

    /// Everything, some seconds old at most.
    pub async fn text(&self) -> String {
        let mut made = self.0.made.lock().await;
        if let Some((at, text)) = &*made
            && at.elapsed() < FRESH
        {
            return text.clone();
        }
        let (sources, members) = (self.0.sources.clone(), self.members().await);
        // It reads files, and all instances.
        let text = base::task::blocking("telemetry", move || sources.write(members.as_ref())).await;
        *made = Some((Instant::now(), text.clone()));
        text
    }

    /// How the store's members are; nothing where there are none, or most of them are known not to answer.
    async fn members(&self) -> Option<Cluster> {
        let control = &self.0.sources.control;
        let members = control.members().ok().filter(|members| members.kept_in() == KeptIn::Members)?;
        if control.headnodes.lacking().is_some() {
            return None;
        }
        tokio::time::timeout(MEMBERS_PATIENCE, members.status()).await.ok()?.ok()
    }
}

impl Sources {
    fn write(&self, members: Option<&Cluster>) -> String {
        let mut text = Exposition::default();
        machine::process(self, &mut text);
        self.requests.write(&mut text);
        text.one(&families::INQUIRIES, self.inquiries.open() as u64);
        records::write(self, members, &mut text);
        machine::files(self, &mut text);
        machine::names(&self.names, &mut text);
        text.into_text()
    }
}

/// A family and how its number is read from `T`; nothing where it is not known.
type Row<T> = (&'static Family, fn(&T) -> Option<Value>);

/// Writes every row for every subject.
fn rows<T>(rows: &[Row<T>], subjects: &[(Labels, T)], text: &mut Exposition) {
    for (family, read) in rows {
        text.family(family, subjects.iter().filter_map(|(labels, subject)| Some((labels, read(subject)?))));
    }
}

/// Writes a family from what was collected.
fn put(family: &Family, samples: &[(Labels, Value)], text: &mut Exposition) {
    text.family(family, samples.iter().map(|(labels, value)| (labels, *value)));
}

fn flag(is_so: bool) -> Value {
    Value::Count(u64::from(is_so))
}

#[expect(clippy::cast_precision_loss, reason = "a metric may be off by a millionth")]
fn seconds_of_ms(ms: u64) -> Value {
    Value::Real(ms as f64 / 1e3)
}

/// The same with a sign.
#[expect(clippy::cast_precision_loss, reason = "a metric may be off by a millionth")]
fn seconds_of_signed_ms(ms: i64) -> Value {
    Value::Real(ms as f64 / 1e3)
}

#[expect(clippy::cast_precision_loss, reason = "a metric may be off by a millionth")]
fn distribution(read: &Reading) -> Distribution {
    let seconds = |us: u64| us as f64 / 1e6;
    Distribution {
        up_to: read.up_to.iter().map(|(bound, count)| (seconds(*bound), *count)).collect(),
        count: read.count,
        sum: seconds(read.sum_us),
    }
}

#[cfg(test)]
mod tests;
