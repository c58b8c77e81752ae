//! `neso instance changes`: what happens to one's instances, as it happens and since one last looked.

use std::collections::BTreeSet;

use cloudapi::types::changefeed::{Change, Note, Registration, Since, Told};
use model::time::Timestamp;

use super::Tenant;
use crate::{
    adm::Output,
    answer,
    failure::{Failure, Outcome},
};

/// What to listen to.
#[derive(Debug, clap::Args)]
pub(crate) struct Listen {
    /// Begin after this cursor, which an earlier run printed; an empty text begins with every instance there is. By default, only what
    /// happens from now on is shown.
    #[arg(long, value_name = "CURSOR")]
    since: Option<String>,
    /// End once everything up to now was shown.
    #[arg(long)]
    once: bool,
    /// Only these instances: ids, short ids or names.
    instances: Vec<String>,
}

impl Listen {
    /// It goes on until it is interrupted.
    pub(super) const fn is_endless(&self) -> bool {
        !self.once
    }
}

/// Runs it, until it is interrupted unless it is to end.
pub(super) async fn listen(tenant: &Tenant, output: Output, listen: Listen) -> Outcome {
    let since = match listen.since.as_deref() {
        Some("") => Some(Since::Nothing),
        Some(text) => Some(Since::Cursor(text.parse().map_err(|error| Failure::new(format!("--since {error}")))?)),
        None => None,
    };
    let is_quiet = since.is_none();
    // Where no place was named, the present one is found by a list that is not shown, so that a lost connection loses nothing.
    let mut registration = Registration::everything(since.or(Some(Since::Nothing)));
    if !listen.instances.is_empty() {
        let mut ids = BTreeSet::new();
        for name in &listen.instances {
            ids.insert(tenant.find_id(name).await?);
        }
        registration.vms = Some(ids);
    }
    let mut changes = tenant.client.changes(registration);
    let mut is_hidden = is_quiet;
    loop {
        let told = changes.next().await?;
        let is_current = matches!(told, Told::Note(Note::Current { .. }));
        if (!is_hidden || is_current) && !show(output, &told, listen.once || is_hidden)? {
            return Ok(());
        }
        if is_current {
            is_hidden = false;
            if listen.once {
                return Ok(());
            }
        }
    }
}

/// One line; whether anybody reads on. Places that come only because time passes are for programs, and for `is_asked`.
fn show(output: Output, told: &Told, is_asked: bool) -> Outcome<bool> {
    if output.json {
        let line = match told {
            Told::Change(change) => serde_json::to_string(change)?,
            Told::Note(note) => serde_json::to_string(note)?,
        };
        return Ok(answer::print_more(line)?);
    }
    match told {
        Told::Change(change) => Ok(answer::print_more(words(change))?),
        Told::Note(Note::List { reason }) => Ok(answer::print_more(format!("all instances ({reason}):"))?),
        Told::Note(Note::Current { cursor }) if is_asked => Ok(answer::print_more(format!("up to here: {cursor}"))?),
        Told::Note(Note::Current { .. }) => Ok(true),
    }
}

fn words(change: &Change<'_>) -> String {
    let at = change.published.parse().map_or_else(|_| change.published.to_string(), |at| Timestamp(at).to_string());
    let touched: Vec<_> = change.change_kind.sub_resources.iter().map(|one| one.as_str()).collect();
    let cursor = change.cursor.map(|cursor| format!("  {cursor}")).unwrap_or_default();
    let (id, name) = (change.changed_resource_id.short(), &change.resource_object.name);
    format!("{at}  {id}  {name}  {}  {}{cursor}", change.resource_state, touched.join(","))
}
