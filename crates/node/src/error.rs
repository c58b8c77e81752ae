//! Why an agent cannot start, and why a step for an instance failed.

use std::{io, path::PathBuf};

use model::{diff::UnknownNetwork, id::ImageId};
use nodeapi::link::LinkError;

/// Why an agent cannot run. Whoever started it decides when to try again.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its own files cannot be used.
    #[error("failed to {doing} `{path}`")]
    File {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// The kernel's words.
        #[source]
        source: io::Error,
    },
    /// A file was written by a newer version of this program.
    #[error("`{path}` has version {found}, this program reads up to {known}: it was written by a newer one")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Highest version this program reads.
        known: u32,
    },
    /// The machine does not say what is on it.
    #[error("failed to {doing}")]
    Host {
        /// What was tried.
        doing: &'static str,
        /// The host's words.
        #[source]
        source: host::Error,
    },
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    /// A verb of the host.
    #[error("failed to {doing}")]
    Host {
        doing: &'static str,
        #[source]
        source: host::Error,
    },
    /// The image file did not arrive.
    #[error("failed to fetch image {image}")]
    Fetch {
        image: ImageId,
        #[source]
        source: LinkError,
    },
    /// The image could not be put into the pool; the words are those of the one attempt all waiting instances share.
    #[error("failed to import image {image}: {why}")]
    Import { image: ImageId, why: String },
    /// The target does not describe what it uses.
    #[error("the target describes no image {0}")]
    UnknownImage(ImageId),
    /// The target does not describe what it uses.
    #[error(transparent)]
    UnknownNetwork(#[from] UnknownNetwork),
    /// Every id range is taken.
    #[error("all {0} id ranges of this machine are in use")]
    NoIds(u32),
    /// Our own files.
    #[error("failed to {doing} the instance's ledger")]
    Ledger {
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    /// The directory or socket of the metadata service.
    #[error("failed to open the instance's metadata service")]
    Metadata(#[source] io::Error),
    /// The filters could not be changed; the words are those of the one attempt that carried several changes.
    #[error("failed to apply the packet filters: {0}")]
    Filters(String),
    /// The target changed while waiting; plan again.
    #[error("interrupted by a newer target")]
    Interrupted,
    /// The agent is ending.
    #[error("the agent is ending")]
    Ending,
}

impl StepError {
    /// Whether trying again may help without anybody doing something about it here: such failures never lead to
    /// giving up, since the headnode that is gone today is back tomorrow.
    pub(crate) fn is_outside(&self) -> bool {
        match self {
            Self::Fetch { source, .. } => matches!(source, LinkError::Unreachable { .. } | LinkError::Slow { .. }),
            Self::Interrupted | Self::Ending => true,
            _ => false,
        }
    }
}
