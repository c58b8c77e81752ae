//! The files of images: one per content, named by its SHA-256, in one directory.
//!
//! A file is written under a temporary name while its sums are computed, flushed to the disk, and given its name only
//! when size and sums are what the manifest said. What ends in any other way leaves nothing: the temporary file removes
//! itself, and those of a crash are swept. A full disk is an answer, not an accident.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use model::{
    id::ImageId,
    image::{
        Compression, Image, ImageFile,
        manifest::{ExpectedFile, FILE_MAX_BYTES},
    },
};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use store::Entry;
use tokio::io::AsyncWriteExt as _;

use crate::{Control, Error, Result, tables::IMAGES};

/// Ending of files being received.
const PARTIAL: &str = ".partial";

/// Seconds a sender may pause before the transfer is given up.
const STALL_SECONDS: u64 = 60;

/// Age from which an unnamed or unused file is swept: longer than any gap between its last write and its record.
const SWEEP_AFTER: Duration = Duration::from_secs(60 * 60);

/// Receives the file of an image, verifies it against what the manifest said and makes the image active.
pub async fn add_file(
    control: &Control,
    image: ImageId,
    content: impl Stream<Item = io::Result<Bytes>> + Unpin,
) -> Result<Arc<Entry<Image>>> {
    let dir = &control.config.images_dir;
    let entry = super::get(control, crate::Scope::All, image)?;
    if entry.file.is_some() {
        return Err(Error::Conflict(format!("image {image} has its file already")));
    }
    let Some(expected) = &entry.expected_file else {
        return Err(Error::Conflict(format!("image {image} was made without saying what its file must be")));
    };
    tokio::fs::create_dir_all(dir).await.map_err(file_error(|| format!("make directory {}", dir.display())))?;
    let partial = tempfile::Builder::new()
        .prefix(&image.short())
        .suffix(PARTIAL)
        .tempfile_in(dir)
        .map_err(file_error(|| format!("make a file in {}", dir.display())))?;
    let (file, path) = partial.into_parts();
    let received = receive(tokio::fs::File::from_std(file), expected, content).await?;
    verify(&received, expected)?;
    base::crash::point("image.file.received");
    let name = dir.join(&received.sha256);
    path.persist(&name).map_err(|error| error.error).map_err(file_error(|| format!("name file {}", name.display())))?;
    sync_dir(dir).await.map_err(file_error(|| format!("flush directory {}", dir.display())))?;
    base::crash::point("image.file.named");
    super::activate(control, image, received).await
}

/// Where the file with a sum lies, if an image has it.
pub fn file_path(control: &Control, sha256: &str) -> Result<PathBuf> {
    // Only sums that a record holds become paths, so no stranger's text does.
    if control.snapshot().find(&IMAGES, "file", sha256).next().is_none() {
        return Err(Error::not_found("image file", sha256));
    }
    Ok(control.config.images_dir.join(sha256))
}

/// A file that an image has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownFile {
    /// Its SHA-256, which is its name too.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

/// Every file that images have, each once, in the order of names.
pub fn known_files(control: &Control) -> Vec<KnownFile> {
    let snapshot = control.snapshot();
    let files = snapshot.scan(&IMAGES).filter_map(|image| {
        let file = image.file.as_ref()?;
        Some((file.sha256.clone(), file.size))
    });
    let once: std::collections::BTreeMap<String, u64> = files.collect();
    once.into_iter().map(|(sha256, size)| KnownFile { sha256, size }).collect()
}

/// Whether a file is here and as long as it should be.
pub async fn is_here(control: &Control, file: &KnownFile) -> bool {
    let found = tokio::fs::metadata(control.config.images_dir.join(&file.sha256)).await;
    found.is_ok_and(|found| found.len() == file.size)
}

/// Reads a file that is here, and takes its name away if it is not what its name says: whoever asks for it is then sent to another headnode, and
/// it is fetched again. Returns whether it was good.
pub async fn try_file(control: &Control, file: &KnownFile) -> Result<bool> {
    let path = control.config.images_dir.join(&file.sha256);
    let reading = path.clone();
    let found = base::task::blocking("image check", move || {
        let mut sum = Sha256::new();
        io::copy(&mut std::fs::File::open(&reading)?, &mut sum)?;
        Ok::<_, io::Error>(hex(&sum.finalize()))
    });
    let found = found.await.map_err(file_error(|| format!("read {}", path.display())))?;
    if found == file.sha256 {
        return Ok(true);
    }
    tracing::warn!(path = %path.display(), found, "the file of an image is damaged");
    // The ending of files that are swept.
    let aside = path.with_extension(format!("damaged{PARTIAL}"));
    tokio::fs::rename(&path, &aside).await.map_err(file_error(|| format!("put aside {}", path.display())))?;
    Ok(false)
}

/// Receives a file that an image has already, and gives it its name if it is the right one.
pub async fn place_file(
    control: &Control,
    file: &KnownFile,
    content: impl Stream<Item = io::Result<Bytes>> + Unpin,
) -> Result<()> {
    let dir = &control.config.images_dir;
    // Only sums that a record holds become paths, so no stranger's text does.
    let name = file_path(control, &file.sha256)?;
    tokio::fs::create_dir_all(dir).await.map_err(file_error(|| format!("make directory {}", dir.display())))?;
    let partial = tempfile::Builder::new()
        .prefix("fetched-")
        .suffix(PARTIAL)
        .tempfile_in(dir)
        .map_err(file_error(|| format!("make a file in {}", dir.display())))?;
    let (partial, path) = partial.into_parts();
    let expected = ExpectedFile {
        sha256: Some(file.sha256.clone()),
        sha1: None,
        size: Some(file.size),
        compression: Compression::None,
    };
    let received = receive(tokio::fs::File::from_std(partial), &expected, content).await?;
    verify(&received, &expected)?;
    path.persist(&name).map_err(|error| error.error).map_err(file_error(|| format!("name file {}", name.display())))?;
    sync_dir(dir).await.map_err(file_error(|| format!("flush directory {}", dir.display())))
}

/// Removes a file; a failure is only logged.
pub(super) async fn remove(control: &Control, sha256: &str) {
    let path = control.config.images_dir.join(sha256);
    if let Err(error) = tokio::fs::remove_file(&path).await
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "could not remove the file of a deleted image");
    }
}

/// Removes old files that no image has. Returns how many.
pub(super) async fn sweep(control: &Control) -> Result<usize> {
    let dir = &control.config.images_dir;
    let mut listing = match tokio::fs::read_dir(dir).await {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(file_error(|| format!("list {}", dir.display()))(error)),
    };
    let mut removed = 0;
    while let Some(entry) = listing.next_entry().await.map_err(file_error(|| format!("list {}", dir.display())))? {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.ends_with(PARTIAL) || (name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let used = control.snapshot().find(&IMAGES, "file", &name).next().is_some();
        let modified = entry.metadata().await.and_then(|metadata| metadata.modified());
        let now = std::time::UNIX_EPOCH + Duration::from_millis(u64::try_from(control.now().0).unwrap_or(0));
        // Whoever wrote before this process began is dead.
        let begun = std::time::UNIX_EPOCH + Duration::from_millis(u64::try_from(control.nodes.since().0).unwrap_or(0));
        let old = modified.is_ok_and(|at| at < begun || now.duration_since(at).is_ok_and(|age| age > SWEEP_AFTER));
        if ours && !used && old && tokio::fs::remove_file(entry.path()).await.is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}

/// Writes the content to `file` while summing it up. The disk has it when this returns.
async fn receive(
    mut file: tokio::fs::File,
    expected: &ExpectedFile,
    mut content: impl Stream<Item = io::Result<Bytes>> + Unpin,
) -> Result<ImageFile> {
    let limit = expected.size.unwrap_or(FILE_MAX_BYTES);
    let (mut sha256, mut sha1, mut size) = (Sha256::new(), Sha1::new(), 0_u64);
    let stall = Duration::from_secs(STALL_SECONDS);
    loop {
        let Ok(piece) = tokio::time::timeout(stall, content.next()).await else {
            let why = format!("the sender was silent for {STALL_SECONDS} seconds after {size} bytes");
            return Err(Error::invalid("file", why));
        };
        let Some(piece) = piece else { break };
        let piece =
            piece.map_err(|error| Error::invalid("file", format!("ended early after {size} bytes: {error}")))?;
        size += piece.len() as u64;
        if size > limit {
            return Err(Error::invalid("file", format!("is larger than the {limit} bytes of its manifest")));
        }
        sha256.update(&piece);
        sha1.update(&piece);
        file.write_all(&piece).await.map_err(file_error(|| "write the image's file".to_owned()))?;
    }
    file.flush().await.map_err(file_error(|| "write the image's file".to_owned()))?;
    file.sync_all().await.map_err(file_error(|| "flush the image's file".to_owned()))?;
    Ok(ImageFile {
        sha256: hex(&sha256.finalize()),
        sha1: hex(&sha1.finalize()),
        size,
        compression: expected.compression,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn verify(received: &ImageFile, expected: &ExpectedFile) -> Result<()> {
    let differs = |what: &str, is: &str, should: &str| {
        Err(Error::invalid(
            "file",
            format!("has {what} {is}, but its manifest says {should}; send it again or mend the manifest"),
        ))
    };
    if let Some(size) = expected.size.filter(|size| *size != received.size) {
        return differs("size", &received.size.to_string(), &size.to_string());
    }
    if let Some(sha256) = expected.sha256.as_ref().filter(|sum| **sum != received.sha256) {
        return differs("SHA-256", &received.sha256, sha256);
    }
    if let Some(sha1) = expected.sha1.as_ref().filter(|sum| **sum != received.sha1) {
        return differs("SHA-1", &received.sha1, sha1);
    }
    Ok(())
}

async fn sync_dir(dir: &Path) -> io::Result<()> {
    tokio::fs::File::open(dir).await?.sync_all().await
}

/// Turns the system's error into ours; a full disk becomes an answer that says so.
fn file_error(operation: impl Fn() -> String) -> impl Fn(io::Error) -> Error {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Unavailable(
            "the headnode's disk for images is full; delete images that are not used, or enlarge it".to_owned(),
        ),
        _ => Error::File { operation: operation(), source },
    }
}
