//! Files of images on every headnode: what one imported, the others fetch.
//!
//! A headnode compares what records say there is with what lies on its disk, and fetches what is missing from whichever other headnode has
//! it, over the node link and with the certificate of its own machine's node. Until then nodes that ask it are answered that the file is not
//! here, and ask the next headnode. Each file is read and its sum compared once in a run and then once a day; one that is damaged is put aside
//! and fetched again. A headnode that is alone has nobody to fetch from: it only counts.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base::shutdown::Shutdown;
use control::{
    Control,
    images::{self, KnownFile},
    tables::{HEADNODES, IMAGES},
};
use flow::loops::{Loop, Nudge};
use futures_util::stream;
use model::{server::MachineIdentity, time::Timestamp};
use nodeapi::{
    client::{ADDRESSES_MAX, Client, Settings as LinkSettings},
    link::{Chunks, HeadnodeLink as _, LinkError},
};
use store::BoxFuture;

use crate::pki::Pki;

/// How often the disk is compared with the records; a new image does not wait for that.
const PERIOD: Duration = Duration::from_secs(60);
/// How long one pass may take: many images over a slow link. What it has not done the next one does.
const DEADLINE: Duration = Duration::from_secs(3_600);
/// A file that was read is not read again for so long, milliseconds.
const CHECKED_FOR_MS: u64 = 24 * 60 * 60 * 1_000;

/// See the head of this file.
pub struct Replicas {
    control: Control,
    pki: Pki,
    missing: Arc<AtomicU64>,
    /// When each file was read and found good. Leaf data.
    checked: Mutex<HashMap<String, Timestamp>>,
}

/// A file could not be had.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    /// The certificate of this machine's node.
    #[error("failed to read this machine's certificate")]
    Certificate(#[source] io::Error),
    /// The other headnodes.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The file itself.
    #[error(transparent)]
    Place(#[from] control::Error),
}

impl Replicas {
    /// Fetches what is missing; how many files are is counted in `missing`.
    pub fn new(control: &Control, pki: &Pki, missing: &Arc<AtomicU64>) -> Self {
        let (control, pki, missing) = (control.clone(), pki.clone(), missing.clone());
        Self { control, pki, missing, checked: Mutex::default() }
    }

    async fn pass(&self) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        let missing = self.missing().await?;
        self.missing.store(missing.len() as u64, Ordering::Relaxed);
        let others = self.others();
        if missing.is_empty() || others.is_empty() {
            return Ok(String::new());
        }
        let link = self.link(others)?;
        let (mut fetched, mut last) = (0, None);
        for file in &missing {
            match self.fetch(&link, file).await {
                Ok(()) => {
                    fetched += 1;
                    self.missing.fetch_sub(1, Ordering::Relaxed);
                    tracing::info!(sha256 = file.sha256, size = file.size, "fetched the file of an image");
                }
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) => Err(error.into()),
            None => Ok(format!("{fetched} files of images fetched")),
        }
    }

    /// Files that should be here and are not, or are not what they should be.
    async fn missing(&self) -> Result<Vec<KnownFile>, control::Error> {
        let mut missing = Vec::new();
        let known = images::known_files(&self.control);
        self.checked().retain(|sha256, _| known.iter().any(|file| file.sha256 == *sha256));
        // What is damaged here is only put aside where there is hope for another.
        let is_alone = self.control.headnodes.roster().is_alone();
        for file in known {
            let is_good = images::is_here(&self.control, &file).await
                && (is_alone || !self.is_due(&file) || images::try_file(&self.control, &file).await?);
            match is_good {
                true if !is_alone && self.is_due(&file) => drop(self.checked().insert(file.sha256, self.control.now())),
                true => {}
                false => missing.push(file),
            }
        }
        Ok(missing)
    }

    fn is_due(&self, file: &KnownFile) -> bool {
        let now = self.control.now();
        self.checked().get(&file.sha256).is_none_or(|at| now.millis_since(*at) > CHECKED_FOR_MS)
    }

    /// Node links of the other headnodes, those that beat first.
    fn others(&self) -> Vec<String> {
        let (snapshot, roster) = (self.control.snapshot(), self.control.headnodes.roster());
        let mut others: Vec<_> = roster.others().collect();
        others.sort_by_key(|id| !roster.is_fresh(*id));
        let links = others.iter().filter_map(|id| Some(snapshot.get(&HEADNODES, &id.to_string())?.node_link.clone()));
        links.take(ADDRESSES_MAX).collect()
    }

    fn link(&self, headnodes: Vec<String>) -> Result<Client, FetchError> {
        let read = |path: &std::path::Path| std::fs::read_to_string(path).map_err(FetchError::Certificate);
        let settings = LinkSettings {
            headnodes,
            is_here: false,
            authority_pem: read(&self.pki.ca.certificate)?,
            certificate_pem: read(&self.pki.node.certificate)?,
            key_pem: read(&self.pki.node.key)?,
            // A headnode is no node, and says nothing of its machine.
            machine: MachineIdentity::default(),
        };
        Ok(Client::new(&settings)?)
    }

    async fn fetch(&self, link: &Client, file: &KnownFile) -> Result<(), FetchError> {
        let chunks = link.image(&file.sha256).await?;
        let content = stream::unfold(chunks, |mut chunks: Box<dyn Chunks>| async {
            match chunks.next().await {
                Ok(Some(piece)) => Some((Ok(piece), chunks)),
                Ok(None) => None,
                Err(error) => Some((Err(io::Error::other(error)), chunks)),
            }
        });
        images::place_file(&self.control, file, Box::pin(content)).await?;
        Ok(())
    }

    fn checked(&self) -> MutexGuard<'_, HashMap<String, Timestamp>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loop for Replicas {
    fn name(&self) -> &'static str {
        "image replicas"
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

/// Wakes the loops that care when there is another image or another headnode, until shutdown.
pub async fn follow(control: Control, loops: [Nudge; 3], shutdown: Shutdown) {
    let mut changes = control.store.changes();
    while let Some(change) = shutdown.unless(changes.next()).await {
        let concerns = |table: &str| table == IMAGES.name || table == HEADNODES.name;
        if change.lagged || change.keys.iter().any(|(table, _)| concerns(table)) {
            loops.iter().for_each(Nudge::nudge);
        }
    }
}
