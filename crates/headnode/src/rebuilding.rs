//! After a restore: each machine that has spoken is asked which rules of the firewall it holds, so that none is forgotten that the backup is too old for. See
//! [`control::rebuild`].

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use base::errors::chain;
use control::{Control, rebuild};
use flow::loops::Loop;
use futures_util::{StreamExt as _, stream};
use model::{
    firewall::ToldRule,
    id::{FirewallRuleId, ServerId},
};
use nodeapi::inquiry::{Answer, Question};
use store::BoxFuture;

use crate::inquiries::{AskError, Inquiries};

/// Between two looks at who has spoken. Machines are told nothing until they were asked.
const PERIOD: Duration = Duration::from_secs(1);
/// How long one pass may take: a machine that does not answer is asked again in the next.
const DEADLINE: Duration = Duration::from_secs(60);
/// Machines asked at once.
const AT_ONCE: usize = 8;
/// Machines asked in one pass.
const ASKED_MAX: usize = 40;
/// Questions to one machine: as many megabytes of rules are more than it can enforce.
const PAGES_MAX: usize = 64;

/// Asks.
pub(crate) struct AskForRules {
    control: Control,
    inquiries: Inquiries,
    /// Why machines were not asked in the last pass, so that each is logged once. Leaf data.
    failing: Mutex<BTreeMap<ServerId, String>>,
}

impl AskForRules {
    /// For the machines of a control plane.
    pub(crate) fn new(control: &Control, inquiries: &Inquiries) -> Self {
        Self { control: control.clone(), inquiries: inquiries.clone(), failing: Mutex::default() }
    }

    async fn run(&self) -> Result<String, control::Error> {
        let mut open = rebuild::not_asked_for_rules(&self.control);
        open.truncate(ASKED_MAX);
        let asks = open.into_iter().map(async |server| (server, held_rules(&self.inquiries, server).await));
        let mut asks = stream::iter(asks).buffer_unordered(AT_ONCE);
        let (mut count, mut failed) = (0, BTreeMap::new());
        while let Some((server, held)) = asks.next().await {
            let unknown = match held {
                Ok(held) => held
                    .iter()
                    .filter(|(id, told)| rebuild::judge_rule(&self.control, server, **id, told).is_some())
                    .count(),
                Err(error @ AskError::Refused(_)) => {
                    // An agent of before; what it enforces it cannot say.
                    tracing::warn!(%server, error = chain(&error), "a machine does not say which rules of the firewall it holds");
                    0
                }
                Err(error) => {
                    failed.insert(server, chain(&error));
                    continue;
                }
            };
            rebuild::rules_compared(&self.control, server, unknown).await?;
            count += 1;
        }
        let mut failing = self.failing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (server, why) in failed.iter().filter(|(server, _)| !failing.contains_key(server)) {
            tracing::warn!(%server, why, "a machine was not asked for the rules it holds; it is tried again");
        }
        *failing = failed;
        Ok(if count == 0 { String::new() } else { format!("asked {count} machines for the rules they hold") })
    }
}

impl Loop for AskForRules {
    fn name(&self) -> &'static str {
        "rules after a restore"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    fn deadline(&self) -> Duration {
        DEADLINE
    }

    fn pass(&self) -> BoxFuture<'_, Result<String, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(async { Ok(self.run().await?) })
    }
}

/// What a machine holds of rules.
pub(crate) async fn held_rules(
    inquiries: &Inquiries,
    server: ServerId,
) -> Result<BTreeMap<FirewallRuleId, ToldRule>, AskError> {
    let (mut held, mut after) = (BTreeMap::new(), None);
    for _ in 0..PAGES_MAX {
        match inquiries.ask(server, Question::Rules { after }).await? {
            Answer::Rules(page) => {
                after = page.rules.last_key_value().map(|(id, _)| *id);
                held.extend(page.rules);
                if !page.more || after.is_none() {
                    return Ok(held);
                }
            }
            _ => return Err(AskError::Refused("it answered something else".to_owned())),
        }
    }
    Ok(held)
}
