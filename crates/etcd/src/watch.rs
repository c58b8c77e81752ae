//! Following every change.
//!
//! A watch that hears nothing may be idle, or its member may be frozen, or cut off from the others and unaware of any change. So the
//! member is asked for a sign of life every second, on the watch's own stream, and is left when it gives none; and a member without a
//! leader ends the stream by itself (see `hasleader` in `call`). Only events move the revision: a sign of life carries one too, but
//! etcd up to 3.4.25 and 3.5.7 sends it past events that are still to come.
//!
//! A cut stream is an error here; the mirror opens another one where this one ended. History that etcd has compacted, and a revision
//! that it never had (it was restored from an older copy), are [`EngineError::Compacted`]: the mirror loads everything again.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use store::{
    BoxFuture, EngineError, Revision,
    engine::{Delivery, Event, Watch},
};
use tokio::time::Instant;

use crate::{
    ANSWER_MAX,
    call::{Answers, CallError, Code, MESSAGE_BYTES_MAX, Questions},
    cluster::{Cluster, Place},
    deadline, failed,
    held::Held,
    keys::Keys,
    messages::{
        RangeRequest, RangeResponse, WatchCreateRequest, WatchEvent, WatchProgressRequest, WatchRequest, WatchResponse,
        Watching, path,
    },
    revisions::Base,
};

/// How often a sign of life is asked for.
const SIGN_PERIOD: Duration = Duration::from_secs(1);
/// How often a watch that is to begin with a majority looks for one.
const PENDING_PERIOD: Duration = Duration::from_millis(100);
/// How long a member may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(4);
/// Bytes of one delivery that came in pieces; a mirror that is that far behind does better to load everything.
const DELIVERY_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;

pub(crate) struct EtcdWatch {
    cluster: Arc<Cluster>,
    keys: Keys,
    base: Base,
    place: Place,
    after: Revision,
    questions: Questions,
    answers: Answers<WatchResponse>,
    heard: Instant,
    /// Pieces of a delivery whose last is still to come.
    pieces: Vec<WatchEvent>,
    pieces_bytes: usize,
}

/// What is followed.
#[derive(Clone)]
pub(crate) struct Followed {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) keys: Keys,
    pub(crate) base: Base,
    /// A key that is cheap to read.
    pub(crate) look: Bytes,
}

/// A watch that begins when there is a majority.
pub(crate) struct Pending {
    from: Followed,
    after: Revision,
    held: Arc<Mutex<Option<Arc<Held>>>>,
    open: Option<EtcdWatch>,
}

impl Pending {
    /// To follow from `after` as soon as `held` is no more.
    pub(crate) fn new(from: Followed, after: Revision, held: Arc<Mutex<Option<Arc<Held>>>>) -> Self {
        Self { from, after, held, open: None }
    }
}

impl Watch for Pending {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, EngineError>> {
        Box::pin(async move {
            while self.held.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                tokio::time::sleep(PENDING_PERIOD).await;
            }
            if self.open.is_none() {
                self.open = Some(EtcdWatch::open(self.from.clone(), self.after).await?);
            }
            match &mut self.open {
                Some(open) => open.next().await,
                None => Err(EngineError::Closed),
            }
        })
    }
}

impl EtcdWatch {
    /// Follow from `after`.
    pub(crate) async fn open(from: Followed, after: Revision) -> Result<Self, EngineError> {
        let Followed { cluster, keys, base, look } = from;
        let Some(from) = base.down(after) else { return Err(EngineError::Compacted(after)) };
        // The stream itself would say so too, but only later, and of a revision that is still to come it would say nothing.
        let question = RangeRequest { key: look, revision: from, count_only: true, ..RangeRequest::default() };
        match cluster.ask_any::<_, RangeResponse>(path::RANGE, &question, ANSWER_MAX, deadline()).await {
            Err(CallError::Refused { code: Code::OutOfRange, message, .. }) => {
                tracing::info!(%after, message, "etcd has no history after this revision");
                return Err(EngineError::Compacted(after));
            }
            answer => answer.map_err(|error| failed("look for etcd's revision", error))?,
        };
        let following = |error| failed("follow etcd's changes", error);
        let (key, range_end) = keys.all();
        let create = WatchCreateRequest { key, range_end, start_revision: from + 1, fragment: true };
        let create = WatchRequest { request: Some(Watching::Create(create)) };
        let (place, channel) = cluster.channel().await.map_err(following)?;
        let opened = tokio::time::timeout(ANSWER_MAX, async {
            let (questions, mut answers) = channel.stream(path::WATCH, &create).await?;
            let first = answers.next().await?;
            Ok::<_, CallError>((questions, answers, first.unwrap_or_default()))
        });
        let opened = opened.await.unwrap_or_else(|_| Err(channel.lost("the watch does not begin")));
        let (questions, answers, first) = opened.map_err(|error| {
            if error.is_the_members_fault() {
                cluster.leave(&place);
            }
            following(error)
        })?;
        let heard = Instant::now();
        let mut watch =
            Self { cluster, keys, base, place, after, questions, answers, heard, pieces: Vec::new(), pieces_bytes: 0 };
        match watch.take(first)? {
            None => Ok(watch),
            Some(_) => Err(following(watch.answers.channel().lost("changes came before the watch began"))),
        }
    }

    /// The next message, or an error when there is none for too long.
    async fn message(&mut self) -> Result<WatchResponse, CallError> {
        loop {
            tokio::select! {
                biased;
                answer = self.answers.next() => {
                    self.heard = Instant::now();
                    return answer?.ok_or_else(|| self.answers.channel().lost("the watch has ended"));
                }
                () = tokio::time::sleep(SIGN_PERIOD) => {
                    if self.heard.elapsed() > SILENCE_MAX {
                        return Err(self.answers.channel().lost(format!("nothing for {} s", SILENCE_MAX.as_secs())));
                    }
                    self.questions.send(&WatchRequest { request: Some(Watching::Progress(WatchProgressRequest {})) });
                }
            }
        }
    }

    /// What a message brings, if that is something.
    fn take(&mut self, message: WatchResponse) -> Result<Option<Delivery>, EngineError> {
        if message.canceled {
            if message.compact_revision > 0 {
                return Err(EngineError::Compacted(self.after));
            }
            return Err(failed("follow etcd's changes", Canceled(message.cancel_reason)));
        }
        self.pieces_bytes += message.events.iter().map(weight).sum::<usize>();
        self.pieces.extend(message.events);
        if self.pieces_bytes > DELIVERY_BYTES_MAX {
            return Err(EngineError::Compacted(self.after));
        }
        if message.fragment || self.pieces.is_empty() {
            return Ok(None);
        }
        self.pieces_bytes = 0;
        let delivery = deliver(&self.keys, self.base, std::mem::take(&mut self.pieces));
        self.after = self.after.max(delivery.through);
        Ok(Some(delivery))
    }
}

impl Watch for EtcdWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, EngineError>> {
        Box::pin(async move {
            loop {
                let message = self.message().await.map_err(|error| {
                    self.cluster.leave(&self.place);
                    failed("follow etcd's changes", error)
                })?;
                if let Some(delivery) = self.take(message)? {
                    return Ok(delivery);
                }
            }
        })
    }
}

/// etcd ended the watch.
#[derive(Debug, thiserror::Error)]
#[error("etcd ended the watch: {0}")]
struct Canceled(String);

fn weight(event: &WatchEvent) -> usize {
    event.kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len())
}

/// The records' events among `events`, and the revision that all of them reach to.
fn deliver(keys: &Keys, base: Base, events: Vec<WatchEvent>) -> Delivery {
    let mut through = Revision(0);
    let mut told = Vec::with_capacity(events.len());
    for event in events {
        let Some(kv) = event.kv else { continue };
        let revision = base.up(kv.mod_revision);
        through = through.max(revision);
        if let Some(key) = keys.record_of(&kv.key) {
            let value = (event.kind == 0).then_some(kv.value);
            told.push(Event { revision, key, value });
        }
    }
    Delivery { events: told, through }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::KeyValue;

    #[test]
    fn marks_move_the_revision_and_are_not_told() {
        let keys = Keys::new("/n/");
        let event = |kind, key: Bytes, revision, value: &'static str| WatchEvent {
            kind,
            kv: Some(KeyValue { key, mod_revision: revision, version: 1, value: value.into() }),
        };
        let events = vec![
            event(0, keys.record("t/a"), 5, "1"),
            event(0, keys.mark("one"), 5, "written"),
            event(1, keys.record("t/b"), 6, ""),
            event(0, keys.mark("one"), 6, "written"),
            event(0, keys.mark("two"), 7, "refused"),
        ];
        let told = deliver(&keys, Base(100), events.clone());
        assert_eq!((told.through, told.events[0].revision), (Revision(107), Revision(105)));
        let delivery = deliver(&keys, Base(0), events);
        assert_eq!(delivery.through, Revision(7));
        let put = Event { revision: Revision(5), key: "t/a".to_owned(), value: Some("1".into()) };
        let gone = Event { revision: Revision(6), key: "t/b".to_owned(), value: None };
        assert_eq!(delivery.events, [put, gone]);
    }
}
