//! Headnodes: how they are, more of them, fewer, or another in the place of one.

use std::{collections::BTreeSet, time::Duration};

use opsapi::{Client, FlowView, HeadnodeView, HeadnodesChange, HeadnodesView, StoreKept};

use super::{Output, bytes, details, table};
use crate::{
    answer,
    failure::{Failure, Outcome},
    progress::Progress,
};

/// How often we look how far a change is.
const POLL: Duration = Duration::from_millis(500);
/// A headnode that changes its store, or ceases to be one, does not answer for a while.
const SILENCE: Duration = Duration::from_secs(120);

/// What to do with headnodes.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show all headnodes, how many may be lost, and what to do next.
    #[command(visible_alias = "ls")]
    Status,
    /// Make headnodes of machines that joined as nodes; two at once take one headnode to three.
    Add {
        /// Ids or host names of servers.
        #[arg(required = true)]
        servers: Vec<String>,
        /// Stay at an even number, which survives no more than one less.
        #[arg(long)]
        even: bool,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
    /// Make a headnode a plain node again; its instances stay.
    Remove {
        /// Id or host name.
        headnode: String,
        /// Stay at an even number.
        #[arg(long)]
        even: bool,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
    /// Put another machine in the place of a headnode, also of one that is lost.
    Replace {
        /// The headnode that goes: id or host name.
        headnode: String,
        /// The server that comes: id or host name.
        server: String,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
}

/// Runs it.
pub(crate) async fn run(client: &Client, output: Output, command: Command) -> Outcome {
    let (change, no_wait) = match command {
        Command::Status => return status(client, output).await,
        Command::Add { servers, even, no_wait } => (HeadnodesChange { add: servers, remove: None, even }, no_wait),
        Command::Remove { headnode, even, no_wait } => {
            (HeadnodesChange { add: Vec::new(), remove: Some(headnode), even }, no_wait)
        }
        Command::Replace { headnode, server, no_wait } => {
            (HeadnodesChange { add: vec![server], remove: Some(headnode), even: true }, no_wait)
        }
    };
    let flows = client.change_headnodes(&change).await?;
    if no_wait {
        return output.show(&flows, |flows| {
            table(&["flow", "kind"], flows.iter().map(|flow| vec![flow.id.clone(), flow.kind.clone()]))
        });
    }
    let progress = if output.json { Progress::silent() } else { Progress::new() };
    let mut ended = Vec::new();
    for flow in flows {
        ended.push(follow(client, progress, flow).await?);
    }
    match output.json {
        true => output.show(&ended, |_| details(&[])),
        false => status(client, output).await,
    }
}

/// Waits for the end of a flow and shows its steps.
async fn follow(client: &Client, progress: Progress, begun: FlowView) -> Outcome<FlowView> {
    let step = progress.step(headline(&begun.kind));
    let (mut said, mut silent) = (BTreeSet::new(), tokio::time::Instant::now());
    loop {
        let flow = match client.flow(&begun.id).await {
            Ok(flow) => flow,
            // A headnode whose store is exchanged, or that is taken out, answers later or no more.
            Err(error) if silent.elapsed() < SILENCE && !error.is_not_found() => {
                tracing::debug!(%error, "no answer yet");
                tokio::time::sleep(POLL).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        silent = tokio::time::Instant::now();
        match flow.state.as_str() {
            "succeeded" => {
                step.done("done");
                return Ok(flow);
            }
            "failed" | "parked" => {
                let why = flow.error.clone().unwrap_or_default();
                return Err(Failure::new(format!("{}: {why}", headline(&flow.kind)))
                    .mend(format!("nothing was changed for good; `neso adm flow show {}` lists its steps", flow.id)));
            }
            _ => {}
        }
        if let Some(now) = flow.steps.iter().find(|step| step.state == "pending") {
            let words = match &now.error {
                Some(error) => format!("{} ({error})", words(&now.name)),
                None => words(&now.name).to_owned(),
            };
            if said.insert(words.clone()) {
                step.say(&words);
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

fn headline(kind: &str) -> &'static str {
    match kind {
        "headnode-add" => "Adding a headnode",
        "headnode-remove" => "Taking a headnode out",
        _ => "Changing headnodes",
    }
}

/// A step as a person reads it.
fn words(step: &str) -> &str {
    match step {
        "claim" | "leave" => "writing it down",
        "move_store" => "moving the store into etcd; reads go on, writes wait",
        "add_member" => "making room for its member of the store",
        "tell" => "telling the machine",
        "await_files" => "the machine fetches what a headnode needs",
        "await_beat" => "its headnode starts",
        "promote" => "its member catches up and gets its vote",
        "activate" => "giving it its share of the work",
        "remove_member" => "taking its member out of the store",
        "await_gone" => "the machine puts its headnode away",
        "forget" => "forgetting it",
        other => other,
    }
}

async fn status(client: &Client, output: Output) -> Outcome {
    let view = client.headnodes().await?;
    output.show(&view, headnodes_table)?;
    if output.json {
        return Ok(());
    }
    answer::print("")?;
    answer::print(details(&summary(&view)))?;
    Ok(())
}

fn headnodes_table(view: &HeadnodesView) -> comfy_table::Table {
    let head = [
        "headnode",
        "node link",
        "stage",
        "beat",
        "work",
        "member",
        "store",
        "commit",
        "lag",
        "behind",
        "disk",
        "clock",
        "images",
        "sick",
    ];
    table(&head, view.headnodes.iter().map(row))
}

fn row(one: &HeadnodeView) -> Vec<String> {
    let beat =
        one.beat_age_ms.map_or_else(|| "never".to_owned(), |ms| format!("{}.{} s ago", ms / 1_000, ms % 1_000 / 100));
    let (member, size) = match &one.member {
        None => ("-".to_owned(), "-".to_owned()),
        Some(member) => {
            let word = match (&member.error, member.voting, member.leads) {
                (Some(_), true, _) => "silent",
                (Some(_), false, _) => "silent, learns",
                (None, _, true) => "leads",
                (None, true, false) => "votes",
                (None, false, false) => "learns",
            };
            (word.to_owned(), bytes(member.size_bytes))
        }
    };
    let health = &one.health;
    vec![
        format!("{}{}", one.hostname, if one.answers { " (answers)" } else { "" }),
        one.node_link.clone(),
        format!("{:?}", one.stage).to_lowercase(),
        beat,
        if one.works { "yes" } else { "no" }.to_owned(),
        member,
        size,
        format!("{} ms", health.commit_ms),
        format!("{} ms", health.lag_ms),
        match health.behind_ms() {
            Some(ms) => format!("{ms} ms"),
            None => "-".to_owned(),
        },
        health.sync_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms")),
        health.clock_offset_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:+} ms")),
        match health.images_missing {
            0 => "all".to_owned(),
            missing => format!("{missing} missing"),
        },
        health.sick.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

fn summary(view: &HeadnodesView) -> Vec<(&'static str, String)> {
    let store = match view.store {
        StoreKept::File => "a file of this headnode",
        StoreKept::Members => "etcd, kept by the headnodes",
        StoreKept::Elsewhere => "etcd, kept by somebody else: headnodes come and go without members",
    };
    let mut lines = vec![
        ("store", store.to_owned()),
        ("meaning", view.meaning.clone()),
        ("may be lost now", view.may_be_lost.to_string()),
    ];
    for flow in &view.changes {
        let step = flow.steps.iter().find(|step| step.state == "pending" || step.state == "failed");
        let at = step.map_or_else(String::new, |step| {
            let why = step.error.as_ref().map_or_else(String::new, |error| format!(" ({error})"));
            format!(", at {}{why}", words(&step.name))
        });
        lines.push(("change", format!("{} {} is {}{at}", flow.kind, flow.id, flow.state)));
    }
    if view.advice.is_empty() {
        lines.push(("next", "nothing: all is well".to_owned()));
    }
    lines.extend(view.advice.iter().map(|advice| ("next", advice.clone())));
    lines
}
