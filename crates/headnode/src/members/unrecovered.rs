//! Why there is no new beginning, in words that say what to type instead.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{backup, members::file::ClusterFileError, pki::PkiError};

/// Why there is no new beginning.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// There is nothing to begin anew from, or no need.
    #[error("{why}")]
    Refused {
        /// Why.
        why: String,
        /// What to type instead.
        next: String,
    },
    /// A file.
    #[error("failed to {doing} `{path}`")]
    Io {
        /// Operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The journal.
    #[error("`{path}` cannot be understood: {why}; nothing was changed since it was written")]
    Journal {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// cluster.json.
    #[error("find out where the store is")]
    Cluster(#[from] ClusterFileError),
    /// The member's file.
    #[error("read what this machine's member holds")]
    File(#[from] etcd::FileError),
    /// The same, as a store.
    #[error("open what this machine's member holds")]
    Open(#[from] etcd::OpenError),
    /// Its records.
    #[error("understand what this machine's member holds")]
    Store(#[from] store::Error),
    /// Certificates.
    #[error("make the store's new certificates")]
    Pki(#[from] PkiError),
    /// etcd.
    #[error("start a new member")]
    Admin(#[from] etcd::AdminError),
    /// etcd, again.
    #[error("{0}")]
    Alone(String),
    /// Revisions.
    #[error("raise the store's revisions")]
    Raise(#[source] store::EngineError),
    /// All records.
    #[error("take in what this machine's member holds")]
    Fill(#[from] backup::BackupError),
    /// Records of the lost headnodes.
    #[error("write down that the other headnodes are lost")]
    Records(#[source] control::Error),
    /// The last record.
    #[error("write down that the new store is whole")]
    Finish(#[source] store::CommitError),
}

pub(super) fn refused(why: impl Into<String>, next: impl Into<String>) -> RecoverError {
    RecoverError::Refused { why: why.into(), next: next.into() }
}

pub(super) fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> RecoverError + use<'a> {
    move |source| RecoverError::Io { doing, path: path.to_owned(), source }
}
