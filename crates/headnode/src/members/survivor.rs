//! What this machine's member has, for whoever thinks of a new beginning from it (see `recover`): looked at, and nothing changed.
//!
//! It is what a new member would be filled with: all that is in the member's file and, behind that, in its log. A member that runs meanwhile and finds no majority
//! adds nothing to either.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use bytes::Bytes;
use control::tables::{BEATS, HEADNODES};
use etcd::Admin;
use futures_util::future::join_all;
use model::{headnode::Stage, id::ServerId, time::Timestamp};
use serde::Serialize;
use store::{Fill, Snapshot, Store, memory::Memory};

use crate::{
    backup,
    members::{
        file::{ClusterFile, MemberFile},
        keep::{prefix, tls},
        majority::Written,
        process::{self, bare, url},
        recover::own,
        unrecovered::{RecoverError, refused},
    },
    pki,
    settings::Settings,
};

/// How often another member is asked before it counts as lost: one that is alive and slow is not.
const ASKED: usize = 4;

/// What this machine's member has.
#[derive(Debug, Clone, Serialize)]
pub struct Survivor {
    /// Revision of the records.
    pub revision: u64,
    /// Revision of those in the member's file; later ones are in its log only.
    pub file_revision: u64,
    /// Records.
    pub records: usize,
    /// Number of the newest entry of the members' log that is in the file.
    pub applied: u64,
    /// Entries of the log behind that one, which are taken as well.
    pub from_log: u64,
    /// Of these, those that the member did not know to be agreed when it was cut off.
    pub not_agreed: u64,
    /// Why later ones are not taken, where the log is damaged.
    pub log_stopped: Option<String>,
    /// When a headnode beat last, by its own clock: what was acknowledged later is not here.
    pub last_beat: Option<Timestamp>,
    /// All headnodes, this one first.
    pub headnodes: Vec<Lost>,
    /// When the newest backup on this machine was taken.
    pub newest_backup: Option<Timestamp>,
    /// Where the member's data are.
    pub data: PathBuf,
    /// Which beginning this would be.
    pub era: u64,
}

/// A headnode that there was.
#[derive(Debug, Clone, Serialize)]
pub struct Lost {
    /// Host name.
    pub name: String,
    /// Its server.
    pub id: ServerId,
    /// Where its member was, `HOST:PORT`.
    pub address: String,
    /// When it beat last, by its own clock.
    pub last_beat: Option<Timestamp>,
    /// It is this machine.
    pub is_here: bool,
}

/// Looks what there is, changes nothing.
///
/// # Errors
/// When there is no need for a new beginning, or nothing to begin from.
pub async fn look(settings: &Settings, now: Timestamp) -> Result<Survivor, RecoverError> {
    let (server, member) = own(settings)?;
    let era = ClusterFile::load(settings)?.map_or(0, |file| file.era).saturating_add(1);
    let data = ClusterFile::data_dir(settings);
    if !process::has_data(&data) {
        let next = "try it on another machine that had a headnode; without any, `neso restore` and `neso adm rebuild`";
        return Err(refused(format!("this machine's member has no data in `{}`", data.display()), next));
    }
    let (read, of) = (data.clone(), prefix(settings));
    let survived = base::task::blocking("read member", move || etcd::survived(&read, &of)).await?;
    let known: Vec<Written> = survived.members.iter().filter_map(|text| serde_json::from_slice(text).ok()).collect();
    let pki = pki::store_certificates(settings, &server.to_string(), &process::hosts(&member), now)?;
    let endpoint = url(&member.client);
    let admin = Admin::new(std::slice::from_ref(&endpoint), Some(tls(&pki)))?;
    check_lost(&admin, &known, &member).await?;

    let snapshot = in_memory(&survived.records).await?;
    let beat = |id: ServerId| snapshot.get(&BEATS, &id.to_string()).map(|beat| beat.at);
    let mut all: Vec<Lost> = snapshot
        .scan(&HEADNODES)
        .filter(|one| one.stage == Stage::Active || one.id == server)
        .map(|one| Lost {
            name: one.hostname.clone(),
            id: one.id,
            address: one.member.as_ref().map(|member| bare(&member.peer)).unwrap_or_default(),
            last_beat: beat(one.id),
            is_here: one.id == server,
        })
        .collect();
    all.sort_by_key(|one| (!one.is_here, one.name.clone()));
    let backups = std::iter::once(settings.backup_dir()).chain(settings.backup.copies.clone());
    let backups = backups.filter_map(|directory| backup::list(&directory).ok()?.last().map(|newest| newest.taken_at));
    Ok(Survivor {
        revision: survived.revision.0,
        file_revision: survived.file_revision.0,
        records: survived.records.len(),
        applied: survived.applied,
        from_log: survived.log.entries,
        not_agreed: survived.log.not_agreed,
        log_stopped: survived.log.stopped,
        last_beat: snapshot.scan(&BEATS).map(|beat| beat.at).max(),
        headnodes: all,
        newest_backup: backups.max(),
        data,
        era,
    })
}

/// The records as a headnode would see them, which also says that it can.
async fn in_memory(records: &BTreeMap<String, Bytes>) -> Result<Snapshot, RecoverError> {
    let memory = Memory::new();
    let mut fill = Fill::begin(&memory).await.map_err(backup::BackupError::from)?;
    for (key, value) in records {
        fill.add(key.clone(), value.clone()).await.map_err(backup::BackupError::from)?;
    }
    fill.finish().await.map_err(backup::BackupError::from)?;
    Ok(Store::open(Arc::new(memory), control::schema()).await?.snapshot())
}

/// Refuses where another member lives, or where there is no other.
async fn check_lost(admin: &Admin, known: &[Written], own: &MemberFile) -> Result<(), RecoverError> {
    let is_own = |member: &&Written| member.name == own.name || member.peers.contains(&url(&own.peer));
    if known.iter().any(|member| is_own(&member) && member.learner) {
        let next = "begin from one that has: try it there";
        return Err(refused("this machine's member has no vote yet and may lack anything", next));
    }
    let others: Vec<&Written> = known.iter().filter(|member| !is_own(member)).collect();
    if others.is_empty() {
        let next = "`neso up` starts it; `neso adm ha add` gives it others";
        return Err(refused("this machine's member is the only one there is: it needs nobody", next));
    }
    let asked = join_all(others.iter().map(async |member| {
        let peer = member.peers.first().cloned().unwrap_or_default();
        for _ in 0..ASKED {
            if admin.members_of(&peer).await.is_ok() {
                return Some(bare(&peer));
            }
        }
        None
    }));
    let answer: Vec<String> = asked.await.into_iter().flatten().collect();
    if answer.is_empty() {
        return Ok(());
    }
    let voting = known.iter().filter(|member| !member.learner).count();
    let enough = answer.len() + 1 >= model::quorum::majority(voting);
    Err(match enough {
        true => refused(
            format!("{} answers: with it there is a majority, and nothing is lost", answer.join(" and ")),
            "`neso adm ha status` says what is missing; `neso adm ha replace` puts another machine in the place of one that is gone",
        ),
        false => refused(
            format!("{} answers, and would go on without this one", answer.join(" and ")),
            "if it is to be left behind, `neso down --keep-instances` there first; if not, begin on the one that has the most",
        ),
    })
}
