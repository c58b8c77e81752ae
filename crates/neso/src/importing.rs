//! Importing an image: manifest, then file. Repeatable: what is there already is left alone, and an import that
//! was cut goes on where it stopped.

use std::path::{Path, PathBuf};

use model::image::{
    Image, ImageState,
    manifest::{self, MANIFEST_MAX_BYTES, Manifest},
};
use opsapi::Client;

use crate::{
    failure::{Failure, Outcome},
    progress::Progress,
};

/// Imports the image of manifest file `path`; its own file is beside it when not named.
pub(crate) async fn import(client: &Client, path: &Path, file: Option<&Path>, progress: &Progress) -> Outcome<Image> {
    let (document, manifest) = read_manifest(path)?;
    let id = manifest.id.to_string();
    let present = match client.image(&id).await {
        Ok(image) => Some(image),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(image) = &present
        && image.state != ImageState::Unactivated
    {
        return Ok(image.clone());
    }
    // Also when it is there without its file: the manifest may have been mended since.
    client.create_image(&document).await?;
    let sent = send(client, path, file, &manifest, progress).await;
    if sent.is_err() && present.is_none() {
        // What this import made it takes back. Should that fail too, the first failure is the one to hear of, and importing
        // again goes on from here.
        let _ = client.delete_image(&id).await;
    }
    sent
}

async fn send(
    client: &Client,
    path: &Path,
    file: Option<&Path>,
    manifest: &Manifest,
    progress: &Progress,
) -> Outcome<Image> {
    let file = match file {
        Some(file) => file.to_owned(),
        None => beside(path)?,
    };
    let size = std::fs::metadata(&file)
        .map_err(|error| Failure::new(format!("failed to read image file `{}`: {error}", file.display())))?
        .len();
    let step = progress.transfer(format!("Importing image {} {}", manifest.name, manifest.version), size);
    let image = client.add_image_file(&manifest.id.to_string(), &file, step.mover()).await?;
    step.done("done");
    Ok(image)
}

/// Reads a manifest, as its text means it and as the document the headnode gets.
fn read_manifest(path: &Path) -> Outcome<(serde_json::Value, Manifest)> {
    let fail = |why: String| Failure::new(format!("failed to read image manifest `{}`: {why}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
    if size > MANIFEST_MAX_BYTES as u64 {
        return Err(fail(format!("it has {size} bytes, allowed are {MANIFEST_MAX_BYTES}")));
    }
    let text = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
    let manifest = manifest::parse(&text).map_err(|error| fail(error.to_string()))?;
    let document = serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?;
    Ok((document, manifest))
}

/// The image file beside a manifest: same name, an archive's ending.
fn beside(manifest: &Path) -> Outcome<PathBuf> {
    let candidates = ["tar.gz", "tar"].map(|ending| manifest.with_extension(ending));
    candidates.iter().find(|path| path.exists()).cloned().ok_or_else(|| {
        Failure::new(format!("there is no image file beside `{}`", manifest.display()))
            .mend(format!("put it at `{}`, or name it with --file", candidates[0].display()))
    })
}
