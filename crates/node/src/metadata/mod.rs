//! The metadata service: one socket per zone, served from the target and the guest's own changes.
//!
//! The socket lies in the directory that the zone sees as `/.zonecontrol`. The directory outlives the agent, the socket does
//! not: a new agent binds it again in the same place, and guests that ask meanwhile ask again. A zone at rest costs its
//! listener; connections are tasks that end with the conversation or with their deadlines.
//!
//! Only the zone's root may ask (and the host's): keys hold passwords. Which half of the metadata a key belongs to is
//! [`model::target::is_internal_key`]'s word; `sdc:` keys are [`properties`] and cannot be changed from inside.

mod guest;
mod properties;
mod serve;

use std::{
    collections::HashMap,
    fs::{self, File, Permissions},
    io,
    os::{
        fd::AsRawFd,
        unix::{fs::PermissionsExt, net::UnixListener as StdListener},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use base::shutdown::{Shutdown, Trigger};
use mdata::{Answer, Command};
use model::{
    id::InstanceId,
    target::{Exit, GuestMetadata, Target, ZoneTarget, is_internal_key},
    time::Timestamp,
};
use tokio::net::UnixListener;

use crate::{files::Disk, shared::Shared};

use guest::Queue;

/// Name of the socket in a zone's control directory.
const SOCKET: &str = "metadata.sock";

/// All sockets of this machine.
pub(crate) struct Metadata {
    control_dir: PathBuf,
    queues_dir: PathBuf,
    disk: Disk,
    guests: Mutex<HashMap<InstanceId, Arc<Guest>>>,
}

/// One zone's service.
pub(crate) struct Guest {
    id: InstanceId,
    /// First host id of the zone's range: its root.
    root_id: u32,
    /// What the guest changed. Replaced whole; the lock is held to look or to swap only.
    queue: Mutex<Arc<Queue>>,
    /// Held while a change goes to disk, by the thread that writes it.
    writing: Mutex<()>,
    queue_path: PathBuf,
    /// Ends the listener when the service is closed.
    _open: Trigger,
}

impl Metadata {
    pub(crate) fn new(control_dir: &Path, queues_dir: &Path, disk: Disk) -> Self {
        let (control_dir, queues_dir) = (control_dir.to_owned(), queues_dir.to_owned());
        Self { control_dir, queues_dir, disk, guests: Mutex::default() }
    }

    /// The directory a zone sees as `/.zonecontrol`.
    pub(crate) fn directory(&self, id: InstanceId) -> PathBuf {
        self.control_dir.join(id.to_string())
    }

    /// Changes of a guest that the control plane has not taken over.
    pub(crate) fn unseen(&self, id: InstanceId, seen: u64) -> Vec<GuestMetadata> {
        self.guest(id).map_or_else(Vec::new, |guest| guest.queue().unseen(seen))
    }

    /// Stops serving a zone and removes its directory and what it changed.
    pub(crate) fn close(&self, id: InstanceId) -> io::Result<()> {
        self.lock().remove(&id);
        self.disk.remove(&guest::path(&self.queues_dir, id))?;
        match fs::remove_dir_all(self.directory(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn guest(&self, id: InstanceId) -> Option<Arc<Guest>> {
        self.lock().get(&id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Arc<Guest>>> {
        // Every change is one insertion or removal, so a panic elsewhere leaves nothing half done.
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    fn queue(&self) -> Arc<Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves a zone from now on; one that is served already is left alone. `root_id` is the first id of its range.
pub(crate) fn open(shared: &Arc<Shared>, id: InstanceId, root_id: u32) -> io::Result<()> {
    if shared.metadata.guest(id).is_some_and(|guest| guest.root_id == root_id) {
        return Ok(());
    }
    let directory = shared.metadata.directory(id);
    fs::create_dir_all(&directory)?;
    let listener = bind(&directory)?;
    let queue_path = guest::path(&shared.metadata.queues_dir, id);
    let (open, closed) = Shutdown::new();
    let guest = Arc::new(Guest {
        id,
        root_id,
        queue: Mutex::new(Arc::new(guest::read(&queue_path))),
        writing: Mutex::default(),
        queue_path,
        _open: open,
    });
    shared.metadata.lock().insert(id, guest.clone());
    base::task::spawn("metadata", serve::listen(shared.clone(), Arc::downgrade(&guest), listener, closed));
    Ok(())
}

/// Binds the socket through the directory's descriptor: a socket's path may have 107 bytes, a directory's any number.
fn bind(directory: &Path) -> io::Result<UnixListener> {
    crate::files::remove(&directory.join(SOCKET))?;
    let handle = File::open(directory)?;
    let short = format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd());
    let listener = StdListener::bind(&short)?;
    // Anyone inside may connect; who is answered is decided by the peer's id.
    fs::set_permissions(directory.join(SOCKET), Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Carries out what a guest asked.
async fn answer(shared: &Arc<Shared>, guest: &Arc<Guest>, command: Command) -> Answer {
    let target = shared.target();
    let Some(zone) = target.zones.get(&guest.id) else {
        return Answer::Failure("this instance is unknown to its datacenter".to_owned());
    };
    match command {
        Command::Get(key) => match key.strip_prefix("sdc:") {
            Some(path) => found(sdc(shared, guest.id, &target, zone, path)),
            None => found(lookup(&guest.queue(), zone, &key)),
        },
        Command::Keys => Answer::Success(Some(keys(&guest.queue(), zone).join("\n"))),
        Command::Put { key, .. } | Command::Delete(key) if key.starts_with("sdc:") => Answer::Failure(format!(
            "\"{key}\" cannot be changed from inside: keys with sdc: are properties of the instance"
        )),
        Command::Put { key, value } => change(shared, guest, key, Some(value), zone.guest_metadata_seen).await,
        Command::Delete(key) => {
            if lookup(&guest.queue(), zone, &key).is_none() {
                return Answer::NotFound;
            }
            change(shared, guest, key, None, zone.guest_metadata_seen).await
        }
    }
}

fn found(value: Option<String>) -> Answer {
    value.map_or(Answer::NotFound, |value| Answer::Success(Some(value)))
}

fn sdc(shared: &Shared, id: InstanceId, target: &Target, zone: &ZoneTarget, path: &str) -> Option<String> {
    let (started_at, exit): (Option<Timestamp>, Option<Exit>) = shared.board.boots(id);
    let modified_at = shared.ledgers.modified_at(id);
    properties::property(&properties::View { id, target, zone, started_at, exit, modified_at }, path)
}

fn stored<'a>(zone: &'a ZoneTarget, key: &str) -> Option<&'a String> {
    let half = if is_internal_key(key) { &zone.internal_metadata } else { &zone.metadata };
    half.get(key)
}

fn lookup(queue: &Queue, zone: &ZoneTarget, key: &str) -> Option<String> {
    match queue.lookup(key, zone.guest_metadata_seen) {
        Some(value) => value.map(str::to_owned),
        None => stored(zone, key).cloned(),
    }
}

/// Names of all keys, sorted, the guest's own changes included.
fn keys(queue: &Queue, zone: &ZoneTarget) -> Vec<String> {
    let halves = zone.metadata.keys().filter(|key| !is_internal_key(key));
    let halves = halves.chain(zone.internal_metadata.keys().filter(|key| is_internal_key(key)));
    let mut keys: std::collections::BTreeSet<String> = halves.cloned().collect();
    for change in queue.unseen(zone.guest_metadata_seen) {
        match change.value {
            Some(_) => keys.insert(change.key),
            None => keys.remove(&change.key),
        };
    }
    keys.into_iter().collect()
}

async fn change(shared: &Arc<Shared>, guest: &Arc<Guest>, key: String, value: Option<String>, seen: u64) -> Answer {
    let writer = guest.clone();
    let disk = shared.config.disk.clone();
    let written = shared
        .verbs
        .run("guest metadata", move |_| {
            let _alone = writer.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let queue = writer.queue().with(&key, value, seen).map_err(|guest::Full| None)?;
            guest::write(&disk, &writer.queue_path, &queue).map_err(Some)?;
            *writer.queue.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(queue);
            Ok::<(), Option<io::Error>>(())
        })
        .await;
    match written {
        Ok(()) => {
            shared.board.nudge();
            Answer::Success(None)
        }
        Err(None) => Answer::Failure("too many changes wait for the control plane; try again later".to_owned()),
        Err(Some(error)) => {
            tracing::error!(instance = %guest.id, %error, "failed to write a guest's metadata");
            Answer::Failure("the machine could not write the change down".to_owned())
        }
    }
}
