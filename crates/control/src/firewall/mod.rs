//! Rules of the distributed firewall, and the proof that machines enforce them.
//!
//! A rule belongs to an account and works with its instances only, or to nobody (a global rule) and works with everybody's; only
//! operators touch global ones. What a rule means is [`model::firewall`]'s business; which machines must know it follows from the
//! records by itself ([`crate::servers`]). Here rules are made, changed, found, and waited for: a change is
//! accepted at once, and [`wait_enforced`] ends when every machine it concerns has said that the change is in force. The same
//! goes for what rules speak of: an instance's tags, its addresses, and whether it is filtered at all.

mod listing;
mod seed;

use std::{sync::Arc, time::Duration};

use model::{
    firewall::{FirewallRule, Language, Rule},
    id::{AccountId, FirewallRuleId, InstanceId, ServerId},
    time::Timestamp,
};
use store::{Entry, Snapshot, Transaction};

pub use self::{
    listing::{list, of_instance, whom},
    seed::seed,
};
use crate::{
    Control, Error, FieldCode, Result, Scope,
    error::Faults,
    tables::{ACCOUNTS, BY_OWNER, FIREWALL_RULES, rule_owner},
};

/// Rules of one account at most, and global rules at most: a machine compiles all rules of every account it has instances of.
pub const RULES_MAX: usize = 2_000;

/// Longest wait for machines to enforce a change, milliseconds. One that is reachable needs less than a second; one that is not
/// would be waited for in vain.
pub const ENFORCED_WAIT_MAX_MS: u64 = 10_000;

/// What a new rule is made of.
#[derive(Debug, Clone, Default)]
pub struct NewRule {
    /// Its text.
    pub rule: String,
    /// See [`FirewallRule::enabled`].
    pub enabled: bool,
    /// See [`FirewallRule::log`].
    pub log: bool,
    /// See [`FirewallRule::description`].
    pub description: Option<String>,
    /// See [`FirewallRule::created_by`].
    pub created_by: Option<String>,
}

/// What to change of a rule; `None` is left as it is.
#[derive(Debug, Clone, Default)]
pub struct RuleChange {
    /// Its text.
    pub rule: Option<String>,
    /// See [`FirewallRule::enabled`].
    pub enabled: Option<bool>,
    /// See [`FirewallRule::log`].
    pub log: Option<bool>,
    /// See [`FirewallRule::description`]; an empty text removes it.
    pub description: Option<String>,
}

/// Whose enforcement is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A rule's.
    Rule(FirewallRuleId),
    /// That of an instance's tags, addresses and firewall.
    Instance(InstanceId),
}

impl From<FirewallRuleId> for Subject {
    fn from(id: FirewallRuleId) -> Self {
        Self::Rule(id)
    }
}

impl From<InstanceId> for Subject {
    fn from(id: InstanceId) -> Self {
        Self::Instance(id)
    }
}

/// On how many machines what a record says is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enforcement {
    /// Machines it concerns, or concerned until a change they have not confirmed yet.
    pub machines: usize,
    /// Those that have confirmed the newest version.
    pub live: usize,
    /// The others.
    pub waiting_for: Vec<ServerId>,
    /// Revision of the last change that one of them had to learn of; 0 if none had.
    pub revision: u64,
}

impl Enforcement {
    /// One machine more, which had to learn of a change at `revision`.
    pub(crate) fn count(&mut self, server: ServerId, revision: u64, is_live: bool) {
        self.machines += 1;
        self.revision = self.revision.max(revision);
        if is_live {
            self.live += 1;
        } else {
            self.waiting_for.push(server);
        }
    }

    /// Whether nobody has to be waited for.
    pub fn is_everywhere(&self) -> bool {
        self.waiting_for.is_empty()
    }
}

/// Makes a rule of an account's, or a global one. Everything wrong with it is said at once.
pub async fn create(control: &Control, owner: Option<AccountId>, new: NewRule) -> Result<Arc<Entry<FirewallRule>>> {
    let mut faults = Faults::default();
    let parsed = parse(&new.rule);
    if let Err(why) = &parsed {
        faults.add("rule", FieldCode::Invalid, why.clone());
    }
    for (field, text) in [("description", &new.description), ("created_by", &new.created_by)] {
        faults.check(field, text.as_deref().map_or(Ok(()), FirewallRule::check_description));
    }
    faults.finish()?;
    let rule = parsed.map_err(|why| Error::invalid("rule", why))?;
    let now = control.now();
    let record = FirewallRule {
        id: FirewallRuleId::from_random(base::random::wide_bits()),
        owner,
        rule,
        enabled: new.enabled,
        log: new.log,
        description: new.description.filter(|text| !text.is_empty()),
        created_by: new.created_by,
        version: 1,
        created_at: now,
        updated_at: now,
    };
    let (_, id) = control
        .update(|snapshot| {
            if snapshot.find(&FIREWALL_RULES, BY_OWNER, &rule_owner(owner)).count() >= RULES_MAX {
                let whose = if owner.is_some() { "the account has" } else { "there are" };
                let why =
                    format!("{whose} {RULES_MAX} rules already; delete some, or name several targets or ports in one");
                return Err(Error::Conflict(why));
            }
            if let Some(owner) = owner
                && snapshot.get(&ACCOUNTS, &owner.to_string()).is_none()
            {
                return Err(Error::not_found("account", owner));
            }
            Ok((Transaction::new().create(&FIREWALL_RULES, record.clone()), record.id))
        })
        .await?;
    find(&control.snapshot(), Scope::All, id)
}

/// The rule with an id; global ones are everybody's to see.
pub fn get(control: &Control, scope: Scope, id: FirewallRuleId) -> Result<Arc<Entry<FirewallRule>>> {
    find(&control.snapshot(), scope, id)
}

/// Changes a rule. What changes nothing leaves its version as it is.
pub async fn update(
    control: &Control,
    scope: Scope,
    id: FirewallRuleId,
    change: RuleChange,
) -> Result<Arc<Entry<FirewallRule>>> {
    let mut faults = Faults::default();
    let parsed = change.rule.as_deref().map(parse).transpose();
    if let Err(why) = &parsed {
        faults.add("rule", FieldCode::Invalid, why.clone());
    }
    faults.check("description", change.description.as_deref().map_or(Ok(()), FirewallRule::check_description));
    faults.finish()?;
    let parsed = parsed.map_err(|why| Error::invalid("rule", why))?;
    control
        .update(|snapshot| {
            let entry = changeable(snapshot, scope, id)?;
            let mut rule = entry.value.clone();
            if let Some(parsed) = &parsed {
                rule.rule = parsed.clone();
            }
            rule.enabled = change.enabled.unwrap_or(rule.enabled);
            rule.log = change.log.unwrap_or(rule.log);
            if let Some(text) = &change.description {
                rule.description = Some(text.clone()).filter(|text| !text.is_empty());
            }
            if rule == entry.value {
                return Ok((Transaction::new(), ()));
            }
            rule.version += 1;
            rule.updated_at = control.now();
            Ok::<_, Error>((Transaction::new().replace(&FIREWALL_RULES, &entry, rule), ()))
        })
        .await?;
    find(&control.snapshot(), scope, id)
}

/// Deletes a rule. Works while the store is full.
pub async fn delete(control: &Control, scope: Scope, id: FirewallRuleId) -> Result<()> {
    control
        .update(|snapshot| {
            let entry = changeable(snapshot, scope, id)?;
            Ok::<_, Error>((Transaction::new().may_use_reserve().delete(&FIREWALL_RULES, &entry), ()))
        })
        .await?;
    Ok(())
}

/// On how many machines a record is in force as it is now; for a deleted one, how many may still enforce it.
pub async fn enforcement(control: &Control, subject: impl Into<Subject>) -> Enforcement {
    control.targets.caught_up(control.snapshot().revision().0).await;
    control
        .targets
        .enforcement(subject.into(), |server| control.nodes.heard(server).map_or(0, |heard| heard.firewall_seen))
}

/// The machines a rule concerns, or concerned until a change they have not confirmed yet.
pub async fn machines(control: &Control, rule: FirewallRuleId) -> Vec<ServerId> {
    control.targets.caught_up(control.snapshot().revision().0).await;
    control.targets.enforcers(rule)
}

/// Waits until every machine a record concerns, or concerned, has said that it is in force as it is now, but not longer than
/// [`ENFORCED_WAIT_MAX_MS`]. The answer says how far it came.
pub async fn wait_enforced(control: &Control, subject: impl Into<Subject>) -> Enforcement {
    let subject = subject.into();
    let mut news = control.nodes.firewall_news();
    let deadline = control.clock.sleep(Duration::from_millis(ENFORCED_WAIT_MAX_MS));
    tokio::pin!(deadline);
    loop {
        news.borrow_and_update();
        let now = enforcement(control, subject).await;
        if now.is_everywhere() {
            return now;
        }
        tokio::select! {
            biased;
            changed = news.changed() => if changed.is_err() { return now },
            () = &mut deadline => return enforcement(control, subject).await,
        }
    }
}

fn parse(text: &str) -> Result<Rule, String> {
    Rule::parse_as(text, Language::CURRENT).map_err(|error| error.to_string())
}

fn find(snapshot: &Snapshot, scope: Scope, id: FirewallRuleId) -> Result<Arc<Entry<FirewallRule>>> {
    snapshot
        .get(&FIREWALL_RULES, &id.to_string())
        .filter(|rule| rule.owner.is_none_or(|owner| scope.covers(owner)))
        .ok_or_else(|| Error::not_found("firewall rule", id))
}

fn changeable(snapshot: &Snapshot, scope: Scope, id: FirewallRuleId) -> Result<Arc<Entry<FirewallRule>>> {
    let rule = find(snapshot, scope, id)?;
    if rule.owner.is_none() && scope != Scope::All {
        return Err(Error::NotAuthorized(
            "the rule works with everybody's instances; only operators change it".to_owned(),
        ));
    }
    Ok(rule)
}

/// Oldest first.
fn by_age(rule: &Arc<Entry<FirewallRule>>) -> (Timestamp, FirewallRuleId) {
    (rule.created_at, rule.id)
}
