//! Building images from Debian's packages.
//!
//! ```text
//! packages ─► root file system as a tar archive ─► gzip, hashed on the way ─► <name>-<version>.tar.gz
//!                                                                        └──► <name>-<version>.imgmanifest
//! ```
//! Two recipes: [`minimal`] lays busybox out by itself, [`debian`] lets mmdebstrap do it. Both add the files of
//! [`guest`] and the metadata client, which the caller brings along as one static program.
//!
//! An image's id is made from its content (UUID version 5 of the file's SHA-256), so the same id never means two different
//! files, and two machines that build from the same packages agree on it: all times inside are clamped to one moment.

mod debian;
mod guest;
mod minimal;
mod pack;

use std::path::{Path, PathBuf};

use serde_json::json;
use uuid::Uuid;

use crate::error::{Error, Result};

/// Names of the images that can be built.
pub const RECIPES: [&str; 2] = [minimal::NAME, debian::NAME];

/// Namespace of image ids; a random one, ours for ever.
const ID_NAMESPACE: Uuid = Uuid::from_u128(0x6f0a_3d52_9a0e_4c43_8d0b_7f3e_51c2_aa90);

/// The moment every file of an image is clamped to, seconds since 1970 (2023-06-10, Debian 12's release).
const EPOCH: u64 = 1_686_355_200;

/// The owner a manifest names: nobody, since the datacenter that imports it decides.
const NO_OWNER: &str = "00000000-0000-0000-0000-000000000000";

/// What to build, and from what.
pub struct Order<'a> {
    /// One of [`RECIPES`].
    pub name: &'a str,
    /// Version of the image, a date such as `20261124`.
    pub version: &'a str,
    /// RFC 3339, for the manifest.
    pub published_at: &'a str,
    /// The metadata client, a static program.
    pub mdata: &'a [u8],
    /// Directory for the two files; made when it is not there.
    pub output: &'a Path,
    /// Told what happens, a line at a time.
    pub progress: &'a dyn Fn(&str),
}

/// Builds an image and returns the path of its manifest. Files appear whole or not at all.
pub fn build(order: &Order<'_>) -> Result<PathBuf> {
    std::fs::create_dir_all(order.output)
        .map_err(|error| Error::os(format!("make directory `{}`", order.output.display()), error))?;
    let scratch = tempfile::Builder::new()
        .prefix(".build-")
        .tempdir_in(order.output)
        .map_err(|error| Error::os("make a directory to build in", error))?;
    let (archive, recipe) = match order.name {
        minimal::NAME => (minimal::archive(order, scratch.path())?, minimal::ABOUT),
        debian::NAME => (debian::archive(order, scratch.path())?, debian::ABOUT),
        other => return Err(Error::Missing(format!("a recipe for an image called `{other}`"))),
    };
    (order.progress)("packing");
    let base = format!("{}-{}", order.name, order.version);
    let packed = pack::gzip(&archive, &scratch.path().join("packed"))?;
    let manifest = manifest(order, &recipe, &packed);
    let manifest_path = order.output.join(format!("{base}.imgmanifest"));
    let scratch_manifest = scratch.path().join("manifest");
    std::fs::write(&scratch_manifest, manifest).map_err(|error| Error::os("write the manifest", error))?;
    // The manifest last: whoever sees it finds the file beside it.
    for (from, to) in
        [(&packed.path, &order.output.join(format!("{base}.tar.gz"))), (&scratch_manifest, &manifest_path)]
    {
        std::fs::rename(from, to).map_err(|error| Error::os(format!("put `{}` in place", to.display()), error))?;
    }
    Ok(manifest_path)
}

/// What a recipe says in its manifest.
#[derive(Debug, Clone, Copy)]
struct About {
    description: &'static str,
    homepage: &'static str,
    min_memory_mib: u64,
}

fn manifest(order: &Order<'_>, about: &About, packed: &pack::Packed) -> Vec<u8> {
    let manifest = json!({
        "v": 2,
        "uuid": Uuid::new_v5(&ID_NAMESPACE, packed.sha256.as_bytes()),
        "owner": NO_OWNER,
        "name": order.name,
        "version": order.version,
        "description": about.description,
        "homepage": about.homepage,
        "state": "active",
        "disabled": false,
        "public": true,
        "published_at": order.published_at,
        "type": "lx-dataset",
        "os": "linux",
        "files": [{
            "sha1": packed.sha1,
            "sha256": packed.sha256,
            "digest": format!("sha256:{}", packed.sha256),
            "size": packed.size,
            "compression": "gzip",
        }],
        "requirements": {"networks": [{"name": "net0", "description": "public"}], "brand": "lx", "min_ram": about.min_memory_mib},
        "tags": {"role": "os", "built_by": "neso"},
    });
    let mut text = serde_json::to_vec_pretty(&manifest).expect("plain values always serialise");
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests;
