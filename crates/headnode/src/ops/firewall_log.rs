//! What rules of the firewall logged, asked of the machines that enforce them.
//!
//! Nothing of it is stored here: each machine keeps its own lines, and answers for the piece that is asked for. Where several
//! are asked, their lines are put in order of time, which is as good as their clocks; how far each was read travels in
//! the answer and comes back with the next question.

use std::collections::BTreeMap;

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::get,
};
use control::{Scope, firewall};
use futures_util::future::join_all;
use model::{
    firewall::log::LogFilter,
    id::{FirewallRuleId, ServerId},
};
use nodeapi::inquiry::{Answer as Said, FIREWALL_LOG_MAX_LINES, FirewallLogPage, Question};
use opsapi::{FirewallLogLine, FirewallLogView, SilentServer};
use serde::Deserialize;

use super::{Answer, Ops, Refusal, instances, servers};

/// Machines asked at once: a rule that concerns more is looked at one machine at a time.
const SERVERS_MAX: usize = 64;

/// Lines of each machine at least, however many are asked.
const LINES_MIN: u32 = 16;

pub(super) fn routes() -> Router<Ops> {
    Router::new().route("/v1/firewall/log", get(log))
}

#[derive(Deserialize)]
struct Which {
    rule: Option<FirewallRuleId>,
    /// By id, short id or alias.
    instance: Option<String>,
    /// By id or host name.
    server: Option<String>,
    #[serde(default = "lines")]
    lines: u32,
    /// [`FirewallLogView::next`] of an earlier answer.
    after: Option<String>,
}

const fn lines() -> u32 {
    100
}

async fn log(State(ops): State<Ops>, Query(which): Query<Which>) -> Answer<FirewallLogView> {
    if which.lines == 0 || which.lines > FIREWALL_LOG_MAX_LINES {
        let why = format!("is {}; use 1 to {FIREWALL_LOG_MAX_LINES}", which.lines);
        return Err(control::Error::invalid("lines", why).into());
    }
    let after = which.after.as_deref().map_or_else(|| Ok(BTreeMap::new()), places)?;
    let (asked, filter) = asked(&ops, &which).await?;
    let share = (which.lines / u32::try_from(asked.len().max(1)).unwrap_or(1)).max(LINES_MIN).min(which.lines);
    let questions = asked.iter().map(|server| {
        let after = after.get(server).cloned();
        // The first piece is the newest of all, whoever has it.
        let max_lines = if after.is_some() { share } else { which.lines };
        let question = Question::FirewallLog { filter, max_lines, after };
        async { (*server, ops.inquiries.ask(*server, question).await) }
    });
    let (mut view, mut next) = (FirewallLogView::default(), BTreeMap::new());
    for (server, answer) in join_all(questions).await {
        let why = match answer {
            Ok(Said::FirewallLog(FirewallLogPage { entries, next: mark, lost })) => {
                view.entries.extend(entries.into_iter().map(|entry| FirewallLogLine { server, entry }));
                view.lost |= lost;
                next.insert(server, mark);
                continue;
            }
            Ok(_) => "the machine answered something else".to_owned(),
            Err(error) => error.to_string(),
        };
        // Where it was read so far stays good.
        if let Some(mark) = after.get(&server) {
            next.insert(server, mark.clone());
        }
        view.silent.push(SilentServer { server, why });
    }
    view.entries.sort_by_key(|line| line.entry.time);
    if after.is_empty() {
        let more = view.entries.len().saturating_sub(which.lines as usize);
        view.entries.drain(..more);
    }
    let marks: Vec<String> = next.iter().map(|(server, mark)| format!("{server}:{mark}")).collect();
    view.next = marks.join(",");
    Ok(Json(view))
}

/// Whom to ask, and for what.
async fn asked(ops: &Ops, which: &Which) -> Result<(Vec<ServerId>, LogFilter), Refusal> {
    let instance = which.instance.as_deref().map(|name| instances::find(&ops.control, name)).transpose()?;
    let filter = LogFilter { rule: which.rule, instance: instance.as_ref().map(|found| found.instance.id) };
    let named = which.server.as_deref().map(|name| servers::find_server(&ops.control, name)).transpose()?;
    // A machine that is named is asked about whatever is named: a rule that is deleted, an instance that has moved away.
    if let Some(server) = named {
        return Ok((vec![server.server.id], filter));
    }
    let all = match (instance, which.rule) {
        (Some(found), _) => vec![found.instance.server],
        (None, Some(rule)) => {
            firewall::get(&ops.control, Scope::All, rule)?;
            firewall::machines(&ops.control, rule).await
        }
        (None, None) => {
            let known = control::servers::list(&ops.control).into_iter().map(|found| found.server.id);
            known.filter(|id| ops.control.nodes.heard(*id).is_some()).collect()
        }
    };
    match all.len() {
        0..=SERVERS_MAX => Ok((all, filter)),
        many => {
            let why =
                format!("{many} machines have lines of it, and at most {SERVERS_MAX} are asked at once; name one");
            Err(control::Error::invalid("server", why).into())
        }
    }
}

/// How far each machine was read: `id:mark,id:mark`.
fn places(text: &str) -> Result<BTreeMap<ServerId, String>, Refusal> {
    let one = |part: &str| {
        let (server, mark) = part.split_once(':')?;
        Some((server.parse().ok()?, mark.to_owned()))
    };
    let all: Option<BTreeMap<ServerId, String>> =
        text.split(',').filter(|part| !part.is_empty()).take(SERVERS_MAX).map(one).collect();
    all.ok_or_else(|| control::Error::invalid("after", "is not what an earlier answer said".to_owned()).into())
}
