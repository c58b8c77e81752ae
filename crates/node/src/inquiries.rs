//! Questions of the headnode, answered: see [`nodeapi::inquiry`].
//!
//! For every headnode one task waits for its next question, so that it does not matter which one an operator asks; each is answered by a task
//! of its own, a few at a time, so that a slow disk or a slow cable under one answer keeps nobody else waiting. What is answered is never logged: consoles hold what tenants print.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base::backoff::Backoff;
use host::zone::ConsoleMark;
use model::{
    id::{FirewallRuleId, InstanceId},
    meters::NodeMeters,
    path::{Look, Sight},
    target::{LastTold, Target},
};
use nodeapi::inquiry::{Answer, CONSOLE_MAX_BYTES, Console, HeldRules, Inquiry, Question, TOLD_BYTES, TOLD_MAX, Told};
use tokio::{sync::Semaphore, task::JoinHandle};

use crate::{fitness, meters, shared::Shared, usage, wires};

/// Questions answered at once. Each holds at most a console log and its text.
const AT_ONCE: usize = 4;

/// First pause after a request that failed.
const PAUSE_FLOOR: Duration = Duration::from_millis(200);

/// Longest pause. An operator who asks waits no longer than [`nodeapi::inquiry::ANSWER_SECONDS`].
const PAUSE_CEILING: Duration = Duration::from_secs(5);

/// Bytes of one character in UTF-8 at most.
const CHARACTER_BYTES: usize = 4;

/// Answers until shutdown, whichever headnode asks.
pub(crate) async fn answer_all(shared: Arc<Shared>) {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut targets = shared.target.subscribe();
    let mut asking: BTreeMap<String, JoinHandle<()>> = BTreeMap::new();
    loop {
        targets.borrow_and_update();
        let headnodes = shared.link.headnodes();
        asking.retain(|headnode, task| {
            let is_known = headnodes.contains(headnode);
            if !is_known {
                // It waits for questions that nobody will ask there any more.
                task.abort();
            }
            is_known
        });
        for headnode in headnodes {
            let (shared, permits, name) = (shared.clone(), permits.clone(), headnode.clone());
            let answering = || base::task::spawn("inquiries", answer_one(shared, permits, name));
            asking.entry(headnode).or_insert_with(answering);
        }
        tokio::select! {
            biased;
            _ = targets.changed() => {}
            () = shared.shutdown.wait() => break,
        }
    }
    for task in asking.into_values() {
        // It ends at shutdown; a panic was told where it happened.
        let _ = task.await;
    }
}

/// Answers what one headnode asks until shutdown.
async fn answer_one(shared: Arc<Shared>, permits: Arc<Semaphore>, headnode: String) {
    let headnode: Arc<str> = headnode.into();
    let mut pauses = Backoff::new(PAUSE_FLOOR, PAUSE_CEILING);
    loop {
        let asked = tokio::select! {
            biased;
            asked = next(&shared, &permits, &headnode) => asked,
            () = shared.shutdown.wait() => return,
        };
        match asked {
            Ok(None) => pauses.reset(),
            Ok(Some((inquiry, permit))) => {
                pauses.reset();
                let (shared, headnode) = (shared.clone(), headnode.clone());
                base::task::spawn("inquiry", async move {
                    tokio::select! {
                        biased;
                        () = answer(&shared, &headnode, inquiry) => {}
                        () = shared.shutdown.wait() => {}
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // That no headnode answers is said by those who fetch targets; this one only asks again.
                tracing::debug!(error = %base::errors::chain(&error), "no questions");
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(pauses.next_delay()) => {}
                    () = shared.shutdown.wait() => return,
                }
            }
        }
    }
}

type Asked = Option<(Inquiry, tokio::sync::OwnedSemaphorePermit)>;

/// The next question of one headnode, and room to answer it.
async fn next(shared: &Shared, permits: &Arc<Semaphore>, headnode: &str) -> Result<Asked, nodeapi::link::LinkError> {
    let Some(inquiry) = shared.link.inquiry(headnode).await? else { return Ok(None) };
    let permit = permits.clone().acquire_owned().await.expect("nobody closes this semaphore");
    Ok(Some((inquiry, permit)))
}

async fn answer(shared: &Arc<Shared>, headnode: &str, inquiry: Inquiry) {
    let answer = match inquiry.question {
        Question::Console { instance, max_bytes, after } => console(shared, instance, max_bytes, after).await,
        Question::Path(look) => path(shared, *look).await,
        Question::FirewallLog { filter, max_lines, after } => {
            shared.firewall_log.read(filter, max_lines, after.as_deref()).map(Answer::FirewallLog)
        }
        Question::Wire { machine } => wires::try_one(shared, machine).await.map(Answer::Wire),
        Question::Fitness => Ok(Answer::Fitness(fitness::look(shared).await)),
        Question::Meters => {
            meters::read(shared).await.map(|read| Answer::Meters(Box::new(NodeMeters::clone(&read.meters))))
        }
        Question::Usage { after } => usage::ended(shared, after).await.map(Answer::Usage),
        Question::Told { instances } => told(&shared.target(), &instances),
        // Not in the words of an agent that does not know the question: what it holds would be taken for nothing.
        Question::Rules { after } => Ok(rules(&shared.target(), after).unwrap_or_else(|why| Answer::Failed { why })),
        Question::Unknown => {
            Err("this machine's agent is older than the headnode and does not know the question".into())
        }
    };
    let answer = answer.unwrap_or_else(|why| Answer::Refused { why });
    match shared.link.answer(headnode, inquiry.id, &answer).await {
        Ok(_) => shared.activity.inquiries.one(),
        Err(error) => {
            tracing::info!(error = %base::errors::chain(&error), "an answer did not reach whoever asked");
        }
    }
}

/// What is held of `instances`, as much as one answer takes, and of one in any case.
fn told(target: &Target, instances: &[InstanceId]) -> Result<Answer, String> {
    if instances.len() > TOLD_MAX {
        return Err(format!("at most {TOLD_MAX} instances may be asked for at once, not {}", instances.len()));
    }
    let (mut answer, mut bytes) = (Told::default(), 0);
    for instance in instances {
        let Some(told) = LastTold::of(target, *instance) else { continue };
        if bytes > TOLD_BYTES {
            answer.left.push(*instance);
            continue;
        }
        bytes += serde_json::to_vec(&told).map_err(|error| error.to_string())?.len();
        answer.told.insert(*instance, told);
    }
    Ok(Answer::Told(answer))
}

/// What is held of rules behind `after`, as much as one answer takes.
fn rules(target: &Target, after: Option<FirewallRuleId>) -> Result<Answer, String> {
    let (mut answer, mut bytes) = (HeldRules::default(), 0);
    for (id, rule) in target.firewall.told_rules(after) {
        if bytes > TOLD_BYTES {
            answer.more = true;
            break;
        }
        bytes += serde_json::to_vec(&rule).map_err(|error| error.to_string())?.len();
        answer.rules.insert(id, rule);
    }
    Ok(Answer::Rules(answer))
}

async fn console(
    shared: &Shared,
    instance: InstanceId,
    max_bytes: u32,
    after: Option<String>,
) -> Result<Answer, String> {
    if !shared.board.knows(instance) {
        return Err(format!("this machine has no instance {instance}"));
    }
    let after: Option<ConsoleMark> =
        after.map(|after| after.parse()).transpose().map_err(|error| base::errors::chain(&error))?;
    let bytes = max_bytes.min(CONSOLE_MAX_BYTES) as usize;
    let piece = shared.verbs.run("console", move |host| host.zones.console(instance, after, bytes)).await;
    let piece = piece.map_err(|error| base::errors::chain(&error))?;
    let (text, kept) = text_of(&piece.bytes, after.is_none() || piece.lost);
    let end = piece.end.map(|end| ConsoleMark { offset: end.offset.saturating_sub(kept as u64), ..end });
    Ok(Answer::Console(Console { text, next: end.map(|end| end.to_string()), lost: piece.lost }))
}

async fn path(shared: &Shared, look: Look) -> Result<Answer, String> {
    let seen = shared.verbs.run("path", move |host| {
        let filters = host.filters.intact()?;
        Ok::<_, host::Error>(Sight { filters: Some(filters), ..host.links.sight(&look)? })
    });
    seen.await.map(Answer::Path).map_err(|error| base::errors::chain(&error))
}

/// The text of a piece, and how many bytes at its end are kept for the next one: the begin of a character. A piece that was
/// `cut` out anywhere may begin within one, which is left out.
fn text_of(bytes: &[u8], cut: bool) -> (String, usize) {
    let continues = |byte: &u8| byte & 0b1100_0000 == 0b1000_0000;
    let skipped =
        if cut { bytes.iter().take(CHARACTER_BYTES - 1).take_while(|byte| continues(byte)).count() } else { 0 };
    let bytes = &bytes[skipped..];
    let tail = &bytes[bytes.len().saturating_sub(CHARACTER_BYTES - 1)..];
    let begun = tail.iter().rposition(|byte| !continues(byte)).map(|at| &tail[at..]);
    // No length of error: what is there is right so far.
    let whole = |text: &&[u8]| std::str::from_utf8(text).is_err_and(|error| error.error_len().is_none());
    let kept = begun.filter(whole).map_or(0, <[u8]>::len);
    (String::from_utf8_lossy(&bytes[..bytes.len() - kept]).into_owned(), kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_never_torn() {
        let text = "a → b 🦀 ü";
        for size in 1..8 {
            let (mut said, mut from) = (String::new(), 0);
            while from < text.len() {
                let to = text.len().min(from + size);
                let (piece, kept) = text_of(&text.as_bytes()[from..to], false);
                said.push_str(&piece);
                if to - kept == from {
                    // Smaller than a character: the reader asks for more.
                    assert!(size < CHARACTER_BYTES);
                    break;
                }
                from = to - kept;
            }
            assert!(said == text || size < CHARACTER_BYTES, "{size}: {said}");
        }
        assert_eq!(text_of("→b".as_bytes().get(1..).unwrap(), true), ("b".to_owned(), 0));
        assert_eq!(text_of(b"\xff\xffx\xe2\x86", false), ("\u{fffd}\u{fffd}x".to_owned(), 2));
        assert_eq!(text_of(b"x\xff", false), ("x\u{fffd}".to_owned(), 0));
        assert_eq!(text_of(b"", true), (String::new(), 0));
    }
}
