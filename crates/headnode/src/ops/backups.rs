//! Backups: those there are, and one now.

use std::path::PathBuf;

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use control::tables::ACCOUNTS;
use opsapi::{BackupStanding, BackupTaken, BackupView, NewBackup};

use super::{Answer, Body, Ops, Refusal};
use crate::backup::{self, BackupError, Kept, Standing};

pub(super) fn routes() -> Router<Ops> {
    Router::new().route("/v1/backups", get(list).post(take))
}

async fn list(State(ops): State<Ops>) -> Answer<Vec<BackupView>> {
    let kept = standing(&ops).await?.kept;
    let view = |Kept { backup, copies }: Kept| BackupView {
        path: backup.path,
        bytes: backup.bytes,
        taken_at: backup.taken_at,
        revision: backup.revision,
        copies,
    };
    Ok(Json(kept.into_iter().map(view).collect()))
}

async fn standing(ops: &Ops) -> Result<Standing, BackupError> {
    let (settings, offers, control) = (ops.settings.clone(), ops.offers.clone(), ops.control.clone());
    base::task::blocking("backups", move || {
        let newest = backup::list(&settings.backup_dir())?.last().map(|newest| newest.taken_at);
        Standing::look(&settings, &offers.others(&control, newest))
    })
    .await
}

/// How they stand; with what is wrong, in words.
pub(super) async fn look(ops: &Ops) -> (BackupStanding, Vec<String>) {
    let every_hours = ops.settings.backup.every_hours;
    let sealed = ops.settings.backup.key_file.is_some();
    let standing = match standing(ops).await {
        Ok(standing) => standing,
        Err(error) => {
            let view = BackupStanding { every_hours, sealed, overdue: true, ..BackupStanding::default() };
            return (view, vec![format!("backups cannot be looked at: {}", base::errors::chain(&error))]);
        }
    };
    let now = ops.control.now();
    let used = ops.control.snapshot().count(&ACCOUNTS) > 0;
    let overdue = standing.is_overdue(now, ops.started_at, used, every_hours);
    let newest_at = standing.newest_at();
    let mut findings = Vec::new();
    if overdue {
        findings.push(match newest_at {
            Some(at) => format!(
                "the newest backup is of {at}, one is due every {every_hours} h: `neso adm loops` says what is wrong"
            ),
            None => "there is no backup: `neso adm loops` says what is wrong".to_owned(),
        });
    }
    findings.extend(
        standing
            .missing
            .iter()
            .map(|place| format!("the newest backup has no copy in {place}: `neso adm loops` says why")),
    );
    if !sealed && !ops.settings.backup.command.is_empty() {
        findings.push(
            "backups are carried away unsealed, and hold the datacenter's keys: `neso adm backup key` makes a key to seal them with".to_owned(),
        );
    }
    let view = BackupStanding {
        newest_at,
        age_seconds: newest_at.map(|at| now.millis_since(at) / 1_000),
        every_hours,
        overdue,
        sealed,
        copies: standing.kept.last().map_or(0, |kept| kept.copies.len()),
        missing: standing.missing,
    };
    (view, findings)
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
