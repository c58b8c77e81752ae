//! The cable between a node and the headnodes: slow, sometimes cut in one direction or both, sometimes losing what goes over it,
//! sometimes delivering it much later.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use base::{task::Group, watch};
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

use crate::chance::Chance;

/// How long a node waits for a word that does not come, seconds: what the client over the network waits.
const PATIENCE_SECONDS: u64 = 15;

/// How long a connection without a sign of life is taken for one.
const SILENCE: Duration = Duration::from_secs(20);

/// How late what was held up may be delivered, milliseconds.
const LATE_MS: u64 = 90_000;

/// Bytes of one piece of an image.
const PIECE_BYTES: usize = 300;

/// The headnode as cables see it.
pub(crate) struct Headnode {
    pub(crate) control: Control,
    /// Its tasks; what is still on the way to it ends with them.
    pub(crate) group: Group,
    /// Grows with each start.
    pub(crate) run: u64,
}

/// Every headnode's place, with who is there now.
pub(crate) type Doors = Arc<watch::Sender<Vec<Option<Arc<Headnode>>>>>;

/// Requests, in a thousand, after which a node goes to another headnode for no reason: as when it returns home.
const MOVES_PER_THOUSAND: u64 = 5;

/// How a cable is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weather {
    /// Whether what the node sends arrives.
    pub(crate) up: bool,
    /// Whether what the headnode answers arrives.
    pub(crate) down: bool,
    /// Longest a message travels, milliseconds.
    pub(crate) travel_ms: u64,
    /// Answers lost, in a hundred.
    pub(crate) lost_percent: u64,
    /// Reports that arrive long after their sender gave up, in a hundred.
    pub(crate) late_percent: u64,
}

impl Weather {
    /// As a cable should be.
    pub(crate) const FAIR: Self = Self { up: true, down: true, travel_ms: 40, lost_percent: 0, late_percent: 0 };
}

/// What both ends of one cable share and the story changes.
pub(crate) struct Cable {
    headnodes: Doors,
    /// The place of the headnode it speaks to.
    at: AtomicUsize,
    pub(crate) weather: watch::Sender<Weather>,
    chance: Mutex<Chance>,
    /// Highest generation the node said it has; must never fall.
    highest: AtomicU64,
    /// What must not happen on a cable and did.
    violations: Mutex<Vec<String>>,
}

impl Cable {
    pub(crate) fn new(seed: u64, headnodes: Doors) -> Arc<Self> {
        Arc::new(Self {
            headnodes,
            at: AtomicUsize::new(usize::try_from(seed % 2).unwrap_or(0)),
            weather: watch::Sender::new(Weather::FAIR),
            chance: Mutex::new(Chance::new(seed)),
            highest: AtomicU64::new(0),
            violations: Mutex::default(),
        })
    }

    /// What must not happen and did since the last look.
    pub(crate) fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut *self.violations.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn chance<T>(&self, draw: impl FnOnce(&mut Chance) -> T) -> T {
        draw(&mut self.chance.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn violated(&self, what: String) {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    fn weather(&self) -> Weather {
        *self.weather.borrow()
    }

    /// The headnode it speaks to; the next one that is there when that one is gone.
    fn headnode(&self) -> Option<Arc<Headnode>> {
        let moves = self.chance(|chance| chance.below(1_000)) < MOVES_PER_THOUSAND;
        let headnodes = self.headnodes.borrow().clone();
        let first = self.at.load(Ordering::SeqCst) + usize::from(moves);
        let mut places = (0..headnodes.len()).map(|offset| (first + offset) % headnodes.len());
        let place = places.find(|place| headnodes[*place].is_some())?;
        self.at.store(place, Ordering::SeqCst);
        headnodes[place].clone()
    }

    /// Travels to a headnode.
    async fn travel(&self, doing: &str) -> Result<Arc<Headnode>, LinkError> {
        let ms = self.chance(|chance| chance.below(self.weather().travel_ms));
        tokio::time::sleep(Duration::from_millis(ms)).await;
        if !self.weather().up {
            return Err(self.unheard(doing).await);
        }
        self.headnode().ok_or_else(|| broken(doing, "nobody listens at any headnode"))
    }

    /// Waits for `work` at the headnode, unless the cable breaks meanwhile; then perhaps loses the answer.
    async fn answer<T>(
        &self,
        doing: &str,
        headnode: &Headnode,
        work: impl Future<Output = control::Result<T>>,
    ) -> Result<T, LinkError> {
        let result = tokio::select! {
            biased;
            result = work => result,
            why = self.breaks(headnode.run) => return Err(broken(doing, why)),
        };
        let weather = self.weather();
        if !weather.down || self.chance(|chance| chance.percent(weather.lost_percent)) {
            return Err(self.unheard(doing).await);
        }
        result.map_err(|error| LinkError::Refused {
            doing: doing.to_owned(),
            status: 500,
            message: base::errors::chain(&error),
        })
    }

    /// Resolves when a conversation with this run of the headnode is over.
    async fn breaks(&self, run: u64) -> &'static str {
        let (mut headnodes, mut weather) = (self.headnodes.subscribe(), self.weather.subscribe());
        let gone = headnodes.wait_for(|now| now.iter().flatten().all(|now| now.run != run));
        let silent = async {
            loop {
                let _ = weather.wait_for(|weather| !weather.up || !weather.down).await;
                let mended = weather.wait_for(|weather| weather.up && weather.down);
                if tokio::time::timeout(SILENCE, mended).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            _ = gone => "the headnode has gone",
            () = silent => "no sign of life from the headnode",
        }
    }

    /// What becomes of who hears nothing: the network says so at once, or the wait ends some time.
    async fn unheard(&self, doing: &str) -> LinkError {
        if self.chance(|chance| chance.percent(50)) {
            return broken(doing, "no way to the headnode and back");
        }
        tokio::time::sleep(Duration::from_secs(PATIENCE_SECONDS)).await;
        LinkError::Slow { doing: doing.to_owned(), seconds: PATIENCE_SECONDS }
    }

    /// Has `report` delivered when nobody waits for it any more.
    fn deliver_late(&self, headnode: &Headnode, server: model::id::ServerId, report: ReportNews) {
        let (ms, control) = (self.chance(|chance| chance.below(LATE_MS)), headnode.control.clone());
        headnode.group.spawn("late report", async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            // Nobody is there any more who could be told of an error.
            let _ = control::servers::apply_news(&control, server, &report).await;
        });
    }
}

fn broken(doing: &str, why: &str) -> LinkError {
    LinkError::Unreachable { doing: doing.to_owned(), source: why.into() }
}

/// A node's end of the cable.
pub(crate) struct SimLink {
    pub(crate) cable: Arc<Cable>,
    pub(crate) server: model::id::ServerId,
}

impl HeadnodeLink for SimLink {
    fn target(&self, held: Held) -> BoxFuture<'_, Result<Option<TargetNews>, LinkError>> {
        Box::pin(async move {
            let have = held.generation;
            let highest = self.cable.highest.fetch_max(have, Ordering::SeqCst);
            if have < highest {
                self.cable.violated(format!("{} had generation {highest} and now has {have}", self.server));
            }
            let headnode = self.cable.travel("fetch the target").await?;
            let waiting = control::servers::watch_news(&headnode.control, self.server, held);
            let news = self.cable.answer("fetch the target", &headnode, waiting).await?;
            let sent = news.as_ref().map(|news| match news {
                TargetNews::Whole(target) => target.generation,
                TargetNews::Delta(delta) => delta.generation,
            });
            if let Some(sent) = sent.filter(|sent| *sent <= have) {
                self.cable.violated(format!("asked for newer than {have}, a headnode sent {sent}"));
            }
            Ok(news)
        })
    }

    fn report<'a>(&'a self, report: &'a ReportNews) -> BoxFuture<'a, Result<ReportAnswer, LinkError>> {
        Box::pin(async move {
            let headnode = self.cable.travel("report").await?;
            let late = self.cable.weather().late_percent;
            if self.cable.chance(|chance| chance.percent(late)) {
                self.cable.deliver_late(&headnode, self.server, report.clone());
                return Err(self.cable.unheard("report").await);
            }
            let applied = control::servers::apply_news(&headnode.control, self.server, report);
            self.cable.answer("report", &headnode, applied).await
        })
    }

    fn image<'a>(&'a self, sha256: &'a str) -> BoxFuture<'a, Result<Box<dyn Chunks>, LinkError>> {
        Box::pin(async move {
            let headnode = self.cable.travel("fetch an image").await?;
            let read = async {
                let path = control::images::file_path(&headnode.control, sha256)?;
                std::fs::read(&path)
                    .map_err(|source| control::Error::File { operation: format!("read {}", path.display()), source })
            };
            let file = self.cable.answer("fetch an image", &headnode, read).await?;
            let pieces: Vec<_> = file.chunks(PIECE_BYTES).map(Bytes::copy_from_slice).collect();
            let chunks: Box<dyn Chunks> = Box::new(Pieces { cable: self.cable.clone(), left: pieces.into_iter() });
            Ok(chunks)
        })
    }

    // Nobody asks anything here: questions change nothing, and change is what a simulation is about.
    fn inquiry<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Inquiry>, LinkError>> {
        Box::pin(std::future::pending())
    }

    fn answer<'a>(&'a self, _: &'a str, _: InquiryId, _: &'a Answer) -> BoxFuture<'a, Result<(), LinkError>> {
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
