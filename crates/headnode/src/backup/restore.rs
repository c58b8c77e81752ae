//! The way back: a headnode made of a backup, on a machine that has none.
//!
//! ```text
//! look: is it whole? is nothing in the way? ─► certificates, keys ─► settings ─► store, filled beside ─► put in place
//! ```
//! Whoever starts on the restored records is one headnode, alone, whatever there was before: with its records in a file, as a datacenter begins, or
//! in the etcd that the settings name ([`super::cluster`]). More headnodes are added as they were the first time.
//!
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

use base::clock::{Clock as _, SystemClock};
use control::tables::{BEATS, HEADNODES, SERVERS};
use model::{
    id::ServerId,
    role::{HeadnodeRole, HeadnodeState, HeadnodeWanted},
    server::{self, Server},
    time::Timestamp,
};
use serde::Serialize;
use store::{CommitError, Store, Transaction, sqlite::Sqlite};

use super::{
    BackupError,
    cluster::{self, Cluster},
    file::{End, Head},
    fill, look,
    sealed::SealKey,
    sync_directory_of,
};
use crate::{
    members::file::ClusterFile,
    pki::{make_directory, write_file},
    role,
    settings::{self, Settings, StoreEngine},
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
    /// The etcd that records are put in, when they go into no file.
    pub filled: Vec<String>,
}

struct Plan {
    settings: Settings,
    /// Where records go, when that is no file.
    cluster: Option<Cluster>,
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
    let Plan { settings, cluster, restored, files } = plan(restore).await?;
    for (path, mode, content) in &files {
        make_directory(path.parent().unwrap_or(Path::new("/")))?;
        write_file(path, content, *mode & 0o755)?;
    }
    let directory = settings.headnode_dir();
    make_directory(&directory)?;
    let now = Timestamp(SystemClock.now_ms());
    let begin = Beginning { head: &restored.head, here: here(&settings), joined: settings.join.is_some(), now };
    match &cluster {
        Some(cluster) => fill_cluster(restore, cluster, &begin).await?,
        None => fill_file(restore, &directory, &begin).await?,
    }
    if begin.joined && begin.here.is_some() {
        role::write(&settings, now, HeadnodeState::Ready, &[])?;
    }
    Ok(restored)
}

async fn fill_file(restore: &Restore, directory: &Path, begin: &Beginning<'_>) -> Result<(), BackupError> {
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
        fill(&restore.backup, restore.key.clone(), &engine, None).await?;
        let store = Store::open(Arc::new(engine), control::schema()).await?;
        begin.raise(&store).await?;
    }
    put_in_place(&beside, directory)
}

async fn fill_cluster(restore: &Restore, cluster: &Cluster, begin: &Beginning<'_>) -> Result<(), BackupError> {
    let (etcd, first) = cluster.prepare(begin.head.revision).await?;
    fill(&restore.backup, restore.key.clone(), &*etcd, Some(first)).await?;
    let store = Store::open(etcd, cluster::schema()).await?;
    begin.raise(&store).await?;
    cluster::finish(&store).await.map_err(failed)
}

/// This machine, if it is known who it is.
fn here(settings: &Settings) -> Option<ServerId> {
    fs::read_to_string(settings.pki_dir().join("server-id")).ok()?.trim().parse().ok()
}

fn failed(error: CommitError) -> BackupError {
    BackupError::Write(io::Error::other(error))
}

/// How a restored datacenter begins.
struct Beginning<'a> {
    head: &'a Head,
    /// This machine, if it is one of the datacenter's.
    here: Option<ServerId>,
    /// It was a node of the datacenter's only, and runs the headnode from now on.
    joined: bool,
    now: Timestamp,
}

impl Beginning<'_> {
    /// Counts every machine's documents from above the backup, has each compared with its machine first, and forgets which headnodes there were: whoever
    /// starts on these records is one, and no other is waited for.
    async fn raise(&self, store: &Store) -> Result<(), BackupError> {
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
                Ok::<_, CommitError>((Transaction::new().replace(&SERVERS, &server, self.restored(&server)), ()))
            });
            raised.await.map_err(failed)?;
        }
        Ok(())
    }

    /// A server of the backup, as the restored store has it.
    fn restored(&self, server: &Server) -> Server {
        let is_here = self.here == Some(server.id);
        // One that was told to be a headnode is told that it is none, should something of it be left: it is of a store that is not any more.
        let headnode_role = match &server.headnode_role {
            _ if is_here && self.joined => {
                Some(HeadnodeRole { since: self.now, wanted: HeadnodeWanted::Running, headnodes: Vec::new() })
            }
            _ if is_here => None,
            Some(role) => Some(HeadnodeRole { wanted: HeadnodeWanted::Absent, headnodes: Vec::new(), ..role.clone() }),
            None => None,
        };
        Server {
            headnode: is_here || (server.headnode && headnode_role.is_none()),
            headnode_role,
            headnode_fact: None,
            generation_base: server.generation_base.saturating_add(self.head.revision),
            restored: Some(server::Restored {
                taken_at: self.head.taken_at,
                brought: false,
                compared: false,
                strangers: 0,
                rules: None,
            }),
            ..server.clone()
        }
    }
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
    let text = String::from_utf8_lossy(&text.content);
    let backed =
        Settings::parse(&text).map_err(|why| BackupError::Damaged { line: 0, why: format!("its settings: {why}") })?;
    let (settings, settings_text) = settings_here(restore, backed)?;
    if settings.datacenter.name != head.datacenter {
        let (here, there) = (&settings.datacenter.name, &head.datacenter);
        let why = format!("the settings of this machine are of datacenter \"{here}\", the backup is of \"{there}\"");
        return Err(BackupError::InTheWay(why));
    }
    refuse_headnode(&settings)?;
    let store = settings.headnode_dir().join(STORE);
    let mut restored = Restored { head, end, written: Vec::new(), kept: Vec::new(), filled: Vec::new() };
    let mut to_write = Vec::new();
    let settings_path = restore.settings_file.clone();
    match settings_text {
        Some(text) => {
            restored.written.push(settings_path.clone());
            to_write.push((settings_path, 0o644, text.into_bytes()));
        }
        // Settings are the operator's: what is here holds.
        None => restored.kept.push(settings_path),
    }
    for file in files {
        let Some(path) = place(&settings, restore, &file.name) else { continue };
        match fs::read(&path) {
            Ok(there) if there == file.content => restored.kept.push(path),
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
    // Asked last: everything else costs nobody anything.
    let cluster = match settings.store.engine {
        StoreEngine::Sqlite => {
            restored.written.push(store);
            None
        }
        StoreEngine::Etcd => {
            restored.filled.clone_from(&settings.store.endpoints);
            Some(Cluster::open(&settings).await?)
        }
    };
    Ok(Plan { settings, cluster, restored, files: to_write })
}

/// Refuses a machine that has a headnode.
fn refuse_headnode(settings: &Settings) -> Result<(), BackupError> {
    let members = ClusterFile::path(settings);
    if members.exists() {
        let why = format!(
            "this machine has a headnode whose records are in the store's members already: `{}`; restore on another one, or remove this one with `neso clean-data`",
            members.display()
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
    Ok(())
}

/// The settings this machine will run with, and their text if it is not there yet.
fn settings_here(restore: &Restore, backed: Settings) -> Result<(Settings, Option<String>), BackupError> {
    let path = &restore.settings_file;
    let in_the_way = |error: &dyn std::error::Error| BackupError::InTheWay(base::errors::chain(error));
    if !path.exists() {
        // Also of a headnode that had joined another one: whoever restores begins here.
        let settings = Settings { join: None, ..backed };
        let text = toml::to_string(&settings).map_err(|error| BackupError::Write(io::Error::other(error)))?;
        return Ok((settings, Some(text)));
    }
    let settings = Settings::load(path).map_err(|error| in_the_way(&error))?;
    if settings.join.is_none() {
        return Ok((settings, None));
    }
    if here(&settings).is_none() {
        return Err(BackupError::InTheWay(format!(
            "the settings `{}` have a section [join], and this machine is no part of a datacenter: take the section out first",
            path.display()
        )));
    }
    // A node becomes the headnode: what headnodes share comes from there, as when one is added.
    let text = fs::read_to_string(path).map_err(|source| BackupError::io("read", path, source))?;
    let adopted = settings::adopt(&text, &backed.shared()).map_err(|error| in_the_way(&error))?;
    let settings = Settings::parse(&adopted).map_err(BackupError::InTheWay)?;
    let is_news = adopted != text;
    Ok((settings, is_news.then_some(adopted)))
}

fn is_authority(name: &str) -> bool {
    matches!(name, "pki/ca.pem" | "pki/ca.key")
}

/// Where a file of a backup belongs; `None` for one that is not restored. Only names we know are any place at all.
fn place(settings: &Settings, restore: &Restore, name: &str) -> Option<PathBuf> {
    if OF_THE_MACHINE.contains(&name) && !restore.same_machine {
        return None;
    }
    super::files(settings).into_iter().find(|(known, _)| known == name).map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use etcd::local::Member;
    use model::headnode::{Headnode, Stage};
    use store::memory::Memory;

    use super::*;
    use crate::backup::{Taken, file::Writer, take};

    /// A datacenter that was, its backup, and a machine to restore it on.
    struct Site {
        root: tempfile::TempDir,
        text: String,
        restore: Restore,
    }

    fn server(headnode_role: Option<HeadnodeRole>) -> Server {
        Server { headnode: true, headnode_role, ..Server::new(ServerId::random(), "somewhere", Timestamp(1)) }
    }

    fn running(since: i64) -> Option<HeadnodeRole> {
        Some(HeadnodeRole { since: Timestamp(since), wanted: HeadnodeWanted::Running, headnodes: Vec::new() })
    }

    fn headnode(server: &Server) -> Headnode {
        Headnode {
            id: server.id,
            hostname: server.hostname.clone(),
            cloudapi: String::new(),
            node_link: String::new(),
            ops: String::new(),
            member: None,
            stage: Stage::Active,
            joined_at: Timestamp(1),
            shared_settings: model::part::Digest::of_bytes(&[]),
            release: String::new(),
        }
    }

    impl Site {
        /// Of two headnodes, the second of which was added.
        async fn new() -> (Self, [Server; 2]) {
            let root = tempfile::tempdir().unwrap();
            let text = Settings::generate(Some(root.path())).unwrap();
            let settings = Settings::parse(&text).unwrap();
            crate::pki::ensure(&settings, Timestamp(1_800_000_000_000)).unwrap();
            let store = Store::open(Arc::new(Memory::new()), control::schema()).await.unwrap();
            let servers = [server(None), server(running(7))];
            let all = servers.iter().fold(Transaction::new(), |all, server| {
                all.create(&SERVERS, server.clone()).create(&HEADNODES, headnode(server))
            });
            store.commit(all).await.unwrap();
            let to = Some(root.path().join("a.neso-backup"));
            let taken: Taken = take(&settings, store.snapshot(), Timestamp(1), to).await.unwrap();
            // The machine is lost.
            for directory in [settings.pki_dir(), settings.headnode_dir(), settings.paths.operator] {
                let _ = fs::remove_dir_all(directory);
            }
            let settings_file = root.path().join("neso.toml");
            let restore = Restore { backup: taken.path, key: None, settings_file, same_machine: false };
            (Self { root, text, restore }, servers)
        }

        fn settings(&self) -> Settings {
            Settings::load(&self.restore.settings_file).unwrap()
        }

        async fn refused(&self) -> String {
            let why = base::errors::chain(&run(&self.restore).await.unwrap_err());
            assert!(!self.root.path().join("var/lib/neso/pki/ca.key").exists(), "something was written: {why}");
            why
        }
    }

    async fn restored_servers(engine: Arc<dyn store::Engine>, of: &[Server; 2]) -> [Server; 2] {
        let snapshot = Store::open(engine, control::schema()).await.unwrap().snapshot();
        assert_eq!(snapshot.count(&HEADNODES), 0, "whoever starts is alone");
        of.each_ref().map(|one| snapshot.get(&SERVERS, &one.id.to_string()).unwrap().value.clone())
    }

    #[tokio::test]
    async fn two_headnodes_become_one_and_what_is_left_of_the_other_is_put_away() {
        let (site, servers) = Site::new().await;
        let outcome = run(&site.restore).await.unwrap();
        assert_eq!((outcome.end.records, outcome.filled.len()), (4, 0));
        let store = site.settings().headnode_dir().join(STORE);
        let [first, second] = restored_servers(Arc::new(Sqlite::open(&store).await.unwrap()), &servers).await;
        assert_eq!((first.headnode, first.headnode_role, second.headnode), (true, None, false));
        let told = second.headnode_role.unwrap();
        assert_eq!((told.since, told.wanted), (Timestamp(7), HeadnodeWanted::Absent));
        assert!(first.generation_base >= outcome.head.revision && first.restored.is_some());
        assert!(run(&site.restore).await.unwrap_err().to_string().contains("has a headnode already"));
    }

    #[tokio::test]
    async fn a_node_of_the_datacenter_becomes_its_headnode_and_another_s_does_not() {
        let (site, servers) = Site::new().await;
        let joined =
            format!("{}\n[join]\nheadnodes = [\"10.0.0.1:1\"]\n", site.text.replace("mtu = 1400", "mtu = 1300"));
        fs::write(&site.restore.settings_file, &joined).unwrap();
        assert!(site.refused().await.contains("is no part of a datacenter"));

        let pki = site.settings().pki_dir();
        fs::create_dir_all(&pki).unwrap();
        fs::write(pki.join("server-id"), format!("{}\n", servers[0].id)).unwrap();
        fs::write(pki.join("ca.pem"), "of others").unwrap();
        assert!(site.refused().await.contains("is of another datacenter"));
        assert_eq!(fs::read_to_string(&site.restore.settings_file).unwrap(), joined);

        fs::remove_file(pki.join("ca.pem")).unwrap();
        run(&site.restore).await.unwrap();
        let settings = site.settings();
        assert!(settings.join.is_some() && role::runs_headnode(&settings));
        let mtu_of = |text: &str| Settings::parse(text).unwrap().shared();
        assert_eq!(settings.shared(), mtu_of(&site.text), "what headnodes share is theirs");
        let store = settings.headnode_dir().join(STORE);
        let [here, _] = restored_servers(Arc::new(Sqlite::open(&store).await.unwrap()), &servers).await;
        assert_eq!(here.headnode_role.map(|told| told.since), role::read(&settings).map(|fact| fact.since));
        assert!(here.headnode);
    }

    #[tokio::test]
    async fn a_backup_of_another_datacenter_or_of_a_later_program_is_refused() {
        let (site, _) = Site::new().await;
        fs::write(&site.restore.settings_file, site.text.replace("name = \"", "name = \"other-")).unwrap();
        assert!(site.refused().await.contains("the settings of this machine are of datacenter"));
        fs::remove_file(&site.restore.settings_file).unwrap();

        let head = Head::new("later", Timestamp(1), 9);
        let mut writer = Writer::begin(Vec::new(), None, &head).unwrap();
        writer.file(SETTINGS, 0o644, site.text.as_bytes()).unwrap();
        writer.record("servers/x", br#"{"v":999,"d":{}}"#).unwrap();
        fs::write(&site.restore.backup, writer.finish().unwrap().0).unwrap();
        let why = site.refused().await;
        assert!(why.contains("record `servers/x` has version 999"), "{why}");
    }

    #[tokio::test]
    async fn records_go_into_an_empty_etcd_and_into_no_other() {
        let (site, servers) = Site::new().await;
        let with = |endpoint: &str| {
            let text =
                site.text.replace("engine = \"sqlite\"", &format!("engine = \"etcd\"\nendpoints = [\"{endpoint}\"]"));
            fs::write(&site.restore.settings_file, text).unwrap();
        };
        with("http://127.0.0.1:1");
        assert!(site.refused().await.contains("which cannot be used"), "nobody is there");
        if !etcd::local::is_installed() {
            println!("skipped: a restore into etcd, because etcd is not installed (Debian's package etcd-server)");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let members = Member::cluster(directory.path(), 1, None, &[]).await.unwrap();
        with(&members[0].endpoint());
        let settings = site.settings();
        let open = async || {
            let config = settings.store.etcd(&settings.datacenter.name, "test");
            Arc::new(etcd::Etcd::open(config).await.unwrap())
        };
        // An earlier restore was killed: half of another backup is there.
        let (engine, first) = Cluster::open(&settings).await.unwrap().prepare(3).await.unwrap();
        let mut half = store::Fill::begin(&*engine).await.unwrap();
        half.add(first.0, first.1).await.unwrap();
        half.add("accounts/of-nobody".to_owned(), "{}".into()).await.unwrap();
        half.finish().await.unwrap();
        assert!(Store::open(open().await, control::schema()).await.is_err(), "no headnode starts on half a store");

        let outcome = run(&site.restore).await.unwrap();
        assert_eq!(outcome.filled, [members[0].endpoint()]);
        assert!(!settings.headnode_dir().join(STORE).exists());
        let engine = open().await;
        restored_servers(engine.clone(), &servers).await;
        let newest = store::Engine::load(&*engine, "", 1).await.unwrap().revision;
        assert!(newest.0 > outcome.head.revision, "{newest:?} after {}", outcome.head.revision);
        let again = run(&site.restore).await.unwrap_err().to_string();
        assert!(again.contains("holds records of a datacenter") && again.contains("etcdctl del"), "{again}");
    }
}
