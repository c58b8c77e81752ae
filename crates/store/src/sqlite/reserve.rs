//! Disk space held back by a file beside the database that holds nothing of use.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long to leave the disk alone between attempts to lay the reserve again.
const RELAY_INTERVAL: Duration = Duration::from_secs(2);
/// Bytes written at once.
const PIECE: usize = 256 << 10;

pub(crate) struct Reserve {
    path: PathBuf,
    bytes: u64,
    laid: bool,
    last_try: Option<Instant>,
}

impl Reserve {
    /// The reserve beside `database`, laid if there is room.
    pub(crate) fn beside(database: &Path, bytes: u64) -> Self {
        let mut name = database.as_os_str().to_owned();
        name.push(".reserve");
        let mut reserve = Self { path: name.into(), bytes, laid: false, last_try: None };
        if !reserve.lay() {
            tracing::warn!(path = %reserve.path.display(), "no room for the store's reserve: the disk is nearly full");
        }
        reserve
    }

    pub(crate) fn is_laid(&self) -> bool {
        self.laid
    }

    /// Give the space up.
    pub(crate) fn give_up(&mut self) {
        tracing::warn!(path = %self.path.display(), "the disk is full: the store gives up its reserve");
        self.laid = false;
        self.last_try = Some(Instant::now());
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(%error, "the store's reserve cannot be removed");
        }
    }

    /// Lay it again if there is room now. Tried rarely.
    pub(crate) fn relay(&mut self) -> bool {
        if self.laid {
            return true;
        }
        if self.last_try.is_some_and(|last| last.elapsed() < RELAY_INTERVAL) {
            return false;
        }
        self.last_try = Some(Instant::now());
        let laid = self.lay();
        if laid {
            tracing::info!("the store has room again");
        }
        laid
    }

    fn lay(&mut self) -> bool {
        let present = fs::metadata(&self.path).is_ok_and(|found| found.len() == self.bytes);
        self.laid = present || self.write().is_ok();
        if !self.laid {
            let _ = fs::remove_file(&self.path);
        }
        self.laid
    }

    fn write(&self) -> io::Result<()> {
        let mut file = File::create(&self.path)?;
        // Not zeroes: file systems that compress would hold nothing back.
        let mut noise = 0x9E37_79B9_7F4A_7C15_u64;
        let mut piece = vec![0_u8; PIECE];
        let mut left = self.bytes;
        while left > 0 {
            for word in piece.chunks_exact_mut(8) {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                word.copy_from_slice(&noise.to_le_bytes());
            }
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
            file.write_all(&piece[..now])?;
            left -= now as u64;
        }
        // Delayed allocation: only now does the file system say whether there is room.
        file.sync_all()
    }
}
