//! A new beginning from this machine's member, when more of them are gone for good than a majority can spare.
//!
//! ```text
//!   look ─► journal ─► headnode and member end ─► aside ─► identity ─► fill ─► switch ─► journal goes, both start
//!                      (the supervisor follows      │         │          │        └ cluster.json: this member and no other, the next era
//!                       the journal)                │         │          └ a new member, empty, alone, of another cluster, takes in all records that the old
//!                                                   │         │            one's file and log hold, under greater revisions; the lost headnodes' records go
//!                                                   │         └ another authority: no certificate of before opens this member, or is taken by it
//!                                                   └ the old member's data
//! ```
//! The journal is a file that names the step that is to be done next. Each step may be repeated, so whoever is killed at any moment types the same again; a
//! member that is half full is thrown away. What there was stays where it was put aside, untouched.
//!
//! **Those that were left behind** may be alive somewhere. The new cluster has a greater *era*, which every headnode tells to anybody; one that hears of a
//! greater era than its own changes nothing any more and puts itself away (see `left_behind`). Their members cannot speak to the new one at all. As long as they hear of
//! nothing, two of three would go on as if nothing had happened: that they are dead, or cut off from nodes and tenants, is for the operator to see to.
//!
//! What is taken is the member's file and behind it its log (see `etcd::survived`): what was acknowledged in the last moments is in the log only.
//!
//! Rejected: etcd's own `--force-new-cluster`, which keeps records whose entries it drops from the log, so that members that are added later differ; on a
//! copy, only to have the log written into the file, it drops the newest entries, which were acknowledged and of which the log does not say yet that they are agreed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base::{clock::Clock, shutdown::Shutdown};
use control::{Control, headnodes};
use etcd::{Admin, Etcd};
use model::{id::ServerId, time::Timestamp};
use serde::{Deserialize, Serialize};
use store::{Revision, Store};
use tokio::time::Instant;

use crate::{
    backup,
    members::{
        file::{ClusterFile, Kept, MemberFile},
        keep::{config, prefix, tls},
        process::{self, url},
        unrecovered::{at, refused},
    },
    pki::{self, StorePki},
    run::control_config,
    settings::{Settings, StoreEngine},
};

pub use crate::backup::cluster::{Filled, ShowFilled};
pub use crate::members::{
    survivor::{Lost, Survivor, look},
    unrecovered::RecoverError,
};

/// Name of the journal.
pub const FILE: &str = "recover.json";
const VERSION: u32 = 1;
/// Added to all revisions: more than the lost members can have made meanwhile. The lower part is there for those who keep a revision's lower half only.
const RAISE: u64 = (1 << 40) + (1 << 24);
/// How long a member without data may take to lead itself.
const ALONE_MAX: Duration = Duration::from_secs(120);
/// How often it is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(200);
/// Part of the names under which what there was is kept.
const ASIDE: &str = "before-recover";

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Put the member's data aside.
    Aside,
    /// Make another authority for the store.
    Identity,
    /// Fill a new member.
    Fill,
    /// Write down that it is the store.
    Switch,
}

/// How far a new beginning is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    version: u32,
    /// What is to be done next.
    pub step: Step,
    /// When it began: the name of what is put aside.
    pub begun_at: Timestamp,
    /// What is added to the new member's revisions.
    raise_to: u64,
    /// The new cluster's.
    pub era: u64,
    token: String,
}

impl Journal {
    fn path(settings: &Settings) -> PathBuf {
        settings.headnode_dir().join(FILE)
    }

    /// The one of a new beginning that is under way.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(settings: &Settings) -> Result<Option<Self>, RecoverError> {
        let path = Self::path(settings);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecoverError::Io { doing: "read", path, source }),
        };
        match serde_json::from_str::<Self>(&text) {
            Ok(journal) if journal.version == VERSION => Ok(Some(journal)),
            Ok(other) => Err(RecoverError::Journal { path, why: format!("its version is {}", other.version) }),
            Err(error) => Err(RecoverError::Journal { path, why: error.to_string() }),
        }
    }

    /// Writes down what `survivor` makes of this machine. From now on neither headnode nor member is started here.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn begin(settings: &Settings, survivor: &Survivor, now: Timestamp) -> Result<Self, RecoverError> {
        let journal = Self {
            version: VERSION,
            step: Step::Aside,
            begun_at: now,
            raise_to: survivor.revision.saturating_add(RAISE),
            era: survivor.era,
            token: format!("{:032x}", base::random::wide_bits()),
        };
        journal.save(settings)?;
        Ok(journal)
    }

    fn save(&self, settings: &Settings) -> Result<(), RecoverError> {
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        Ok(pki::write_file(&Self::path(settings), &text, 0o600)?)
    }

    /// Notes that `step` is next.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn advance(&mut self, settings: &Settings, step: Step) -> Result<(), RecoverError> {
        self.step = step;
        self.save(settings)
    }

    /// It is done: headnode and member may start.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn end(&self, settings: &Settings) -> Result<(), RecoverError> {
        let path = Self::path(settings);
        fs::remove_file(&path).map_err(at("remove", &path))
    }

    /// Where the member's data of before are kept.
    pub fn aside_dir(&self, settings: &Settings) -> PathBuf {
        settings.headnode_dir().join(format!("member.{ASIDE}-{}", self.begun_at.0))
    }

    /// Step [`Step::Aside`]. Nobody has the data open.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn put_aside(&self, settings: &Settings) -> Result<(), RecoverError> {
        let (from, to) = (ClusterFile::data_dir(settings), self.aside_dir(settings));
        if !to.exists() {
            fs::rename(&from, &to).map_err(at("rename", &from))?;
        }
        sync(&settings.headnode_dir())
    }

    /// Step [`Step::Identity`].
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn make_identity(&self, settings: &Settings, now: Timestamp) -> Result<(), RecoverError> {
        let pki = StorePki::of(settings);
        for path in [&pki.authority_key, &pki.authority] {
            let mut aside = path.as_os_str().to_owned();
            aside.push(format!(".{ASIDE}-{}", self.begun_at.0));
            let aside = PathBuf::from(aside);
            // What lies there once it was put aside is the new one.
            if !aside.exists() && path.exists() {
                fs::rename(path, &aside).map_err(at("rename", path))?;
                base::crash::point("headnode.recover.identity");
            }
        }
        Ok(pki::make_store_authority(settings, now)?)
    }

    /// Before [`Self::fill`], while nobody has a member open: what an attempt before left is thrown away.
    ///
    /// # Errors
    /// When the old member's data are not where they were put, or the system refuses.
    pub fn make_room(&self, settings: &Settings) -> Result<(), RecoverError> {
        let (data, aside) = (ClusterFile::data_dir(settings), self.aside_dir(settings));
        if !process::has_data(&aside) {
            let next = format!("put the member's data of before back to `{}`", aside.display());
            return Err(refused(format!("there is no data in `{}` to begin from", aside.display()), next));
        }
        match fs::remove_dir_all(&data) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", &data)(error)),
            _ => Ok(()),
        }
    }

    /// Step [`Step::Fill`]: the new member runs. Returns the names of the headnodes that were taken out.
    ///
    /// # Errors
    /// When it does not lead itself, or does not take in what the old one holds.
    pub async fn fill(
        &self,
        settings: &Settings,
        clock: Arc<dyn Clock>,
        show: &ShowFilled<'_>,
    ) -> Result<Vec<String>, RecoverError> {
        let (server, member) = own(settings)?;
        let (aside, of) = (self.aside_dir(settings), prefix(settings));
        // The log too: what was acknowledged last is not in the file.
        let survived = base::task::blocking("read member", move || etcd::survived(&aside, &of)).await?;
        let endpoint = url(&member.client);
        let now = Timestamp(clock.now_ms());
        let pki = pki::store_certificates(settings, &server.to_string(), &process::hosts(&member), now)?;
        let admin = Admin::new(std::slice::from_ref(&endpoint), Some(tls(&pki)))?;
        await_alone(&admin, &endpoint).await?;
        base::crash::point("headnode.recover.alone");
        let config = etcd::Config { data: None, ..config(settings, server, &pki, vec![endpoint]) };
        let etcd = Arc::new(Etcd::open(config).await?);
        // Above what is here as well, should it have got further since it was looked at.
        let above = Revision(self.raise_to.max(survived.revision.0));
        etcd.raise(above).await.map_err(RecoverError::Raise)?;
        backup::cluster::refill(&*etcd, &survived.records, show).await?;
        base::crash::point("headnode.recover.filled");
        let store = Store::open(etcd, backup::cluster::schema()).await?;
        let (ended, shutdown) = Shutdown::new();
        let (certificates, _) = pki::ensure(settings, now)?;
        let config = control_config(settings, &certificates, settings.headnode_dir().join("images"));
        let control = Control::start(store.clone(), clock, config, shutdown);
        let lost = headnodes::leave_behind(&control, server).await.map_err(RecoverError::Records);
        ended.fire();
        let lost = lost?;
        base::crash::point("headnode.recover.records");
        backup::cluster::finish(&store).await.map_err(RecoverError::Finish)?;
        Ok(lost)
    }

    /// Step [`Step::Switch`].
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn switch(&self, settings: &Settings) -> Result<(), RecoverError> {
        let (_, member) = own(settings)?;
        let endpoint = url(&member.client);
        let member = MemberFile { started: true, ..self.member(member) };
        let file = ClusterFile { era: self.era, ..ClusterFile::in_members(Some(member), vec![endpoint]) };
        Ok(file.save(settings)?)
    }

    /// The new member at the place of the one before.
    fn member(&self, before: MemberFile) -> MemberFile {
        MemberFile {
            initial_cluster: format!("{}={}", before.name, url(&before.peer)),
            token: self.token.clone(),
            first: true,
            started: false,
            ..before
        }
    }
}

/// Whether a new beginning is under way here, so that neither headnode nor member may be started.
pub fn is_under_way(settings: &Settings) -> bool {
    Journal::path(settings).exists()
}

/// The member that is to be filled now in the place of `member`: empty, alone, and of another cluster.
pub(crate) fn to_be_filled(settings: &Settings, member: &MemberFile) -> Option<MemberFile> {
    let journal = Journal::load(settings).ok().flatten().filter(|journal| journal.step == Step::Fill)?;
    Some(journal.member(member.clone()))
}

/// This machine's server, and its member, where there is something to begin anew.
pub(super) fn own(settings: &Settings) -> Result<(ServerId, MemberFile), RecoverError> {
    if settings.store.engine == StoreEngine::Etcd {
        return Err(refused(
            "the store is in a cluster that somebody else keeps",
            "whoever keeps it begins it anew (`etcdctl snapshot restore`); headnodes go on by themselves",
        ));
    }
    let member = match ClusterFile::load(settings)? {
        Some(ClusterFile { kept_in: Kept::Etcd, member: Some(member), .. }) => member,
        _ => {
            let next = "`neso up` starts a headnode; `neso restore` makes one of a backup";
            return Err(refused("this machine keeps no member of the store", next));
        }
    };
    let server = member.name.parse();
    let server = server.map_err(|_| refused(format!("`{}` is no server", member.name), "look at cluster.json"))?;
    Ok((server, member))
}

/// Waits until the member leads a cluster of its own.
async fn await_alone(admin: &Admin, endpoint: &str) -> Result<(), RecoverError> {
    let deadline = Instant::now() + ALONE_MAX;
    loop {
        let status = admin.status(endpoint).await;
        if let Ok(status) = &status
            && status.leader != 0
            && status.leader == status.id
        {
            return match admin.members_as_known().await?.len() {
                1 => Ok(()),
                count => Err(RecoverError::Alone(format!("the new member knows {count} members, not itself alone"))),
            };
        }
        if Instant::now() >= deadline {
            let why = status.map_or_else(|error| base::errors::chain(&error), |_| "it does not lead".to_owned());
            return Err(RecoverError::Alone(format!(
                "this machine's new member does not lead itself within {} s: {why}; its log says more",
                ALONE_MAX.as_secs()
            )));
        }
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

fn sync(path: &Path) -> Result<(), RecoverError> {
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(at("flush", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> (tempfile::TempDir, Settings) {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
        fs::create_dir_all(settings.headnode_dir()).unwrap();
        (root, settings)
    }

    fn journal() -> Journal {
        Journal {
            version: VERSION,
            step: Step::Aside,
            begun_at: Timestamp(1_800_000_000_000),
            raise_to: 7,
            era: 2,
            token: "t".to_owned(),
        }
    }

    #[test]
    fn the_journal_is_read_and_damage_is_no_absence() {
        let (_root, settings) = site();
        assert!(!is_under_way(&settings) && Journal::load(&settings).unwrap().is_none());
        let mut journal = journal();
        journal.save(&settings).unwrap();
        assert!(is_under_way(&settings) && to_be_filled(&settings, &member()).is_none());
        journal.advance(&settings, Step::Fill).unwrap();
        assert_eq!(Journal::load(&settings).unwrap(), Some(journal.clone()));
        let filled = to_be_filled(&settings, &member()).unwrap();
        let (token, cluster) = (filled.token.as_str(), filled.initial_cluster.as_str());
        assert_eq!((token, cluster, filled.first, filled.started), ("t", "n=https://h:2", true, false));
        fs::write(Journal::path(&settings), "{").unwrap();
        assert!(is_under_way(&settings) && to_be_filled(&settings, &member()).is_none());
        assert!(matches!(Journal::load(&settings), Err(RecoverError::Journal { .. })));
        journal.end(&settings).unwrap();
        assert!(!is_under_way(&settings));
    }

    fn member() -> MemberFile {
        MemberFile {
            name: "n".to_owned(),
            client: "h:1".to_owned(),
            peer: "h:2".to_owned(),
            token: "before".to_owned(),
            initial_cluster: "m=https://h:3,n=https://h:2".to_owned(),
            first: false,
            started: true,
        }
    }

    #[test]
    fn what_was_is_never_thrown_away_and_an_identity_is_made_once() {
        let (_root, settings) = site();
        let journal = journal();
        let data = ClusterFile::data_dir(&settings);
        fs::create_dir_all(data.join("member/wal")).unwrap();
        fs::write(data.join("member/wal/0.wal"), "log").unwrap();
        assert!(matches!(journal.make_room(&settings), Err(RecoverError::Refused { .. })));
        assert!(data.exists(), "nothing is thrown away that is not somewhere else");
        journal.put_aside(&settings).unwrap();
        for _ in 0..2 {
            // Half a member of an attempt before.
            fs::create_dir_all(data.join("member/wal")).unwrap();
            fs::write(data.join("member/wal/0.wal"), "later").unwrap();
            journal.put_aside(&settings).unwrap();
            journal.make_room(&settings).unwrap();
            assert!(!data.exists());
        }
        let kept = journal.aside_dir(&settings).join("member/wal/0.wal");
        assert_eq!(fs::read_to_string(kept).unwrap(), "log");

        let now = Timestamp(1_800_000_000_000);
        let pki = StorePki::of(&settings);
        let read = |path: &Path| fs::read(path).unwrap();
        pki::make_store_authority(&settings, now).unwrap();
        let before = read(&pki.authority);
        journal.make_identity(&settings, now).unwrap();
        let made = read(&pki.authority);
        assert_ne!(made, before);
        journal.make_identity(&settings, now).unwrap();
        assert_eq!(read(&pki.authority), made);
    }
}
