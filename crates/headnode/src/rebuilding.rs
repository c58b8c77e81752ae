//! After a restore: each machine that has spoken is asked which rules of the firewall it holds, so that none is forgotten that the backup is too old for. See
//! [`control::rebuild`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

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
    // Leaf data: never held while somebody is asked.
    failing: Mutex<Failing>,
}

impl AskForRules {
    /// For the machines of a control plane.
    pub(crate) fn new(control: &Control, inquiries: &Inquiries) -> Self {
        Self { control: control.clone(), inquiries: inquiries.clone(), failing: Mutex::default() }
    }

    async fn run(&self) -> Result<String, control::Error> {
        let open = self.failing().next(rebuild::not_asked_for_rules(&self.control));
        let asks = open.into_iter().map(async |server| (server, held_rules(&self.inquiries, server).await));
        let mut asks = stream::iter(asks).buffer_unordered(AT_ONCE);
        let mut count = 0;
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
                    if self.failing().failed(server) {
                        let error = chain(&error);
                        tracing::warn!(%server, error, "a machine was not asked for the rules it holds; it is tried again");
                    }
                    continue;
                }
            };
            rebuild::rules_compared(&self.control, server, unknown).await?;
            count += 1;
        }
        Ok(if count == 0 { String::new() } else { format!("asked {count} machines for the rules they hold") })
    }

    fn failing(&self) -> MutexGuard<'_, Failing> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Machines that could not be asked: each is told of once, and keeps nobody from being asked.
#[derive(Default)]
struct Failing {
    passes: u64,
    /// The pass in which each failed last.
    last: BTreeMap<ServerId, u64>,
}

impl Failing {
    /// Which of `open` are asked in the next pass: those that did not fail yet, then those that failed longest ago.
    fn next(&mut self, mut open: Vec<ServerId>) -> Vec<ServerId> {
        self.passes += 1;
        let there: BTreeSet<ServerId> = open.iter().copied().collect();
        self.last.retain(|server, _| there.contains(server));
        open.sort_by_key(|server| self.last.get(server).copied());
        open.truncate(ASKED_MAX);
        open
    }

    /// Says whether that is new.
    fn failed(&mut self, server: ServerId) -> bool {
        self.last.insert(server, self.passes).is_none()
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

/// What a machine holds of rules. An agent that does not know the question refuses it ([`AskError::Refused`]).
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
            _ => return Err(AskError::Failed("its machine answered something else".to_owned())),
        }
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use nodeapi::inquiry::HeldRules;

    use super::*;

    #[test]
    fn the_silent_keep_nobody_from_being_asked() {
        let mut all: Vec<ServerId> = (0..3 * ASKED_MAX).map(|_| ServerId::random()).collect();
        all.sort();
        let well = all[all.len() - 1];
        let (mut failing, mut asked) = (Failing::default(), BTreeSet::new());
        for pass in 0..6 {
            let next = failing.next(all.clone());
            assert_eq!(next.len(), ASKED_MAX);
            assert_eq!(next.contains(&well), pass % 3 == 2, "each third pass asks everybody's last");
            for server in &next {
                assert_eq!(failing.failed(*server), pass < 3, "told of once");
            }
            asked.extend(next);
        }
        assert_eq!(asked, all.iter().copied().collect());
        assert_eq!(failing.next(vec![well]), [well]);
        assert_eq!(failing.last.len(), 1, "who was asked is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_does_not_know_the_question_refuses_it() {
        let (inquiries, server) = (Inquiries::default(), ServerId::random());
        let hears = async |answer: Answer| {
            let answered = async {
                let inquiry = inquiries.next(server).await;
                assert!(inquiries.answered(server, inquiry.id, answer));
            };
            tokio::join!(held_rules(&inquiries, server), answered).0
        };
        assert_eq!(hears(Answer::Rules(HeldRules::default())).await, Ok(BTreeMap::new()));
        let why = || "no".to_owned();
        assert_eq!(hears(Answer::Refused { why: why() }).await, Err(AskError::Refused(why())));
        assert_eq!(hears(Answer::Failed { why: why() }).await, Err(AskError::Failed(why())));
        let other = hears(Answer::Told(nodeapi::inquiry::Told::default())).await;
        assert!(matches!(other, Err(AskError::Failed(_))), "{other:?}");
    }
}
