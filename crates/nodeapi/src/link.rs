//! The node's end of the contract as a trait, so that an agent runs the same over TLS, in a test and in a simulation.

use std::{future::Future, pin::Pin};

use bytes::Bytes;
use model::{
    delta::{Held, ReportNews, TargetNews},
    id::{InquiryId, ServerId},
};

use crate::{
    ReportAnswer,
    inquiry::{Answer, Inquiry},
};

/// A future in a box: the trait must be usable as `dyn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a headnode could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No headnode could be reached or the connection broke.
    #[error("failed to reach a headnode to {doing}")]
    Unreachable {
        /// What for.
        doing: String,
        /// The network's words.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// By this machine's clock the headnode's certificate is of another time.
    #[error(
        "failed to {doing}: by this machine's clock the headnode's certificate is too young or too old; `neso doctor` compares the clock \
         with the headnode's"
    )]
    Clock {
        /// What for.
        doing: String,
        /// The network's words.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It did not answer in time.
    #[error("no answer within {seconds} s to the request to {doing}")]
    Slow {
        /// What for.
        doing: String,
        /// The deadline.
        seconds: u64,
    },
    /// It answered that it will not.
    #[error("the headnode refused to {doing}: {message} (status {status})")]
    Refused {
        /// What for.
        doing: String,
        /// HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// Its answer makes no sense.
    #[error("the headnode's answer to the request to {doing} makes no sense: {why}")]
    Nonsense {
        /// What for.
        doing: String,
        /// What is wrong with it.
        why: String,
    },
    /// The settings of the link cannot be used.
    #[error("the link's {what} cannot be used: {why}")]
    Setup {
        /// Which setting.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// A file that arrives piece by piece.
pub trait Chunks: Send {
    /// The next piece; `None` at the end of a complete file.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, LinkError>>;
}

/// What a node asks of a headnode.
pub trait HeadnodeLink: Send + Sync + 'static {
    /// Waits for a target newer than the one held; `None` when there was none for [`crate::LONG_POLL_SECONDS`].
    fn target(&self, held: Held) -> BoxFuture<'_, Result<Option<TargetNews>, LinkError>>;

    /// Says what is.
    fn report<'a>(&'a self, report: &'a ReportNews) -> BoxFuture<'a, Result<ReportAnswer, LinkError>>;

    /// Begins to read an image file by its SHA-256 (lower-case hex).
    fn image<'a>(&'a self, sha256: &'a str) -> BoxFuture<'a, Result<Box<dyn Chunks>, LinkError>>;

    /// Takes over which headnodes the document of `machine` speaks of.
    fn know(&self, machine: ServerId, headnodes: &[String]) {
        let _ = (machine, headnodes);
    }

    /// Headnodes that may ask questions, each by a name for [`HeadnodeLink::inquiry`]; as of now.
    fn headnodes(&self) -> Vec<String> {
        vec!["the headnode".to_owned()]
    }

    /// Waits for a question of one headnode; `None` when there was none for [`crate::LONG_POLL_SECONDS`].
    fn inquiry<'a>(&'a self, headnode: &'a str) -> BoxFuture<'a, Result<Option<Inquiry>, LinkError>>;

    /// Answers one, to whoever asked it.
    fn answer<'a>(
        &'a self,
        headnode: &'a str,
        id: InquiryId,
        answer: &'a Answer,
    ) -> BoxFuture<'a, Result<(), LinkError>>;
}
