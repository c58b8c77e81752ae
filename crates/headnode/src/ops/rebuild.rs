//! Rebuilding after a restore: what machines have is asked of them, looked at, and adopted. See [`control::rebuild`].

use std::collections::BTreeMap;

use axum::{Extension, Json, Router, extract::State, routing::get};
use control::{
    STRANGERS_MAX,
    rebuild::{self, Judgement, RuleJudgement},
    tables::{ACCOUNTS, INSTANCES, SERVERS},
};
use futures_util::{StreamExt as _, stream};
use model::{
    firewall::ToldRule,
    id::{AccountId, FirewallRuleId, InstanceId, ServerId},
    instance::Caller,
    target::LastTold,
};
use nodeapi::inquiry::{Question, TOLD_MAX, Told};
use opsapi::{FoundInstance, FoundRule, LostInstance, Rebuild, RebuildView, WaitingServer};

use super::{Answer, Body, Ops};
use crate::rebuilding::held_rules;

/// Machines that are asked for their rules at once.
const ASKED_AT_ONCE: usize = 8;

pub(super) fn routes() -> Router<Ops> {
    Router::new().route("/v1/rebuild", get(look).post(carry_out))
}

/// An instance no record knows, and what its machine was told of it; else why that is not known.
struct Found {
    server: ServerId,
    hostname: String,
    instance: InstanceId,
    told: Result<LastTold, String>,
}

async fn look(State(ops): State<Ops>) -> Answer<RebuildView> {
    let found = found(&ops).await;
    let views = found.into_iter().map(|found| {
        let judged = found.told.as_ref().map(|told| rebuild::judge(&ops.control, found.server, found.instance, told));
        let judged = judged.map_err(String::clone);
        view(&ops, found, judged)
    });
    let views = views.collect();
    let rules = found_rules(&ops).await.into_iter().map(|(hostname, server, id, told)| {
        rebuild::judge_rule(&ops.control, server, id, &told).map(|judged| rule_view(&ops, hostname, judged))
    });
    let rules = rules.flatten().collect();
    Ok(Json(whole(&ops, (views, rules), false)))
}

async fn carry_out(
    State(ops): State<Ops>,
    Extension(caller): Extension<Caller>,
    Body(how): Body<Rebuild>,
) -> Answer<RebuildView> {
    let mut views = Vec::new();
    for found in found(&ops).await {
        let judged = match &found.told {
            Ok(told) => Ok(rebuild::adopt(&ops.control, &caller, found.server, found.instance, told).await?),
            Err(why) => Err(why.clone()),
        };
        views.push(view(&ops, found, judged));
    }
    let mut rules = Vec::new();
    for (hostname, server, id, told) in found_rules(&ops).await {
        let adopted = rebuild::adopt_rule(&ops.control, server, id, &told).await?;
        rules.extend(adopted.map(|judged| rule_view(&ops, hostname, judged)));
    }
    // More than are remembered of one machine: the next reports tell of the rest.
    let is_all = strangers(&ops).values().all(|(_, strangers)| strangers.len() < STRANGERS_MAX);
    let refused = views.iter().map(|view| &view.refused).chain(rules.iter().map(|rule: &FoundRule| &rule.refused));
    if is_all && (how.leave || refused.flatten().next().is_none()) {
        rebuild::go_on(&ops.control).await?;
    }
    Ok(Json(whole(&ops, (views, rules), true)))
}

/// Instances nobody knows by machine, with the machine's name.
fn strangers(ops: &Ops) -> BTreeMap<ServerId, (String, Vec<InstanceId>)> {
    let snapshot = ops.control.snapshot();
    let servers = snapshot.scan(&SERVERS).filter_map(|server| {
        let heard = ops.control.nodes.heard(server.id)?;
        // What was adopted since the machine's last report is a stranger no more.
        let is_known =
            |id: &InstanceId| snapshot.get(&INSTANCES, &id.to_string()).is_some_and(|entry| entry.server == server.id);
        let strangers: Vec<InstanceId> = heard.strangers.into_keys().filter(|id| !is_known(id)).collect();
        (!strangers.is_empty()).then(|| (server.id, (server.hostname.clone(), strangers)))
    });
    servers.collect()
}

/// All of them, with what their machines hold of them.
async fn found(ops: &Ops) -> Vec<Found> {
    let mut all = Vec::new();
    for (server, (hostname, strangers)) in strangers(ops) {
        let told = held(ops, server, &strangers).await;
        all.extend(strangers.into_iter().map(|instance| Found {
            server,
            hostname: hostname.clone(),
            instance,
            told: match &told {
                Ok(told) => told.get(&instance).cloned().ok_or_else(|| FORGOTTEN.to_owned()),
                Err(why) => Err(why.clone()),
            },
        }));
    }
    all
}

/// Rules that machines hold which are told nothing since a restore and have spoken, in the newest version there is of each; with the machine that has it.
async fn found_rules(ops: &Ops) -> Vec<(String, ServerId, FirewallRuleId, ToldRule)> {
    let snapshot = ops.control.snapshot();
    let open = snapshot.scan(&SERVERS).filter(|server| server.restored.is_some_and(|restored| restored.compared));
    let asks = open.map(async |server| (server.clone(), held_rules(&ops.inquiries, server.id).await));
    let asks: Vec<_> = asks.collect();
    let mut asks = stream::iter(asks).buffered(ASKED_AT_ONCE);
    let mut newest: BTreeMap<FirewallRuleId, (String, ServerId, ToldRule)> = BTreeMap::new();
    while let Some((server, held)) = asks.next().await {
        // One that does not answer now is asked again by a loop, and by whoever looks again.
        for (id, told) in held.unwrap_or_default() {
            if newest.get(&id).is_none_or(|(_, _, other)| other.version < told.version) {
                newest.insert(id, (server.hostname.clone(), server.id, told));
            }
        }
    }
    newest.into_iter().map(|(id, (hostname, server, told))| (hostname, server, id, told)).collect()
}

fn rule_view(ops: &Ops, hostname: String, judged: RuleJudgement) -> FoundRule {
    let RuleJudgement { rule, server: _, owner, text, refused, notes } = judged;
    FoundRule { rule, owner, owner_login: owner.and_then(|owner| login(ops, owner)), text, hostname, refused, notes }
}

/// Why an instance cannot be adopted of which its machine holds nothing but the thing itself.
const FORGOTTEN: &str = "its machine does not hold any more what it was told of it";

/// What a machine holds of `instances`.
async fn held(ops: &Ops, server: ServerId, instances: &[InstanceId]) -> Result<BTreeMap<InstanceId, LastTold>, String> {
    let mut held = BTreeMap::new();
    let mut open: Vec<InstanceId> = instances.to_vec();
    while !open.is_empty() {
        let asked: Vec<InstanceId> = open.drain(..open.len().min(TOLD_MAX)).collect();
        let count = asked.len();
        match ops.inquiries.ask(server, Question::Told { instances: asked }).await {
            Ok(nodeapi::inquiry::Answer::Told(Told { told, left })) if left.len() < count => {
                held.extend(told);
                open.extend(left);
            }
            Ok(_) => return Err("its machine answered something else".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(held)
}

fn view(ops: &Ops, found: Found, judged: Result<Judgement, String>) -> FoundInstance {
    let Found { server, hostname, instance, .. } = found;
    match judged {
        Ok(judged) => FoundInstance {
            instance,
            server,
            hostname,
            owner_login: login(ops, judged.owner),
            alias: Some(judged.alias),
            owner: Some(judged.owner),
            package: Some(judged.package),
            addresses: judged.addresses,
            state: judged.state,
            refused: judged.refused,
            notes: judged.notes,
        },
        Err(why) => FoundInstance {
            instance,
            server,
            hostname,
            alias: None,
            owner: None,
            owner_login: None,
            package: None,
            addresses: Vec::new(),
            state: None,
            refused: Some(why),
            notes: Vec::new(),
        },
    }
}

fn login(ops: &Ops, account: AccountId) -> Option<String> {
    ops.control.snapshot().get(&ACCOUNTS, &account.to_string()).map(|account| account.login.clone())
}

fn whole(ops: &Ops, (found, rules): (Vec<FoundInstance>, Vec<FoundRule>), done: bool) -> RebuildView {
    let snapshot = ops.control.snapshot();
    let waiting = snapshot.scan(&SERVERS).filter_map(|server| {
        let restored = server.restored?;
        Some(WaitingServer {
            server: server.id,
            hostname: server.hostname.clone(),
            taken_at: restored.taken_at,
            brought: restored.brought,
            has_spoken: restored.compared,
        })
    });
    let lost = snapshot.scan(&INSTANCES).filter(|instance| instance.is_lost()).filter_map(|instance| {
        Some(LostInstance {
            instance: instance.id,
            alias: instance.alias.clone(),
            owner_login: login(ops, instance.owner),
            server: instance.server,
            lost_at: instance.lost_at?,
        })
    });
    RebuildView { waiting: waiting.collect(), found, lost: lost.collect(), rules, done }
}
