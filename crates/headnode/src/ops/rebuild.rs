//! Rebuilding after a restore: what machines have is asked of them, looked at, and adopted. See [`control::rebuild`].

use std::collections::{BTreeMap, BTreeSet};

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
    server::Server,
    target::LastTold,
};
use nodeapi::inquiry::{Question, TOLD_MAX, Told};
use opsapi::{FoundInstance, FoundRule, LostInstance, Rebuild, RebuildView, WaitingServer};

use super::{Answer, Body, Ops};
use crate::{
    inquiries::{AskError, Inquiries},
    rebuilding::held_rules,
};

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
    let asked = ask(&ops.inquiries, spoken(&ops)).await;
    let rules = asked.rules.iter().filter_map(|(id, (hostname, server, told))| {
        let judged = rebuild::judge_rule(&ops.control, *server, *id, told)?;
        Some(rule_view(&ops, hostname.clone(), judged))
    });
    let rules = rules.collect();
    Ok(Json(whole(&ops, (views, rules), &asked, false)))
}

async fn carry_out(
    State(ops): State<Ops>,
    Extension(caller): Extension<Caller>,
    Body(how): Body<Rebuild>,
) -> Answer<RebuildView> {
    // Who speaks from now on is looked at the next time.
    let spoken = spoken(&ops);
    let mut views = Vec::new();
    for found in found(&ops).await {
        let judged = match &found.told {
            Ok(told) => Ok(rebuild::adopt(&ops.control, &caller, found.server, found.instance, told).await?),
            Err(why) => Err(why.clone()),
        };
        views.push(view(&ops, found, judged));
    }
    let asked = ask(&ops.inquiries, spoken).await;
    let mut rules = Vec::new();
    for (id, (hostname, server, told)) in &asked.rules {
        let adopted = rebuild::adopt_rule(&ops.control, *server, *id, told).await?;
        rules.extend(adopted.map(|judged| rule_view(&ops, hostname.clone(), judged)));
    }
    // More than are remembered of one machine: the next reports tell of the rest.
    let is_all = strangers(&ops).values().all(|(_, strangers)| strangers.len() < STRANGERS_MAX);
    let refused = views.iter().map(|view| &view.refused).chain(rules.iter().map(|rule: &FoundRule| &rule.refused));
    if is_all
        && (how.leave || refused.flatten().next().is_none())
        && let Some(ready) = asked.ready(how.leave)
    {
        rebuild::go_on(&ops.control, Some(&ready)).await?;
    }
    Ok(Json(whole(&ops, (views, rules), &asked, true)))
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

/// Machines that are told nothing since a restore and have spoken.
fn spoken(ops: &Ops) -> Vec<Server> {
    let snapshot = ops.control.snapshot();
    let spoken = snapshot.scan(&SERVERS).filter(|server| server.restored.is_some_and(|restored| restored.compared));
    spoken.map(|server| server.value.clone()).collect()
}

/// What machines said when they were asked for the rules they hold.
#[derive(Default)]
struct Asked {
    /// In the newest version there is of each, with a machine that has it.
    rules: BTreeMap<FirewallRuleId, (String, ServerId, ToldRule)>,
    /// Machines of which that is all.
    heard: BTreeSet<ServerId>,
    /// Why it is not known of others.
    unheard: BTreeMap<ServerId, AskError>,
}

impl Asked {
    /// Machines that may be told again without losing rules that they alone hold: all or none, or with `leave` as many as there are. One that does not
    /// answer is like one that has not spoken; of one that answers and cannot say, the rules are left.
    fn ready(&self, leave: bool) -> Option<BTreeSet<ServerId>> {
        if !leave {
            return self.unheard.is_empty().then(|| self.heard.clone());
        }
        let unable =
            self.unheard.iter().filter(|(_, why)| matches!(why, AskError::Failed(_))).map(|(server, _)| *server);
        Some(self.heard.iter().copied().chain(unable).collect())
    }
}

async fn ask(inquiries: &Inquiries, servers: Vec<Server>) -> Asked {
    let asks = servers.into_iter().map(async |server| {
        let held = held_rules(inquiries, server.id).await;
        (server, held)
    });
    let mut asks = stream::iter(asks).buffered(ASKED_AT_ONCE);
    let mut asked = Asked::default();
    while let Some((server, held)) = asks.next().await {
        let held = match held {
            Ok(held) => held,
            // An agent of before; what it enforces it cannot say.
            Err(AskError::Refused(_)) => BTreeMap::new(),
            // It said before that it has none but those that are known.
            Err(_) if server.restored.is_some_and(|restored| restored.rules == Some(0)) => BTreeMap::new(),
            Err(why) => {
                asked.unheard.insert(server.id, why);
                continue;
            }
        };
        for (id, told) in held {
            if asked.rules.get(&id).is_none_or(|(_, _, other)| other.version < told.version) {
                asked.rules.insert(id, (server.hostname.clone(), server.id, told));
            }
        }
        asked.heard.insert(server.id);
    }
    asked
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

fn whole(ops: &Ops, (found, rules): (Vec<FoundInstance>, Vec<FoundRule>), asked: &Asked, done: bool) -> RebuildView {
    let snapshot = ops.control.snapshot();
    let waiting = snapshot.scan(&SERVERS).filter_map(|server| {
        let restored = server.restored?;
        Some(WaitingServer {
            server: server.id,
            hostname: server.hostname.clone(),
            taken_at: restored.taken_at,
            brought: restored.brought,
            has_spoken: restored.compared,
            unheard: asked.unheard.get(&server.id).map(ToString::to_string),
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

#[cfg(test)]
mod tests {
    use model::{server::Restored, time::Timestamp};
    use nodeapi::inquiry::HeldRules;

    use super::*;

    /// A machine that has spoken since a restore, and of whose rules so many were unknown.
    fn server(rules: Option<usize>) -> Server {
        let restored = Some(Restored { taken_at: Timestamp(1), brought: false, compared: true, strangers: 0, rules });
        Server { restored, ..Server::new(ServerId::random(), "cn", Timestamp(1)) }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_say_what_it_holds_is_not_taken_to_hold_nothing() {
        type Says = nodeapi::inquiry::Answer;
        let inquiries = Inquiries::default();
        let answers = async |server: &Server, answer: Says| {
            let inquiry = inquiries.next(server.id).await;
            assert!(inquiries.answered(server.id, inquiry.id, answer));
        };
        let (well, old, unable) = (server(Some(3)), server(None), server(None));
        let (silent, done) = (server(None), server(Some(0)));
        let why = || "no".to_owned();
        let all = [&well, &old, &unable, &silent, &done].map(Server::clone).to_vec();
        let (asked, (), (), ()) = tokio::join!(
            ask(&inquiries, all),
            answers(&well, Says::Rules(HeldRules::default())),
            answers(&old, Says::Refused { why: why() }),
            answers(&unable, Says::Failed { why: why() }),
        );
        assert_eq!(asked.heard, BTreeSet::from([well.id, old.id, done.id]));
        let unheard = [(unable.id, AskError::Failed(why())), (silent.id, AskError::Silent(silent.id))];
        assert_eq!(asked.unheard, BTreeMap::from(unheard));
        assert_eq!(asked.ready(false), None, "nobody goes on before all have said it");
        assert_eq!(asked.ready(true), Some(BTreeSet::from([well.id, old.id, done.id, unable.id])));

        let (asked, ()) =
            tokio::join!(ask(&inquiries, vec![well.clone()]), answers(&well, Says::Rules(HeldRules::default())));
        assert_eq!(asked.ready(false), Some(BTreeSet::from([well.id])));
    }
}
