//! Rules of the firewall, of every account and global.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    routing::{get, post},
};
use control::{
    Scope,
    firewall::{self, Enforcement, NewRule, RuleChange},
};
use model::{firewall::FirewallRule, id::FirewallRuleId};
use opsapi::{FirewallRuleChange, FirewallRuleView, NewFirewallRule};
use serde::Deserialize;
use store::Entry;

use super::{Answer, Body, Ops, Refusal, value};

pub(super) fn routes() -> Router<Ops> {
    Router::new()
        .route("/v1/firewall/rules", get(list).post(create))
        .route("/v1/firewall/rules/{rule}", get(one).post(change).delete(delete))
        .route("/v1/firewall/rules/{rule}/enable", post(enable))
        .route("/v1/firewall/rules/{rule}/disable", post(disable))
}

#[derive(Deserialize)]
struct Whose {
    account: Option<String>,
}

async fn list(State(ops): State<Ops>, Query(whose): Query<Whose>) -> Answer<Vec<FirewallRuleView>> {
    let scope = match &whose.account {
        Some(account) => Scope::Account(super::accounts::find(&ops.control, account)?.id),
        None => Scope::All,
    };
    let mut views = Vec::new();
    for rule in firewall::list(&ops.control, scope) {
        let enforcement = firewall::enforcement(&ops.control, rule.id).await;
        views.push(view(&ops, &rule, enforcement));
    }
    Ok(Json(views))
}

async fn one(State(ops): State<Ops>, Path(rule): Path<String>) -> Answer<FirewallRuleView> {
    let rule = firewall::get(&ops.control, Scope::All, id(&rule)?)?;
    let enforcement = firewall::enforcement(&ops.control, rule.id).await;
    Ok(Json(view(&ops, &rule, enforcement)))
}

async fn create(State(ops): State<Ops>, Body(new): Body<NewFirewallRule>) -> Answer<FirewallRuleView> {
    let owner = match &new.account {
        Some(account) => Some(super::accounts::find(&ops.control, account)?.id),
        None => None,
    };
    let new = NewRule {
        rule: new.rule,
        enabled: new.enabled,
        log: new.log,
        description: new.description,
        created_by: Some("operator".to_owned()),
    };
    let rule = firewall::create(&ops.control, owner, new).await?;
    let enforcement = firewall::wait_enforced(&ops.control, rule.id).await;
    Ok(Json(view(&ops, &rule, enforcement)))
}

async fn change(
    State(ops): State<Ops>,
    Path(rule): Path<String>,
    Body(change): Body<FirewallRuleChange>,
) -> Answer<FirewallRuleView> {
    let FirewallRuleChange { rule: text, enabled, log, description } = change;
    changed(&ops, &rule, RuleChange { rule: text, enabled, log, description }).await
}

async fn enable(State(ops): State<Ops>, Path(rule): Path<String>) -> Answer<FirewallRuleView> {
    set_enabled(&ops, &rule, true).await
}

async fn disable(State(ops): State<Ops>, Path(rule): Path<String>) -> Answer<FirewallRuleView> {
    set_enabled(&ops, &rule, false).await
}

async fn set_enabled(ops: &Ops, rule: &str, enabled: bool) -> Answer<FirewallRuleView> {
    changed(ops, rule, RuleChange { enabled: Some(enabled), ..RuleChange::default() }).await
}

async fn changed(ops: &Ops, rule: &str, change: RuleChange) -> Answer<FirewallRuleView> {
    let rule = firewall::update(&ops.control, Scope::All, id(rule)?, change).await?;
    let enforcement = firewall::wait_enforced(&ops.control, rule.id).await;
    Ok(Json(view(ops, &rule, enforcement)))
}

async fn delete(State(ops): State<Ops>, Path(rule): Path<String>) -> Answer<()> {
    Ok(Json(firewall::delete(&ops.control, Scope::All, id(&rule)?).await?))
}

fn id(text: &str) -> Result<FirewallRuleId, Refusal> {
    text.parse().map_err(|_| control::Error::not_found("firewall rule", text).into())
}

fn view(ops: &Ops, rule: &Arc<Entry<FirewallRule>>, enforcement: Enforcement) -> FirewallRuleView {
    let name = |id| match control::servers::get(&ops.control, id) {
        Ok(found) => found.server.hostname.clone(),
        Err(_) => id.to_string(),
    };
    FirewallRuleView {
        rule: value(rule),
        machines: enforcement.machines,
        live: enforcement.live,
        waiting_for: enforcement.waiting_for.into_iter().map(name).collect(),
    }
}
