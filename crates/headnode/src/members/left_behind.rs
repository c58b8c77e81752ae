//! Whether the datacenter was begun anew without this headnode (see `recover`).
//!
//! Each new beginning has a greater era, which stands in cluster.json and which a headnode tells to anybody who asks for its time. A headnode asks
//! the others that its records know, before it opens a door and now and then afterwards: also when it has a majority, because two that were left behind
//! together are one. Who says it is proved by the datacenter's authority. Then this machine is no headnode any more, as if it had been taken out: what it would
//! acknowledge nobody would know. Its member's data are kept aside, for whoever misses what only they have.

use std::time::Duration;

use control::{Control, tables::HEADNODES};
use futures_util::future::join_all;
use model::{id::ServerId, role::HeadnodeState, time::Timestamp};
use nodeapi::join::{Door, Fingerprint};

use crate::{
    members::file::ClusterFile,
    pki::{PkiError, write_file},
    role,
    run::RunError,
    settings::Settings,
};

/// Says beside the member's data that they are kept.
pub(crate) const MARKER: &str = "left-behind";
/// How long another headnode may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// It was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the datacenter was begun anew without this headnode: {by} is of era {era}, this one of {own}. It changes nothing any more; its node puts it away \
     and keeps its member's data aside; `neso adm ha add`, typed at {by}, makes this machine a headnode again"
)]
pub struct LeftBehind {
    /// Where the headnode is that says so.
    pub by: String,
    /// Its era.
    pub era: u64,
    /// Ours.
    pub own: u64,
}

/// Which beginning this headnode's store is of; the first is 0.
pub fn era(settings: &Settings) -> u64 {
    ClusterFile::load(settings).ok().flatten().map_or(0, |file| file.era)
}

/// Asks the others.
async fn look(control: &Control, settings: &Settings, me: ServerId) -> Option<LeftBehind> {
    let file = ClusterFile::load(settings).ok().flatten()?;
    let authority = std::fs::read(settings.pki_dir().join("ca.pem")).ok();
    let authority = Fingerprint::of_pem(&authority?)?;
    let snapshot = control.snapshot();
    let others = snapshot.scan(&HEADNODES).filter(|one| one.id != me).map(|one| one.node_link.clone());
    let asked = join_all(others.map(async |link| {
        let hello = tokio::time::timeout(ANSWER_MAX, Door::hello(&link, authority)).await;
        hello.ok()?.ok().map(|hello| (hello.era, link))
    }));
    let newest = asked.await.into_iter().flatten().max()?;
    (newest.0 > file.era).then_some(LeftBehind { by: newest.1, era: newest.0, own: file.era })
}

/// Looks, and makes it so.
///
/// # Errors
/// When it was left behind.
pub async fn refuse(control: &Control, settings: &Settings, me: ServerId) -> Result<(), RunError> {
    let Some(found) = look(control, settings, me).await else { return Ok(()) };
    obey(settings, &found, control.now())?;
    Err(found.into())
}

/// Makes it so, whatever may be killed.
fn obey(settings: &Settings, found: &LeftBehind, now: Timestamp) -> Result<(), PkiError> {
    write_file(&settings.headnode_dir().join(MARKER), found.to_string().as_bytes(), 0o644)?;
    role::write(settings, now, HeadnodeState::Leaving, std::slice::from_ref(&found.by))
}
