//! Headnodes keep the newest backups of each other: each fetches what the others took, over the node link.
//!
//! ```text
//!  asks: what have you, I hold these ─► names, lengths, sums ─► fetches what is missing ─► sum ─► others/SERVER/NAME ─► says what it holds
//! ```
//! Who holds a backup tells its maker, who shows it; who stops fetching is missed there. Only headnodes are answered ([`Offers`]): a backup
//! holds the datacenter's keys, which every headnode has anyhow. One that is slow or stuck keeps nobody from the others: they are asked side by side, and a
//! transfer that does not get on is given up and goes on in the next round.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    io::{Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use control::{Control, tables::HEADNODES};
use flow::loops::Loop;
use futures_util::{StreamExt as _, stream};
use model::{headnode::Stage, id::ServerId, server::MachineIdentity, time::Timestamp};
use nodeapi::{
    client::{Client, Settings as LinkSettings},
    kit::{BACKUPS_HELD_MAX, OfferedBackup},
    link::LinkError,
};
use sha2::{Digest as _, Sha256};
use store::BoxFuture;
use tokio::time::Instant;

use super::{
    BackupError, Listed, UNFINISHED, list, parse_name, sealed::hex, standing::Other, sweep, sync_directory_of,
    with_suffix,
};
use crate::{
    pki::{Pki, make_directory},
    settings::Settings,
};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(60);
/// How long one pass may take: large files over a slow link. A file that is cut then goes on in the next one, where it was.
const DEADLINE: Duration = Duration::from_secs(3_600);
/// Headnodes that are fetched from at once.
const AT_ONCE: usize = 4;
/// A transfer has to get on by [`PACE_BYTES`] within this: the slowest link that a backup of some size comes over in a night.
const PACE_WITHIN: Duration = Duration::from_secs(60);
/// See [`PACE_WITHIN`].
const PACE_BYTES: u64 = 256 << 10;
/// Of each other headnode: enough that one that turns out to be damaged is not the only one.
const KEPT: usize = 2;
/// Largest file that is fetched, bytes: far more than the largest store makes.
const BYTES_MAX: u64 = 16 << 30;
/// A headnode that took or saw a backup just now gets this long to fetch it before it is missed, milliseconds.
const FETCH_WITHIN_MS: u64 = 1_800_000;
/// Below the directory of backups.
pub(super) const DIRECTORY: &str = "others";

/// What this headnode offers to others, and what they said they hold.
#[derive(Clone)]
pub struct Offers {
    settings: Arc<Settings>,
    // Leaf data: replaced and copied.
    held: Arc<Mutex<HashMap<ServerId, Vec<String>>>>,
    /// Sums by name and length, so that a file is read once. Leaf data.
    sums: Arc<Mutex<HashMap<(String, u64), String>>>,
}

impl Offers {
    /// Of the backups of `settings`.
    pub fn new(settings: &Settings) -> Self {
        Self { settings: Arc::new(settings.clone()), held: Arc::default(), sums: Arc::default() }
    }

    /// What there is for another headnode, newest first; `held` is what it said it holds.
    pub async fn to(&self, headnode: ServerId, held: Vec<String>) -> Result<Vec<OfferedBackup>, BackupError> {
        let held = held.into_iter().take(BACKUPS_HELD_MAX).collect();
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(headnode, held);
        let offers = self.clone();
        base::task::blocking("backup-sums", move || offers.all()).await
    }

    /// The file of a backup that is offered.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        parse_name(name)?;
        let there = list(&self.settings.backup_dir()).ok()?;
        there.into_iter().map(|backup| backup.path).find(|path| path.file_name().is_some_and(|known| known == name))
    }

    fn all(&self) -> Result<Vec<OfferedBackup>, BackupError> {
        let there = list(&self.settings.backup_dir())?;
        there.iter().rev().take(KEPT).map(|backup| self.offer(backup)).collect()
    }

    fn offer(&self, backup: &Listed) -> Result<OfferedBackup, BackupError> {
        let name = backup.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let key = (name.clone(), backup.bytes);
        let known = self.sums.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let sha256 = match known {
            Some(sum) => sum,
            None => {
                let sum = sum_of(&backup.path)?;
                let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
                // Old ones are asked for no more.
                if sums.len() > KEPT * 4 {
                    sums.clear();
                }
                sums.insert(key, sum.clone());
                sum
            }
        };
        Ok(OfferedBackup { name, bytes: backup.bytes, sha256 })
    }

    /// The other headnodes that take part, and what they hold. One that became a headnode just now, or had no time yet to fetch the newest backup, is
    /// not among them, unless it has it.
    pub fn others(&self, control: &Control, newest: Option<Timestamp>) -> Vec<Other> {
        let (now, me) = (control.now(), control.headnodes.me());
        let is_new = |since: Timestamp| now.millis_since(since) < FETCH_WITHIN_MS;
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let snapshot = control.snapshot();
        let all = snapshot.scan(&HEADNODES).filter(|one| one.stage == Stage::Active && Some(one.id) != me);
        let known = all.map(|one| {
            let names = held.get(&one.id).cloned().unwrap_or_default();
            let has_newest =
                newest.is_some_and(|newest| names.iter().any(|name| parse_name(name).is_some_and(|it| it.0 == newest)));
            let counts = has_newest || !(is_new(one.joined_at) || newest.is_some_and(is_new));
            (counts, Other { hostname: one.hostname.clone(), names })
        });
        known.filter(|(counts, _)| *counts).map(|(_, other)| other).collect()
    }
}

fn sum_of(path: &Path) -> Result<String, BackupError> {
    let mut file = fs::File::open(path).map_err(|source| BackupError::io("open", path, source))?;
    let mut sum = Sha256::new();
    io::copy(&mut file, &mut sum).map_err(|source| BackupError::io("read", path, source))?;
    Ok(hex(sum.finalize().as_ref()))
}

/// Why a backup of another headnode is not here.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    /// The certificate of this machine's node.
    #[error("failed to read this machine's certificate")]
    Certificate(#[source] io::Error),
    /// The other headnode.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Files here.
    #[error(transparent)]
    Files(#[from] BackupError),
    /// It arrives too slowly.
    #[error("`{name}` stands at {bytes} bytes; it goes on there later")]
    Stuck {
        /// The backup.
        name: String,
        /// What had arrived.
        bytes: u64,
    },
    /// What arrived is something else.
    #[error("`{0}` did not arrive as it was offered; it is fetched again")]
    Differs(String),
    /// What is offered is not taken.
    #[error("`{0}` is no backup's name, or has more than {BYTES_MAX} bytes")]
    Nonsense(String),
}

/// Fetches the newest backups of the other headnodes.
pub struct KeepOthers {
    control: Control,
    settings: Settings,
    pki: Pki,
    /// Headnodes of which it failed last, so that each is logged once. Leaf data.
    failing: Mutex<BTreeSet<ServerId>>,
}

impl KeepOthers {
    /// For the headnode of `settings`.
    pub fn new(control: &Control, settings: &Settings, pki: &Pki) -> Self {
        Self { control: control.clone(), settings: settings.clone(), pki: pki.clone(), failing: Mutex::default() }
    }

    async fn pass(&self) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        let me = self.control.headnodes.me();
        let snapshot = self.control.snapshot();
        let all = snapshot.scan(&HEADNODES).filter(|one| one.stage == Stage::Active && Some(one.id) != me);
        let all: Vec<_> = all.map(|one| (one.id, one.hostname.clone(), one.node_link.clone())).collect();
        let fetches = all.into_iter().map(async |(id, hostname, link)| {
            let why = |error| format!("backups of {hostname}: {}", base::errors::chain(&error));
            (id, self.fetch(id, link).await.map_err(why))
        });
        let mut fetches = stream::iter(fetches).buffer_unordered(AT_ONCE);
        let (mut fetched, mut failed) = (0, None);
        while let Some((id, outcome)) = fetches.next().await {
            // At once: this pass may be cut while another one's is under way.
            self.note(id, outcome.as_ref().err());
            match outcome {
                Ok(count) => fetched += count,
                Err(why) => failed = failed.or(Some(why)),
            }
        }
        match failed {
            Some(why) => Err(why.into()),
            None if fetched == 0 => Ok(String::new()),
            None => Ok(format!("fetched {fetched} backups of other headnodes")),
        }
    }

    fn note(&self, of: ServerId, failed: Option<&String>) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match failed {
            Some(why) if failing.insert(of) => {
                tracing::warn!(why, "backups of another headnode cannot be fetched; it is tried again");
            }
            Some(_) => {}
            None => _ = failing.remove(&of),
        }
    }

    /// Fetches what is missing of one headnode, and tells it what is here.
    async fn fetch(&self, of: ServerId, node_link: String) -> Result<usize, FetchError> {
        let directory = directory(&self.settings, of);
        let link = self.link(node_link)?;
        let offered = link.backups(&names(&directory)?).await?;
        if directory.is_dir() {
            // What was begun and is offered no more is never finished.
            let begun = offered.iter().map(|backup| with_suffix(&directory.join(&backup.name), UNFINISHED));
            sweep(&directory, &begun.collect::<Vec<_>>())?;
        }
        let mut fetched = 0;
        for backup in offered.iter().take(KEPT) {
            let path = directory.join(&backup.name);
            if parse_name(&backup.name).is_none() || backup.name.contains('/') || backup.bytes > BYTES_MAX {
                return Err(FetchError::Nonsense(backup.name.clone()));
            }
            if fs::metadata(&path).is_ok_and(|there| there.len() == backup.bytes) {
                continue;
            }
            make_directory(&directory).map_err(BackupError::from)?;
            fetch_one(&link, backup, &path).await?;
            fetched += 1;
        }
        if fetched > 0 {
            let there = list(&directory)?;
            for old in &there[..there.len().saturating_sub(KEPT)] {
                fs::remove_file(&old.path).map_err(|source| BackupError::io("remove", &old.path, source))?;
            }
            link.backups(&names(&directory)?).await?;
        }
        Ok(fetched)
    }

    fn link(&self, node_link: String) -> Result<Client, FetchError> {
        let read = |path: &Path| fs::read_to_string(path).map_err(FetchError::Certificate);
        let settings = LinkSettings {
            headnodes: vec![node_link],
            is_here: false,
            authority_pem: read(&self.pki.ca.certificate)?,
            certificate_pem: read(&self.pki.node.certificate)?,
            key_pem: read(&self.pki.node.key)?,
            // A headnode is no node, and says nothing of its machine.
            machine: MachineIdentity::default(),
        };
        Ok(Client::new(&settings)?)
    }
}

/// One backup, whole or not at all. What arrives before it is cut is kept beside, and the next time goes on there; the sum is over all of it.
async fn fetch_one(link: &Client, backup: &OfferedBackup, path: &Path) -> Result<(), FetchError> {
    let beside = with_suffix(path, UNFINISHED);
    let (unfinished, most) = (beside.clone(), backup.bytes);
    let (there, known) = base::task::blocking("backup-sum", move || begun(&unfinished, most)).await?;
    let (begin, mut chunks) = link.backup(&backup.name, there).await?;
    let io = |doing: &'static str| {
        let beside = beside.clone();
        move |source| FetchError::Files(BackupError::io(doing, &beside, source))
    };
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&beside);
    let mut file = file.map_err(io("make"))?;
    file.set_len(begin).map_err(io("cut"))?;
    file.seek(io::SeekFrom::Start(begin)).map_err(io("seek in"))?;
    let mut sum = if begin > 0 { known } else { Sha256::new() };
    let (mut bytes, mut pace) = (begin, Pace { since: Instant::now(), bytes: begin });
    while let Some(piece) = chunks.next().await? {
        bytes += piece.len() as u64;
        if !pace.is_kept(bytes, Instant::now()) {
            return Err(FetchError::Stuck { name: backup.name.clone(), bytes });
        }
        if bytes > backup.bytes {
            break;
        }
        sum.update(&piece);
        // Pieces are small, and a disk that is slow slows the link.
        file.write_all(&piece).map_err(io("write"))?;
    }
    if bytes != backup.bytes || hex(sum.finalize().as_ref()) != backup.sha256 {
        let _ = fs::remove_file(&beside);
        return Err(FetchError::Differs(backup.name.clone()));
    }
    file.sync_all().map_err(io("write through"))?;
    fs::rename(&beside, path).map_err(io("put in place"))?;
    sync_directory_of(path)?;
    tracing::info!(name = backup.name, bytes, "holds a copy of another headnode's backup");
    Ok(())
}

/// How much of a backup of `most` bytes has arrived at `beside` before, and the sum of that.
fn begun(beside: &Path, most: u64) -> Result<(u64, Sha256), BackupError> {
    let mut sum = Sha256::new();
    let mut file = match fs::File::open(beside) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, sum)),
        Err(source) => return Err(BackupError::io("open", beside, source)),
    };
    let bytes = io::copy(&mut file, &mut sum).map_err(|source| BackupError::io("read", beside, source))?;
    Ok(if bytes <= most { (bytes, sum) } else { (0, Sha256::new()) })
}

/// Whether a transfer gets on. One of which nothing arrives at all is ended by the link before that.
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    /// `bytes` have arrived in all, the last of them now.
    fn is_kept(&mut self, bytes: u64, now: Instant) -> bool {
        if bytes - self.bytes >= PACE_BYTES {
            *self = Self { since: now, bytes };
        }
        now.duration_since(self.since) < PACE_WITHIN
    }
}

/// Where the backups of one headnode are kept.
fn directory(settings: &Settings, of: ServerId) -> PathBuf {
    settings.backup_dir().join(DIRECTORY).join(of.to_string())
}

/// Names of the backups there.
fn names(directory: &Path) -> Result<Vec<String>, BackupError> {
    let name = |backup: Listed| Some(backup.path.file_name()?.to_str()?.to_owned());
    Ok(list(directory)?.into_iter().filter_map(name).collect())
}

impl Loop for KeepOthers {
    fn name(&self) -> &'static str {
        "backups of others"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    fn deadline(&self) -> Duration {
        DEADLINE
    }

    fn pass(&self) -> BoxFuture<'_, Result<String, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(self.pass())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_gets_on_or_is_given_up() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut slow = Pace { since: begun, bytes: 0 };
        for minute in 1..600 {
            assert!(slow.is_kept(minute * PACE_BYTES, after(minute * 59)), "slow, and it gets on");
        }
        let mut drips = Pace { since: begun, bytes: 0 };
        assert!((1..60).all(|second| drips.is_kept(second, after(second))) && !drips.is_kept(60, after(60)));
        let mut stops = Pace { since: begun, bytes: 0 };
        assert!(stops.is_kept(PACE_BYTES, after(30)) && stops.is_kept(PACE_BYTES + 1, after(89)));
        assert!(!stops.is_kept(2 * PACE_BYTES - 1, after(90)));
    }

    #[tokio::test]
    async fn the_newest_are_offered_by_their_sums_and_nothing_else_is() {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
        let offers = Offers::new(&settings);
        let who = ServerId::random();
        assert!(offers.to(who, Vec::new()).await.unwrap().is_empty());
        let directory = settings.backup_dir();
        fs::create_dir_all(&directory).unwrap();
        let names: Vec<String> = (1..4).map(|day| format!("dc-1-2026112{day}T065900Z-r{day}.neso-backup")).collect();
        for name in &names {
            fs::write(directory.join(name), name).unwrap();
        }
        fs::write(directory.join("ca.key"), "secret").unwrap();
        let offered = offers.to(who, vec![names[0].clone()]).await.unwrap();
        assert_eq!(offered.iter().map(|one| &one.name).collect::<Vec<_>>(), [&names[2], &names[1]]);
        assert_eq!(offered[0].sha256, hex(Sha256::digest(&names[2]).as_ref()));
        assert_eq!(offers.file(&names[0]), Some(directory.join(&names[0])));
        for other in ["ca.key", "../pki/ca.key", "", "x/dc-1-20261121T065900Z-r1.neso-backup"] {
            assert_eq!(offers.file(other), None, "{other}");
        }
    }
}
