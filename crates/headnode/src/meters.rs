//! What machines and instances use, asked of their machines and kept for a moment.
//!
//! Whoever watches instances asks for them one by one; a machine is asked once for all of them, by whoever comes first, and the others wait
//! for that answer. A machine that does not answer is not asked again at once either, so that those who wait for it do not queue.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use model::{id::ServerId, meters::NodeMeters};
use nodeapi::inquiry::{Answer, Question};
use tokio::time::Instant;

use crate::inquiries::{AskError, Inquiries};

/// For how long an answer is good.
const FRESH: Duration = Duration::from_secs(5);

/// Machines whose answer is kept; beyond it those with old answers are forgotten.
const KEPT_MAX: usize = 20_000;

type Heard = Result<Arc<NodeMeters>, AskError>;
type Place = Arc<tokio::sync::Mutex<Option<(Instant, Heard)>>>;

/// See the head of this file. Clones share what is kept.
#[derive(Clone)]
pub struct Meters {
    inquiries: Inquiries,
    places: Arc<Mutex<HashMap<ServerId, Place>>>,
}

impl Meters {
    /// Asks through `inquiries`.
    pub fn new(inquiries: Inquiries) -> Self {
        Self { inquiries, places: Arc::default() }
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
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= KEPT_MAX {
            // Whoever is being asked is kept: somebody holds its place.
            places.retain(|_, place| Arc::strong_count(place) > 1);
        }
        places.entry(server).or_default().clone()
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
    async fn silence_is_waited_for_once() {
        let meters = Meters::new(Inquiries::default());
        let server = ServerId::random();
        let begun = Instant::now();
        let all = futures_util::future::join_all((0..300).map(|_| meters.of(server))).await;
        assert!(all.iter().all(|heard| *heard == Err(AskError::Silent(server))));
        assert!(begun.elapsed() < Duration::from_secs(2 * nodeapi::inquiry::ANSWER_SECONDS), "{:?}", begun.elapsed());
    }
}
