//! Backups: those there are, and one now.

use std::path::PathBuf;

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use opsapi::{BackupTaken, BackupView, NewBackup};

use super::{Answer, Body, Ops, Refusal};
use crate::backup::{self, BackupError};

pub(super) fn routes() -> Router<Ops> {
    Router::new().route("/v1/backups", get(list).post(take))
}

async fn list(State(ops): State<Ops>) -> Answer<Vec<BackupView>> {
    let directory = ops.settings.backup_dir();
    let found = base::task::blocking("backups", move || backup::list(&directory)).await?;
    let view = |backup: backup::Listed| BackupView {
        path: backup.path,
        bytes: backup.bytes,
        taken_at: backup.taken_at,
        revision: backup.revision,
    };
    Ok(Json(found.into_iter().map(view).collect()))
}

async fn take(State(ops): State<Ops>, Body(new): Body<NewBackup>) -> Answer<BackupTaken> {
    if let Some(path) = new.to.as_ref().filter(|path| !path.is_absolute()) {
        let why = format!("must be an absolute path, not `{}`", path.display());
        return Err(control::Error::invalid("to", why).into());
    }
    let (snapshot, now) = (ops.control.snapshot(), ops.control.now());
    let taken = backup::take(&ops.settings, snapshot, now, new.to).await?;
    let words = |(path, why): (PathBuf, String)| format!("{}: {why}", path.display());
    Ok(Json(BackupTaken {
        path: taken.path,
        bytes: taken.bytes,
        sealed: taken.sealed,
        taken_at: taken.head.taken_at,
        revision: taken.head.revision,
        records: taken.end.records,
        files: taken.end.files,
        failed_copies: taken.failed_copies.into_iter().map(words).collect(),
    }))
}

impl From<BackupError> for Refusal {
    fn from(error: BackupError) -> Self {
        let (status, code) = match &error {
            BackupError::InTheWay(_) | BackupError::NotAKey(_) => (StatusCode::CONFLICT, "Conflict"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        };
        Self::new(status, code, base::errors::chain(&error))
    }
}
