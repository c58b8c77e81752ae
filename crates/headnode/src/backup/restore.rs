//! The way back: a headnode made of a backup, on a machine that has none.
//!
//! ```text
//! look: is it whole? is nothing in the way? ─► certificates, keys ─► settings ─► store, filled beside ─► put in place
//! ```
//! Nothing is written before the whole backup was read and tried, and the store's name appears last: until then the machine
//! has no headnode, and the same command may run again. What lies there already is kept when it is the same and refuses the restore when
//! it is not, so no two datacenters are mixed.
//!
//! Machines count the documents they are told from what they have seen. A restored store begins to count anew, so each machine's
//! base is raised above every revision of the backup: most machines listen at once, and those that have seen later ones are noticed when
//! they report. Until what each machine has was compared with the records ([`control::rebuild`]), it is told nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use control::tables::{BEATS, HEADNODES, SERVERS};
use model::server::{self, Server};
use serde::Serialize;
use store::{CommitError, Store, Transaction, sqlite::Sqlite};

use super::{
    BackupError,
    file::{End, Head},
    fill, look,
    sealed::SealKey,
    sync_directory_of,
};
use crate::{
    members::file::ClusterFile,
    pki::{make_directory, write_file},
    settings::{Settings, StoreEngine},
};

/// Name of the settings in a backup.
pub(super) const SETTINGS: &str = "neso.toml";
/// Files that say which machine the headnode ran on.
const OF_THE_MACHINE: [&str; 3] = ["pki/server-id", "pki/node.pem", "pki/node.key"];
/// The name of the store's file.
const STORE: &str = "store.db";

/// What is to be restored, and where to.
#[derive(Debug, Clone)]
pub struct Restore {
    /// The backup.
    pub backup: PathBuf,
    /// The key it is sealed with.
    pub key: Option<SealKey>,
    /// Where the settings file belongs.
    pub settings_file: PathBuf,
    /// Whether this machine is the one the backup was taken on, with its instances: it goes on under its name.
    pub same_machine: bool,
}

/// What was restored, or would be.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// The backup's first line.
    pub head: Head,
    /// Its last line.
    pub end: End,
    /// Files that are written.
    pub written: Vec<PathBuf>,
    /// Files that are there already and the same.
    pub kept: Vec<PathBuf>,
}

struct Plan {
    settings: Settings,
    restored: Restored,
    files: Vec<(PathBuf, u32, Vec<u8>)>,
}

/// Looks whether the restore can be done, without writing anything.
///
/// # Errors
/// What is wrong with the backup, or in the way.
pub async fn dry_run(restore: &Restore) -> Result<Restored, BackupError> {
    Ok(plan(restore).await?.restored)
}

/// Restores.
///
/// # Errors
/// As [`dry_run`]; when something cannot be written. Then it may be run again.
pub async fn run(restore: &Restore) -> Result<Restored, BackupError> {
    let Plan { settings, restored, files } = plan(restore).await?;
    for (path, mode, content) in &files {
        make_directory(path.parent().unwrap_or(Path::new("/")))?;
        write_file(path, content, *mode & 0o755)?;
    }
    let directory = settings.headnode_dir();
    make_directory(&directory)?;
    let beside = directory.join("restoring");
    // What an earlier attempt left.
    match fs::remove_dir_all(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(BackupError::io("remove", &beside, error)),
        _ => make_directory(&beside)?,
    }
    let filling = beside.join(STORE);
    {
        // What the disk has to spare is the running headnode's business.
        let engine = Sqlite::open_with_reserve(&filling, 0).await.map_err(store::Error::Engine)?;
        fill(&restore.backup, restore.key.clone(), &engine).await?;
        let store = Store::open(Arc::new(engine), control::schema()).await?;
        raise(&store, &restored.head).await?;
    }
    put_in_place(&beside, &directory)?;
    Ok(restored)
}

/// Counts every machine's documents from above the backup, has each compared with its machine first, and forgets which headnodes there were: whoever starts on these records is one, and no
/// other is waited for.
async fn raise(store: &Store, head: &Head) -> Result<(), BackupError> {
    let failed = |error: CommitError| BackupError::Write(io::Error::other(error));
    let snapshot = store.snapshot();
    let forgotten =
        snapshot.scan(&HEADNODES).fold(Transaction::new(), |all, headnode| all.delete(&HEADNODES, &headnode));
    let forgotten = snapshot.scan(&BEATS).fold(forgotten, |all, beat| all.delete(&BEATS, &beat));
    if !forgotten.is_empty() {
        store.commit(forgotten).await.map_err(failed)?;
    }
    let servers: Vec<String> = store.snapshot().scan(&SERVERS).map(|server| server.id.to_string()).collect();
    for id in servers {
        let raised = store.update(|snapshot| {
            let Some(server) = snapshot.get(&SERVERS, &id) else { return Ok((Transaction::new(), ())) };
            let generation_base = server.generation_base.saturating_add(head.revision);
            let to_compare = server::Restored { taken_at: head.taken_at, compared: false, strangers: 0 };
            let server_now = Server { generation_base, restored: Some(to_compare), ..server.value.clone() };
            Ok::<_, CommitError>((Transaction::new().replace(&SERVERS, &server, server_now), ()))
        });
        raised.await.map_err(failed)?;
    }
    Ok(())
}

/// Moves the store where a headnode looks for it; the file that makes it one comes last.
fn put_in_place(from: &Path, to: &Path) -> Result<(), BackupError> {
    let mut names: Vec<_> = fs::read_dir(from)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>())
        .map_err(|source| BackupError::io("list", from, source))?;
    names.sort_by_key(|name| name == STORE);
    for name in names {
        let (source, target) = (from.join(&name), to.join(&name));
        fs::rename(&source, &target).map_err(|error| BackupError::io("put in place", &target, error))?;
        sync_directory_of(&target)?;
    }
    fs::remove_dir(from).map_err(|source| BackupError::io("remove", from, source))
}

async fn plan(restore: &Restore) -> Result<Plan, BackupError> {
    let (head, end, files) = {
        let (path, key) = (restore.backup.clone(), restore.key.clone());
        base::task::blocking("backup-read", move || look(&path, key.as_ref())).await?
    };
    let text = files
        .iter()
        .find(|file| file.name == SETTINGS)
        .ok_or_else(|| BackupError::Damaged { line: 0, why: "it has no settings".to_owned() })?;
    let is_here = restore.settings_file.exists();
    let settings = if is_here {
        Settings::load(&restore.settings_file).map_err(|error| BackupError::InTheWay(base::errors::chain(&error)))?
    } else {
        let text = String::from_utf8_lossy(&text.content);
        Settings::parse(&text).map_err(|why| BackupError::Damaged { line: 0, why: format!("its settings: {why}") })?
    };
    if settings.datacenter.name != head.datacenter {
        let (here, there) = (&settings.datacenter.name, &head.datacenter);
        let why = format!("the settings of this machine are of datacenter \"{here}\", the backup is of \"{there}\"");
        return Err(BackupError::InTheWay(why));
    }
    if settings.store.engine == StoreEngine::Etcd {
        let why = format!(
            "the settings say that records are in etcd, and a restore fills a file; put settings with engine = \"sqlite\" below [store] in `{}` first",
            restore.settings_file.display()
        );
        return Err(BackupError::InTheWay(why));
    }
    let cluster = ClusterFile::path(&settings);
    if cluster.exists() {
        let why = format!(
            "this machine has a headnode whose records are in the store's members already: `{}`; restore on another one, or remove this one with `neso clean-data`",
            cluster.display()
        );
        return Err(BackupError::InTheWay(why));
    }
    let store = settings.headnode_dir().join(STORE);
    if store.exists() {
        let why = format!(
            "this machine has a headnode already: `{}`; restore on another one, or remove this one with `neso clean-data`",
            store.display()
        );
        return Err(BackupError::InTheWay(why));
    }
    let mut restored = Restored { head, end, written: Vec::new(), kept: Vec::new() };
    let mut to_write = Vec::new();
    for file in files {
        let Some(path) = place(&settings, restore, &file.name) else { continue };
        match fs::read(&path) {
            // Settings are the operator's: what is here holds.
            Ok(there) if there == file.content || file.name == SETTINGS => restored.kept.push(path),
            // Made anew whenever they are missing or end; those that are here may be newer.
            Ok(_) if !is_authority(&file.name) => restored.kept.push(path),
            Ok(_) => {
                let why = format!("`{}` is of another datacenter; nothing was written", path.display());
                return Err(BackupError::InTheWay(why));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                restored.written.push(path.clone());
                to_write.push((path, file.mode, file.content));
            }
            Err(source) => return Err(BackupError::io("read", &path, source)),
        }
    }
    restored.written.push(store);
    Ok(Plan { settings, restored, files: to_write })
}

fn is_authority(name: &str) -> bool {
    matches!(name, "pki/ca.pem" | "pki/ca.key")
}

/// Where a file of a backup belongs; `None` for one that is not restored. Only names we know are any place at all.
fn place(settings: &Settings, restore: &Restore, name: &str) -> Option<PathBuf> {
    if OF_THE_MACHINE.contains(&name) && !restore.same_machine {
        return None;
    }
    if name == SETTINGS {
        return Some(restore.settings_file.clone());
    }
    super::files(settings).into_iter().find(|(known, _)| known == name).map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use model::time::Timestamp;
    use store::memory::Memory;

    use super::*;

    #[tokio::test]
    async fn records_in_etcd_are_not_a_file_s_to_restore() {
        let root = tempfile::tempdir().unwrap();
        let text = Settings::generate(Some(root.path())).unwrap();
        let settings_file = root.path().join("neso.toml");
        let store = Store::open(Arc::new(Memory::new()), control::schema()).await.unwrap();
        let to = Some(root.path().join("a.neso-backup"));
        let settings = Settings::parse(&text).unwrap();
        let taken = super::super::take(&settings, store.snapshot(), Timestamp(1), to).await.unwrap();
        let restore = Restore { backup: taken.path, key: None, settings_file, same_machine: false };

        let on_etcd = text.replace("engine = \"sqlite\"", "engine = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]");
        assert_ne!(on_etcd, text);
        fs::write(&restore.settings_file, on_etcd).unwrap();
        let refused = dry_run(&restore).await.unwrap_err().to_string();
        assert!(refused.contains("records are in etcd"), "{refused}");

        fs::write(&restore.settings_file, text).unwrap();
        let restored = run(&restore).await.unwrap();
        assert_eq!((restored.end.records, restored.kept.len()), (0, 1));
        assert!(settings.headnode_dir().join(STORE).exists());
        assert!(dry_run(&restore).await.unwrap_err().to_string().contains("has a headnode already"));
    }
}
