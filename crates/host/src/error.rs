//! One error for the door: what we were doing, to what, and why the kernel refused.

use std::{io, path::PathBuf};

/// Why a verb failed. The text names the operation; the cause is chained.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call or file operation failed.
    #[error("failed to {doing}")]
    Os {
        /// Operation and object, e.g. ``create subvolume `/pool/x` ``.
        doing: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A command ended badly.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// Program and the arguments that matter, never secrets.
        command: String,
        /// Exit status.
        status: String,
        /// Last lines of its standard error.
        stderr: String,
    },
    /// There is no room.
    #[error("no space left in the pool while trying to {doing}")]
    NoSpace {
        /// Operation and object.
        doing: String,
    },
    /// Data from outside is not what it says it is.
    #[error("{what} is refused: {why}")]
    Refused {
        /// The object, e.g. an archive member.
        what: String,
        /// The rule it breaks.
        why: String,
    },
    /// The object is not there.
    #[error("{0} does not exist")]
    Missing(String),
    /// The machine lacks something.
    #[error("this machine lacks {what}: {remedy}")]
    Lacking {
        /// What is missing.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// A library failed.
    #[error("failed to {doing}: {why}")]
    Library {
        /// Operation and object.
        doing: String,
        /// Its own words, causes included.
        why: String,
    },
    /// Something stored by us cannot be read back.
    #[error("`{path}` is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Error {
    /// Wraps an OS error, telling a full disk apart.
    pub fn os(doing: impl Into<String>, source: io::Error) -> Self {
        let doing = doing.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { doing },
            _ => Self::Os { doing, source },
        }
    }
}

/// Result of a verb.
pub type Result<T> = std::result::Result<T, Error>;
