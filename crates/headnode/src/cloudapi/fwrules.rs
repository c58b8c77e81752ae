//! Rules of the firewall.
//!
//! One thing is ours alone: with `wait=enforced` a change is answered when every machine it concerns has confirmed it, or after a
//! bounded time, and `enforced` in the answer says on how many of how many it is in force.

use std::borrow::Cow;

use cloudapi::types::FirewallRule;
use control::firewall::{self, Enforcement, NewRule, RuleChange};
use http::StatusCode;
use model::id::FirewallRuleId;

use super::{
    call::Call,
    enforced,
    error::{ApiError, Faults},
    machine_view::{Show, machine},
    reply::Reply,
};

/// `GET /:account/fwrules`.
pub(super) async fn list(call: Call) -> Result<Reply, ApiError> {
    let rules = firewall::list(call.control(), call.scope());
    let shown: Vec<_> = rules.iter().map(|rule| show(rule, None)).collect();
    Ok(Reply::json(&shown))
}

/// `POST /:account/fwrules`.
pub(super) async fn create(call: Call) -> Result<Reply, ApiError> {
    let mut faults = Faults::default();
    let new = NewRule {
        rule: faults.take(call.params.required("rule")),
        enabled: faults.take(call.params.flag("enabled")).unwrap_or(false),
        log: faults.take(call.params.flag("log")).unwrap_or(false),
        description: faults.take(call.params.text("description")),
        created_by: Some("cloudapi".to_owned()),
    };
    let wait = faults.take(wait(&call));
    faults.finish()?;
    let rule = firewall::create(call.control(), Some(call.account.id), new).await?;
    let enforced = outcome(&call, rule.id, wait).await;
    Ok(Reply::json(&show(&rule, Some(&enforced))).status(StatusCode::CREATED))
}

/// `GET /:account/fwrules/:rule`.
pub(super) async fn get(call: Call) -> Result<Reply, ApiError> {
    let rule = firewall::get(call.control(), call.scope(), id(&call)?)?;
    let enforced = outcome(&call, rule.id, wait(&call)?).await;
    Ok(Reply::json(&show(&rule, Some(&enforced))))
}

/// `POST /:account/fwrules/:rule`.
pub(super) async fn update(call: Call) -> Result<Reply, ApiError> {
    let mut faults = Faults::default();
    let change = RuleChange {
        rule: faults.take(call.params.text("rule")),
        enabled: faults.take(call.params.flag("enabled")),
        log: faults.take(call.params.flag("log")),
        description: faults.take(call.params.text("description")),
    };
    let wait = faults.take(wait(&call));
    faults.finish()?;
    let rule = firewall::update(call.control(), call.scope(), id(&call)?, change).await?;
    let enforced = outcome(&call, rule.id, wait).await;
    Ok(Reply::json(&show(&rule, Some(&enforced))))
}

/// `POST /:account/fwrules/:rule/enable`.
pub(super) async fn enable(call: Call) -> Result<Reply, ApiError> {
    set_enabled(call, true).await
}

/// `POST /:account/fwrules/:rule/disable`.
pub(super) async fn disable(call: Call) -> Result<Reply, ApiError> {
    set_enabled(call, false).await
}

async fn set_enabled(call: Call, enabled: bool) -> Result<Reply, ApiError> {
    let wait = wait(&call)?;
    let change = RuleChange { enabled: Some(enabled), ..RuleChange::default() };
    let rule = firewall::update(call.control(), call.scope(), id(&call)?, change).await?;
    let enforced = outcome(&call, rule.id, wait).await;
    Ok(Reply::json(&show(&rule, Some(&enforced))).status(StatusCode::ACCEPTED))
}

/// `DELETE /:account/fwrules/:rule`.
pub(super) async fn delete(call: Call) -> Result<Reply, ApiError> {
    let (id, wait) = (id(&call)?, wait(&call)?);
    firewall::delete(call.control(), call.scope(), id).await?;
    outcome(&call, id, wait).await;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

/// `GET /:account/fwrules/:rule/machines`.
pub(super) async fn machines(call: Call) -> Result<Reply, ApiError> {
    let views = firewall::whom(call.control(), call.scope(), id(&call)?)?;
    let show = Show { operator: call.operator, ..Show::default() };
    let shown: Vec<_> = views.iter().map(|view| machine(view, call.version, show)).collect();
    Ok(Reply::json(&shown).counted(shown.len(), None))
}

/// `GET /:account/machines/:machine/fwrules`.
pub(super) async fn of_machine(call: Call) -> Result<Reply, ApiError> {
    let rules = firewall::of_instance(call.control(), call.scope(), call.machine()?)?;
    let shown: Vec<_> = rules.iter().map(|rule| self::show(rule, None)).collect();
    Ok(Reply::json(&shown).counted(shown.len(), None))
}

fn id(call: &Call) -> Result<FirewallRuleId, ApiError> {
    call.id("firewall rule", 0)
}

fn wait(call: &Call) -> Result<bool, ApiError> {
    enforced::wanted(&call.params)
}

async fn outcome(call: &Call, id: FirewallRuleId, wait: bool) -> Enforcement {
    match wait {
        true => firewall::wait_enforced(call.control(), id).await,
        false => firewall::enforcement(call.control(), id).await,
    }
}

fn show<'a>(rule: &'a model::firewall::FirewallRule, enforcement: Option<&Enforcement>) -> FirewallRule<'a> {
    FirewallRule {
        id: rule.id,
        rule: Cow::Owned(rule.rule.to_string()),
        enabled: rule.enabled,
        global: rule.owner.is_none().then_some(true),
        description: rule.description.as_deref().map(Cow::Borrowed),
        log: rule.log,
        version: Some(rule.version),
        enforced: enforcement.map(enforced::shown),
    }
}
