//! What machines and instances use, asked of their machines and kept for a moment.
//!
//! Whoever watches instances asks for them one by one; a machine is asked once for all of them, by whoever comes first, and the others wait
//! for that answer. A machine that does not answer is not asked again at once either, so that those who wait for it do not queue.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use model::{id::ServerId, meters::NodeMeters};
use nodeapi::inquiry::{Answer, Question};
use tokio::time::Instant;

use crate::inquiries::{AskError, Inquiries};

/// For how long an answer is good.
const FRESH: Duration = Duration::from_secs(5);

type Heard = Result<Arc<NodeMeters>, AskError>;
type Place = Arc<tokio::sync::Mutex<Option<(Instant, Heard)>>>;

/// See the head of this file. Clones share what is kept.
#[derive(Clone)]
pub struct Meters {
    inquiries: Inquiries,
    // Leaf data: a place is found or made, and old ones go.
    kept: Arc<Mutex<Kept>>,
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

/// Answers, each of some hundred bytes an instance, so that none is kept for longer than it is good.
struct Kept {
    places: HashMap<ServerId, Place>,
    swept_at: Instant,
}

impl Meters {
    /// Asks through `inquiries`.
    pub fn new(inquiries: Inquiries) -> Self {
        Self { inquiries, kept: Arc::new(Mutex::new(Kept { places: HashMap::new(), swept_at: Instant::now() })) }
    }

    /// What a machine and its instances use, a few seconds old.
    pub async fn of(&self, server: ServerId) -> Heard {
        let place = self.place(server);
        let mut kept = place.lock().await;
        if let Some((at, heard)) = &*kept
            && at.elapsed() < FRESH
        {
            return heard.clone();
        }
        let heard = match self.inquiries.ask(server, Question::Meters).await {
            Ok(Answer::Meters(meters)) => Ok(Arc::from(meters)),
            Ok(_) => Err(AskError::Refused(format!("server {server} answered another question"))),
            Err(error) => Err(error),
        };
        *kept = Some((Instant::now(), heard.clone()));
        heard
    }

    fn place(&self, server: ServerId) -> Place {
        // Every change is an insertion or a removal that does not panic.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.swept_at.elapsed() >= FRESH {
            kept.swept_at = Instant::now();
            // Whoever is being asked is kept: somebody holds its place.
            let is_good = |place: &Place| {
                place.try_lock().map_or(true, |heard| heard.as_ref().is_some_and(|(at, _)| at.elapsed() < FRESH))
            };
            kept.places.retain(|_, place| Arc::strong_count(place) > 1 || is_good(place));
        }
        kept.places.entry(server).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that answers, and how often it was asked.
    async fn answers(inquiries: Inquiries, server: ServerId, asked: Arc<std::sync::atomic::AtomicU64>) {
        loop {
            let inquiry = inquiries.next(server).await;
            asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(inquiry.question, Question::Meters);
            inquiries.answered(server, inquiry.id, Answer::Meters(Box::default()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_are_one_question() {
        let (inquiries, server) = (Inquiries::default(), ServerId::random());
        let asked = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let machine = base::task::spawn("machine", answers(inquiries.clone(), server, asked.clone()));
        let meters = Meters::new(inquiries);
        let all = futures_util::future::join_all((0..300).map(|_| meters.of(server))).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 1);
        tokio::time::sleep(FRESH).await;
        assert!(meters.of(server).await.is_ok());
        assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 2, "what is old is asked for again");
        machine.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asks_for_any_more_is_forgotten() {
        let (inquiries, server) = (Inquiries::default(), ServerId::random());
        let machine = base::task::spawn("machine", answers(inquiries.clone(), server, Arc::default()));
        let meters = Meters::new(inquiries);
        let held = Arc::downgrade(&meters.of(server).await.expect("an answer"));
        assert!(held.upgrade().is_some(), "it is kept");
        machine.abort();
        tokio::time::sleep(FRESH).await;
        assert!(meters.of(ServerId::random()).await.is_err(), "another one, which does not answer");
        assert!(held.upgrade().is_none(), "it is still kept");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_waited_for_once() {
        let meters = Meters::new(Inquiries::default());
        let server = ServerId::random();
        let begun = Instant::now();
        let all = futures_util::future::join_all((0..300).map(|_| meters.of(server))).await;
        assert!(all.iter().all(|heard| *heard == Err(AskError::Silent(server))));
        assert!(begun.elapsed() < Duration::from_secs(2 * nodeapi::inquiry::ANSWER_SECONDS), "{:?}", begun.elapsed());
    }
}
