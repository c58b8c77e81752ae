//! Which of several headnodes is asked: the one that answered last, and the next where that one cannot be reached, says that it is not well, or says nothing.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;

use super::{
    http::{Answer, Ask, Client, ClientError, unaskable},
    repeat,
};

/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long one of several headnodes may take to answer before another is asked: longer than a datacenter needs to see that one is not well, and
/// to do without it.
const PATIENCE: Duration = Duration::from_secs(4);

impl Client {
    /// What the server says to anybody who asks whether it is there.
    pub(super) async fn ping(&self) -> Result<Answer, ClientError> {
        let mut order = self.order();
        loop {
            let (index, is_last) = order.remove(0);
            let url = format!("{}/--ping", self.bases[index]);
            let request = Request::builder().uri(&url).body(Full::<Bytes>::default());
            let request = request.map_err(|error| unaskable(&url, error))?;
            let outcome = self.fetch(&url, request, patience(is_last)).await;
            match &outcome {
                Err(_) if !is_last => {}
                Ok(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE && !is_last => {}
                _ => return self.noted(index, outcome),
            }
        }
    }

    /// Sends once to each headnode until one can be asked. One that may have heard it is the last, unless nothing changes by it; the next call then
    /// begins elsewhere. What changes something has a name, so that it may be sent again.
    pub(super) async fn exchange(&self, ask: &Ask, name: Option<&str>) -> Result<Answer, ClientError> {
        let changes_nothing = matches!(ask.method, Method::GET | Method::HEAD);
        let mut order = self.order();
        loop {
            let (index, is_last) = order.remove(0);
            let url = format!("{}{}", self.bases[index], ask.target);
            let request = self.request(ask, &url, name).await?;
            let outcome =
                self.fetch(&url, request, patience(self.bases.len() == 1 || changes_nothing && is_last)).await;
            match &outcome {
                Err(ClientError::Connect { source, .. })
                    if !is_last && (changes_nothing || repeat::never_left(source.as_ref())) => {}
                Err(ClientError::Timeout { .. }) if !is_last && changes_nothing => {}
                Err(ClientError::Timeout { .. }) => {
                    self.prefer_after(index);
                    return outcome;
                }
                // It says that it has not done it, and cannot now.
                Ok(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE && !is_last => {}
                _ => return self.noted(index, outcome),
            }
        }
    }

    /// Indexes of all headnodes, the one that answered last first; with each whether it is the last to try.
    pub(super) fn order(&self) -> Vec<(usize, bool)> {
        let (first, count) = (self.preferred.load(Ordering::Relaxed), self.bases.len());
        (0..count).map(|offset| ((first + offset) % count, offset + 1 == count)).collect()
    }

    /// Whether there is another headnode to ask.
    pub(super) fn has_others(&self) -> bool {
        self.bases.len() > 1
    }

    /// What comes next begins at another headnode than this.
    pub(super) fn prefer_another(&self) {
        self.prefer_after(self.preferred.load(Ordering::Relaxed));
    }

    fn prefer_after(&self, index: usize) {
        self.preferred.store((index + 1) % self.bases.len(), Ordering::Relaxed);
    }

    pub(super) fn noted<T>(&self, index: usize, outcome: Result<T, ClientError>) -> Result<T, ClientError> {
        if outcome.is_ok() {
            self.preferred.store(index, Ordering::Relaxed);
        }
        outcome
    }
}

/// How long a headnode may take: one that was stopped where it stood takes connections and says nothing.
const fn patience(is_last: bool) -> Duration {
    if is_last { DEADLINE } else { PATIENCE }
}
