//! How long the disk with this headnode's files takes to keep a little for good.
//!
//! The member of the store beside the headnode waits for the disk with every commit, but what a commit takes says nothing of whose disk it was: all wait
//! for the slowest part. So a block of a file of its own is written anew and synced, over and over, which nothing else can delay. In place: it needs no
//! room, so a full disk is told by its room and not by this.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base::shutdown::Shutdown;
use control::Control;
use model::headnode::DiskSigns;
use tokio::time::Instant;

/// From the end of one time to the next.
const PERIOD: Duration = Duration::from_secs(1);
/// The same where there is nobody to leave the work to: disks wear.
const PERIOD_ALONE: Duration = Duration::from_secs(30);
/// Times that are remembered.
const SYNCS: usize = 5;
/// What is written, bytes: a block.
const BLOCK: usize = 4_096;
/// Name of the file.
const FILE: &str = "sync-probe";

/// See the head of this file.
pub struct DiskProbe {
    directory: PathBuf,
    // Leaf data: a time is added, or all are copied.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    syncs_ms: VecDeque<u64>,
    begun: Option<Instant>,
    error: Option<String>,
}

impl DiskProbe {
    /// For the disk that `directory` is on.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, state: Mutex::default() }
    }

    /// Writes and syncs until `shutdown`.
    pub async fn run(self: Arc<Self>, control: Control, shutdown: Shutdown) {
        let mut number = 0_u64;
        loop {
            number = number.wrapping_add(1);
            self.state().begun = Some(Instant::now());
            let probe = self.clone();
            let once = base::task::blocking("disk probe", move || probe.sync(number));
            let Some(outcome) = shutdown.unless(once).await else { return };
            self.note(outcome);
            let period = if control.headnodes.roster().is_alone() { PERIOD_ALONE } else { PERIOD };
            if shutdown.unless(tokio::time::sleep(period)).await.is_none() {
                return;
            }
        }
    }

    /// What was measured last.
    pub fn signs(&self) -> DiskSigns {
        let state = self.state();
        DiskSigns {
            free_percent: self.free_percent(),
            syncs_ms: state.syncs_ms.iter().copied().collect(),
            syncing_ms: state.begun.map(|begun| millis(begun.elapsed())),
            error: state.error.clone(),
        }
    }

    fn sync(&self, number: u64) -> io::Result<()> {
        let path = self.directory.join(FILE);
        let file: File = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        let mut block = [0; BLOCK];
        block[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all_at(&block, 0)?;
        file.sync_data()
    }

    fn note(&self, outcome: io::Result<()>) {
        let mut state = self.state();
        let took = state.begun.take().map_or(0, |begun| millis(begun.elapsed()));
        match outcome {
            Ok(()) => {
                state.error = None;
                if state.syncs_ms.len() == SYNCS {
                    state.syncs_ms.pop_front();
                }
                state.syncs_ms.push_back(took);
            }
            // A disk without room has room again; what it has is told by itself.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
            Err(error) => {
                if state.error.is_none() {
                    tracing::error!(%error, directory = %self.directory.display(), "the disk does not keep what is written");
                }
                state.error = Some(error.to_string());
            }
        }
    }

    fn free_percent(&self) -> Option<f64> {
        let space = nix::sys::statvfs::statvfs(&self.directory).ok().filter(|space| space.blocks() > 0)?;
        Some(space.blocks_available() as f64 * 100.0 / space.blocks() as f64)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_told_and_forgotten_in_time() {
        let root = tempfile::tempdir().unwrap();
        let probe = DiskProbe::new(root.path().to_owned());
        for number in 0..8 {
            probe.state().begun = Some(Instant::now());
            assert!(probe.signs().syncing_ms.is_some(), "it is under way");
            probe.note(probe.sync(number));
        }
        let signs = probe.signs();
        assert_eq!((signs.syncs_ms.len(), signs.syncing_ms, signs.error), (SYNCS, None, None));
        assert!(signs.free_percent.is_some());
        let written = std::fs::read(root.path().join(FILE)).unwrap();
        assert_eq!((written.len(), written[0]), (BLOCK, 7), "in place");

        let gone = DiskProbe::new(root.path().join("gone"));
        gone.note(gone.sync(1));
        assert!(gone.signs().error.is_some());
        std::fs::create_dir(root.path().join("gone")).unwrap();
        gone.note(gone.sync(2));
        assert_eq!(gone.signs().error, None, "it is well again by itself");
    }
}
