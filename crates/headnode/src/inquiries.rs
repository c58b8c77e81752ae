//! Questions to nodes: whoever asks waits here, and so does the node that will be asked. See [`nodeapi::inquiry`].
//!
//! Nothing here is kept: a headnode that ends takes its questions along, and whoever asked is told. A node holds a request open at
//! every headnode, whichever it reports to, so each can ask it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::id::{InquiryId, ServerId};
use nodeapi::inquiry::{ANSWER_SECONDS, Answer, Inquiry, Question};
use tokio::sync::{Notify, oneshot};

/// Questions to one node that are not answered yet: a few operators and their scripts.
const OPEN_MAX: usize = 32;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Too many ask at once.
    #[error("{OPEN_MAX} questions to server {0} wait for an answer already; try again in a moment")]
    Busy(ServerId),
    /// It did not answer in time.
    #[error(
        "server {0} did not answer within {ANSWER_SECONDS} s; `neso adm server get {0}` says when it was last heard of"
    )]
    Silent(ServerId),
    /// It answered that it cannot.
    #[error("{0}")]
    Refused(String),
    /// It answered, and not what was asked; it may be asked again.
    #[error("{0}")]
    Failed(String),
}

/// Who asks and who is asked. Clones share it.
#[derive(Clone, Default)]
pub struct Inquiries(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    nodes: HashMap<ServerId, Node>,
}

#[derive(Default)]
struct Node {
    /// Not yet fetched by the node, oldest first.
    waiting: VecDeque<Inquiry>,
    /// Not yet answered.
    open: HashMap<InquiryId, oneshot::Sender<Answer>>,
    /// Wakes the node's long poll.
    wake: Arc<Notify>,
}

impl Inquiries {
    /// Asks a node and waits for its answer, at most [`ANSWER_SECONDS`].
    pub async fn ask(&self, server: ServerId, question: Question) -> Result<Answer, AskError> {
        let id = InquiryId::random();
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.lock();
            let node = state.nodes.entry(server).or_default();
            if node.open.len() >= OPEN_MAX {
                return Err(AskError::Busy(server));
            }
            node.open.insert(id, sender);
            node.waiting.push_back(Inquiry { id, question });
            node.wake.notify_one();
        }
        // Also when whoever asked goes away first.
        let _open = Open { inquiries: self, server, id };
        match tokio::time::timeout(Duration::from_secs(ANSWER_SECONDS), receiver).await {
            Ok(Ok(Answer::Refused { why })) => Err(AskError::Refused(why)),
            Ok(Ok(Answer::Failed { why })) => Err(AskError::Failed(why)),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(AskError::Silent(server)),
        }
    }

    /// The next question to a node, as soon as there is one.
    pub async fn next(&self, server: ServerId) -> Inquiry {
        loop {
            let wake = {
                let mut state = self.lock();
                let node = state.nodes.entry(server).or_default();
                if let Some(inquiry) = node.waiting.pop_front() {
                    if !node.waiting.is_empty() {
                        node.wake.notify_one();
                    }
                    return inquiry;
                }
                node.wake.clone()
            };
            wake.notified().await;
        }
    }

    /// Questions that wait for an answer, of all nodes.
    pub fn open(&self) -> usize {
        self.lock().nodes.values().map(|node| node.open.len()).sum()
    }

    /// Hands over a node's answer. False when nobody waits for it any more, or another node was asked.
    pub fn answered(&self, server: ServerId, id: InquiryId, answer: Answer) -> bool {
        let sender = self.lock().nodes.get_mut(&server).and_then(|node| node.open.remove(&id));
        sender.is_some_and(|sender| sender.send(answer).is_ok())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a few insertions or removals that do not panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a question back when whoever asked stops waiting.
struct Open<'a> {
    inquiries: &'a Inquiries,
    server: ServerId,
    id: InquiryId,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let mut state = self.inquiries.lock();
        let Some(node) = state.nodes.get_mut(&self.server) else { return };
        node.open.remove(&self.id);
        node.waiting.retain(|inquiry| inquiry.id != self.id);
        // Nobody waits on its bell either: forget it, or every id that was ever asked would stay.
        if node.open.is_empty() && Arc::strong_count(&node.wake) == 1 {
            state.nodes.remove(&self.server);
        }
    }
}

#[cfg(test)]
mod tests {
    use nodeapi::inquiry::Console;

    use super::*;

    fn answer(text: &str) -> Answer {
        Answer::Console(Console { text: text.to_owned(), next: None, lost: false })
    }

    #[tokio::test(start_paused = true)]
    async fn each_hears_the_answer_to_its_own_question() {
        let (inquiries, one, other) = (Inquiries::default(), ServerId::random(), ServerId::random());
        let node = |server: ServerId, text: &'static str| {
            let inquiries = inquiries.clone();
            async move {
                for _ in 0..3 {
                    let inquiry = inquiries.next(server).await;
                    assert!(!inquiries.answered(ServerId::random(), inquiry.id, answer("stolen")));
                    assert!(inquiries.answered(server, inquiry.id, answer(text)));
                    assert!(!inquiries.answered(server, inquiry.id, answer("twice")));
                }
            }
        };
        let ask = |server| inquiries.ask(server, Question::Unknown);
        let asked = async { tokio::join!(ask(one), ask(other), ask(one), ask(other), ask(one), ask(other)) };
        let ((a, b, c, d, e, f), (), ()) = tokio::join!(asked, node(one, "one"), node(other, "other"));
        assert_eq!([a, c, e], [(); 3].map(|()| Ok(answer("one"))));
        assert_eq!([b, d, f], [(); 3].map(|()| Ok(answer("other"))));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_crowds_are_told_and_leave_nothing() {
        let (inquiries, server) = (Inquiries::default(), ServerId::random());
        let asked = (0..=OPEN_MAX).map(|_| inquiries.ask(server, Question::Unknown));
        let heard = futures_util::future::join_all(asked).await;
        assert_eq!(heard.iter().filter(|heard| **heard == Err(AskError::Busy(server))).count(), 1);
        assert_eq!(heard.iter().filter(|heard| **heard == Err(AskError::Silent(server))).count(), OPEN_MAX);
        assert!(inquiries.lock().nodes.is_empty());
        let refused = async {
            let inquiry = inquiries.next(server).await;
            inquiries.answered(server, inquiry.id, Answer::Refused { why: "no".to_owned() })
        };
        let (heard, _) = tokio::join!(inquiries.ask(server, Question::Unknown), refused);
        assert_eq!(heard, Err(AskError::Refused("no".to_owned())));
    }
}
