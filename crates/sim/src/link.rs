//! The cable between node and headnode: slow, sometimes cut, sometimes losing the answer to what was done.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use control::Control;
use model::{
    delta::{Held, ReportNews, TargetNews},
    id::InquiryId,
};
use nodeapi::{
    ReportAnswer,
    inquiry::{Answer, Inquiry},
    link::{BoxFuture, Chunks, HeadnodeLink, LinkError},
};
use tokio::sync::watch;

use crate::chance::Chance;

/// Longest a message travels, milliseconds.
const TRAVEL_MS: u64 = 40;

/// Answers lost, in a hundred, while the cable is bad.
const LOST_PERCENT: u64 = 10;

/// Bytes of one piece of an image.
const PIECE_BYTES: usize = 300;

/// What both ends share and the story changes.
pub(crate) struct Cable {
    /// The headnode at the other end; `None` while it is down or the cable is cut.
    pub(crate) headnode: watch::Sender<Option<Control>>,
    pub(crate) bad: AtomicBool,
    chance: Mutex<Chance>,
    /// Highest generation a node said it has; must never fall.
    highest: AtomicU64,
    /// What must not happen on a cable and did.
    pub(crate) violations: Mutex<Vec<String>>,
}

impl Cable {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            headnode: watch::Sender::new(None),
            bad: AtomicBool::new(false),
            chance: Mutex::new(Chance::new(seed)),
            highest: AtomicU64::new(0),
            violations: Mutex::default(),
        })
    }

    fn chance<T>(&self, draw: impl FnOnce(&mut Chance) -> T) -> T {
        draw(&mut self.chance.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn violated(&self, what: String) {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// Travels to the headnode.
    async fn travel(&self, doing: &str) -> Result<Control, LinkError> {
        let ms = self.chance(|chance| chance.below(TRAVEL_MS));
        tokio::time::sleep(Duration::from_millis(ms)).await;
        self.headnode.borrow().clone().ok_or_else(|| broken(doing, "no way to the headnode"))
    }

    /// Waits for `work` at the headnode, unless the cable is cut meanwhile; then perhaps loses the answer.
    async fn answer<T>(&self, doing: &str, work: impl Future<Output = control::Result<T>>) -> Result<T, LinkError> {
        let result = tokio::select! {
            biased;
            result = work => result,
            () = becomes(self.headnode.subscribe(), Option::is_none) => return Err(broken(doing, "cut while waiting")),
        };
        if self.bad.load(Ordering::Relaxed) && self.chance(|chance| chance.percent(LOST_PERCENT)) {
            return Err(broken(doing, "the answer was lost"));
        }
        result.map_err(|error| LinkError::Refused {
            doing: doing.to_owned(),
            status: 500,
            message: base::errors::chain(&error),
        })
    }
}

/// Waits until the watched value is so, or nobody can change it any more.
async fn becomes<T>(mut watched: watch::Receiver<T>, so: impl FnMut(&T) -> bool) {
    let _ = watched.wait_for(so).await;
}

fn broken(doing: &str, why: &str) -> LinkError {
    LinkError::Unreachable { doing: doing.to_owned(), source: why.into() }
}

/// One agent's end of the cable.
pub(crate) struct SimLink {
    pub(crate) cable: Arc<Cable>,
    /// Who it is for; a dead agent's requests never end.
    pub(crate) alive: watch::Receiver<bool>,
    pub(crate) server: model::id::ServerId,
}

impl SimLink {
    async fn while_alive<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            // The work is dropped first, as a headnode drops a request whose node is gone.
            () = becomes(self.alive.clone(), |alive| !alive) => std::future::pending().await,
            result = work => result,
        }
    }
}

impl HeadnodeLink for SimLink {
    fn target(&self, held: Held) -> BoxFuture<'_, Result<Option<TargetNews>, LinkError>> {
        Box::pin(self.while_alive(async move {
            let have = held.generation;
            let highest = self.cable.highest.fetch_max(have, Ordering::SeqCst);
            if have < highest {
                self.cable.violated(format!("a node that had generation {highest} now has {have}"));
            }
            let control = self.cable.travel("fetch the target").await?;
            let waiting = control::servers::watch_news(&control, self.server, held);
            let news = self.cable.answer("fetch the target", waiting).await?;
            let sent = news.as_ref().map(|news| match news {
                TargetNews::Whole(target) => target.generation,
                TargetNews::Delta(delta) => delta.generation,
            });
            if let Some(sent) = sent.filter(|sent| *sent <= have) {
                self.cable.violated(format!("asked for newer than {have}, a headnode sent {sent}"));
            }
            Ok(news)
        }))
    }

    fn report<'a>(&'a self, report: &'a ReportNews) -> BoxFuture<'a, Result<ReportAnswer, LinkError>> {
        Box::pin(self.while_alive(async move {
            let control = self.cable.travel("report").await?;
            self.cable.answer("report", control::servers::apply_news(&control, self.server, report)).await
        }))
    }

    fn image<'a>(&'a self, sha256: &'a str) -> BoxFuture<'a, Result<Box<dyn Chunks>, LinkError>> {
        Box::pin(self.while_alive(async move {
            let control = self.cable.travel("fetch an image").await?;
            let read = async {
                let path = control::images::file_path(&control, sha256)?;
                std::fs::read(&path)
                    .map_err(|source| control::Error::File { operation: format!("read {}", path.display()), source })
            };
            let file = self.cable.answer("fetch an image", read).await?;
            let pieces: Vec<_> = file.chunks(PIECE_BYTES).map(Bytes::copy_from_slice).collect();
            let chunks: Box<dyn Chunks> = Box::new(Pieces { cable: self.cable.clone(), left: pieces.into_iter() });
            Ok(chunks)
        }))
    }

    // Nobody asks anything here: questions change nothing, and change is what a simulation is about.
    fn inquiry(&self) -> BoxFuture<'_, Result<Option<Inquiry>, LinkError>> {
        Box::pin(std::future::pending())
    }

    fn answer<'a>(&'a self, _: InquiryId, _: &'a Answer) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(async { Err(broken("answer a question", "nobody asked")) })
    }
}

struct Pieces {
    cable: Arc<Cable>,
    left: std::vec::IntoIter<Bytes>,
}

impl Chunks for Pieces {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, LinkError>> {
        Box::pin(async {
            self.cable.travel("fetch an image").await?;
            Ok(self.left.next())
        })
    }
}
