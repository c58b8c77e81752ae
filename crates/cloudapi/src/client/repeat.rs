//! Sending what changes something, so that a lost connection does not leave one guessing.
//!
//! Every such call carries a name. When the connection breaks before the answer is here, nobody can say whether the call was
//! carried out; a server that knows names ([`HEADER`] among the headers it admits) is then asked again under the same one, and carries it
//! out once. With any other server the failure is reported as before: a second sending might make a second instance.
//!
//! Where there are several headnodes, one that does not answer in time is treated the same way: the next is asked under the same name. A headnode
//! that then says that it cannot do it speaks for that sending alone, and is not the answer while an earlier one may have been carried out.

use std::{sync::atomic::Ordering, time::Duration};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use http::{StatusCode, header};
use tokio::time::{Instant, sleep};

use super::http::{Answer, Ask, Client, ClientError};

/// The header that carries a call's name.
pub(super) const HEADER: &str = "idempotency-key";
/// How long to go on after a connection was lost: a headnode that is killed is back within seconds.
const REPEATED_FOR: Duration = Duration::from_secs(30);
/// Waits between two sendings: doubled each time.
const WAIT_FLOOR: Duration = Duration::from_millis(100);
const WAIT_CEILING: Duration = Duration::from_secs(2);

/// A name nobody else gives.
pub(super) fn fresh_name() -> Result<String, ClientError> {
    let mut bytes = [0; 16];
    let drawn = SystemRandom::new().fill(&mut bytes);
    drawn.map_err(|_| ClientError::Profile("the system gives no random numbers".to_owned()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What to do after an answer, or after none.
enum Next {
    Done,
    /// The connection broke: first see whether the server knows names.
    Look,
    /// The server says that an earlier sending is still being carried out.
    Again,
}

impl Client {
    /// Sends `ask` under `name`, and again when the connection is lost before the answer is here.
    pub(super) async fn send_named(&self, ask: &Ask, name: &str) -> Result<Answer, ClientError> {
        self.resent.store(false, Ordering::Relaxed);
        let mut outcome = self.exchange(ask, Some(name)).await;
        let began = Instant::now();
        let mut wait = WAIT_FLOOR;
        // A server that was not there to begin with is not waited for: its address may be wrong.
        let mut sent = !is_undone(&outcome);
        let mut lost = None;
        while began.elapsed() < REPEATED_FOR {
            let next = match judge(&outcome, self.has_others()) {
                Next::Done if lost.is_some() && is_undone(&outcome) => Next::Look,
                next => next,
            };
            if matches!(next, Next::Done) || !sent {
                break;
            }
            sleep(wait).await;
            wait = (wait * 2).min(WAIT_CEILING);
            if matches!(next, Next::Look) {
                match self.ping().await {
                    Ok(ping) if knows_names(&ping) => {}
                    Ok(_) => break,
                    // It is not back yet.
                    Err(_) => continue,
                }
            }
            if outcome.is_err() && !is_undone(&outcome) {
                self.resent.store(true, Ordering::Relaxed);
                lost = outcome.err();
            }
            outcome = self.exchange(ask, Some(name)).await;
            sent = true;
        }
        match lost {
            Some(lost) if is_undone(&outcome) => Err(lost),
            _ => outcome,
        }
    }
}

/// Whether this sending was certainly not carried out, for no reason that lies in what was asked.
fn is_undone(outcome: &Result<Answer, ClientError>) -> bool {
    match outcome {
        Err(ClientError::Connect { source, .. }) => never_left(source.as_ref()),
        Ok(answer) => answer.status == StatusCode::SERVICE_UNAVAILABLE,
        Err(_) => false,
    }
}

fn judge(outcome: &Result<Answer, ClientError>, has_others: bool) -> Next {
    match outcome {
        Err(ClientError::Connect { .. }) => Next::Look,
        Err(ClientError::Timeout { .. }) if has_others => Next::Look,
        Ok(answer) if answer.status == StatusCode::CONFLICT && answer.headers.contains_key(header::RETRY_AFTER) => {
            Next::Again
        }
        _ => Next::Done,
    }
}

/// Whether there was no connection to send anything on.
pub(super) fn never_left(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(hyper_util::client::legacy::Error::is_connect)
}

fn knows_names(answer: &Answer) -> bool {
    let admitted = answer.headers.get_all(header::ACCESS_CONTROL_ALLOW_HEADERS).iter();
    let mut names = admitted.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    names.any(|name| name.trim().eq_ignore_ascii_case(HEADER))
}
