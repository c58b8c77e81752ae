//! Images: manifests of version 2 as Triton's IMGAPI writes them, and their files.

pub mod manifest;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    id::{AccountId, ImageId},
    time::Timestamp,
    unit::Mib,
};

/// An image. Record of table `images`; the file itself lies content-addressed on the headnode under its SHA-256.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Never changes; chosen by whoever built the manifest.
    pub id: ImageId,
    /// Who may change it; operators own public images.
    pub owner: AccountId,
    /// e.g. `debian-12`.
    pub name: String,
    /// e.g. `20261124`.
    pub version: String,
    /// Shown to tenants.
    pub description: Option<String>,
    /// Link for people.
    pub homepage: Option<String>,
    /// Link to licence text.
    pub eula: Option<String>,
    /// `linux`, `smartos`, `windows`, `bsd`, `other`.
    pub os: String,
    /// Kind of file: `lx-dataset` for a root file system as a tar archive.
    pub kind: ImageKind,
    /// Everybody may use it.
    pub public: bool,
    /// Accounts besides the owner that may use a private image.
    pub acl: Vec<AccountId>,
    /// Free labels.
    pub tags: BTreeMap<String, serde_json::Value>,
    /// What an instance must offer.
    pub requirements: Requirements,
    /// Life cycle.
    pub state: ImageState,
    /// Why the state is `failed`.
    pub error: Option<String>,
    /// What its manifest says the file must be.
    #[serde(default)]
    pub expected_file: Option<manifest::ExpectedFile>,
    /// The file; `None` until it was added.
    pub file: Option<ImageFile>,
    /// When it became active.
    pub published_at: Option<Timestamp>,
    /// When the record was made.
    pub created_at: Timestamp,
}

/// What an image's file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageKind {
    /// A Linux root file system: a tar archive, possibly compressed.
    LxDataset,
}

/// Limits an image puts on the packages it goes with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirements {
    /// Least memory.
    pub min_memory: Option<Mib>,
    /// Most memory.
    pub max_memory: Option<Mib>,
}

/// Life cycle of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageState {
    /// Known, but its file is not here yet.
    Unactivated,
    /// Usable.
    Active,
    /// Kept for instances that have it; no new ones.
    Disabled,
    /// Being made from an instance.
    Creating,
    /// Making it failed; see the record's `error`.
    Failed,
}

/// The file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    /// SHA-256 of the file as stored, lower-case hex: its name on every machine.
    pub sha256: String,
    /// SHA-1 of the same bytes, for CloudAPI's clients.
    pub sha1: String,
    /// Bytes.
    pub size: u64,
    /// How it is packed.
    pub compression: Compression,
}

/// Compression of an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// A bare tar archive.
    None,
    /// RFC 1952.
    Gzip,
}
