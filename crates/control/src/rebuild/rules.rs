//! Rules of the firewall that machines enforce and no record knows, or knows in an older version.
//!
//! A machine holds of each rule what its record is made of ([`ToldRule`]), of those that are enabled and concern one of its instances. Of backup and machine
//! the newer one is right: of two versions of a rule the greater one; a rule the backup does not know is one that was made since, or one that was deleted
//! before, by a datacenter that could not tell this machine any more. When it was made says which.
//!
//! What cannot be known: rules that were disabled, or concerned nobody; and that a rule of the backup was deleted since.

use model::{
    firewall::{FirewallRule, Language, Rule, ToldRule},
    id::{AccountId, FirewallRuleId, ServerId},
    server::{Restored, Server},
    time::Timestamp,
};
use store::{Snapshot, Transaction};

use super::{go_on, is_at_rest, missing};
use crate::{
    Control, Error, Result,
    firewall::RULES_MAX,
    tables::{ACCOUNTS, BY_OWNER, FIREWALL_RULES, SERVERS, rule_owner},
};

/// What becomes of a rule that a machine holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleJudgement {
    /// Which.
    pub rule: FirewallRuleId,
    /// The machine that has it.
    pub server: ServerId,
    /// Whose instances it works with; `None` is everybody's.
    pub owner: Option<AccountId>,
    /// What it says.
    pub text: String,
    /// Why it cannot be made again.
    pub refused: Option<String>,
    /// What will be otherwise than it was.
    pub notes: Vec<String>,
}

/// Says what would become of a rule of `server`, without changing anything; `None` where nothing is to be done.
pub fn judge_rule(control: &Control, server: ServerId, id: FirewallRuleId, told: &ToldRule) -> Option<RuleJudgement> {
    decide(&control.snapshot(), (server, id), told, control.now()).map(|(judgement, _)| judgement)
}

/// Makes the record of a rule of `server` again, unless the judgement refuses it.
pub async fn adopt_rule(
    control: &Control,
    server: ServerId,
    id: FirewallRuleId,
    told: &ToldRule,
) -> Result<Option<RuleJudgement>> {
    let (_, judgement) = control
        .store
        .update(|snapshot| {
            let decided = decide(snapshot, (server, id), told, control.now());
            Ok::<_, Error>(match decided {
                Some((judgement, made)) => (made.unwrap_or_default(), Some(judgement)),
                None => (Transaction::new(), None),
            })
        })
        .await?;
    if judgement.as_ref().is_some_and(|judgement| judgement.refused.is_none()) {
        tracing::info!(rule = %id, %server, "a rule of the firewall is known again");
    }
    Ok(judgement)
}

/// Machines that have spoken since a restore and were not asked yet for the rules they hold.
pub fn not_asked_for_rules(control: &Control) -> Vec<ServerId> {
    let is_open = |server: &Server| server.restored.is_some_and(|it| it.compared && it.rules.is_none());
    control.snapshot().scan(&SERVERS).filter(|server| is_open(server)).map(|server| server.id).collect()
}

/// Notes how many rules a machine holds that the records lack. Where nothing is left to decide, machines are told again.
pub async fn rules_compared(control: &Control, server: ServerId, unknown: usize) -> Result<()> {
    control
        .store
        .update(|snapshot| {
            let entry = snapshot.get(&SERVERS, &server.to_string());
            let noted = entry.and_then(|entry| {
                let restored = entry.restored.filter(|restored| restored.rules != Some(unknown))?;
                let restored = Some(Restored { rules: Some(unknown), ..restored });
                let said = Server { restored, ..entry.value.clone() };
                Some(Transaction::new().may_use_reserve().replace(&SERVERS, &entry, said))
            });
            Ok::<_, Error>((noted.unwrap_or_default(), ()))
        })
        .await?;
    if is_at_rest(&control.snapshot(), control.config.asks_for_rules) {
        go_on(control, None).await?;
    }
    Ok(())
}

fn decide(
    snapshot: &Snapshot,
    (server, id): (ServerId, FirewallRuleId),
    told: &ToldRule,
    now: Timestamp,
) -> Option<(RuleJudgement, Option<Transaction>)> {
    let restored = snapshot.get(&SERVERS, &server.to_string())?.restored?;
    let origin = &told.origin;
    let known = snapshot.get(&FIREWALL_RULES, &id.to_string());
    match &known {
        Some(known) if known.version >= told.version => return None,
        None if !restored.brought && origin.created_at <= restored.taken_at => return None,
        _ => {}
    }
    let mut judgement = RuleJudgement {
        rule: id,
        server,
        owner: origin.owner,
        text: origin.text.clone(),
        refused: None,
        notes: Vec::new(),
    };
    let made = Rule::parse_as(&origin.text, Language::CURRENT).map_err(|error| error.to_string()).and_then(|rule| {
        let checked = |text: &Option<String>| text.clone().filter(|text| FirewallRule::check_description(text).is_ok());
        let record = FirewallRule {
            id,
            owner: origin.owner,
            rule,
            enabled: true,
            log: told.log,
            description: checked(&origin.description),
            created_by: checked(&origin.created_by),
            version: told.version,
            created_at: origin.created_at,
            updated_at: now,
        };
        match &known {
            Some(known) if known.owner != record.owner => Err("a record says that it is somebody else's".to_owned()),
            Some(known) => {
                judgement.notes.push(format!("the records have version {} of it", known.version));
                Ok(Some(Transaction::new().replace(&FIREWALL_RULES, known, record)))
            }
            None => create(snapshot, record, now, &mut judgement.notes),
        }
    });
    match made {
        Ok(Some(transaction)) => Some((judgement, Some(transaction))),
        Ok(None) => None,
        Err(why) => {
            judgement.refused = Some(why);
            Some((judgement, None))
        }
    }
}

/// A new record; none where there is one like it: each datacenter begins with some for everybody.
fn create(
    snapshot: &Snapshot,
    record: FirewallRule,
    now: Timestamp,
    notes: &mut Vec<String>,
) -> Result<Option<Transaction>, String> {
    let mut transaction = Transaction::new();
    let of_owner = || snapshot.find(&FIREWALL_RULES, BY_OWNER, &rule_owner(record.owner));
    let is_like = |other: &FirewallRule| other.enabled && (&other.rule, other.log) == (&record.rule, record.log);
    if record.owner.is_none() && of_owner().any(|other| is_like(&other)) {
        return Ok(None);
    }
    if of_owner().count() >= RULES_MAX {
        return Err(format!("its owner has {RULES_MAX} rules already; delete some"));
    }
    if let Some(owner) = record.owner
        && snapshot.get(&ACCOUNTS, &owner.to_string()).is_none()
    {
        transaction = missing::account(snapshot, owner, now, notes, transaction)?;
    }
    Ok(Some(transaction.create(&FIREWALL_RULES, record)))
}
